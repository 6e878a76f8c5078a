/* SPDX-License-Identifier: Apache-2.0
 * The Xpulp instructions that the kernels use, C functions of one instruction, and hardware loops. No other file
 * has .insn. If SC_XPULP is 0, the C functions are portable C, and the rest is missing.
 *
 * Standard assemblers do not know these instructions. Here each is a macro, for the text of an __asm__:
 * P_MAX("%[top]", "%[top]", "%[v]"). Its name is the instruction's in the manual of RI5CY, in capitals and with _
 * for a dot: p.max is P_MAX, pv.sdotsp.b is PV_SDOTSP_B. The manual of CV32E40P writes cv. for p. and pv.
 * Arguments are strings: registers d (result), a, b, ptr, v (stored value); constants m, n, end; l (hardware loop:
 * "0" is the inner one, "1" the outer one). Loads and stores of one name have different addresses:
 *   _POST    at ptr, then ptr += constant
 *   _POST_R  at ptr, then ptr += register
 *   _R       at ptr + register */
#ifndef SC_XPULP_H
#define SC_XPULP_H

#include <stdint.h>

/* For functions called from one hot place: the instruction cache has room only for the loops. */
#define SC_INLINE static inline __attribute__((always_inline))

/* Hides the value of v from the optimiser. */
#define SC_OPAQUE(v) __asm__("" : "+r"(v))

#if SC_XPULP
/* clang-format off */

/* GCC estimates the length of an __asm__ from its number of lines. Where an instruction is alone in one, its last
 * operand is SC_ALONE(operand): no line end. */
#define SC_ALONE(operand) operand, ""
#define SC_ENDED(text, operand, end, ...) text operand end
#define SC_ENDED_X0(text, operand, end, ...) text operand ", x0" end

/* Encodings: three registers; two registers; two registers and a constant; a store; a register and a long constant. */
#define SC_R(op, f3, f7, d, a, ...) SC_ENDED(".insn r " #op ", " #f3 ", " f7 ", " d ", " a ", ", __VA_ARGS__, "\n", )
#define SC_R_X0(op, f3, f7, d, ...) SC_ENDED_X0(".insn r " #op ", " #f3 ", " f7 ", " d ", ", __VA_ARGS__, "\n", )
#define SC_I(op, f3, d, a, ...) SC_ENDED(".insn i " #op ", " #f3 ", " d ", " a ", ", __VA_ARGS__, "\n", )
#define SC_S(op, f3, v, ptr, n) ".insn s " #op ", " #f3 ", " v ", " n "(" ptr ")\n"
#define SC_U(op, d, n) ".insn u " #op ", " d ", " n "\n"
#define SC_SIX(n) "((" n ") >> 1 & 31) + ((" n ") & 1) * 32" /* 6 bits; the lowest one is stored above the others */

/* Meanings: values are signed unless the line says unsigned. low() and high() are halves of a register; x[i] is
 * byte i (..._B) or half i (..._H) of register x, counted from the lowest. round(x, n) = (x + 2^(n - 1)) >> n. */
#define LP_SETUP(l, count, end)  SC_I(0x7b, 4, "x" l, count, end)      /* repeats 2 * end bytes; count is a register */
#define LP_SETUPI(l, count, end) /* repeats 2 * end bytes; count is a constant */ \
    SC_U(0x7b, "x" l, "(" count ") << 8 | (" end ") << 3 | 5")
#define P_ABS(d, a)              SC_R_X0(0x33, 0, "0x02", d, a)        /* d = |a| */
#define P_ADDRN(d, a, b, n)      SC_R(0x5b, 6, n, d, a, b)             /* d = round(a + b, n) */
#define P_ADDRNR(d, a, b)        SC_R(0x5b, 6, "0x20", d, a, b)        /* d = round(d + a, b) */
#define P_ADDUNR(d, a, b)        SC_R(0x5b, 2, "0x60", d, a, b)        /* d = (d + a) >> b, unsigned */
#define P_CLIP(d, a, n)          SC_R(0x33, 1, "0x0A", d, a, "x" n)    /* d = clip(a, -2^(n - 1), 2^(n - 1) - 1) */
#define P_CLIPR(d, a, b)         SC_R(0x33, 5, "0x0A", d, a, b)        /* d = clip(a, -b - 1, b) */
#define P_CLIPU(d, a, n)         SC_R(0x33, 2, "0x0A", d, a, "x" n)    /* d = clip(a, 0, 2^(n - 1) - 1) */
#define P_ELW(d, ptr, n)         SC_I(0x03, 6, d, ptr, n)              /* d = word at ptr + n; the core may sleep */
#define P_EXTHZ(d, a)            SC_R_X0(0x33, 5, "0x08", d, a)        /* d = low(a), unsigned */
#define P_EXTRACT(d, a, m, n)    SC_R(0x33, 0, "0x60 + " m, d, a, "x" n) /* d = bits n .. n + m of a */
#define P_FL1(d, a)              SC_R_X0(0x33, 1, "0x08", d, a)        /* d = index of the highest 1 of a; of 0: 32 */
#define P_LBU_POST(d, ptr, n)    SC_I(0x0b, 4, d, ptr, n)              /* d = byte at ptr, unsigned; ptr += n */
#define P_LH_POST(d, ptr, n)     SC_I(0x0b, 1, d, ptr, n)              /* d = half word at ptr; ptr += n */
#define P_LHU_POST(d, ptr, n)    SC_I(0x0b, 5, d, ptr, n)              /* d = half word at ptr, unsigned; ptr += n */
#define P_LHU_POST_R(d, ptr, b)  SC_R(0x0b, 7, "0x28", d, ptr, b)      /* d = half word at ptr, unsigned; ptr += b */
#define P_LHU_R(d, ptr, b)       SC_R(0x03, 7, "0x28", d, ptr, b)      /* d = half word at ptr + b, unsigned */
#define P_LW_POST(d, ptr, n)     SC_I(0x0b, 2, d, ptr, n)              /* d = word at ptr; ptr += n */
#define P_LW_POST_R(d, ptr, b)   SC_R(0x0b, 7, "0x10", d, ptr, b)      /* d = word at ptr; ptr += b */
#define P_LW_R(d, ptr, b)        SC_R(0x03, 7, "0x10", d, ptr, b)      /* d = word at ptr + b */
#define P_MAC(d, a, b)           SC_R(0x33, 0, "0x21", d, a, b)        /* d += a * b */
#define P_MACHHSN(d, a, b, n)    SC_R(0x5b, 1, "0x60 + " n, d, a, b)   /* d = (d + high(a) * high(b)) >> n */
#define P_MACSN(d, a, b, n)      SC_R(0x5b, 1, "0x40 + " n, d, a, b)   /* d = (d + low(a) * low(b)) >> n */
#define P_MAX(d, a, b)           SC_R(0x33, 6, "0x02", d, a, b)        /* d = max(a, b) */
#define P_MIN(d, a, b)           SC_R(0x33, 4, "0x02", d, a, b)        /* d = min(a, b) */
#define P_MINU(d, a, b)          SC_R(0x33, 5, "0x02", d, a, b)        /* d = min(a, b), unsigned */
#define P_MSU(d, a, b)           SC_R(0x33, 1, "0x21", d, a, b)        /* d -= a * b */
#define P_MULHHURN(d, a, b, n)   SC_R(0x5b, 4, "0x20 + " n, d, a, b)   /* d = round(high(a) * high(b), n), unsigned */
#define P_MULS(d, a, b)          SC_R(0x5b, 0, "0x40", d, a, b)        /* d = low(a) * low(b) */
#define P_MULSRN(d, a, b, n)     SC_R(0x5b, 4, "0x40 + " n, d, a, b)   /* d = round(low(a) * low(b), n) */
#define P_MULU(d, a, b)          SC_R(0x5b, 0, "0", d, a, b)           /* d = low(a) * low(b), unsigned */
#define P_MULUN(d, a, b, n)      SC_R(0x5b, 0, n, d, a, b)             /* d = low(a) * low(b) >> n, unsigned */
#define P_MULURN(d, a, b, n)     SC_R(0x5b, 4, n, d, a, b)             /* d = round(low(a) * low(b), n), unsigned */
#define P_SB_POST(v, ptr, n)     SC_S(0x2b, 0, v, ptr, n)              /* byte at ptr = v; ptr += n */
#define P_SB_POST_R(v, ptr, b)   SC_R(0x2b, 4, "0", b, ptr, v)         /* byte at ptr = v; ptr += b */
#define P_SH_POST(v, ptr, n)     SC_S(0x2b, 1, v, ptr, n)              /* half word at ptr = v; ptr += n */
#define P_SW_POST(v, ptr, n)     SC_S(0x2b, 2, v, ptr, n)              /* word at ptr = v; ptr += n */
#define P_SW_POST_R(v, ptr, b)   SC_R(0x2b, 6, "0", b, ptr, v)         /* word at ptr = v; ptr += b */
#define PV_ADD_H(d, a, b)        SC_R(0x57, 0, "0x00", d, a, b)        /* d[i] = a[i] + b[i] */
#define PV_AND_SCI_B(d, a, n)    SC_I(0x57, 7, d, a, "0x680 + " SC_SIX(n)) /* d[i] = a[i] & n, -32 <= n < 32 */
#define PV_DOTSP_B(d, a, b)      SC_R(0x57, 1, "0x4C", d, a, b)        /* d = dot product of a and b */
#define PV_DOTSP_H(d, a, b)      SC_R(0x57, 0, "0x4C", d, a, b)        /* d = dot product of a and b */
#define PV_PACK_H(d, a, b)       SC_R(0x57, 0, "0x68", d, a, b)        /* d[1] = a[0], d[0] = b[0] */
#define PV_SDOTSP_B(d, a, b)     SC_R(0x57, 1, "0x5C", d, a, b)        /* d += dot product of a and b */
#define PV_SDOTUSP_B(d, a, b)    SC_R(0x57, 1, "0x54", d, a, b)        /* d += dot product of a (unsigned) and b */
#define PV_SHUFFLE2_B(d, a, b)   SC_R(0x57, 1, "0x64", d, a, b)        /* d[i] = byte b[i] of d (0 to 3), a (4 to 7) */
#define PV_SHUFFLE2_H(d, a, b)   SC_R(0x57, 0, "0x64", d, a, b)        /* d[i] = half b[i] of d (0, 1) or a (2, 3) */
#define PV_SLL_SCI_B(d, a, n)    SC_I(0x57, 7, d, a, "0x500 + " SC_SIX(n)) /* d[i] = a[i] << n */
#define PV_SRA_SC_B(d, a, b)     SC_R(0x57, 5, "0x24", d, a, b)        /* d[i] = a[i] >> b */
#define PV_SUB_B(d, a, b)        SC_R(0x57, 1, "0x04", d, a, b)        /* d[i] = a[i] - b[i] */
#define PV_SUB_H(d, a, b)        SC_R(0x57, 0, "0x04", d, a, b)        /* d[i] = a[i] - b[i] */
/* clang-format on */

/* ---- C functions of one instruction ---- */

/* The result of an instruction with the operands a and b. */
#define SC_VALUE(INSN, a, b)                                                                                 \
    ({                                                                                                       \
        int32_t d_;                                                                                          \
        __asm__(INSN("%0", "%1", SC_ALONE("%2")) : "=r"(d_) : "r"(a), "r"(b));                               \
        d_;                                                                                                  \
    })
/* The result of an instruction that also reads d. */
#define SC_UPDATED(INSN, d, a, b)                                                                            \
    ({                                                                                                       \
        int32_t d_ = (d);                                                                                    \
        __asm__(INSN("%0", "%1", SC_ALONE("%2")) : "+r"(d_) : "r"(a), "r"(b));                               \
        d_;                                                                                                  \
    })
#define sc_sdot4(d, a, b) SC_UPDATED(PV_SDOTSP_B, d, a, b)   /* signed x signed bytes */
#define sc_sdotu4(d, a, b) SC_UPDATED(PV_SDOTUSP_B, d, a, b) /* a unsigned, b signed */
#define sc_mac(d, a, b) SC_UPDATED(P_MAC, d, a, b)
#define sc_round(v, s) SC_UPDATED(P_ADDRNR, v, 0, s) /* (v + 2^(s - 1)) >> s, 1 <= s <= 31 */
#define sc_max(a, b) SC_VALUE(P_MAX, a, b)
#define sc_min(a, b) SC_VALUE(P_MIN, a, b)

static inline int32_t sc_abs(int32_t a) {
    int32_t d;
    __asm__(P_ABS("%0", SC_ALONE("%1")) : "=r"(d) : "r"(a));
    return d;
}

/* v clipped to 0 .. 31 */
static inline int sc_to_31(int v) {
    int d;
    __asm__(P_CLIPU("%0", "%1", SC_ALONE("6")) : "=r"(d) : "r"(v));
    return d;
}

/* v clipped to -2^30 .. 2^30 - 1 */
static inline int32_t sc_clip30(int32_t v) {
    int32_t d;
    __asm__(P_CLIP("%0", "%1", "31") : "=r"(d) : "r"(v));
    return d;
}

static inline uint32_t sc_low16(uint32_t a) {
    uint32_t d;
    __asm__(P_EXTHZ("%0", SC_ALONE("%1")) : "=r"(d) : "r"(a));
    return d;
}

/* index of the highest set bit of v > 0 */
static inline int sc_top_bit(uint32_t v) {
    int d;
    __asm__(P_FL1("%0", SC_ALONE("%1")) : "=r"(d) : "r"(v));
    return d;
}

/* index of the highest set bit plus one; 0 for 0 (P_FL1 gives 32 there) */
static inline int sc_bits(uint32_t v) { return v ? sc_top_bit(v) + 1 : 0; }

/* clang-format off */
/* ---- assembly of several lines ---- */

/* Rounding shift, 1 <= n <= 31: v = (v + 2^(n - 1)) >> n */
#define SC_ROUND(v, n) P_ADDRNR(v, "x0", n)

/* Hardware loop: repeats the `insns` instructions up to SC_LOOP_END `cnt` times (a register). The encoding
 * needs the number of instructions; SC_LOOP_END lets the assembler check it. */
#define SC_LOOP_BEGIN(cnt, insns)                                                                            \
    ".balign 4\n.option push\n.option norvc\n.option norelax\n"                                              \
    LP_SETUP("0", cnt, "2*(" #insns ")") "771:\n"
/* The same for a constant count; at most 15 instructions. */
#define SC_LOOP_CONST_BEGIN(times, insns)                                                                    \
    ".balign 4\n.option push\n.option norvc\n.option norelax\n"                                              \
    LP_SETUPI("0", #times, "2*(" #insns ")") "771:\n"
/* Outer loop around such a loop. Its count includes the inner loop, the inner set-up instruction, and at
 * least one more instruction at the end. */
#define SC_OUTER_LOOP_BEGIN(cnt, insns)                                                                      \
    ".balign 4\n.option push\n.option norvc\n.option norelax\n"                                              \
    LP_SETUP("1", cnt, "2*(" #insns ")") "773:\n"
#define SC_INNER_LOOP_BEGIN(cnt, insns)                                                                      \
    ".option push\n.option norvc\n.option norelax\n"                                                         \
    LP_SETUP("0", cnt, "2*(" #insns ")") "771:\n"
#define SC_OUTER_LOOP_END(insns)                                                                             \
    "774:\n.if (774b - 773b) - 4*(" #insns ")\n.error \"a hardware loop is miscounted\"\n.endif\n"           \
    ".option pop"
#define SC_LOOP_END(insns)                                                                                   \
    "772:\n.if (772b - 771b) - 4*(" #insns ")\n.error \"a hardware loop is miscounted\"\n.endif\n"           \
    ".option pop"

/* top = max(top, |words|) of n > 0 words, `step` bytes apart */
#define SC_MAX_WORDS(top, ptr, count, step)                                                                  \
    do {                                                                                                     \
        int32_t v_;                                                                                          \
        const void *p_ = (ptr);                                                                              \
        __asm__ volatile(SC_LOOP_BEGIN("%[n]", 3)                                                            \
                         P_LW_POST("%[v]", "%[p]", "%[s]")                                                   \
                         P_ABS("%[v]", "%[v]")                                                               \
                         P_MAX("%[t]", "%[t]", "%[v]") SC_LOOP_END(3)                                        \
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
        __asm__ volatile(SC_LOOP_BEGIN("%[n]", 6)                                                            \
                         P_LW_POST("%[v]", "%[p]", "4") P_LW_POST("%[w]", "%[q]", "4")                       \
                         P_ABS("%[v]", "%[v]") P_ABS("%[w]", "%[w]")                                         \
                         P_MAX("%[t]", "%[t]", "%[v]") P_MAX("%[t]", "%[t]", "%[w]") SC_LOOP_END(6)          \
                         : [t] "+&r"(top), [p] "+&r"(p_), [q] "+&r"(q_), [v] "=&r"(v_), [w] "=&r"(w_)        \
                         : [n] "r"(half_)                                                                    \
                         : "memory");                                                                        \
    } while (0)

/* SC_MAX_RUN() of four words: without the set-up of a loop. */
static inline __attribute__((always_inline)) int32_t sc_max_four(int32_t top, const int32_t *v) {
    int32_t a, b, c, d;
    __asm__("lw %[a], 0(%[v])\nlw %[b], 4(%[v])\nlw %[c], 8(%[v])\nlw %[d], 12(%[v])\n"
            P_ABS("%[a]", "%[a]") P_ABS("%[b]", "%[b]") P_ABS("%[c]", "%[c]") P_ABS("%[d]", "%[d]")
            P_MAX("%[a]", "%[a]", "%[b]") P_MAX("%[c]", "%[c]", "%[d]")
            P_MAX("%[t]", "%[t]", "%[a]") P_MAX("%[t]", "%[t]", "%[c]")
            : [t] "+&r"(top), [a] "=&r"(a), [b] "=&r"(b), [c] "=&r"(c), [d] "=&r"(d)
            : [v] "r"(v), "m"(*(const int32_t(*)[4])v));
    return top;
}
/* clang-format on */

#else

/* top = max(top, |words|) of `count` words, `step` bytes apart */
#define SC_MAX_EACH(top, ptr, count, step)                                                                   \
    do {                                                                                                     \
        const char *p_ = (const char *)(ptr);                                                                \
        for (uint32_t n_ = (count); n_; n_--, p_ += (step)) {                                                \
            int32_t v_;                                                                                      \
            __builtin_memcpy(&v_, p_, 4);                                                                    \
            top = sc_max(top, sc_abs(v_));                                                                   \
        }                                                                                                    \
    } while (0)

#define SC_MAX_WORDS(top, ptr, count, step) SC_MAX_EACH(top, ptr, count, step)
#define SC_MAX_RUN(top, ptr, count) SC_MAX_EACH(top, ptr, count, 4)

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
