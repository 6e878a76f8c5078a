/* SPDX-License-Identifier: Apache-2.0
 * The cache of the layer at hand in L1, as long as it fits: for sc_forward.c only. */
#ifndef SC_LAYER_CACHE_H
#define SC_LAYER_CACHE_H

#include "sc_inputs.h"

#if !SC_KV_IN_L1
static SC_L1 sc_dma kv_dma[2];

static inline uint32_t kv_blocks(uint32_t positions) {
    return (positions + SC_KV_POSITIONS - 1) / SC_KV_POSITIONS;
}

/* Whether this pass has a layer's cache in L1. */
static inline int kv_whole(void) {
    return SC_KV_WINDOW >= SC_KV_BLOCKS || kv_blocks(sc_now.position + sc_now.tokens) <= SC_KV_WINDOW;
}
#endif

#if SC_KV_WINDOW > 0

/* The cache of the layer at hand is in L1: keys, and values behind them.  Where tiles travel the next layer's is
 * on its way from the last one of gate and up on, which is when the fewest weights are: what is asked for later comes
 * later.  SC_FETCHER starts and awaits it (sc_ahead.h); what attention adds, SC_KEEPER. */
static SC_L1 uint32_t kv_next; /* the layer */
#define KEYS(layer) (kv_whole() ? kv_layer[0] : sc_cache_keys(layer))
#define VALUES_OF(layer) (kv_whole() ? kv_layer[0] + SC_KV_WINDOW * SC_K_BLOCK : sc_cache_values(layer))

/* Some blocks of keys and of values: into L1, or from there to where they belong. */
SC_PHASE static void kv_move(uint32_t layer, uint32_t first, uint32_t blocks, int away) {
    uint8_t *l1 = KEYS(layer), *ext = sc_cache_keys(layer);
    uint32_t block = SC_K_BLOCK;
    for (int i = 0; i < 2; i++) {
        uint8_t *const here = l1 + first * block, *const there = ext + first * block;
        kv_dma[i] = away ? sc_dma_out(there, here, blocks * block) : sc_dma_in(here, there, blocks * block);
        l1 += SC_KV_WINDOW * SC_K_BLOCK, ext += SC_VALUES_AT, block = SC_V_BLOCK;
    }
}

SC_PHASE static void kv_wait(void) {
    for (int i = 0; i < 2; i++) sc_dma_wait(kv_dma[i]);
}

/* Those that hold positions before this pass's. */
static inline void kv_load(uint32_t layer) {
    if (layer >= SC_LAYERS || !kv_whole()) return;
    sc_cache_await(layer);
    const uint32_t blocks = kv_blocks(sc_now.position);
    if (blocks) kv_move(layer, 0, blocks, 0);
}

/* Those that this pass's positions are in. */
static inline void kv_store(uint32_t layer) {
    const uint32_t first = sc_now.position / SC_KV_POSITIONS;
    kv_move(layer, first, (sc_now.position + sc_now.tokens - 1) / SC_KV_POSITIONS + 1 - first, 1);
}

/* When they are where they belong, and the next layer's may come. */
static inline void kv_stored(uint32_t layer) {
    kv_wait();
    sc_cache_swap(layer);
    kv_next = layer + 1;
}

#else
#if SC_KV_IN_L1
#define KEYS(layer) k_cache[layer]
#define VALUES_OF(layer) v_cache[layer]
#else
#define KEYS(layer) sc_cache_keys(layer)
#define VALUES_OF(layer) sc_cache_values(layer)
#endif
#endif

/* Before heads, and a meeting: the layer's cache is where they go to. */
static inline void await_cache(uint32_t layer, int core) {
    (void)layer, (void)core;
#if !SC_KV_IN_L1
    if (core != SC_FETCHER) return;
    if (!kv_whole()) sc_cache_await(layer);
#if SC_KV_WINDOW > 0
    else if (sc_now.position > 0)
        kv_wait();
#endif
#endif
}

#endif
