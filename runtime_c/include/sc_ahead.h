/* SPDX-License-Identifier: Apache-2.0
 * What is fetched ahead of the steps that read it: for sc_forward.c only. */
#ifndef SC_AHEAD_H
#define SC_AHEAD_H

#include "sc_layer_cache.h"

#ifdef SC_AT_GAIN
/* The next norm's gains are on their way while the matrices before it are multiplied: from L2 a core waits for each.
 * SC_FETCHER starts and awaits them. */
static SC_L1 sc_dma gain_dma;
static SC_L1 uint32_t gain_next; /* that core's own */

static void gain_load(void) { gain_dma = sc_dma_in(gain, sc_gains[gain_next++], sizeof(int32_t[SC_HIDDEN])); }

/* Those of a norm, before a barrier. */
static inline const int32_t *gain_of(uint32_t norm, int core) {
    (void)norm;
    if (core == SC_FETCHER) sc_dma_wait(gain_dma);
    return gain;
}
#else
#define gain_of(norm, core) sc_gains[norm]
#endif

/* The gains of the norm behind attention, when heads begin. */
static inline void gain_ahead(int core) {
    (void)core;
#ifdef SC_AT_GAIN
    if (core == SC_FETCHER) gain_load();
#endif
}

/* The next layer's cache sets out as soon as attention is done: a long one takes the DMA as long as all that comes before
 * the next heads.  Where tiles travel, or it has yet to come from HyperRAM, it does so with gate and up; and where its
 * room is another buffer's until then, a layer's own with its first matrix. */
#if SC_FRUGAL
#define SC_CACHE_BESIDE SC_QKV
#else
#define SC_CACHE_BESIDE (SC_FETCHER == SC_CORES && SC_KV_LAYERS_HYPERRAM == 0 ? SC_O : SC_GU)
#endif

/* With a layer's matrix, what comes after it: beside gate and up the next norm's gains. */
static inline void set_out(uint32_t slot, int core) {
    if (core != SC_FETCHER) return;
#ifdef SC_AT_GAIN
    if (slot == SC_GU && (gain_next < 2 * SC_LAYERS || sc_now.want != SC_NO_LOGITS)) gain_load();
#endif
#if SC_KV_WINDOW > 0
    if (slot == SC_CACHE_BESIDE) kv_load(kv_next);
#endif
    (void)slot;
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
#if SC_KV_WINDOW > 0 && SC_FRUGAL
    kv_next = 0;
#elif SC_KV_WINDOW > 0
    kv_load(0);
#endif
}

#endif
