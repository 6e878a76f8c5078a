/* SPDX-License-Identifier: Apache-2.0
 * Typed names for the buffers of the L1 arena. Checks at compile time that the memory plan has room for
 * each. */
#ifndef SC_BUFFERS_H
#define SC_BUFFERS_H

#include "sc_runtime.h"

/* Not inlined: several places call a phase, and the instruction cache has 4 KiB. */
#define SC_PHASE SC_HOT

/* `name` points to `count` elements of type `row` in buffer NAME. */
#define SC_VIEW(name, NAME, row, count)                                                                      \
    static __typeof__(row) *const name = (__typeof__(row) *)(void *)(sc_arena + SC_AT_##NAME);               \
    _Static_assert(sizeof(row) * (count) <= SC_BYTES_##NAME, "planned bytes of " #name)

#if SC_TILE_BYTES > 0
SC_VIEW(tile_buffers, TILES, uint8_t[SC_TILE_BYTES], 2);
#else
static uint8_t (*const tile_buffers)[1] = 0; /* all matrices are read in place */
#endif

/* Per token of a chunk. x: residual stream. y: output of the current op (qkv, attention, norms; gate and up
 * have their own). xq, xc, xv: quantised input of the current matrix. */
SC_VIEW(x, X, int32_t[SC_HIDDEN], SC_CHUNK);
SC_VIEW(y, Y, int32_t[SC_Y_WORDS], SC_CHUNK);
#if SC_IN_PLACE /* one token's, or several tokens' of norms; or a scratch buffer of the team */
SC_VIEW(xq, XQ, int8_t[SC_XQ_WORDS * 4], 1);
_Static_assert((SC_HIDDEN + 3) / 4 * 8 * SC_CHUNK <= SC_BYTES_XQ, "planned bytes of norms' vectors");
_Static_assert(4 * SC_SPILL_WORDS * SC_TEAM <= SC_BYTES_XQ, "planned bytes of what is set aside");
#else
SC_VIEW(xq, XQ, int8_t[SC_XQ_WORDS * 4], SC_CHUNK);
#endif
SC_VIEW(xv, XV, sc_qvec, SC_CHUNK);
#if SC_XGROUPS > 0 /* for int8 vectors */
SC_VIEW(xc, XC, int32_t[SC_XGROUPS], SC_CHUNK);
SC_VIEW(block_max, BLOCK_MAX, uint32_t[SC_XBLOCKS], SC_CHUNK);
#endif
#if SC_XSUMS
SC_VIEW(xsum, XSUM, int32_t[SC_XGROUPS], SC_CHUNK);
#endif
/* Tokens that several cores share: all if inputs are permuted, else up to half the team. Beyond that each core
 * has whole tokens. */
#if SC_PERMS
#define SC_SHARED SC_CHUNK
#else
#define SC_SHARED (SC_CHUNK <= SC_TEAM / 2 ? SC_CHUNK : SC_TEAM < 2 ? 1 : SC_TEAM / 2)
#endif
SC_VIEW(parts, PARTS, sc_part[SC_PARTS], SC_SHARED);
#ifdef SC_AT_GAIN
SC_VIEW(gain, GAIN, int32_t, SC_HIDDEN); /* RMSNorm weights of the next norm */
#endif
#if SC_RANK > 0 /* y, xq, xv of low-rank adapters */
SC_VIEW(sy, SY, int32_t[SC_RANK], SC_CHUNK);
SC_VIEW(sq, SQ, int8_t[SC_SQ_WORDS * 4], SC_CHUNK);
SC_VIEW(sv, SV, sc_qvec, SC_CHUNK);
#else
static sc_qvec *const sv = 0;
#endif
#ifdef SC_AT_SPLIT
SC_VIEW(split, SPLIT, int32_t[SC_CORES][SC_ROWS], 2); /* partial sums, for two tokens in turn */
#endif
#ifdef SC_ROPE_TABLES
SC_VIEW(rope, ROPE, int16_t[SC_HEAD_DIM * SC_ROPE_TABLES], SC_CHUNK);
#else
SC_VIEW(rope, ROPE, int16_t[SC_HEAD_DIM], SC_CHUNK);
#endif
SC_VIEW(q8, Q8, int8_t[SC_HEADS * SC_HDP], SC_CHUNK);
SC_VIEW(q_scale, Q_SCALE, uint32_t[SC_HEADS], SC_CHUNK);
SC_VIEW(value_scales, VALUE_SCALES, uint16_t[SC_KV_HEADS], SC_LAYERS);
SC_VIEW(pass_scales, PASS_SCALES, uint16_t[SC_KV_HEADS], SC_CHUNK);

/* Per core. */
SC_VIEW(tops, TOPS, sc_top[SC_CORES], SC_VERIFIED); /* for each token of a pass */
SC_VIEW(scratch, HEAD_SCRATCH, sc_head_scratch, SC_HEAD_CORES_OF_SEVERAL);
#ifdef SC_KV_STREAMED
SC_VIEW(state, HEAD_STATE, sc_head_state,
        SC_KV_STREAMED *SC_HEADS); /* of all heads that attend at the same time */
#elif defined(SC_AT_HEAD_STATE)
SC_VIEW(state, HEAD_STATE, sc_head_state, SC_HEAD_CORES); /* more if cores share heads */
#else
static sc_head_state *const state = 0;
#endif
SC_VIEW(work, HEAD_WORK, int32_t[SC_HEAD_DIM], SC_HEAD_CORES_OF_SEVERAL);

#if SC_KV_IN_L1
/* KV cache of all layers. */
#ifdef SC_WINDOW
SC_VIEW(k_cache, K_CACHE, uint8_t[SC_K_BLOCK], SC_ALL_BLOCKS);
SC_VIEW(v_cache, V_CACHE, uint8_t[SC_V_BLOCK], SC_ALL_BLOCKS);
#else
SC_VIEW(k_cache, K_CACHE, uint8_t[SC_KV_BLOCKS * SC_K_BLOCK], SC_LAYERS);
SC_VIEW(v_cache, V_CACHE, uint8_t[SC_KV_BLOCKS * SC_V_BLOCK], SC_LAYERS);
#endif
#elif SC_KV_WINDOW > 0
/* KV cache of one layer, or two buffers for parts of it. */
SC_VIEW(kv_layer, KV_LAYER, uint8_t[SC_KV_WINDOW * (SC_K_BLOCK + SC_V_BLOCK)], 1);
#if SC_KV_WINDOW < SC_LONGEST_BLOCKS
SC_VIEW(kv_tile, KV_LAYER, uint8_t[SC_KV_TILE_BYTES], 2);
#endif
#else
SC_VIEW(kv_tile, KV_TILE, uint8_t[SC_KV_TILE_BYTES], 2);
#endif
#if SC_LOGITS_IN_L1
_Static_assert(4 * SC_VOCAB * SC_LOGIT_TOKENS <= SC_BYTES_LOGITS, "planned bytes of sc_logits");
#endif

#endif
