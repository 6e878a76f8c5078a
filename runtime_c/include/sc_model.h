/* SPDX-License-Identifier: Apache-2.0
 * Types of the generated tables in model.c: matrices, layers. All cores read them, most in L1. */
#ifndef SC_MODEL_H
#define SC_MODEL_H

#include <stdint.h>

#include "model.h"
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

/* Matrices of a layer in stream order. */
enum sc_slot { SC_QKV, SC_O, SC_GU, SC_DOWN, SC_SLOTS };

typedef struct {
    const sc_matrix *m[SC_SLOTS];
    /* Scales in the KV cache are in units of 2^k_unit and 2^v_unit. q * k times score_mantissa * 2^score_exponent is in
     * units of log2; the result of attention is in units of 2^-mean_unit. Gates are shifted right by gate_shift for the
     * sigmoid; silu(gate) and up are shifted left by silu_shift and up_shift before they are multiplied. */
    SC_LAYER_NUMBERS;
#ifdef SC_HAS_BIAS
    const int32_t *bias[SC_SLOTS]; /* [rows], in the fixed point of the result; or NULL */
#endif
#ifdef SC_HAS_HEAD_NORM
    const int16_t *head_gain[2]; /* Q15 [head_dim], for q and k */
    uint64_t head_eps;           /* in units of the sum of squares */
#endif
} sc_layer;

#ifdef SC_WINDOW
/* KV cache of a layer: a ring if its tokens attend to the last SC_WINDOW positions only. */
typedef struct {
    uint32_t windowed; /* 1 or 0 */
    uint32_t first;    /* blocks of the layers before it */
    uint32_t at;       /* offset in its memory if that is not L1 */
} sc_cache_place;
extern const sc_cache_place sc_cache_places[]; /* [SC_LAYERS] */
#endif

#ifdef SC_POST_NORMS
/* An RMSNorm after a block. */
typedef struct {
    const int32_t *gain; /* [SC_HIDDEN], Q31 */
    uint64_t eps;        /* as in the sum of squares */
    uint32_t factor; /* factor * 2^exponent: sqrt(SC_HIDDEN) in units of the residual stream and of gain */
    int32_t exponent;
} sc_post_norm;
extern const sc_post_norm sc_post_norms[]; /* [2 * SC_LAYERS] */
#endif
#ifdef SC_ROPE_TABLES
extern const uint8_t sc_rope_tables[]; /* [SC_LAYERS] */
#endif

/* Where the result of a layer's op is in the L1 arena. Only observation reads it. */
enum sc_layout { SC_WORDS, SC_BYTES, SC_VECTOR }; /* int32; int8; array of sc_qvec */
typedef struct {
    uint32_t at;     /* arena offset */
    uint32_t stride; /* words per token; not for sc_qvec */
    uint32_t count;  /* values per token with padding; not for sc_qvec */
    uint8_t slot;    /* SC_VECTOR: enum sc_slot of the matrix that reads it */
    uint8_t layout;  /* enum sc_layout */
} sc_result;

#define SC_LAYER_STEPS (SC_LAYER_LAST - SC_LAYER_FIRST + 1)
extern const sc_result sc_results[]; /* [SC_LAYER_STEPS], in the order of enum sc_op */

extern const char *const sc_op_names[]; /* of enum sc_op */

#if SC_RANK > 0
/* An adapter's first matrix, a, precedes its matrix. */
#endif
/* All matrices in the order of a pass; the LM head is last. */
extern const sc_matrix sc_matrices[];
extern const sc_layer sc_layers[];
extern const sc_matrix sc_embedding;
/* RMSNorm weights, Q31: attention and MLP of each layer, final. */
extern const int32_t sc_norm_weights[2 * SC_LAYERS + 1][SC_HIDDEN];
#if SC_PERMS
extern const uint16_t
    *const sc_perms[]; /* of each matrix; element j of its input is value perm[j]; or NULL */
#endif
extern const int32_t sc_end_tokens[]; /* ends with -1 */

#endif
