/* SPDX-License-Identifier: Apache-2.0
 * Attention heads and KV cache: shapes and types. Sizes come from SC_HEADS, SC_KV_HEADS, SC_HEAD_DIM (even),
 * SC_CONTEXT, SC_ATTENTION_WEIGHT_BITS of model.h.
 *
 * A layer's cache has two arrays of blocks of 4 positions, so that whole blocks are contiguous for the DMA,
 * and four positions of a value channel are one SIMD word. Scales are 1 .. 32767, in units of 2^k_unit and 2^v_unit of
 * the layer. The scale word of a query has the mantissa in the low and the exponent in the high 16 bits. */
#ifndef SC_ATTENTION_H
#define SC_ATTENTION_H

#include "sc_model.h"

#define SC_KV_POSITIONS 4
#if SC_KV_BITS == 4
/* Codes of 4 bits (Coding in numerics/vectors.py), in pairs of a low and a high nibble:
 *   K block: for each position and KV head a record: uint16 k_scale, uint16 v_scale, uint16 scale of the codes, int8
 *            offset of the codes, 1 byte, int8 k[SC_WIDE], codes in words: channels 0..3 in low nibbles, 4..7 in high
 *            ones, padded with 0
 *   V block: for each KV head int8 offset[4], then codes [head_dim / 2][4] of channels 2 i and 2 i + 1
 * Channels of queries and keys are in the order of sc_key_orders. */
#define SC_WIDE (SC_HEAD_DIM / 16 * 4) /* channels of a key with 8 bits */
#define SC_CODES (SC_HEAD_DIM - SC_WIDE)
#define SC_CODE_WORDS ((SC_CODES + 7) / 8)
#define SC_HDP (SC_WIDE + 8 * SC_CODE_WORDS) /* head_dim padded to whole words of codes */
#define SC_K_RECORD (8 + SC_WIDE + 4 * SC_CODE_WORDS)
#define SC_V_HEAD (4 + 2 * SC_HEAD_DIM) /* bytes of a KV head in a V block */
extern const uint8_t sc_key_orders[SC_LAYERS][SC_KV_HEADS][SC_HEAD_DIM];
#else
/* K block: for each position and KV head a record: uint16 k_scale, uint16 v_scale, int8 k[SC_HDP]
 * V block: int8 v[kv_heads][head_dim][4] */
#define SC_HDP ((SC_HEAD_DIM + 3) / 4 * 4) /* head_dim padded to whole words */
#define SC_K_RECORD (4 + SC_HDP)
#define SC_V_HEAD (SC_HEAD_DIM * SC_KV_POSITIONS)
#endif
#define SC_STORED_MAX 32767
#define SC_K_STRIDE (SC_KV_HEADS * SC_K_RECORD) /* bytes from one position to the next */
#define SC_K_BLOCK (SC_KV_POSITIONS * SC_K_STRIDE)
#define SC_V_BLOCK (SC_KV_HEADS * SC_V_HEAD)
#define SC_KV_BLOCKS ((SC_CONTEXT + SC_KV_POSITIONS - 1) / SC_KV_POSITIONS)
#define SC_QKV_ROWS ((SC_HEADS + 2 * SC_KV_HEADS) * SC_HEAD_DIM)

#ifdef SC_WINDOW
/* With a sliding window a layer's cache is a ring of SC_RING positions: the window, and the other tokens of a pass,
 * which are all written before the first one attends. */
#define SC_RING (SC_RING_BLOCKS * SC_KV_POSITIONS) /* positions of a ring; position p is at p % SC_RING */
static inline uint32_t sc_blocks_of(uint32_t layer) {
    return sc_cache_places[layer].windowed ? SC_RING_BLOCKS : SC_KV_BLOCKS;
}
static inline uint32_t sc_place_of_position(uint32_t layer, uint32_t position) {
    return sc_cache_places[layer].windowed ? position % SC_RING : position;
}

/* Blocks first .. end - 1 of a cache. */
typedef struct {
    uint32_t first, end;
} sc_block_run;

/* The blocks that hold positions from .. to - 1 (at least one). Returns how many runs: 2 if a ring goes round. */
static inline int sc_block_runs(uint32_t layer, uint32_t from, uint32_t to, sc_block_run runs[2]) {
    const uint32_t begin = sc_place_of_position(layer, from), end = begin + (to - from);
    runs[0] = (sc_block_run){begin / SC_KV_POSITIONS, (end + SC_KV_POSITIONS - 1) / SC_KV_POSITIONS};
    if (!sc_cache_places[layer].windowed || end <= SC_RING) return 1;
    if (to - from >= SC_RING) {
        runs[0] = (sc_block_run){0, SC_RING_BLOCKS};
        return 1;
    }
    runs[0].end = SC_RING_BLOCKS;
    runs[1] = (sc_block_run){0, (end - SC_RING + SC_KV_POSITIONS - 1) / SC_KV_POSITIONS};
    return 2;
}
#else
#define SC_LONGEST_BLOCKS SC_KV_BLOCKS /* most blocks of a layer */
#define sc_blocks_of(layer) SC_KV_BLOCKS
#define sc_place_of_position(layer, position) (position)
#endif
#define SC_VALUES_AT(layer)                                                                                  \
    (sc_blocks_of(layer) * SC_K_BLOCK) /* offset of the values in a cache outside L1 */

/* A core's scratch buffer for one head over the whole context. */
typedef struct {
#ifdef SC_KV_STREAMED /* for a piece of the cache */
    int32_t score[SC_KV_TILE_BLOCKS * SC_KV_POSITIONS];
    uint16_t weight[SC_KV_TILE_BLOCKS * SC_KV_POSITIONS + 4];
    uint8_t skew[SC_HEAD_SCRATCH_BYTES - 6 * SC_KV_TILE_BLOCKS * SC_KV_POSITIONS - 8];
#else
    int32_t score[SC_KV_BLOCKS * SC_KV_POSITIONS];
    /* probability * value scale; zeros after the last position */
    uint16_t weight[SC_KV_BLOCKS * SC_KV_POSITIONS + 4];
    uint8_t skew[SC_HEAD_SCRATCH_BYTES - 6 * SC_KV_BLOCKS * SC_KV_POSITIONS - 8]; /* different L1 banks */
#endif
} sc_head_scratch;

/* The heads of one token: inputs and outputs. */
typedef struct {
    const sc_layer *layer;
    uint32_t position;
    int8_t *q8;               /* [SC_HEADS][SC_HDP] */
    uint32_t *q_scale;        /* [SC_HEADS] */
    uint8_t *k, *v;           /* the layer's KV cache */
    const int32_t *qkv;       /* [SC_QKV_ROWS] */
    const int16_t *rope;      /* [SC_HEAD_DIM], 4-byte aligned */
    int32_t *work;            /* scratch of SC_HEAD_DIM words */
    sc_head_scratch *scratch; /* the core's */
    int32_t *out;             /* [SC_HEADS * SC_HEAD_DIM] */
    uint16_t *value_scales;   /* [SC_KV_HEADS]: bitwise OR of the scales up to this position; or 0 */
#if SC_KV_BITS == 4
    const uint8_t *orders; /* [SC_KV_HEADS][SC_HEAD_DIM]: the layer's sc_key_orders */
#endif
} sc_heads;

/* State of a head between parts of its cache, or of a range of its positions until cores combine the ranges. */
typedef struct {
    int32_t least; /* head_softmax.least in sc_softmax.h */
    int32_t drop;  /* weight_drop() in sc_softmax.h */
    uint32_t total;
    uint16_t factor, shift;
    int32_t acc[(SC_HEAD_DIM + 3) / 4 * 4];
    uint8_t
        skew[SC_HEAD_STATE_BYTES - 16 - (SC_HEAD_DIM + 3) / 4 * 16]; /* so that cores use different banks */
} sc_head_state;

/* exp2(-i / 256) in Q16, for all i up to where it is 0, if the plan has room for it. Otherwise a table of one
 * octave, and a shift. */
#ifdef SC_AT_EXP2
#define SC_EXP2_STEPS (18 * 256 + 1)
#define SC_EXP2_VALUES SC_BUFFER(uint16_t *, SC_AT_EXP2)
_Static_assert(2 * SC_EXP2_STEPS <= SC_BYTES_EXP2, "planned bytes of the values of exp2");
void sc_fill_exp2(void *unused, int core); /* by all workers, before the first pass */
#endif

/* One head of one token in steps. */
void sc_head_begin(sc_head_state *s, const sc_layer *layer, uint32_t q_scale, uint32_t value_scales);
/* Scores of positions first .. first + count - 1; k: their K blocks */
void sc_head_scores(sc_head_state *s, sc_head_scratch *w, const int8_t *q8, int kv_head, const uint8_t *k,
                    uint32_t first, uint32_t count);
/* After all scores: probabilities and weights of the values. v scales come from the same K blocks */
void sc_head_weigh(sc_head_state *s, sc_head_scratch *w, int kv_head, const uint8_t *k, uint32_t first,
                   uint32_t count);
void sc_head_values(sc_head_state *s, const sc_head_scratch *w, int kv_head, const uint8_t *v, uint32_t first,
                    uint32_t count);
#ifdef SC_WINDOW
/* The same for a ring: k has its places from .. from + count - 1. sc_window_scores() returns the bitwise OR of the
 * scales of the values, which s->drop has to be made of. */
uint32_t sc_window_scores(sc_head_state *s, sc_head_scratch *w, const int8_t *q8, int kv_head,
                          const uint8_t *k, uint32_t first, uint32_t from, uint32_t count, uint32_t position);
void sc_window_weigh(sc_head_state *s, sc_head_scratch *w, int kv_head, const uint8_t *k, uint32_t first,
                     uint32_t from, uint32_t count, uint32_t position);
#endif
void sc_head_finish(const sc_head_state *s, int32_t *out, const sc_layer *layer);

#endif
