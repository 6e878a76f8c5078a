/* What harness.c does with matrices and rows of an embedding; a part of it, with its input, output and canaries. */

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
        m->adapter = b;
    }
}

static sc_qvec *read_vectors(const sc_matrix *m, uint32_t tokens) {
    const sc_vector_layout *layout = &m->in;
    const int is_wide = (m->format & SC_FMT_Q16) != 0;
    sc_qvec *v = malloc(tokens * sizeof *v);
    for (uint32_t t = 0; t < tokens; t++) {
        v[t].mantissa = word();
        v[t].exponent = (int32_t)word();
        v[t].q = copy(is_wide ? 2u * layout->words : layout->words);
        v[t].c = is_wide ? NULL : copy(layout->groups);
        v[t].sum = m->format & SC_FMT_ASYM ? copy(layout->groups) : NULL;
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
                             const sc_qvec *x, const sc_qvec *adapter, uint32_t tokens, const sc_output *how,
                             int32_t *dst, uint32_t scratch_words, int cores, int backwards) {
    sc_output out = *how;
    out.dst = dst;
    if (2 * count > (uint32_t)cores) {
        EACH_CORE(core) sc_matrix_tile(m, tile, first, count, x, adapter, tokens, &out, core, cores);
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
        sc_split_rows_of_several(m, tile, first, count, x, adapter, tokens, &out, scratch, scratch_words,
                                 core, cores);
        release(scratch, all, "canary of the cores' scratch");
        return 1;
    }
#endif
    (void)scratch_words;
    int32_t *words = guarded((size_t)cores * SC_ROWS);
    int32_t(*sums)[SC_ROWS] = (int32_t(*)[SC_ROWS])words;
    for (uint32_t t = 0; t < tokens; t++, dst += out.stride) {
        const sc_qvec *of = adapter ? &adapter[t] : NULL;
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
    sc_qvec *adapter = m.adapter ? read_vectors(&b, tokens) : NULL;
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
        EACH_CORE(core) sc_matrix_tile(&m, tile, first, count, x_, adapter, tokens, &out, core, cores);
#ifdef SC_AT_PRODUCTS
        sc_output other = out;
        other.dst = again;
        EACH_CORE(core) if (again) {
            int32_t *scratch = guarded(scratch_words);
            sc_matrix_tokens(&m, tile, first, count, x_, adapter, tokens, &other, scratch, core, cores);
            release(scratch, scratch_words, "canary of a core's sums");
        }
#endif
        tiles_split += matrix_split(&m, tile, first, count, x_, adapter, tokens, &out, split, scratch_words,
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
    free_vectors(x_, tokens), free_vectors(adapter, tokens);
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
