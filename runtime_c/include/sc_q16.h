/* SPDX-License-Identifier: Apache-2.0
 * Dynamic quantisation to 16 bits of one share of a vector, x = 256 * high + low, with RMSNorm if there is a
 * gain. Bit-identical to quantize_q16() and norm_quantize_q16() in compiler/shrinkc/numerics/vectors.py. A
 * vector has 8 shares, split among the workers; vectors are in L1.
 *
 * Inline, because single-token decode uses each function once per vector. */
#ifndef SC_Q16_H
#define SC_Q16_H

#include "sc_scan.h"

/* Elements of a share, a multiple of 4. The last shares may have fewer. */
SC_INLINE uint32_t q16_places(uint32_t k) { return (k + 4 * SC_Q16_SHARES - 1) / (4 * SC_Q16_SHARES) * 4; }

/* Returns the number of elements of a share; *first: its first element. */
SC_INLINE uint32_t q16_share(uint32_t k, uint32_t share, uint32_t *first) {
    const uint32_t each = q16_places(k), at = each * share;
    *first = at;
    return at >= k ? 0 : k - at < each ? k - at : each;
}

/* y = (x << up) * gain / 2^32 for n > 0 elements. Returns max |y|, at least 1; *squares: sum of (x << up >>
 * drop)^2. y may be x. */
SC_INLINE uint32_t q16_gain(const int32_t *x, const int32_t *gain, uint32_t n, int up, int drop, int32_t *y,
                            uint32_t *squares) {
    int32_t top = 1;
    uint32_t sum = 0;
#if SC_XPULP
    int32_t v, g, s;
    /* clang-format off */
    __asm__ volatile(SC_LOOP_BEGIN("%[n]", 9)
                     P_LW_POST("%[v]", "%[x]", "4")
                     P_LW_POST("%[g]", "%[gain]", "4")
                     "sll %[v], %[v], %[up]\n"
                     "sra %[s], %[v], %[drop]\n"
                     "mulh %[v], %[v], %[g]\n"
                     P_MAC("%[sum]", "%[s]", "%[s]")
                     P_SW_POST("%[v]", "%[y]", "4")
                     P_ABS("%[v]", "%[v]")
                     P_MAX("%[t]", "%[t]", "%[v]")
                     SC_LOOP_END(9)
                     : [x] "+&r"(x), [gain] "+&r"(gain), [y] "+&r"(y), [sum] "+&r"(sum), [t] "+&r"(top),
                       [v] "=&r"(v), [g] "=&r"(g), [s] "=&r"(s)
                     : [n] "r"(n), [up] "r"(up), [drop] "r"(drop)
                     : "memory");
/* clang-format on */
#else
    for (; n; n--) {
        const int32_t v = (int32_t)((uint32_t)*x++ << up), s = v >> drop;
        sum += (uint32_t)s * (uint32_t)s;
        *y = sc_mulh(v, *gain++);
        top = sc_max(top, sc_abs(*y++));
    }
#endif
    *squares = sum;
    return (uint32_t)top;
}

/* A share's sum of squares without the shift `up`: times 2^(unit - 2 * up). In two words, because GCC's 64-bit code is
 * twice as long. */
SC_INLINE uint64_t q16_squares(uint32_t squares, int up, int unit) {
    const int left = unit - 2 * up;
    uint32_t low = 0, high = 0;
    if (unit > 31 && left > 31) {
        high = squares << (left - 32);
    } else if (left >= 0) {
        low = squares << left;
        high = squares >> 1 >> (31 - left);
    } else if (left > -32) {
        low = squares >> -left;
    }
    return (uint64_t)high << 32 | low;
}

/* First half: n elements at x; a permutation has already been applied (y = x then). */
SC_INLINE void q16_scan(const int32_t *x, const int32_t *gain, uint32_t n, int drop, int unit, int32_t *y,
                        sc_part *part) {
    int32_t top = 1, up = 0;
    if (n > 0) SC_MAX_RUN(top, x, n);
    if (gain) {
        uint32_t squares = 0;
        up = 30 - sc_top_bit((uint32_t)top);
        top = 1;
        if (n > 0) top = (int32_t)q16_gain(x, gain, n, up, drop, y, &squares);
        part->sum = q16_squares(squares, up, unit);
        part->up = up;
    }
    part->max = (uint32_t)(sc_top_bit((uint32_t)top) + 1 - up);
}

/* Bits of the largest magnitude of all shares. */
SC_INLINE int q16_bits(const sc_part *parts) {
    int32_t most = -30;
#if SC_XPULP
    int32_t v;
    __asm__ volatile(SC_LOOP_CONST_BEGIN(8, 2) P_LW_POST("%[v]", "%[p]", "16") P_MAX("%[t]", "%[t]", "%[v]")
                         SC_LOOP_END(2)
                     : [t] "+&r"(most), [p] "+&r"(parts), [v] "=&r"(v)
                     :
                     : "memory");
    _Static_assert(SC_Q16_SHARES == 8 && sizeof(sc_part) == 16, "what the loop is made for");
#else
    for (int i = 0; i < SC_Q16_SHARES; i++) most = sc_max(most, (int32_t)parts[i].max);
#endif
    return most;
}

/* eps + sum of squares of all shares. */
SC_INLINE uint64_t q16_sum(const sc_part *parts, uint64_t eps) {
#if SC_XPULP
    uint32_t low = (uint32_t)eps, high = (uint32_t)(eps >> 32), l, h;
    const uint64_t *sum = &parts->sum;
    /* clang-format off */
    __asm__ volatile(SC_LOOP_CONST_BEGIN(8, 6)
                     P_LW_POST("%[l]", "%[sum]", "16")
                     "lw %[h], -12(%[sum])\n"
                     "add %[low], %[low], %[l]\n"
                     "sltu %[l], %[low], %[l]\n"
                     "add %[high], %[high], %[h]\n"
                     "add %[high], %[high], %[l]\n" SC_LOOP_END(6)
                     : [sum] "+&r"(sum), [low] "+&r"(low), [high] "+&r"(high), [l] "=&r"(l), [h] "=&r"(h)
                     :
                     : "memory");
    /* clang-format on */
    _Static_assert(SC_Q16_SHARES == 8 && sizeof(sc_part) == 16, "what the loop is made for");
    eps = (uint64_t)high << 32 | low;
#else
    for (const sc_part *p = parts; p < parts + SC_Q16_SHARES; p++) eps += p->sum;
#endif
    return eps;
}

/* n values x * 2^-right, rounded half up: low bytes, and `pitch` bytes after them high bytes. Magnitudes have
 * at most `bits` bits. sc_q16_split_any() also handles the rare cases: 31 bits (rounding would overflow),
 * left shifts, and n that is not a multiple of 4. */
void sc_q16_split_any(const int32_t *x, uint32_t n, int right, int bits, int8_t *low, int8_t *high);

/* Assembly for n / 4 times four values; stores their bytes as words. value + 128 is below 2^15. */
/* clang-format off */
#define SC_SPLIT_FOUR(SHIFT, count)                                                                          \
    __asm__ volatile(SC_LOOP_BEGIN("%[n]", 17)                                                               \
                     P_LW_POST("%[a]", "%[x]", "4") P_LW_POST("%[b]", "%[x]", "4")                           \
                     P_LW_POST("%[c]", "%[x]", "4") P_LW_POST("%[d]", "%[x]", "4")                           \
                     SHIFT("%[a]") SHIFT("%[b]") SHIFT("%[c]") SHIFT("%[d]")                                 \
                     PV_PACK_H("%[a]", "%[b]", "%[a]") PV_PACK_H("%[c]", "%[d]", "%[c]")                     \
                     "mv %[b], %[a]\n"                                                                       \
                     PV_ADD_H("%[a]", "%[a]", "%[half]") PV_ADD_H("%[d]", "%[c]", "%[half]")                 \
                     PV_SHUFFLE2_B("%[b]", "%[c]", "%[lows]") PV_SHUFFLE2_B("%[a]", "%[d]", "%[highs]")      \
                     P_SW_POST("%[b]", "%[low]", "4")                                                        \
                     P_SW_POST("%[a]", "%[high]", "4") SC_LOOP_END(17)                                       \
                     : [x] "+&r"(x), [low] "+&r"(low), [high] "+&r"(high), [a] "=&r"(a), [b] "=&r"(b),       \
                       [c] "=&r"(c), [d] "=&r"(d)                                                            \
                     : [n] "r"(n / 4), [by] "r"(count), [half] "r"(0x00800080), [lows] "r"(0x06040200),      \
                       [highs] "r"(0x07050301)                                                               \
                     : "memory")
/* clang-format on */

SC_INLINE void q16_split(const int32_t *x, uint32_t n, int right, int bits, int8_t *low, uint32_t pitch) {
    int8_t *high = low + pitch;
#if SC_XPULP
    if (__builtin_expect(right > 0 && n % 4 == 0 && bits <= 30, 1)) {
        int32_t a, b, c, d;
        SC_SPLIT_FOUR(SC_ROUNDED, right);
        return;
    }
#endif
    sc_q16_split_any(x, n, right, bits, low, high);
}

/* Second half of a share: splits n values of x into bytes; with gain, x is the y of the first half. most:
 * q16_bits(). */
SC_INLINE void q16_quantize(const sc_vector_layout *layout, const int32_t *x, uint32_t n, int most,
                            int has_gain, int up, int8_t *q, uint32_t pitch) {
    if (n == 0) return;
    int right = most - layout->range;
    if (has_gain) right = sc_min(right + up, 31); /* a share may be much smaller than the others */
    q16_split(x, n, right, has_gain ? 30 : most, q, pitch);
}

#define SC_WIDE_MANTISSA (1u << 15) /* mantissa of a scale that is a power of two */

/* The vector's scale, before RMSNorm. */
SC_INLINE void q16_scale(const sc_vector_layout *layout, int most, int has_gain, sc_qvec *out) {
    out->mantissa = SC_WIDE_MANTISSA;
    out->exponent = most - layout->range + has_gain; /* y is half the real value */
}

#if SC_Q16_PADDED
/* Writes zeros after the vector, up to a whole word. */
void sc_q16_pad(const sc_vector_layout *layout, int8_t *q, uint32_t pitch);

/* Calls sc_q16_pad() if the vector needs it. By one core. */
SC_INLINE void q16_pad(const sc_vector_layout *layout, int8_t *q, uint32_t pitch) {
    if (__builtin_expect(layout->k < 4u * layout->last_words, 0)) sc_q16_pad(layout, q, pitch);
}
#else
SC_INLINE void q16_pad(const sc_vector_layout *layout, int8_t *q, uint32_t pitch) {
    (void)layout, (void)q, (void)pitch;
}
#endif

#endif
