/* SPDX-License-Identifier: Apache-2.0
 * Integer matrix times quantised vectors, one block of 8 rows at a time.
 *
 * The inner loops are what the whole program's speed hangs on: per 4 inputs one activation word
 * and 8 weight words feed 8 dot products, so the bound is one load per dot product.
 */
#include "sc_platform.h"

#include "sc_kernels.h"

static inline int32_t load32(const void *p) {
    int32_t v;
    __builtin_memcpy(&v, __builtin_assume_aligned(p, 4), 4);
    return v;
}

/* The 8 rows of a block live in 8 variables: arrays would go through memory. */
#define ROWS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
#define DECLARE_DOT(r) int32_t a##r = 0;

#if SC_XPULP

/* clang-format off */
#define DOT_OUT(r) [a##r] "+&r"(a##r),
#define W8_ODD(r) SC_SDOT("%[a" #r "]", "%[x0]", "%[t1]") SC_LW_POST("%[t1]", "%[w]")
#define W8_EVEN(r) SC_SDOT("%[a" #r "]", "%[x0]", "%[t0]") SC_LW_POST("%[t0]", "%[w]")

/* a[r] += x[i] . weights[i][r] over `words` words; 17 instructions per 32 products */
#define DOT_W8(words)                                                                           \
    {                                                                                           \
        int32_t x0, t0, t1;                                                                     \
        __asm__ volatile(".balign 4\n.option push\n.option norvc\n" SC_LOOP("%[n]", 17)                    \
                         SC_LW_POST("%[x0]", "%[x]") SC_LW_POST("%[t0]", "%[w]")                \
                         SC_LW_POST("%[t1]", "%[w]")                                            \
                         W8_EVEN(0) W8_ODD(1) W8_EVEN(2) W8_ODD(3) W8_EVEN(4) W8_ODD(5)         \
                         SC_SDOT("%[a6]", "%[x0]", "%[t0]") SC_SDOT("%[a7]", "%[x0]", "%[t1]")  \
                         ".option pop"                                                          \
                         : ROWS(DOT_OUT) [w] "+&r"(w), [x] "+&r"(xq), [x0] "=&r"(x0),             \
                           [t0] "=&r"(t0), [t1] "=&r"(t1)                                       \
                         : [n] "r"(words)                                                       \
                         : "memory");                                                           \
    }

#define W4_ROW(acc, cur)                                                                        \
    "slli %[lo], " cur ", 4\nand " cur ", " cur ", %[m]\nand %[lo], %[lo], %[m]\n"              \
    SC_SDOT(acc, "%[x1]", cur) SC_SDOT(acc, "%[x0]", "%[lo]")
#define W4_EVEN(r) SC_LW_POST("%[t1]", "%[w]") W4_ROW("%[a" #r "]", "%[t0]")
#define W4_ODD(r) SC_LW_POST("%[t0]", "%[w]") W4_ROW("%[a" #r "]", "%[t1]")

/* 16 times the dot products of nibble rows over words / 2 pairs; 50 instructions per 64 products */
#define DOT_W4(words)                                                                           \
    {                                                                                           \
        int32_t x0, x1, t0, t1, lo;                                                             \
        __asm__ volatile(".balign 4\n.option push\n.option norvc\n" SC_LOOP("%[n]", 50)                    \
                         SC_LW_POST("%[t0]", "%[w]") SC_LW_POST("%[x0]", "%[x]")                \
                         SC_LW_POST("%[x1]", "%[x]")                                            \
                         W4_EVEN(0) W4_ODD(1) W4_EVEN(2) W4_ODD(3) W4_EVEN(4) W4_ODD(5)         \
                         W4_EVEN(6) W4_ROW("%[a7]", "%[t1]")                                    \
                         ".option pop"                                                          \
                         : ROWS(DOT_OUT) [w] "+&r"(w), [x] "+&r"(xq), [x0] "=&r"(x0),             \
                           [x1] "=&r"(x1), [t0] "=&r"(t0), [t1] "=&r"(t1), [lo] "=&r"(lo)       \
                         : [n] "r"((words) >> 1), [m] "r"(0xF0F0F0F0u)                          \
                         : "memory");                                                           \
    }

/* clang-format on */
#elif SC_SIMD

/* The same sums in the compiler's vectors, for hosts: a product is at most 128 * 127, so that two fit
 * 16 bits; every row has two sums of two products each per word. */
typedef int8_t v_bytes __attribute__((vector_size(4 * SC_ROWS)));
typedef int32_t v_words __attribute__((vector_size(4 * SC_ROWS)));
typedef int16_t v_halves __attribute__((vector_size(8 * SC_ROWS)));
typedef int32_t v_sums __attribute__((vector_size(8 * SC_ROWS)));

/* *sums += rows of *w times the four bytes of x; pointers, because vectors are no portable arguments */
static inline __attribute__((always_inline)) void dot_rows(v_sums *sums, const v_words *w, int32_t x) {
    const v_words spread = *w * 0 + x;
    const v_halves p =
        __builtin_convertvector((v_bytes)*w, v_halves) * __builtin_convertvector((v_bytes)spread, v_halves);
    const v_sums pairs = (v_sums)p;
    *sums += (pairs << 16 >> 16) + (pairs >> 16);
}

#define DOT_OUT(r) a##r += sums[2 * r] + sums[2 * r + 1];
#define DOT_W8(words)                                                                                        \
    {                                                                                                        \
        v_sums sums = {0};                                                                                   \
        v_words rows;                                                                                        \
        for (uint32_t n_ = (words); n_; n_--, xq += 4, w += 4 * SC_ROWS) {                                   \
            __builtin_memcpy(&rows, w, sizeof rows);                                                         \
            dot_rows(&sums, &rows, load32(xq));                                                              \
        }                                                                                                    \
        ROWS(DOT_OUT)                                                                                        \
    }
#define DOT_W4(words)                                                                                        \
    {                                                                                                        \
        v_sums sums = {0};                                                                                   \
        v_words both, rows;                                                                                  \
        for (uint32_t n_ = (words) >> 1; n_; n_--, xq += 8, w += 4 * SC_ROWS) {                              \
            __builtin_memcpy(&both, w, sizeof both);                                                         \
            rows = (both << 4) & (int32_t)0xF0F0F0F0;                                                        \
            dot_rows(&sums, &rows, load32(xq));                                                              \
            rows = both & (int32_t)0xF0F0F0F0;                                                               \
            dot_rows(&sums, &rows, load32(xq + 4));                                                          \
        }                                                                                                    \
        ROWS(DOT_OUT)                                                                                        \
    }

#else

#define W8_ROW(r) a##r = sc_sdot4(a##r, load32(xq), load32(w + 4 * r));
#define DOT_W8(words)                                                                                        \
    for (uint32_t n_ = (words); n_; n_--, xq += 4, w += 4 * SC_ROWS) {                                       \
        ROWS(W8_ROW)                                                                                         \
    }

static inline int32_t w4_row(int32_t acc, const int8_t *x, const uint8_t *w) {
    const uint32_t v = (uint32_t)load32(w);
    acc = sc_sdot4(acc, load32(x), (int32_t)((v << 4) & 0xF0F0F0F0u));
    return sc_sdot4(acc, load32(x + 4), (int32_t)(v & 0xF0F0F0F0u));
}
#define W4_ROW(r) a##r = w4_row(a##r, xq, w + 4 * r);
#define DOT_W4(words)                                                                                        \
    for (uint32_t n_ = (words) >> 1; n_; n_--, xq += 8, w += 4 * SC_ROWS) {                                  \
        ROWS(W4_ROW)                                                                                         \
    }

#endif

/* Models with one storage format have it as a constant, so that no other path is compiled. */
#ifdef SC_ONE_FORMAT
#define FORMAT(m) ((void)(m), SC_ONE_FORMAT)
#else
#define FORMAT(m) ((m)->format)
#endif

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
static __attribute__((noinline, cold)) void lshift_rows(int32_t y[SC_ROWS], int shift) {
    for (int r = 0; r < SC_ROWS; r++) y[r] = sc_lshift_sat(y[r], shift > 31 ? 31 : shift);
}

/* y[r] = y[r] * r[r] * mantissa * 2^-(32 + right), rounded half up: a rolled loop, so that a block's
 * code fits the 512 bytes of a core's private instruction buffer */
static inline __attribute__((always_inline)) void rescale_rows(const uint8_t *r, int32_t mantissa,
                                                               int32_t right, int32_t *y) {
    const int32_t half = (1 << right) >> 1;
#if SC_XPULP
    int32_t scale, acc;
    /* clang-format off */
    __asm__ volatile(".balign 4\n.option push\n.option norvc\n.insn i 0x7b, 5, x0, x14, 8\n" /* 7 instructions, 8 times */
                     ".insn i 0x0b, 5, %[s], 2(%[r])\n"
                     "lw %[a], 0(%[y])\n"
                     "mul %[s], %[s], %[m]\n"
                     "mulh %[a], %[a], %[s]\n"
                     "add %[a], %[a], %[half]\n"
                     "sra %[a], %[a], %[right]\n"
                     ".insn s 0x2b, 2, %[a], 4(%[y])\n.option pop"
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
static inline __attribute__((always_inline)) const uint8_t *
block_dot(const sc_matrix *m, const int format, const uint8_t *block, const sc_qvec *x, int32_t *acc) {
    const uint8_t *w = block + 2 * SC_ROWS;
    const int8_t *xq = x->q;
    const int32_t *c = x->c, *sum = x->sum;
    const uint32_t nseg = m->in.nseg;
    const int32_t drop = m->drop;
    for (uint32_t g = 1; g <= nseg; g++) {
        const uint8_t *d = w, *b = w + SC_ROWS;
        const uint32_t words = g < nseg ? m->in.seg_words : m->in.last_words;
        ROWS(DECLARE_DOT)
        if (format & SC_FMT_GROUPED) w += SC_ROWS;
        if (format & SC_FMT_ASYM) w += 2 * SC_ROWS;
        if (format & SC_FMT_W4)
            DOT_W4(words)
        else
            DOT_W8(words)
        const int32_t scale = *c++;
        /* with 4-bit weights everything is 16-fold until it is rounded */
        const int32_t less = (format & SC_FMT_ASYM) ? -*sum++ * (format & SC_FMT_W4 ? 16 : 1) : 0;
#define PREPARE(r)                                                                                           \
    if (format & SC_FMT_GROUPED) {                                                                           \
        a##r = (int32_t)((uint32_t)a##r * d[r]);                                                             \
        if (format & SC_FMT_ASYM) a##r = sc_mac(a##r, offset16(b, r), less);                                 \
        a##r = sc_round(a##r, drop);                                                                         \
    } else if (format & SC_FMT_W4) {                                                                         \
        a##r >>= 4; /* exact: a multiple of 16 */                                                            \
    }
#define FIRST(r) acc[r] = a##r * scale;
#define FURTHER(r) acc[r] = sc_mac(acc[r], a##r, scale);
        ROWS(PREPARE)
        if (g == 1) {
            ROWS(FIRST)
        } else {
            ROWS(FURTHER)
        }
    }
    return w;
}

/* acc -> the result's fixed point, in place: sc_requantize() with the shift's cases taken out */
static inline __attribute__((always_inline)) void rescale(const uint8_t *block, int32_t mantissa,
                                                          int32_t shift, int32_t *y) {
    rescale_rows(block, mantissa, sc_max(shift, 0), y);
    if (__builtin_expect(shift < 0, 0)) lshift_rows(y, -shift);
}

static inline int32_t right_shift(const sc_matrix *m, const sc_qvec *x) {
    return sc_min(m->shift - x->exponent, 30);
}

#if SC_RANK > 0
static __attribute__((noinline)) void add_side(const sc_matrix *b, const uint8_t *block, const sc_qvec *side,
                                               int32_t y[SC_ROWS]) {
    int32_t s[SC_ROWS];
    block_dot(b, 0, block, side, s);
    rescale(block, (int32_t)side->mantissa, right_shift(b, side), s);
    for (int r = 0; r < SC_ROWS; r++) y[r] = sc_sat_add(y[r], s[r]);
}
#endif

/* silu(gate) * up; |result| < 2^31 by the bound that fixed its fraction bits */
static inline int32_t silu_mul(int32_t gate, int32_t up, int32_t gate_shift, int32_t shift) {
    int32_t g16 = gate;
    if (gate_shift > 0) {
        g16 = sc_rshift(gate, gate_shift);
    } else if (gate_shift < 0) { /* saturate where the sigmoid does */
        const int32_t limit = (1 << 20) >> -gate_shift;
        g16 = (int32_t)((uint32_t)sc_min(sc_max(gate, -limit), limit) << -gate_shift);
    }
    const int32_t s = sc_mulh(gate, (int32_t)(sc_sigmoid_q16(g16) << 14));
    const uint32_t high = (uint32_t)sc_mulh(s, up), low = (uint32_t)s * (uint32_t)up;
    return (int32_t)((high << (32 - shift) | low >> shift) + (low >> (shift - 1) & 1)); /* 1 .. 31 */
}

/* What happens to a block's rows other than being stored whole. */
SC_HOT static void finish_rows(const sc_output *out, int32_t *dst, uint32_t row, uint32_t rows,
                               const int32_t *y) {
    if (out->kind == SC_SILU) {
        const int32_t gate_shift = out->gate_shift, shift = out->silu_shift;
        dst += row / 2;
        for (uint32_t r = 0; r < rows / 2; r++)
            dst[r] = silu_mul(y[r], y[r + SC_ROWS / 2], gate_shift, shift);
    } else if (out->kind == SC_ADD) {
        dst += row;
        for (uint32_t r = 0; r < rows; r++) dst[r] = sc_sat_add(dst[r], y[r]);
    } else {
        dst += row;
        for (uint32_t r = 0; r < rows; r++) dst[r] = y[r];
    }
}

/* Tokens outside, blocks inside: what a block needs beyond its weights stays in registers, and the
 * loop over blocks fits the private instruction buffer. */
SC_HOT SC_CLONES void sc_matrix_tile(const sc_matrix *m, const uint8_t *tile, uint32_t first, uint32_t count,
                                     const sc_qvec *x, const sc_qvec *side, uint32_t tokens,
                                     const sc_output *out, int core, int cores) {
    const int format = FORMAT(m);
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
            const uint8_t *end = block_dot(m, format, block, v, y);
            rescale(block, mantissa, shift, y);
#if SC_RANK > 0
            if (m->b) add_side(m->b, end, &side[t], y);
#else
            (void)end, (void)side;
#endif
            if (y == buffer) finish_rows(out, dst, row, (uint32_t)sc_min(left, SC_ROWS), y);
            block += (uint32_t)cores * m->block_bytes;
        }
    }
}

void sc_embed_row(const sc_matrix *m, const uint8_t *block, uint32_t row, uint32_t k, uint32_t factor,
                  int shift, int32_t *x, int core, int cores) {
    const int format = FORMAT(m), w4 = format & SC_FMT_W4;
    const uint32_t head =
        (format & SC_FMT_GROUPED ? SC_ROWS : 0u) + (format & SC_FMT_ASYM ? 2 * SC_ROWS : 0u);
    const uint32_t seg_bytes = head + m->in.seg_words * 4u * SC_ROWS / (w4 ? 2 : 1);
    const int32_t r = (int32_t)row_scale(block, (int)row);
    for (uint32_t i = (uint32_t)core; i < k; i += (uint32_t)cores) {
        uint32_t g = i / m->in.seg_elems, at = i - g * m->in.seg_elems;
        const uint8_t *seg = block + 2 * SC_ROWS + g * seg_bytes, *w = seg + head;
        int32_t v;
        if (w4) {
            uint8_t byte = w[(at >> 3) * 4 * SC_ROWS + row * 4 + (at & 3)];
            v = (int8_t)(at & 4 ? byte & 0xF0 : byte << 4) >> 4;
        } else {
            v = (int8_t)w[(at >> 2) * 4 * SC_ROWS + row * 4 + (at & 3)];
        }
        if (format & SC_FMT_GROUPED) v *= seg[row];
        if (format & SC_FMT_ASYM) v -= offset16(seg + SC_ROWS, (int)row);
        x[i] = sc_requantize(v * r, factor, shift);
    }
}
