/* SPDX-License-Identifier: Apache-2.0
 * 6 bit: three words of a row are 16 inputs.  Input word i lies in bits 7..2 of the bytes of word i; the
 * last is put together from what is left.  The sums are 4-fold.  Included by sc_dot.h. */

enum { SC_W6_INPUTS = 16, SC_W6_FOLD = 2 };

#define SC_W6_UNIT (3 * 4 * SC_ROWS) /* bytes */

SC_INLINE int32_t sc_w6_row(int32_t acc, const int8_t *x, const uint8_t *w) {
    uint32_t last = 0;
    for (int i = 0; i < 3; i++) {
        const uint32_t word = (uint32_t)sc_load32(w + 4 * SC_ROWS * i);
        acc = sc_sdot4(acc, sc_load32(x + 4 * i), (int32_t)(word & 0xFCFCFCFCu));
        last |= (word & 0x03030303u) << (6 - 2 * i);
    }
    return sc_sdot4(acc, sc_load32(x + 12), (int32_t)last);
}

#define SC_W6_ROW(r) a->s##r = sc_w6_row(a->s##r, *x, *w + 4 * r);
SC_INLINE void sc_dot_w6(sc_rows *a, const uint8_t **w, const int8_t **x, uint32_t words) {
    for (; words; words -= 4, *x += 16, *w += SC_W6_UNIT) {
        SC_EACH_ROW(SC_W6_ROW)
    }
}

SC_INLINE int32_t sc_get_w6(const uint8_t *w, uint32_t row, uint32_t at) {
    const uint8_t *byte = w + (at >> 4) * SC_W6_UNIT + row * 4 + (at & 3);
    const uint32_t word = at >> 2 & 3;
    uint32_t top = 0; /* the weight in its upper six bits */
    if (word < 3) {
        top = byte[word * 4 * SC_ROWS];
    } else {
        for (uint32_t i = 0; i < 3; i++) top |= (byte[i * 4 * SC_ROWS] & 3u) << (6 - 2 * i);
    }
    return (int8_t)(top & 0xFC) >> 2;
}

SC_INLINE void sc_widen_w6(int32_t *to, uint32_t row, uint32_t word, const uint8_t **w, uint32_t words) {
    for (; words; words -= 4, *w += SC_W6_UNIT, to += 4 * word) {
        for (uint32_t r = 0; r < SC_ROWS; r++) {
            uint32_t last = 0;
            for (uint32_t i = 0; i < 3; i++) {
                const uint32_t stored = (uint32_t)sc_load32(*w + 4 * (SC_ROWS * i + r));
                to[r * row + i * word] = (int32_t)(stored & 0xFCFCFCFCu);
                last |= (stored & 0x03030303u) << (6 - 2 * i);
            }
            to[r * row + 3 * word] = (int32_t)last;
        }
    }
}
