/* SPDX-License-Identifier: Apache-2.0
 * Two steps of a layer: RoPE and quantisation of the heads, which appends to the KV cache, and attention over
 * the cache. Workers run them, with the controller for some (sc_head_cores()). */
#ifndef SC_ATTEND_H
#define SC_ATTEND_H

#include "sc_heads.h"
#include "sc_prefetch.h"
#include "sc_shares.h"
#ifdef SC_WINDOW
#include "sc_window.h"
#endif

SC_PHASE static void sc_step_heads(const int32_t *qkv, uint32_t stride, uint32_t layer, int core) {
    if (sc_is_worker(SC_PREFETCH_CORE)) await_cache(layer, core);
    sc_team_barrier();
    if (!sc_only_caches(layer)) prefetch_norm_weights(core);
    const int cores = sc_head_cores(sc_now.tokens);
    if (core >= cores) return;
    sc_heads h = {.layer = &sc_layers[layer], .k = KEYS(layer), .v = VALUES_OF(layer), .work = work[core]};
#if SC_KV_BITS == 4
    h.orders = sc_key_orders[layer][0];
#endif
#ifndef SC_KV_STREAMED
    if (sc_now.next) h.value_scales = value_scales[layer];
#endif
    const uint32_t wanted = sc_first_wanted(layer); /* tokens before it need no queries */
    for (uint32_t t = 0, head = (uint32_t)core; t < sc_now.tokens; t++) {
        h.position = sc_now.position + t;
#ifdef SC_KV_STREAMED
        h.position -= sc_now.position / SC_KV_POSITIONS * SC_KV_POSITIONS; /* in the new blocks */
#elif defined(SC_WINDOW)
        h.position = sc_place_of_position(layer, h.position);
#endif
        h.q8 = q8[t], h.q_scale = q_scale[t];
        h.qkv = qkv + t * stride, h.rope = rope[t];
#ifdef SC_ROPE_TABLES
        h.rope += sc_rope_tables[layer] * SC_HEAD_DIM;
#endif
        head = (uint32_t)heads_prepare(&h, (int)head + (t < wanted ? SC_HEADS : 0), cores);
    }
}

#ifndef SC_KV_STREAMED
/* Combines the scales of the values: up to each token of this pass, for the barrier that follows. A pass of
 * one token has done its own in heads_prepare() if the earlier ones were known. The arena starts as zeros. */
SC_WARM static void scales_of_pass(uint32_t layer, int core) {
    const uint8_t *const k = KEYS(layer);
    const uint32_t known = sc_now.known, first = sc_now.position;
    for (uint32_t kv = (uint32_t)core; kv < SC_KV_HEADS; kv += SC_CORES) {
        uint32_t scales = (known ? value_scales[layer][kv] : 0) | value_scales_of(k, kv, known, first),
                 kept = scales;
        const uint8_t *scale = k + first * SC_K_STRIDE + kv * SC_K_RECORD + 2;
        uint16_t *of_pass = &pass_scales[0][kv], *const end = of_pass + sc_now.tokens * SC_KV_HEADS;
        for (; of_pass < end; of_pass += SC_KV_HEADS, scale += SC_K_STRIDE) {
            scales |= load16(scale);
            *of_pass = (uint16_t)scales;
        }
        if (sc_now.want != SC_CHOICES) kept = scales; /* else some tokens may be rejected */
        value_scales[layer][kv] = (uint16_t)kept;
    }
}
#endif

#if SC_KV_IN_L1 || SC_KV_WINDOW > 0

/* Barrier of the cores that process heads: the workers or the team. */
static inline void heads_barrier(int cores) {
    if (cores > SC_CORES)
        sc_team_barrier();
    else
        sc_worker_barrier();
}

SC_PHASE static void attend_shared(const sc_heads *h, int core) {
    shares_scores(h, state, core);
    heads_barrier(SC_HEAD_CORES);
    shares_values(h, state, core);
    heads_barrier(SC_HEAD_CORES);
    shares_finish(h, state, core);
}

/* Attention for any number of tokens. */
SC_WARM static void attend_any(int32_t *dst, uint32_t stride, uint32_t index, int core) {
    const uint32_t first = sc_first_wanted(index);
    const int one = sc_now.tokens - first == 1, cores = sc_head_cores(sc_now.tokens - first);
    if (sc_is_worker(core)) scales_of_pass(index, core);
    if (core >= cores) return;
    heads_barrier(cores);
    sc_heads h = {
        .layer = &sc_layers[index], .k = KEYS(index), .v = VALUES_OF(index), .scratch = &scratch[core]};
    for (uint32_t t = first, head = (uint32_t)core; t < sc_now.tokens; t++) {
        h.position = sc_now.position + t;
        h.q8 = q8[t], h.q_scale = q_scale[t], h.value_scales = pass_scales[t];
        h.out = dst + t * stride;
        const int shared = one && heads_shared(h.position);
        head = (uint32_t)heads_attend(&h, (int)head, cores, SC_HEADS - (shared ? SC_SHARED_HEADS : 0), 0);
        if (shared) attend_shared(&h, core);
    }
}

/* Attention of a pass with one token that follows the last known position. */
static inline void attend_next(int32_t *dst, uint32_t index, int core) {
    /* with chunks of one token, prompts have passes that only fill caches */
    if (SC_CHUNK == 1 && sc_only_caches(index)) return;
    const sc_heads h = {.layer = &sc_layers[index],
                        .position = sc_now.position,
                        .q8 = q8[0],
                        .q_scale = q_scale[0],
                        .k = KEYS(index),
                        .v = VALUES_OF(index),
                        .scratch = &scratch[core],
                        .out = dst,
                        .value_scales = value_scales[index]};
    const int shared = heads_shared(h.position);
    heads_attend(&h, core, SC_HEAD_CORES, SC_HEADS - (shared ? SC_SHARED_HEADS : 0), 1);
    if (shared) attend_shared(&h, core);
}

#ifdef SC_WINDOW
/* Attention to a window, for any number of tokens. */
SC_PHASE static void attend_window(int32_t *dst, uint32_t stride, uint32_t index, int core) {
    const uint32_t first = sc_first_wanted(index), end = sc_now.position + sc_now.tokens;
    const uint32_t count = end < SC_RING ? end : SC_RING;
    const int cores = sc_head_cores(sc_now.tokens - first);
    if (core >= cores) return;
    sc_heads h = {
        .layer = &sc_layers[index], .k = KEYS(index), .v = VALUES_OF(index), .scratch = &scratch[core]};
    for (uint32_t t = first, head = (uint32_t)core; t < sc_now.tokens; t++) {
        h.position = sc_now.position + t;
        h.q8 = q8[t], h.q_scale = q_scale[t], h.out = dst + t * stride;
        head = (uint32_t)window_attend(&h, (int)head, cores, count);
    }
}
#endif

/* Attention to all positions. */
static inline void attend_all(int32_t *dst, uint32_t stride, uint32_t index, int core) {
    if (__builtin_expect(sc_now.next, 1))
        attend_next(dst, index, core);
    else
        attend_any(dst, stride, index, core);
}

static inline void attend_whole(int32_t *dst, uint32_t stride, uint32_t index, int core) {
    sc_team_barrier();
#if !SC_KV_IN_L1
    if (core == SC_CACHE_CORE) kv_store(index);
#endif
#ifdef SC_WINDOW
    if (sc_cache_places[index].windowed)
        attend_window(dst, stride, index, core);
    else
#endif
        attend_all(dst, stride, index, core);
#if !SC_KV_IN_L1
    if (core == SC_CACHE_CORE) kv_stored(index);
#endif
}

#endif

#ifdef SC_KV_STREAMED
#include "sc_attend_streamed.h"
#elif !SC_KV_IN_L1 && SC_KV_WINDOW < SC_LONGEST_BLOCKS

/* What a core does with a part of the cache: positions first .. first + 4 * blocks - 1. */
enum kv_pass { PASS_SCORES, PASS_WEIGH, PASS_VALUES };

static void head_begin(uint32_t index, uint32_t item, int core) {
    const uint32_t t = item / SC_HEADS, head = item - t * SC_HEADS;
    uint32_t scales = pass_scales[t][head / (SC_HEADS / SC_KV_HEADS)];
#ifdef SC_WINDOW
    if (sc_cache_places[index].windowed) scales = 1; /* not known yet */
#endif
    sc_head_begin(&state[core], &sc_layers[index], q_scale[t][head], scales);
}

static void head_pass(enum kv_pass pass, uint32_t item, const uint8_t *kv, uint32_t first, uint32_t positions,
                      int core) {
    uint32_t t = item / SC_HEADS, head = item - t * SC_HEADS, live = sc_now.position + t + 1;
    if (live <= first) return;
    uint32_t n = live - first < positions ? live - first : positions;
    int kv_head = (int)(head / (SC_HEADS / SC_KV_HEADS));
    if (pass == PASS_SCORES)
        sc_head_scores(&state[core], &scratch[core], q8[t] + head * SC_HDP, kv_head, kv, first, n);
    else if (pass == PASS_WEIGH)
        sc_head_weigh(&state[core], &scratch[core], kv_head, kv, first, n);
    else
        sc_head_values(&state[core], &scratch[core], kv_head, kv, first, n);
}

#ifdef SC_WINDOW
/* head_pass() for a layer with a window, whose cache is a ring. */
static void window_pass(enum kv_pass pass, uint32_t item, const uint8_t *kv, uint32_t first, uint32_t places,
                        int core) {
    const uint32_t t = item / SC_HEADS, head = item - t * SC_HEADS, position = sc_now.position + t;
    const uint32_t end = sc_now.position + sc_now.tokens, used = end < SC_RING ? end : SC_RING;
    const uint32_t n = used - first < places ? used - first : places;
    const int kv_head = (int)(head / (SC_HEADS / SC_KV_HEADS));
    sc_head_state *const s = &state[core];
    if (pass == PASS_SCORES) {
        /* until the weights are computed, `drop` collects the scales of the values */
        const uint32_t known = first ? (uint32_t)s->drop : 0;
        s->drop = (int32_t)(known | sc_window_scores(s, &scratch[core], q8[t] + head * SC_HDP, kv_head, kv,
                                                     first, first, n, position));
    } else if (pass == PASS_WEIGH) {
        if (first == 0) s->drop = weight_drop((uint32_t)s->drop);
        sc_window_weigh(s, &scratch[core], kv_head, kv, first, first, n, position);
    } else {
        sc_head_values(s, &scratch[core], kv_head, kv, first, n);
    }
}
#endif

static void head_store(const sc_layer *layer, int32_t *dst, uint32_t stride, uint32_t item, int core) {
    uint32_t t = item / SC_HEADS;
    sc_head_finish(&state[core], dst + t * stride + (item - t * SC_HEADS) * SC_HEAD_DIM, layer);
}

/* Part n of a round: K blocks for the scores, the same K blocks for the scales of the values, then V
 * blocks. */
static void kv_piece(uint32_t index, uint32_t n, uint32_t pieces, uint32_t blocks, const uint8_t **src,
                     uint32_t *bytes) {
    uint32_t at = n % pieces * SC_KV_TILE_BLOCKS;
    uint32_t left = blocks - at < SC_KV_TILE_BLOCKS ? blocks - at : SC_KV_TILE_BLOCKS;
    if (n < 2 * pieces) {
        *src = sc_cache_keys(index) + at * SC_K_BLOCK;
        *bytes = left * SC_K_BLOCK;
    } else {
        *src = sc_cache_values(index) + at * SC_V_BLOCK;
        *bytes = left * SC_V_BLOCK;
    }
}

static void kv_load_piece(uint32_t index, uint32_t n, uint32_t pieces, uint32_t blocks) {
    const uint8_t *src;
    uint32_t bytes;
    kv_piece(index, n, pieces, blocks, &src, &bytes);
    kv_dma[0] = sc_dma_in(kv_tile[n & 1], src, bytes);
}

/* Attention over a cache too large for L1. SC_CORES heads at a time; for each round the cache passes through
 * two L1 buffers. */
SC_PHASE static void attend_in_pieces(int32_t *dst, uint32_t stride, uint32_t index, int core) {
    const sc_layer *layer = &sc_layers[index];
    const uint32_t items = sc_now.tokens * SC_HEADS;
    const uint32_t blocks = kv_used(index, sc_now.position + sc_now.tokens);
    const uint32_t pieces = (blocks + SC_KV_TILE_BLOCKS - 1) / SC_KV_TILE_BLOCKS;
    sc_team_barrier(); /* all keys have been appended */
    if (!sc_is_worker(core)) return;
#ifdef SC_WINDOW
    if (!sc_cache_places[index].windowed)
#endif
        scales_of_pass(index, core);
    if (sc_only_caches(index))
        sc_worker_barrier(); /* all cores have read the records; now they may be replaced */
    for (uint32_t round = sc_first_wanted(index) * SC_HEADS; round < items; round += SC_CORES) {
        const uint32_t item = round + (uint32_t)core;
        sc_worker_barrier(); /* the cache is written, and the buffers of the last round have been read */
        if (core == 0) kv_load_piece(index, 0, pieces, blocks);
        if (item < items) head_begin(index, item, core);
        for (uint32_t n = 0; n < 3 * pieces; n++) {
            if (core == 0) sc_dma_wait(kv_dma[0]);
            sc_worker_barrier();
            if (core == 0 && n + 1 < 3 * pieces) kv_load_piece(index, n + 1, pieces, blocks);
            if (item >= items) continue;
            const enum kv_pass pass = (enum kv_pass)(n / pieces);
            const uint32_t places = SC_KV_TILE_BLOCKS * SC_KV_POSITIONS, first = n % pieces * places;
#ifdef SC_WINDOW
            if (sc_cache_places[index].windowed)
                window_pass(pass, item, kv_tile[n & 1], first, places, core);
            else
#endif
                head_pass(pass, item, kv_tile[n & 1], first, places, core);
        }
        if (item < items) head_store(layer, dst, stride, item, core);
    }
    if (core == SC_LAST_CORE(SC_CORES)) {
        sc_cache_swap(index);
#if defined(SC_WINDOW) && SC_KV_WINDOW > 0
        kv_next = index + 1; /* its ring may fit L1 */
#endif
    }
}

#endif

SC_PHASE static void sc_step_attention(int32_t *dst, uint32_t stride, uint32_t index, int core) {
#ifdef SC_KV_STREAMED
    attend_streamed(dst, stride, index, core);
#elif SC_KV_IN_L1 || SC_KV_WINDOW >= SC_LONGEST_BLOCKS
    attend_whole(dst, stride, index, core);
#elif SC_KV_WINDOW == 0
    attend_in_pieces(dst, stride, index, core);
#else
    if (kv_whole(index))
        attend_whole(dst, stride, index, core);
    else
        attend_in_pieces(dst, stride, index, core);
#endif
}

#endif
