/* SPDX-License-Identifier: Apache-2.0
 * 4-bit weights: a word holds 8 inputs of a row, inputs 0..3 in the low nibbles of its bytes, 4..7 in the
 * high ones. Nibbles are used at the top of a byte, so sums are 16 times too large. */

enum { SC_W4_INPUTS = 8, SC_W4_FOLD = 4 };

#if SC_XPULP

/* clang-format off */
#define SC_W4_ROW(acc, cur)                                                                     \
    PV_SLL_SCI_B("%[lo]", cur, "4") PV_AND_SCI_B(cur, cur, "-16")                                \
    PV_SDOTSP_B(acc, "%[x0]", "%[lo]") PV_SDOTSP_B(acc, "%[x1]", cur)
#define SC_W4_EVEN(r) P_LW_POST("%[t1]", "%[w]", "4") SC_W4_ROW("%[a" #r "]", "%[t0]")
#define SC_W4_ODD(r) P_LW_POST("%[t0]", "%[w]", "4") SC_W4_ROW("%[a" #r "]", "%[t1]")

/* 42 instructions per 64 products */
SC_INLINE void sc_dot_w4(sc_rows *a, const uint8_t **w, const int8_t **x, uint32_t words) {
    int32_t x0, x1, t0, t1, lo;
    __asm__ volatile(SC_LOOP_BEGIN("%[n]", 42)
                     P_LW_POST("%[t0]", "%[w]", "4") P_LW_POST("%[x0]", "%[x]", "4") P_LW_POST("%[x1]", "%[x]", "4")
                     SC_W4_EVEN(0) SC_W4_ODD(1) SC_W4_EVEN(2) SC_W4_ODD(3) SC_W4_EVEN(4) SC_W4_ODD(5)
                     SC_W4_EVEN(6) SC_W4_ROW("%[a7]", "%[t1]")
                     SC_LOOP_END(42)
                     : SC_EACH_ROW(SC_DOT_OUT) [w] "+&r"(*w), [x] "+&r"(*x), [x0] "=&r"(x0),
                       [x1] "=&r"(x1), [t0] "=&r"(t0), [t1] "=&r"(t1), [lo] "=&r"(lo)
                     : [n] "r"(words >> 1)
                     : "memory");
}
/* clang-format on */

#elif SC_SIMD

SC_INLINE void sc_dot_w4(sc_rows *a, const uint8_t **w, const int8_t **x, uint32_t words) {
    sc_v_sums sums = {0};
    sc_v_words both, rows;
    for (; words; words -= 2, *x += 8, *w += 4 * SC_ROWS) {
        sc_v_load(&both, *w);
        rows = (both << 4) & (int32_t)0xF0F0F0F0;
        sc_v_dot(&sums, &rows, sc_load32(*x));
        rows = both & (int32_t)0xF0F0F0F0;
        sc_v_dot(&sums, &rows, sc_load32(*x + 4));
    }
    SC_EACH_ROW(SC_V_ROW)
}

#else

SC_INLINE int32_t sc_w4_row(int32_t acc, const int8_t *x, const uint8_t *w) {
    const uint32_t v = (uint32_t)sc_load32(w);
    acc = sc_sdot4(acc, sc_load32(x), (int32_t)((v << 4) & 0xF0F0F0F0u));
    return sc_sdot4(acc, sc_load32(x + 4), (int32_t)(v & 0xF0F0F0F0u));
}
#define SC_W4_ROW(r) a->s##r = sc_w4_row(a->s##r, *x, *w + 4 * r);
SC_INLINE void sc_dot_w4(sc_rows *a, const uint8_t **w, const int8_t **x, uint32_t words) {
    for (; words; words -= 2, *x += 8, *w += 4 * SC_ROWS) {
        SC_EACH_ROW(SC_W4_ROW)
    }
}

#endif

SC_INLINE int32_t sc_get_w4(const uint8_t *w, uint32_t row, uint32_t at) {
    const uint8_t byte = w[(at >> 3) * 4 * SC_ROWS + row * 4 + (at & 3)];
    return (int8_t)(at & 4 ? byte & 0xF0 : byte << 4) >> 4;
}

#if SC_XPULP
/* Widens 2 words of 8 rows to int8, two rows at a time. TOP(v) converts the upper nibbles of a word. 12
 * instructions */
/* clang-format off */
#define SC_W4_TWO_ROWS(TOP)                                                                                  \
    SC_INNER_LOOP_BEGIN("%[four]", 12)                                                                       \
    P_LW_POST("%[v]", "%[w]", "4") P_LW_POST("%[u]", "%[w]", "4")                                            \
    "slli %[lo], %[v], 4\n" TOP("%[v]") TOP("%[lo]") "slli %[un], %[u], 4\n"                                 \
    "sw %[v], 4(%[to])\n" P_SW_POST_R("%[lo]", "%[to]", "%[step]")                                           \
    TOP("%[u]") TOP("%[un]")                                                                                 \
    "sw %[u], 4(%[to])\n" P_SW_POST_R("%[un]", "%[to]", "%[step]") SC_LOOP_END(12) "\n"
/* clang-format on */
#define SC_W4_FOLDED(v) "and " v ", " v ", %[m]\n"
#define SC_W4_FLAT(v) PV_SRA_SC_B(v, v, "%[m]")
#define SC_W4_OUT [w] "+&r"(w), [to] "+&r"(to), [v] "=&r"(v), [lo] "=&r"(lo), [u] "=&r"(u), [un] "=&r"(un)
#define SC_W4_IN(mask)                                                                                       \
    [n] "r"(blocks), [four] "r"(SC_ROWS / 2), [m] "r"(mask), [step] "r"(4 * row),                            \
        [apart] "r"(apart - 4 * SC_ROWS)

/* Widens the weights without the factor 16, `blocks` times. Blocks are `apart` bytes apart in w, and 8 rows
 * of `row` words apart in `to`. */
SC_INLINE void sc_widen_flat_w4(int32_t *to, uint32_t row, const uint8_t *w, uint32_t apart,
                                uint32_t blocks) {
    int32_t v, lo, u, un;
    __asm__ volatile(SC_OUTER_LOOP_BEGIN("%[n]", 12 + 2)
                         SC_W4_TWO_ROWS(SC_W4_FLAT) "add %[w], %[w], %[apart]\n" SC_OUTER_LOOP_END(12 + 2)
                     : SC_W4_OUT
                     : SC_W4_IN(4)
                     : "memory");
}

/* sc_widen_w4() of 2 words, `blocks` times. Blocks are `apart` bytes apart in w, and 8 * skip rows apart in
 * `to`. */
#define SC_W4_COLUMN 1
SC_INLINE void sc_widen_column_w4(int32_t *to, uint32_t row, uint32_t skip, const uint8_t *w, uint32_t apart,
                                  uint32_t blocks) {
    int32_t v, lo, u, un;
    __asm__ volatile(SC_OUTER_LOOP_BEGIN("%[n]", 12 + 3)
                         SC_W4_TWO_ROWS(SC_W4_FOLDED) "add %[w], %[w], %[apart]\n"
                                                      "add %[to], %[to], %[skip]\n" SC_OUTER_LOOP_END(12 + 3)
                     : SC_W4_OUT
                     : SC_W4_IN(0xF0F0F0F0u), [skip] "r"((skip - 1) * 4 * SC_ROWS * row)
                     : "memory");
}
#undef SC_W4_OUT
#undef SC_W4_IN
#endif

SC_INLINE void sc_widen_w4(int32_t *to, uint32_t row, uint32_t word, const uint8_t **w, uint32_t words) {
    const uint8_t *from = *w;
#if SC_XPULP
    if (__builtin_constant_p(word) && word == 1) {
        for (; words; words -= 2, to += 2) {
            int32_t *at = to, v, lo;
            /* clang-format off */
            __asm__ volatile(SC_LOOP_CONST_BEGIN(8, 5)
                             P_LW_POST("%[v]", "%[w]", "4")
                             PV_SLL_SCI_B("%[lo]", "%[v]", "4") PV_AND_SCI_B("%[v]", "%[v]", "-16")
                             "sw %[v], 4(%[to])\n"
                             P_SW_POST_R("%[lo]", "%[to]", "%[step]") SC_LOOP_END(5)
                             : [w] "+&r"(from), [to] "+&r"(at), [v] "=&r"(v), [lo] "=&r"(lo)
                             : [step] "r"(4 * row)
                             : "memory");
            /* clang-format on */
        }
        *w = from;
        return;
    }
#endif
    for (; words; words -= 2, from += 4 * SC_ROWS, to += 2 * word) {
#define SC_W4_WIDEN(r)                                                                                       \
    {                                                                                                        \
        const uint32_t v = (uint32_t)sc_load32(from + 4 * r);                                                \
        to[r * row] = (int32_t)(v << 4 & 0xF0F0F0F0u), to[r * row + word] = (int32_t)(v & 0xF0F0F0F0u);      \
    }
        SC_EACH_ROW(SC_W4_WIDEN)
    }
    *w = from;
}
