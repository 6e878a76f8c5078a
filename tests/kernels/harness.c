/* Runs kernels on data from stdin: see harness.py for the other end.
 *
 * Input: commands of 32-bit words {operation, words that follow, ...}.  Output: per command
 * {words that follow, ...}.  Inputs lie in blocks of exactly their size, so that the address
 * sanitizer sees a read beyond them; every output lies between canary words, which are checked.
 * All cores of a kernel run in turn, forwards or backwards.
 */
#include "sc_platform.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sc_engine.h"
#include "sc_heads.h"
#include "sc_shares.h"

#define CANARY 0xC5C5C5C5u
#define CANARIES 8 /* words on each side */
#define GARBAGE 0xA5

static void __attribute__((noreturn)) fail(const char *what) {
    fflush(stdout);
    fprintf(stderr, "harness: %s\n", what);
    exit(99);
}

/* ---- the rest of the engine that the kernels under test ask for ---- */

int harness_norm_shift, harness_norm_drop; /* SC_NORM_SHIFT and SC_NORM_DROP here */

uint8_t sc_arena[SC_ARENA_BYTES] __attribute__((aligned(16)));
#if !SC_LOGITS_IN_L1
int32_t sc_logits[SC_VOCAB];
#endif

void sc_run_workers(sc_worker_fn fn, void *arg) {
    for (int core = 0; core < SC_CORES; core++) fn(arg, core);
}

/* ---- input ---- */

static uint32_t *words;
static size_t at, total, end_of_command;

static uint32_t word(void) {
    if (at >= end_of_command) fail("command too short");
    return words[at++];
}

/* n words in a block of exactly their size */
static void *copy(size_t n) {
    if (n > end_of_command - at) fail("command too short");
    void *p = malloc(n ? n * 4 : 1);
    memcpy(p, words + at, n * 4);
    at += n;
    return p;
}

/* ---- output ---- */

static void put(const void *data, size_t n) { fwrite(data, 4, n, stdout); }
static void put_count(size_t n) {
    uint32_t count = (uint32_t)n;
    put(&count, 1);
}

/* A block of n words between canaries, filled with garbage. */
static void *guarded(size_t n) {
    uint32_t *p = malloc((n + 2 * CANARIES) * 4);
    for (int i = 0; i < CANARIES; i++) p[i] = CANARY;
    memset(p + CANARIES, GARBAGE, n * 4);
    for (int i = 0; i < CANARIES; i++) p[CANARIES + n + (size_t)i] = CANARY;
    return p + CANARIES;
}

static void check(const void *block, size_t n, const char *what) {
    const uint32_t *p = (const uint32_t *)block - CANARIES;
    for (int i = 0; i < CANARIES; i++)
        if (p[i] != CANARY || p[CANARIES + n + (size_t)i] != CANARY) fail(what);
}

static void release(void *block, size_t n, const char *what) {
    check(block, n, what);
    free((uint32_t *)block - CANARIES);
}

/* ---- numbers ---- */

static uint64_t wide(uint32_t low, uint32_t high) { return (uint64_t)high << 32 | low; }

static int32_t number(uint32_t fn, uint32_t a, uint32_t b, uint32_t c, int32_t *second) {
    int j = 0;
    uint32_t r;
    switch (fn) {
    case 0:
        return sc_sat64((int64_t)wide(a, b));
    case 1:
        return sc_sat_add((int32_t)a, (int32_t)b);
    case 2:
        return sc_rshift((int32_t)a, (int)b);
    case 3:
        return sc_shift((int32_t)a, (int)b);
    case 4:
        return sc_lshift_sat((int32_t)a, (int)b);
    case 5:
        return sc_requantize((int32_t)a, b, (int)c);
    case 6:
        return (int32_t)sc_exp2_mantissa(a);
    case 7:
        return (int32_t)sc_exp2_q20(a);
    case 8:
        return sc_sigmoid_q15((int32_t)a);
    case 9:
        return (int32_t)sc_isqrt(a);
    case 10:
        return sc_bits64(wide(a, b));
    case 11:
        r = sc_rsqrt(wide(a, b), &j);
        *second = j;
        return (int32_t)r;
    case 12:
        return (int32_t)sc_mix32(a);
    case 13:
        return sc_bits(a);
    case 14:
        return sc_sdot4((int32_t)a, (int32_t)b, (int32_t)c);
    case 16:
        return a < 256 ? sc_exp2_table[a] : 0;
    case 15:
        return sc_sdotu4((int32_t)a, (int32_t)b, (int32_t)c);
    }
    fail("no such number");
}

static void numbers(void) {
    uint32_t fn = word(), n = word();
    const uint32_t *a = copy(n), *b = copy(n), *c = copy(n);
    put_count(2 * (size_t)n);
    for (uint32_t i = 0; i < n; i++) {
        int32_t out[2] = {0, 0};
        out[0] = number(fn, a[i], b[i], c[i], &out[1]);
        put(out, 2);
    }
    free((void *)a), free((void *)b), free((void *)c);
}

/* ---- vectors ---- */

static sc_cut read_cut(void) {
    sc_cut c;
    c.k = (uint16_t)word(), c.nseg = (uint16_t)word(), c.seg_elems = (uint16_t)word();
    c.last_elems = (uint16_t)word(), c.seg_blocks = (uint16_t)word(), c.blocks = (uint16_t)word();
    c.seg_words = (uint16_t)word(), c.last_words = (uint16_t)word(), c.words = (uint16_t)word();
    c.range = (uint16_t)word();
    return c;
}

#define EACH_CORE(core)                                                                                      \
    for (int i_ = 0, core = backwards ? cores - 1 : 0; i_ < cores; i_++, core += backwards ? -1 : 1)

static void vector(void) {
    const sc_cut cut = read_cut();
    const int pre_shift = (int)word();
    const uint32_t low = word(), high = word();
    const int has_gain = (int)word(), has_perm = (int)word(), sums = (int)word(), cores = (int)word();
    const int backwards = (int)word(), whole = (int)word();
    int32_t *input = copy(cut.k);
    int32_t *gain = has_gain ? copy(cut.k) : NULL;
    uint16_t *perm = has_perm ? copy((cut.k + 1u) / 2) : NULL;
    int32_t *product = guarded(cut.k);
    uint32_t *maxima = guarded(cut.blocks);
    const size_t part_words = sizeof(sc_part) / 4 * (size_t)cores;
    sc_part *partial = guarded(part_words);
    sc_qvec v = {guarded(cut.words), guarded(cut.nseg), sums ? guarded(cut.nseg) : NULL, 0, 0};

    if (whole) {
        sc_vec_token(&cut, input, product, gain, perm, pre_shift, wide(low, high), maxima, &v);
    } else {
        EACH_CORE(core)
        sc_vec_scan(&cut, input, product, gain, perm, pre_shift, maxima, partial, core, cores);
        EACH_CORE(core)
        sc_vec_quantize(&cut, gain ? product : input, perm, maxima, partial, has_gain, wide(low, high), &v,
                        core, cores);
        if (sums) EACH_CORE(core) sc_vec_sums(&cut, &v, core, cores);
    }

    const int32_t scale[2] = {(int32_t)v.mantissa, v.exponent};
    put_count(2u + cut.words + cut.nseg + (sums ? cut.nseg : 0u));
    put(scale, 2), put(v.q, cut.words), put(v.c, cut.nseg);
    if (sums) {
        put(v.sum, cut.nseg);
        release(v.sum, cut.nseg, "canary of sum");
    }
    release(v.q, cut.words, "canary of q");
    release(v.c, cut.nseg, "canary of c");
    release(product, cut.k, "canary of y");
    release(maxima, cut.blocks, "canary of block_max");
    release(partial, part_words, "canary of parts");
    free(input), free(gain), free(perm);
}

/* The same vectors where their values are, which are so many words further apart. */
static void in_place(const sc_q16_job *of, uint32_t wider) {
    const sc_cut *cut = of->cut;
    const uint32_t room = (cut->k + wider + 1) / 2 * 2;
    const size_t words = (size_t)room * of->tokens, aside = cut->k / 4u + 8;
    if (2u * cut->last_words > room) return; /* zeros behind the last ones have no place */
    int32_t *values = guarded(words);
    sc_qvec *v = calloc(of->tokens, sizeof *v);
    sc_q16_job j = *of;
    j.x = values, j.stride = room, j.q = (int8_t *)values, j.pitch = 2 * room, j.out = v, j.aside = guarded(aside);
    for (uint32_t t = 0; t < of->tokens; t++) memcpy(values + room * t, of->x + of->stride * t, 4u * cut->k);
    for (uint32_t t = 0; t < of->tokens; t++) {
        sc_q16_token(&j, t, 0);
        const int8_t *got = j.q + (size_t)2 * t * j.pitch, *want = of->q + (size_t)2 * t * of->pitch;
        if (memcmp(got, want, 4u * cut->last_words)) fail("low bytes in place");
        if (memcmp(got + j.pitch, want + of->pitch, 4u * cut->last_words)) fail("high bytes in place");
        if (v[t].q != got || v[t].mantissa != of->out[t].mantissa || v[t].exponent != of->out[t].exponent)
            fail("a vector in place");
    }
    release(j.aside, aside, "canary of what is set aside");
    release(values, words, "canary of vectors in place");
    free(v);
}

/* 16-bit vectors, two planes of bytes each: all cores share every token, or have tokens of their own */
static void wide_vectors(void) {
    const sc_cut cut = read_cut();
    harness_norm_shift = (int)word(), harness_norm_drop = (int)word();
    const uint32_t low = word(), high = word();
    const int has_gain = (int)word(), has_perm = (int)word(), cores = (int)word(), backwards = (int)word();
    const uint32_t tokens = word(), apart = word(), whole = word(); /* words between a row and the next */
    const size_t stride = cut.k + apart, n = (tokens - 1) * stride + cut.k;
    const size_t part_words = sizeof(sc_part) / 4 * SC_PARTS * tokens;
    const size_t words_of_q = 2u * cut.words * tokens;
    int32_t *input = copy(n);
    int32_t *gain = has_gain ? copy(cut.k) : NULL;
    uint16_t *perm = has_perm ? copy((cut.k + 1u) / 2) : NULL;
    int32_t *product = guarded(n);
    sc_part *partial = guarded(part_words);
    int8_t *q = guarded(words_of_q);
    sc_qvec *v = calloc(tokens, sizeof *v);
    sc_q16_job j = {&cut,    input, (uint32_t)stride, 0, tokens, gain, perm, product, (uint32_t)stride,
                    partial, q,     4u * cut.words,   v,     NULL};
    if (whole && (gain || !perm)) {
        for (uint32_t t = 0; t < tokens; t++) sc_q16_token(&j, t, wide(low, high));
    } else {
        EACH_CORE(core) sc_q16_scan(&j, core, cores);
        EACH_CORE(core) sc_q16_quantize(&j, core, cores);
        for (uint32_t t = 0; gain && t < tokens; t++)
            sc_q16_norm(partial + SC_PARTS * t, wide(low, high), &v[t]);
    }
    for (uint32_t wider = 0; !gain && !perm && wider < 4; wider++) in_place(&j, cut.k / 3 * wider);
    put_count(2u * tokens + words_of_q);
    for (uint32_t t = 0; t < tokens; t++) {
        const int32_t scale[2] = {(int32_t)v[t].mantissa, v[t].exponent};
        put(scale, 2);
        if (v[t].q != q + 8u * cut.words * t) fail("q of a 16-bit vector");
    }
    put(q, words_of_q);
    release(q, words_of_q, "canary of q");
    release(product, n, "canary of y");
    release(partial, part_words, "canary of parts");
    free(v), free(input), free(gain), free(perm);
}

/* ---- matrices ---- */

static void read_matrix(sc_matrix *m, sc_matrix *b) {
    memset(m, 0, sizeof *m);
    m->block_bytes = word();
    m->rows = word();
    m->blocks = (uint16_t)word();
    m->tile_blocks = (uint16_t)word();
    m->in = read_cut();
    m->format = (uint8_t)word();
    m->drop = (uint8_t)word();
    m->shift = (int16_t)word();
    if (b && word()) {
        read_matrix(b, NULL);
        m->b = b;
    }
}

static sc_qvec *read_vectors(const sc_matrix *m, uint32_t tokens) {
    const sc_cut *cut = &m->in;
    const int is_wide = (m->format & SC_FMT_Q16) != 0;
    sc_qvec *v = malloc(tokens * sizeof *v);
    for (uint32_t t = 0; t < tokens; t++) {
        v[t].mantissa = word();
        v[t].exponent = (int32_t)word();
        v[t].q = copy(is_wide ? 2u * cut->words : cut->words);
        v[t].c = is_wide ? NULL : copy(cut->nseg);
        v[t].sum = m->format & SC_FMT_ASYM ? copy(cut->nseg) : NULL;
    }
    return v;
}

static void free_vectors(sc_qvec *v, uint32_t tokens) {
    for (uint32_t t = 0; v && t < tokens; t++) free(v[t].q), free(v[t].c), free(v[t].sum);
    free(v);
}

static sc_output read_output(void) {
    sc_output out;
    memset(&out, 0, sizeof out);
    out.kind = (enum sc_epilogue)word();
    out.stride = word();
    out.gate_shift = (int)word();
    out.silu_shift = (int)word();
    out.up_shift = (int)word();
    return out;
}

/* A tile's rows into dst, by cores that split its blocks wherever they are few, however short: whether they were. */
static uint32_t matrix_split(const sc_matrix *m, const uint8_t *tile, uint32_t first, uint32_t count,
                             const sc_qvec *x, const sc_qvec *side, uint32_t tokens, const sc_output *how,
                             int32_t *dst, uint32_t scratch_words, int cores, int backwards) {
    sc_output out = *how;
    out.dst = dst;
    if (2 * count > (uint32_t)cores) {
        EACH_CORE(core) sc_matrix_tile(m, tile, first, count, x, side, tokens, &out, core, cores);
        return 0;
    }
#ifdef SC_AT_PRODUCTS
    if (tokens > 1 && sc_for_several(m)) {
        const size_t all = (size_t)cores * scratch_words;
        int32_t *scratch = guarded(all);
        for (size_t i = 0; i < all; i++) scratch[i] = 0x5A5A5A5A;
        EACH_CORE(core)
        sc_split_sums_of_several(m, tile, count, x, tokens, scratch + (size_t)core * scratch_words, core,
                                 cores);
        EACH_CORE(core)
        sc_split_rows_of_several(m, tile, first, count, x, side, tokens, &out, scratch, scratch_words, core,
                                 cores);
        release(scratch, all, "canary of the cores' scratch");
        return 1;
    }
#endif
    (void)scratch_words;
    int32_t *words = guarded((size_t)cores * SC_ROWS);
    int32_t(*sums)[SC_ROWS] = (int32_t(*)[SC_ROWS])words;
    for (uint32_t t = 0; t < tokens; t++, dst += out.stride) {
        const sc_qvec *of = side ? &side[t] : NULL;
        for (int i = 0; i < cores * SC_ROWS; i++) words[i] = 0x5A5A5A5A;
        EACH_CORE(core) sc_split_sums(m, tile, count, &x[t], sums, core, cores);
        EACH_CORE(core) sc_split_rows(m, tile, first, count, &x[t], of, sums, &out, dst, core, cores);
    }
    release(words, (size_t)cores * SC_ROWS, "canary of parts of sums");
    return 1;
}

static void matrix(void) {
    sc_matrix m, b;
    read_matrix(&m, &b);
    const uint32_t tokens = word();
    sc_output out = read_output();
    const int cores = (int)word(), backwards = (int)word();
    const uint32_t scratch_words = word(); /* of each core, with several tokens */
    sc_qvec *x_ = read_vectors(&m, tokens);
    sc_qvec *side = m.b ? read_vectors(&b, tokens) : NULL;
    const size_t n = (size_t)tokens * out.stride;
    int32_t *start = copy(n);
    out.dst = guarded(n);
    memcpy(out.dst, start, n * 4);
    int32_t *again = NULL, *split = guarded(n), tiles_split = 0;
    memcpy(split, start, n * 4);
    (void)scratch_words;
#ifdef SC_AT_PRODUCTS
    if (tokens > 1 && sc_for_several(&m)) {
        again = guarded(n);
        memcpy(again, start, n * 4);
    }
#endif
    for (uint32_t first = 0; first < m.blocks; first += m.tile_blocks) {
        uint32_t count = (uint32_t)m.blocks - first < m.tile_blocks ? m.blocks - first : m.tile_blocks;
        uint8_t *tile = copy((size_t)count * m.block_bytes / 4);
        EACH_CORE(core) sc_matrix_tile(&m, tile, first, count, x_, side, tokens, &out, core, cores);
#ifdef SC_AT_PRODUCTS
        sc_output other = out;
        other.dst = again;
        EACH_CORE(core) if (again) {
            int32_t *scratch = guarded(scratch_words);
            sc_matrix_tokens(&m, tile, first, count, x_, side, tokens, &other, scratch, core, cores);
            release(scratch, scratch_words, "canary of a core's sums");
        }
#endif
        tiles_split += matrix_split(&m, tile, first, count, x_, side, tokens, &out, split, scratch_words,
                                    cores, backwards);
        free(tile);
    }
    put_count((again ? 3 * n : 2 * n) + 1);
    put(out.dst, n);
    release(out.dst, n, "canary of y");
    put(split, n);
    release(split, n, "canary of y of blocks that are split");
    if (again) {
        put(again, n);
        release(again, n, "canary of y of several tokens");
    }
    put(&tiles_split, 1);
    free(start);
    free_vectors(x_, tokens), free_vectors(side, tokens);
}

#ifdef SC_HAS_ENGINES
static uint16_t *copy_halves(size_t n) {
    uint16_t *all = copy((n + 1) / 2), *p = malloc(n * 2);
    memcpy(p, all, n * 2);
    free(all);
    return p;
}

/* What an engine does with the sums of one token: pieces of `rows` rows, of two bytes' sums or of one, or blocks of 8 by
 * sc_matrix_rows(). */
static void engine_rows(void) {
    sc_matrix m;
    read_matrix(&m, NULL);
    sc_output out = read_output();
    const uint32_t rows = word();
    const uint32_t joined = word(); /* sums of a row, 0: blocks */
    sc_qvec v = {0};
    v.mantissa = word();
    v.exponent = (int32_t)word();
    int32_t *start = copy(out.stride);
    out.dst = guarded(out.stride);
    memcpy(out.dst, start, out.stride * 4);
    const uint32_t stored = m.blocks * SC_ROWS, count = (stored + rows - 1) / rows;
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t row = word(), left = stored - row, n = rows < left ? rows : left;
        uint16_t *r = copy_halves(n);
        int32_t *low = copy(n), *high = joined == 2 ? copy(n) : NULL;
        if (joined)
            sc_matrix_joined(&m, r, row, n, low, high, &v, &out, out.dst);
        else
            sc_matrix_rows(&m, r, row, low, &v, &out, out.dst);
        free(r), free(low), free(high);
    }
    put_count(out.stride);
    put(out.dst, out.stride);
    release(out.dst, out.stride, "canary of y");
    free(start);
}
#endif

static void embed(void) {
    sc_matrix m;
    read_matrix(&m, NULL);
    const uint32_t row = word(), factor = word();
    const int shift = (int)word(), cores = (int)word(), backwards = (int)word();
    uint8_t *block = copy(m.block_bytes / 4);
    int32_t *out = guarded(m.in.k);
    EACH_CORE(core) sc_embed_row(&m, block, row, m.in.k, factor, shift, out, core, cores);
    put_count(m.in.k);
    put(out, m.in.k);
    release(out, m.in.k, "canary of x");
    free(block);
}

/* ---- heads ---- */

#define PIECE_LOOP(first, n)                                                                                 \
    for (uint32_t i_ = 0, first = 0, n; first < live && (n = piece(pieces, count, i_, live - first), 1);     \
         first += n, i_++)

/* Positions of the i-th piece: whole blocks, the last size again and again, at most `left`. */
static uint32_t piece(const uint32_t *pieces, uint32_t count, uint32_t i, uint32_t left) {
    uint32_t n = pieces[i < count ? i : count - 1] * SC_KV_POSITIONS;
    return n < left ? n : left;
}

/* The piece's blocks in a block of exactly their size. */
static uint8_t *cut_out(const uint8_t *cache, uint32_t first, uint32_t n, uint32_t block) {
    uint32_t blocks = (n + SC_KV_POSITIONS - 1) / SC_KV_POSITIONS;
    uint8_t *p = malloc(blocks * block);
    memcpy(p, cache + first / SC_KV_POSITIONS * block, blocks * block);
    return p;
}

/* What is left of heads first, first + SC_CORES, ... of n when those below n are done. */
static int next_head(int first, int n) {
    while (first < n) first += SC_CORES;
    return first - n;
}

/* Those that cores share, in three phases; what they must be is given. */
static void shared_heads(const sc_heads *heads, const int32_t *want) {
    const size_t s_words = sizeof(sc_head_state) / 4, w_words = sizeof(sc_head_scratch) / 4;
    const size_t first = (SC_HEADS - SC_SHARED_HEADS) * SC_HEAD_DIM, n = SC_SHARED_HEADS * SC_HEAD_DIM;
    sc_head_state *states = guarded(SC_CORES * SC_SHARES * s_words);
    sc_heads h[SC_CORES];
    int32_t *out = guarded(n);
    for (int core = 0; core < SC_CORES; core++) {
        h[core] = *heads, h[core].scratch = guarded(w_words), h[core].out = out - first;
        shares_scores(&h[core], states, core);
    }
    for (int core = 0; core < SC_CORES; core++) shares_values(&h[core], states, core);
    for (int core = 0; core < SC_CORES; core++) {
        shares_finish(&h[core], states, core);
        release(h[core].scratch, w_words, "canary of a sharing core's scratch");
    }
    if (memcmp(out, want, n * 4)) fail("sharing heads changes the result");
    release(states, SC_CORES * SC_SHARES * s_words, "canary of the shares' states");
    release(out, n, "canary of the shared heads' output");
}

/* Tokens 0 .. n - 1: prepared one after the other, then the attention of those from `from` on. */
static void heads(void) {
    const uint32_t n = word(), from = word();
    sc_layer layer;
    memset(&layer, 0, sizeof layer);
    layer.score_mantissa = (uint16_t)word();
    layer.score_exponent = (int16_t)word();
    layer.k_unit = (int8_t)word();
    layer.v_unit = (int8_t)word();
    layer.mean_unit = (int8_t)word();
    const uint32_t count = word();
    const uint32_t *pieces = copy(count);
#ifdef SC_HAS_HEAD_NORM
    layer.head_eps = word();
    layer.head_eps |= (uint64_t)word() << 32;
    int16_t *gains = copy(SC_HEAD_DIM); /* of q, then of k */
    layer.head_gain[0] = gains, layer.head_gain[1] = gains + SC_HEAD_DIM;
#endif
    int32_t *qkv = copy((size_t)n * SC_QKV_ROWS);
    int16_t *angles = copy((size_t)n * SC_HEAD_DIM / 2);
    const size_t q_words = SC_HEADS * SC_HDP / 4, row = SC_HEADS * SC_HEAD_DIM;
    const size_t k_words = SC_KV_BLOCKS * SC_K_BLOCK / 4, v_words = SC_KV_BLOCKS * SC_V_BLOCK / 4;
    uint8_t *k = guarded(k_words), *v = guarded(v_words);
    int8_t *q = guarded(n * q_words);
    uint32_t *scale = guarded((size_t)n * SC_HEADS);
    int32_t *space = guarded(SC_HEAD_DIM);
    uint16_t *value_scales = guarded((SC_KV_HEADS + 1) / 2);
    memset(value_scales, 0, 2 * SC_KV_HEADS);
    sc_heads h = {.layer = &layer, .k = k, .v = v, .work = space, .value_scales = value_scales};
    for (uint32_t t = 0; t < n; t++) {
        int16_t *own = malloc(SC_HEAD_DIM * 2);
        memcpy(own, angles + t * SC_HEAD_DIM, SC_HEAD_DIM * 2);
        h.position = t, h.qkv = qkv + t * SC_QKV_ROWS, h.rope = own;
        h.q8 = q + t * q_words * 4, h.q_scale = scale + t * SC_HEADS;
        for (int core = 0; core < SC_CORES; core++)
            if (heads_prepare(&h, core, SC_CORES) != next_head(core, SC_HEADS + 2 * SC_KV_HEADS))
                fail("the next token's first head");
        free(own);
    }
    uint16_t prepared[SC_KV_HEADS];
    memcpy(prepared, value_scales, sizeof prepared);
    const size_t tokens = n - from;
    int32_t *out = guarded(tokens * row);
    const size_t s_words = sizeof(sc_head_state) / 4, w_words = sizeof(sc_head_scratch) / 4;
    for (uint32_t t = from; t < n; t++)
        for (uint32_t head = 0; head < SC_HEADS; head++) {
            const uint32_t live = t + 1;
            const int kv = (int)(head / (SC_HEADS / SC_KV_HEADS));
            const int8_t *own = q + t * q_words * 4 + head * SC_HDP;
            sc_head_state *s = guarded(s_words);
            sc_head_scratch *w = guarded(w_words);
            sc_head_begin(s, &layer, scale[t * SC_HEADS + head], value_scales_of(k, (uint32_t)kv, 0, live));
            PIECE_LOOP(first, m) {
                uint8_t *p = cut_out(k, first, m, SC_K_BLOCK);
                sc_head_scores(s, w, own, kv, p, first, m);
                free(p);
            }
            PIECE_LOOP(first, m) {
                uint8_t *p = cut_out(k, first, m, SC_K_BLOCK);
                sc_head_weigh(s, w, kv, p, first, m);
                free(p);
            }
            PIECE_LOOP(first, m) {
                uint8_t *p = cut_out(v, first, m, SC_V_BLOCK);
                sc_head_values(s, w, kv, p, first, m);
                free(p);
            }
            sc_head_finish(s, out + (t - from) * row + head * SC_HEAD_DIM, &layer);
            release(s, s_words, "canary of the head's state");
            release(w, w_words, "canary of the head's scratch");
        }
    int32_t *whole = guarded(row), shared = 0;
    for (uint32_t t = from; t < n; t++) {
        h.position = t, h.q8 = q + t * q_words * 4, h.q_scale = scale + t * SC_HEADS, h.out = whole;
        for (uint32_t kv = 0; kv < SC_KV_HEADS; kv++) {
            value_scales[kv] = (uint16_t)value_scales_of(k, kv, 0, t + 1);
            if (t + 1 == n && value_scales[kv] != prepared[kv]) fail("scales that were added up");
        }
        for (int core = 0; core < SC_CORES; core++) {
            h.scratch = guarded(w_words);
            if (heads_attend(&h, core, SC_CORES, SC_HEADS, t + 1 == n) != next_head(core, SC_HEADS))
                fail("the next token's first head");
            release(h.scratch, w_words, "canary of the core's scratch");
        }
        if (memcmp(whole, out + (t - from) * row, row * 4)) fail("a cache in pieces changes the result");
        if (heads_shared(t))
            shared_heads(&h, out + (t - from) * row + row - SC_SHARED_HEADS * SC_HEAD_DIM), shared++;
    }
    release(whole, row, "canary of the whole attention's output");
    release(value_scales, (SC_KV_HEADS + 1) / 2, "canary of the values' scales");
    put_count(n * q_words + (size_t)n * SC_HEADS + k_words + v_words + tokens * row + 1);
    put(q, n * q_words), put(scale, (size_t)n * SC_HEADS), put(k, k_words), put(v, v_words);
    put(out, tokens * row), put(&shared, 1);
    release(q, n * q_words, "canary of q8");
    release(scale, (size_t)n * SC_HEADS, "canary of q_scale");
    release(k, k_words, "canary of the k cache");
    release(v, v_words, "canary of the v cache");
    release(space, SC_HEAD_DIM, "canary of work");
    release(out, tokens * row, "canary of the attention's output");
    free((void *)pieces), free(qkv), free(angles);
#ifdef SC_HAS_HEAD_NORM
    free(gains);
#endif
}

static void sample(void) {
    sc_sampling how;
    how.inv_temp_q16 = word();
    how.top_p_q16 = word();
    how.seed = word();
    uint32_t position = word();
    int32_t *logits = copy(SC_VOCAB);
    memcpy(sc_logits, logits, SC_VOCAB * 4);
    uint32_t token = sc_sample(&how, position);
    put_count(1);
    put(&token, 1);
    free(logits);
}

int main(void) {
#ifdef SC_AT_EXP2
    sc_run_workers(sc_fill_exp2, 0);
#endif
    size_t room = 1 << 16;
    words = malloc(room * 4);
    for (size_t n; (n = fread(words + total, 4, room - total, stdin)) > 0;) {
        total += n;
        if (total == room) words = realloc(words, (room *= 2) * 4);
    }
    while (at < total) {
        if (total - at < 2 || words[at + 1] > total - at - 2) fail("input ends inside a command");
        uint32_t operation = words[at];
        end_of_command = at + 2 + words[at + 1];
        at += 2;
        switch (operation) {
        case 1:
            numbers();
            break;
        case 2:
            vector();
            break;
        case 3:
            matrix();
            break;
        case 4:
            embed();
            break;
        case 5:
            heads();
            break;
        case 6:
            sample();
            break;
        case 7:
            wide_vectors();
            break;
#ifdef SC_HAS_ENGINES
        case 8:
            engine_rows();
            break;
#endif
        default:
            fail("no such operation");
        }
        if (at != end_of_command) fail("command too long");
    }
    free(words);
    return 0;
}
