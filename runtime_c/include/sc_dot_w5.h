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
#define SC_W5_MAIN(n) PV_AND_SCI_B("%[w" #n "]", "%[w" #n "]", "-8") PV_SDOTSP_B("%[acc]", "%[x" #n "]", "%[w" #n "]")
#define SC_W5_MIXED(n, left) PV_SLL_SCI_B("%[u]", "%[w" #n "]", #left) "xor %[t], %[t], %[u]\n"
/* A row at a time, so that the loop fits a core's instruction buffer: 31 instructions per 32 products. */
SC_INLINE void sc_dot_w5(sc_rows *a, const uint8_t **w, const int8_t **x, uint32_t words) {
    int32_t x0, x1, x2, x3, x4, x5, x6, x7, w0, w1, w2, w3, w4, t, u, *sums = &a->s0;
    uint32_t acc = words >> 3; /* first the count of units */
    __asm__ volatile(SC_OUTER_LOOP_BEGIN("%[acc]", 31 + 11)
                     P_LW_POST("%[x0]", "%[x]", "4") P_LW_POST("%[x1]", "%[x]", "4")
                     P_LW_POST("%[x2]", "%[x]", "4") P_LW_POST("%[x3]", "%[x]", "4")
                     P_LW_POST("%[x4]", "%[x]", "4") P_LW_POST("%[x5]", "%[x]", "4")
                     P_LW_POST("%[x6]", "%[x]", "4") P_LW_POST("%[x7]", "%[x]", "4")
                     SC_INNER_LOOP_BEGIN("%[rows]", 31)
                     P_LW_POST("%[w0]", "%[w]", "4")
                     "lw %[w1], 32 - 4(%[w])\n" "lw %[w2], 64 - 4(%[w])\n" "lw %[w3], 96 - 4(%[w])\n"
                     "lw %[w4], 128 - 4(%[w])\n" "lw %[acc], 0(%[sums])\n"
                     PV_SLL_SCI_B("%[t]", "%[w0]", "5") SC_W5_MIXED(1, 3) SC_W5_MAIN(0)
                     PV_SDOTSP_B("%[acc]", "%[x5]", "%[t]")
                     PV_SLL_SCI_B("%[t]", "%[w1]", "5") SC_W5_MIXED(2, 3) SC_W5_MIXED(3, 4)
                     SC_W5_MAIN(1) SC_W5_MAIN(2) PV_SDOTSP_B("%[acc]", "%[x6]", "%[t]")
                     PV_SLL_SCI_B("%[t]", "%[w3]", "3") SC_W5_MIXED(4, 5) SC_W5_MAIN(3) SC_W5_MAIN(4)
                     PV_SDOTSP_B("%[acc]", "%[x7]", "%[t]")
                     P_SW_POST("%[acc]", "%[sums]", "4") SC_LOOP_END(31) "\n"
                     "addi %[w], %[w], 128\n" "addi %[sums], %[sums], -32\n"
                     SC_OUTER_LOOP_END(31 + 11)
                     : [w] "+&r"(*w), [x] "+&r"(*x), [sums] "+&r"(sums), [acc] "+&r"(acc), [x0] "=&r"(x0), [x1] "=&r"(x1),
                       [x2] "=&r"(x2), [x3] "=&r"(x3), [x4] "=&r"(x4), [x5] "=&r"(x5), [x6] "=&r"(x6), [x7] "=&r"(x7),
                       [w0] "=&r"(w0), [w1] "=&r"(w1), [w2] "=&r"(w2), [w3] "=&r"(w3), [w4] "=&r"(w4), [t] "=&r"(t),
                       [u] "=&r"(u)
                     : [rows] "r"(SC_ROWS)
                     : "memory");
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
#if SC_XPULP
        int32_t w0, w1, w2, w3, w4, t, u, rows = SC_ROWS;
        /* clang-format off */
#define SC_W5_KEEP(v) P_SW_POST_R(v, "%[to]", "%[word]")
#define SC_W5_STORE(n) PV_AND_SCI_B("%[t]", "%[w" #n "]", "-8") SC_W5_KEEP("%[t]")
        __asm__ volatile(SC_LOOP_BEGIN("%[rows]", 29)
                         P_LW_POST("%[w0]", "%[w]", "4")
                         "lw %[w1], 32 - 4(%[w])\n" "lw %[w2], 64 - 4(%[w])\n" "lw %[w3], 96 - 4(%[w])\n"
                         "lw %[w4], 128 - 4(%[w])\n"
                         SC_W5_STORE(0) SC_W5_STORE(1) SC_W5_STORE(2) SC_W5_STORE(3) SC_W5_STORE(4)
                         PV_SLL_SCI_B("%[t]", "%[w0]", "5") SC_W5_MIXED(1, 3) SC_W5_KEEP("%[t]")
                         PV_SLL_SCI_B("%[t]", "%[w1]", "5") SC_W5_MIXED(2, 3) SC_W5_MIXED(3, 4) SC_W5_KEEP("%[t]")
                         PV_SLL_SCI_B("%[t]", "%[w3]", "3") SC_W5_MIXED(4, 5)
                         P_SW_POST_R("%[t]", "%[to]", "%[next]")
                         SC_LOOP_END(29)
                         : [w] "+&r"(from), [to] "+&r"(at), [rows] "+&r"(rows), [w0] "=&r"(w0), [w1] "=&r"(w1),
                           [w2] "=&r"(w2), [w3] "=&r"(w3), [w4] "=&r"(w4), [t] "=&r"(t), [u] "=&r"(u)
                         : [word] "r"(4 * word), [next] "r"(4 * (row - 7 * word))
                         : "memory");
#undef SC_W5_KEEP
#undef SC_W5_STORE
        /* clang-format on */
#else
        for (int r = 0; r < SC_ROWS; r++, from += 4, at += row) {
            uint32_t b[5], mixed[3];
            for (uint32_t i = 0; i < 5; i++) {
                b[i] = (uint32_t)sc_load32(from + 4 * SC_ROWS * i);
                at[i * word] = (int32_t)(b[i] & 0xF8F8F8F8u);
            }
            sc_w5_mixed(b, mixed);
            for (uint32_t i = 0; i < 3; i++) at[(5 + i) * word] = (int32_t)mixed[i];
        }
#endif
    }
    *w = from;
}
