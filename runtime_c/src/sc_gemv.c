/* SPDX-License-Identifier: Apache-2.0
 * Matrix times vector: y[rows] = W[rows][k] * x[k], W: 2 to 8 bits in blocks of 8 rows, x: int8 or
 * int16. Each worker has every cores-th block of a tile. Tile and x: L1; embedding rows: where they are
 * stored.
 *
 * The inner loops decide the program's speed: 8 weight words and one activation word feed 8 dot products, so
 * about one load per dot product is the limit. */
#include "sc_platform.h"

#include "sc_dot.h"
#include "sc_epilogue.h"
#include "sc_split.h"

/* The packer (storage/w<bits>.py) uses the same constants. */
#define AGREE(bits, inputs, fold)                                                                            \
    _Static_assert(SC_W##bits##_INPUTS == (inputs) && SC_W##bits##_FOLD == (fold),                           \
                   "storage/w" #bits ".py and sc_dot_w" #bits ".h are one format");
SC_EACH_WIDTH(AGREE)

/* Hot code calls these with a constant format: only one case remains. */

SC_INLINE void dot(const int format, sc_rows *a, const uint8_t **w, const int8_t **x, uint32_t words) {
#define DOT(bits, inputs, fold)                                                                              \
    case bits:                                                                                               \
        sc_dot_w##bits(a, w, x, words);                                                                      \
        return;
    switch (format & SC_FMT_BITS) { SC_EACH_WIDTH(DOT) }
    __builtin_unreachable();
}

SC_INLINE int32_t get(const int format, const uint8_t *w, uint32_t row, uint32_t at) {
#define GET(bits, inputs, fold)                                                                              \
    case bits:                                                                                               \
        return sc_get_w##bits(w, row, at);
    switch (format & SC_FMT_BITS) { SC_EACH_WIDTH(GET) }
    __builtin_unreachable();
}

SC_HOT __attribute__((noinline)) const uint8_t *sc_offsets_of_zeros(const uint8_t *d,
                                                                    int16_t offsets[SC_ROWS]) {
    const int32_t zeros = sc_load32(d + SC_ROWS);
    for (int r = 0; r < SC_ROWS; r++) offsets[r] = (int16_t)(d[r] * sc_zero_point(zeros, r));
    return (const uint8_t *)offsets;
}

/* acc[8] of `words` words of a block with a 16-bit vector, exact in int32. High bytes are high_at after low
 * bytes. Returns the end of the weights. */
SC_INLINE const uint8_t *words_dot(const int format, const uint8_t *w, const int8_t *x, uint32_t high_at,
                                   uint32_t words, int32_t *acc) {
    sc_rows low, high;
    if ((format & SC_FMT_BITS) == 8) {
        w = sc_dot_pair(&low, &high, w, x, x + high_at, words);
    } else {
        const uint8_t *again = w;
        const int8_t *y = x + high_at;
        low = high = (sc_rows){0};
        dot(format, &low, &w, &x, words);
        dot(format, &high, &again, &y, words);
    }
#define JOIN(r)                                                                                              \
    acc[r] = (int32_t)((uint32_t)(high.s##r >> sc_fold(format)) << 8) + (low.s##r >> sc_fold(format));
    SC_EACH_ROW(JOIN)
    return w;
}

/* acc[8] of quantisation groups first .. end - 1 (at least one) with an int8 vector; w and xq point to the
 * first group. */
SC_INLINE const uint8_t *groups_dot(const sc_matrix *m, const int format, const uint8_t *w, const int8_t *xq,
                                    const sc_qvec *x, uint32_t first, uint32_t end, int32_t *acc) {
    const int32_t *c = x->c + first, *sum = (format & SC_FMT_ASYM) ? x->sum + first : x->sum;
    const uint32_t groups = m->in.groups;
    const int32_t drop = m->drop;
    for (uint32_t g = first + 1; g <= end; g++) {
        const uint8_t *d = w, *b = w + SC_ROWS;
        const uint32_t words = g < groups ? m->in.group_words : m->in.last_words;
        const int32_t scale = *c++;
        /* all terms have the factor 2^fold until they are rounded */
        const int32_t less = (format & SC_FMT_ASYM) ? -*sum++ * (1 << sc_fold(format)) : 0;
        sc_rows a = {0};
#ifndef SC_EACH_FORMAT /* one function for all formats: no room for a second variant */
        const int wide = format & SC_FMT_ASYM;
        int16_t offsets[SC_ROWS];
        if (format & SC_FMT_ZEROS) b = sc_offsets_of_zeros(d, offsets);
#else
        const int wide = (format & (SC_FMT_ASYM | SC_FMT_ZEROS)) == SC_FMT_ASYM;
        if (format & SC_FMT_ZEROS) { /* the sums start at -zero point * sum of x */
            const int32_t zeros = sc_load32(b);
#define BEGIN(r)                                                                                             \
    SC_ZERO_POINT(a.s##r, zeros, r);                                                                         \
    a.s##r *= less;
            SC_EACH_ROW(BEGIN)
#undef BEGIN
        }
#endif
        w += sc_table_bytes(format);
        dot(format, &a, &w, &xq, words);
#define PREPARE(r)                                                                                           \
    if (format & SC_FMT_GROUPED) {                                                                           \
        a.s##r = (int32_t)((uint32_t)a.s##r * d[r]);                                                         \
        if (wide) a.s##r = sc_mac(a.s##r, sc_offset16(b, r), less);                                          \
        a.s##r = sc_round(a.s##r, drop);                                                                     \
    } else {                                                                                                 \
        a.s##r >>= sc_fold(format); /* exact */                                                              \
    }
#define FIRST(r) acc[r] = a.s##r * scale;
#define FURTHER(r) acc[r] = sc_mac(acc[r], a.s##r, scale);
        SC_EACH_ROW(PREPARE)
        if (g == first + 1) {
            SC_EACH_ROW(FIRST)
        } else {
            SC_EACH_ROW(FURTHER)
        }
    }
    return w;
}

/* acc[8] of one block with one vector, exact in int32. Returns the end of the block's weights. */
SC_INLINE const uint8_t *block_dot(const sc_matrix *m, const int format, const uint8_t *block,
                                   const sc_qvec *x, int32_t *acc) {
    const uint8_t *w = block + 2 * SC_ROWS;
    if (format & SC_FMT_Q16) return words_dot(format, w, x->q, 4 * m->in.words, m->in.words, acc);
    return groups_dot(m, format, w, x->q, x, 0, m->in.groups, acc);
}

/* block_dot() for a format known only at run time: selects the bit width once, not per group. */
SC_INLINE const uint8_t *block_dot_by_width(const sc_matrix *m, const int format, const uint8_t *block,
                                            const sc_qvec *x, int32_t *acc) {
#define BLOCK_DOT(bits, inputs, fold)                                                                        \
    case bits:                                                                                               \
        return block_dot(m, bits | (format & ~SC_FMT_BITS), block, x, acc);
    switch (format & SC_FMT_BITS) { SC_EACH_WIDTH(BLOCK_DOT) }
    __builtin_unreachable();
}

#if SC_RANK > 0
__attribute__((noinline)) void sc_add_adapter(const sc_matrix *b, const uint8_t *block,
                                              const sc_qvec *adapter, int32_t y[SC_ROWS]) {
    int32_t s[SC_ROWS];
    block_dot(b, SC_ADAPTER_FORMAT, block, adapter, s);
    rescale(block, (int32_t)adapter->mantissa, right_shift(b, adapter), s);
    for (int r = 0; r < SC_ROWS; r++) y[r] = sc_sat_add(y[r], s[r]);
}
#endif

/* Tokens are the outer loop: the block's parameters stay in registers, and the loop over blocks fits the
 * core's instruction buffer. */
SC_INLINE void matrix_tile(const int format, const sc_matrix *m, const uint8_t *tile, uint32_t first,
                           uint32_t count, const sc_qvec *x, const sc_qvec *adapter, uint32_t tokens,
                           const sc_output *out, int core, int cores) {
    int32_t *dst = out->dst;
    for (uint32_t t = 0; t < tokens; t++, dst += out->stride) {
        const sc_qvec *v = &x[t];
        const int32_t shift = right_shift(m, v), mantissa = (int32_t)v->mantissa;
        const uint8_t *block = tile + (uint32_t)core * m->block_bytes;
        for (uint32_t b = (uint32_t)core; b < count; b += (uint32_t)cores) {
            const uint32_t row = (first + b) * SC_ROWS;
            const int32_t left = (int32_t)(m->rows - row);
            int32_t buffer[SC_ROWS];
            int32_t *y = out->kind == SC_STORE && left >= SC_ROWS ? dst + row : buffer;
            const uint8_t *end = block_dot_by_width(m, format, block, v, y);
            rescale(block, mantissa, shift, y);
#if SC_RANK > 0
            if (m->adapter) sc_add_adapter(m->adapter, end, &adapter[t], y);
#else
            (void)end, (void)adapter;
#endif
#ifdef SC_HAS_BIAS
            if (out->bias) sc_add_bias(out->bias + row, sc_min(left, SC_ROWS), y);
#endif
            if (y == buffer) sc_finish_rows(out, dst, row, (uint32_t)sc_min(left, SC_ROWS), y);
            block += (uint32_t)cores * m->block_bytes;
        }
    }
}

/* Each of the model's formats has its own code. A model with one format has no switch. A model with too many
 * formats has one function that decides at run time. */
SC_HOT SC_CLONES void sc_matrix_tile(const sc_matrix *m, const uint8_t *tile, uint32_t first, uint32_t count,
                                     const sc_qvec *x, const sc_qvec *adapter, uint32_t tokens,
                                     const sc_output *out, int core, int cores) {
#ifdef SC_EACH_FORMAT
#define TILE(format)                                                                                         \
    case format:                                                                                             \
        matrix_tile(format, m, tile, first, count, x, adapter, tokens, out, core, cores);                    \
        return;
    switch (m->format) { SC_EACH_FORMAT(TILE) }
    __builtin_unreachable();
#else
    matrix_tile(m->format, m, tile, first, count, x, adapter, tokens, out, core, cores);
#endif
}

#if SC_SPLIT
/* Partial sums of a block. The last parts may be empty. */
SC_INLINE void part_dot(const sc_matrix *m, const int format, const uint8_t *block, const sc_qvec *x,
                        const sc_split_place *at, int32_t *acc) {
    const sc_split_part p = sc_split_inputs(m, format, at);
    const uint8_t *w = block + 2 * SC_ROWS + p.bytes;
    for (int r = 0; r < SC_ROWS; r++) acc[r] = 0;
    if (p.first == p.end) return;
    if (format & SC_FMT_Q16)
        words_dot(format, w, x->q + 4 * p.first, 4 * m->in.words, p.end - p.first, acc);
    else
        groups_dot(m, format, w, x->q + p.first * 4 * m->in.group_words, x, p.first, p.end, acc);
}

/* Not marked hot: its loops run long. */
SC_CLONES void sc_split_sums(const sc_matrix *m, const uint8_t *tile, uint32_t count, const sc_qvec *x,
                             int32_t (*sums)[SC_ROWS], int core, int cores) {
    const sc_split_place at = sc_split_at(count, core, cores);
    if (at.block >= count) return;
    const uint8_t *const block = tile + at.block * m->block_bytes;
#ifdef SC_EACH_FORMAT
#define PART(format)                                                                                         \
    case format:                                                                                             \
        part_dot(m, format, block, x, &at, sums[core]);                                                      \
        return;
    switch (m->format) { SC_EACH_FORMAT(PART) }
#else
#define PART(bits, inputs, fold)                                                                             \
    case bits:                                                                                               \
        part_dot(m, bits | (m->format & ~SC_FMT_BITS), block, x, &at, sums[core]);                           \
        return;
    switch (m->format & SC_FMT_BITS) { SC_EACH_WIDTH(PART) }
#endif
    __builtin_unreachable();
}

void sc_split_rows(const sc_matrix *m, const uint8_t *tile, uint32_t first, uint32_t count, const sc_qvec *x,
                   const sc_qvec *adapter, int32_t (*sums)[SC_ROWS], const sc_output *out, int32_t *dst,
                   int core, int cores) {
    const sc_split_place at = sc_split_at(count, core, cores);
    if (at.block >= count || at.part > 0) return;
    int32_t *const y = sums[core];
    for (uint32_t p = 1; p < at.parts; p++)
        for (int r = 0; r < SC_ROWS; r++) y[r] = (int32_t)((uint32_t)y[r] + (uint32_t)y[SC_ROWS * p + r]);
    finish_sums(m, tile + at.block * m->block_bytes, (first + at.block) * SC_ROWS, x, adapter, out, dst, y);
}
#endif

SC_INLINE void embed_row(const int format, const sc_matrix *m, const uint8_t *block, uint32_t row, uint32_t k,
                         uint32_t factor, int shift, int32_t *x, int core, int cores) {
    const uint32_t head = sc_table_bytes(format);
    const uint32_t group_bytes = head + m->in.group_words * SC_ROWS * (uint32_t)(format & SC_FMT_BITS) / 2;
    const int32_t r = (int32_t)row_scale(block, (int)row);
    for (uint32_t i = (uint32_t)core; i < k; i += (uint32_t)cores) {
        uint32_t g = i / m->in.group_elems, at = i - g * m->in.group_elems;
        const uint8_t *group = block + 2 * SC_ROWS + g * group_bytes;
        int32_t v = get(format, group + head, row, at);
        if (format & SC_FMT_ZEROS) v -= sc_zero_point(sc_load32(group + SC_ROWS), (int)row);
        if (format & SC_FMT_GROUPED) v *= group[row];
        if ((format & (SC_FMT_ASYM | SC_FMT_ZEROS)) == SC_FMT_ASYM)
            v -= sc_offset16(group + SC_ROWS, (int)row);
        x[i] = sc_requantize(v * r, factor, shift);
    }
}

void sc_embed_row(const sc_matrix *m, const uint8_t *block, uint32_t row, uint32_t k, uint32_t factor,
                  int shift, int32_t *x, int core, int cores) {
#ifdef SC_EACH_FORMAT
#define ROW(format)                                                                                          \
    case format:                                                                                             \
        embed_row(format, m, block, row, k, factor, shift, x, core, cores);                                  \
        return;
    switch (m->format) { SC_EACH_FORMAT(ROW) }
    __builtin_unreachable();
#else
    embed_row(m->format, m, block, row, k, factor, shift, x, core, cores);
#endif
}
