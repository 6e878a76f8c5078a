/* SPDX-License-Identifier: Apache-2.0
 * Weighted sums of values: sum[channel] += weight[position] * v[position][channel]; weights: uint16, v: int8. */
#ifndef SC_WEIGHTED_VALUES_H
#define SC_WEIGHTED_VALUES_H

/* Assembly for four positions and four channels: high and low bytes of the weights; v holds the first
 * channel. 11 instructions. */
/* clang-format off */
#define FOUR_CHANNELS(high, low, v, w, h0, h1, h2, h3)                                                               \
    P_LW_POST(w, "%[row]", "4")                                                                                      \
    PV_SDOTUSP_B(h0, high, v) PV_SDOTUSP_B("%[l0]", low, v)                                                          \
    P_LW_POST(v, "%[row]", "4")                                                                                      \
    PV_SDOTUSP_B(h1, high, w) PV_SDOTUSP_B("%[l1]", low, w)                                                          \
    LW_STEP(w, "%[row]", "%[rs]")                                                                                    \
    PV_SDOTUSP_B(h2, high, v) PV_SDOTUSP_B("%[l2]", low, v)                                                          \
    PV_SDOTUSP_B(h3, high, w) PV_SDOTUSP_B("%[l3]", low, w)
/* clang-format on */

#if VALUES == 8
/* Assembly for four positions and one channel. */
#define CHANNEL(h, l, v) PV_SDOTUSP_B(h, "%[a]", v) PV_SDOTUSP_B(l, "%[b]", v)
#define CLEARED(x) "mv %[" #x "], x0\n"

/* sum[i] = sum over `count` > 0 positions of weight * value of channel i; row: the first channel */
SC_INLINE void weighted_values(const uint8_t *row, const uint16_t *weight, uint32_t count,
                               int32_t sum[VALUES]) {
    int32_t v, w, a, b, h0, h1, h2, h3, h4, h5, h6, h7, l0, l1, l2, l3, l4, l5, l6, l7;
    /* clang-format off */
    __asm__ volatile(
        CLEARED(h0) CLEARED(h1) CLEARED(h2) CLEARED(h3) CLEARED(h4) CLEARED(h5) CLEARED(h6) CLEARED(h7)
        CLEARED(l0) CLEARED(l1) CLEARED(l2) CLEARED(l3) CLEARED(l4) CLEARED(l5) CLEARED(l6) CLEARED(l7)
        SC_LOOP_BEGIN("%[n]", 26)
        P_LW_POST("%[a]", "%[weight]", "4")
        P_LW_POST("%[b]", "%[weight]", "4")
        P_LW_POST("%[v]", "%[row]", "4")
        P_LW_POST("%[w]", "%[row]", "4") CHANNEL("%[h0]", "%[l0]", "%[v]")
        P_LW_POST("%[v]", "%[row]", "4") CHANNEL("%[h1]", "%[l1]", "%[w]")
        P_LW_POST("%[w]", "%[row]", "4") CHANNEL("%[h2]", "%[l2]", "%[v]")
        P_LW_POST("%[v]", "%[row]", "4") CHANNEL("%[h3]", "%[l3]", "%[w]")
        P_LW_POST("%[w]", "%[row]", "4") CHANNEL("%[h4]", "%[l4]", "%[v]")
        P_LW_POST("%[v]", "%[row]", "4") CHANNEL("%[h5]", "%[l5]", "%[w]")
        LW_STEP("%[w]", "%[row]", "%[rs]") CHANNEL("%[h6]", "%[l6]", "%[v]")
        CHANNEL("%[h7]", "%[l7]", "%[w]")
        SC_LOOP_END(26) "\n"
        "li %[a], 256\n"
        P_MAC("%[l0]", "%[h0]", "%[a]") P_MAC("%[l1]", "%[h1]", "%[a]")
        P_MAC("%[l2]", "%[h2]", "%[a]") P_MAC("%[l3]", "%[h3]", "%[a]")
        P_MAC("%[l4]", "%[h4]", "%[a]") P_MAC("%[l5]", "%[h5]", "%[a]")
        P_MAC("%[l6]", "%[h6]", "%[a]") P_MAC("%[l7]", "%[h7]", "%[a]")
        "sw %[l0], 0(%[sum])\nsw %[l1], 4(%[sum])\nsw %[l2], 8(%[sum])\nsw %[l3], 12(%[sum])\n"
        "sw %[l4], 16(%[sum])\nsw %[l5], 20(%[sum])\nsw %[l6], 24(%[sum])\nsw %[l7], 28(%[sum])\n"
        : [row] "+&r"(row), [weight] "+&r"(weight), [v] "=&r"(v), [w] "=&r"(w), [a] "=&r"(a), [b] "=&r"(b),
          [h0] "=&r"(h0), [h1] "=&r"(h1), [h2] "=&r"(h2), [h3] "=&r"(h3), [h4] "=&r"(h4), [h5] "=&r"(h5),
          [h6] "=&r"(h6), [h7] "=&r"(h7), [l0] "=&r"(l0), [l1] "=&r"(l1), [l2] "=&r"(l2), [l3] "=&r"(l3),
          [l4] "=&r"(l4), [l5] "=&r"(l5), [l6] "=&r"(l6), [l7] "=&r"(l7)
        : [n] "r"((count + SC_KV_POSITIONS - 1) / SC_KV_POSITIONS), [sum] "r"(sum), [rs] STEP(V_STEP)
        : "memory");
    /* clang-format on */
}

#else

/* sum[i] = sum over `count` positions of weight * value of channel i; row: the first channel */
SC_INLINE void weighted_values(const uint8_t *row, const uint16_t *weight, uint32_t count,
                               int32_t sum[VALUES]) {
#if SC_XPULP
    int32_t v0, v1, a, b, h0 = 0, l0 = 0, h1 = 0, l1 = 0;
#if VALUES == 4
    int32_t h2 = 0, l2 = 0, h3 = 0, l3 = 0;
#endif
    /* clang-format off */
    __asm__ volatile(
#if SPLIT_WEIGHTS
                     SC_LOOP_BEGIN("%[n]", 14)
                     P_LW_POST("%[a]", "%[w]", "4")
                     P_LW_POST("%[b]", "%[w]", "4")
#else
#if VALUES == 4
                     SC_LOOP_BEGIN("%[n]", 17)
#else
                     SC_LOOP_BEGIN("%[n]", 11)
#endif
                     P_LW_POST("%[a]", "%[w]", "4")
                     P_LW_POST("%[v1]", "%[w]", "4")
                     "mv %[b], %[a]\n"
                     PV_SHUFFLE2_B("%[a]", "%[v1]", "%[high]")
                     PV_SHUFFLE2_B("%[b]", "%[v1]", "%[low]")
#endif
                     P_LW_POST("%[v0]", "%[row]", "4")
#if VALUES == 4
                     FOUR_CHANNELS("%[a]", "%[b]", "%[v0]", "%[v1]", "%[h0]", "%[h1]", "%[h2]", "%[h3]")
#if SPLIT_WEIGHTS
                     SC_LOOP_END(14) "\n"
#else
                     SC_LOOP_END(17) "\n"
#endif
                     P_MAC("%[l2]", "%[h2]", "%[c]") P_MAC("%[l3]", "%[h3]", "%[c]")
                     "sw %[l2], 8(%[sum])\n"
                     "sw %[l3], 12(%[sum])\n"
#else
                     LW_STEP("%[v1]", "%[row]", "%[rs]")
                     PV_SDOTUSP_B("%[h0]", "%[a]", "%[v0]") PV_SDOTUSP_B("%[l0]", "%[b]", "%[v0]")
                     PV_SDOTUSP_B("%[h1]", "%[a]", "%[v1]") PV_SDOTUSP_B("%[l1]", "%[b]", "%[v1]")
                     SC_LOOP_END(11) "\n"
#endif
                     P_MAC("%[l0]", "%[h0]", "%[c]") P_MAC("%[l1]", "%[h1]", "%[c]")
                     "sw %[l0], 0(%[sum])\n"
                     "sw %[l1], 4(%[sum])\n"
                     : [row] "+&r"(row), [w] "+&r"(weight), [h0] "+&r"(h0), [h1] "+&r"(h1), [l0] "+&r"(l0),
                       [l1] "+&r"(l1), [v0] "=&r"(v0), [v1] "=&r"(v1), [a] "=&r"(a), [b] "=&r"(b)
#if VALUES == 4
                       , [h2] "+&r"(h2), [h3] "+&r"(h3), [l2] "+&r"(l2), [l3] "+&r"(l3)
#endif
                     : [n] "r"((count + SC_KV_POSITIONS - 1) / SC_KV_POSITIONS), [c] "r"(256), [sum] "r"(sum),
                       [rs] STEP(V_STEP), [high] "r"(0x07050301),
                       [low] "r"(0x06040200)
                     : "memory");
/* clang-format on */
#else
    for (int i = 0; i < VALUES; i++) {
        sum[i] = 0;
        for (uint32_t p = 0; p < count; p++) {
            const uint32_t at = p / SC_KV_POSITIONS * SC_V_BLOCK + p % SC_KV_POSITIONS;
            sum[i] += weight[p] * ((const int8_t *)row)[at + (uint32_t)i * SC_KV_POSITIONS];
        }
    }
#endif
}
#endif

#endif
