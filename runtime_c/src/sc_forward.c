/* SPDX-License-Identifier: Apache-2.0
 * One forward pass over a chunk of tokens: all workers run this and, where SC_TEAM has it, the controller,
 * a barrier between phases. */
#include "sc_platform.h"

#include "sc_buffers.h"
#include "sc_heads.h"
#include "sc_inputs.h"
#include "sc_multiply.h"
#include "sc_shares.h"

SC_L1 sc_step sc_now;
SC_L1 uint8_t sc_arena[SC_ARENA_BYTES] __attribute__((aligned(16)));
#if !SC_LOGITS_IN_L1
SC_L2 int32_t sc_logits[SC_VOCAB];
#endif
#if SC_ALL_LOGITS
int32_t sc_all_logits[SC_CHUNK][SC_VOCAB];
#endif

#if SC_STAGE_BYTES > 0
static SC_L2 uint8_t embed_stage[SC_EMBED_STAGE] __attribute__((aligned(4)));
#endif

/* The planner's sizes of C structures are checked against the compiler's. */
_Static_assert(sizeof(sc_head_scratch) == SC_HEAD_SCRATCH_BYTES, "planned size of sc_head_scratch");
_Static_assert(sizeof(sc_head_state) == SC_HEAD_STATE_BYTES, "planned size of sc_head_state");
_Static_assert(sizeof(sc_qvec) <= SC_QVEC_BYTES, "planned size of sc_qvec");
_Static_assert(sizeof(void *) != 8 || sizeof(sc_qvec) == SC_QVEC_BYTES, "no more is planned than needed");
_Static_assert(sizeof(sc_part) == SC_PART_BYTES, "planned size of sc_part");
_Static_assert(sizeof(sc_top) == SC_TOP_BYTES, "planned size of sc_top");
_Static_assert(SC_K_BLOCK == SC_K_BLOCK_BYTES, "planned size of 4 positions' keys");
_Static_assert(SC_V_BLOCK == SC_V_BLOCK_BYTES, "planned size of 4 positions' values");
_Static_assert(sizeof(void *) != 4 || SC_LAYER_STEPS * sizeof(sc_layer_step) <= 512,
               "more steps than there is room for in the runtime's own L1");
_Static_assert(SC_CORES <= SC_PLANNED_CORES, "cores the plan has buffers for");

SC_PHASE static void embed(int core) {
    const sc_matrix *m = &sc_embedding;
    for (uint32_t t = 0; t < sc_now.tokens; t++) {
        const uint32_t id = sc_now.ids[t];
        const sc_place at = sc_place_of(m, id / SC_ROWS);
        const uint8_t *block = SC_BLOB(at.level) + at.offset;
#ifdef SC_HAS_ENGINES
        if (m->engine != SC_ON_CORES) {
            sc_engine_of(m)->row(m, in_place(m), id, SC_HIDDEN, SC_EMBED_FACTOR, SC_EMBED_SHIFT, x[t], core,
                                 SC_CORES);
            continue;
        }
#endif
#if SC_STAGE_BYTES > 0
        if (at.level == SC_IN_FLASH) {
            block = embed_stage;
            if (core == 0) {
                sc_flash_start(embed_stage, at.offset, m->block_bytes);
                sc_flash_wait(0);
            }
            sc_barrier();
        }
#endif
        sc_embed_row(m, block, id % SC_ROWS, SC_HIDDEN, SC_EMBED_FACTOR, SC_EMBED_SHIFT, x[t], core,
                     SC_CORES);
#if SC_STAGE_BYTES > 0
        if (at.level == SC_IN_FLASH) sc_barrier();
#endif
    }
}

#if !SC_KV_IN_L1
static SC_L1 sc_dma kv_dma[2];

static inline uint32_t kv_blocks(uint32_t positions) {
    return (positions + SC_KV_POSITIONS - 1) / SC_KV_POSITIONS;
}

/* Whether this pass has a layer's cache in L1. */
static inline int kv_whole(void) {
    return SC_KV_WINDOW >= SC_KV_BLOCKS || kv_blocks(sc_now.position + sc_now.tokens) <= SC_KV_WINDOW;
}
#endif

#if SC_KV_WINDOW > 0

/* The cache of the layer at hand is in L1: keys, and values behind them.  The next layer's is on its way from the
 * last tile of gate and up on, which is when the fewest weights are: what is asked for later comes later.  The
 * core that has tiles copied starts and awaits it; what attention adds, SC_KEEPER. */
static SC_L1 uint32_t kv_next; /* the layer */
#define KEYS(layer) (kv_whole() ? kv_layer[0] : sc_cache_keys(layer))
#define VALUES_OF(layer) (kv_whole() ? kv_layer[0] + SC_KV_WINDOW * SC_K_BLOCK : sc_cache_values(layer))

/* Blocks that hold positions before this pass's. */
SC_PHASE static void kv_load(uint32_t layer) {
    if (layer >= SC_LAYERS || !kv_whole()) return;
    sc_cache_await(layer);
    const uint32_t blocks = kv_blocks(sc_now.position);
    if (!blocks) return;
    kv_dma[0] = sc_dma_in(KEYS(layer), sc_cache_keys(layer), blocks * SC_K_BLOCK);
    kv_dma[1] = sc_dma_in(VALUES_OF(layer), sc_cache_values(layer), blocks * SC_V_BLOCK);
}

/* Those that this pass's positions are in. */
static void kv_store(uint32_t layer) {
    const uint32_t first = sc_now.position / SC_KV_POSITIONS;
    const uint32_t blocks = (sc_now.position + sc_now.tokens - 1) / SC_KV_POSITIONS + 1 - first;
    kv_dma[0] = sc_dma_out(sc_cache_keys(layer) + first * SC_K_BLOCK, KEYS(layer) + first * SC_K_BLOCK,
                           blocks * SC_K_BLOCK);
    kv_dma[1] = sc_dma_out(sc_cache_values(layer) + first * SC_V_BLOCK, VALUES_OF(layer) + first * SC_V_BLOCK,
                           blocks * SC_V_BLOCK);
}

SC_PHASE static void kv_wait(void) {
    sc_dma_wait(kv_dma[0]);
    sc_dma_wait(kv_dma[1]);
}

#else
#if SC_KV_IN_L1
#define KEYS(layer) k_cache[layer]
#define VALUES_OF(layer) v_cache[layer]
#else
#define KEYS(layer) sc_cache_keys(layer)
#define VALUES_OF(layer) sc_cache_values(layer)
#endif
#endif

/* Who moves what attention adds to a cache. */
#define SC_KEEPER (SC_TEAM - 1)

/* With the matrix that gate and up are, what the next layer reads first. */
static inline void set_out(const sc_output *out, int core) {
    if (out->kind != SC_SILU || core != SC_LAST_CORE(SC_CORES)) return;
#ifdef SC_AT_GAIN
    if (gain_next < 2 * SC_LAYERS || sc_now.want != SC_NO_LOGITS) gain_load();
#endif
#if SC_KV_WINDOW > 0
    kv_load(kv_next);
#endif
}

/* All rows of a matrix, tile by tile as the stream delivers them. */
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
        set_out(out, core);
        sc_engine_of(m)->end(m, in_place(m), in, tokens, out, core);
        return;
    }
#endif
#if SC_RANK > 0
    if (m->b) { /* y += b @ quantise(a @ x): a is streamed just before its matrix */
        const uint32_t first = sc_now.tokens - tokens;
        const sc_output side = {.kind = SC_STORE,
                                .dst = sy[first],
                                .stride = SC_RANK,
                                .gate_shift = 0,
                                .silu_shift = 0,
                                .up_shift = 0};
        linear(m - 1, in, tokens, &side, core);
        quantize(m->b, sy[0], SC_RANK, 0, 0, first, sq[0], sv, core);
    }
#endif
    for (uint32_t first = 0; first < m->blocks; first += m->tile_blocks) {
        const uint8_t *tile = sc_stream_tile(core);
        uint32_t n = (uint32_t)sc_min(m->blocks - (int32_t)first, m->tile_blocks);
        if (first + n == m->blocks) set_out(out, core);
        if (first == 0) multiply_first(m, in, tokens, core);
        multiply(m, tile, first, n, in, tokens, out, core);
    }
}

/* What a step reads, of the first token. */
static inline int32_t *source(const sc_layer_step *s) { return SC_BUFFER(int32_t *, s->src); }

/* The first token of the pass that a step is for. */
static inline uint32_t first_of(const sc_layer_step *s, uint32_t layer) {
    const uint32_t first = sc_first_wanted(layer);
    return __builtin_expect(first > 0, 0) && s->slot == SC_QKV ? 0 : first;
}

/* The input of a layer's matrix: with a gain RMSNorm's, and of one token at once where it can be. */
SC_INLINE void quantize_step(const sc_layer_step *s, uint32_t layer, const int32_t *gain, int core) {
    const sc_layer *l = &sc_layers[layer];
    const sc_matrix *m = l->m[s->slot];
#if SC_Q16
    if (__builtin_expect(one_token(m, SC_PERM(l->perm[s->slot])), 1)) {
        quantize_token(m, source(s), gain, core);
        return;
    }
#endif
    quantize(m, source(s), s->src_stride, gain, SC_PERM(l->perm[s->slot]), first_of(s, layer), xq[0], xv,
             core);
}

SC_PHASE void sc_step_norm(const sc_layer_step *s, uint32_t layer, int core) {
    quantize_step(s, layer, gain_of(2 * layer + s->how, core), core);
}

SC_PHASE void sc_step_quant(const sc_layer_step *s, uint32_t layer, int core) {
    quantize_step(s, layer, 0, core);
}

SC_PHASE void sc_step_linear(const sc_layer_step *s, uint32_t layer, int core) {
    const sc_layer *l = &sc_layers[layer];
    const uint32_t first = first_of(s, layer);
    sc_output out = {.kind = s->how, .stride = s->dst_stride};
    out.dst = SC_BUFFER(int32_t *, s->dst);
    if (__builtin_expect(first > 0, 0)) out.dst += first * s->dst_stride;
    out.gate_shift = l->gate_shift, out.silu_shift = l->silu_shift, out.up_shift = l->up_shift;
#ifdef SC_HAS_BIAS
    out.bias = l->bias[s->slot];
#endif
    linear(l->m[s->slot], xv + first, sc_now.tokens - first, &out, core);
}

SC_PHASE void sc_step_heads(const sc_layer_step *s, uint32_t layer, int core) {
#if !SC_KV_IN_L1
    if (core == SC_LAST_CORE(SC_CORES)) {
        if (!kv_whole()) sc_cache_await(layer);
#if SC_KV_WINDOW > 0
        else if (sc_now.position > 0)
            kv_wait();
#endif
    }
#endif
    sc_meet();
#ifdef SC_AT_GAIN
    if (core == SC_LAST_CORE(SC_CORES) && !sc_only_caches(layer)) gain_load();
#endif
    const int cores = sc_head_cores(sc_now.tokens);
    if (core >= cores) return;
    sc_heads h = {.layer = &sc_layers[layer], .k = KEYS(layer), .v = VALUES_OF(layer), .work = work[core]};
    for (uint32_t t = 0, head = (uint32_t)core; t < sc_now.tokens; t++) {
        h.position = sc_now.position + t;
        h.q8 = q8[t], h.q_scale = q_scale[t];
        h.qkv = source(s) + t * s->src_stride, h.rope = rope[t];
        head = (uint32_t)heads_prepare(&h, (int)head, cores);
    }
}

#if SC_KV_IN_L1 || SC_KV_WINDOW > 0

/* Of the cores that take heads. */
static inline void heads_meet(void) {
    if (SC_HEAD_CORES > SC_CORES)
        sc_meet();
    else
        sc_barrier();
}

SC_PHASE static void attend_shared(const sc_heads *h, int core) {
    shares_scores(h, state, core);
    heads_meet();
    shares_values(h, state, core);
    heads_meet();
    shares_finish(h, state, core);
}

static inline void attend_whole(const sc_layer_step *s, uint32_t index, int core) {
    sc_meet();
#if !SC_KV_IN_L1
    if (core == SC_KEEPER) kv_store(index);
#endif
    sc_heads h = {
        .layer = &sc_layers[index], .k = KEYS(index), .v = VALUES_OF(index), .scratch = &scratch[core]};
    const uint32_t first = sc_first_wanted(index);
    const int cores = sc_head_cores(sc_now.tokens - first);
    for (uint32_t t = first, head = (uint32_t)core; core < cores && t < sc_now.tokens; t++) {
        h.position = sc_now.position + t;
        h.q8 = q8[t], h.q_scale = q_scale[t];
        h.out = SC_BUFFER(int32_t *, s->dst) + t * s->dst_stride;
        const int shared = sc_now.tokens - first == 1 && heads_shared(h.position);
        head = (uint32_t)heads_attend(&h, (int)head, cores, SC_HEADS - (shared ? SC_SHARED_HEADS : 0));
        if (shared) attend_shared(&h, core);
    }
#if !SC_KV_IN_L1
    if (core == SC_KEEPER) {
        kv_wait();
        sc_cache_swap(index);
        kv_next = index + 1;
    }
#endif
}

#endif

#if !SC_KV_IN_L1 && SC_KV_WINDOW < SC_KV_BLOCKS

/* What a core does with one piece of the cache: positions first .. first + blocks * 4. */
enum kv_pass { PASS_SCORES, PASS_WEIGH, PASS_VALUES };

static void head_begin(const sc_layer *layer, uint32_t item, int core) {
    const uint32_t t = item / SC_HEADS;
    sc_head_begin(&state[core], layer, q_scale[t][item - t * SC_HEADS]);
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

static void head_store(const sc_layer *layer, const sc_layer_step *s, uint32_t item, int core) {
    uint32_t t = item / SC_HEADS;
    sc_head_finish(&state[core],
                   SC_BUFFER(int32_t *, s->dst) + t * s->dst_stride + (item - t * SC_HEADS) * SC_HEAD_DIM,
                   layer);
}

/* The n-th piece of a round: K pieces for scores, K pieces for the scales in them, V pieces. */
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

/* Heads are taken SC_CORES at a time; for each round the cache passes through two L1 buffers. */
SC_PHASE static void attend_in_pieces(const sc_layer_step *s, uint32_t index, int core) {
    const sc_layer *layer = &sc_layers[index];
    const uint32_t items = sc_now.tokens * SC_HEADS;
    const uint32_t blocks = kv_blocks(sc_now.position + sc_now.tokens);
    const uint32_t pieces = (blocks + SC_KV_TILE_BLOCKS - 1) / SC_KV_TILE_BLOCKS;
    if (SC_TEAM > SC_CORES || sc_only_caches(index)) sc_meet();
    if (!sc_is_worker(core)) return;
    for (uint32_t round = sc_first_wanted(index) * SC_HEADS; round < items; round += SC_CORES) {
        const uint32_t item = round + (uint32_t)core;
        sc_barrier(); /* the cache is written, the tiles of the last round are read */
        if (core == 0) kv_load_piece(index, 0, pieces, blocks);
        if (item < items) head_begin(layer, item, core);
        for (uint32_t n = 0; n < 3 * pieces; n++) {
            if (core == 0) sc_dma_wait(kv_dma[0]);
            sc_barrier();
            if (core == 0 && n + 1 < 3 * pieces) kv_load_piece(index, n + 1, pieces, blocks);
            if (item >= items) continue;
            uint32_t pass = n / pieces;
            head_pass((enum kv_pass)pass, item, kv_tile[n & 1],
                      n % pieces * SC_KV_TILE_BLOCKS * SC_KV_POSITIONS, SC_KV_TILE_BLOCKS * SC_KV_POSITIONS,
                      core);
        }
        if (item < items) head_store(layer, s, item, core);
    }
    if (core == SC_LAST_CORE(SC_CORES)) sc_cache_swap(index);
}

#endif

SC_PHASE void sc_step_attention(const sc_layer_step *s, uint32_t index, int core) {
#if SC_KV_IN_L1 || SC_KV_WINDOW >= SC_KV_BLOCKS
    attend_whole(s, index, core);
#elif SC_KV_WINDOW == 0
    attend_in_pieces(s, index, core);
#else
    if (kv_whole())
        attend_whole(s, index, core);
    else
        attend_in_pieces(s, index, core);
#endif
}

SC_PHASE static void transformer_layer(uint32_t index, int core) {
    const sc_layer_step *s = sc_layer_steps;
    const enum sc_op last = sc_only_caches(index) ? SC_LAYER_CACHED : SC_LAYER_LAST;
    for (enum sc_op op = SC_LAYER_FIRST; op <= last; op++, s++) {
        s->run(s, index, core);
        sc_op_done(op, index, core);
    }
}

/* Between rows of some tokens' logits and those that take their place. */
static void compare(const sc_window w, int core) {
    sc_barrier();
    for (uint32_t i = 0; i < w.tokens; i++) sc_compare(i, sc_logits + i * w.stride, w.row, w.rows, core);
    if (core == 0) sc_now.window = w;
    sc_op_done(SC_OP_LOGITS, SC_LAYERS, core);
    sc_barrier();
}

/* The largest logit of every token of the chunk, in one pass over the head: as many rows at a time as sc_logits
 * has room for.  Not among the hot code: it is walked through once a pass, and few passes need it. */
static __attribute__((noinline)) void choices(const sc_matrix *m, int core) {
    const uint32_t tokens = sc_now.tokens;
    sc_output out = {.kind = SC_STORE, .dst = sc_logits};
#ifdef SC_HAS_ENGINES
    if (sc_on_engine(m)) { /* it gives all rows of all tokens */
        out.stride = SC_VOCAB;
        linear(m, xv, tokens, &out, core);
        compare((sc_window){tokens, 0, SC_VOCAB, SC_VOCAB}, core);
        return;
    }
#endif
    const uint32_t room = SC_VOCAB / (SC_ROWS * tokens),
                   most = room < SC_CORES ? room : room - room % SC_CORES;
    for (uint32_t first = 0; first < m->blocks; first += m->tile_blocks) {
        const uint8_t *tile = sc_stream_tile(core);
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
}

/* The first token that the head is for. */
static inline uint32_t first_of_head(void) {
#if SC_ALL_LOGITS
    if (sc_now.trace & SC_TRACE_LOGITS) return 0;
#endif
    return sc_now.want == SC_CHOICES ? 0 : sc_now.tokens - 1;
}

SC_PHASE static void head(int core) {
    const sc_matrix *m = &sc_matrices[SC_MATRICES - 1];
    const uint32_t first = first_of_head();
    const int32_t *const gains = gain_of(2 * SC_LAYERS, core);
    sc_output out = {.kind = SC_STORE, .dst = sc_logits};
#if SC_ALL_LOGITS
    if (sc_now.trace & SC_TRACE_LOGITS) out.dst = sc_all_logits[0], out.stride = SC_VOCAB;
#endif
#if SC_Q16
    if (one_token(m, SC_PERM(sc_head_perm)))
        quantize_token(m, x[0], gains, core);
    else
#endif
        quantize(m, x[0], SC_HIDDEN, gains, SC_PERM(sc_head_perm), first, xq[0], xv, core);
    sc_op_done(SC_OP_FINAL, SC_LAYERS, core);
    if (sc_now.want == SC_CHOICES) {
        choices(m, core);
        return;
    }
    if (core == 0) sc_now.window = (sc_window){1, 0, SC_VOCAB, SC_VOCAB};
    linear(m, xv + first, sc_now.tokens - first, &out, core);
    sc_op_done(SC_OP_LOGITS, SC_LAYERS, core);
}

#if SC_TEAM > SC_CORES
/* Whether it has heads of one token, or a cache to move. */
#define SC_ATTENDS_ONE (SC_HEAD_CORES > SC_CORES || !SC_KV_IN_L1)

/* The controller's part in a step of a layer: it is called for those that give vectors, and has none in what a step
 * does with tiles, nor in one of another kind, which begins with a meeting of the team.  In few lines of code: with two
 * comparisons more a step of a small model took 1 % longer. */
static inline void accompany_step(const sc_layer_step *s, uint32_t index) {
    const sc_layer *const l = &sc_layers[index];
    const sc_matrix *const m = l->m[s->slot];
    const int vector = s->form == SC_VECTOR;
    if (s->run == sc_step_linear) {
        const uint32_t first = first_of(s, index);
        attend(m, sc_now.tokens - first);
#if SC_RANK > 0
        if (m->b) quantize(m->b, sy[0], SC_RANK, 0, 0, first, sq[0], sv, SC_CORES);
#endif
    } else if (vector && IS_AWAITED(m, SC_PERM(l->perm[s->slot]))) {
        await_token(m);
    } else if (vector || ((s->run == sc_step_heads || s->run == sc_step_attention) &&
                          (SC_ATTENDS_ONE || sc_now.tokens > 1))) {
        s->run(s, index, SC_CORES);
    } else {
        sc_meet();
    }
}

/* A pass as the controller has it.  Of one token all of it has room in the controller's own instruction cache but for
 * attention: what it asks the shared one for, the workers wait for. */
SC_HOT static void accompany(void) {
    for (uint32_t l = 0; l < SC_LAYERS; l++) {
        const sc_layer_step *s = sc_layer_steps;
        const enum sc_op last = sc_only_caches(l) ? SC_LAYER_CACHED : SC_LAYER_LAST;
        for (enum sc_op op = SC_LAYER_FIRST; op <= last; op++, s++) {
            accompany_step(s, l);
            sc_op_done(op, l, SC_CORES);
        }
    }
    if (sc_now.want == SC_NO_LOGITS) return;
    const sc_matrix *const m = &sc_matrices[SC_MATRICES - 1];
    const uint32_t first = first_of_head();
    if (IS_AWAITED(m, SC_PERM(sc_head_perm)))
        await_token(m);
    else
        quantize(m, x[0], SC_HIDDEN, gain_of(2 * SC_LAYERS, SC_CORES), SC_PERM(sc_head_perm), first, xq[0],
                 xv, SC_CORES);
    attend(m, sc_now.tokens - first);
}
#endif

void sc_start(void *unused, int core) {
    (void)unused;
    if (core == 0) {
        for (uint32_t t = 0; t < SC_CHUNK; t++) {
#if SC_XSUMS
            int32_t *sum = xsum[t];
#else
            int32_t *sum = 0;
#endif
#if SC_XSEGS > 0
            int32_t *c = xc[t];
#else
            int32_t *c = 0;
#endif
            xv[t] = (sc_qvec){xq[t], c, sum, 0, 0};
#if SC_RANK > 0
            sv[t] = (sc_qvec){sq[t], 0, 0, 0, 0};
#endif
        }
    }
#ifdef SC_HAS_ENGINES
    if (core != SC_LAST_CORE(SC_CORES)) return;
    for (const sc_matrix *m = sc_matrices; m < sc_matrices + SC_MATRICES; m++)
        if (sc_on_engine(m) && sc_engine_of(m)->start) sc_engine_of(m)->start(m, in_place(m), xq[0]);
#endif
}

/* What comes before the first layer. */
static inline void before(int core) {
    sc_profile_start(core);
#if SC_ROPE_IN_FLASH
    if (core == 0) sc_load_rope();
    sc_barrier(); /* before another core asks flash for weights */
#endif
    if (core == SC_LAST_CORE(SC_CORES)) {
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
    embed(core);
    sc_op_done(SC_OP_EMBED, SC_LAYERS, core);
#if SC_TILE_BYTES > 0
    if (core == SC_LAST_CORE(SC_CORES)) sc_stream_begin();
#endif
}

SC_HOT void sc_forward(void *unused, int core) {
    (void)unused;
#if SC_TEAM > SC_CORES
    if (core == SC_CORES) {
        accompany();
        return;
    }
#endif
    before(core);
    for (uint32_t l = 0; l < SC_LAYERS; l++) transformer_layer(l, core);
    if (sc_now.want != SC_NO_LOGITS) head(core);
}
