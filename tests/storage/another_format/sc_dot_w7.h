/* SPDX-License-Identifier: Apache-2.0
 * 7 bit: seven words of a row are 32 inputs.  Input word i lies in bits 7..1 of the bytes of word i; the
 * last is put together from what is left.  The sums are 2-fold.  Included by sc_dot.h. */

enum { SC_W7_INPUTS = 32, SC_W7_FOLD = 1 };

#define SC_W7_UNIT (7 * 4 * SC_ROWS) /* bytes */

SC_INLINE int32_t sc_w7_row(int32_t acc, const int8_t *x, const uint8_t *w) {
    uint32_t last = 0;
    for (int i = 0; i < 7; i++) {
        const uint32_t word = (uint32_t)sc_load32(w + 4 * SC_ROWS * i);
        acc = sc_sdot4(acc, sc_load32(x + 4 * i), (int32_t)(word & 0xFEFEFEFEu));
        last |= (word & 0x01010101u) << (7 - i);
    }
    return sc_sdot4(acc, sc_load32(x + 28), (int32_t)last);
}

#define SC_W7_ROW(r) a->s##r = sc_w7_row(a->s##r, *x, *w + 4 * r);
SC_INLINE void sc_dot_w7(sc_rows *a, const uint8_t **w, const int8_t **x, uint32_t words) {
    for (; words; words -= 8, *x += 32, *w += SC_W7_UNIT) {
        SC_EACH_ROW(SC_W7_ROW)
    }
}

SC_INLINE int32_t sc_get_w7(const uint8_t *w, uint32_t row, uint32_t at) {
    const uint8_t *byte = w + (at >> 5) * SC_W7_UNIT + row * 4 + (at & 3);
    const uint32_t word = at >> 2 & 7;
    uint32_t top = 0; /* the weight in its upper seven bits */
    if (word < 7) {
        top = byte[word * 4 * SC_ROWS];
    } else {
        for (uint32_t i = 0; i < 7; i++) top |= (byte[i * 4 * SC_ROWS] & 1u) << (7 - i);
    }
    return (int8_t)(top & 0xFE) >> 1;
}

SC_INLINE void sc_widen_w7(int32_t *to, uint32_t row, uint32_t word, const uint8_t **w, uint32_t words) {
    for (; words; words -= 8, *w += SC_W7_UNIT, to += 8 * word) {
        for (uint32_t r = 0; r < SC_ROWS; r++) {
            uint32_t last = 0;
            for (uint32_t i = 0; i < 7; i++) {
                const uint32_t stored = (uint32_t)sc_load32(*w + 4 * (SC_ROWS * i + r));
                to[r * row + i * word] = (int32_t)(stored & 0xFEFEFEFEu);
                last |= (stored & 0x01010101u) << (7 - i);
            }
            to[r * row + 7 * word] = (int32_t)last;
        }
    }
}
