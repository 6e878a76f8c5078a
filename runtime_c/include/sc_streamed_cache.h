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

/* Offset of a layer's cache in HyperRAM. */
#ifdef SC_WINDOW
#define PLACE_OF(layer) sc_cache_places[layer].at
#else
#define PLACE_OF(layer) ((layer) * SC_KV_LAYER_BYTES)
#endif

/* Starts the transfer of a layer's keys and values from block `first` on. Keys are at l2, values at `values`, if that
 * is not 0. */
SC_PHASE static void kv_transfer(uint32_t layer, uint32_t first, uint32_t blocks, uint8_t *l2,
                                 uint8_t *values, enum sc_direction direction) {
    const uint32_t keys_at = PLACE_OF(layer), values_at = keys_at + SC_VALUES_AT(layer);
    sc_ram_start(l2, keys_at + first * SC_K_BLOCK, blocks * SC_K_BLOCK, direction);
    if (values) sc_ram_start(values, values_at + first * SC_V_BLOCK, blocks * SC_V_BLOCK, direction);
}

/* Moves blocks first .. first + count - 1 of the pass between L2 and a layer's cache, from block `to` of that on. */
static inline void kv_move_new(uint32_t layer, uint32_t first, uint32_t count, uint32_t to,
                               enum sc_direction direction) {
    kv_transfer(layer, to, count, KEYS(layer) + first * SC_K_BLOCK, VALUES_OF(layer) + first * SC_V_BLOCK,
                direction);
}

/* The block of the pass's first position may have earlier ones; that of its last position too, in a ring that goes
 * round. */
static inline void kv_load_begun_blocks(uint32_t layer) {
    if (sc_now.position % SC_KV_POSITIONS)
        kv_move_new(layer, 0, 1, sc_place_of_position(layer, sc_now.position) / SC_KV_POSITIONS, SC_FROM_RAM);
#ifdef SC_WINDOW
    const uint32_t end = sc_now.position + sc_now.tokens;
    if (sc_cache_places[layer].windowed && end > SC_RING && end % SC_KV_POSITIONS)
        kv_move_new(layer, end / SC_KV_POSITIONS - sc_now.position / SC_KV_POSITIONS, 1,
                    end % SC_RING / SC_KV_POSITIONS, SC_FROM_RAM);
#endif
}

static inline void kv_store_new_blocks(uint32_t layer) {
    const uint32_t count = kv_blocks(sc_now.position + sc_now.tokens) - sc_now.position / SC_KV_POSITIONS;
    const uint32_t to = sc_place_of_position(layer, sc_now.position) / SC_KV_POSITIONS;
    const uint32_t left = sc_blocks_of(layer) - to,
                   before = count < left ? count : left; /* where a ring ends */
    kv_move_new(layer, 0, before, to, SC_TO_RAM);
    if (before < count) kv_move_new(layer, before, count - before, 0, SC_TO_RAM);
}

/* Before a layer appends to its cache. */
static inline void sc_cache_await(uint32_t layer) {
    if (layer == 0)
        kv_load_begun_blocks(layer); /* the others' are loaded after the attention of the layer before */
    sc_ram_wait();
}

#endif
