/* SPDX-License-Identifier: Apache-2.0
 * The generated model's tables: what the engine walks. */
#ifndef SC_MODEL_H
#define SC_MODEL_H

#include <stdint.h>

#include "model.h"

#define SC_ROWS 8 /* rows of a block */

enum sc_level { SC_IN_WMEM = 0, SC_IN_L2 = 1, SC_IN_FLASH = 2 };
/* 8 bit where none of W4, W3, W2 is set */
enum sc_format { SC_FMT_W4 = 1, SC_FMT_GROUPED = 2, SC_FMT_ASYM = 4, SC_FMT_W3 = 8, SC_FMT_W2 = 16 };

#define SC_BLOCK 8 /* inputs that one core scans or quantises at a time, never across segments */

/* How a vector of k inputs is cut for a matrix: segments of seg_elems inputs, the last of
 * last_elems.  A segment occupies whole words (4 inputs; two, four or eight words at a time for
 * weights of 4, 2 or 3 bits and for the first half of a side path next to them). */
typedef struct {
    uint16_t k, nseg, seg_elems, last_elems;
    uint16_t seg_blocks, blocks; /* SC_BLOCKs of a full segment, and in all */
    uint16_t seg_words, last_words, words;
    uint16_t cmax; /* largest segment scale */
} sc_cut;

/* One matrix as it lies in memory: ceil(rows / 8) blocks of
 *   uint16 r[8]
 *   per segment: [uint8 d[8] if grouped] [int16 b[8] if asymmetric] weights
 * and mean acc = sum over segments of c * round((d * sum of w * x - b * sum of x) / 2^drop).
 * Weights: words of 8 rows after each other; how many inputs are in a word, and where, is said in the
 * sc_dot_w*.h of each width.
 * A side path's b matrix (8 bit, not grouped) follows each block's weights in the same form. */
typedef struct sc_matrix {
    uint32_t offset;      /* in its memory, multiple of 4 */
    uint32_t block_bytes; /* one block with everything, multiple of 4 */
    uint32_t rows;
    uint16_t blocks;           /* ceil(rows / 8) */
    uint16_t tile_blocks;      /* blocks that travel together */
    sc_cut in;                 /* the activations it reads */
    uint8_t level;             /* enum sc_level */
    uint8_t format;            /* enum sc_format */
    uint8_t drop;              /* grouped: bits a segment's sum loses, those by which it is folded included */
    int16_t shift;             /* requantize shift before the token's exponent */
    const struct sc_matrix *b; /* side path or NULL: y += b @ quantise(a @ x) */
} sc_matrix;

/* Matrices of a layer in the order they are streamed. */
enum sc_slot { SC_QKV, SC_O, SC_GU, SC_DOWN, SC_SLOTS };

typedef struct {
    const sc_matrix *m[SC_SLOTS];
    uint16_t score_mantissa; /* softmax scale, see sc_attention.c */
    int16_t score_exponent;
    int8_t gate_shift;     /* gate to Q16 */
    int8_t silu_shift;     /* product to the fixed point of h */
    int8_t k_unit, v_unit; /* of the scales in the cache, log2 */
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

extern const char *const sc_op_names[]; /* of enum sc_op */

/* All matrices in the order a pass reads them, the head last; the first half of a side path, a,
 * comes just before its matrix. */
extern const sc_matrix sc_matrices[];
extern const sc_layer sc_layers[];
extern const sc_matrix sc_embedding;
extern const int16_t sc_gains[2 * SC_LAYERS + 1][SC_HIDDEN]; /* Q15: attn, mlp of each layer, final */
#if SC_PERMS
extern const uint16_t *const sc_head_perm;
#endif
extern const int16_t sc_rope[];          /* [context][head_dim / 2][cos, sin] Q15 */
extern const uint32_t sc_piece_offset[]; /* [vocab + 1] into sc_piece_bytes */
extern const unsigned char sc_piece_bytes[];
extern const int32_t sc_end_tokens[]; /* ends with -1 */

#endif
