/* SPDX-License-Identifier: Apache-2.0
 * The generated model's tables: what the engine walks. */
#ifndef SC_MODEL_H
#define SC_MODEL_H

#include <stdint.h>

#include "model.h"
#include "sc_abi.h"

/* Memories on the chip come first.  SC_IN_TWO: every SC_INTERLEAVE-th tile, from the first on, is in SC_INTERLEAVED_LEVEL, and
 * the others are in flash. */
enum sc_level { SC_IN_WMEM = 0, SC_IN_L2 = 1, SC_IN_FLASH = 2, SC_IN_TWO = 3 };
/* bits of a weight, what a block holds beside row scales and weights, whether it reads 16-bit vectors, and of
 * asymmetric ones whether offsets are zero points */
enum sc_format {
    SC_FMT_BITS = 15,
    SC_FMT_GROUPED = 16,
    SC_FMT_ASYM = 32,
    SC_FMT_Q16 = 64,
    SC_FMT_ZEROS = 128
};

/* How a vector of k inputs is cut for a matrix: groups of group_elems inputs, the last of
 * last_elems.  A group occupies whole words (4 inputs), as many at a time as the matrix's format, or
 * for the first half of a side path the format beside it, stores together.  Of a 16-bit vector, whose high bytes are
 * `words` words behind its low ones, last_words may be fewer: up to there both are followed by zeros. */
typedef struct {
    uint16_t k, groups, group_elems, last_elems;
    uint16_t group_blocks, blocks; /* SC_BLOCKs of a full group, and in all */
    uint16_t group_words, last_words, words;
    uint16_t range; /* largest group scale; most bits of a 16-bit vector, which is one group */
} sc_cut;

/* One matrix as it lies in memory: ceil(rows / 8) blocks of
 *   uint16 r[8]
 *   per group: [uint8 d[8] if grouped] [int16 b[8] if asymmetric, or signed nibbles z[8] of zero points] weights
 * and mean acc = sum over groups of c * round((d * sum of w * x - b * sum of x) / 2^drop), where zero points have
 * b = d * z, or with SC_FMT_Q16 just the sum of w * x.
 * Weights: words of 8 rows after each other; how many inputs are in a word, and where, is said in the
 * sc_dot_w*.h of each width.
 * A side path's b matrix (SC_SIDE_FORMAT) follows each block's weights in the same form. */
typedef struct sc_matrix {
    uint32_t offset;      /* in its memory, or of SC_IN_TWO in flash, multiple of 4 */
    uint32_t block_bytes; /* one block with everything, multiple of 4 */
    uint32_t rows;
    uint16_t blocks;      /* ceil(rows / 8) */
    uint16_t tile_blocks; /* blocks that travel together */
    sc_cut in;            /* the activations it reads */
    uint8_t level;        /* enum sc_level */
    uint8_t format;       /* enum sc_format */
    uint8_t drop;         /* grouped: bits a group's sum loses, those by which it is folded included */
#ifdef SC_HAS_ENGINES
    uint8_t engine; /* SC_ON_*: who runs it; others than the cores have layouts of their own (sc_engines.h) */
#endif
    int16_t shift; /* of a sum's high word, before the token's exponent */
#ifdef SC_ENGINE_REMAINDERS
    uint8_t remainders; /* of which of its engine's jobs: Remainders in engines/engine.py */
#endif
#ifdef SC_ENGINE_SECOND_LAYOUT
    /* taps that a vector takes in the second layout: engines/neureka_both.py; 0: there is none */
    uint8_t taps;
#endif
    const struct sc_matrix *b; /* side path or NULL: y += b @ quantise(a @ x) */
} sc_matrix;

/* What a group of a block has before its weights. */
static inline uint32_t sc_table_bytes(const int format) {
    const uint32_t offsets = format & SC_FMT_ZEROS ? SC_ROWS / 2 : 2 * SC_ROWS;
    return (format & SC_FMT_GROUPED ? SC_ROWS : 0u) + (format & SC_FMT_ASYM ? offsets : 0u);
}

/* Of a block's groups, tables and weights. */
static inline uint32_t sc_weight_bytes(const sc_matrix *m) {
    return m->in.groups * sc_table_bytes(m->format) + m->in.words * 4u * (m->format & SC_FMT_BITS);
}

/* Matrices of a layer in the order they are streamed. */
enum sc_slot { SC_QKV, SC_O, SC_GU, SC_DOWN, SC_SLOTS };

typedef struct {
    const sc_matrix *m[SC_SLOTS];
    SC_LAYER_NUMBERS; /* of the ops: what each means is said in its file of ir/ops */
#if SC_PERMS
    const uint16_t *perm[SC_SLOTS]; /* place j of a matrix's input is made from input perm[j]; or NULL */
#endif
#ifdef SC_HAS_BIAS
    const int32_t *bias[SC_SLOTS]; /* [rows] in the fixed point of a matrix's result; or NULL */
#endif
#ifdef SC_HAS_HEAD_NORM
    const int16_t *head_gain[2]; /* Q15 [head_dim], of q and of k */
    uint64_t head_eps;           /* in units of the sum of squares */
#endif
} sc_layer;

/* The steps of a layer: one per op, in the order of enum sc_op.  A step is done by a function that all workers
 * call; it begins with sc_meet(), but for a matrix's, before which its input was made.  `src` and `dst` are offsets in the
 * arena of what it reads and of what it gives; from one token to the next it is `src_stride` and `dst_stride`
 * words. */
typedef struct sc_layer_step sc_layer_step;
typedef void sc_step_fn(const sc_layer_step *s, uint32_t layer, int core);

enum sc_form { SC_WORDS, SC_BYTES, SC_VECTOR }; /* int32, int8, or sc_qvec, of which dst is an array */
/* The controller's part in it: none, that in a matrix, in heads, in attention, in a vector without and with a norm. */
enum sc_controller_task {
    SC_CONTROLLER_NOTHING,
    SC_CONTROLLER_MATRIX,
    SC_CONTROLLER_HEADS,
    SC_CONTROLLER_ATTENTION,
    SC_CONTROLLER_QUANT,
    SC_CONTROLLER_NORM
};

struct sc_layer_step {
    sc_step_fn *run;
    uint32_t src, dst;
    uint32_t src_stride, dst_stride; /* not of an sc_qvec */
    uint32_t count; /* of values that a token's result has, padding included; not of an sc_qvec */
    uint8_t slot;   /* of the matrix it multiplies with, or of the one that reads its result */
    uint8_t how;    /* of sc_step_linear: enum sc_epilogue; of sc_step_norm: which of the layer's gains */
    uint8_t form;   /* enum sc_form of its result */
    uint8_t controller_task; /* enum sc_controller_task */
};

#define SC_LAYER_STEPS (SC_LAYER_LAST - SC_LAYER_FIRST + 1)
extern const sc_layer_step sc_layer_steps[]; /* [SC_LAYER_STEPS] */

extern const char *const sc_op_names[]; /* of enum sc_op */

/* All matrices in the order a pass reads them, the head last; the first half of a side path, a,
 * comes just before its matrix. */
extern const sc_matrix sc_matrices[];
extern const sc_layer sc_layers[];
extern const sc_matrix sc_embedding;
extern const int32_t sc_gains[2 * SC_LAYERS + 1][SC_HIDDEN]; /* Q31: attn, mlp of each layer, final */
#if SC_PERMS
extern const uint16_t *const sc_head_perm;
#endif
extern const int32_t sc_end_tokens[]; /* ends with -1 */

#endif
