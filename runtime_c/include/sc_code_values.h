/* SPDX-License-Identifier: Apache-2.0
 * Weighted sums of values of 4-bit codes. A V block has for each KV head a word with the offsets of four positions, then
 * a word for every two channels. The value of a code is 16 * code + offset. */
#ifndef SC_CODE_VALUES_H
#define SC_CODE_VALUES_H

static inline void add_to(int32_t *sum, int32_t n) { *sum = (int32_t)((uint32_t)*sum + (uint32_t)n); }

#if SC_XPULP

/* Sum of weight * byte over the words at `row`, one per block; weights: split into high and low bytes. */
SC_INLINE int32_t weighted_bytes(const uint8_t *row, const uint16_t *weight, uint32_t blocks) {
    int32_t high = 0, low = 0;
    for (; blocks; blocks--, weight += 4, row += SC_V_BLOCK) {
        high = sc_sdotu4(high, load32(weight), load32(row));
        low = sc_sdotu4(low, load32(weight + 2), load32(row));
    }
    return sc_mac(low, high, 256);
}

/* Channels at a time. */
#if SC_HEAD_DIM % 8 == 0
#define CODE_VALUES 8
#else
#define CODE_VALUES 2
#endif
#define CODE_STEP (SC_V_BLOCK - (CODE_VALUES / 2 - 1) * 4) /* from a block's last word to the next block */

/* clang-format off */
#define CODE_CHANNELS(v, h0, l0, h1, l1)                                                                       \
    PV_SLL_SCI_B("%[low]", v, "4") PV_AND_SCI_B(v, v, "-16")                                                   \
    PV_SDOTUSP_B(h0, "%[a]", "%[low]") PV_SDOTUSP_B(l0, "%[b]", "%[low]")                                      \
    PV_SDOTUSP_B(h1, "%[a]", v) PV_SDOTUSP_B(l1, "%[b]", v)
#define CODE_ZERO(x) "mv %[" #x "], x0\n"
#define CODE_SUM(l, h) P_MAC("%[" #l "]", "%[" #h "]", "%[a]")

/* sum[i] = sum over blocks of weight * 16 * code of channel i; row: the first word */
SC_INLINE void weighted_codes(const uint8_t *row, const uint16_t *weight, uint32_t blocks, int32_t sum[CODE_VALUES]) {
    int32_t v, low, a, b, h0, h1, l0, l1;
#if CODE_VALUES == 8
    int32_t h2, h3, h4, h5, h6, h7, l2, l3, l4, l5, l6, l7;
    __asm__ volatile(
        CODE_ZERO(h0) CODE_ZERO(h1) CODE_ZERO(h2) CODE_ZERO(h3) CODE_ZERO(h4) CODE_ZERO(h5) CODE_ZERO(h6) CODE_ZERO(h7)
        CODE_ZERO(l0) CODE_ZERO(l1) CODE_ZERO(l2) CODE_ZERO(l3) CODE_ZERO(l4) CODE_ZERO(l5) CODE_ZERO(l6) CODE_ZERO(l7)
        SC_LOOP_BEGIN("%[n]", 30)
        P_LW_POST("%[v]", "%[row]", "4")
        P_LW_POST("%[a]", "%[weight]", "4")
        P_LW_POST("%[b]", "%[weight]", "4")
        CODE_CHANNELS("%[v]", "%[h0]", "%[l0]", "%[h1]", "%[l1]")
        P_LW_POST("%[v]", "%[row]", "4") CODE_CHANNELS("%[v]", "%[h2]", "%[l2]", "%[h3]", "%[l3]")
        P_LW_POST("%[v]", "%[row]", "4") CODE_CHANNELS("%[v]", "%[h4]", "%[l4]", "%[h5]", "%[l5]")
        P_LW_POST_R("%[v]", "%[row]", "%[rs]") CODE_CHANNELS("%[v]", "%[h6]", "%[l6]", "%[h7]", "%[l7]")
        SC_LOOP_END(30) "\n"
        "li %[a], 256\n"
        CODE_SUM(l0, h0) CODE_SUM(l1, h1) CODE_SUM(l2, h2) CODE_SUM(l3, h3)
        CODE_SUM(l4, h4) CODE_SUM(l5, h5) CODE_SUM(l6, h6) CODE_SUM(l7, h7)
        "sw %[l0], 0(%[sum])\nsw %[l1], 4(%[sum])\nsw %[l2], 8(%[sum])\nsw %[l3], 12(%[sum])\n"
        "sw %[l4], 16(%[sum])\nsw %[l5], 20(%[sum])\nsw %[l6], 24(%[sum])\nsw %[l7], 28(%[sum])\n"
        : [row] "+&r"(row), [weight] "+&r"(weight), [v] "=&r"(v), [low] "=&r"(low), [a] "=&r"(a), [b] "=&r"(b),
          [h0] "=&r"(h0), [h1] "=&r"(h1), [h2] "=&r"(h2), [h3] "=&r"(h3), [h4] "=&r"(h4), [h5] "=&r"(h5),
          [h6] "=&r"(h6), [h7] "=&r"(h7), [l0] "=&r"(l0), [l1] "=&r"(l1), [l2] "=&r"(l2), [l3] "=&r"(l3),
          [l4] "=&r"(l4), [l5] "=&r"(l5), [l6] "=&r"(l6), [l7] "=&r"(l7)
        : [n] "r"(blocks), [sum] "r"(sum), [rs] "r"(CODE_STEP)
        : "memory");
#else
    __asm__ volatile(
        CODE_ZERO(h0) CODE_ZERO(h1) CODE_ZERO(l0) CODE_ZERO(l1)
        SC_LOOP_BEGIN("%[n]", 9)
        P_LW_POST_R("%[v]", "%[row]", "%[rs]")
        P_LW_POST("%[a]", "%[weight]", "4")
        P_LW_POST("%[b]", "%[weight]", "4")
        CODE_CHANNELS("%[v]", "%[h0]", "%[l0]", "%[h1]", "%[l1]")
        SC_LOOP_END(9) "\n"
        "li %[a], 256\n"
        CODE_SUM(l0, h0) CODE_SUM(l1, h1)
        "sw %[l0], 0(%[sum])\nsw %[l1], 4(%[sum])\n"
        : [row] "+&r"(row), [weight] "+&r"(weight), [v] "=&r"(v), [low] "=&r"(low), [a] "=&r"(a), [b] "=&r"(b),
          [h0] "=&r"(h0), [h1] "=&r"(h1), [l0] "=&r"(l0), [l1] "=&r"(l1)
        : [n] "r"(blocks), [sum] "r"(sum), [rs] "r"(CODE_STEP)
        : "memory");
#endif
}
/* clang-format on */

/* out[d] += sum over `count` > 0 positions of weight * value of channel d; row: the KV head in the first V block */
SC_INLINE void add_values(const uint8_t *row, const uint16_t *weight, uint32_t count, int32_t *out) {
    const uint32_t blocks = (count + SC_KV_POSITIONS - 1) / SC_KV_POSITIONS;
    const int32_t offsets = weighted_bytes(row, weight, blocks);
    row += 4;
    for (int d = 0; d < SC_HEAD_DIM; d += CODE_VALUES, row += 2 * CODE_VALUES) {
        int32_t sum[CODE_VALUES];
        weighted_codes(row, weight, blocks, sum);
        for (int i = 0; i < CODE_VALUES; i++) add_to(out + d + i, sum[i] + offsets);
    }
}

#else

/* out[d] += sum over `count` positions of weight * value of channel d; row: the KV head in the first V block */
SC_INLINE void add_values(const uint8_t *row, const uint16_t *weight, uint32_t count, int32_t *out) {
    for (uint32_t p = 0; p < count; p++) {
        const uint8_t *const at = row + p / SC_KV_POSITIONS * SC_V_BLOCK + p % SC_KV_POSITIONS;
        const int32_t w = weight[p], offset = (int8_t)at[0];
        for (int d = 0; d < SC_HEAD_DIM; d += 2) {
            const uint8_t both = at[4 + 2 * d];
            add_to(out + d, w * ((int8_t)(both << 4) + offset));
            add_to(out + d + 1, w * ((int8_t)(both & 0xF0) + offset));
        }
    }
}

#endif

#endif
