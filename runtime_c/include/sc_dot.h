/* SPDX-License-Identifier: Apache-2.0
 * Dot products of the 8 rows of a block with a part of an activation vector: sums[8] += w[8][k] * x[k].
 * Each worker has blocks of its own; weights and x are in L1. One file per weight format
 * (compiler/shrinkc/storage describes the words). Each defines
 *
 *   SC_W<bits>_INPUTS  inputs that one packed word of a row holds
 *   SC_W<bits>_FOLD    the sums are 2^FOLD times too large
 *   sc_dot_w<bits>()   a += 2^FOLD * sum of w * x over `words` words of 4 activations; advances w and x
 *   sc_get_w<bits>()   one weight, for an embedding row
 *   sc_widen_w<bits>() 2^FOLD * weights as int8, 4 inputs per word: word i of row r goes to
 *                      to[r * row + i * word]; advances w
 *
 * The 8 sums are fields, not an array, and every function is inlined: the sums stay in registers. Hardware
 * loops need the number of their instructions; the assembler checks it. */
#ifndef SC_DOT_H
#define SC_DOT_H

#include "sc_kernels.h"

typedef struct {
    int32_t s0, s1, s2, s3, s4, s5, s6, s7;
} sc_rows;

/* X(row) for each of the 8 rows of a block */
#define SC_EACH_ROW(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)

SC_INLINE int32_t sc_load32(const void *p) {
    int32_t v;
    __builtin_memcpy(&v, __builtin_assume_aligned(p, 4), 4);
    return v;
}

#define SC_DOT_OUT(r) [a##r] "+&r"(a->s##r), /* operand of assembly */

#if SC_SIMD && !SC_XPULP

/* The same sums with GCC's vector types, for hosts. A product is at most 128 * 128 and fits 16 bits. Each row
 * has two sums; each adds two products per word. */
typedef int8_t sc_v_bytes __attribute__((vector_size(4 * SC_ROWS)));
typedef int32_t sc_v_words __attribute__((vector_size(4 * SC_ROWS)));
typedef int16_t sc_v_halves __attribute__((vector_size(8 * SC_ROWS)));
typedef int32_t sc_v_sums __attribute__((vector_size(8 * SC_ROWS)));

/* *sums += rows *w times the four bytes of x. Pointers, because passing vectors by value is not portable. */
SC_INLINE void sc_v_dot(sc_v_sums *sums, const sc_v_words *w, int32_t x) {
    const sc_v_words spread = *w * 0 + x;
    const sc_v_halves p = __builtin_convertvector((sc_v_bytes)*w, sc_v_halves) *
                          __builtin_convertvector((sc_v_bytes)spread, sc_v_halves);
    const sc_v_sums pairs = (sc_v_sums)p;
    *sums += (pairs << 16 >> 16) + (pairs >> 16);
}

SC_INLINE void sc_v_load(sc_v_words *rows, const uint8_t *w) { __builtin_memcpy(rows, w, sizeof *rows); }

#define SC_V_ROW(r) a->s##r += sums[2 * r] + sums[2 * r + 1];

#endif

/* a = w * x and b = w * y, with w: int8[words][8 rows][4] as in sc_dot_w8.h. Returns the end of w. */
#if SC_XPULP

/* clang-format off */
#define SC_PAIR_EVEN(r) PV_SDOTSP_B("%[a" #r "]", "%[x0]", "%[t0]") PV_SDOTSP_B("%[b" #r "]", "%[x1]", "%[t0]")
#define SC_PAIR_ODD(r) PV_SDOTSP_B("%[a" #r "]", "%[x0]", "%[t1]") PV_SDOTSP_B("%[b" #r "]", "%[x1]", "%[t1]")
/* One word of each vector, already loaded: 24 instructions */
#define SC_PAIR_ROWS                                                                                             \
    P_LW_POST("%[t0]", "%[w]", "4") P_LW_POST("%[t1]", "%[w]", "4")                                              \
    SC_PAIR_EVEN(0) P_LW_POST("%[t0]", "%[w]", "4") SC_PAIR_ODD(1) P_LW_POST("%[t1]", "%[w]", "4")               \
    SC_PAIR_EVEN(2) P_LW_POST("%[t0]", "%[w]", "4") SC_PAIR_ODD(3) P_LW_POST("%[t1]", "%[w]", "4")               \
    SC_PAIR_EVEN(4) P_LW_POST("%[t0]", "%[w]", "4") SC_PAIR_ODD(5) P_LW_POST("%[t1]", "%[w]", "4")               \
    SC_PAIR_EVEN(6) SC_PAIR_ODD(7)
#define SC_PAIR_ZERO(r) "li %[a" #r "], 0\nli %[b" #r "], 0\n"
#define SC_PAIR_OUT(r) [a##r] "=&r"(a->s##r), [b##r] "=&r"(b->s##r),

/* 26 instructions per 64 products */
SC_INLINE const uint8_t *sc_dot_pair(sc_rows *a, sc_rows *b, const uint8_t *w, const int8_t *x, const int8_t *y,
                                     uint32_t words) {
    int32_t x0, x1, t0, t1;
    __asm__ volatile(SC_EACH_ROW(SC_PAIR_ZERO)
                     SC_LOOP_BEGIN("%[n]", 26)
                     P_LW_POST("%[x0]", "%[x]", "4") P_LW_POST("%[x1]", "%[y]", "4")
                     SC_PAIR_ROWS
                     SC_LOOP_END(26)
                     : SC_EACH_ROW(SC_PAIR_OUT) [w] "+&r"(w), [x] "+&r"(x), [y] "+&r"(y), [x0] "=&r"(x0),
                       [x1] "=&r"(x1), [t0] "=&r"(t0), [t1] "=&r"(t1)
                     : [n] "r"(words)
                     : "memory");
    return w;
}
/* clang-format on */

#elif SC_SIMD

SC_INLINE const uint8_t *sc_dot_pair(sc_rows *a, sc_rows *b, const uint8_t *w, const int8_t *x,
                                     const int8_t *y, uint32_t words) {
    sc_v_sums sums = {0}, others = {0};
    sc_v_words rows;
    for (; words; words--, x += 4, y += 4, w += 4 * SC_ROWS) {
        sc_v_load(&rows, w);
        sc_v_dot(&sums, &rows, sc_load32(x));
        sc_v_dot(&others, &rows, sc_load32(y));
    }
#define SC_PAIR_ROW(r) a->s##r = sums[2 * r] + sums[2 * r + 1], b->s##r = others[2 * r] + others[2 * r + 1];
    SC_EACH_ROW(SC_PAIR_ROW)
    return w;
}

#else

SC_INLINE const uint8_t *sc_dot_pair(sc_rows *a, sc_rows *b, const uint8_t *w, const int8_t *x,
                                     const int8_t *y, uint32_t words) {
    *a = *b = (sc_rows){0};
    for (; words; words--, x += 4, y += 4, w += 4 * SC_ROWS) {
#define SC_PAIR_ROW(r)                                                                                       \
    a->s##r = sc_sdot4(a->s##r, sc_load32(x), sc_load32(w + 4 * r));                                         \
    b->s##r = sc_sdot4(b->s##r, sc_load32(y), sc_load32(w + 4 * r));
        SC_EACH_ROW(SC_PAIR_ROW)
    }
    return w;
}

#endif

/* Computes the offsets of a quantisation group's 8 rows from its zero points; d: the scales. Returns them as
 * bytes. */
const uint8_t *sc_offsets_of_zeros(const uint8_t *d, int16_t offsets[SC_ROWS]);

#include "formats.h" /* generated: includes the files of this model's formats */

/* Whether `format`, of a matrix used with several tokens, has a flag. A constant if all or none of these
 * matrices have it, so that unused code is not compiled. */
#define SC_SEVERAL_HAS(flag)                                                                                 \
    (SC_SEVERAL_ALL & (flag) ? 1 : SC_SEVERAL_SOME & (flag) ? (format & (flag)) != 0 : 0)

/* sc_table_bytes() of such a format */
#define SC_SEVERAL_TABLES                                                                                    \
    ((SC_SEVERAL_HAS(SC_FMT_GROUPED) ? SC_ROWS : 0u) + (!SC_SEVERAL_HAS(SC_FMT_ASYM)   ? 0u                  \
                                                        : SC_SEVERAL_HAS(SC_FMT_ZEROS) ? SC_ROWS / 2         \
                                                                                       : 2 * SC_ROWS))

/* log2 of the factor by which a format's sums are too large. A constant if `format` is one. */
SC_INLINE int sc_fold(const int format) {
#define FOLD(bits, inputs, fold)                                                                             \
    case bits:                                                                                               \
        return SC_W##bits##_FOLD;
    switch (format & SC_FMT_BITS) { SC_EACH_WIDTH(FOLD) }
    __builtin_unreachable();
}

/* Offset of row r in a quantisation group's table. */
static inline int32_t sc_offset16(const uint8_t *b, int r) {
    int16_t v;
    __builtin_memcpy(&v, __builtin_assume_aligned(b + 2 * r, 2), 2);
    return v;
}

/* Zero point of row r: a 4-bit field of `word`. */
static inline int32_t sc_zero_point(int32_t word, int r) {
    return (int32_t)((uint32_t)word << (28 - 4 * r)) >> 28;
}
/* sc_zero_point() in one instruction, for a constant r. */
#if SC_XPULP
#define SC_ZERO_POINT(z, word, r)                                                                            \
    __asm__(P_EXTRACT("%0", "%1", "3", SC_ALONE("%2")) : "=r"(z) : "r"(word), "i"(4 * (r)))
#else
#define SC_ZERO_POINT(z, word, r) (z) = sc_zero_point(word, r)
#endif

#endif
