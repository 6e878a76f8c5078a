/* SPDX-License-Identifier: Apache-2.0
 * Attention over a cache that streams from HyperRAM through L2 and L1, for any number of positions.
 *
 * All heads of up to SC_KV_STREAMED tokens attend at the same time, in a turn. The keys stream twice: the first time
 * every head finds its largest score and the scales of the values; the second time, with the values, it computes
 * the scores again, weights and weighted sums. So a core keeps scores for one piece only, and HyperRAM, which is much
 * slower than the cores, is read as rarely as possible. */
#ifndef SC_ATTEND_STREAMED_H
#define SC_ATTEND_STREAMED_H

#define STREAM_CORE SC_LAST_CORE(SC_CORES) /* it also starts the transfers from flash */

/* A turn: tokens first .. first + tokens - 1 of the pass, and how many pieces the cache has. */
typedef struct {
    uint32_t layer, first, tokens, blocks, pieces;
} kv_turn;

/* Blocks of part n of a turn: of the keys; and of the keys with the values. */
static inline uint32_t kv_part(const kv_turn *turn, uint32_t n, uint32_t *first) {
    *first = n % turn->pieces * SC_KV_TILE_BLOCKS;
    return turn->blocks - *first < SC_KV_TILE_BLOCKS ? turn->blocks - *first : SC_KV_TILE_BLOCKS;
}

/* HyperRAM -> L2 */
static void kv_fetch(const kv_turn *turn, uint32_t n) {
    uint32_t first, blocks = kv_part(turn, n, &first);
    uint8_t *const to = kv_stage[n & 1];
    kv_transfer(turn->layer, first, blocks, to, n < turn->pieces ? 0 : to + SC_KV_TILE_BLOCKS * SC_K_BLOCK,
                SC_FROM_RAM);
}

/* L2 -> L1 */
static void kv_copy(const kv_turn *turn, uint32_t n) {
    uint32_t first, blocks = kv_part(turn, n, &first);
    const uint8_t *const from = kv_stage[n & 1];
    kv_dma[0] = sc_dma_in(kv_tile[n & 1], from, blocks * SC_K_BLOCK);
    if (n < turn->pieces) return;
    kv_dma[1] = sc_dma_in(kv_tile[n & 1] + SC_KV_TILE_BLOCKS * SC_K_BLOCK,
                          from + SC_KV_TILE_BLOCKS * SC_K_BLOCK, blocks * SC_V_BLOCK);
}

/* Part n is in L1, and part n + 1 in L2. */
static void kv_await(const kv_turn *turn, uint32_t n) {
    sc_dma_wait(kv_dma[0]);
    if (n >= turn->pieces) sc_dma_wait(kv_dma[1]);
    if (n + 1 < 2 * turn->pieces) sc_ram_wait();
}

#ifdef SC_WINDOW
/* kv_attend() for a head of a layer with a window, whose cache is a ring. */
SC_PHASE static void kv_attend_ring(sc_head_state *s, const int8_t *q, uint32_t position, int kv_head,
                                    const uint8_t *keys, const uint8_t *values, uint32_t first, int weigh,
                                    int core) {
    const uint32_t end = sc_now.position + sc_now.tokens, used = end < SC_RING ? end : SC_RING,
                   most = SC_KV_TILE_BLOCKS * SC_KV_POSITIONS,
                   count = used - first < most ? used - first : most;
    const uint32_t scales = sc_window_scores(s, &scratch[core], q, kv_head, keys, 0, first, count, position);
    if (!weigh) {
        s->drop |= (int32_t)scales;
        return;
    }
    sc_window_weigh(s, &scratch[core], kv_head, keys, 0, first, count, position);
    sc_head_values(s, &scratch[core], kv_head, values, 0, count);
}
#endif

/* What a core's heads do with part n. */
SC_PHASE static void kv_attend(const kv_turn *turn, uint32_t n, int core) {
    const uint32_t first = n % turn->pieces * SC_KV_TILE_BLOCKS * SC_KV_POSITIONS;
    const uint8_t *const keys = kv_tile[n & 1], *const values = keys + SC_KV_TILE_BLOCKS * SC_K_BLOCK;
    for (uint32_t item = (uint32_t)core; item < turn->tokens * SC_HEADS; item += SC_CORES) {
        const uint32_t t = turn->first + item / SC_HEADS, head = item % SC_HEADS,
                       live = sc_now.position + t + 1;
        const int8_t *const q = q8[t] + head * SC_HDP;
        const int kv_head = (int)(head / (SC_HEADS / SC_KV_HEADS)), weigh = n >= turn->pieces;
        sc_head_state *const s = &state[item];
        if (n == turn->pieces) s->drop = weight_drop((uint32_t)s->drop);
#ifdef SC_WINDOW
        if (sc_cache_places[turn->layer].windowed) {
            kv_attend_ring(s, q, live - 1, kv_head, keys, values, first, weigh, core);
            continue;
        }
#endif
        if (live <= first) continue;
        const uint32_t most = SC_KV_TILE_BLOCKS * SC_KV_POSITIONS,
                       count = live - first < most ? live - first : most;
        sc_head_scores(s, &scratch[core], q, kv_head, keys, 0, count);
        if (!weigh) {
            s->drop |= (int32_t)value_scales_of(keys, (uint32_t)kv_head, 0, count);
        } else {
            sc_head_weigh(s, &scratch[core], kv_head, keys, 0, count);
            sc_head_values(s, &scratch[core], kv_head, values, 0, count);
        }
    }
}

SC_PHASE static void kv_attend_turn(const kv_turn *turn, int32_t *dst, uint32_t stride, int core) {
    const sc_layer *const layer = &sc_layers[turn->layer];
    const uint32_t items = turn->tokens * SC_HEADS, parts = 2 * turn->pieces;
    for (uint32_t item = (uint32_t)core; item < items; item += SC_CORES) {
        const uint32_t t = turn->first + item / SC_HEADS;
        sc_head_begin(&state[item], layer, q_scale[t][item % SC_HEADS], 1);
        state[item].drop = 0; /* until all scales of the values are known, it collects them */
    }
    sc_worker_barrier(); /* the buffers of the last turn have been read */
    if (core == STREAM_CORE) {
        kv_fetch(turn, 0);
        sc_ram_wait();
        kv_copy(turn, 0);
        kv_fetch(turn, 1);
    }
    for (uint32_t n = 0; n < parts; n++) {
        if (core == STREAM_CORE) kv_await(turn, n);
        sc_worker_barrier();
        if (core == STREAM_CORE && n + 1 < parts) kv_copy(turn, n + 1);
        if (core == STREAM_CORE && n + 2 < parts) kv_fetch(turn, n + 2);
        kv_attend(turn, n, core);
    }
    for (uint32_t item = (uint32_t)core; item < items; item += SC_CORES) {
        const uint32_t t = turn->first + item / SC_HEADS;
        sc_head_finish(&state[item], dst + t * stride + item % SC_HEADS * SC_HEAD_DIM, layer);
    }
}

SC_PHASE static void attend_streamed(int32_t *dst, uint32_t stride, uint32_t index, int core) {
    kv_turn turn = {.layer = index, .blocks = kv_used(index, sc_now.position + sc_now.tokens)};
    turn.pieces = (turn.blocks + SC_KV_TILE_BLOCKS - 1) / SC_KV_TILE_BLOCKS;
    sc_team_barrier(); /* all keys and values have been appended */
    if (!sc_is_worker(core)) return;
    if (core == STREAM_CORE) kv_store_new_blocks(index);
    for (turn.first = sc_first_wanted(index); turn.first < sc_now.tokens; turn.first += SC_KV_STREAMED) {
        const uint32_t left = sc_now.tokens - turn.first;
        turn.tokens = left < SC_KV_STREAMED ? left : SC_KV_STREAMED;
        kv_attend_turn(&turn, dst, stride, core);
    }
    if (core == STREAM_CORE && index + 1 < SC_LAYERS) kv_load_begun_blocks(index + 1);
}

#endif
