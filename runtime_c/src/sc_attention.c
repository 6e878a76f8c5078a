/* SPDX-License-Identifier: Apache-2.0
 * Attention of one head whose cache passes through L1 in parts: the steps of sc_softmax.h with saved state.
 * Each worker has its own head. */
#include "sc_platform.h"

#include "sc_softmax.h"
#ifdef SC_WINDOW
#include "sc_window.h"
#endif

SC_HOT void sc_head_begin(sc_head_state *s, const sc_layer *layer, uint32_t q_scale, uint32_t value_scales) {
    const head_softmax h = softmax_begin(layer, q_scale);
    s->least = h.least, s->total = h.total;
    s->factor = (uint16_t)h.factor, s->shift = (uint16_t)h.shift;
    s->drop = weight_drop(value_scales);
    for (int i = 0; i < SC_HEAD_DIM; i++) s->acc[i] = 0;
}

static inline head_softmax load_state(const sc_head_state *s) {
    return (head_softmax){s->least, s->total, s->factor, s->shift, largest_difference(s->factor)};
}

SC_HOT void sc_head_scores(sc_head_state *s, sc_head_scratch *w, const int8_t *q8, int kv_head,
                           const uint8_t *k, uint32_t first, uint32_t count) {
    head_softmax h = load_state(s);
    softmax_scores(&h, w->score + first, q8, k + kv_head * SC_K_RECORD, count);
    s->least = h.least;
}

SC_HOT void sc_head_weigh(sc_head_state *s, sc_head_scratch *w, int kv_head, const uint8_t *k, uint32_t first,
                          uint32_t count) {
    head_softmax h = load_state(s);
    softmax_weigh(&h, w->score + first, w->weight + first, k + kv_head * SC_K_RECORD + 2, count, s->drop);
    s->total = h.total;
}

#ifdef SC_WINDOW
SC_HOT uint32_t sc_window_scores(sc_head_state *s, sc_head_scratch *w, const int8_t *q8, int kv_head,
                                 const uint8_t *k, uint32_t first, uint32_t from, uint32_t count,
                                 uint32_t position) {
    place_run runs[2];
    const int n = window_runs(position, from, count, runs);
    head_softmax h = load_state(s);
    const uint32_t scales = window_scores(&h, w->score + first, q8, k, (uint32_t)kv_head, runs, n);
    s->least = h.least;
    return scales;
}

SC_HOT void sc_window_weigh(sc_head_state *s, sc_head_scratch *w, int kv_head, const uint8_t *k,
                            uint32_t first, uint32_t from, uint32_t count, uint32_t position) {
    place_run runs[2];
    const int n = window_runs(position, from, count, runs);
    head_softmax h = load_state(s);
    window_weigh(&h, w->score + first, w->weight + first, k, (uint32_t)kv_head, runs, n, count, s->drop);
    s->total = h.total;
}
#endif

SC_HOT void sc_head_values(sc_head_state *s, const sc_head_scratch *w, int kv_head, const uint8_t *v,
                           uint32_t first, uint32_t count) {
    const uint8_t *row = v + kv_head * SC_V_HEAD;
#if SC_KV_BITS == 4
    add_values(row, w->weight + first, count, s->acc);
#else
    for (int d = 0; d < SC_HEAD_DIM; d += VALUES) {
        int32_t sum[VALUES];
        weighted_values(row + d * SC_KV_POSITIONS, w->weight + first, count, sum);
        for (int i = 0; i < VALUES; i++)
            s->acc[d + i] = (int32_t)((uint32_t)s->acc[d + i] + (uint32_t)sum[i]);
    }
#endif
}

SC_HOT void sc_head_finish(const sc_head_state *s, int32_t *out, const sc_layer *layer) {
    for (int d = 0; d < SC_HEAD_DIM; d++) out[d] = s->acc[d];
    means(head_mean(s->total, s->drop, layer), out, SC_HEAD_DIM);
#if SC_KV_BITS == 4
    rotate_head(out);
#endif
}
