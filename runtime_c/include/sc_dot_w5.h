/* SPDX-License-Identifier: Apache-2.0
 * 5-bit weights: five words hold 32 inputs of a row. Word i has inputs 4 i .. 4 i + 3 in bits 7..3 of its
 * bytes. Inputs 20..31 are exclusive ors of two or three words, shifted left. Sums are 8 times too large. */

enum { SC_W5_INPUTS = 32, SC_W5_FOLD = 3 };

#define SC_W5_UNIT (5 * 4 * SC_ROWS) /* bytes of 32 inputs of 8 rows */

/* Inputs 20..31 of a row as three words, from the words of all inputs. */
SC_INLINE void sc_w5_mixed(const uint32_t b[5], uint32_t mixed[3]) {
    mixed[0] = (b[0] << 5 & 0xE0E0E0E0u) ^ (b[1] << 3 & 0xF8F8F8F8u);
    mixed[1] = (b[1] << 5 & 0xE0E0E0E0u) ^ (b[2] << 3 & 0xF8F8F8F8u) ^ (b[3] << 4 & 0xF0F0F0F0u);
    mixed[2] = (b[4] << 5 & 0xE0E0E0E0u) ^ (b[3] << 3 & 0xF8F8F8F8u);
}

#if SC_XPULP

/* clang-format off */
/* The activations' words 0..7 are in fixed registers: an __asm__ has too few operands. */
#define SC_W5_X0 "t3"
#define SC_W5_X1 "t4"
#define SC_W5_X2 "t5"
#define SC_W5_X3 "t6"
#define SC_W5_X4 "s8"
#define SC_W5_X5 "s9"
#define SC_W5_X6 "s10"
#define SC_W5_X7 "s11"
#define SC_W5_DOT(acc, n, w) PV_SDOTSP_B(acc, SC_W5_X##n, w)
#define SC_W5_MAIN(acc, n, NEXT)                                                                             \
    PV_AND_SCI_B("%[w" #n "]", "%[w" #n "]", "-8") SC_W5_DOT(acc, n, "%[w" #n "]") NEXT(n)
#define SC_W5_MIXED(n, left) PV_SLL_SCI_B("%[u]", "%[w" #n "]", #left) "xor %[t], %[t], %[u]\n"
/* NEXT(word): loads that word of the next row; 24 instructions without it */
#define SC_W5_ROW(acc, NEXT)                                                                                 \
    PV_SLL_SCI_B("%[t]", "%[w0]", "5") SC_W5_MAIN(acc, 0, NEXT)                                              \
    SC_W5_MIXED(1, 3) SC_W5_DOT(acc, 5, "%[t]")                                                              \
    PV_SLL_SCI_B("%[t]", "%[w1]", "5") SC_W5_MAIN(acc, 1, NEXT)                                              \
    SC_W5_MIXED(2, 3) SC_W5_MAIN(acc, 2, NEXT)                                                               \
    SC_W5_MIXED(3, 4) SC_W5_DOT(acc, 6, "%[t]")                                                              \
    PV_SLL_SCI_B("%[t]", "%[w3]", "3") SC_W5_MAIN(acc, 3, NEXT)                                              \
    SC_W5_MIXED(4, 5) SC_W5_DOT(acc, 7, "%[t]") SC_W5_MAIN(acc, 4, NEXT)
#define SC_W5_LOAD(word, row) "lw %[w" #word "], 32*" #word "+4*" #row "(%[w])\n"
#define SC_W5_LOAD0(word) SC_W5_LOAD(word, 0)
#define SC_W5_LOAD1(word) SC_W5_LOAD(word, 1)
#define SC_W5_LOAD2(word) SC_W5_LOAD(word, 2)
#define SC_W5_LOAD3(word) SC_W5_LOAD(word, 3)
#define SC_W5_LOAD4(word) SC_W5_LOAD(word, 4)
#define SC_W5_LOAD5(word) SC_W5_LOAD(word, 5)
#define SC_W5_LOAD6(word) SC_W5_LOAD(word, 6)
#define SC_W5_LOAD7(word) SC_W5_LOAD(word, 7)
#define SC_W5_NONE(word)

/* 241 instructions per 256 products */
SC_INLINE void sc_dot_w5(sc_rows *a, const uint8_t **w, const int8_t **x, uint32_t words) {
    int32_t w0, w1, w2, w3, w4, u;
    uint32_t t = words >> 3;
    __asm__ volatile(SC_LOOP_BEGIN("%[t]", 241)
                     SC_W5_LOAD0(0) SC_W5_LOAD0(1) SC_W5_LOAD0(2) SC_W5_LOAD0(3) SC_W5_LOAD0(4)
                     P_LW_POST(SC_W5_X0, "%[x]", "4") P_LW_POST(SC_W5_X1, "%[x]", "4")
                     P_LW_POST(SC_W5_X2, "%[x]", "4") P_LW_POST(SC_W5_X3, "%[x]", "4")
                     P_LW_POST(SC_W5_X4, "%[x]", "4") P_LW_POST(SC_W5_X5, "%[x]", "4")
                     P_LW_POST(SC_W5_X6, "%[x]", "4") P_LW_POST(SC_W5_X7, "%[x]", "4")
                     SC_W5_ROW("%[a0]", SC_W5_LOAD1) SC_W5_ROW("%[a1]", SC_W5_LOAD2)
                     SC_W5_ROW("%[a2]", SC_W5_LOAD3) SC_W5_ROW("%[a3]", SC_W5_LOAD4)
                     SC_W5_ROW("%[a4]", SC_W5_LOAD5) SC_W5_ROW("%[a5]", SC_W5_LOAD6)
                     SC_W5_ROW("%[a6]", SC_W5_LOAD7) SC_W5_ROW("%[a7]", SC_W5_NONE)
                     "addi %[w], %[w], 160\n"
                     SC_LOOP_END(241)
                     : SC_EACH_ROW(SC_DOT_OUT) [w] "+&r"(*w), [x] "+&r"(*x), [w0] "=&r"(w0), [w1] "=&r"(w1),
                       [w2] "=&r"(w2), [w3] "=&r"(w3), [w4] "=&r"(w4), [t] "+&r"(t), [u] "=&r"(u)
                     :
                     : "memory", SC_W5_X0, SC_W5_X1, SC_W5_X2, SC_W5_X3, SC_W5_X4, SC_W5_X5, SC_W5_X6, SC_W5_X7);
}
/* clang-format on */

#elif SC_SIMD

SC_INLINE void sc_dot_w5(sc_rows *a, const uint8_t **w, const int8_t **x, uint32_t words) {
    const int32_t top5 = (int32_t)0xF8F8F8F8, top4 = (int32_t)0xF0F0F0F0, top3 = (int32_t)0xE0E0E0E0;
    sc_v_sums sums = {0};
    sc_v_words b[5], rows;
    for (; words; words -= 8, *x += 32, *w += SC_W5_UNIT) {
        for (int i = 0; i < 5; i++) {
            sc_v_load(&b[i], *w + 4 * SC_ROWS * i);
            rows = b[i] & top5;
            sc_v_dot(&sums, &rows, sc_load32(*x + 4 * i));
        }
        rows = ((b[0] << 5) & top3) ^ ((b[1] << 3) & top5);
        sc_v_dot(&sums, &rows, sc_load32(*x + 20));
        rows = ((b[1] << 5) & top3) ^ ((b[2] << 3) & top5) ^ ((b[3] << 4) & top4);
        sc_v_dot(&sums, &rows, sc_load32(*x + 24));
        rows = ((b[4] << 5) & top3) ^ ((b[3] << 3) & top5);
        sc_v_dot(&sums, &rows, sc_load32(*x + 28));
    }
    SC_EACH_ROW(SC_V_ROW)
}

#else

SC_INLINE int32_t sc_w5_row(int32_t acc, const int8_t *x, const uint8_t *w) {
    uint32_t b[5], mixed[3];
    for (int i = 0; i < 5; i++) {
        b[i] = (uint32_t)sc_load32(w + 4 * SC_ROWS * i);
        acc = sc_sdot4(acc, sc_load32(x + 4 * i), (int32_t)(b[i] & 0xF8F8F8F8u));
    }
    sc_w5_mixed(b, mixed);
    for (int i = 0; i < 3; i++) acc = sc_sdot4(acc, sc_load32(x + 20 + 4 * i), (int32_t)mixed[i]);
    return acc;
}
#define SC_W5_ROW(r) a->s##r = sc_w5_row(a->s##r, *x, *w + 4 * r);
SC_INLINE void sc_dot_w5(sc_rows *a, const uint8_t **w, const int8_t **x, uint32_t words) {
    for (; words; words -= 8, *x += 32, *w += SC_W5_UNIT) {
        SC_EACH_ROW(SC_W5_ROW)
    }
}

#endif

SC_INLINE int32_t sc_get_w5(const uint8_t *w, uint32_t row, uint32_t at) {
    const uint8_t *byte = w + (at >> 5) * SC_W5_UNIT + row * 4 + (at & 3);
    const uint32_t word = at >> 2 & 7;
    uint32_t top; /* the weight in bits 7..3 */
    if (word < 5) {
        top = byte[word * 4 * SC_ROWS];
    } else {
        uint32_t b[5], mixed[3];
        for (int i = 0; i < 5; i++) b[i] = byte[4 * SC_ROWS * i];
        sc_w5_mixed(b, mixed);
        top = mixed[word - 5];
    }
    return (int8_t)(top & 0xF8) >> 3;
}

SC_INLINE void sc_widen_w5(int32_t *to, uint32_t row, uint32_t word, const uint8_t **w, uint32_t words) {
    const uint8_t *from = *w;
    for (; words; words -= 8, from += SC_W5_UNIT - 4 * SC_ROWS, to += 8 * word) {
        int32_t *at = to;
        for (int r = 0; r < SC_ROWS; r++, from += 4, at += row) {
            uint32_t b[5], mixed[3];
            for (uint32_t i = 0; i < 5; i++) {
                b[i] = (uint32_t)sc_load32(from + 4 * SC_ROWS * i);
                at[i * word] = (int32_t)(b[i] & 0xF8F8F8F8u);
            }
            sc_w5_mixed(b, mixed);
            for (uint32_t i = 0; i < 3; i++) at[(5 + i) * word] = (int32_t)mixed[i];
        }
    }
    *w = from;
}
