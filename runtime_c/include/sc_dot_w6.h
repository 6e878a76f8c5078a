/* SPDX-License-Identifier: Apache-2.0
 * 6-bit weights: three words hold 16 inputs of a row. Word i has inputs 4 i .. 4 i + 3 in bits 7..2 of its
 * bytes. Inputs 12..15 are an exclusive or of the three words, shifted left. Sums are 4 times too large. */

enum { SC_W6_INPUTS = 16, SC_W6_FOLD = 2 };

#define SC_W6_UNIT (3 * 4 * SC_ROWS) /* bytes of 16 inputs of 8 rows */

#if SC_XPULP

/* clang-format off */
/* NEXT(word): loads that word of the next row; 12 instructions without it */
#define SC_W6_ROW(acc, NEXT)                                                                                 \
    PV_SLL_SCI_B("%[t]", "%[w0]", "2")                                                                       \
    PV_AND_SCI_B("%[w0]", "%[w0]", "-4") PV_SDOTSP_B(acc, "%[x0]", "%[w0]") NEXT(0)                          \
    "xor %[t], %[t], %[w1]\n"                                                                                \
    PV_AND_SCI_B("%[w1]", "%[w1]", "-4") PV_SDOTSP_B(acc, "%[x1]", "%[w1]") NEXT(1)                          \
    PV_SLL_SCI_B("%[t]", "%[t]", "2") "xor %[t], %[t], %[w2]\n"                                              \
    PV_AND_SCI_B("%[w2]", "%[w2]", "-4") PV_SDOTSP_B(acc, "%[x2]", "%[w2]") NEXT(2)                          \
    PV_SLL_SCI_B("%[t]", "%[t]", "2") PV_SDOTSP_B(acc, "%[x3]", "%[t]")
#define SC_W6_LOAD(word, row) "lw %[w" #word "], 32*" #word "+4*" #row "(%[w])\n"
#define SC_W6_LOAD0(word) SC_W6_LOAD(word, 0)
#define SC_W6_LOAD1(word) SC_W6_LOAD(word, 1)
#define SC_W6_LOAD2(word) SC_W6_LOAD(word, 2)
#define SC_W6_LOAD3(word) SC_W6_LOAD(word, 3)
#define SC_W6_LOAD4(word) SC_W6_LOAD(word, 4)
#define SC_W6_LOAD5(word) SC_W6_LOAD(word, 5)
#define SC_W6_LOAD6(word) SC_W6_LOAD(word, 6)
#define SC_W6_LOAD7(word) SC_W6_LOAD(word, 7)
#define SC_W6_NONE(word)

/* 125 instructions per 128 products */
SC_INLINE void sc_dot_w6(sc_rows *a, const uint8_t **w, const int8_t **x, uint32_t words) {
    int32_t x0, x1, x2, x3, w0, w1, w2;
    uint32_t t = words >> 2;
    __asm__ volatile(SC_LOOP_BEGIN("%[t]", 125)
                     SC_W6_LOAD0(0) SC_W6_LOAD0(1) SC_W6_LOAD0(2)
                     P_LW_POST("%[x0]", "%[x]", "4") P_LW_POST("%[x1]", "%[x]", "4")
                     P_LW_POST("%[x2]", "%[x]", "4") P_LW_POST("%[x3]", "%[x]", "4")
                     SC_W6_ROW("%[a0]", SC_W6_LOAD1) SC_W6_ROW("%[a1]", SC_W6_LOAD2)
                     SC_W6_ROW("%[a2]", SC_W6_LOAD3) SC_W6_ROW("%[a3]", SC_W6_LOAD4)
                     SC_W6_ROW("%[a4]", SC_W6_LOAD5) SC_W6_ROW("%[a5]", SC_W6_LOAD6)
                     SC_W6_ROW("%[a6]", SC_W6_LOAD7) SC_W6_ROW("%[a7]", SC_W6_NONE)
                     "addi %[w], %[w], 96\n"
                     SC_LOOP_END(125)
                     : SC_EACH_ROW(SC_DOT_OUT) [w] "+&r"(*w), [x] "+&r"(*x), [x0] "=&r"(x0), [x1] "=&r"(x1),
                       [x2] "=&r"(x2), [x3] "=&r"(x3), [w0] "=&r"(w0), [w1] "=&r"(w1), [w2] "=&r"(w2), [t] "+&r"(t)
                     :
                     : "memory");
}
/* clang-format on */

#elif SC_SIMD

SC_INLINE void sc_dot_w6(sc_rows *a, const uint8_t **w, const int8_t **x, uint32_t words) {
    const int32_t main = (int32_t)0xFCFCFCFC;
    sc_v_sums sums = {0};
    sc_v_words word, last, rows;
    for (; words; words -= 4, *x += 16, *w += SC_W6_UNIT) {
        last = (sc_v_words){0};
        for (int i = 0; i < 3; i++) {
            sc_v_load(&word, *w + 4 * SC_ROWS * i);
            rows = word & main;
            last = ((last << 2) & main) ^ word;
            sc_v_dot(&sums, &rows, sc_load32(*x + 4 * i));
        }
        rows = (last << 2) & main;
        sc_v_dot(&sums, &rows, sc_load32(*x + 12));
    }
    SC_EACH_ROW(SC_V_ROW)
}

#else

SC_INLINE int32_t sc_w6_row(int32_t acc, const int8_t *x, const uint8_t *w) {
    uint32_t last = 0;
    for (int i = 0; i < 3; i++) {
        const uint32_t word = (uint32_t)sc_load32(w + 4 * SC_ROWS * i);
        acc = sc_sdot4(acc, sc_load32(x + 4 * i), (int32_t)(word & 0xFCFCFCFCu));
        last = (last << 2 & 0xFCFCFCFCu) ^ word;
    }
    return sc_sdot4(acc, sc_load32(x + 12), (int32_t)(last << 2 & 0xFCFCFCFCu));
}
#define SC_W6_ROW(r) a->s##r = sc_w6_row(a->s##r, *x, *w + 4 * r);
SC_INLINE void sc_dot_w6(sc_rows *a, const uint8_t **w, const int8_t **x, uint32_t words) {
    for (; words; words -= 4, *x += 16, *w += SC_W6_UNIT) {
        SC_EACH_ROW(SC_W6_ROW)
    }
}

#endif

SC_INLINE int32_t sc_get_w6(const uint8_t *w, uint32_t row, uint32_t at) {
    const uint8_t *byte = w + (at >> 4) * SC_W6_UNIT + row * 4 + (at & 3);
    const uint32_t word = at >> 2 & 3;
    uint32_t top; /* the weight in bits 7..2 */
    if (word < 3)
        top = byte[word * 4 * SC_ROWS];
    else
        top = (uint32_t)byte[0] << 6 ^ (uint32_t)byte[4 * SC_ROWS] << 4 ^ (uint32_t)byte[8 * SC_ROWS] << 2;
    return (int8_t)(top & 0xFC) >> 2;
}

SC_INLINE void sc_widen_w6(int32_t *to, uint32_t row, uint32_t word, const uint8_t **w, uint32_t words) {
    const uint8_t *from = *w;
    for (; words; words -= 4, from += SC_W6_UNIT - 4 * SC_ROWS, to += 4 * word) {
        int32_t *at = to;
        for (int r = 0; r < SC_ROWS; r++, from += 4, at += row) {
            uint32_t last = 0;
            for (uint32_t i = 0; i < 3; i++) {
                const uint32_t stored = (uint32_t)sc_load32(from + 4 * SC_ROWS * i);
                at[i * word] = (int32_t)(stored & 0xFCFCFCFCu);
                last = (last << 2 & 0xFCFCFCFCu) ^ stored;
            }
            at[3 * word] = (int32_t)(last << 2 & 0xFCFCFCFCu);
        }
    }
    *w = from;
}
