/* SPDX-License-Identifier: Apache-2.0
 * Heads, KV cache and attention.  Shapes are the model's macros: SC_HEADS, SC_KV_HEADS,
 * SC_HEAD_DIM (even), SC_CONTEXT, SC_WEIGHT_BITS.
 *
 * The cache of a layer is two arrays of blocks of 4 positions, so that any run of whole blocks is
 * one contiguous transfer and four positions of one value channel are one SIMD word:
 *   K block: per position and KV head a record of uint32 k_scale, uint32 v_scale, int8 k[SC_HDP]
 *   V block: int8 v[kv_heads][head_dim][4]
 * so that scores and softmax walk records of one stride.  A scale word holds the mantissa in its low and the exponent in its high 16 bits.
 */
#ifndef SC_ATTENTION_H
#define SC_ATTENTION_H

#include "model.h"
#include "sc_kernels.h"

#define SC_HDP ((SC_HEAD_DIM + 3) / 4 * 4) /* head_dim padded to whole words */
#define SC_KV_POSITIONS 4
#define SC_K_RECORD (8 + SC_HDP)
#define SC_K_STRIDE (SC_KV_HEADS * SC_K_RECORD) /* from position to position */
#define SC_K_BLOCK (SC_KV_POSITIONS * SC_K_STRIDE)
#define SC_V_BLOCK (SC_KV_POSITIONS * SC_KV_HEADS * SC_HEAD_DIM)
#define SC_KV_BLOCKS ((SC_CONTEXT + SC_KV_POSITIONS - 1) / SC_KV_POSITIONS)
#define SC_QKV_ROWS ((SC_HEADS + 2 * SC_KV_HEADS) * SC_HEAD_DIM)

/* Heads of q and k pass through RMSNorm first in models whose layers have gains for them; others have
 * no such argument. */
#ifdef SC_HAS_HEAD_NORM
#define SC_IF_HEAD_NORM(layer) layer,
#else
#define SC_IF_HEAD_NORM(layer)
#endif

/* Head `head` of 0 .. SC_HEADS + 2 * SC_KV_HEADS - 1 of one token's qkv: RoPE, int8, and for k and
 * v the append at `position`.  q8 is [SC_HEADS][SC_HDP], q_scale [SC_HEADS]; k and v are the
 * layer's caches. `work` is scratch of SC_HEAD_DIM words. */
void sc_head_prepare(SC_IF_HEAD_NORM(const sc_layer *layer) const int32_t *qkv, int head, uint32_t position,
                     const int16_t *rope, int8_t *q8, uint32_t *q_scale, uint8_t *k, uint8_t *v,
                     int32_t *work);

/* A core's scratch for one head over a whole context. */
typedef struct {
    int32_t score[SC_KV_BLOCKS * SC_KV_POSITIONS];
    int8_t exponent[SC_KV_BLOCKS * SC_KV_POSITIONS];
    uint8_t high[SC_KV_BLOCKS * SC_KV_POSITIONS]; /* probability * value scale, upper 8 bits ... */
    uint8_t low[SC_KV_BLOCKS * SC_KV_POSITIONS];  /* ... and lower 7 */
    uint8_t skew[SC_HEAD_SCRATCH_BYTES - 7 * SC_KV_BLOCKS * SC_KV_POSITIONS]; /* into another bank */
} sc_head_scratch;

typedef struct {
    int32_t top;    /* largest score */
    int32_t e_max;  /* largest probability-times-scale exponent */
    uint32_t total; /* sum of probabilities, Q20 */
    int32_t acc[2][SC_HDP];
    uint8_t skew[SC_HEAD_STATE_BYTES - 12 - 8 * SC_HDP + 0]; /* into another bank; may be empty */
} sc_head_state;

/* One head of one token, in four steps so that the cache may arrive in pieces. */
void sc_head_begin(sc_head_state *s);
/* scores of positions first .. first + count - 1, whose K blocks start at k */
void sc_head_scores(sc_head_state *s, sc_head_scratch *w, const sc_layer *layer, const int8_t *q8,
                    uint32_t q_scale, int kv_head, const uint8_t *k, uint32_t first, uint32_t count);
/* softmax statistics and the values' weights, from the v scales in the same K blocks */
void sc_head_weigh(sc_head_state *s, sc_head_scratch *w, int kv_head, const uint8_t *k, uint32_t first,
                   uint32_t count);
/* After all of them: fixes the weights to a common exponent for positions 0 .. count - 1. */
void sc_head_fix(sc_head_state *s, sc_head_scratch *w, uint32_t count);
void sc_head_values(sc_head_state *s, const sc_head_scratch *w, int kv_head, const uint8_t *v, uint32_t first,
                    uint32_t count);
void sc_head_finish(const sc_head_state *s, int32_t *out);

#endif
