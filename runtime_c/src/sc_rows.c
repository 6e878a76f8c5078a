/* SPDX-License-Identifier: Apache-2.0
 * What becomes of sums once a matrix's products are there, whoever made them. */
#include "sc_platform.h"

#include "sc_rows.h"

__attribute__((noinline, cold)) void sc_lshift_rows(int32_t *y, uint32_t n, int shift) {
    for (uint32_t r = 0; r < n; r++) y[r] = sc_lshift_sat(y[r], shift > 31 ? 31 : shift);
}

#ifdef SC_HAS_BIAS
SC_HOT void sc_add_bias(const int32_t *bias, int32_t rows, int32_t *y) {
    for (int32_t r = 0; r < rows; r++) y[r] = sc_sat_add(y[r], bias[r]);
}
#endif

#if SC_XPULP
/* Of a gate g, whose input of the sigmoid is v, and an up u: 10 instructions and `between`, which needs nothing of them.
 * A high word is there a cycle late for what comes behind it. */
/* clang-format off */
#define SC_GATED(between)                                                                                    \
    "srai %[i], %[v], 10\n"                                                                                  \
    "andi %[i], %[i], -4\n"                                                                                  \
    ".insn r 0x03, 7, 0x10, %[i], %[table], %[i]\n"                                                          \
    "and %[v], %[v], %[mask]\n"                                                                              \
    ".insn r 0x5b, 1, 0x40, %[i], %[i], %[v]\n" /* plus its lower half times v's */                          \
    "mulh %[g], %[g], %[i]\n"                                                                                \
    "sll %[u], %[u], %[us]\n"                                                                                \
    "sll %[g], %[g], %[shift]\n"                                                                             \
    "mulh %[g], %[g], %[u]\n" between                                                                        \
    ".insn s 0x2b, 2, %[g], 4(%[dst])\n"
/* clang-format on */
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
                         SC_GATED("")
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
                         SC_GATED("")
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
#define JOINED_SILU 64u /* rows of gate and up at a time */

#if SC_XPULP
/* join_rows() and silu_rows() of whole blocks in one loop, for the gates' shifts that it can do; returns whether it
 * did. */
SC_INLINE int joined_silu(const uint16_t *r, uint32_t blocks, const int32_t *low, const int32_t *high,
                          uint32_t mantissa, int32_t right, const sc_output *out, int32_t *dst) {
    const int gate_shift = out->gate_shift;
    int32_t g, u, v, i, a, b;
    /* clang-format off */
    /* a low sum is loaded behind the gate before */
#define JOIN_BLOCKS(count)                                                                                   \
    SC_LW_POST("%[a]", "%[low]")                                                                             \
    SC_OUTER_LOOP_BEGIN("%[blocks]", count + 5)                                                              \
    SC_INNER_LOOP_BEGIN("%[four]", count)                                                                    \
    SC_LW_POST("%[g]", "%[high]")                                                                            \
    "lw %[b], 12(%[low])\n" /* of the up */                                                                  \
    "lw %[u], 12(%[high])\n"                                                                                 \
    ".insn i 0x0b, 5, %[v], 2(%[r])\n"                                                                       \
    "lhu %[i], 6(%[r])\n"                                                                                    \
    SC_MAC("%[a]", "%[g]", "%[c]") SC_MAC("%[b]", "%[u]", "%[c]")                                            \
    SC_FACTOR("%[v]", "%[v]", "%[m]") SC_FACTOR("%[i]", "%[i]", "%[m]")                                      \
    SC_TWICE("%[v]") SC_TWICE("%[i]")                                                                        \
    SC_TIMES_LOW("%[g]", "%[a]", "%[v]") SC_TIMES_LOW("%[u]", "%[b]", "%[i]")                                \
    SC_TIMES_HIGH("%[g]", "%[a]", "%[v]") SC_TIMES_HIGH("%[u]", "%[b]", "%[i]")                              \
    SC_ROUND("%[g]", "%[right]") SC_ROUND("%[u]", "%[right]")
#define GATE_BLOCKS(count)                                                                                   \
    SC_GATED(SC_LW_POST("%[a]", "%[low]"))                                                                   \
    SC_LOOP_END(count) "\n"                                                                                  \
    "lw %[a], 12(%[low])\naddi %[low], %[low], 16\naddi %[high], %[high], 16\naddi %[r], %[r], 8\n"          \
    SC_OUTER_LOOP_END(count + 5)
#define GATED                                                                                                \
    [low] "+&r"(low), [high] "+&r"(high), [r] "+&r"(r), [dst] "+&r"(dst), [g] "=&r"(g), [u] "=&r"(u),        \
    [v] "=&r"(v), [i] "=&r"(i), [a] "=&r"(a), [b] "=&r"(b)                                                   \
    : [blocks] "r"(blocks), [four] "r"(SC_ROWS / 2), [c] "r"(256), [m] "r"(mantissa), [right] "r"(right),    \
      [shift] "r"(out->silu_shift), [us] "r"(out->up_shift), [mask] "r"(4095), [table] "r"(sc_sigmoid_table + 256)
    if (gate_shift > 0 && gate_shift < 16) {
        __asm__ volatile(JOIN_BLOCKS(31)
                         "mv %[v], %[g]\n"
                         SC_ROUND("%[v]", "%[gs]")
                         ".insn r 0x33, 1, 0x0A, %[v], %[v], x21\n"
                         GATE_BLOCKS(31) : GATED, [gs] "r"(gate_shift) : "memory");
        return 1;
    }
    if (gate_shift <= 0 && gate_shift >= -12) {
        __asm__ volatile(JOIN_BLOCKS(30)
                         ".insn r 0x33, 5, 0x0A, %[v], %[g], %[limit]\n"
                         "sll %[v], %[v], %[gs]\n"
                         GATE_BLOCKS(30) : GATED, [gs] "r"(-gate_shift),
                         [limit] "r"(((1 << 20) >> -gate_shift) - 1) : "memory");
        return 1;
    }
    /* clang-format on */
#undef JOIN_BLOCKS
#undef GATE_BLOCKS
#undef GATED
    return 0;
}
#endif

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
    SC_LW_POST("%[a]", "%[high]") SC_LW_POST("%[b]", "%[high]")                                              \
    SC_LW_POST("%[h]", "%[low]") SC_LW_POST("%[i]", "%[low]")                                                \
    SC_FACTOR("%[s]", "%[t]", "%[m]") SC_FACTOR_OF_HIGH("%[t]", "%[t]", "%[m]")                              \
    SC_MAC("%[h]", "%[a]", "%[c]") SC_MAC("%[i]", "%[b]", "%[c]")                                            \
    SC_TWICE("%[s]") SC_TWICE("%[t]")                                                                        \
    SC_TIMES_LOW("%[a]", "%[h]", "%[s]") SC_TIMES_LOW("%[b]", "%[i]", "%[t]")                                \
    SC_TIMES_HIGH("%[a]", "%[h]", "%[s]") SC_TIMES_HIGH("%[b]", "%[i]", "%[t]")
#define JOINED                                                                                               \
    [r] "+&r"(r), [y] "+&r"(y), [low] "+&r"(low), [high] "+&r"(high), [s] "=&r"(s), [t] "=&r"(t),            \
    [a] "=&r"(a), [b] "=&r"(b), [h] "=&r"(h), [i] "=&r"(i)                                                   \
    : [n] "r"(n / 2), [m] "r"(mantissa | mantissa << 16), [c] "r"(256), [right] "r"(right)
    if (n > 1 && add && right <= 0) { /* clipped to what becomes 2^30, and that once more */
        const int32_t left = -right, limit = 1 << (30 - left);
        __asm__ volatile(SC_LOOP_BEGIN("%[n]", 29) JOIN_TWO
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
                         ".insn s 0x2b, 2, %[b], 4(%[y])\n" SC_LOOP_END(29)
                         : JOINED, [left] "r"(left), [limit] "r"(limit) : "memory");
    } else if (n > 1 && add)
        __asm__ volatile(SC_LOOP_BEGIN("%[n]", 25) JOIN_TWO
                         "lw %[s], 0(%[y])\n"
                         "lw %[t], 4(%[y])\n"
                         SC_ROUND("%[a]", "%[right]") SC_ROUND("%[b]", "%[right]")
                         "add %[a], %[a], %[s]\n"
                         "add %[b], %[b], %[t]\n"
                         SC_CLIP30("%[a]", "%[a]") SC_CLIP30("%[b]", "%[b]")
                         ".insn s 0x2b, 2, %[a], 4(%[y])\n"
                         ".insn s 0x2b, 2, %[b], 4(%[y])\n" SC_LOOP_END(25) : JOINED : "memory");
    else if (n > 1)
        __asm__ volatile(SC_LOOP_BEGIN("%[n]", 19) JOIN_TWO
                         SC_ROUND("%[a]", "%[right]") SC_ROUND("%[b]", "%[right]")
                         ".insn s 0x2b, 2, %[a], 4(%[y])\n"
                         ".insn s 0x2b, 2, %[b], 4(%[y])\n" SC_LOOP_END(19) : JOINED : "memory");
    /* clang-format on */
#undef JOIN_TWO
#undef JOINED
    n &= 1;
#endif
    for (; n; n--, r++, y++) {
        const int32_t acc = *low++ + (int32_t)((uint32_t)*high++ << 8);
        const int32_t high_word = row_product(acc, row_factor(*r, mantissa));
        const int32_t v = add && right <= 0 ? sc_lshift_sat(high_word, -right) : sc_round(high_word, right);
        *y = add ? sc_add_to_residual(*y, v) : v;
    }
}

/* Rows row .. row + rows - 1, up to a block, in their fixed point. */
static inline void finish_block(const sc_matrix *m, uint32_t row, uint32_t rows, int32_t *y,
                                const sc_output *out, int32_t *dst) {
    rows = (uint32_t)sc_min((int32_t)(m->rows - row), (int32_t)rows);
#ifdef SC_HAS_BIAS
    if (out->bias) sc_add_bias(out->bias + row, (int32_t)rows, y);
#endif
    sc_finish_rows(out, dst, row, rows, y);
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
    const int silu = out->kind == SC_SILU;
    int32_t buffer[JOINED_SILU];
#if SC_XPULP
    const uint32_t whole = left & ~(SC_ROWS - 1u);
    if (silu && whole && joined_silu(r, whole / SC_ROWS, low, high, x->mantissa, right, out, dst + row / 2)) {
        left -= whole, row += whole, r += whole, low += whole, high += whole;
        if (__builtin_expect(left == 0, 1)) return;
    }
#endif
    do {
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
