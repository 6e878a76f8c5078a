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
#define SC_VALUES_AT (SC_KV_BLOCKS * SC_K_BLOCK) /* in a layer's cache behind L1 */
#define SC_QKV_ROWS ((SC_HEADS + 2 * SC_KV_HEADS) * SC_HEAD_DIM)

/* A core's scratch for one head over a whole context. */
typedef struct {
    int32_t score[SC_KV_BLOCKS * SC_KV_POSITIONS];
    /* probability times the value's scale, and zeros after the last */
    uint16_t weight[SC_KV_BLOCKS * SC_KV_POSITIONS + 4];
    uint8_t skew[SC_HEAD_SCRATCH_BYTES - 6 * SC_KV_BLOCKS * SC_KV_POSITIONS - 8]; /* into another bank */
} sc_head_scratch;

/* One token's heads: where they come from and go to. */
typedef struct {
    const sc_layer *layer;
    uint32_t position;
    int8_t *q8;               /* [SC_HEADS][SC_HDP] */
    uint32_t *q_scale;        /* [SC_HEADS] */
    uint8_t *k, *v;           /* the layer's cache */
    const int32_t *qkv;       /* [SC_QKV_ROWS] */
    const int16_t *rope;      /* [SC_HEAD_DIM], 4-byte aligned */
    int32_t *work;            /* scratch of SC_HEAD_DIM words */
    sc_head_scratch *scratch; /* the core's */
    int32_t *out;             /* [SC_HEADS * SC_HEAD_DIM] */
    uint16_t *value_scales;   /* [SC_KV_HEADS]: or-ed, up to its position; to be added to, or 0 */
} sc_heads;

/* Where a head stands whose cache arrives in pieces. */
typedef struct {
    int32_t least; /* head_softmax of sc_softmax.h */
    int32_t drop;  /* weight_drop() there */
    uint32_t total;
    uint16_t factor, shift;
    int32_t acc[SC_HDP];
    uint8_t skew[SC_HEAD_STATE_BYTES - 16 - 4 * SC_HDP]; /* into another bank */
} sc_head_state;

#ifdef SC_AT_EXP2
void sc_fill_exp2(void *unused, int core); /* for sc_run_workers, before the first pass */
#endif

/* One head of one token, in steps. */
void sc_head_begin(sc_head_state *s, const sc_layer *layer, uint32_t q_scale, uint32_t value_scales);
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
