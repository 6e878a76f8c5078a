/* SPDX-License-Identifier: Apache-2.0
 * Where attention finds a layer's keys and values. From a cache outside L1 one core loads them by DMA before, and
 * stores the new positions after. */
#ifndef SC_LAYER_CACHE_H
#define SC_LAYER_CACHE_H

#include "sc_inputs.h"

#if !SC_KV_IN_L1
static SC_L1 sc_dma kv_dma[2];

static inline uint32_t kv_blocks(uint32_t positions) {
    return (positions + SC_KV_POSITIONS - 1) / SC_KV_POSITIONS;
}

/* Blocks of a layer's cache that the first `positions` positions take. */
static inline uint32_t kv_used(uint32_t layer, uint32_t positions) {
    (void)layer;
#ifdef SC_WINDOW
    if (positions > sc_blocks_of(layer) * SC_KV_POSITIONS) return sc_blocks_of(layer);
#endif
    return kv_blocks(positions);
}

/* Whether a layer's cache fits L1 in this pass. */
static inline int kv_whole(uint32_t layer) {
    return SC_KV_WINDOW >= SC_LONGEST_BLOCKS ||
           kv_used(layer, sc_now.position + sc_now.tokens) <= SC_KV_WINDOW;
}
#endif

#ifdef SC_KV_STREAMED
#include "sc_streamed_cache.h"
#elif SC_KV_WINDOW > 0

/* L1 holds the current layer's keys, then its values. If matrices travel in tiles, the next layer's cache is
 * loaded from the last gate and up tile on, when the fewest weights follow: the DMA works in order.
 * SC_PREFETCH_CORE loads it (sc_prefetch.h); SC_CACHE_CORE stores what attention adds. */
static SC_L1 uint32_t kv_next; /* layer to load next */
#define KEYS(layer) (kv_whole(layer) ? kv_layer[0] : sc_cache_keys(layer))
#define VALUES_OF(layer) (kv_whole(layer) ? kv_layer[0] + SC_KV_WINDOW * SC_K_BLOCK : sc_cache_values(layer))

/* Moves blocks of keys and values to L1, or back. */
SC_PHASE static void kv_move(uint32_t layer, uint32_t first, uint32_t blocks, int away) {
    uint8_t *l1 = KEYS(layer), *ext = sc_cache_keys(layer);
    uint32_t block = SC_K_BLOCK;
    for (int i = 0; i < 2; i++) {
        uint8_t *const here = l1 + first * block, *const there = ext + first * block;
        kv_dma[i] = away ? sc_dma_out(there, here, blocks * block) : sc_dma_in(here, there, blocks * block);
        l1 += SC_KV_WINDOW * SC_K_BLOCK, ext += SC_VALUES_AT(layer), block = SC_V_BLOCK;
    }
}

SC_PHASE static void kv_wait(void) {
    for (int i = 0; i < 2; i++) sc_dma_wait(kv_dma[i]);
}

/* Loads the blocks that hold earlier positions. */
static inline void kv_load(uint32_t layer) {
    if (layer >= SC_LAYERS || !kv_whole(layer)) return;
    sc_cache_await(layer);
    const uint32_t blocks = kv_used(layer, sc_now.position);
    if (blocks) kv_move(layer, 0, blocks, 0);
}

/* Stores the blocks that hold this pass's positions. */
static inline void kv_store(uint32_t layer) {
#ifdef SC_WINDOW
    sc_block_run runs[2];
    const int count = sc_block_runs(layer, sc_now.position, sc_now.position + sc_now.tokens, runs);
    for (int i = 0; i < count; i++) {
        if (i) kv_wait();
        kv_move(layer, runs[i].first, runs[i].end - runs[i].first, 1);
    }
#else
    const uint32_t first = sc_now.position / SC_KV_POSITIONS;
    kv_move(layer, first, (sc_now.position + sc_now.tokens - 1) / SC_KV_POSITIONS + 1 - first, 1);
#endif
}

/* Waits for the stores; the next layer's cache may be loaded then. */
static inline void kv_stored(uint32_t layer) {
    kv_wait();
    sc_cache_swap(layer);
    kv_next = layer + 1;
}

#else
#if SC_KV_IN_L1
#ifdef SC_WINDOW
#define KEYS(layer) k_cache[sc_cache_places[layer].first]
#define VALUES_OF(layer) v_cache[sc_cache_places[layer].first]
#else
#define KEYS(layer) k_cache[layer]
#define VALUES_OF(layer) v_cache[layer]
#endif
#else
#define KEYS(layer) sc_cache_keys(layer)
#define VALUES_OF(layer) sc_cache_values(layer)
#endif
#endif

/* Before the heads, and before a barrier: waits for the layer's cache. */
static inline void await_cache(uint32_t layer, int core) {
    (void)layer, (void)core;
#if !SC_KV_IN_L1
    if (core != SC_PREFETCH_CORE) return;
    if (!kv_whole(layer)) sc_cache_await(layer);
#if SC_KV_WINDOW > 0
    else if (__builtin_expect(sc_now.position > 0, 1))
        kv_wait();
#endif
#endif
}

#endif
