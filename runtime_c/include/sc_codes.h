/* SPDX-License-Identifier: Apache-2.0
 * Scores with keys of 4-bit codes. The value of a code is 16 * code + offset: codes are used at the top of a byte, and
 * the offset is multiplied with the sum of the query's channels. */
#ifndef SC_CODES_H
#define SC_CODES_H

#define LOW_CODES(word) (int32_t)((uint32_t)(word) << 4 & 0xF0F0F0F0u)
#define HIGH_CODES(word) (int32_t)((uint32_t)(word) & 0xF0F0F0F0u)

/* Score of one position. q: the query's channels with codes, `sum` their sum. */
SC_INLINE int32_t code_score(const int8_t *q8, const int8_t *q, int32_t sum, const uint8_t *record) {
    const uint8_t *codes = record + 8 + SC_WIDE;
    int32_t v = (int8_t)record[6] * sum;
    for (int i = 0; i < SC_CODE_WORDS; i++, q += 8, codes += 4) {
        const int32_t word = load32(codes);
        v = sc_sdot4(v, load32(q), LOW_CODES(word));
        v = sc_sdot4(v, load32(q + 4), HIGH_CODES(word));
    }
    v = key_score(v, record + 4);
#if SC_WIDE > 0
    int32_t wide = 0;
    for (int d = 0; d < SC_WIDE; d += 4) wide = sc_sdot4(wide, load32(q8 + d), load32(record + 8 + d));
    v += key_score(wide, record);
#else
    (void)q8;
#endif
    return v;
}

#if SC_XPULP && SC_HDP > 16
/* clang-format off */
#define CODES_OF(v, k)                                                                                         \
    PV_SLL_SCI_B("%[low]", k, "4") PV_AND_SCI_B(k, k, "-16")                                                   \
    PV_SDOTSP_B(v, "%[q0]", "%[low]") PV_SDOTSP_B(v, "%[q1]", k)
/* clang-format on */

/* Products of a query's channels with the codes of four positions from k on, without the offsets. */
SC_INLINE key_products four_code_products(const int8_t *q, const uint8_t *k) {
    const uint8_t *k1 = k + SC_K_STRIDE, *k2 = k1 + SC_K_STRIDE, *k3 = k2 + SC_K_STRIDE;
    key_products p = {0, 0, 0, 0};
    int32_t q0, q1, a, b, low;
    /* clang-format off */
    __asm__ volatile(SC_LOOP_BEGIN("%[n]", 22)
                     P_LW_POST("%[a]", "%[k]", "4") P_LW_POST("%[b]", "%[k1]", "4")
                     P_LW_POST("%[q0]", "%[q]", "4") P_LW_POST("%[q1]", "%[q]", "4")
                     CODES_OF("%[v0]", "%[a]") P_LW_POST("%[a]", "%[k2]", "4")
                     CODES_OF("%[v1]", "%[b]") P_LW_POST("%[b]", "%[k3]", "4")
                     CODES_OF("%[v2]", "%[a]") CODES_OF("%[v3]", "%[b]")
                     SC_LOOP_END(22)
                     : [q] "+&r"(q), [k] "+&r"(k), [k1] "+&r"(k1), [k2] "+&r"(k2), [k3] "+&r"(k3), [q0] "=&r"(q0),
                       [q1] "=&r"(q1), [a] "=&r"(a), [b] "=&r"(b), [low] "=&r"(low), [v0] "+&r"(p.v0),
                       [v1] "+&r"(p.v1), [v2] "+&r"(p.v2), [v3] "+&r"(p.v3)
                     : [n] "r"(SC_CODE_WORDS)
                     : "memory");
    /* clang-format on */
    return p;
}
#endif

/* Scores of `count` positions, whose K records begin at row. Returns the end of the records. */
SC_INLINE const uint8_t *softmax_scores(head_softmax *s, int32_t *out, const int8_t *q8, const uint8_t *row,
                                        uint32_t count) {
    const int8_t *const q = q8 + SC_WIDE;
    int32_t least = s->least, sum = 0;
    for (int i = 0; i < 8 * SC_CODE_WORDS; i += 4) sum = sc_sdot4(sum, load32(q + i), 0x01010101);
#if SC_XPULP && SC_HDP > 16
    for (; count >= 4; count -= 4) {
        const key_products wide = four_products(q8, row + 8, SC_WIDE / 4);
        const key_products codes = four_code_products(q, row + 8 + SC_WIDE);
        const int32_t wides[4] = {wide.v0, wide.v1, wide.v2, wide.v3};
        const int32_t all[4] = {codes.v0, codes.v1, codes.v2, codes.v3};
        for (int i = 0; i < 4; i++, row += SC_K_STRIDE) {
            const int32_t v = key_score(all[i] + (int8_t)row[6] * sum, row + 4) + key_score(wides[i], row);
            least = sc_min(least, v);
            *out++ = v;
        }
    }
#endif
    for (; count; count--, row += SC_K_STRIDE) {
        const int32_t v = code_score(q8, q, sum, row);
        least = sc_min(least, v);
        *out++ = v;
    }
    s->least = least;
    return row;
}

#endif
