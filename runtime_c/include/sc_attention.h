/* SPDX-License-Identifier: Apache-2.0
 * Heads, KV cache and attention.  Shapes are the model's macros: SC_HEADS, SC_KV_HEADS,
 * SC_HEAD_DIM (even), SC_CONTEXT, SC_WEIGHT_BITS.
 *
 * The cache of a layer is two arrays of blocks of 4 positions, so that any run of whole blocks is
 * one contiguous transfer and four positions of one value channel are one SIMD word:
 *   K block: per position and KV head a record of uint16 k_scale, uint16 v_scale, int8 k[SC_HDP]
 *   V block: int8 v[kv_heads][head_dim][4]
 * so that scores and softmax walk records of one stride.  The scales are 1 .. SC_STORED_MAX units of
 * 2^k_unit and 2^v_unit of the layer; of a query the scale word holds the mantissa in its low and
 * the exponent in its high 16 bits.
 */
#ifndef SC_ATTENTION_H
#define SC_ATTENTION_H

#include "model.h"
#include "sc_kernels.h"

#define SC_HDP ((SC_HEAD_DIM + 3) / 4 * 4) /* head_dim padded to whole words */
#define SC_KV_POSITIONS 4
#define SC_K_RECORD (4 + SC_HDP)
#define SC_STORED_MAX 32767
#define SC_K_STRIDE (SC_KV_HEADS * SC_K_RECORD) /* from position to position */
#define SC_K_BLOCK (SC_KV_POSITIONS * SC_K_STRIDE)
#define SC_V_BLOCK (SC_KV_POSITIONS * SC_KV_HEADS * SC_HEAD_DIM)
#define SC_KV_BLOCKS ((SC_CONTEXT + SC_KV_POSITIONS - 1) / SC_KV_POSITIONS)
#define SC_QKV_ROWS ((SC_HEADS + 2 * SC_KV_HEADS) * SC_HEAD_DIM)

/* Head `head` of 0 .. SC_HEADS + 2 * SC_KV_HEADS - 1 of one token's qkv: RoPE, int8, and for k and
 * v the append at `position`.  q8 is [SC_HEADS][SC_HDP], q_scale [SC_HEADS]; k and v are the
 * layer's caches. `work` is scratch of SC_HEAD_DIM words. */
void sc_head_prepare(const sc_layer *layer, const int32_t *qkv, int head, uint32_t position,
                     const int16_t *rope, int8_t *q8, uint32_t *q_scale, uint8_t *k, uint8_t *v,
                     int32_t *work);

/* A core's scratch for one head over a whole context. */
typedef struct {
    int32_t score[SC_KV_BLOCKS * SC_KV_POSITIONS];
    uint16_t weight[SC_KV_BLOCKS * SC_KV_POSITIONS]; /* probability times the value's scale */
    uint8_t skew[SC_HEAD_SCRATCH_BYTES - 6 * SC_KV_BLOCKS * SC_KV_POSITIONS]; /* into another bank */
} sc_head_scratch;

typedef struct {
    int32_t top;      /* largest score */
    uint32_t records; /* largest scales of a position: that of its value in the upper half */
    uint32_t total;   /* sum of probabilities, Q16 */
    uint16_t factor;  /* score differences times 2^-shift and this, of 16 bits, are log2 units in Q9 */
    uint16_t shift;   /* 18 .. 49 */
    int32_t acc[SC_HDP];
    uint8_t skew[SC_HEAD_STATE_BYTES - 16 - 4 * SC_HDP]; /* into another bank */
} sc_head_state;

/* One head of one token, in four steps so that the cache may arrive in pieces. */
void sc_head_begin(sc_head_state *s, const sc_layer *layer, uint32_t q_scale);
/* scores of positions first .. first + count - 1, whose K blocks start at k */
void sc_head_scores(sc_head_state *s, sc_head_scratch *w, const int8_t *q8, int kv_head, const uint8_t *k,
                    uint32_t first, uint32_t count);
/* after all scores: probabilities and the values' weights, from the v scales in the same K blocks */
void sc_head_weigh(sc_head_state *s, sc_head_scratch *w, int kv_head, const uint8_t *k, uint32_t first,
                   uint32_t count);
void sc_head_values(sc_head_state *s, const sc_head_scratch *w, int kv_head, const uint8_t *v, uint32_t first,
                    uint32_t count);
void sc_head_finish(const sc_head_state *s, int32_t *out, const sc_layer *layer);

#endif
