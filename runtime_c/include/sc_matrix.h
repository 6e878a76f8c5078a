/* SPDX-License-Identifier: Apache-2.0
 * A matrix in memory, and its input vector. */
#ifndef SC_MATRIX_H
#define SC_MATRIX_H

#include <stdint.h>

#include "sc_abi.h"

/* On-chip memories come first. */
#ifdef SC_INTERLEAVE
/* SC_IN_TWO: every SC_INTERLEAVE-th tile, from the first on, is in SC_INTERLEAVED_LEVEL; the others are in
 * flash. */
#endif
enum sc_level { SC_IN_WMEM = 0, SC_IN_L2 = 1, SC_IN_FLASH = 2, SC_IN_TWO = 3 };
enum sc_format {
    SC_FMT_BITS = 15,    /* bits per weight */
    SC_FMT_GROUPED = 16, /* scales per quantisation group */
    SC_FMT_ASYM = 32,    /* asymmetric: offsets */
    SC_FMT_Q16 = 64,     /* 16-bit vectors */
    SC_FMT_ZEROS = 128   /* zero points instead of offsets */
};

/* Layout of a matrix's input vector of k inputs. A 16-bit vector has its high bytes `words` words after the low
 * bytes; both are zero from k up to last_words. */
#if SC_XGROUPS > 0
/* Split into quantisation groups: a group has whole words of 4 inputs, in multiples of what the format packs
 * together (of the matrix, or of a low-rank adapter's first half: of the adapted matrix). */
#endif
typedef struct {
    uint16_t k, groups, group_elems, last_elems;
    uint16_t group_blocks, x_blocks; /* blocks of SC_BLOCK inputs in a full group, and in all */
    uint16_t group_words, last_words, words;
    uint16_t range; /* 16-bit: most bits of a value; else the largest group scale */
} sc_vector_layout;

#if SC_XGROUPS > 0
/* A matrix in memory: ceil(rows / 8) blocks of
 *   uint16 r[8] row multipliers
 *   per group: [uint8 d[8] if grouped] [int16 b[8] if asymmetric, or int4 zero points z[8]] weights
 * Sum of a row: acc = sum over groups of c * round((d * sum(w * x) - b * sum(x)) / 2^drop); b = d * z with
 * zero points. With SC_FMT_Q16: acc = sum(w * x). Weights: words of 8 rows in turn; sc_dot_w<bits>.h says
 * which inputs a word holds. An adapter's B matrix (SC_ADAPTER_FORMAT) follows the weights of each block in the
 * same form. */
#elif SC_ENGINES_ALONE
/* A matrix in memory: `blocks` blocks of weights of 8 rows, in the layout of its engine, then a uint16 multiplier
 * per row. Sum of a row: acc = sum(w * x). */
#else
/* A matrix in memory: ceil(rows / 8) blocks of row multipliers, uint16 r[8], and weights: words of 8 rows in
 * turn; sc_dot_w<bits>.h says which inputs a word holds. Engines have layouts of their own. Sum of a row:
 * acc = sum(w * x). */
#endif
typedef struct sc_matrix {
    uint32_t offset;      /* in its memory (SC_IN_TWO: in flash), a multiple of 4 */
    uint32_t block_bytes; /* bytes of a block, a multiple of 4 */
    uint32_t rows;
    uint16_t blocks;      /* ceil(rows / 8) */
    uint16_t tile_blocks; /* blocks per tile */
    sc_vector_layout in;  /* its input vector */
    uint8_t level;        /* enum sc_level */
    uint8_t format;       /* enum sc_format */
    uint8_t drop;         /* grouped: right shift of a group's sum, including the factor 2^fold */
#ifdef SC_HAS_ENGINES
    uint8_t engine; /* SC_ON_*; engines have their own layouts (sc_engines.h) */
#endif
    int16_t shift; /* right shift of a sum's high word, before the token's exponent */
#ifdef SC_ENGINE_REMAINDERS
    uint8_t remainders; /* which jobs have remainders: Remainders in engines/engine.py */
#endif
#ifdef SC_ENGINE_SECOND_LAYOUT
    uint8_t taps; /* per vector of the second layout (engines/neureka_both.py); 0: no second layout */
#endif
    const struct sc_matrix *adapter; /* its second matrix b, or NULL: y += b @ quantise(a @ x) */
} sc_matrix;

/* Bytes of a group before its weights. */
static inline uint32_t sc_table_bytes(const int format) {
    const uint32_t offsets = format & SC_FMT_ZEROS ? SC_ROWS / 2 : 2 * SC_ROWS;
    return (format & SC_FMT_GROUPED ? SC_ROWS : 0u) + (format & SC_FMT_ASYM ? offsets : 0u);
}

/* Bytes of the groups of a block. */
static inline uint32_t sc_weight_bytes(const sc_matrix *m) {
    return m->in.groups * sc_table_bytes(m->format) + m->in.words * 4u * (m->format & SC_FMT_BITS);
}

#endif
