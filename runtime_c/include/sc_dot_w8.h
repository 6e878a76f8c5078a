/* SPDX-License-Identifier: Apache-2.0
 * 8-bit weights: a word holds 4 inputs of a row, int8[k / 4][8 rows][4]. */

enum { SC_W8_INPUTS = 4, SC_W8_FOLD = 0 };

#if SC_XPULP

/* clang-format off */
#define SC_W8_ODD(r) PV_SDOTSP_B("%[a" #r "]", "%[x0]", "%[t1]") P_LW_POST("%[t1]", "%[w]", "4")
#define SC_W8_EVEN(r) PV_SDOTSP_B("%[a" #r "]", "%[x0]", "%[t0]") P_LW_POST("%[t0]", "%[w]", "4")

/* 17 instructions per 32 products */
SC_INLINE void sc_dot_w8(sc_rows *a, const uint8_t **w, const int8_t **x, uint32_t words) {
    int32_t x0, t0, t1;
    __asm__ volatile(SC_LOOP_BEGIN("%[n]", 17)
                     P_LW_POST("%[x0]", "%[x]", "4") P_LW_POST("%[t0]", "%[w]", "4") P_LW_POST("%[t1]", "%[w]", "4")
                     SC_W8_EVEN(0) SC_W8_ODD(1) SC_W8_EVEN(2) SC_W8_ODD(3) SC_W8_EVEN(4) SC_W8_ODD(5)
                     PV_SDOTSP_B("%[a6]", "%[x0]", "%[t0]") PV_SDOTSP_B("%[a7]", "%[x0]", "%[t1]")
                     SC_LOOP_END(17)
                     : SC_EACH_ROW(SC_DOT_OUT) [w] "+&r"(*w), [x] "+&r"(*x), [x0] "=&r"(x0),
                       [t0] "=&r"(t0), [t1] "=&r"(t1)
                     : [n] "r"(words)
                     : "memory");
}
/* clang-format on */

#elif SC_SIMD

SC_INLINE void sc_dot_w8(sc_rows *a, const uint8_t **w, const int8_t **x, uint32_t words) {
    sc_v_sums sums = {0};
    sc_v_words rows;
    for (; words; words--, *x += 4, *w += 4 * SC_ROWS) {
        sc_v_load(&rows, *w);
        sc_v_dot(&sums, &rows, sc_load32(*x));
    }
    SC_EACH_ROW(SC_V_ROW)
}

#else

#define SC_W8_ROW(r) a->s##r = sc_sdot4(a->s##r, sc_load32(*x), sc_load32(*w + 4 * r));
SC_INLINE void sc_dot_w8(sc_rows *a, const uint8_t **w, const int8_t **x, uint32_t words) {
    for (; words; words--, *x += 4, *w += 4 * SC_ROWS) {
        SC_EACH_ROW(SC_W8_ROW)
    }
}

#endif

SC_INLINE int32_t sc_get_w8(const uint8_t *w, uint32_t row, uint32_t at) {
    return (int8_t)w[(at >> 2) * 4 * SC_ROWS + row * 4 + (at & 3)];
}

SC_INLINE void sc_widen_w8(int32_t *to, uint32_t row, uint32_t word, const uint8_t **w, uint32_t words) {
    for (; words; words--, *w += 4 * SC_ROWS, to += word)
        for (uint32_t r = 0; r < SC_ROWS; r++) to[r * row] = sc_load32(*w + 4 * r);
}
