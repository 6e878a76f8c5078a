/* SPDX-License-Identifier: Apache-2.0
 * Xpulp instructions of the kernels, each with an equivalent in portable C (SC_XPULP 0).
 *
 * Written as .insn with RI5CY's encodings, because standard assemblers do not know them. */
#ifndef SC_XPULP_H
#define SC_XPULP_H

#include <stdint.h>

/* For functions called from one hot place: the instruction cache has room only for the loops. */
#define SC_INLINE static inline __attribute__((always_inline))

/* Hides the value of v from the optimiser. */
#define SC_OPAQUE(v) __asm__("" : "+r"(v))

#if SC_XPULP
/* clang-format off */

#define SC_R2(op, f3, f7, a, b)                                                                 \
    ({                                                                                          \
        int32_t d_;                                                                             \
        __asm__(".insn r " #op ", " #f3 ", " #f7 ", %0, %1, %2" : "=r"(d_) : "r"(a), "r"(b));   \
        d_;                                                                                     \
    })
#define SC_R3(op, f3, f7, d, a, b)                                                              \
    ({                                                                                          \
        int32_t d_ = (d);                                                                       \
        __asm__(".insn r " #op ", " #f3 ", " #f7 ", %0, %1, %2" : "+r"(d_) : "r"(a), "r"(b));   \
        d_;                                                                                     \
    })
#define sc_sdot4(d, a, b) SC_R3(0x57, 1, 0x5C, d, a, b)  /* signed x signed bytes */
#define sc_sdotu4(d, a, b) SC_R3(0x57, 1, 0x54, d, a, b) /* a unsigned, b signed */
#define sc_mac(d, a, b) SC_R3(0x33, 0, 0x21, d, a, b)
/* (v + 2^(s - 1)) >> s, 1 <= s <= 31 */
#define sc_round(v, s) SC_R3(0x5b, 6, 0x20, v, 0, s)
#define sc_max(a, b) SC_R2(0x33, 6, 0x02, a, b)
#define sc_min(a, b) SC_R2(0x33, 4, 0x02, a, b)

static inline int32_t sc_abs(int32_t a) {
    int32_t d;
    __asm__(".insn r 0x33, 0, 0x02, %0, %1, x0" : "=r"(d) : "r"(a));
    /* clang-format on */
    return d;
}

/* v clipped to 0 .. 31 */
static inline int sc_to_31(int v) {
    int d;
    __asm__(".insn r 0x33, 2, 0x0A, %0, %1, x6" : "=r"(d) : "r"(v));
    return d;
}

/* v clipped to -2^30 .. 2^30 - 1 */
#define SC_CLIP30(rd, rs) ".insn r 0x33, 1, 0x0A, " rd ", " rs ", x31\n"
static inline int32_t sc_clip30(int32_t v) {
    int32_t d;
    __asm__(SC_CLIP30("%0", "%1") : "=r"(d) : "r"(v));
    return d;
}

static inline uint32_t sc_low16(uint32_t a) {
    uint32_t d;
    __asm__(".insn r 0x33, 5, 0x08, %0, %1, x0" : "=r"(d) : "r"(a));
    return d;
}

/* index of the highest set bit of v > 0 */
static inline int sc_top_bit(uint32_t v) {
    int d;
    __asm__(".insn r 0x33, 1, 0x08, %0, %1, x0" : "=r"(d) : "r"(v));
    return d;
}

/* index of the highest set bit plus one; 0 for 0 (p.fl1 gives 32 there) */
static inline int sc_bits(uint32_t v) { return v ? sc_top_bit(v) + 1 : 0; }

/* top = max(top, |words|) of n > 0 words, `step` bytes apart */
#define SC_MAX_WORDS(top, ptr, count, step)                                                                  \
    do {                                                                                                     \
        int32_t v_;                                                                                          \
        const void *p_ = (ptr);                                                                              \
        __asm__ volatile(SC_LOOP_BEGIN("%[n]", 3) ".insn i 0x0b, 2, %[v], %[s](%[p])\n"                      \
                                                  ".insn r 0x33, 0, 0x02, %[v], %[v], x0\n"                  \
                                                  ".insn r 0x33, 6, 0x02, %[t], %[t], %[v]\n" SC_LOOP_END(3) \
                         : [t] "+&r"(top), [p] "+&r"(p_), [v] "=&r"(v_)                                      \
                         : [n] "r"(count), [s] "i"(step)                                                     \
                         : "memory");                                                                        \
    } while (0)

/* top = max(top, |words|) of n > 0 words. Reads from both halves, so that no load stalls; of an odd number
 * both read the middle word. */
#define SC_MAX_RUN(top, ptr, count)                                                                          \
    do {                                                                                                     \
        int32_t v_, w_;                                                                                      \
        const uint32_t all_ = (count), half_ = (all_ + 1) / 2;                                               \
        const int32_t *p_ = (ptr), *q_ = p_ + (all_ - half_);                                                \
        __asm__ volatile(SC_LOOP_BEGIN("%[n]", 6) SC_LW_POST("%[v]", "%[p]") SC_LW_POST(                     \
                             "%[w]", "%[q]") ".insn r 0x33, 0, 0x02, %[v], %[v], x0\n"                       \
                                             ".insn r 0x33, 0, 0x02, %[w], %[w], x0\n"                       \
                                             ".insn r 0x33, 6, 0x02, %[t], %[t], %[v]\n"                     \
                                             ".insn r 0x33, 6, 0x02, %[t], %[t], %[w]\n" SC_LOOP_END(6)      \
                         : [t] "+&r"(top), [p] "+&r"(p_), [q] "+&r"(q_), [v] "=&r"(v_), [w] "=&r"(w_)        \
                         : [n] "r"(half_)                                                                    \
                         : "memory");                                                                        \
    } while (0)

/* SC_MAX_RUN() of four words: without the set-up of a loop. */
static inline __attribute__((always_inline)) int32_t sc_max_four(int32_t top, const int32_t *v) {
    int32_t a, b, c, d;
    __asm__("lw %[a], 0(%[v])\nlw %[b], 4(%[v])\nlw %[c], 8(%[v])\nlw %[d], 12(%[v])\n"
            ".insn r 0x33, 0, 0x02, %[a], %[a], x0\n.insn r 0x33, 0, 0x02, %[b], %[b], x0\n"
            ".insn r 0x33, 0, 0x02, %[c], %[c], x0\n.insn r 0x33, 0, 0x02, %[d], %[d], x0\n"
            ".insn r 0x33, 6, 0x02, %[a], %[a], %[b]\n.insn r 0x33, 6, 0x02, %[c], %[c], %[d]\n"
            ".insn r 0x33, 6, 0x02, %[t], %[t], %[a]\n.insn r 0x33, 6, 0x02, %[t], %[t], %[c]\n"
            : [t] "+&r"(top), [a] "=&r"(a), [b] "=&r"(b), [c] "=&r"(c), [d] "=&r"(d)
            : [v] "r"(v), "m"(*(const int32_t(*)[4])v));
    return top;
}

/* Hardware loop: repeats the `insns` instructions up to SC_LOOP_END `cnt` times (a register). The encoding
 * needs the number of instructions; SC_LOOP_END lets the assembler check it. */
#define SC_LOOP_BEGIN(cnt, insns)                                                                            \
    ".balign 4\n.option push\n.option norvc\n.option norelax\n"                                              \
    ".insn i 0x7b, 4, x0, " cnt ", 2*(" #insns ")\n771:\n"
/* The same for a constant count. `twice` is the register whose number is twice the number of instructions (at
 * most 15). */
#define SC_LOOP_CONST_BEGIN(times, twice)                                                                    \
    ".balign 4\n.option push\n.option norvc\n.option norelax\n"                                              \
    ".insn i 0x7b, 5, x0, " #twice ", " #times "\n771:\n"
/* Outer loop around such a loop. Its count includes the inner loop, the inner set-up instruction, and at
 * least one more instruction at the end. */
#define SC_OUTER_LOOP_BEGIN(cnt, insns)                                                                      \
    ".balign 4\n.option push\n.option norvc\n.option norelax\n"                                              \
    ".insn i 0x7b, 4, x1, " cnt ", 2*(" #insns ")\n773:\n"
#define SC_INNER_LOOP_BEGIN(cnt, insns)                                                                      \
    ".option push\n.option norvc\n.option norelax\n"                                                         \
    ".insn i 0x7b, 4, x0, " cnt ", 2*(" #insns ")\n771:\n"
#define SC_OUTER_LOOP_END(insns)                                                                             \
    "774:\n.if (774b - 773b) - 4*(" #insns ")\n.error \"a hardware loop is miscounted\"\n.endif\n"           \
    ".option pop"
#define SC_LOOP_END(insns)                                                                                   \
    "772:\n.if (772b - 771b) - 4*(" #insns ")\n.error \"a hardware loop is miscounted\"\n.endif\n"           \
    ".option pop"
#define SC_LW_STEP(rd, ptr, step) ".insn i 0x0b, 2, " rd ", " #step "(" ptr ")\n"
#define SC_LW_POST(rd, ptr) SC_LW_STEP(rd, ptr, 4)
/* Post-increment load: ptr += register `by`. */
#define SC_LW_BY(rd, ptr, by) ".insn r 0x0b, 7, 0x10, " rd ", " ptr ", " by "\n"
/* rd = (rd + 2^(rs - 1)) >> rs, 1 <= rs <= 31: the rounding shift in one instruction (p.addRN) */
#define SC_ROUND(rd, rs) ".insn r 0x5b, 6, 0x20, " rd ", x0, " rs "\n"
/* rd = (rs + 2^(n - 1)) >> n for a constant n (p.addRNi) */
#define SC_ROUND_IMM(rd, rs, n) ".insn r 0x5b, 6, " n ", " rd ", " rs ", x0\n"
#define SC_MAC(acc, a, b) ".insn r 0x33, 0, 0x21, " acc ", " a ", " b "\n"
/* rd = high:low of the lower halves; sum of both halves; bytes of rd (0 .. 3) and rs (4 .. 7) selected by
 * `order` */
#define SC_PACK(rd, high, low) ".insn r 0x57, 0, 0x68, " rd ", " high ", " low "\n"
#define SC_ADD_HALVES(rd, a, b) ".insn r 0x57, 0, 0x00, " rd ", " a ", " b "\n"
#define SC_SHUFFLE(rd, rs, order) ".insn r 0x57, 1, 0x64, " rd ", " rs ", " order "\n"
/* arithmetic right shift of each byte of rs by rn */
#define SC_SRA_BYTES(rd, rs, rn) ".insn r 0x57, 5, 0x24, " rd ", " rs ", " rn "\n"
/* Each byte of rs shifted left by an even 6-bit constant, or ANDed with it. `imm` is the register with the
 * number constant / 2, modulo 32: x2 means 4, x24 means -16. */
#define SC_SLL_BYTES(rd, rs, imm) ".insn r 0x57, 7, 0x28, " rd ", " rs ", " imm "\n"
#define SC_AND_BYTES(rd, rs, imm) ".insn r 0x57, 7, 0x34, " rd ", " rs ", " imm "\n"
#define SC_SDOTU(acc, a, b) ".insn r 0x57, 1, 0x54, " acc ", " a ", " b "\n"
#define SC_SDOT(acc, a, b) ".insn r 0x57, 1, 0x5C, " acc ", " a ", " b "\n"

/* clang-format on */
#else

#define SC_MAX_WORDS(top, ptr, count, step)                                                                  \
    do {                                                                                                     \
        const char *p_ = (const char *)(ptr);                                                                \
        for (uint32_t n_ = (count); n_; n_--, p_ += (step)) {                                                \
            int32_t v_;                                                                                      \
            __builtin_memcpy(&v_, p_, 4);                                                                    \
            top = sc_max(top, sc_abs(v_));                                                                   \
        }                                                                                                    \
    } while (0)

#define SC_MAX_RUN(top, ptr, count) SC_MAX_WORDS(top, ptr, count, 4)

static inline int32_t sc_abs(int32_t a) { return a < 0 ? -a : a; }
static inline int32_t sc_max(int32_t a, int32_t b) { return a > b ? a : b; }
static inline int32_t sc_sdot4(int32_t d, int32_t a, int32_t b) {
    int8_t x[4], y[4];
    __builtin_memcpy(x, &a, 4);
    __builtin_memcpy(y, &b, 4);
    return d + x[0] * y[0] + x[1] * y[1] + x[2] * y[2] + x[3] * y[3];
}
static inline int32_t sc_sdotu4(int32_t d, int32_t a, int32_t b) {
    uint8_t x[4];
    int8_t y[4];
    __builtin_memcpy(x, &a, 4);
    __builtin_memcpy(y, &b, 4);
    return d + x[0] * y[0] + x[1] * y[1] + x[2] * y[2] + x[3] * y[3];
}
/* modulo 2^32: partial sums may overflow although the final sum does not */
static inline int32_t sc_mac(int32_t d, int32_t a, int32_t b) {
    return (int32_t)((uint32_t)d + (uint32_t)a * (uint32_t)b);
}
static inline int32_t sc_round(int32_t v, int32_t s) { return (v + (1 << (s - 1))) >> s; }
static inline int32_t sc_min(int32_t a, int32_t b) { return a < b ? a : b; }
static inline int sc_to_31(int v) { return sc_min(sc_max(v, 0), 31); }
static inline int32_t sc_clip30(int32_t v) { return sc_min(sc_max(v, -(1 << 30)), (1 << 30) - 1); }
static inline uint32_t sc_low16(uint32_t a) { return a & 0xFFFF; }
static inline int sc_top_bit(uint32_t v) { return 31 - __builtin_clz(v); }
static inline int sc_bits(uint32_t v) { return v ? 32 - __builtin_clz(v) : 0; }

#endif
#endif
