/* SPDX-License-Identifier: Apache-2.0
 * Softmax weights and weighted sum of the values in one Xpulp loop, for long contexts with short heads (at
 * most 8 channels). */
#ifndef SC_WEIGH_FOUR_H
#define SC_WEIGH_FOUR_H

/* clang-format off */
/* w = weight of a position's value. Its score is in t0; the next score is loaded there. Registers have fixed
 * names here, because GCC allows 30 operands. */
#define WEIGH(w)                                                                                                     \
    LHU_STEP("t1", "%[scales]", "%[ss]")                                                                             \
    P_ADDUNR("t0", "%[least]", "%[shift]")                                                                           \
    P_MINU("t0", "t0", "%[most]")                                                                                    \
    P_MULUN("t0", "t0", "%[f]", "18")                                                                                \
    "andi t0, t0, -2\n"                                                                                              \
    P_LHU_R("t2", "%[table]", "t0")                                                                                  \
    P_LW_POST("t0", "%[score]", "4")                                                                                 \
    P_MULU(w, "t2", "t1")                                                                                   \
    "add %[total], %[total], t2\n"                                                                                   \
    SC_ROUND(w, "%[drop]")
#if SPLIT_WEIGHTS
#define KEEP_WEIGHTS P_SW_POST("%[a]", "%[w]", "4") P_SW_POST("t3", "%[w]", "4")
#define KEPT_WEIGHTS , [w] "+&r"(weight)
#define FOUR_INSNS (40 + 4 + 2 + 12)
#else
#define KEEP_WEIGHTS
#define KEPT_WEIGHTS
#define FOUR_INSNS (40 + 4 + 12)
#endif
#define FOUR_BEGIN(count, insns) SC_LOOP_BEGIN(count, insns) /* expands the macro that counts instructions */
#define FOUR_END(insns) SC_LOOP_END(insns)
/* clang-format on */

/* n > 0 blocks: uses each weight for the first channels as soon as it is computed. Stores the weights, split
 * into bytes, if there are more channels. */
SC_INLINE void weigh_values(head_softmax *s, const int32_t *score, uint16_t *weight, const uint8_t *scales,
                            const uint8_t *row, uint32_t n, int drop, int32_t sum[VALUES]) {
    int32_t l0 = 0, l1 = 0, l2 = 0, l3 = 0;
    uint32_t total = s->total;
    /* clang-format off */
    __asm__ volatile(
        "li t5, 0\nli t6, 0\nli a6, 0\nli a7, 0\n" /* sums of high bytes */
        "li a5, 0x05010400\nli a4, 0x00030001\n"
        P_LW_POST("t0", "%[score]", "4")
        FOUR_BEGIN("%[a]", FOUR_INSNS)
        WEIGH("%[a]") WEIGH("t3")
        PV_SHUFFLE2_B("%[a]", "t3", "a5") /* high bytes above low bytes */
        WEIGH("t4") WEIGH("t3")
        P_LW_POST("t1", "%[row]", "4")
        PV_SHUFFLE2_B("t4", "t3", "a5")
        PV_PACK_H("t3", "t4", "%[a]")
        PV_SHUFFLE2_H("%[a]", "t4", "a4") /* the upper halves of both */
        KEEP_WEIGHTS
        FOUR_CHANNELS("%[a]", "t3", "t1", "t2", "t5", "t6", "a6", "a7")
        FOUR_END(FOUR_INSNS) "\n"
        "li t0, 256\n"
        P_MAC("%[l0]", "t5", "t0") P_MAC("%[l1]", "t6", "t0") P_MAC("%[l2]", "a6", "t0") P_MAC("%[l3]", "a7", "t0")
        : [score] "+&r"(score), [scales] "+&r"(scales), [row] "+&r"(row), [total] "+&r"(total), [a] "+&r"(n),
          [l0] "+&r"(l0), [l1] "+&r"(l1), [l2] "+&r"(l2), [l3] "+&r"(l3) KEPT_WEIGHTS
        : [least] "r"(-s->least), [shift] "r"(s->shift), [f] "r"(s->factor), [drop] "r"(drop),
          [most] "r"(s->most), [table] "r"(SC_EXP2_VALUES), [ss] "i"(SC_K_STRIDE), [rs] "i"(V_STEP)
        : "memory", "t0", "t1", "t2", "t3", "t4", "t5", "t6", "a4", "a5", "a6", "a7");
    /* clang-format on */
    (void)weight;
    sum[0] = l0, sum[1] = l1, sum[2] = l2, sum[3] = l3;
    s->total = total;
}

/* Fills the last block: positions after the last one get value scale 0 and the largest score, whose
 * probability is known. Returns how many. */
SC_INLINE uint32_t no_positions(int32_t least, int32_t *score, uint8_t *record, uint32_t count) {
    const uint32_t none = -count % SC_KV_POSITIONS;
    for (const int32_t *const end = score + none; score < end; record += SC_K_STRIDE) {
        const uint16_t zero = 0;
        *score++ = least;
        __builtin_memcpy(__builtin_assume_aligned(record + 2, 2), &zero, 2);
    }
    return none;
}

#endif
