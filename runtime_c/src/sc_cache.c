/* SPDX-License-Identifier: Apache-2.0
 * KV cache outside L1: the first layers' in L2, then weight memory, then HyperRAM. A layer has its keys, then
 * its values.
 *
 * L2 holds one layer's cache from HyperRAM at a time. After its attention the new positions are written back
 * and the next layer's cache is read, while the cores multiply matrices. One core starts the transfers. */
#include "sc_platform.h"

#include "sc_buffers.h"

#if !SC_KV_IN_L1

_Static_assert(SC_KV_BLOCKS *(SC_K_BLOCK + SC_V_BLOCK) <= SC_KV_LAYER_BYTES,
               "planned bytes of a layer's cache");

#if SC_KV_LAYERS_L2 > 0
static SC_L2 uint8_t in_l2[SC_KV_LAYERS_L2][SC_KV_LAYER_BYTES];
#endif
#if SC_KV_LAYERS_WMEM > 0
static SC_WMEM uint8_t in_wmem[SC_KV_LAYERS_WMEM][SC_KV_LAYER_BYTES];
#endif
#if SC_KV_LAYERS_HYPERRAM > 0
#define FIRST_SWAPPED (SC_KV_LAYERS_L2 + SC_KV_LAYERS_WMEM)
static inline int swapped(uint32_t layer) { return (int32_t)layer >= FIRST_SWAPPED; }
static SC_L2 uint8_t stage[SC_KV_LAYER_BYTES];
#endif

SC_HOT uint8_t *sc_cache_keys(uint32_t layer) {
#if SC_KV_LAYERS_L2 > 0
    if (layer < SC_KV_LAYERS_L2) return in_l2[layer];
#endif
#if SC_KV_LAYERS_WMEM > 0
    if (layer < SC_KV_LAYERS_L2 + SC_KV_LAYERS_WMEM) return in_wmem[layer - SC_KV_LAYERS_L2];
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
        sc_ram_start(stage + at, (layer - FIRST_SWAPPED) * SC_KV_LAYER_BYTES + at, n, direction);
        at += n, bytes -= n;
    }
}

static void swap(uint32_t layer, uint32_t first, uint32_t end, enum sc_direction direction) {
    transfer(layer, first * SC_K_BLOCK, (end - first) * SC_K_BLOCK, direction);
    transfer(layer, SC_VALUES_AT + first * SC_V_BLOCK, (end - first) * SC_V_BLOCK, direction);
}

void sc_cache_swap(uint32_t layer) {
    if (!swapped(layer)) return;
    const uint32_t before = sc_now.position, after = before + sc_now.tokens;
    const uint32_t end = (after + SC_KV_POSITIONS - 1) / SC_KV_POSITIONS;
    swap(layer, before / SC_KV_POSITIONS, end, SC_TO_RAM);
    if (layer + 1 < SC_LAYERS)
        swap(layer + 1, 0, (before + SC_KV_POSITIONS - 1) / SC_KV_POSITIONS, SC_FROM_RAM);
    else /* for the next pass */
        swap(FIRST_SWAPPED, 0, end, SC_FROM_RAM);
}

void sc_cache_await(uint32_t layer) {
    if (swapped(layer)) sc_ram_wait();
}

#endif
#endif
