/* SPDX-License-Identifier: Apache-2.0
 * Loops that RMSNorm and the quantisation to 8 and 16 bits share. */
#ifndef SC_SCAN_H
#define SC_SCAN_H

#include "sc_kernels.h"

#if SC_XPULP
/* Assembly: v shifted by %[by] bits, to the right with rounding, or to the left. */
#define SC_ROUNDED(v) SC_ROUND(v, "%[by]")
#define SC_LIFTED(v) "sll " v ", " v ", %[by]\n"
#endif

/* Adds (v[i] >> shift)^2 to the 64-bit sum high:low. Two words, because GCC would spill a uint64_t. */
static inline void add_squares(const int32_t *v, uint32_t n, int shift, uint32_t *low, uint32_t *high) {
#if SC_XPULP
    int32_t s, square;
    /* clang-format off */
    __asm__ volatile(SC_LOOP_BEGIN("%[n]", 8)
                     P_LW_POST("%[s]", "%[v]", "4")
                     "sra %[s], %[s], %[shift]\n"
                     "mul %[q], %[s], %[s]\n"
                     "mulh %[s], %[s], %[s]\n"
                     "add %[l], %[l], %[q]\n"
                     "sltu %[q], %[l], %[q]\n"
                     "add %[h], %[h], %[s]\n"
                     "add %[h], %[h], %[q]\n" SC_LOOP_END(8)
                     : [v] "+&r"(v), [l] "+&r"(*low), [h] "+&r"(*high), [s] "=&r"(s), [q] "=&r"(square)
                     : [n] "r"(n), [shift] "r"(shift)
                     : "memory");
/* clang-format on */
#else
    for (; n; n--) {
        const int32_t s = *v++ >> shift;
        const uint32_t square = (uint32_t)s * (uint32_t)s;
        *low += square;
        *high += (uint32_t)sc_mulh(s, s) + (*low < square);
    }
#endif
}

/* y[i] = x[i] * gain[i] / 2^31 rounded down */
static inline void apply_gain(const int32_t *x, const int32_t *gain, uint32_t n, int32_t *y) {
#if SC_XPULP
    int32_t high, low, g;
    /* clang-format off */
    __asm__ volatile(SC_LOOP_BEGIN("%[n]", 8)
                     P_LW_POST("%[g]", "%[gain]", "4")
                     P_LW_POST("%[l]", "%[x]", "4")
                     "mulh %[h], %[l], %[g]\n"
                     "mul %[l], %[l], %[g]\n"
                     "slli %[h], %[h], 1\n"
                     "srli %[l], %[l], 31\n"
                     "or %[l], %[l], %[h]\n"
                     P_SW_POST("%[l]", "%[y]", "4") SC_LOOP_END(8)
                     : [x] "+&r"(x), [gain] "+&r"(gain), [y] "+&r"(y), [h] "=&r"(high), [l] "=&r"(low),
                       [g] "=&r"(g)
                     : [n] "r"(n)
                     : "memory");
/* clang-format on */
#else
    for (; n; n--) *y++ = (int32_t)(((int64_t)*x++ * *gain++) >> 31);
#endif
}

/* Applies 1/RMS to the token's mantissa and exponent: _normed() of numerics/vectors.py. */
SC_INLINE void normed(sc_qvec *out, uint64_t total) {
    int j;
    const uint32_t product = out->mantissa * sc_rsqrt(total, &j);
    const int extra = sc_bits(product) - 15;
    out->mantissa = product >> extra;
    out->exponent += extra - j;
}

static inline void gather(const int32_t *x, const uint16_t *perm, uint32_t n, int32_t *y) {
    for (; n; n--) *y++ = x[*perm++];
}

#endif
