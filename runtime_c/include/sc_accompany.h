/* SPDX-License-Identifier: Apache-2.0
 * The controller's part of a forward pass, overlapped with the workers: engine control, prefetch, cache
 * transfers, hashes. Only if the team includes the controller. Only for sc_forward.c. */
#ifndef SC_ACCOMPANY_H
#define SC_ACCOMPANY_H

#include "sc_ahead.h"

#if SC_TEAM > SC_CORES
#if SC_Q16
#define IS_AWAITED one_token
#else
#define IS_AWAITED(m, perm) 0
#endif

/* Controller's part of quantize_token(). The engine only waits for the values; RMSNorm of the scale is
 * computed during its first job. */
SC_PHASE static void await_token(const sc_matrix *m, int norm) {
    if (norm) (void)gain_of(0, SC_CORES); /* waits for the RMSNorm weights */
    sc_meet();
    sc_engine_prepare(m, 1, norm);
    sc_meet();
#ifdef SC_HAS_ENGINES
    if (!sc_on_engine(m)) return;
#if SC_Q16
    q16_pad(&m->in, xq[0], 4u * m->in.words);
    q16_scale(&m->in, q16_bits(parts[0]), norm, xv);
    if (SC_IN_PLACE) xv->q = xq[0];
    const uint64_t squares = norm ? q16_sum(parts[0], SC_NORM_EPS) : 0;
#endif
    sc_meet();
    sc_engine_begin(m, xv, 1);
#if SC_Q16
    if (norm) sc_q16_normed(squares, xv);
#endif
#endif
}

/* Controller's part of heads and attention of one token, if it processes no heads. Short code: see
 * accompany(). */
static inline void accompany_heads(uint32_t layer) {
    sc_meet();
    if (!sc_only_caches(layer)) gain_ahead(SC_CORES);
}
static inline void accompany_attention(uint32_t layer) {
    (void)layer;
    sc_meet();
#if SC_KV_WINDOW > 0
    if (kv_whole()) {
        kv_store(layer);
        kv_stored(layer);
    }
#endif
    if (sc_hashes_beside() && layer > 0) sc_hash_layer(layer - 1);
}

/* Controller's part of a step. Runs steps that produce vectors; of matrices only what the engine needs; of
 * other steps only their first barrier. */
static inline void accompany_step(const sc_layer_step *s, uint32_t index) {
    const sc_layer *const l = &sc_layers[index];
    const sc_matrix *const m = l->m[s->slot];
    if (s->controller_task == SC_CONTROLLER_HEADS && !sc_is_worker(SC_FETCHER)) await_cache(index, SC_CORES);
    if (s->controller_task == SC_CONTROLLER_MATRIX) {
        const uint32_t first = sc_first_of(s, index);
        set_out(s->slot, SC_CORES);
        sc_engine_attend(m, sc_now.tokens - first);
#if SC_RANK > 0
        if (m->b) quantize(m->b, sy[0], SC_RANK, 0, 0, first, sq[0], sv, SC_CORES);
#endif
    } else if (s->controller_task >= SC_CONTROLLER_QUANT && IS_AWAITED(m, SC_PERM(l->perm[s->slot]))) {
        await_token(m, s->controller_task == SC_CONTROLLER_NORM);
    } else if (s->controller_task >= SC_CONTROLLER_QUANT ||
               (s->controller_task >= SC_CONTROLLER_HEADS &&
                (SC_HEAD_CORES > SC_CORES || sc_now.tokens > 1))) {
        s->run(s, index, SC_CORES);
    } else if (s->controller_task == SC_CONTROLLER_HEADS) {
        accompany_heads(index);
    } else if (s->controller_task == SC_CONTROLLER_ATTENTION) {
        accompany_attention(index);
    } else {
        sc_meet();
    }
}

/* Controller's part of a whole pass. For one token everything but attention fits the controller's own
 * instruction cache; the workers wait while it loads from the shared one. */
SC_HOT static void accompany(void) {
    if (SC_FETCHER == SC_CORES) fetch_first();
    for (uint32_t l = 0; l < SC_LAYERS; l++) {
        const sc_layer_step *s = sc_layer_steps;
        const enum sc_op last = sc_only_caches(l) ? SC_LAYER_CACHED : SC_LAYER_LAST;
        for (enum sc_op op = SC_LAYER_FIRST; op <= last; op++, s++) {
            accompany_step(s, l);
            sc_op_done(op, l, SC_CORES);
        }
        sc_layer_done(l);
    }
    sc_last_hash(SC_CORES);
    if (sc_now.want == SC_NO_LOGITS) return;
    const sc_matrix *const m = &sc_matrices[SC_MATRICES - 1];
    const uint32_t first = sc_first_of_head();
    if (IS_AWAITED(m, SC_PERM(sc_head_perm)))
        await_token(m, 1);
    else
        quantize(m, x[0], SC_HIDDEN, gain_of(2 * SC_LAYERS, SC_CORES), SC_PERM(sc_head_perm), first, xq[0],
                 xv, SC_CORES);
    sc_engine_attend(m, sc_now.tokens - first);
}
#endif

#endif
