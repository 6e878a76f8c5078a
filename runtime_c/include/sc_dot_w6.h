/* SPDX-License-Identifier: Apache-2.0
 * 6-bit weights: three words hold 16 inputs of a row. Word i has inputs 4 i .. 4 i + 3 in bits 7..2 of its
 * bytes. Inputs 12..15 are an exclusive or of the three words, shifted left. Sums are 4 times too large. */

enum { SC_W6_INPUTS = 16, SC_W6_FOLD = 2 };

#define SC_W6_UNIT (3 * 4 * SC_ROWS) /* bytes of 16 inputs of 8 rows */

#if SC_XPULP

/* clang-format off */
/* A row at a time, so that the loop fits a core's instruction buffer: 17 instructions per 16 products. */
SC_INLINE void sc_dot_w6(sc_rows *a, const uint8_t **w, const int8_t **x, uint32_t words) {
    int32_t x0, x1, x2, x3, w0, w1, w2, t, acc, *sums = &a->s0;
    __asm__ volatile(SC_OUTER_LOOP_BEGIN("%[n]", 17 + 7)
                     P_LW_POST("%[x0]", "%[x]", "4") P_LW_POST("%[x1]", "%[x]", "4")
                     P_LW_POST("%[x2]", "%[x]", "4") P_LW_POST("%[x3]", "%[x]", "4")
                     SC_INNER_LOOP_BEGIN("%[rows]", 17)
                     P_LW_POST("%[w0]", "%[w]", "4")
                     "lw %[w1], 32 - 4(%[w])\n" "lw %[w2], 64 - 4(%[w])\n" "lw %[acc], 0(%[sums])\n"
                     PV_SLL_SCI_B("%[t]", "%[w0]", "2")
                     PV_AND_SCI_B("%[w0]", "%[w0]", "-4") PV_SDOTSP_B("%[acc]", "%[x0]", "%[w0]")
                     "xor %[t], %[t], %[w1]\n"
                     PV_AND_SCI_B("%[w1]", "%[w1]", "-4") PV_SDOTSP_B("%[acc]", "%[x1]", "%[w1]")
                     PV_SLL_SCI_B("%[t]", "%[t]", "2") "xor %[t], %[t], %[w2]\n"
                     PV_AND_SCI_B("%[w2]", "%[w2]", "-4") PV_SDOTSP_B("%[acc]", "%[x2]", "%[w2]")
                     PV_SLL_SCI_B("%[t]", "%[t]", "2") PV_SDOTSP_B("%[acc]", "%[x3]", "%[t]")
                     P_SW_POST("%[acc]", "%[sums]", "4") SC_LOOP_END(17) "\n"
                     "addi %[w], %[w], 64\n" "addi %[sums], %[sums], -32\n"
                     SC_OUTER_LOOP_END(17 + 7)
                     : [w] "+&r"(*w), [x] "+&r"(*x), [sums] "+&r"(sums), [x0] "=&r"(x0), [x1] "=&r"(x1),
                       [x2] "=&r"(x2), [x3] "=&r"(x3), [w0] "=&r"(w0), [w1] "=&r"(w1), [w2] "=&r"(w2),
                       [t] "=&r"(t), [acc] "=&r"(acc)
                     : [n] "r"(words >> 2), [rows] "r"(SC_ROWS)
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
#if SC_XPULP
        int32_t w0, w1, w2, t;
        /* clang-format off */
        __asm__ volatile(SC_LOOP_CONST_BEGIN(8, 15)
                         P_LW_POST("%[w0]", "%[w]", "4") "lw %[w1], 32 - 4(%[w])\n" "lw %[w2], 64 - 4(%[w])\n"
                         PV_SLL_SCI_B("%[t]", "%[w0]", "2") PV_AND_SCI_B("%[w0]", "%[w0]", "-4")
                         P_SW_POST_R("%[w0]", "%[to]", "%[word]") "xor %[t], %[t], %[w1]\n"
                         PV_AND_SCI_B("%[w1]", "%[w1]", "-4") P_SW_POST_R("%[w1]", "%[to]", "%[word]")
                         PV_SLL_SCI_B("%[t]", "%[t]", "2") "xor %[t], %[t], %[w2]\n"
                         PV_AND_SCI_B("%[w2]", "%[w2]", "-4") P_SW_POST_R("%[w2]", "%[to]", "%[word]")
                         PV_SLL_SCI_B("%[t]", "%[t]", "2") P_SW_POST_R("%[t]", "%[to]", "%[next]")
                         SC_LOOP_END(15)
                         : [w] "+&r"(from), [to] "+&r"(at), [w0] "=&r"(w0), [w1] "=&r"(w1), [w2] "=&r"(w2),
                           [t] "=&r"(t)
                         : [word] "r"(4 * word), [next] "r"(4 * (row - 3 * word))
                         : "memory");
        /* clang-format on */
#else
        for (int r = 0; r < SC_ROWS; r++, from += 4, at += row) {
            uint32_t last = 0;
            for (uint32_t i = 0; i < 3; i++) {
                const uint32_t stored = (uint32_t)sc_load32(from + 4 * SC_ROWS * i);
                at[i * word] = (int32_t)(stored & 0xFCFCFCFCu);
                last = (last << 2 & 0xFCFCFCFCu) ^ stored;
            }
            at[3 * word] = (int32_t)(last << 2 & 0xFCFCFCFCu);
        }
#endif
    }
    *w = from;
}
