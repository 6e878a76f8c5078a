/* SPDX-License-Identifier: Apache-2.0
 * The steps that forward.c calls: embedding, steps of a layer, LM head. All workers run them and, if it is in
 * the team, the controller some. Activations are in L1. Only for forward.c. */
#ifndef SC_FORWARD_H
#define SC_FORWARD_H

#include "sc_multiply.h"
#include "sc_prefetch.h"

#include "sc_attend.h"

SC_L1 sc_step sc_now;
SC_L1_ARENA(sc_arena, SC_ARENA_BYTES);
#if !SC_LOGITS_IN_L1
SC_L2 int32_t sc_logits[SC_VOCAB];
#endif
#if SC_ALL_LOGITS
int32_t sc_all_logits[SC_CHUNK][SC_VOCAB];
#endif

#if SC_STAGE_BYTES > 0
static SC_L2 uint8_t embed_stage[SC_EMBED_STAGE] __attribute__((aligned(4)));
#endif

/* The planner's sizes of C structures must equal the compiler's. */
_Static_assert(sizeof(sc_head_scratch) == SC_HEAD_SCRATCH_BYTES, "planned size of sc_head_scratch");
_Static_assert(sizeof(sc_head_state) == SC_HEAD_STATE_BYTES, "planned size of sc_head_state");
_Static_assert(sizeof(sc_qvec) <= SC_QVEC_BYTES, "planned size of sc_qvec");
_Static_assert(sizeof(void *) != 8 || sizeof(sc_qvec) == SC_QVEC_BYTES, "no more is planned than needed");
_Static_assert(sizeof(sc_part) == SC_PART_BYTES, "planned size of sc_part");
_Static_assert(sizeof(sc_top) == SC_TOP_BYTES, "planned size of sc_top");
_Static_assert(SC_K_BLOCK == SC_K_BLOCK_BYTES, "planned size of 4 positions' keys");
_Static_assert(SC_V_BLOCK == SC_V_BLOCK_BYTES, "planned size of 4 positions' values");
_Static_assert(SC_CORES <= SC_PLANNED_CORES, "cores the plan has buffers for");

SC_PHASE static void embed(int core) {
    const sc_matrix *m = &sc_embedding;
    for (uint32_t t = 0; t < sc_now.tokens; t++) {
        const uint32_t id = sc_now.ids[t];
#if SC_EMBED_ON_ENGINE /* one core per token; the cores share the remaining tokens */
        const int alone = t < sc_now.tokens - sc_now.tokens % SC_CORES;
        if (alone && t % SC_CORES != (uint32_t)core) continue;
        sc_engine_row(m, in_place(m), id, SC_HIDDEN, SC_EMBED_FACTOR, SC_EMBED_SHIFT, x[t], alone ? 0 : core,
                      alone ? 1 : SC_CORES);
#else
        const sc_place at = sc_place_of(m, id / SC_ROWS);
        const uint8_t *block = SC_BLOB(at.level) + at.offset;
#if SC_STAGE_BYTES > 0
        if (at.level == SC_IN_FLASH) {
            block = embed_stage;
            if (core == 0) {
                sc_flash_start(embed_stage, at.offset, m->block_bytes);
                sc_flash_wait(0);
            }
            sc_worker_barrier();
        }
#endif
        sc_embed_row(m, block, id % SC_ROWS, SC_HIDDEN, SC_EMBED_FACTOR, SC_EMBED_SHIFT, x[t], core,
                     SC_CORES);
#if SC_STAGE_BYTES > 0
        if (at.level == SC_IN_FLASH) sc_worker_barrier();
#endif
#endif
    }
}

/* The next tile of a matrix; if the cores read weights in place, all of it. */
static inline const uint8_t *weights_of(const sc_matrix *m, int core) {
#if SC_TILE_BYTES > 0
    (void)m;
    return sc_stream_tile(core);
#else
    (void)core;
    sc_worker_barrier(); /* its input is ready */
    return in_place(m);
#endif
}

/* All rows of a matrix: on its engine, or by the cores. */
#if SC_RANK > 0
SC_PHASE static
#else
static inline
    __attribute__((always_inline))
#endif
    void
    linear(const sc_matrix *m, const sc_qvec *in, uint32_t tokens, const sc_output *out, int core) {
#ifdef SC_HAS_ENGINES
    if (sc_on_engine(m)) {
        if (out->kind == SC_SILU) prefetch_with_matrix(SC_GU, core);
        sc_engine_end(m, in_place(m), in, tokens, out, core);
        return;
    }
#endif
#if SC_RANK > 0
    if (m->adapter) { /* y += b @ quantise(a @ x): a comes just before its matrix in the stream */
        const uint32_t first = sc_now.tokens - tokens;
        const sc_output adapter = {.kind = SC_STORE,
                                   .dst = sy[first],
                                   .stride = SC_RANK,
                                   .gate_shift = 0,
                                   .silu_shift = 0,
                                   .up_shift = 0};
        linear(m - 1, in, tokens, &adapter, core);
        quantize(m->adapter, sy[0], SC_RANK, 0, first, sq[0], sv, core);
    }
#endif
#if !SC_ENGINES_ALONE
    for (uint32_t first = 0; first < m->blocks; first += m->tile_blocks) {
        const uint8_t *tile = weights_of(m, core);
        uint32_t n = (uint32_t)sc_min(m->blocks - (int32_t)first, m->tile_blocks);
        if (out->kind == SC_SILU && first + n == m->blocks) prefetch_with_matrix(SC_GU, core);
        if (first == 0) multiply_first(m, in, tokens, core);
        multiply(m, tile, first, n, in, tokens, out, core);
    }
#endif
}

/* int32 values in buffer NAME of the L1 arena. */
#define WORDS(NAME) SC_BUFFER(int32_t *, SC_AT_##NAME)

SC_PHASE static void quantize_any(enum sc_slot slot, const int32_t *src, uint32_t stride, const int32_t *gain,
                                  uint32_t layer, int core) {
    const sc_matrix *const m = sc_layers[layer].m[slot];
    const uint32_t first = sc_first_of(slot, layer);
    int8_t *const to = SC_BUFFER(int8_t *, sc_vectors_at(m, sc_now.tokens - first));
    quantize(m, src, stride, gain, first, to, xv, core);
}

/* src, `stride` words per token -> xv: quantised input of a layer's matrix. gain: norm_weights_of() for RMSNorm
 * first, or NULL. */
SC_PHASE static void sc_step_quantize(enum sc_slot slot, const int32_t *src, uint32_t stride,
                                      const int32_t *gain, uint32_t layer, int core) {
#if SC_Q16
    const sc_matrix *m = sc_layers[layer].m[slot];
    if (__builtin_expect(one_token(m), 1)) {
        quantize_token(m, src, gain, core);
        return;
    }
#endif
    quantize_any(slot, src, stride, gain, layer, core);
}

/* xv -> dst: the product of a layer's matrix and the quantised vectors. */
SC_PHASE static void sc_step_linear(enum sc_slot slot, enum sc_epilogue how, int32_t *dst, uint32_t stride,
                                    uint32_t layer, int core) {
    const sc_layer *l = &sc_layers[layer];
    const uint32_t first = sc_first_of(slot, layer);
    if (SC_IN_PLACE && sc_is_worker(SC_PREFETCH_CORE) && slot == SC_QKV) prefetch_with_matrix(SC_QKV, core);
    sc_output out = {.kind = (uint8_t)how, .stride = stride};
    out.dst = dst;
    if (__builtin_expect(first > 0, 0)) out.dst += first * stride;
    out.gate_shift = l->gate_shift, out.silu_shift = l->silu_shift, out.up_shift = l->up_shift;
#ifdef SC_HAS_BIAS
    out.bias = l->bias[slot];
#endif
    linear(l->m[slot], xv + first, sc_now.tokens - first, &out, core);
}

#ifdef SC_POST_NORMS
/* Sum of squares of values first, first + step, ... of y. */
static inline uint64_t squares_of(const int32_t *y, uint32_t first, uint32_t step) {
    uint64_t total = 0;
    for (uint32_t i = first; i < SC_HIDDEN; i += step) {
        const int32_t s = y[i] >> SC_POST_NORM_SHIFT;
        total += (uint64_t)((int64_t)s * s);
    }
    return total;
}

/* Adds values first, first + step, ... of the RMSNorm of y to x: norm_values() of numerics/vectors.py. */
SC_PHASE static void add_normed(const sc_post_norm *n, const int32_t *y, uint64_t total, int32_t *x,
                                uint32_t first, uint32_t step) {
    int j;
    const uint32_t factor = sc_rsqrt(total, &j) * n->factor;
    const int up = sc_max(31 - SC_POST_NORM_SHIFT - ((sc_bits64(total) + 1) >> 1), 0);
    const int shift = up + SC_POST_NORM_SHIFT + j - n->exponent - 2;
    for (uint32_t i = first; i < SC_HIDDEN; i += step) {
        const int32_t z = sc_mulh((int32_t)((uint32_t)y[i] << up), n->gain[i]);
        x[i] = sc_add_to_residual(x[i], sc_requantize(z, factor, shift));
    }
}

/* dst += RMSNorm of src, a block's result. A core has whole tokens; it shares each of the remaining ones with
 * all others. */
SC_PHASE static void sc_step_norm_add(const int32_t *src, uint32_t src_stride, int32_t *dst,
                                      uint32_t dst_stride, uint32_t norm, uint32_t layer, int core) {
    const sc_post_norm *const n = &sc_post_norms[norm];
    uint64_t *const sums = SC_BUFFER(uint64_t *, SC_AT_PARTS);
    const uint32_t first = sc_first_wanted(layer), rest = (sc_now.tokens - first) % SC_CORES;
    uint32_t t = first + (uint32_t)core;
    sc_team_barrier();
    for (; t < sc_now.tokens - rest; t += SC_CORES) {
        const int32_t *const y = src + t * src_stride;
        add_normed(n, y, n->eps + squares_of(y, 0, 1), dst + t * dst_stride, 0, 1);
    }
    for (t = sc_now.tokens - rest; t < sc_now.tokens; t++) {
        const int32_t *const y = src + t * src_stride;
        sums[core] = squares_of(y, (uint32_t)core, SC_CORES);
        sc_worker_barrier();
        uint64_t total = n->eps;
        for (int c = 0; c < SC_CORES; c++) total += sums[c];
        add_normed(n, y, total, dst + t * dst_stride, (uint32_t)core, SC_CORES);
        if (t + 1 < sc_now.tokens) sc_worker_barrier(); /* all have read the sums */
    }
}
#endif

/* Compares a window of logits before the next window overwrites it. */
static void compare(const sc_window w, int core) {
    sc_worker_barrier();
    for (uint32_t i = 0; i < w.tokens; i++) sc_compare(i, sc_logits + i * w.stride, w.row, w.rows, core);
    if (core == 0) sc_now.window = w;
    sc_op_done(SC_OP_LOGITS, SC_LAYERS, core);
    sc_worker_barrier();
}

/* The largest logit of every token, in one pass over the LM head. Not hot: runs once per pass, and few passes
 * need it. */
static __attribute__((noinline)) void choices(const sc_matrix *m, int core) {
    const uint32_t tokens = sc_now.tokens;
    sc_output out = {.kind = SC_STORE, .dst = sc_logits};
#ifdef SC_HAS_ENGINES
    if (sc_on_engine(m)) { /* the engine computes all rows of all tokens at once */
        out.stride = SC_VOCAB;
        linear(m, xv, tokens, &out, core);
        compare((sc_window){tokens, 0, SC_VOCAB, SC_VOCAB}, core);
        return;
    }
#endif
#if !SC_ENGINES_ALONE /* as many rows at a time as sc_logits can hold */
    const uint32_t room = SC_VOCAB / (SC_ROWS * tokens),
                   most = room < SC_CORES ? room : room - room % SC_CORES;
    for (uint32_t first = 0; first < m->blocks; first += m->tile_blocks) {
        const uint8_t *tile = weights_of(m, core);
        const uint32_t end = (uint32_t)sc_min(m->blocks, (int32_t)first + m->tile_blocks);
        if (first == 0) multiply_first(m, xv, tokens, core);
        for (uint32_t at = first; at < end; at += most, tile += most * m->block_bytes) {
            const uint32_t blocks = end - at < most ? end - at : most, row = at * SC_ROWS;
            sc_matrix part = *m;
            part.rows = (uint32_t)sc_min((int32_t)(m->rows - row), (int32_t)(blocks * SC_ROWS));
            out.stride = blocks * SC_ROWS;
            multiply(&part, tile, 0, blocks, xv, tokens, &out, core);
            compare((sc_window){tokens, row, part.rows, out.stride}, core);
        }
    }
#endif
}

/* RMSNorm and LM head: X -> LOGITS. */
SC_PHASE static void lm_head(int core) {
    const sc_matrix *m = &sc_matrices[SC_MATRICES - 1];
    const uint32_t first = sc_first_of_head();
    const int32_t *const gains = norm_weights_of(2 * SC_LAYERS, core);
    sc_output out = {.kind = SC_STORE, .dst = sc_logits};
#if SC_ALL_LOGITS
    if (sc_now.trace & SC_TRACE_LOGITS) out.dst = sc_all_logits[0], out.stride = SC_VOCAB;
#endif
#if SC_Q16
    if (one_token(m))
        quantize_token(m, x[0], gains, core);
    else
#endif
        quantize(m, x[0], SC_HIDDEN, gains, first, xq[0], xv, core);
    sc_op_done(SC_OP_FINAL, SC_LAYERS, core);
    if (sc_now.want == SC_CHOICES) {
        choices(m, core);
        return;
    }
    if (core == 0) sc_now.window = (sc_window){1, 0, SC_VOCAB, SC_VOCAB};
    linear(m, xv + first, sc_now.tokens - first, &out, core);
    sc_op_done(SC_OP_LOGITS, SC_LAYERS, core);
}

void sc_start(void *unused, int core) {
    (void)unused;
    if (core == 0) {
        for (uint32_t l = 0; l < SC_LAYERS; l++)
            for (uint32_t kv = 0; kv < SC_KV_HEADS; kv++) value_scales[l][kv] = 0;
        for (uint32_t t = 0; t < SC_CHUNK; t++) {
            xv[t] = (sc_qvec){.q = xq[t]};
#if SC_XSUMS
            xv[t].sum = xsum[t];
#endif
#if SC_XGROUPS > 0
            xv[t].c = xc[t];
#endif
#if SC_RANK > 0
            sv[t] = (sc_qvec){sq[t], 0, 0, 0, 0};
#endif
        }
    }
#ifdef SC_HAS_ENGINES
    if (core != SC_LAST_CORE(SC_CORES)) return;
    for (const sc_matrix *m = sc_matrices; m < sc_matrices + SC_MATRICES; m++)
        if (sc_on_engine(m)) sc_engine_start(m, in_place(m), xq[0]);
#endif
}

/* Before the first layer: prefetches, and the rows of the embedding -> X. */
static inline void embedding(int core) {
    sc_profile_start(core);
#if SC_ROPE_IN_FLASH
    if (core == 0) sc_load_rope();
    sc_worker_barrier(); /* before another core requests weights from flash */
#endif
    if (core == SC_PREFETCH_CORE) prefetch_first();
    embed(core);
    sc_op_done(SC_OP_EMBED, SC_LAYERS, core);
#if SC_TILE_BYTES > 0
    if (core == SC_LAST_CORE(SC_CORES)) sc_stream_begin();
#endif
}

/* ---- the controller's part, overlapped with the workers, if it is in the team: engine control, prefetch, cache
 * transfers, hashes ---- */

#if SC_TEAM > SC_CORES
/* Controller's part of quantize_token(). The engine only waits for the values; RMSNorm of the scale is
 * computed during its first job. */
SC_PHASE static void await_token(const sc_matrix *m, int norm) {
    sc_team_barrier();
    if (sc_on_engine(m)) sc_engine_prepare(m, 1, norm);
    sc_team_barrier();
#ifdef SC_HAS_ENGINES
    if (!sc_on_engine(m)) return;
#if SC_Q16
    q16_pad(&m->in, xq[0], 4u * m->in.words);
    q16_scale(&m->in, q16_bits(parts[0]), norm, xv);
    if (SC_IN_PLACE) xv->q = xq[0];
    const uint64_t squares = norm ? q16_sum(parts[0], SC_NORM_EPS) : 0;
#endif
    sc_team_barrier();
    sc_engine_begin(m, 1);
#if SC_Q16
    if (norm) sc_q16_normed(squares, xv);
#endif
#endif
}

/* Controller's part of heads and attention of one token, if it processes no heads. Short code: see
 * controller_layers() in forward.c. */
static inline void await_heads(uint32_t layer) {
    sc_team_barrier();
    if (!sc_only_caches(layer)) prefetch_norm_weights(SC_CORES);
}
static inline void await_attention(uint32_t layer) {
    (void)layer;
    sc_team_barrier();
#if SC_KV_WINDOW > 0
    if (kv_whole(layer)) {
        kv_store(layer);
        kv_stored(layer);
    }
#endif
    if (__builtin_expect(sc_hashes_overlapped() && layer > 0, 0)) sc_hash_layer(layer - 1);
}

/* Controller's parts of a layer's steps. It runs steps that produce vectors; of matrices only what the engine
 * needs; of other steps only their first barrier. */
SC_PHASE static void controller_quantize(enum sc_slot slot, const int32_t *src, uint32_t stride,
                                         const int32_t *gain, uint32_t layer) {
    const sc_matrix *const m = sc_layers[layer].m[slot];
    if (__builtin_expect(one_token(m), 1))
        await_token(m, gain != 0);
    else
        quantize_any(slot, src, stride, gain, layer, SC_CORES);
}

SC_PHASE static void controller_matrix(enum sc_slot slot, uint32_t layer) {
    const sc_matrix *const m = sc_layers[layer].m[slot];
    const uint32_t first = sc_first_of(slot, layer);
    prefetch_with_matrix(slot, SC_CORES);
    if (sc_on_engine(m)) sc_engine_control(m, sc_now.tokens - first);
#if SC_RANK > 0
    if (m->adapter) quantize(m->adapter, sy[0], SC_RANK, 0, first, sq[0], sv, SC_CORES);
#endif
}

/* Whether the controller processes heads in this pass. */
static inline int helps_with_heads(void) {
    return SC_HEAD_CORES > SC_CORES || __builtin_expect(sc_now.tokens > 1, 0);
}

static inline void controller_heads(const int32_t *qkv, uint32_t stride, uint32_t layer) {
    if (!sc_is_worker(SC_PREFETCH_CORE)) await_cache(layer, SC_CORES);
    if (helps_with_heads())
        sc_step_heads(qkv, stride, layer, SC_CORES);
    else
        await_heads(layer);
}

static inline void controller_attention(int32_t *dst, uint32_t stride, uint32_t layer) {
    if (helps_with_heads())
        sc_step_attention(dst, stride, layer, SC_CORES);
    else
        await_attention(layer);
}

/* Controller's part of the LM head. */
static inline void controller_head(void) {
    const sc_matrix *const m = &sc_matrices[SC_MATRICES - 1];
    const uint32_t first = sc_first_of_head();
    const int32_t *const gain = norm_weights_of(2 * SC_LAYERS, SC_CORES);
    if (one_token(m))
        await_token(m, 1);
    else
        quantize(m, x[0], SC_HIDDEN, gain, first, xq[0], xv, SC_CORES);
    if (sc_on_engine(m)) sc_engine_control(m, sc_now.tokens - first);
}
#endif

#endif
