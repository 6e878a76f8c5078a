/* SPDX-License-Identifier: Apache-2.0
 * Attention of the heads that are left when SC_HEADS is not a multiple of the cores: several cores share a
 * head.
 *
 * Each of the SC_SHARED_HEADS is cut into SC_RANGES ranges of positions ("shares"), SC_SHARES per worker.
 * Results do not depend on the split: sums and maxima are exact in any order. */
#ifndef SC_SHARES_H
#define SC_SHARES_H

#include "sc_softmax.h"

#define SC_SHARED_HEADS (SC_HEADS % SC_HEAD_CORES)
#define SC_DIVIDES(n) (SC_SHARED_HEADS * (n) % SC_HEAD_CORES == 0)
#define SC_RANGES                                                                                            \
    (SC_DIVIDES(1)   ? 1                                                                                     \
     : SC_DIVIDES(2) ? 2                                                                                     \
     : SC_DIVIDES(3) ? 3                                                                                     \
     : SC_DIVIDES(4) ? 4                                                                                     \
     : SC_DIVIDES(6) ? 6                                                                                     \
                     : SC_HEAD_CORES)
#define SC_SHARES (SC_SHARED_HEADS * SC_RANGES / SC_HEAD_CORES)
/* Number of positions from which sharing is faster in spite of two more barriers and a third phase. Equal to
 * shared_from() of ir/ops/attention.py. */
#define SC_SHARED_FROM                                                                                       \
    (1000 * SC_HEAD_CORES / ((18 + 2 * SC_HEAD_DIM) * (SC_HEAD_CORES - SC_SHARED_HEADS)) + 1)
/* Whether the memory plan has a state for each share. */
#ifdef SC_AT_HEAD_STATE
#define SC_HAS_SHARES                                                                                        \
    (SC_SHARED_HEADS > 0 && SC_HEAD_CORES * SC_SHARES * SC_HEAD_STATE_BYTES <= SC_BYTES_HEAD_STATE &&        \
     SC_CONTEXT >= SC_SHARED_FROM)
#else
#define SC_HAS_SHARES 0
#endif

typedef struct {
    uint32_t index, head, kv;
    uint32_t block, blocks; /* number of blocks of 4 positions */
    uint32_t count;         /* number of positions */
    uint32_t at;            /* index of the first score in the core's scratch buffer */
} head_share;

/* Share i of a core. */
static inline head_share share_of(const sc_heads *h, int core, int i, uint32_t at) {
    const uint32_t all = h->position / SC_KV_POSITIONS + 1;
    head_share s;
    s.index = (uint32_t)(core * SC_SHARES + i);
    s.head = SC_HEADS - SC_SHARED_HEADS + s.index / SC_RANGES;
    s.kv = s.head / (SC_HEADS / SC_KV_HEADS);
    const uint32_t range = s.index % SC_RANGES;
    s.block = all * range / SC_RANGES;
    s.blocks = all * (range + 1) / SC_RANGES - s.block;
    s.count =
        range + 1 < SC_RANGES ? s.blocks * SC_KV_POSITIONS : h->position + 1 - s.block * SC_KV_POSITIONS;
    s.at = at;
    return s;
}

#define SC_EACH_SHARE(s, h, core)                                                                            \
    int i_ = 0;                                                                                              \
    uint32_t at_ = 0;                                                                                        \
    for (head_share s; i_ < SC_SHARES && (s = share_of(h, core, i_, at_), 1);                                \
         i_++, at_ += s.blocks * SC_KV_POSITIONS)

/* Whether a forward pass of one token at this position shares heads: every range needs a block, and each
 * core's scratch buffer must hold its shares. */
static inline int heads_shared(uint32_t position) {
    const uint32_t blocks = position / SC_KV_POSITIONS + 1;
    return SC_HAS_SHARES && position + 1 >= SC_SHARED_FROM && blocks >= SC_RANGES &&
           SC_SHARES * ((blocks + SC_RANGES - 1) / SC_RANGES) <= SC_KV_BLOCKS;
}

static inline void shares_scores(const sc_heads *h, sc_head_state *states, int core) {
    SC_EACH_SHARE(share, h, core) {
        head_softmax s = softmax_begin(h->layer, h->q_scale[share.head]);
        softmax_scores(&s, h->scratch->score + share.at, h->q8 + share.head * SC_HDP,
                       h->k + share.block * SC_K_BLOCK + share.kv * SC_K_RECORD, share.count);
        states[share.index].least = s.least;
    }
}

static inline void shares_values(const sc_heads *h, sc_head_state *states, int core) {
    SC_EACH_SHARE(share, h, core) {
        head_softmax s = softmax_begin(h->layer, h->q_scale[share.head]);
        const sc_head_state *each = states + share.index / SC_RANGES * SC_RANGES;
        for (int i = 0; i < SC_RANGES; i++, each++) s.least = sc_min(s.least, each->least);
        uint16_t *const weight = h->scratch->weight + share.at;
        softmax_weigh(&s, h->scratch->score + share.at, weight,
                      h->k + share.block * SC_K_BLOCK + share.kv * SC_K_RECORD + 2, share.count,
                      weight_drop(h->value_scales[share.kv]));
        states[share.index].total = s.total;
        const uint8_t *row = h->v + share.block * SC_V_BLOCK + share.kv * SC_V_HEAD;
#if SC_KV_BITS == 4
        head_values(row, weight, share.count, states[share.index].acc);
#else
        for (int d = 0; d < SC_HEAD_DIM; d += VALUES, row += VALUES * SC_KV_POSITIONS)
            weighted_values(row, weight, share.count, states[share.index].acc + d);
#endif
    }
}

/* Adds the partial sums of all shares of a head. Each core finishes its own range of channels. */
static inline void shares_finish(const sc_heads *h, const sc_head_state *states, int core) {
    SC_EACH_SHARE(share, h, core) {
        const uint32_t range = share.index % SC_RANGES;
        const sc_head_state *const first = states + share.index - range;
        uint32_t total = 0;
        for (int i = 0; i < SC_RANGES; i++) total += first[i].total;
#if SC_KV_BITS == 4
        if (range) continue; /* the rotation needs all channels */
        const uint32_t begin = 0, end = SC_HEAD_DIM;
#else
        const uint32_t begin = SC_HEAD_DIM * range / SC_RANGES, end = SC_HEAD_DIM * (range + 1) / SC_RANGES;
#endif
        int32_t *const out = h->out + share.head * SC_HEAD_DIM;
        for (uint32_t d = begin; d < end; d++) {
            uint32_t sum = 0;
            for (int i = 0; i < SC_RANGES; i++) sum += (uint32_t)first[i].acc[d];
            out[d] = (int32_t)sum;
        }
        if (begin < end)
            means(head_mean(total, weight_drop(h->value_scales[share.kv]), h->layer), out + begin,
                  end - begin);
#if SC_KV_BITS == 4
        rotate_head(out);
#endif
    }
}

#endif
