/* SPDX-License-Identifier: Apache-2.0
 * Attention of a head to a sliding window, whose keys and values are in a ring: positions outside the window get
 * weight 0. The order of the ring does not matter, because sums and maxima are exact in any order. */
#ifndef SC_WINDOW_H
#define SC_WINDOW_H

#include "sc_softmax.h"

/* Places first .. end - 1 of a part of the ring. */
typedef struct {
    uint32_t first, end;
} place_run;

/* The window that ends with `position`, in a part of the ring that begins at place `from` and has `count` places: runs
 * of places of the part. Returns how many. */
static inline int window_runs(uint32_t position, uint32_t from, uint32_t count, place_run runs[2]) {
    const uint32_t seen = position < SC_WINDOW ? position + 1 : SC_WINDOW;
    const uint32_t begin = (position + 1 - seen) % SC_RING, end = begin + seen;
    const place_run whole[2] = {{begin, end < SC_RING ? end : SC_RING},
                                {0, end < SC_RING ? 0 : end - SC_RING}};
    int n = 0;
    for (int i = 0; i < 2; i++) {
        const uint32_t low = whole[i].first > from ? whole[i].first : from;
        const uint32_t high = whole[i].end < from + count ? whole[i].end : from + count;
        if (low < high) runs[n++] = (place_run){low - from, high - from};
    }
    return n;
}

/* Scores; k: the part's K blocks. Returns the bitwise OR of the scales of the values. */
SC_INLINE uint32_t window_scores(head_softmax *s, int32_t *score, const int8_t *q8, const uint8_t *k,
                                 uint32_t kv, const place_run *runs, int n) {
    uint32_t scales = 0;
    for (const place_run *const end = runs + n; runs < end; runs++) {
        const uint8_t *const row = k + kv * SC_K_RECORD + runs->first * SC_K_STRIDE;
        (void)softmax_scores(s, score + runs->first, q8, row, runs->end - runs->first);
        scales |= value_scales_of(k, kv, runs->first, runs->end);
    }
    return scales;
}

/* Weights of the part's `count` places, 0 outside the window. */
SC_INLINE void window_weigh(head_softmax *s, const int32_t *score, uint16_t *weight, const uint8_t *k,
                            uint32_t kv, const place_run *runs, int n, uint32_t count, int drop) {
    const uint32_t blocks = (count + SC_KV_POSITIONS - 1) / SC_KV_POSITIONS;
    for (uint32_t i = 0; i < blocks * SC_KV_POSITIONS; i++) weight[i] = 0;
    for (const place_run *const end = runs + n; runs < end; runs++) {
        const uint8_t *const scales = k + kv * SC_K_RECORD + runs->first * SC_K_STRIDE + 2;
        (void)softmax_weights(s, score + runs->first, weight + runs->first, scales, runs->end - runs->first,
                              drop);
    }
#if SPLIT_WEIGHTS
    split_weights(weight, blocks);
#endif
}

/* Attention of heads first, first + step, ... of the token at h->position over the `count` places in use. Returns the
 * next head minus SC_HEADS. */
SC_INLINE int window_attend(const sc_heads *h, int head, int step, uint32_t count) {
    place_run runs[2];
    const int n = window_runs(h->position, 0, count, runs);
    for (; head < SC_HEADS; head += step) {
        const uint32_t kv = (uint32_t)head / (SC_HEADS / SC_KV_HEADS);
        int32_t *const score = h->scratch->score, *const out = h->out + head * SC_HEAD_DIM;
        uint16_t *const weight = h->scratch->weight;
        head_softmax s = softmax_begin(h->layer, h->q_scale[head]);
        const uint32_t scales = window_scores(&s, score, h->q8 + head * SC_HDP, h->k, kv, runs, n);
        const int drop = weight_drop(scales);
        window_weigh(&s, score, weight, h->k, kv, runs, n, count, drop);
        const uint8_t *row = h->v + kv * SC_V_HEAD;
#if SC_KV_BITS == 4
        head_values(row, weight, count, out);
#else
        for (int d = 0; d < SC_HEAD_DIM; d += VALUES, row += VALUES * SC_KV_POSITIONS)
            weighted_values(row, weight, count, out + d);
#endif
        means(head_mean(s.total, drop, h->layer), out, SC_HEAD_DIM);
#if SC_KV_BITS == 4
        rotate_head(out);
#endif
    }
    return head - SC_HEADS;
}

#endif
