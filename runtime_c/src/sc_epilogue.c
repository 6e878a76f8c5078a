/* SPDX-License-Identifier: Apache-2.0
 * Output stage of all matrix products: y = scale * sum, then store, add to the residual stream, or silu(gate) *
 * up. Workers run it, on registers or L1, after the cores or the engine have multiplied. */
#include "sc_platform.h"

#include "sc_epilogue_neureka.h"

__attribute__((noinline, cold)) void sc_lshift_rows(int32_t *y, uint32_t n, int shift) {
    for (uint32_t r = 0; r < n; r++) y[r] = sc_lshift_sat(y[r], shift > 31 ? 31 : shift);
}

#ifdef SC_HAS_BIAS
SC_HOT void sc_add_bias(const int32_t *bias, int32_t rows, int32_t *y) {
    for (int32_t r = 0; r < rows; r++) y[r] = sc_sat_add(y[r], bias[r]);
}
#endif

#ifdef SC_GELU
/* The number in Q16 whose sigmoid GELU (by tanh) multiplies x16 / 2^16 with: numerics/gating.py. */
static inline int32_t gelu_argument(int32_t x16) {
    const int32_t s = (sc_min(sc_max(x16, -360440), 360440) + 8) >> 4;
    const uint32_t square = (uint32_t)(s * s) >> 12;
    return (s * (int32_t)(26145u + ((18705u * square) >> 16))) >> 10;
}
#endif

/* dst = silu(gate) * up, n rows of each block; up rows are SC_ROWS / 2 words after gate rows. The compiler
 * chose the shifts so that |gate * sigmoid| << shift, |up| << up_shift and |gate| + 2^15 stay below 2^31. */
SC_INLINE void silu_rows(const sc_output *out, const int32_t *gate, uint32_t blocks, uint32_t n,
                         int32_t *dst) {
    const int gate_shift = out->gate_shift, shift = out->silu_shift, up_shift = out->up_shift;
#if SC_XPULP && !defined(SC_GELU) && !SC_SILU_JOINED
    if (gate_shift > 0 && gate_shift < 16) { /* at 16 the rounding could overflow */
        int32_t g, u, v, i;
        /* clang-format off */
        __asm__ volatile(SC_OUTER_LOOP_BEGIN("%[blocks]", 17 + 2)
                         SC_INNER_LOOP_BEGIN("%[n]", 17)
                         P_LW_POST("%[g]", "%[y]", "4")
                         "lw %[u], %[half](%[y])\n"
                         "mv %[v], %[g]\n"
                         SC_ROUND("%[v]", "%[gs]")
                         P_CLIP("%[v]", "%[v]", "21")
                         SC_GATED("")
                         SC_LOOP_END(17) "\n"
                         "add %[y], %[y], %[step]\n" SC_OUTER_LOOP_END(17 + 2)
                         : [y] "+&r"(gate), [dst] "+&r"(dst), [g] "=&r"(g), [u] "=&r"(u), [v] "=&r"(v), [i] "=&r"(i)
                         : [blocks] "r"(blocks), [n] "r"(n), [step] "r"(4 * (SC_ROWS - n)),
                           [gs] "r"(gate_shift), [shift] "r"(shift), [us] "r"(up_shift), [mask] "r"(4095),
                           [table] "r"(sc_sigmoid_table + 256), [half] "i"(SC_ROWS / 2 * 4 - 4)
                         : "memory");
        /* clang-format on */
        return;
    }
    if (gate_shift <= 0 && gate_shift >= -12) { /* limited to the table's last entry, whose slope is 0 */
        int32_t g, u, v, i;
        const int32_t limit = (1 << 20) >> -gate_shift;
        /* clang-format off */
        __asm__ volatile(SC_OUTER_LOOP_BEGIN("%[blocks]", 16 + 2)
                         SC_INNER_LOOP_BEGIN("%[n]", 16)
                         P_LW_POST("%[g]", "%[y]", "4")
                         "lw %[u], %[half](%[y])\n"
                         P_CLIPR("%[v]", "%[g]", "%[limit]") /* to -limit .. limit - 1 */
                         "sll %[v], %[v], %[gs]\n"
                         SC_GATED("")
                         SC_LOOP_END(16) "\n"
                         "add %[y], %[y], %[step]\n" SC_OUTER_LOOP_END(16 + 2)
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
            } else if (gate_shift < 0) { /* limited to where the sigmoid is saturated */
                const int32_t limit = (1 << 20) >> -gate_shift;
                g16 = (int32_t)((uint32_t)sc_min(sc_max(g16, -limit), limit) << -gate_shift);
            }
#ifdef SC_GELU
            g16 = gelu_argument(g16);
#endif
            const int32_t sigma = sc_sigmoid_q15(g16) << 16;
            const int32_t s = (int32_t)((uint32_t)row_product(*gate, sigma) << shift);
            *dst++ = sc_mulh(s, (int32_t)((uint32_t)gate[SC_ROWS / 2] << up_shift));
        }
    }
}

SC_HOT void sc_finish_rows(const sc_output *out, int32_t *dst, uint32_t row, uint32_t rows,
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

#ifdef SC_HAS_ENGINES
/* Finishes rows row .. row + rows - 1 (at most a block) from their rescaled values y. */
static inline void finish_block(const sc_matrix *m, uint32_t row, uint32_t rows, int32_t *y,
                                const sc_output *out, int32_t *dst) {
    rows = (uint32_t)sc_min((int32_t)(m->rows - row), (int32_t)rows);
#ifdef SC_HAS_BIAS
    if (out->bias) sc_add_bias(out->bias + row, (int32_t)rows, y);
#endif
    sc_finish_rows(out, dst, row, rows, y);
}

#if SC_XPULP || defined(SC_JOIN_PORTABLE)
#if !SC_EVEN_ROWS
void sc_join_rest(const uint16_t *r, uint32_t n, const int32_t *low, const int32_t *high, uint32_t mantissa,
                  int32_t right, int add, int32_t *y) {
    for (; n; n--, r++, y++) {
        const int32_t acc = *low++ + (high ? (int32_t)((uint32_t)*high++ << 8) : 0);
        const int32_t high_word = row_product(acc, row_factor(*r, mantissa));
        const int32_t v = add && right <= 0 ? sc_lshift_sat(high_word, -right) : sc_round(high_word, right);
        *y = add ? sc_add_to_residual(*y, v) : v;
    }
}
#endif

void sc_join_any(const sc_matrix *m, const uint16_t *r, uint32_t row, uint32_t rows, const int32_t *low,
                 const int32_t *high, const sc_qvec *x, const sc_output *out, int32_t *dst) {
    for (uint32_t i = 0; i < rows; i += SC_ROWS) {
        int32_t y[SC_ROWS] = {0};
        uint16_t scales[SC_ROWS] = {0};
        /* the last block of gate and up has padding after both */
        const uint32_t n = rows - i < SC_ROWS && out->kind != SC_SILU ? rows - i : SC_ROWS;
        for (uint32_t j = 0; j < n; j++) {
            y[j] = low[i + j] + (high ? (int32_t)((uint32_t)high[i + j] << 8) : 0);
            scales[j] = r[i + j];
        }
        rescale((const uint8_t *)scales, (int32_t)x->mantissa, right_shift(m, x), y);
        finish_block(m, row + i, n, y, out, dst);
    }
}

#if !SC_SILU_JOINED
#define JOINED_SILU 64u /* rows of gate and up at a time */

void sc_join_gates(const uint16_t *r, uint32_t rows, const int32_t *low, const int32_t *high,
                   uint32_t mantissa, int32_t right, const sc_output *out, int32_t *dst) {
    int32_t buffer[JOINED_SILU];
    while (rows) {
        const uint32_t n = rows > JOINED_SILU ? JOINED_SILU : rows, rest = n % SC_ROWS, whole = n - rest;
        /* with the padding of both, as above */
        const uint32_t all = n + (SC_ROWS - rest) % SC_ROWS;
        if (high)
            join_rows(r, all, low, high, mantissa, right, 0, buffer, 0, 0);
        else
            join_rows(r, all, low, low, mantissa, right, 0, buffer, 0, 1);
        if (whole) silu_rows(out, buffer, whole / SC_ROWS, SC_ROWS / 2, dst);
        if (rest) silu_rows(out, buffer + whole, 1, rest / 2, dst + whole / 2);
        rows -= n, r += n, low += n, dst += n / 2;
        if (high) high += n;
    }
}
#endif

SC_HOT void sc_matrix_joined(const sc_matrix *m, const uint16_t *r, uint32_t row, uint32_t rows,
                             const int32_t *low, const int32_t *high, const sc_qvec *x, const sc_output *out,
                             int32_t *dst) {
    if (row >= m->rows) return; /* a share with nothing but the last block's padding */
    const joining j = joining_of(m, x, out);
    rows = (uint32_t)sc_min((int32_t)(m->rows - row), (int32_t)rows);
    if (high)
        join(&j, r, row, rows, low, high, dst, 0, OF_ONE);
    else
        join(&j, r, row, rows, low, low, dst, 0, OF_SEVERAL_SUMMED);
}
#endif

void sc_matrix_rows(const sc_matrix *m, const uint16_t r[SC_ROWS], uint32_t row, int32_t y[SC_ROWS],
                    const sc_qvec *x, const sc_output *out, int32_t *dst) {
    rescale((const uint8_t *)r, (int32_t)x->mantissa, right_shift(m, x), y);
    finish_block(m, row, SC_ROWS, y, out, dst);
}
#endif
