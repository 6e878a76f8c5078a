/* SPDX-License-Identifier: Apache-2.0
 * KV cache in HyperRAM of which not even one layer fits L2. A layer has its keys, then its values.
 *
 * L2 holds the blocks with the positions of this pass, and two buffers for pieces of a layer's cache. One core at a
 * time starts the transfers, which are done in order. */
#ifndef SC_STREAMED_CACHE_H
#define SC_STREAMED_CACHE_H

#include "sc_inputs.h"

/* Blocks that a pass can write to: its first position may be the last one of a block. */
#define NEW_BLOCKS ((SC_CHUNK + 2 * SC_KV_POSITIONS - 2) / SC_KV_POSITIONS)
#define PIECE_BYTES (SC_KV_TILE_BLOCKS * (SC_K_BLOCK + SC_V_BLOCK))
_Static_assert(PIECE_BYTES <= SC_KV_TILE_BYTES, "planned bytes of a piece");

static SC_L2 uint8_t new_blocks[NEW_BLOCKS * (SC_K_BLOCK + SC_V_BLOCK)] __attribute__((aligned(4)));
static SC_L2 uint8_t kv_stage[2][PIECE_BYTES] __attribute__((aligned(4)));
_Static_assert(sizeof new_blocks + sizeof kv_stage <= SC_KV_STAGE_BYTES, "planned bytes of L2 for the cache");

#define KEYS(layer) new_blocks
#define VALUES_OF(layer) (new_blocks + NEW_BLOCKS * SC_K_BLOCK)

/* Starts the transfer of a layer's keys and values from block `first` on. Keys are at l2, values at `values`, if that
 * is not 0. */
SC_PHASE static void kv_transfer(uint32_t layer, uint32_t first, uint32_t blocks, uint8_t *l2,
                                 uint8_t *values, enum sc_direction direction) {
    const uint32_t keys_at = layer * SC_KV_LAYER_BYTES, values_at = keys_at + SC_VALUES_AT(layer);
    sc_ram_start(l2, keys_at + first * SC_K_BLOCK, blocks * SC_K_BLOCK, direction);
    if (values) sc_ram_start(values, values_at + first * SC_V_BLOCK, blocks * SC_V_BLOCK, direction);
}

/* The block of the pass's first position may have earlier ones. */
static inline void kv_load_begun_block(uint32_t layer) {
    if (sc_now.position % SC_KV_POSITIONS == 0) return;
    kv_transfer(layer, sc_now.position / SC_KV_POSITIONS, 1, KEYS(layer), VALUES_OF(layer), SC_FROM_RAM);
}

static inline void kv_store_new_blocks(uint32_t layer) {
    const uint32_t first = sc_now.position / SC_KV_POSITIONS;
    kv_transfer(layer, first, kv_blocks(sc_now.position + sc_now.tokens) - first, KEYS(layer),
                VALUES_OF(layer), SC_TO_RAM);
}

/* Before a layer appends to its cache. */
static inline void sc_cache_await(uint32_t layer) {
    if (layer == 0)
        kv_load_begun_block(layer); /* the others' are loaded after the attention of the layer before */
    sc_ram_wait();
}

#endif
