/* SPDX-License-Identifier: Apache-2.0
 * Output stage of a matrix product: rescales the 8 sums of a block, then stores, adds to the residual stream, or
 * gates. Each worker runs it for its own blocks, on sums in registers or L1. */
#ifndef SC_EPILOGUE_H
#define SC_EPILOGUE_H

#include "sc_kernels.h"

static inline uint32_t row_scale(const uint8_t *block, int r) {
    uint16_t v;
    __builtin_memcpy(&v, __builtin_assume_aligned(block + 2 * r, 2), 2);
    return v;
}

/* sc_lshift_sat() of n values, for results with more fraction bits than the accumulator. */
void sc_lshift_rows(int32_t *y, uint32_t n, int shift);

/* Row multiplier r times the token's mantissa; the upper 15 bits are kept. Xpulp keeps them in both halves of
 * a word: two 16-bit products of one cycle each replace mulh, which takes five. */
static inline int32_t row_factor(uint32_t r, uint32_t mantissa) {
    return (int32_t)((r * mantissa + 0x8000u) & 0xFFFF0000u);
}
/* High word of acc * factor, rounded half up. */
static inline int32_t row_product(int32_t acc, int32_t factor) {
    return sc_mulh(acc, factor) + (int32_t)((uint32_t)acc * (uint32_t)factor >> 31);
}
#if SC_XPULP
#define SC_FACTOR(rd, r, m) P_MULURN(rd, r, m, "16") /* r's lower half */
#define SC_FACTOR_OF_HIGH(rd, r, m) P_MULHHURN(rd, r, m, "16")
#define SC_TWICE(rd) PV_PACK_H(rd, rd, rd)
#define SC_TIMES_LOW(rd, v, f) P_MULURN(rd, v, f, "16")  /* rounded */
#define SC_TIMES_HIGH(rd, v, f) P_MACHHSN(rd, v, f, "0") /* added to rd */
#endif

/* y[r] = y[r] * row_factor(r[r], mantissa) * 2^-(32 + right), rounded half up. The loop is not unrolled, so
 * that a block's code fits the 512 bytes of a core's instruction buffer. */
static inline __attribute__((always_inline)) void rescale_rows(const uint8_t *r, int32_t mantissa,
                                                               int32_t right, int32_t *y) {
    const int32_t half = (1 << right) >> 1;
#if SC_XPULP
    int32_t scale, acc, v;
    /* clang-format off */
    __asm__ volatile(SC_LOOP_CONST_BEGIN(8, 9)
                     P_LHU_POST("%[s]", "%[r]", "2")
                     "lw %[a], 0(%[y])\n"
                     SC_FACTOR("%[s]", "%[s]", "%[m]")
                     SC_TWICE("%[s]")
                     SC_TIMES_LOW("%[v]", "%[a]", "%[s]")
                     SC_TIMES_HIGH("%[v]", "%[a]", "%[s]")
                     "add %[v], %[v], %[half]\n"
                     "sra %[v], %[v], %[right]\n"
                     P_SW_POST("%[v]", "%[y]", "4") SC_LOOP_END(9)
                     : [r] "+&r"(r), [y] "+&r"(y), [s] "=&r"(scale), [a] "=&r"(acc), [v] "=&r"(v)
                     : [m] "r"(mantissa), [half] "r"(half), [right] "r"(right)
                     : "memory");
/* clang-format on */
#else
    for (int i = 0; i < SC_ROWS; i++)
        y[i] = (row_product(y[i], row_factor(row_scale(r, i), (uint32_t)mantissa)) + half) >> right;
#endif
}

/* Converts 8 accumulators to the fixed point of the result, in place, for any shift. */
static inline __attribute__((always_inline)) void rescale(const uint8_t *block, int32_t mantissa,
                                                          int32_t shift, int32_t *y) {
    rescale_rows(block, mantissa, sc_max(shift, 0), y);
    if (__builtin_expect(shift < 0, 0)) sc_lshift_rows(y, SC_ROWS, -shift);
}

static inline int32_t right_shift(const sc_matrix *m, const sc_qvec *x) {
    return sc_min(m->shift - x->exponent, 30);
}

#if SC_RANK > 0
/* y += B * adapter: the adapter's second matrix B follows the block's weights; `adapter` is its quantised input. */
void sc_add_adapter(const sc_matrix *b, const uint8_t *block, const sc_qvec *adapter, int32_t y[SC_ROWS]);
#endif
#ifdef SC_HAS_BIAS
void sc_add_bias(const int32_t *bias, int32_t rows, int32_t *y);
#endif

/* Stores, adds or gates the block's rows, as `out` says. */
void sc_finish_rows(const sc_output *out, int32_t *dst, uint32_t row, uint32_t rows, const int32_t *y);

/* Finishes a token's sums y of the block whose first row is `row`. `adapter`: the token's adapter input, if the
 * model has adapters. */
static inline void finish_sums(const sc_matrix *m, const uint8_t *block, uint32_t row, const sc_qvec *x,
                               const sc_qvec *adapter, const sc_output *out, int32_t *dst, int32_t *y) {
    const int32_t rows = sc_min((int32_t)(m->rows - row), SC_ROWS);
    rescale(block, (int32_t)x->mantissa, right_shift(m, x), y);
#if SC_RANK > 0
    if (m->adapter) sc_add_adapter(m->adapter, block + 2 * SC_ROWS + sc_weight_bytes(m), adapter, y);
#else
    (void)adapter;
#endif
#ifdef SC_HAS_BIAS
    if (out->bias) sc_add_bias(out->bias + row, rows, y);
#endif
    sc_finish_rows(out, dst, row, (uint32_t)rows, y);
}

/* Adapter input of token t. */
static inline const sc_qvec *adapter_of(const sc_qvec *adapter, uint32_t t) {
    return SC_RANK > 0 ? &adapter[t] : 0;
}

#endif
