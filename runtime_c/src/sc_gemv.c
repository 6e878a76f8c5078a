/* SPDX-License-Identifier: Apache-2.0
 * Integer matrix times quantised vectors, one block of 8 rows at a time.
 *
 * The inner loops are what the whole program's speed hangs on: per 4 inputs one activation word
 * and 8 weight words feed 8 dot products, so the bound is one load per dot product.
 */
#include "sc_platform.h"

#include "sc_dot.h"
#include "sc_kernels.h"

/* Python packs and scales by the same numbers. */
#define AGREE(bits, inputs, fold)                                                                            \
    _Static_assert(SC_W##bits##_INPUTS == (inputs) && SC_W##bits##_FOLD == (fold),                           \
                   "storage/w" #bits ".py and sc_dot_w" #bits ".h are one format");
SC_EACH_WIDTH(AGREE)

/* In all that is hot the width is a constant, and of these switches only its case is left. */

SC_INLINE void dot(const int format, sc_rows *a, const uint8_t **w, const int8_t **x, uint32_t words) {
#define DOT(bits, inputs, fold)                                                                              \
    case bits:                                                                                               \
        sc_dot_w##bits(a, w, x, words);                                                                      \
        return;
    switch (format & SC_FMT_BITS) { SC_EACH_WIDTH(DOT) }
    __builtin_unreachable();
}

/* The sums of dot() are 2^fold times what they mean. */
SC_INLINE int fold(const int format) {
#define FOLD(bits, inputs, fold)                                                                             \
    case bits:                                                                                               \
        return SC_W##bits##_FOLD;
    switch (format & SC_FMT_BITS) { SC_EACH_WIDTH(FOLD) }
    __builtin_unreachable();
}

SC_INLINE int32_t get(const int format, const uint8_t *w, uint32_t row, uint32_t at) {
#define GET(bits, inputs, fold)                                                                              \
    case bits:                                                                                               \
        return sc_get_w##bits(w, row, at);
    switch (format & SC_FMT_BITS) { SC_EACH_WIDTH(GET) }
    __builtin_unreachable();
}

static inline uint32_t row_scale(const uint8_t *block, int r) {
    uint16_t v;
    __builtin_memcpy(&v, __builtin_assume_aligned(block + 2 * r, 2), 2);
    return v;
}

static inline int32_t offset16(const uint8_t *b, int r) {
    int16_t v;
    __builtin_memcpy(&v, __builtin_assume_aligned(b + 2 * r, 2), 2);
    return v;
}

/* sc_lshift_sat() for a block, where the result has more bits than the accumulator */
static __attribute__((noinline, cold)) void lshift_rows(int32_t *y, uint32_t n, int shift) {
    for (uint32_t r = 0; r < n; r++) y[r] = sc_lshift_sat(y[r], shift > 31 ? 31 : shift);
}

/* y[r] = y[r] * r[r] * mantissa * 2^-(32 + right), rounded half up: a rolled loop, so that a block's
 * code fits the 512 bytes of a core's private instruction buffer */
static inline __attribute__((always_inline)) void rescale_rows(const uint8_t *r, int32_t mantissa,
                                                               int32_t right, int32_t *y) {
    const int32_t half = (1 << right) >> 1;
#if SC_XPULP
    int32_t scale, acc;
    /* clang-format off */
    __asm__ volatile(SC_LOOP_CONST_BEGIN(8, x14)
                     ".insn i 0x0b, 5, %[s], 2(%[r])\n"
                     "lw %[a], 0(%[y])\n"
                     "mul %[s], %[s], %[m]\n"
                     "mulh %[a], %[a], %[s]\n"
                     "add %[a], %[a], %[half]\n"
                     "sra %[a], %[a], %[right]\n"
                     ".insn s 0x2b, 2, %[a], 4(%[y])\n" SC_LOOP_END(7)
                     : [r] "+&r"(r), [y] "+&r"(y), [s] "=&r"(scale), [a] "=&r"(acc)
                     : [m] "r"(mantissa), [half] "r"(half), [right] "r"(right)
                     : "memory");
/* clang-format on */
#else
    for (int i = 0; i < SC_ROWS; i++)
        y[i] = (sc_mulh(y[i], (int32_t)row_scale(r, i) * mantissa) + half) >> right;
#endif
}

/* acc[8] of one block times one vector, exact in int32.  Returns the end of the block's weights. */
SC_INLINE const uint8_t *block_dot(const sc_matrix *m, const int format, const uint8_t *block,
                                   const sc_qvec *x, int32_t *acc) {
    const uint8_t *w = block + 2 * SC_ROWS;
    const int8_t *xq = x->q;
    if (format & SC_FMT_Q16) {
        const uint8_t *again = w;
        sc_rows low = {0}, high = {0};
        dot(format, &low, &w, &xq, m->in.words);
        dot(format, &high, &again, &xq, m->in.words); /* high bytes follow */
#define JOIN(r) acc[r] = (int32_t)((uint32_t)(high.s##r >> fold(format)) << 8) + (low.s##r >> fold(format));
        SC_EACH_ROW(JOIN)
        return w;
    }
    const int32_t *c = x->c, *sum = x->sum;
    const uint32_t nseg = m->in.nseg;
    const int32_t drop = m->drop;
    for (uint32_t g = 1; g <= nseg; g++) {
        const uint8_t *d = w, *b = w + SC_ROWS;
        const uint32_t words = g < nseg ? m->in.seg_words : m->in.last_words;
        sc_rows a = {0};
        if (format & SC_FMT_GROUPED) w += SC_ROWS;
        if (format & SC_FMT_ASYM) w += 2 * SC_ROWS;
        dot(format, &a, &w, &xq, words);
        const int32_t scale = *c++;
        /* everything is 2^fold times itself until it is rounded */
        const int32_t less = (format & SC_FMT_ASYM) ? -*sum++ * (1 << fold(format)) : 0;
#define PREPARE(r)                                                                                           \
    if (format & SC_FMT_GROUPED) {                                                                           \
        a.s##r = (int32_t)((uint32_t)a.s##r * d[r]);                                                         \
        if (format & SC_FMT_ASYM) a.s##r = sc_mac(a.s##r, offset16(b, r), less);                             \
        a.s##r = sc_round(a.s##r, drop);                                                                     \
    } else {                                                                                                 \
        a.s##r >>= fold(format); /* exact */                                                                 \
    }
#define FIRST(r) acc[r] = a.s##r * scale;
#define FURTHER(r) acc[r] = sc_mac(acc[r], a.s##r, scale);
        SC_EACH_ROW(PREPARE)
        if (g == 1) {
            SC_EACH_ROW(FIRST)
        } else {
            SC_EACH_ROW(FURTHER)
        }
    }
    return w;
}

/* The same where the format may be known at run time only: asked for its width once, and not in each segment. */
SC_INLINE const uint8_t *block_dot_by_width(const sc_matrix *m, const int format, const uint8_t *block,
                                            const sc_qvec *x, int32_t *acc) {
#define BLOCK_DOT(bits, inputs, fold)                                                                        \
    case bits:                                                                                               \
        return block_dot(m, bits | (format & ~SC_FMT_BITS), block, x, acc);
    switch (format & SC_FMT_BITS) { SC_EACH_WIDTH(BLOCK_DOT) }
    __builtin_unreachable();
}

/* acc -> the result's fixed point, in place: sc_requantize() with the shift's cases taken out */
static inline __attribute__((always_inline)) void rescale(const uint8_t *block, int32_t mantissa,
                                                          int32_t shift, int32_t *y) {
    rescale_rows(block, mantissa, sc_max(shift, 0), y);
    if (__builtin_expect(shift < 0, 0)) lshift_rows(y, SC_ROWS, -shift);
}

static inline int32_t right_shift(const sc_matrix *m, const sc_qvec *x) {
    return sc_min(m->shift - x->exponent, 30);
}

#if SC_RANK > 0
static __attribute__((noinline)) void add_side(const sc_matrix *b, const uint8_t *block, const sc_qvec *side,
                                               int32_t y[SC_ROWS]) {
    int32_t s[SC_ROWS];
    block_dot(b, SC_SIDE_FORMAT, block, side, s);
    rescale(block, (int32_t)side->mantissa, right_shift(b, side), s);
    for (int r = 0; r < SC_ROWS; r++) y[r] = sc_sat_add(y[r], s[r]);
}
#endif

#ifdef SC_HAS_BIAS
SC_HOT static void add_bias(const int32_t *bias, int32_t rows, int32_t *y) {
    for (int32_t r = 0; r < rows; r++) y[r] = sc_sat_add(y[r], bias[r]);
}
#endif

/* dst = silu(gate) * up of n rows in each of several blocks, the ups SC_ROWS / 2 words behind the gates;
 * |gate * sigmoid| << shift and |up| << up_shift are below 2^31, and |gate| is 2^15 below, by the bounds that
 * fixed them */
SC_INLINE void silu_rows(const sc_output *out, const int32_t *gate, uint32_t blocks, uint32_t n,
                         int32_t *dst) {
    const int gate_shift = out->gate_shift, shift = out->silu_shift, up_shift = out->up_shift;
#if SC_XPULP
    if (gate_shift > 0 && gate_shift < 16) { /* at 16 adding half could overflow */
        int32_t g, u, v, i;
        /* clang-format off */
        __asm__ volatile(SC_OUTER_LOOP_BEGIN("%[blocks]", 15 + 2)
                         SC_INNER_LOOP_BEGIN("%[n]", 15)
                         SC_LW_POST("%[g]", "%[y]")
                         "lw %[u], %[half](%[y])\n"
                         "mv %[v], %[g]\n"
                         SC_ROUND("%[v]", "%[gs]")
                         ".insn r 0x33, 1, 0x0A, %[v], %[v], x21\n"
                         "srai %[i], %[v], 10\n"
                         "andi %[i], %[i], -4\n"
                         ".insn r 0x03, 7, 0x10, %[i], %[table], %[i]\n"
                         "and %[v], %[v], %[mask]\n"
                         ".insn r 0x5b, 1, 0x40, %[i], %[i], %[v]\n" /* plus its lower half times v's */
                         "sll %[u], %[u], %[us]\n"
                         "mulh %[g], %[g], %[i]\n"
                         "sll %[g], %[g], %[shift]\n"
                         "mulh %[g], %[g], %[u]\n"
                         ".insn s 0x2b, 2, %[g], 4(%[dst])\n"
                         SC_LOOP_END(15) "\n"
                         "add %[y], %[y], %[step]\n" SC_OUTER_LOOP_END(15 + 2)
                         : [y] "+&r"(gate), [dst] "+&r"(dst), [g] "=&r"(g), [u] "=&r"(u), [v] "=&r"(v), [i] "=&r"(i)
                         : [blocks] "r"(blocks), [n] "r"(n), [step] "r"(4 * (SC_ROWS - n)),
                           [gs] "r"(gate_shift), [shift] "r"(shift), [us] "r"(up_shift), [mask] "r"(4095),
                           [table] "r"(sc_sigmoid_table + 256), [half] "i"(SC_ROWS / 2 * 4 - 4)
                         : "memory");
        /* clang-format on */
        return;
    }
    if (gate_shift <= 0 &&
        gate_shift >= -12) { /* saturates in the last entry of the table, whose slope is 0 */
        int32_t g, u, v, i;
        const int32_t limit = (1 << 20) >> -gate_shift;
        /* clang-format off */
        __asm__ volatile(SC_OUTER_LOOP_BEGIN("%[blocks]", 14 + 2)
                         SC_INNER_LOOP_BEGIN("%[n]", 14)
                         SC_LW_POST("%[g]", "%[y]")
                         "lw %[u], %[half](%[y])\n"
                         ".insn r 0x33, 5, 0x0A, %[v], %[g], %[limit]\n" /* to -limit .. limit - 1 */
                         "sll %[v], %[v], %[gs]\n"
                         "srai %[i], %[v], 10\n"
                         "andi %[i], %[i], -4\n"
                         ".insn r 0x03, 7, 0x10, %[i], %[table], %[i]\n"
                         "and %[v], %[v], %[mask]\n"
                         ".insn r 0x5b, 1, 0x40, %[i], %[i], %[v]\n"
                         "sll %[u], %[u], %[us]\n"
                         "mulh %[g], %[g], %[i]\n"
                         "sll %[g], %[g], %[shift]\n"
                         "mulh %[g], %[g], %[u]\n"
                         ".insn s 0x2b, 2, %[g], 4(%[dst])\n"
                         SC_LOOP_END(14) "\n"
                         "add %[y], %[y], %[step]\n" SC_OUTER_LOOP_END(14 + 2)
                         : [y] "+&r"(gate), [dst] "+&r"(dst), [g] "=&r"(g), [u] "=&r"(u), [v] "=&r"(v), [i] "=&r"(i)
                         : [blocks] "r"(blocks), [n] "r"(n), [step] "r"(4 * (SC_ROWS - n)),
                           [gs] "r"(-gate_shift), [limit] "r"(limit - 1), [shift] "r"(shift),
                           [us] "r"(up_shift), [mask] "r"(4095), [table] "r"(sc_sigmoid_table + 256),
                           [half] "i"(SC_ROWS / 2 * 4 - 4)
                         : "memory");
        /* clang-format on */
        return;
    }
#endif
    for (; blocks; blocks--, gate += SC_ROWS - n) {
        for (uint32_t left = n; left; left--, gate++) {
            int32_t g16 = *gate;
            if (gate_shift > 0) {
                g16 = sc_rshift(g16, gate_shift);
            } else if (gate_shift < 0) { /* saturate where the sigmoid does */
                const int32_t limit = (1 << 20) >> -gate_shift;
                g16 = (int32_t)((uint32_t)sc_min(sc_max(g16, -limit), limit) << -gate_shift);
            }
            const int32_t s = (int32_t)((uint32_t)sc_mulh(*gate, sc_sigmoid_q31(g16)) << shift);
            *dst++ = sc_mulh(s, (int32_t)((uint32_t)gate[SC_ROWS / 2] << up_shift));
        }
    }
}

/* What happens to a block's rows other than being stored whole. */
SC_HOT static void finish_rows(const sc_output *out, int32_t *dst, uint32_t row, uint32_t rows,
                               const int32_t *y) {
    if (out->kind == SC_SILU) {
        silu_rows(out, y, 1, rows / 2, dst + row / 2);
    } else if (out->kind == SC_ADD) {
        dst += row;
        for (uint32_t r = 0; r < rows; r++) dst[r] = sc_add_to_residual(dst[r], y[r]);
    } else {
        dst += row;
        for (uint32_t r = 0; r < rows; r++) dst[r] = y[r];
    }
}

/* Tokens outside, blocks inside: what a block needs beyond its weights stays in registers, and the
 * loop over blocks fits the private instruction buffer. */
SC_INLINE void matrix_tile(const int format, const sc_matrix *m, const uint8_t *tile, uint32_t first,
                           uint32_t count, const sc_qvec *x, const sc_qvec *side, uint32_t tokens,
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
            if (m->b) add_side(m->b, end, &side[t], y);
#else
            (void)end, (void)side;
#endif
#ifdef SC_HAS_BIAS
            if (out->bias) add_bias(out->bias + row, sc_min(left, SC_ROWS), y);
#endif
            if (y == buffer) finish_rows(out, dst, row, (uint32_t)sc_min(left, SC_ROWS), y);
            block += (uint32_t)cores * m->block_bytes;
        }
    }
}

/* Each of the model's formats has code of its own; a model with one has no other and asks for none.  Where
 * there are too many for that, all have one code, which asks. */
SC_HOT SC_CLONES void sc_matrix_tile(const sc_matrix *m, const uint8_t *tile, uint32_t first, uint32_t count,
                                     const sc_qvec *x, const sc_qvec *side, uint32_t tokens,
                                     const sc_output *out, int core, int cores) {
#ifdef SC_EACH_FORMAT
#define TILE(format)                                                                                         \
    case format:                                                                                             \
        matrix_tile(format, m, tile, first, count, x, side, tokens, out, core, cores);                       \
        return;
    switch (m->format) { SC_EACH_FORMAT(TILE) }
    __builtin_unreachable();
#else
    matrix_tile(m->format, m, tile, first, count, x, side, tokens, out, core, cores);
#endif
}

#ifdef SC_HAS_ENGINES
#define JOINED_SILU 64u /* rows of gate and up at a time */

/* rescale_rows() of low + 256 * high, shifted to the right by a bit at least; to y.  Or, with `add`, to the residual
 * there, and also shifted to the left by up to 30. */
static inline __attribute__((always_inline)) void join_rows(const uint16_t *r, uint32_t n, const int32_t *low,
                                                            const int32_t *high, uint32_t mantissa,
                                                            int32_t right, int add, int32_t *y) {
#if SC_XPULP
    int32_t s, t, a, b, h, i;
    /* clang-format off */
#define JOIN_TWO                                                                                             \
    SC_LW_POST("%[t]", "%[r]") /* two multipliers */                                                         \
    SC_LW_POST("%[h]", "%[high]") SC_LW_POST("%[i]", "%[high]")                                              \
    SC_LW_POST("%[a]", "%[low]") SC_LW_POST("%[b]", "%[low]")                                                \
    ".insn r 0x5b, 0, 0, %[s], %[t], %[m]\n"                                                                 \
    ".insn r 0x5b, 0, 0x20, %[t], %[t], %[m]\n"                                                              \
    SC_MAC("%[a]", "%[h]", "%[c]") SC_MAC("%[b]", "%[i]", "%[c]")                                            \
    "mulh %[a], %[a], %[s]\n"                                                                                \
    "mulh %[b], %[b], %[t]\n"
#define JOINED                                                                                               \
    [r] "+&r"(r), [y] "+&r"(y), [low] "+&r"(low), [high] "+&r"(high), [s] "=&r"(s), [t] "=&r"(t),            \
    [a] "=&r"(a), [b] "=&r"(b), [h] "=&r"(h), [i] "=&r"(i)                                                   \
    : [n] "r"(n / 2), [m] "r"(mantissa | mantissa << 16), [c] "r"(256), [right] "r"(right)
    if (n > 1 && add && right <= 0) { /* clipped to what becomes 2^30, and that once more */
        const int32_t left = -right, limit = 1 << (30 - left);
        __asm__ volatile(SC_LOOP_BEGIN("%[n]", 25) JOIN_TWO
                         ".insn r 0x33, 5, 0x0A, %[a], %[a], %[limit]\n"
                         ".insn r 0x33, 5, 0x0A, %[b], %[b], %[limit]\n"
                         "lw %[s], 0(%[y])\n"
                         "lw %[t], 4(%[y])\n"
                         "sll %[a], %[a], %[left]\n"
                         "sll %[b], %[b], %[left]\n"
                         SC_CLIP30("%[a]", "%[a]") SC_CLIP30("%[b]", "%[b]")
                         "add %[a], %[a], %[s]\n"
                         "add %[b], %[b], %[t]\n"
                         SC_CLIP30("%[a]", "%[a]") SC_CLIP30("%[b]", "%[b]")
                         ".insn s 0x2b, 2, %[a], 4(%[y])\n"
                         ".insn s 0x2b, 2, %[b], 4(%[y])\n" SC_LOOP_END(25)
                         : JOINED, [left] "r"(left), [limit] "r"(limit) : "memory");
    } else if (n > 1 && add)
        __asm__ volatile(SC_LOOP_BEGIN("%[n]", 21) JOIN_TWO
                         "lw %[s], 0(%[y])\n"
                         "lw %[t], 4(%[y])\n"
                         SC_ROUND("%[a]", "%[right]") SC_ROUND("%[b]", "%[right]")
                         "add %[a], %[a], %[s]\n"
                         "add %[b], %[b], %[t]\n"
                         SC_CLIP30("%[a]", "%[a]") SC_CLIP30("%[b]", "%[b]")
                         ".insn s 0x2b, 2, %[a], 4(%[y])\n"
                         ".insn s 0x2b, 2, %[b], 4(%[y])\n" SC_LOOP_END(21) : JOINED : "memory");
    else if (n > 1)
        __asm__ volatile(SC_LOOP_BEGIN("%[n]", 15) JOIN_TWO
                         SC_ROUND("%[a]", "%[right]") SC_ROUND("%[b]", "%[right]")
                         ".insn s 0x2b, 2, %[a], 4(%[y])\n"
                         ".insn s 0x2b, 2, %[b], 4(%[y])\n" SC_LOOP_END(15) : JOINED : "memory");
    /* clang-format on */
#undef JOIN_TWO
#undef JOINED
    n &= 1;
#endif
    for (; n; n--, r++, y++) {
        const int32_t acc = *low++ + (int32_t)((uint32_t)*high++ << 8);
        const int32_t high_word = sc_mulh(acc, (int32_t)(*r * mantissa));
        const int32_t v = add && right <= 0 ? sc_lshift_sat(high_word, -right) : sc_round(high_word, right);
        *y = add ? sc_add_to_residual(*y, v) : v;
    }
}

/* Rows row .. row + rows - 1, up to a block, in their fixed point. */
static inline void finish_block(const sc_matrix *m, uint32_t row, uint32_t rows, int32_t *y,
                                const sc_output *out, int32_t *dst) {
    rows = (uint32_t)sc_min((int32_t)(m->rows - row), (int32_t)rows);
#ifdef SC_HAS_BIAS
    if (out->bias) add_bias(out->bias + row, (int32_t)rows, y);
#endif
    finish_rows(out, dst, row, rows, y);
}

/* As below, where join_rows() cannot shift that far, or has a bias to add. */
static __attribute__((noinline, cold)) void join_any(const sc_matrix *m, const uint16_t *r, uint32_t row,
                                                     uint32_t rows, const int32_t *low, const int32_t *high,
                                                     const sc_qvec *x, const sc_output *out, int32_t *dst) {
    const uint32_t stored = (uint32_t)sc_min((int32_t)(m->rows - row), (int32_t)rows);
    for (uint32_t i = 0; i < stored; i += SC_ROWS) {
        int32_t y[SC_ROWS] = {0};
        uint16_t scales[SC_ROWS] = {0};
        const uint32_t n = rows - i < SC_ROWS ? rows - i : SC_ROWS;
        for (uint32_t j = 0; j < n; j++) {
            y[j] = low[i + j] + (int32_t)((uint32_t)high[i + j] << 8);
            scales[j] = r[i + j];
        }
        rescale((const uint8_t *)scales, (int32_t)x->mantissa, right_shift(m, x), y);
        finish_block(m, row + i, n, y, out, dst);
    }
}

SC_HOT void sc_matrix_joined(const sc_matrix *m, const uint16_t *r, uint32_t row, uint32_t rows,
                             const int32_t *low, const int32_t *high, const sc_qvec *x, const sc_output *out,
                             int32_t *dst) {
    if (row >= m->rows) return; /* a share of the last block's padding alone */
    const int32_t right = right_shift(m, x);
    int plain = right > (out->kind == SC_ADD ? -31 : 0);
#ifdef SC_HAS_BIAS
    plain &= !out->bias;
#endif
    if (__builtin_expect(!plain, 0)) {
        join_any(m, r, row, rows, low, high, x, out, dst);
        return;
    }
    uint32_t left = (uint32_t)sc_min((int32_t)(m->rows - row), (int32_t)rows);
    if (out->kind == SC_ADD) {
        join_rows(r, left, low, high, x->mantissa, right, 1, dst + row);
        return;
    }
    int32_t buffer[JOINED_SILU];
    do {
        const int silu = out->kind == SC_SILU;
        const uint32_t n = silu && left > JOINED_SILU ? JOINED_SILU : left, rest = n % SC_ROWS;
        /* the last block of gate and up has padding on both sides */
        join_rows(r, silu ? n + (SC_ROWS - rest) % SC_ROWS : n, low, high, x->mantissa, right, 0,
                  silu ? buffer : dst + row);
        if (!silu) return;
        if (n - rest) silu_rows(out, buffer, n / SC_ROWS, SC_ROWS / 2, dst + row / 2);
        if (__builtin_expect(rest > 0, 0))
            silu_rows(out, buffer + n - rest, 1, rest / 2, dst + (row + n - rest) / 2);
        left -= n, row += n, r += n, low += n, high += n;
    } while (left);
}

void sc_matrix_rows(const sc_matrix *m, const uint16_t r[SC_ROWS], uint32_t row, int32_t y[SC_ROWS],
                    const sc_qvec *x, const sc_output *out, int32_t *dst) {
    rescale((const uint8_t *)r, (int32_t)x->mantissa, right_shift(m, x), y);
    finish_block(m, row, SC_ROWS, y, out, dst);
}
#endif

SC_INLINE void embed_row(const int format, const sc_matrix *m, const uint8_t *block, uint32_t row, uint32_t k,
                         uint32_t factor, int shift, int32_t *x, int core, int cores) {
    const uint32_t head =
        (format & SC_FMT_GROUPED ? SC_ROWS : 0u) + (format & SC_FMT_ASYM ? 2 * SC_ROWS : 0u);
    const uint32_t seg_bytes = head + m->in.seg_words * SC_ROWS * (uint32_t)(format & SC_FMT_BITS) / 2;
    const int32_t r = (int32_t)row_scale(block, (int)row);
    for (uint32_t i = (uint32_t)core; i < k; i += (uint32_t)cores) {
        uint32_t g = i / m->in.seg_elems, at = i - g * m->in.seg_elems;
        const uint8_t *seg = block + 2 * SC_ROWS + g * seg_bytes;
        int32_t v = get(format, seg + head, row, at);
        if (format & SC_FMT_GROUPED) v *= seg[row];
        if (format & SC_FMT_ASYM) v -= offset16(seg + SC_ROWS, (int)row);
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
