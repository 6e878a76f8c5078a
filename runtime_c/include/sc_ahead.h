/* SPDX-License-Identifier: Apache-2.0
 * What is fetched ahead of the steps that read it: for sc_forward.c only. */
#ifndef SC_AHEAD_H
#define SC_AHEAD_H

#include "sc_layer_cache.h"

/* The gains of the norm behind attention, when heads begin. */
static inline void gain_ahead(int core) {
    (void)core;
#ifdef SC_AT_GAIN
    if (core == SC_FETCHER) gain_load();
#endif
}

/* With the matrix that gate and up are, the next norm's gains; and where tiles travel, or a cache has yet to come from
 * HyperRAM, the next layer's cache. */
#define SC_CACHE_EARLY (SC_FETCHER == SC_CORES && SC_KV_LAYERS_HYPERRAM == 0)
static inline void set_out(uint32_t kind, int core) {
    if (kind != SC_SILU || core != SC_FETCHER) return;
#ifdef SC_AT_GAIN
    if (gain_next < 2 * SC_LAYERS || sc_now.want != SC_NO_LOGITS) gain_load();
#endif
#if SC_KV_WINDOW > 0
    if (!SC_CACHE_EARLY) kv_load(kv_next);
#endif
}

/* Else as soon as attention is done: a long one takes the DMA as long as all that comes before the next heads. */
static inline void set_out_early(uint32_t slot) {
    (void)slot;
#if SC_KV_WINDOW > 0
    if (SC_CACHE_EARLY && slot == SC_O) kv_load(kv_next);
#endif
}

/* What is fetched before the first layer. */
static inline void fetch_first(void) {
#if !SC_ROPE_IN_FLASH
    sc_load_rope(); /* not behind a cache */
#endif
#ifdef SC_AT_GAIN
    gain_next = 0;
    gain_load();
#endif
#if SC_KV_WINDOW > 0
    kv_load(0);
#endif
}

#endif
