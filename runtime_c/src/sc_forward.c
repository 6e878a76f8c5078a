/* SPDX-License-Identifier: Apache-2.0
 * One forward pass over a chunk of tokens: every worker runs this, a barrier between phases. */
#include "sc_platform.h"

#include "sc_buffers.h"

SC_L1 sc_step sc_now;
SC_L1 uint8_t sc_arena[SC_ARENA_BYTES] __attribute__((aligned(16)));
#if !SC_LOGITS_IN_L1
SC_L2 int32_t sc_logits[SC_VOCAB];
#endif
#if SC_ALL_LOGITS
int32_t sc_all_logits[SC_CHUNK][SC_VOCAB];
#endif

#if SC_KV_IN_L1
#define k_cache SC_BUFFER(uint8_t(*)[SC_KV_BLOCKS * SC_K_BLOCK], SC_AT_K_CACHE)
#define v_cache SC_BUFFER(uint8_t(*)[SC_KV_BLOCKS * SC_V_BLOCK], SC_AT_V_CACHE)
#else
static SC_L2 uint8_t k_cache[SC_LAYERS][SC_KV_BLOCKS * SC_K_BLOCK] __attribute__((aligned(4)));
static SC_L2 uint8_t v_cache[SC_LAYERS][SC_KV_BLOCKS * SC_V_BLOCK] __attribute__((aligned(4)));
#define kv_tile SC_BUFFER(uint8_t(*)[SC_KV_TILE_BYTES], SC_AT_KV_TILE)
#endif
#if SC_STAGE_BYTES > 0
static SC_L2 uint8_t embed_stage[SC_EMBED_STAGE] __attribute__((aligned(4)));
#endif

/* The planner's sizes of C structures are checked against the compiler's. */
_Static_assert(sizeof(sc_head_scratch) == SC_HEAD_SCRATCH_BYTES, "planned size of sc_head_scratch");
_Static_assert(sizeof(sc_head_state) == SC_HEAD_STATE_BYTES, "planned size of sc_head_state");
_Static_assert(sizeof(sc_qvec) <= SC_QVEC_BYTES, "planned size of sc_qvec");
_Static_assert(sizeof(void *) != 8 || sizeof(sc_qvec) == SC_QVEC_BYTES, "no more is planned than needed");
_Static_assert(SC_CORES <= SC_PLANNED_CORES, "cores the plan has buffers for");

/* Phases are not inlined: called from several places, they must exist once in a 4 KiB cache. */
#define SC_PHASE SC_HOT

/* A permutation of inputs, in models that have any. */
#if SC_PERMS
#define SC_PERM(p) (p)
#else
#define SC_PERM(p) ((const uint16_t *)0)
#endif

SC_PHASE static void embed(int core) {
    const sc_matrix *m = &sc_embedding;
    for (uint32_t t = 0; t < sc_now.tokens; t++) {
        uint32_t id = sc_now.ids[t], offset = m->offset + id / SC_ROWS * m->block_bytes;
        const uint8_t *block = (m->level == SC_IN_WMEM ? sc_blob_wmem : sc_blob_l2) + offset;
#if SC_STAGE_BYTES > 0
        if (m->level == SC_IN_FLASH) {
            block = embed_stage;
            if (core == 0) {
                sc_flash_start(embed_stage, offset, m->block_bytes);
                sc_flash_wait();
            }
            sc_barrier();
        }
#endif
        sc_embed_row(m, block, id % SC_ROWS, SC_HIDDEN, SC_EMBED_FACTOR, SC_EMBED_SHIFT, x[t], core,
                     SC_CORES);
#if SC_STAGE_BYTES > 0
        if (m->level == SC_IN_FLASH) sc_barrier();
#endif
    }
}

/* src -> out: the int8 input of a matrix, for tokens first .. sc_now.tokens - 1; with gain through
 * RMSNorm. */
SC_PHASE static void quantize(const sc_matrix *m, const int32_t *src, uint32_t stride, const int16_t *gain,
                              const uint16_t *perm, uint32_t first, sc_qvec *out, int core) {
    const sc_cut *cut = &m->in;
    sc_barrier();
    for (uint32_t t = first; t < sc_now.tokens; t++)
        sc_vec_scan(cut, src + t * stride, y[t], gain, perm, SC_NORM_SHIFT, block_max[t], parts[t], core,
                    SC_CORES);
    sc_barrier();
    if (gain) src = y[0], stride = SC_Y_WORDS;
    for (uint32_t t = first; t < sc_now.tokens; t++)
        sc_vec_quantize(cut, src + t * stride, perm, block_max[t], parts[t], gain != 0, SC_NORM_EPS, &out[t],
                        core, SC_CORES);
#if SC_XSUMS
    if (m->format & SC_FMT_ASYM) {
        sc_barrier();
        for (uint32_t t = first; t < sc_now.tokens; t++) sc_vec_sums(cut, &out[t], core, SC_CORES);
    }
#endif
}

/* All rows of a matrix, tile by tile as the stream delivers them. */
SC_PHASE static void linear(const sc_matrix *m, const sc_qvec *in, uint32_t tokens, const sc_output *out,
                            int core) {
#if SC_RANK > 0
    if (m->b) { /* y += b @ quantise(a @ x): a is streamed just before its matrix */
        const sc_output side = {
            .kind = SC_STORE, .dst = sy[0], .stride = SC_RANK, .gate_shift = 0, .silu_shift = 0};
        linear(m - 1, in, tokens, &side, core);
        quantize(m->b, sy[0], SC_RANK, 0, 0, 0, sv, core);
    }
#endif
    for (uint32_t first = 0; first < m->blocks; first += m->tile_blocks) {
        const uint8_t *tile = sc_stream_tile(core);
        uint32_t n = (uint32_t)sc_min(m->blocks - (int32_t)first, m->tile_blocks);
        sc_matrix_tile(m, tile, first, n, in, sv, tokens, out, core, SC_CORES);
    }
}

SC_PHASE static void prepare_heads(uint32_t layer, int core) {
    sc_barrier();
    const uint32_t per_token = SC_HEADS + 2 * SC_KV_HEADS;
    for (uint32_t i = (uint32_t)core; i < sc_now.tokens * per_token; i += SC_CORES) {
        uint32_t t = i / per_token;
        sc_head_prepare(&sc_layers[layer], y[t], (int)(i - t * per_token), sc_now.position + t, rope[t],
                        q8[t], q_scale[t], k_cache[layer], v_cache[layer], work[core]);
    }
}

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

static void head_store(const sc_layer *layer, uint32_t item, int core) {
    uint32_t t = item / SC_HEADS;
    sc_head_finish(&state[core], y[t] + (item - t * SC_HEADS) * SC_HEAD_DIM, layer);
}

#if SC_KV_IN_L1

SC_PHASE static void attention(uint32_t index, int core) {
    const sc_layer *layer = &sc_layers[index];
    const uint32_t all = SC_KV_BLOCKS * SC_KV_POSITIONS;
    sc_barrier();
    for (uint32_t item = (uint32_t)core; item < sc_now.tokens * SC_HEADS; item += SC_CORES) {
        head_begin(layer, item, core);
        head_pass(PASS_SCORES, item, k_cache[index], 0, all, core);
        head_pass(PASS_WEIGH, item, k_cache[index], 0, all, core);
        head_pass(PASS_VALUES, item, v_cache[index], 0, all, core);
        head_store(layer, item, core);
    }
}

#else

/* The n-th piece of a round: K pieces for scores, K pieces for the scales in them, V pieces. */
static void kv_piece(uint32_t index, uint32_t n, uint32_t pieces, uint32_t blocks, const uint8_t **src,
                     uint32_t *bytes) {
    uint32_t at = n % pieces * SC_KV_TILE_BLOCKS;
    uint32_t left = blocks - at < SC_KV_TILE_BLOCKS ? blocks - at : SC_KV_TILE_BLOCKS;
    if (n < 2 * pieces) {
        *src = k_cache[index] + at * SC_K_BLOCK;
        *bytes = left * SC_K_BLOCK;
    } else {
        *src = v_cache[index] + at * SC_V_BLOCK;
        *bytes = left * SC_V_BLOCK;
    }
}

static SC_L1 sc_dma kv_dma;

static void kv_load(uint32_t index, uint32_t n, uint32_t pieces, uint32_t blocks) {
    const uint8_t *src;
    uint32_t bytes;
    kv_piece(index, n, pieces, blocks, &src, &bytes);
    kv_dma = sc_dma_in(kv_tile[n & 1], src, bytes);
}

/* Heads are taken SC_CORES at a time; for each round the cache passes through two L1 buffers. */
SC_PHASE static void attention(uint32_t index, int core) {
    const sc_layer *layer = &sc_layers[index];
    const uint32_t items = sc_now.tokens * SC_HEADS;
    const uint32_t blocks = (sc_now.position + sc_now.tokens + SC_KV_POSITIONS - 1) / SC_KV_POSITIONS;
    const uint32_t pieces = (blocks + SC_KV_TILE_BLOCKS - 1) / SC_KV_TILE_BLOCKS;
    for (uint32_t round = 0; round < items; round += SC_CORES) {
        const uint32_t item = round + (uint32_t)core;
        sc_barrier(); /* the cache is written, the tiles of the last round are read */
        if (core == 0) kv_load(index, 0, pieces, blocks);
        if (item < items) head_begin(layer, item, core);
        for (uint32_t n = 0; n < 3 * pieces; n++) {
            if (core == 0) sc_dma_wait(kv_dma);
            sc_barrier();
            if (core == 0 && n + 1 < 3 * pieces) kv_load(index, n + 1, pieces, blocks);
            if (item >= items) continue;
            uint32_t pass = n / pieces;
            head_pass((enum kv_pass)pass, item, kv_tile[n & 1],
                      n % pieces * SC_KV_TILE_BLOCKS * SC_KV_POSITIONS, SC_KV_TILE_BLOCKS * SC_KV_POSITIONS,
                      core);
        }
        if (item < items) head_store(layer, item, core);
    }
}

#endif

/* The steps of a layer, one per op.  `how` of a quantisation through RMSNorm: which of the layer's gains;
 * of a matrix: enum sc_epilogue.  Norms read the residual stream x and SC_ADD writes it, all else is in y. */
enum kind { NORMALISE, QUANTIZE, MULTIPLY, HEADS, ATTEND };
static SC_L1_DATA const struct {
    uint8_t kind, slot, how;
} steps[] = {
    [SC_OP_ATTN_IN] = {NORMALISE, SC_QKV, 0},
    [SC_OP_QKV] = {MULTIPLY, SC_QKV, SC_STORE},
    [SC_OP_Q8] = {HEADS, 0, 0},
    [SC_OP_ATTN] = {ATTEND, 0, 0},
    [SC_OP_O_IN] = {QUANTIZE, SC_O, 0},
    [SC_OP_MID] = {MULTIPLY, SC_O, SC_ADD},
    [SC_OP_MLP_IN] = {NORMALISE, SC_GU, 1},
    [SC_OP_H] = {MULTIPLY, SC_GU, SC_SILU},
    [SC_OP_DOWN_IN] = {QUANTIZE, SC_DOWN, 0},
    [SC_OP_OUT] = {MULTIPLY, SC_DOWN, SC_ADD},
};

SC_PHASE static void transformer_layer(uint32_t index, int core) {
    const sc_layer *layer = &sc_layers[index];
    for (enum sc_op op = SC_OP_ATTN_IN; op <= SC_OP_OUT; op++) {
        const uint32_t kind = steps[op].kind, slot = steps[op].slot, how = steps[op].how;
        const sc_matrix *m = layer->m[slot];
        if (kind == MULTIPLY) {
            sc_output out = {.kind = how, .dst = y[0], .stride = SC_Y_WORDS};
            out.gate_shift = layer->gate_shift, out.silu_shift = layer->silu_shift;
#ifdef SC_HAS_BIAS
            out.bias = layer->bias[slot];
#endif
            if (how == SC_ADD) out.dst = x[0], out.stride = SC_HIDDEN;
            linear(m, xv, sc_now.tokens, &out, core);
        } else if (kind == NORMALISE) {
            quantize(m, x[0], SC_HIDDEN, sc_gains[2 * index + how], SC_PERM(layer->perm[slot]), 0, xv, core);
        } else if (kind == QUANTIZE) {
            quantize(m, y[0], SC_Y_WORDS, 0, SC_PERM(layer->perm[slot]), 0, xv, core);
        } else if (kind == HEADS) {
            prepare_heads(index, core);
        } else {
            attention(index, core);
        }
        sc_op_done(op, index, core);
    }
}

SC_PHASE static void head(int core) {
    const sc_matrix *m = &sc_matrices[SC_MATRICES - 1];
    uint32_t first = sc_now.tokens - 1;
    sc_output out = {.kind = SC_STORE, .dst = sc_logits};
#if SC_ALL_LOGITS
    if (sc_now.trace & SC_TRACE_LOGITS) first = 0, out.dst = sc_all_logits[0], out.stride = SC_VOCAB;
#endif
    quantize(m, x[0], SC_HIDDEN, sc_gains[2 * SC_LAYERS], SC_PERM(sc_head_perm), first, xv, core);
    sc_op_done(SC_OP_FINAL, SC_LAYERS, core);
    linear(m, xv + first, sc_now.tokens - first, &out, core);
    sc_op_done(SC_OP_LOGITS, SC_LAYERS, core);
}

SC_HOT void sc_forward(void *unused, int core) {
    (void)unused;
    sc_profile_start(core);
    if (core == 0) {
        for (uint32_t t = 0; t < SC_CHUNK; t++) {
#if SC_XSUMS
            int32_t *sum = xsum[t];
#else
            int32_t *sum = 0;
#endif
            xv[t] = (sc_qvec){xq[t], xc[t], sum, 0, 0};
#if SC_RANK > 0
            sv[t] = (sc_qvec){sq[t], scales[t], 0, 0, 0};
#endif
        }
        sc_dma d = sc_dma_in(rope, sc_rope + sc_now.position * SC_HEAD_DIM, sc_now.tokens * SC_HEAD_DIM * 2);
        sc_dma_wait(d);
    }
    embed(core);
    sc_op_done(SC_OP_EMBED, SC_LAYERS, core);
    if (core == SC_LAST_CORE(SC_CORES)) sc_stream_begin(sc_now.want_logits);
    for (uint32_t l = 0; l < SC_LAYERS; l++) transformer_layer(l, core);
    if (sc_now.want_logits) head(core);
}
