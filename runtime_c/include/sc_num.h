/* SPDX-License-Identifier: Apache-2.0
 * Integer arithmetic of the model. Bit-identical to compiler/shrinkc/numerics/fixed.py.
 *
 * Rounding is half up: floor(v / 2^s + 1/2). int32 results saturate at +-(2^31 - 1). */
#ifndef SC_NUM_H
#define SC_NUM_H

#include "sc_xpulp.h"

#define SC_INT32_MAX 0x7FFFFFFF
#define SC_QMAX 127
#define SC_QSHIFT 23
#define SC_HEAD_QSHIFT 22

static inline int32_t sc_sat64(int64_t v) {
    return v > SC_INT32_MAX ? SC_INT32_MAX : v < -(int64_t)SC_INT32_MAX ? -SC_INT32_MAX : (int32_t)v;
}

/* a + b, saturated */
static inline int32_t sc_sat_add(int32_t a, int32_t b) {
    int32_t s = (int32_t)((uint32_t)a + (uint32_t)b);
    if (__builtin_expect(((a ^ s) & (b ^ s)) < 0, 0)) return a < 0 ? -SC_INT32_MAX : SC_INT32_MAX;
    return sc_max(s, -SC_INT32_MAX);
}

/* Adds y to a value x of the residual stream: add_to_residual() of numerics/fixed.py. */
static inline int32_t sc_add_to_residual(int32_t x, int32_t y) { return sc_clip30(x + sc_clip30(y)); }

/* High word of the signed product. In assembly, because GCC emits four instructions if it can prove that one
 * factor is positive. */
static inline int32_t sc_mulh(int32_t a, int32_t b) {
#ifdef __riscv
    int32_t d;
    __asm__("mulh %0, %1, %2" : "=r"(d) : "r"(a), "r"(b));
    return d;
#else
    return (int32_t)(((int64_t)a * b) >> 32);
#endif
}

/* v / 2^s rounded half up, 1 <= s <= 31; never overflows */
static inline int32_t sc_rshift(int32_t v, int s) { return (v >> s) + ((v >> (s - 1)) & 1); }

/* v * 2^-s, |s| <= 31. For s < 0 the caller makes sure that the left shift does not overflow. */
static inline int32_t sc_shift(int32_t v, int s) {
    return s > 0 ? sc_rshift(v, s) : (int32_t)((uint32_t)v << -s);
}

/* v * gain / 2^15 rounded down, |gain| <= 32767 */
static inline int32_t sc_scale_q15(int32_t v, int16_t gain) { return (int32_t)(((int64_t)v * gain) >> 15); }

/* v * 2^s saturated, 0 <= s <= 31. Rarely executed, so it is kept out of the hot code. */
static __attribute__((noinline, cold, unused)) int32_t sc_lshift_sat(int32_t v, int s) {
    return sc_sat64((int64_t)((uint64_t)(int64_t)v << s));
}

/* acc * factor * 2^-(32 + shift), shift limited to -31..30: the high word is rounded down, the shift rounds
 * half up. */
static inline int32_t sc_requantize(int32_t acc, uint32_t factor, int shift) {
    int32_t high = sc_mulh(acc, (int32_t)factor);
    if (shift > 0) return sc_rshift(high, shift > 30 ? 30 : shift);
    if (shift == 0) return high;
    return sc_lshift_sat(high, shift < -31 ? 31 : -shift);
}

/* 2^-(frac16 / 2^16) in Q15; relative error below 1.4e-4 */
static inline uint32_t sc_exp2_mantissa(uint32_t frac16) {
    uint32_t t = 15078u - ((2557u * frac16) >> 16);
    t = 45287u - ((t * frac16) >> 16);
    t = 65531u - ((t * frac16) >> 16);
    return (t + 1) >> 1;
}

/* 2^-(delta / 2^16) in Q20 (floor) */
static inline uint32_t sc_exp2_q20(uint32_t delta) {
    return (sc_exp2_mantissa(delta & 0xFFFF) << 5) >> sc_min((int32_t)(delta >> 16), 31);
}

extern const uint16_t sc_exp2_table[256]; /* 2^-((i + 1/2) / 256) in Q16 */
extern const int32_t sc_sigmoid_table[512];

/* sigmoid(x16 / 2^16) in Q15, by linear interpolation; absolute error below 6e-5 */
static inline int32_t sc_sigmoid_q15(int32_t x16) {
    x16 = sc_min(sc_max(x16, -(1 << 20)), (1 << 20) - 1);
    const int32_t entry = sc_sigmoid_table[(x16 >> 12) + 256];
    return (entry + (int16_t)entry * (x16 & 4095)) >> 16;
}

/* floor(sqrt(v)) for v >= 2^30. The polynomial has an error of at most 0.51 %; after one Newton step the root
 * is at most 1 too large. */
static inline uint32_t sc_isqrt(uint32_t v) {
    const uint32_t w = v >> 16;
    uint32_t root = 16992u + ((w * (17236u - ((w * 1296u) >> 14))) >> 14);
    root = (root + v / root) >> 1;
    root -= root >> 16; /* so that root * root does not overflow */
    return root - (root * root > v);
}

static inline int sc_bits64(uint64_t v) {
    uint32_t high = (uint32_t)(v >> 32);
    return high ? 32 + sc_bits(high) : sc_bits((uint32_t)v);
}

/* 1/sqrt(total) = r * 2^(-31 - j), r in [2^15, 2^16] */
static inline uint32_t sc_rsqrt(uint64_t total, int *j) {
    int bits = sc_bits64(total);
    int shift = (bits & 1) ? bits - 31 : bits - 32;
    uint32_t scaled = (uint32_t)(shift >= 0 ? total >> shift : total << -shift);
    *j = shift >> 1;
    return 0x80000000u / sc_isqrt(scaled);
}

static inline uint32_t sc_mix32(uint32_t h) {
    h ^= h >> 16;
    h *= 0x85EBCA6Bu;
    h ^= h >> 13;
    h *= 0xC2B2AE35u;
    return h ^ (h >> 16);
}

#endif
