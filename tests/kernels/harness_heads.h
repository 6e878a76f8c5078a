/* What harness.c does with heads and the cache; a part of it, with its input, output and canaries. */

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
#if SC_KV_BITS == 4
    uint8_t *orders = copy((SC_KV_HEADS * SC_HEAD_DIM + 3) / 4);
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
#if SC_KV_BITS == 4
    h.orders = orders;
#endif
    for (uint32_t t = 0; t < n; t++) {
        int16_t *own = malloc(SC_HEAD_DIM * 2);
        memcpy(own, angles + t * SC_HEAD_DIM, SC_HEAD_DIM * 2);
        h.position = t, h.qkv = qkv + t * SC_QKV_ROWS, h.rope = own;
        h.q8 = q + t * q_words * 4, h.q_scale = scale + t * SC_HEADS;
        for (int core = 0; core < SC_CORES; core++)
            if (heads_prepare(&h, core, SC_CORES) != next_head(core, SC_HEADS + 2 * SC_KV_HEADS))
                fail("the next token's first head");
        free(own), h.rope = NULL;
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
#if SC_KV_BITS == 4
    free(orders);
#endif
}
