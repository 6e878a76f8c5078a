/* SPDX-License-Identifier: Apache-2.0
 * 2-bit weights: a word holds 16 inputs of a row; bits 2 p, 2 p + 1 of byte j are input 4 p + j. Sums are 64
 * times too large. */

enum { SC_W2_INPUTS = 16, SC_W2_FOLD = 6 };

#if SC_XPULP

/* clang-format off */
#define SC_W2_PART(acc, cur, left, x)                                                           \
    "slli %[lo], " cur ", " #left "\nand %[lo], %[lo], %[m]\n" PV_SDOTSP_B(acc, x, "%[lo]")
#define SC_W2_ROW(acc, cur)                                                                     \
    PV_SLL_SCI_B("%[lo]", cur, "6") PV_SDOTSP_B(acc, "%[x0]", "%[lo]")                             \
    SC_W2_PART(acc, cur, 4, "%[x1]") SC_W2_PART(acc, cur, 2, "%[x2]") \
    "and " cur ", " cur ", %[m]\n" PV_SDOTSP_B(acc, "%[x3]", cur)
#define SC_W2_EVEN(r) P_LW_POST("%[t1]", "%[w]", "4") SC_W2_ROW("%[a" #r "]", "%[t0]")
#define SC_W2_ODD(r) P_LW_POST("%[t0]", "%[w]", "4") SC_W2_ROW("%[a" #r "]", "%[t1]")

/* 92 instructions per 128 products */
SC_INLINE void sc_dot_w2(sc_rows *a, const uint8_t **w, const int8_t **x, uint32_t words) {
    int32_t x0, x1, x2, x3, t0, t1, lo;
    __asm__ volatile(SC_LOOP_BEGIN("%[n]", 92)
                     P_LW_POST("%[t0]", "%[w]", "4") P_LW_POST("%[x0]", "%[x]", "4") P_LW_POST("%[x1]", "%[x]", "4")
                     P_LW_POST("%[x2]", "%[x]", "4") P_LW_POST("%[x3]", "%[x]", "4")
                     SC_W2_EVEN(0) SC_W2_ODD(1) SC_W2_EVEN(2) SC_W2_ODD(3) SC_W2_EVEN(4) SC_W2_ODD(5)
                     SC_W2_EVEN(6) SC_W2_ROW("%[a7]", "%[t1]")
                     SC_LOOP_END(92)
                     : SC_EACH_ROW(SC_DOT_OUT) [w] "+&r"(*w), [x] "+&r"(*x), [x0] "=&r"(x0),
                       [x1] "=&r"(x1), [x2] "=&r"(x2), [x3] "=&r"(x3), [t0] "=&r"(t0), [t1] "=&r"(t1),
                       [lo] "=&r"(lo)
                     : [n] "r"(words >> 2), [m] "r"(0xC0C0C0C0u)
                     : "memory");
}
/* clang-format on */

#elif SC_SIMD

SC_INLINE void sc_dot_w2(sc_rows *a, const uint8_t **w, const int8_t **x, uint32_t words) {
    sc_v_sums sums = {0};
    sc_v_words four, rows;
    for (; words; words -= 4, *x += 16, *w += 4 * SC_ROWS) {
        sc_v_load(&four, *w);
        for (int part = 0; part < 4; part++) {
            rows = (four << (6 - 2 * part)) & (int32_t)0xC0C0C0C0;
            sc_v_dot(&sums, &rows, sc_load32(*x + 4 * part));
        }
    }
    SC_EACH_ROW(SC_V_ROW)
}

#else

SC_INLINE int32_t sc_w2_row(int32_t acc, const int8_t *x, const uint8_t *w) {
    const uint32_t v = (uint32_t)sc_load32(w);
    for (int part = 0; part < 4; part++)
        acc = sc_sdot4(acc, sc_load32(x + 4 * part), (int32_t)((v << (6 - 2 * part)) & 0xC0C0C0C0u));
    return acc;
}
#define SC_W2_ROW(r) a->s##r = sc_w2_row(a->s##r, *x, *w + 4 * r);
SC_INLINE void sc_dot_w2(sc_rows *a, const uint8_t **w, const int8_t **x, uint32_t words) {
    for (; words; words -= 4, *x += 16, *w += 4 * SC_ROWS) {
        SC_EACH_ROW(SC_W2_ROW)
    }
}

#endif

SC_INLINE int32_t sc_get_w2(const uint8_t *w, uint32_t row, uint32_t at) {
    const uint8_t byte = w[(at >> 4) * 4 * SC_ROWS + row * 4 + (at & 3)];
    return (int8_t)(byte << (6 - 2 * (at >> 2 & 3)) & 0xC0) >> 6;
}

SC_INLINE void sc_widen_w2(int32_t *to, uint32_t row, uint32_t word, const uint8_t **w, uint32_t words) {
    const uint8_t *from = *w;
    for (; words; words -= 4, to += 4 * word) {
        int32_t *at = to;
        for (int r = 0; r < SC_ROWS; r++, from += 4, at += row) {
            const uint32_t v = (uint32_t)sc_load32(from);
            at[0] = (int32_t)(v << 6 & 0xC0C0C0C0u), at[word] = (int32_t)(v << 4 & 0xC0C0C0C0u);
            at[2 * word] = (int32_t)(v << 2 & 0xC0C0C0C0u), at[3 * word] = (int32_t)(v & 0xC0C0C0C0u);
        }
    }
    *w = from;
}
