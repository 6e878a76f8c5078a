/* SPDX-License-Identifier: Apache-2.0
 * 3-bit weights: three words hold 32 inputs of a row. Word i has inputs 8 i .. 8 i + 3 in bits 7..5 of its
 * bytes, and the next four in bits 4..2. Inputs 24..31 are combined from the remaining bits. Sums are 32
 * times too large. */

enum { SC_W3_INPUTS = 32, SC_W3_FOLD = 5 };

#define SC_W3_UNIT (3 * 4 * SC_ROWS) /* bytes of 32 inputs of 8 rows */

#if SC_XPULP

/* clang-format off */
#define SC_W3_TOP(w, x) "and %[t], " w ", %[me]\n" PV_SDOTSP_B("%[acc]", x, "%[t]")
#define SC_W3_LOW(w, x) "slli %[t], " w ", 3\nand %[t], %[t], %[me]\n" PV_SDOTSP_B("%[acc]", x, "%[t]")
#define SC_W3_REST(w, left, x)                                                                  \
    PV_SLL_SCI_B("%[t]", w, "6") "slli %[u], %[w2], " #left "\nand %[u], %[u], %[m2]\n"  \
    "or %[t], %[t], %[u]\n" PV_SDOTSP_B("%[acc]", x, "%[t]")

/* One row at a time: 36 instructions per 32 products. Eight rows at a time need too many registers, so the
 * activations are loaded again for every row. Not SC_HOT: that makes a token 0.3 % slower (examples/stories
 * with --bits 3, GVSoC). */
static __attribute__((noinline)) void sc_w3_rows(int32_t *sums, const uint8_t *w, const int8_t *x,
                                                 uint32_t units) {
    for (int row = 0; row < SC_ROWS; row++) {
        const uint8_t *at = w + 4 * row;
        const int8_t *from = x;
        int32_t acc = 0, w0, w1, w2, x0, x1, t, u;
        __asm__ volatile(SC_LOOP_BEGIN("%[n]", 36)
                         P_LW_POST("%[w0]", "%[w]", "32") P_LW_POST("%[w1]", "%[w]", "32")
                         P_LW_POST("%[w2]", "%[w]", "32")
                         P_LW_POST("%[x0]", "%[x]", "4") P_LW_POST("%[x1]", "%[x]", "4")
                         SC_W3_TOP("%[w0]", "%[x0]") P_LW_POST("%[x0]", "%[x]", "4")
                         SC_W3_LOW("%[w0]", "%[x1]") P_LW_POST("%[x1]", "%[x]", "4")
                         SC_W3_TOP("%[w1]", "%[x0]") P_LW_POST("%[x0]", "%[x]", "4")
                         SC_W3_LOW("%[w1]", "%[x1]") P_LW_POST("%[x1]", "%[x]", "4")
                         SC_W3_TOP("%[w2]", "%[x0]") P_LW_POST("%[x0]", "%[x]", "4")
                         SC_W3_LOW("%[w2]", "%[x1]") P_LW_POST("%[x1]", "%[x]", "4")
                         SC_W3_REST("%[w0]", 4, "%[x0]") SC_W3_REST("%[w1]", 5, "%[x1]")
                         SC_LOOP_END(36)
                         : [acc] "+&r"(acc), [w] "+&r"(at), [x] "+&r"(from), [w0] "=&r"(w0),
                           [w1] "=&r"(w1), [w2] "=&r"(w2), [x0] "=&r"(x0), [x1] "=&r"(x1), [t] "=&r"(t),
                           [u] "=&r"(u)
                         : [n] "r"(units), [me] "r"(0xE0E0E0E0u), [m2] "r"(0x20202020u)
                         : "memory");
        sums[row] = acc;
    }
}
/* clang-format on */

#elif SC_SIMD

SC_INLINE void sc_w3_rows(sc_v_sums *sums, const uint8_t *w, const int8_t *x, uint32_t units) {
    const int32_t mask = (int32_t)0xE0E0E0E0, upper = (int32_t)0xC0C0C0C0, lowest = 0x20202020;
    sc_v_words word[3], rows;
    for (; units; units--, x += 32, w += SC_W3_UNIT) {
        for (int i = 0; i < 3; i++) {
            sc_v_load(&word[i], w + 4 * SC_ROWS * i);
            rows = word[i] & mask;
            sc_v_dot(sums, &rows, sc_load32(x + 8 * i));
            rows = (word[i] << 3) & mask;
            sc_v_dot(sums, &rows, sc_load32(x + 8 * i + 4));
        }
        for (int i = 0; i < 2; i++) {
            rows = ((word[i] << 6) & upper) | ((word[2] << (4 + i)) & lowest);
            sc_v_dot(sums, &rows, sc_load32(x + 24 + 4 * i));
        }
    }
}

#else

SC_INLINE void sc_w3_rows(int32_t *sums, const uint8_t *w, const int8_t *x, uint32_t units) {
    for (; units; units--, x += 32, w += SC_W3_UNIT) {
        for (int row = 0; row < SC_ROWS; row++) {
            uint32_t word[3];
            int32_t acc = sums[row];
            for (int i = 0; i < 3; i++) {
                word[i] = (uint32_t)sc_load32(w + 4 * SC_ROWS * i + 4 * row);
                acc = sc_sdot4(acc, sc_load32(x + 8 * i), (int32_t)(word[i] & 0xE0E0E0E0u));
                acc = sc_sdot4(acc, sc_load32(x + 8 * i + 4), (int32_t)((word[i] << 3) & 0xE0E0E0E0u));
            }
            for (int i = 0; i < 2; i++) {
                const uint32_t upper = (word[i] << 6) & 0xC0C0C0C0u;
                const uint32_t lowest = (word[2] << (4 + i)) & 0x20202020u;
                acc = sc_sdot4(acc, sc_load32(x + 24 + 4 * i), (int32_t)(upper | lowest));
            }
            sums[row] = acc;
        }
    }
}

#endif

SC_INLINE void sc_dot_w3(sc_rows *a, const uint8_t **w, const int8_t **x, uint32_t words) {
    const uint32_t units = words / 8;
#if SC_SIMD && !SC_XPULP
    sc_v_sums sums = {0};
    sc_w3_rows(&sums, *w, *x, units);
    SC_EACH_ROW(SC_V_ROW)
#else
    int32_t sums[SC_ROWS] = {0};
    sc_w3_rows(sums, *w, *x, units);
#define SC_W3_ADD(r) a->s##r += sums[r];
    SC_EACH_ROW(SC_W3_ADD)
#endif
    *w += units * SC_W3_UNIT;
    *x += units * 32;
}

SC_INLINE int32_t sc_get_w3(const uint8_t *w, uint32_t row, uint32_t at) {
    const uint32_t word = at >> 2 & 7;
    const uint8_t *byte = w + (at >> 5) * SC_W3_UNIT + row * 4 + (at & 3);
    uint32_t top; /* the weight in bits 7..5 */
    if (word < 6) {
        top = (uint32_t)byte[(word >> 1) * 4 * SC_ROWS] << (word & 1 ? 3 : 0);
    } else {
        const uint32_t i = word & 1;
        top = ((uint32_t)byte[i * 4 * SC_ROWS] << 6 & 0xC0) |
              ((uint32_t)byte[2 * 4 * SC_ROWS] << (4 + i) & 0x20);
    }
    return (int8_t)(top & 0xE0) >> 5;
}

SC_INLINE void sc_widen_w3(int32_t *to, uint32_t row, uint32_t word, const uint8_t **w, uint32_t words) {
    const uint8_t *from = *w;
    for (; words; words -= 8, from += SC_W3_UNIT - 4 * SC_ROWS, to += 8 * word) {
        int32_t *at = to;
        for (int r = 0; r < SC_ROWS; r++, from += 4, at += row) {
            uint32_t stored[3];
            for (uint32_t i = 0; i < 3; i++) {
                stored[i] = (uint32_t)sc_load32(from + 4 * SC_ROWS * i);
                at[2 * i * word] = (int32_t)(stored[i] & 0xE0E0E0E0u);
                at[(2 * i + 1) * word] = (int32_t)(stored[i] << 3 & 0xE0E0E0E0u);
            }
            for (uint32_t i = 0; i < 2; i++)
                at[(6 + i) * word] =
                    (int32_t)((stored[i] << 6 & 0xC0C0C0C0u) | (stored[2] << (4 + i) & 0x20202020u));
        }
    }
    *w = from;
}
