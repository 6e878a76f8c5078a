/* SPDX-License-Identifier: Apache-2.0
 * The controller's part of a forward pass, overlapped with the workers: engine control, prefetch, cache
 * transfers, hashes. Only if the team includes the controller. Only for forward.c. */
#ifndef SC_ACCOMPANY_H
#define SC_ACCOMPANY_H

#include "sc_forward.h"

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
 * accompany() in forward.c. */
static inline void await_heads(uint32_t layer) {
    sc_meet();
    if (!sc_only_caches(layer)) gain_ahead(SC_CORES);
}
static inline void await_attention(uint32_t layer) {
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

/* Controller's parts of a layer's steps. It runs steps that produce vectors; of matrices only what the engine
 * needs; of other steps only their first barrier. */
#define NO_NORM (~0u)
SC_PHASE static void accompany_vector(enum sc_slot slot, const int32_t *src, uint32_t stride, uint32_t norm,
                                      uint32_t layer) {
    const sc_layer *const l = &sc_layers[layer];
    const sc_matrix *const m = l->m[slot];
    if (IS_AWAITED(m, SC_PERM(l->perm[slot])))
        await_token(m, norm != NO_NORM);
    else if (norm != NO_NORM)
        sc_step_norm(slot, src, stride, norm, layer, SC_CORES);
    else
        sc_step_quant(slot, src, stride, layer, SC_CORES);
}

SC_PHASE static void accompany_matrix(enum sc_slot slot, uint32_t layer) {
    const sc_matrix *const m = sc_layers[layer].m[slot];
    const uint32_t first = sc_first_of(slot, layer);
    set_out(slot, SC_CORES);
    sc_engine_attend(m, sc_now.tokens - first);
#if SC_RANK > 0
    if (m->b) quantize(m->b, sy[0], SC_RANK, 0, 0, first, sq[0], sv, SC_CORES);
#endif
}

/* Whether the controller processes heads in this pass. */
static inline int helps_with_heads(void) { return SC_HEAD_CORES > SC_CORES || sc_now.tokens > 1; }

static inline void accompany_heads(const int32_t *qkv, uint32_t stride, uint32_t layer) {
    if (!sc_is_worker(SC_FETCHER)) await_cache(layer, SC_CORES);
    if (helps_with_heads())
        sc_step_heads(qkv, stride, layer, SC_CORES);
    else
        await_heads(layer);
}

static inline void accompany_attention(int32_t *dst, uint32_t stride, uint32_t layer) {
    if (helps_with_heads())
        sc_step_attention(dst, stride, layer, SC_CORES);
    else
        await_attention(layer);
}

/* Controller's part of the LM head. */
static inline void accompany_head(void) {
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
