/* Integer matrix times quantised vectors, one block of 8 rows at a time.
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

#if SC_XPULP

/* acc[r] = sum over `words` of x[w] . weights[w][r]; 17 instructions per 32 products */
static inline const uint8_t *dot_w8(const uint8_t *w, const int8_t **xp, uint32_t words, int32_t *a) {
    int32_t a0 = 0, a1 = 0, a2 = 0, a3 = 0, a4 = 0, a5 = 0, a6 = 0, a7 = 0, x0, t0, t1;
    const int8_t *x = *xp;
    __asm__ volatile(
        ".option push\n.option norvc\n" SC_LOOP("%[n]", 17)
        SC_LW_POST("%[x0]", "%[x]") SC_LW_POST("%[t0]", "%[w]") SC_LW_POST("%[t1]", "%[w]")
        SC_SDOT("%[a0]", "%[x0]", "%[t0]") SC_LW_POST("%[t0]", "%[w]")
        SC_SDOT("%[a1]", "%[x0]", "%[t1]") SC_LW_POST("%[t1]", "%[w]")
        SC_SDOT("%[a2]", "%[x0]", "%[t0]") SC_LW_POST("%[t0]", "%[w]")
        SC_SDOT("%[a3]", "%[x0]", "%[t1]") SC_LW_POST("%[t1]", "%[w]")
        SC_SDOT("%[a4]", "%[x0]", "%[t0]") SC_LW_POST("%[t0]", "%[w]")
        SC_SDOT("%[a5]", "%[x0]", "%[t1]") SC_LW_POST("%[t1]", "%[w]")
        SC_SDOT("%[a6]", "%[x0]", "%[t0]")
        SC_SDOT("%[a7]", "%[x0]", "%[t1]")
        ".option pop"
        : [a0] "+r"(a0), [a1] "+r"(a1), [a2] "+r"(a2), [a3] "+r"(a3), [a4] "+r"(a4), [a5] "+r"(a5),
          [a6] "+r"(a6), [a7] "+r"(a7), [w] "+r"(w), [x] "+r"(x), [x0] "=&r"(x0), [t0] "=&r"(t0), [t1] "=&r"(t1)
        : [n] "r"(words)
        : "memory");
    a[0] = a0, a[1] = a1, a[2] = a2, a[3] = a3, a[4] = a4, a[5] = a5, a[6] = a6, a[7] = a7;
    *xp = x;
    return w;
}

#define SC_W4_ROW(acc, cur)                                                                     \
    "slli %[lo], " cur ", 4\nand " cur ", " cur ", %[m]\nand %[lo], %[lo], %[m]\n"              \
    SC_SDOT(acc, "%[x1]", cur) SC_SDOT(acc, "%[x0]", "%[lo]")

/* 16 times the dot products of 8 nibble rows over `pairs` double words; 50 instructions per 64 */
static inline const uint8_t *dot_w4(const uint8_t *w, const int8_t **xp, uint32_t pairs, int32_t *a) {
    int32_t a0 = 0, a1 = 0, a2 = 0, a3 = 0, a4 = 0, a5 = 0, a6 = 0, a7 = 0, x0, x1, t0, t1, lo;
    const int8_t *x = *xp;
    const uint32_t mask = 0xF0F0F0F0u;
    __asm__ volatile(
        ".option push\n.option norvc\n" SC_LOOP("%[n]", 50)
        SC_LW_POST("%[t0]", "%[w]") SC_LW_POST("%[x0]", "%[x]") SC_LW_POST("%[x1]", "%[x]")
        SC_LW_POST("%[t1]", "%[w]") SC_W4_ROW("%[a0]", "%[t0]")
        SC_LW_POST("%[t0]", "%[w]") SC_W4_ROW("%[a1]", "%[t1]")
        SC_LW_POST("%[t1]", "%[w]") SC_W4_ROW("%[a2]", "%[t0]")
        SC_LW_POST("%[t0]", "%[w]") SC_W4_ROW("%[a3]", "%[t1]")
        SC_LW_POST("%[t1]", "%[w]") SC_W4_ROW("%[a4]", "%[t0]")
        SC_LW_POST("%[t0]", "%[w]") SC_W4_ROW("%[a5]", "%[t1]")
        SC_LW_POST("%[t1]", "%[w]") SC_W4_ROW("%[a6]", "%[t0]")
        SC_W4_ROW("%[a7]", "%[t1]")
        ".option pop"
        : [a0] "+r"(a0), [a1] "+r"(a1), [a2] "+r"(a2), [a3] "+r"(a3), [a4] "+r"(a4), [a5] "+r"(a5),
          [a6] "+r"(a6), [a7] "+r"(a7), [w] "+r"(w), [x] "+r"(x), [x0] "=&r"(x0), [x1] "=&r"(x1), [t0] "=&r"(t0),
          [t1] "=&r"(t1), [lo] "=&r"(lo)
        : [n] "r"(pairs), [m] "r"(mask)
        : "memory");
    a[0] = a0, a[1] = a1, a[2] = a2, a[3] = a3, a[4] = a4, a[5] = a5, a[6] = a6, a[7] = a7;
    *xp = x;
    return w;
}

#else

static inline const uint8_t *dot_w8(const uint8_t *w, const int8_t **xp, uint32_t words, int32_t *a) {
    for (int r = 0; r < SC_ROWS; r++) a[r] = 0;
    for (; words; words--, *xp += 4)
        for (int r = 0; r < SC_ROWS; r++, w += 4) a[r] = sc_sdot4(a[r], load32(*xp), load32(w));
    return w;
}

static inline const uint8_t *dot_w4(const uint8_t *w, const int8_t **xp, uint32_t pairs, int32_t *a) {
    for (int r = 0; r < SC_ROWS; r++) a[r] = 0;
    for (; pairs; pairs--, *xp += 8)
        for (int r = 0; r < SC_ROWS; r++, w += 4) {
            uint32_t v = (uint32_t)load32(w);
            a[r] = sc_sdot4(a[r], load32(*xp), (int32_t)((v << 4) & 0xF0F0F0F0u));
            a[r] = sc_sdot4(a[r], load32(*xp + 4), (int32_t)(v & 0xF0F0F0F0u));
        }
    return w;
}

#endif

/* Models with one storage format have it as a constant, so that no other path is compiled. */
#ifdef SC_ONE_FORMAT
#define FORMAT(m) ((void)(m), SC_ONE_FORMAT)
#else
#define FORMAT(m) ((m)->format)
#endif
/* A core's private instruction buffer holds 512 bytes: loops over rows stay rolled, so that a whole
 * block's code fits. */
#define EACH_ROW _Pragma("GCC unroll 1") for (int r = 0; r < SC_ROWS; r++)
#define EACH_ROW_UNROLLED _Pragma("GCC unroll 8") for (int r = 0; r < SC_ROWS; r++)

/* acc[8] of one block against a vector, exact in int32; returns the end of the block's weights */
static inline __attribute__((always_inline)) const uint8_t *block_dot(const sc_matrix *m, const int format,
                                                                      const uint8_t *block, const sc_qvec *x,
                                                                      int32_t acc[SC_ROWS]) {
    const uint8_t *w = block + 2 * SC_ROWS;
    const int8_t *xq = x->q;
    const int32_t *c = x->c, *sum = x->sum;
    uint32_t words = m->in.seg_words, left = m->in.nseg;
    EACH_ROW_UNROLLED acc[r] = 0;
    do {
        const uint8_t *d = w;
        const int8_t *z = (const int8_t *)w + SC_ROWS;
        int32_t dot[SC_ROWS];
        if (left == 1) words = m->in.last_words;
        if (format & SC_FMT_GROUPED) w += SC_ROWS;
        if (format & SC_FMT_ASYM) w += SC_ROWS;
        w = (format & SC_FMT_W4) ? dot_w4(w, &xq, words >> 1, dot) : dot_w8(w, &xq, words, dot);
        EACH_ROW_UNROLLED {
            int32_t v = (format & SC_FMT_W4) ? dot[r] >> 4 : dot[r]; /* exact: a multiple of 16 */
            if (format & SC_FMT_ASYM) v -= z[r] * *sum;
            acc[r] = sc_mac(acc[r], v, (format & SC_FMT_GROUPED) ? *c * d[r] : *c);
        }
        c++;
        if (format & SC_FMT_ASYM) sum++;
    } while (--left);
    return w;
}

static inline uint32_t row_scale(const uint8_t *block, int r) {
    uint16_t v;
    __builtin_memcpy(&v, __builtin_assume_aligned(block + 2 * r, 2), 2);
    return v;
}

/* sc_lshift_sat() for a block, where the result has more bits than the accumulator */
static __attribute__((noinline, cold)) void lshift_rows(int32_t y[SC_ROWS], int shift) {
    for (int r = 0; r < SC_ROWS; r++) y[r] = sc_lshift_sat(y[r], shift > 31 ? 31 : shift);
}

/* acc -> fixed point, in place: sc_requantize() with the shift's cases taken out of the rows */
static inline __attribute__((always_inline)) void rescale(const sc_matrix *m, const uint8_t *block,
                                                          const sc_qvec *x, int32_t y[SC_ROWS]) {
    const int32_t shift = sc_min(m->shift - x->exponent, 30);
    const int32_t mantissa = (int32_t)x->mantissa;
    if (__builtin_expect(shift >= 0, 1)) {
        const int32_t half = (1 << shift) >> 1;
        EACH_ROW y[r] = (sc_mulh(y[r], (int32_t)row_scale(block, r) * mantissa) + half) >> shift;
    } else {
        EACH_ROW y[r] = sc_mulh(y[r], (int32_t)row_scale(block, r) * mantissa);
        lshift_rows(y, -shift);
    }
}

#if SC_RANK > 0
static __attribute__((noinline)) void add_side(const sc_matrix *b, const uint8_t *block, const sc_qvec *side,
                                               int32_t y[SC_ROWS]) {
    int32_t s[SC_ROWS];
    block_dot(b, 0, block, side, s);
    rescale(b, block, side, s);
    for (int r = 0; r < SC_ROWS; r++) y[r] = sc_sat_add(y[r], s[r]);
}
#endif

/* silu(gate) * up; |result| < 2^31 by the bound that fixed its fraction bits */
static inline int32_t silu_mul(int32_t gate, int32_t up, const sc_output *o) {
    int32_t g16 = o->gate_shift > 0 ? sc_rshift(gate, o->gate_shift) : sc_lshift_sat(gate, -o->gate_shift);
    int32_t s = sc_mulh(gate, (int32_t)(sc_sigmoid_q16(g16) << 14));
    uint32_t high = (uint32_t)sc_mulh(s, up), low = (uint32_t)s * (uint32_t)up;
    int k = o->silu_shift; /* 1 .. 31 */
    return (int32_t)((high << (32 - k) | low >> k) + (low >> (k - 1) & 1));
}

SC_HOT void sc_matrix_tile(const sc_matrix *m, const uint8_t *tile, uint32_t first, uint32_t count,
                           const sc_qvec *x, const sc_qvec *side, uint32_t tokens, const sc_output *out,
                           int core, int cores) {
    const int format = FORMAT(m);
    for (uint32_t b = (uint32_t)core; b < count; b += (uint32_t)cores) {
        const uint8_t *block = tile + b * m->block_bytes;
        const uint32_t row = (first + b) * SC_ROWS, rows = (uint32_t)sc_min((int32_t)(m->rows - row), SC_ROWS);
        for (uint32_t t = 0; t < tokens; t++) {
            int32_t y[SC_ROWS];
            const uint8_t *end = block_dot(m, format, block, &x[t], y);
            rescale(m, block, &x[t], y);
#if SC_RANK > 0
            if (m->b) add_side(m->b, end, &side[t], y);
#else
            (void)end, (void)side;
#endif
            int32_t *dst = out->dst + t * out->stride;
            if (out->kind == SC_SILU) {
                dst += row / 2;
                _Pragma("GCC unroll 1") for (uint32_t r = 0; r < rows / 2; r++)
                    dst[r] = silu_mul(y[r], y[r + SC_ROWS / 2], out);
            } else if (out->kind == SC_ADD) {
                dst += row;
                _Pragma("GCC unroll 1") for (uint32_t r = 0; r < rows; r++) dst[r] = sc_sat_add(dst[r], y[r]);
            } else {
                dst += row;
                _Pragma("GCC unroll 1") for (uint32_t r = 0; r < rows; r++) dst[r] = y[r];
            }
        }
    }
}

void sc_embed_row(const sc_matrix *m, const uint8_t *block, uint32_t row, uint32_t k, uint32_t factor,
                  int shift, int32_t *x, int core, int cores) {
    const int format = FORMAT(m), w4 = format & SC_FMT_W4;
    const uint32_t head = (format & SC_FMT_GROUPED ? SC_ROWS : 0u) + (format & SC_FMT_ASYM ? SC_ROWS : 0u);
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
        if (format & SC_FMT_ASYM) v -= (int8_t)seg[SC_ROWS + row];
        if (format & SC_FMT_GROUPED) v *= seg[row];
        x[i] = sc_requantize(v * r, factor, shift);
    }
}
