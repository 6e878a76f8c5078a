/* SPDX-License-Identifier: Apache-2.0
 * KV cache outside L1: the first layers' in L2, then weight memory, then HyperRAM. A layer has its keys, then
 * its values.
 *
 * L2 holds one layer's cache from HyperRAM at a time. After its attention the new positions are written back
 * and the next layer's cache is read, while the cores multiply matrices. One core starts the transfers. */
#include "sc_platform.h"

#include "sc_buffers.h"

#if !SC_KV_IN_L1 && !defined(SC_KV_STREAMED)

_Static_assert(SC_LONGEST_BLOCKS *(SC_K_BLOCK + SC_V_BLOCK) <= SC_KV_LAYER_BYTES,
               "planned bytes of a layer's cache");

/* Offset of a layer's cache in its memory; `first`: the first layer there. */
#ifdef SC_WINDOW
#define PLACE_OF(layer, first) sc_cache_places[layer].at
#else
#define PLACE_OF(layer, first) (((layer) - (first)) * SC_KV_LAYER_BYTES)
#endif

#if SC_KV_LAYERS_L2 > 0
static SC_L2 uint8_t in_l2[SC_KV_BYTES_L2];
#endif
#if SC_KV_LAYERS_WMEM > 0
static SC_WMEM uint8_t in_wmem[SC_KV_BYTES_WMEM];
#endif
#if SC_KV_LAYERS_HYPERRAM > 0
#define FIRST_SWAPPED (SC_KV_LAYERS_L2 + SC_KV_LAYERS_WMEM)
static inline int swapped(uint32_t layer) { return (int32_t)layer >= FIRST_SWAPPED; }
static SC_L2 uint8_t stage[SC_KV_LAYER_BYTES];
#endif

SC_HOT uint8_t *sc_cache_keys(uint32_t layer) {
#if SC_KV_LAYERS_L2 > 0
    if (layer < SC_KV_LAYERS_L2) return in_l2 + PLACE_OF(layer, 0);
#endif
#if SC_KV_LAYERS_WMEM > 0
    if (layer < SC_KV_LAYERS_L2 + SC_KV_LAYERS_WMEM) return in_wmem + PLACE_OF(layer, SC_KV_LAYERS_L2);
#endif
    (void)layer;
#if SC_KV_LAYERS_HYPERRAM > 0
    return stage;
#else
    return 0;
#endif
}

#if SC_KV_LAYERS_HYPERRAM > 0

static void transfer(uint32_t layer, uint32_t at, uint32_t bytes, enum sc_direction direction) {
    const uint32_t most = 1u << 19; /* the transfer length has 20 bits */
    while (bytes) {
        uint32_t n = bytes < most ? bytes : most;
        sc_ram_start(stage + at, PLACE_OF(layer, FIRST_SWAPPED) + at, n, direction);
        at += n, bytes -= n;
    }
}

static void swap(uint32_t layer, uint32_t first, uint32_t end, enum sc_direction direction) {
    transfer(layer, first * SC_K_BLOCK, (end - first) * SC_K_BLOCK, direction);
    transfer(layer, SC_VALUES_AT(layer) + first * SC_V_BLOCK, (end - first) * SC_V_BLOCK, direction);
}

void sc_cache_swap(uint32_t layer) {
    if (!swapped(layer)) return;
    const uint32_t before = sc_now.position, after = before + sc_now.tokens;
#ifdef SC_WINDOW
    sc_block_run runs[2];
    const int count = sc_block_runs(layer, before, after, runs);
    for (int i = 0; i < count; i++) swap(layer, runs[i].first, runs[i].end, SC_TO_RAM);
    const uint32_t next = layer + 1 < SC_LAYERS ? layer + 1 : FIRST_SWAPPED;
    const uint32_t held = layer + 1 < SC_LAYERS ? before : after;
    if (held == 0) return;
    (void)sc_block_runs(next, 0, held, runs);
    swap(next, runs[0].first, runs[0].end, SC_FROM_RAM);
#else
    const uint32_t end = (after + SC_KV_POSITIONS - 1) / SC_KV_POSITIONS;
    swap(layer, before / SC_KV_POSITIONS, end, SC_TO_RAM);
    if (layer + 1 < SC_LAYERS)
        swap(layer + 1, 0, (before + SC_KV_POSITIONS - 1) / SC_KV_POSITIONS, SC_FROM_RAM);
    else /* for the next pass */
        swap(FIRST_SWAPPED, 0, end, SC_FROM_RAM);
#endif
}

void sc_cache_await(uint32_t layer) {
    if (swapped(layer)) sc_ram_wait();
}

#endif
#endif
