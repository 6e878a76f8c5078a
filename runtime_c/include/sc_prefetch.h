/* SPDX-License-Identifier: Apache-2.0
 * Prefetch: copies to L1 what later steps read. SC_PREFETCH_CORE starts the DMA and waits for it. */
#ifndef SC_PREFETCH_H
#define SC_PREFETCH_H

#include "sc_layer_cache.h"

#ifdef SC_AT_GAIN
/* RMSNorm weights are copied to L1 in advance, because a core stalls for each load from L2. */
static SC_L1 sc_dma gain_dma;
static SC_L1 uint32_t gain_next; /* used by SC_PREFETCH_CORE only */

static void gain_load(void) {
    gain_dma = sc_dma_in(gain, sc_norm_weights[gain_next++], sizeof(int32_t[SC_HIDDEN]));
}

/* Weights of a norm; call it before a barrier. */
static inline const int32_t *norm_weights_of(uint32_t norm, int core) {
    (void)norm;
    if (core == SC_PREFETCH_CORE) sc_dma_wait(gain_dma);
    return gain;
}
#else
#define norm_weights_of(norm, core) sc_norm_weights[norm]
#endif

/* Starts the copy for the norm after attention, when the heads begin. */
static inline void prefetch_norm_weights(int core) {
    (void)core;
#ifdef SC_AT_GAIN
    if (core == SC_PREFETCH_CORE) gain_load();
#endif
}

/* With which matrix the next layer's cache is loaded. As early as possible, since a long cache keeps the DMA
 * busy until the next heads: right after attention. With gate and up, if tiles or HyperRAM transfers use the
 * DMA. With the layer's own first matrix, if the buffer is in use until then. */
#if SC_IN_PLACE
#define SC_CACHE_WITH SC_QKV
#else
#define SC_CACHE_WITH (SC_PREFETCH_CORE == SC_CORES && SC_KV_LAYERS_HYPERRAM == 0 ? SC_O : SC_GU)
#endif

/* Starts prefetches that go with a matrix. */
static inline void prefetch_with_matrix(uint32_t slot, int core) {
    if (core != SC_PREFETCH_CORE) return;
#ifdef SC_AT_GAIN
    if (slot == SC_GU && (gain_next < 2 * SC_LAYERS || sc_now.want != SC_NO_LOGITS)) gain_load();
#endif
#if SC_KV_WINDOW > 0
    if (slot == SC_CACHE_WITH) kv_load(kv_next);
#endif
    (void)slot;
}

/* Prefetches before the first layer. */
static inline void prefetch_first(void) {
#if !SC_ROPE_IN_FLASH
    sc_load_rope(); /* before a cache, or it waits for that */
#endif
#ifdef SC_AT_GAIN
    gain_next = 0;
    gain_load();
#endif
#if SC_KV_WINDOW > 0 && SC_IN_PLACE
    kv_next = 0;
#elif SC_KV_WINDOW > 0
    kv_load(0);
#endif
}

#endif
