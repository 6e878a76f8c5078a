/* What harness.c does with vectors; a part of it, with its input, output and canaries. */

static sc_vector_layout read_cut(void) {
    sc_vector_layout c;
    c.k = (uint16_t)word(), c.groups = (uint16_t)word(), c.group_elems = (uint16_t)word();
    c.last_elems = (uint16_t)word(), c.group_blocks = (uint16_t)word(), c.x_blocks = (uint16_t)word();
    c.group_words = (uint16_t)word(), c.last_words = (uint16_t)word(), c.words = (uint16_t)word();
    c.range = (uint16_t)word();
    return c;
}

#define EACH_CORE(core)                                                                                      \
    for (int i_ = 0, core = backwards ? cores - 1 : 0; i_ < cores; i_++, core += backwards ? -1 : 1)

static void vector(void) {
    const sc_vector_layout cut = read_cut();
    const int pre_shift = (int)word();
    const uint32_t low = word(), high = word();
    const int has_gain = (int)word(), has_perm = (int)word(), sums = (int)word(), cores = (int)word();
    const int backwards = (int)word(), whole = (int)word();
    int32_t *input = copy(cut.k);
    int32_t *gain = has_gain ? copy(cut.k) : NULL;
    uint16_t *perm = has_perm ? copy((cut.k + 1u) / 2) : NULL;
    int32_t *product = guarded(cut.k);
    uint32_t *maxima = guarded(cut.x_blocks);
    const size_t part_words = sizeof(sc_part) / 4 * (size_t)cores;
    sc_part *partial = guarded(part_words);
    sc_qvec v = {guarded(cut.words), guarded(cut.groups), sums ? guarded(cut.groups) : NULL, 0, 0};

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
    put_count(2u + cut.words + cut.groups + (sums ? cut.groups : 0u));
    put(scale, 2), put(v.q, cut.words), put(v.c, cut.groups);
    if (sums) {
        put(v.sum, cut.groups);
        release(v.sum, cut.groups, "canary of sum");
    }
    release(v.q, cut.words, "canary of q");
    release(v.c, cut.groups, "canary of c");
    release(product, cut.k, "canary of y");
    release(maxima, cut.x_blocks, "canary of block_max");
    release(partial, part_words, "canary of parts");
    free(input), free(gain), free(perm);
}

/* The same vectors where their values are, which are so many words further apart: how many values were compared. */
static uint32_t in_place(const sc_q16_job *of, uint32_t wider) {
    const sc_vector_layout *layout = of->layout;
    const uint32_t room = (layout->k + wider + 1) / 2 * 2;
    const size_t words = (size_t)room * of->tokens, aside = layout->k / 4u + 8;
    if (2u * layout->last_words > room) return 0; /* no room for zeros after the last words */
    int32_t *values = guarded(words);
    sc_qvec *v = calloc(of->tokens, sizeof *v);
    sc_q16_job j = *of;
    j.x = values, j.stride = room, j.q = (int8_t *)values, j.pitch = 2 * room, j.out = v,
    j.spill = guarded(aside);
    for (uint32_t t = 0; t < of->tokens; t++) memcpy(values + room * t, of->x + of->stride * t, 4u * layout->k);
    for (uint32_t t = 0; t < of->tokens; t++) {
        sc_q16_token(&j, t, 0);
        const int8_t *got = j.q + (size_t)2 * t * j.pitch, *want = of->q + (size_t)2 * t * of->pitch;
        if (memcmp(got, want, 4u * layout->last_words)) fail("low bytes in place");
        if (memcmp(got + j.pitch, want + of->pitch, 4u * layout->last_words)) fail("high bytes in place");
        if (v[t].q != got || v[t].mantissa != of->out[t].mantissa || v[t].exponent != of->out[t].exponent)
            fail("a vector in place");
    }
    release(j.spill, aside, "canary of what is spilled");
    release(values, words, "canary of vectors in place");
    free(v);
    return of->tokens * layout->k;
}

/* 16-bit vectors, two planes of bytes each: all cores share every token, or have tokens of their own */
static void wide_vectors(void) {
    const sc_vector_layout cut = read_cut();
    const int pre_shift = (int)word(), drop = (int)word();
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
    sc_q16_job j = {.layout = &cut, .x = input, .stride = (uint32_t)stride, .tokens = tokens, .gain = gain,
                    .norm_drop = drop, .norm_unit = 2 * (drop - pre_shift), .perm = perm, .y = product,
                    .y_stride = (uint32_t)stride, .parts = partial, .q = q, .pitch = 4u * cut.words, .out = v};
    if (whole && (gain || !perm)) {
        for (uint32_t t = 0; t < tokens; t++) sc_q16_token(&j, t, wide(low, high));
    } else {
        EACH_CORE(core) sc_q16_scan(&j, core, cores);
        EACH_CORE(core) sc_q16_quantize(&j, core, cores);
        for (uint32_t t = 0; gain && t < tokens; t++)
            sc_q16_norm(partial + SC_PARTS * t, wide(low, high), &v[t]);
    }
    int32_t compared = 0;
    for (uint32_t wider = 0; !gain && !perm && wider < 4; wider++)
        compared += (int32_t)in_place(&j, cut.k / 3 * wider);
    put_count(1 + 2u * tokens + words_of_q);
    put(&compared, 1);
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
