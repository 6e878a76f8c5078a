/* SPDX-License-Identifier: Apache-2.0
 * Output stage after N-EUREKA: combines the engine's two sums of a row, low + 256 * high (16-bit
 * activations), rescales, then stores, adds to the residual stream, or applies SiLU gating. Workers run it,
 * on buffers in L1.
 *
 * Inline, because while decoding every engine job ends with it and the cores wait. */
#ifndef SC_EPILOGUE_NEUREKA_H
#define SC_EPILOGUE_NEUREKA_H

#include "sc_epilogue.h"

#if SC_XPULP
/* silu(g) * u, with v: the sigmoid's input. 12 instructions and `between`, which must not use their results.
 * The cycle after a high-word product cannot use its result. */
/* clang-format off */
#define SC_GATED(between)                                                                                    \
    "srai %[i], %[v], 10\n"                                                                                  \
    "andi %[i], %[i], -4\n"                                                                                  \
    P_LW_R("%[i]", "%[table]", "%[i]")                                                                       \
    "and %[v], %[v], %[mask]\n"                                                                              \
    P_MACSN("%[i]", "%[i]", "%[v]", "16") /* plus its lower half times v's, and that by 2^16 */              \
    "sll %[u], %[u], %[us]\n"                                                                                \
    SC_TWICE("%[i]")                                                                                         \
    SC_TIMES_LOW("%[v]", "%[g]", "%[i]") SC_TIMES_HIGH("%[v]", "%[g]", "%[i]")                               \
    "sll %[v], %[v], %[shift]\n"                                                                             \
    "mulh %[g], %[v], %[u]\n" between                                                                        \
    P_SW_POST("%[g]", "%[dst]", "4")
/* clang-format on */
#endif

/* SC_JOIN_PORTABLE: without Xpulp instructions, for tests. */
#if defined(SC_HAS_ENGINES) && (SC_XPULP || defined(SC_JOIN_PORTABLE))

#ifndef SC_JOIN_PORTABLE
/* sc_team_barrier() as the first instruction, if `barrier`. The loop's constants are in registers by then. */
#define BARRIER ".if %[barrier]\n" P_ELW("x0", "%[team]", "%[event]") ".endif\n"
#define BARRIER_OPERANDS(barrier)                                                                            \
    [team] "r"(ELW_PAGE(SC_TEAM_BARRIER_AT)), [event] "i"(ELW_OFFSET(SC_TEAM_BARRIER_AT)),                   \
        [barrier] "i"(barrier)

/* Left out if the engine has added high sums to low ones. */
#define UNLESS_SUMMED(text) ".if !%[summed]\n" text ".endif\n"
#define SUMMED(summed) [summed] "i"(summed)

/* join_rows() and silu_rows() of whole blocks in one loop, for gate shifts of -12 to 15. */
SC_INLINE void joined_silu(const uint16_t *r, uint32_t blocks, const int32_t *low, const int32_t *high,
                           uint32_t mantissa, int32_t right, const sc_output *out, int32_t *dst,
                           const int barrier) {
    const int gate_shift = out->gate_shift;
    int32_t g, u, v, i, a, b;
    /* clang-format off */
    /* the next low sum is loaded during the gate before it */
#define JOIN_BLOCKS(count)                                                                                   \
    BARRIER P_LW_POST("%[a]", "%[low]", "4")                                                                       \
    SC_OUTER_LOOP_BEGIN("%[blocks]", count + 5)                                                              \
    SC_INNER_LOOP_BEGIN("%[four]", count)                                                                    \
    P_LW_POST("%[g]", "%[high]", "4")                                                                        \
    "lw %[b], 12(%[low])\n" /* of the up */                                                                  \
    "lw %[u], 12(%[high])\n"                                                                                 \
    P_LHU_POST("%[v]", "%[r]", "2")                                                                          \
    "lhu %[i], 6(%[r])\n"                                                                                    \
    P_MAC("%[a]", "%[g]", "%[c]") P_MAC("%[b]", "%[u]", "%[c]")                                              \
    SC_FACTOR("%[v]", "%[v]", "%[m]") SC_FACTOR("%[i]", "%[i]", "%[m]")                                      \
    SC_TWICE("%[v]") SC_TWICE("%[i]")                                                                        \
    SC_TIMES_LOW("%[g]", "%[a]", "%[v]") SC_TIMES_LOW("%[u]", "%[b]", "%[i]")                                \
    SC_TIMES_HIGH("%[g]", "%[a]", "%[v]") SC_TIMES_HIGH("%[u]", "%[b]", "%[i]")                              \
    SC_ROUND("%[g]", "%[right]") SC_ROUND("%[u]", "%[right]")
#define GATE_BLOCKS(count)                                                                                   \
    SC_GATED(P_LW_POST("%[a]", "%[low]", "4"))                                                               \
    SC_LOOP_END(count) "\n"                                                                                  \
    "lw %[a], 12(%[low])\naddi %[low], %[low], 16\naddi %[r], %[r], 8\naddi %[high], %[high], 16\n"          \
    SC_OUTER_LOOP_END(count + 5)
#define GATED                                                                                                \
    [low] "+&r"(low), [high] "+&r"(high), [r] "+&r"(r), [dst] "+&r"(dst), [g] "=&r"(g), [u] "=&r"(u),        \
    [v] "=&r"(v), [i] "=&r"(i), [a] "=&r"(a), [b] "=&r"(b)                                                   \
    : [blocks] "r"(blocks), [four] "r"(SC_ROWS / 2), [c] "r"(256), [m] "r"(mantissa), [right] "r"(right),    \
      [shift] "r"(out->silu_shift), [us] "r"(out->up_shift), [mask] "r"(4095), [table] "r"(sc_sigmoid_table + 256), \
      BARRIER_OPERANDS(barrier)
    if (SC_GATE_SHIFT_LEAST > 0 || (SC_GATE_SHIFT_MOST > 0 && gate_shift > 0)) {
        __asm__ volatile(JOIN_BLOCKS(33)
                         "mv %[v], %[g]\n"
                         SC_ROUND("%[v]", "%[gs]")
                         P_CLIP("%[v]", "%[v]", "21")
                         GATE_BLOCKS(33) : GATED, [gs] "r"(gate_shift) : "memory");
    } else {
        __asm__ volatile(JOIN_BLOCKS(32)
                         P_CLIPR("%[v]", "%[g]", "%[limit]")
                         "sll %[v], %[v], %[gs]\n"
                         GATE_BLOCKS(32) : GATED, [gs] "r"(-gate_shift),
                         [limit] "r"(((1 << 20) >> -gate_shift) - 1) : "memory");
    }
    /* clang-format on */
#undef JOIN_BLOCKS
#undef GATE_BLOCKS
#undef GATED
}

/* joined_silu() for several tokens. summed: low sums include the high ones. Two pairs at a time, with two
 * multipliers per load: more code than single-token decode has room for. */
SC_INLINE void silu_of_several(const uint16_t *r, uint32_t blocks, const int32_t *low, const int32_t *high,
                               uint32_t mantissa, int32_t right, const sc_output *out, int32_t *dst,
                               const int summed) {
    const int gate_shift = out->gate_shift;
    int32_t g, u, v, i, a, b;
    uint32_t gates, ups; /* two multipliers each */
    /* clang-format off */
#define PAIR(FACTOR, INPUT)                                                                                   \
    P_LW_POST("%[a]", "%[low]", "4")                                                                         \
    "lw %[b], 12(%[low])\n"                                                                                  \
    UNLESS_SUMMED(P_LW_POST("%[g]", "%[high]", "4") "lw %[u], 12(%[high])\n")                                 \
    FACTOR("%[v]", "%[gates]", "%[m]") FACTOR("%[i]", "%[ups]", "%[m]")                                      \
    UNLESS_SUMMED(P_MAC("%[a]", "%[g]", "%[c]") P_MAC("%[b]", "%[u]", "%[c]"))                                \
    SC_TWICE("%[v]") SC_TWICE("%[i]")                                                                        \
    SC_TIMES_LOW("%[g]", "%[a]", "%[v]") SC_TIMES_LOW("%[u]", "%[b]", "%[i]")                                \
    SC_TIMES_HIGH("%[g]", "%[a]", "%[v]") SC_TIMES_HIGH("%[u]", "%[b]", "%[i]")                              \
    SC_ROUND("%[g]", "%[right]") SC_ROUND("%[u]", "%[right]") INPUT SC_GATED("")
#define PAIRS_OF_BLOCKS(INPUT, count)                                                                         \
    SC_OUTER_LOOP_BEGIN("%[blocks]", count + 4 - %[summed])                                                  \
    SC_INNER_LOOP_BEGIN("%[two]", count)                                                                     \
    P_LW_POST("%[gates]", "%[r]", "4")                                                                       \
    "lw %[ups], 4(%[r])\n"                                                                                   \
    PAIR(SC_FACTOR, INPUT) PAIR(SC_FACTOR_OF_HIGH, INPUT) SC_LOOP_END(count) "\n"                              \
    "addi %[low], %[low], 16\naddi %[r], %[r], 8\n" UNLESS_SUMMED("addi %[high], %[high], 16\n")             \
    SC_OUTER_LOOP_END(count + 4 - %[summed])
#define OPERANDS                                                                                              \
    [low] "+&r"(low), [high] "+&r"(high), [r] "+&r"(r), [dst] "+&r"(dst), [g] "=&r"(g), [u] "=&r"(u), [v] "=&r"(v),            \
    [i] "=&r"(i), [a] "=&r"(a), [b] "=&r"(b), [gates] "=&r"(gates), [ups] "=&r"(ups)                         \
    : [blocks] "r"(blocks), [two] "r"(2), [m] "r"(mantissa | mantissa << 16), [right] "r"(right),               \
      [shift] "r"(out->silu_shift), \
      [us] "r"(out->up_shift), [mask] "r"(4095), [table] "r"(sc_sigmoid_table + 256), \
      [c] "r"(256), SUMMED(summed)
    if (SC_GATE_SHIFT_LEAST > 0 || (SC_GATE_SHIFT_MOST > 0 && gate_shift > 0)) {
        __asm__ volatile(PAIRS_OF_BLOCKS("mv %[v], %[g]\n" SC_ROUND("%[v]", "%[gs]")
                                      P_CLIP("%[v]", "%[v]", "21"), 2 * 31 + 2 - 8 * %[summed])
                         : OPERANDS, [gs] "r"(gate_shift) : "memory");
    } else {
        __asm__ volatile(PAIRS_OF_BLOCKS(P_CLIPR("%[v]", "%[g]", "%[limit]")
                                      "sll %[v], %[v], %[gs]\n", 2 * 30 + 2 - 8 * %[summed])
                         : OPERANDS, [gs] "r"(-gate_shift),
                         [limit] "r"(((1 << 20) >> -gate_shift) - 1) : "memory");
    }
    /* clang-format on */
#undef PAIR
#undef PAIRS_OF_BLOCKS
#undef OPERANDS
}
#endif

#if !SC_EVEN_ROWS
/* join_rows(), one row at a time. high: 0 if low holds the combined sums. */
void sc_join_rest(const uint16_t *r, uint32_t n, const int32_t *low, const int32_t *high, uint32_t mantissa,
                  int32_t right, int add, int32_t *y);
#endif

/* y = low + 256 * high, or low if `summed`, rescaled as in rescale_rows(), for right shifts of at least 1. With `add`:
 * y += that, and left shifts up to 30 are possible too. With `barrier`: calls sc_team_barrier() first. */
static inline __attribute__((always_inline)) void join_rows(const uint16_t *r, uint32_t n, const int32_t *low,
                                                            const int32_t *high, uint32_t mantissa,
                                                            int32_t right, int add, int32_t *y,
                                                            const int barrier, const int summed) {
#ifndef SC_JOIN_PORTABLE
    int32_t s, t, a, b, h, i;
    /* clang-format off */
#define JOIN_TWO                                                                                             \
    P_LW_POST("%[t]", "%[r]", "4") /* two multipliers */                                                     \
    UNLESS_SUMMED(P_LW_POST("%[a]", "%[high]", "4") P_LW_POST("%[b]", "%[high]", "4"))                        \
    P_LW_POST("%[h]", "%[low]", "4") P_LW_POST("%[i]", "%[low]", "4")                                        \
    SC_FACTOR("%[s]", "%[t]", "%[m]") SC_FACTOR_OF_HIGH("%[t]", "%[t]", "%[m]")                              \
    UNLESS_SUMMED(P_MAC("%[h]", "%[a]", "%[c]") P_MAC("%[i]", "%[b]", "%[c]"))                                \
    SC_TWICE("%[s]") SC_TWICE("%[t]")                                                                        \
    SC_TIMES_LOW("%[a]", "%[h]", "%[s]") SC_TIMES_LOW("%[b]", "%[i]", "%[t]")                                \
    SC_TIMES_HIGH("%[a]", "%[h]", "%[s]") SC_TIMES_HIGH("%[b]", "%[i]", "%[t]")
#define ADD_TWO /* to the residual */                                                                        \
    "add %[a], %[a], %[s]\nadd %[b], %[b], %[t]\n" P_CLIP("%[a]", "%[a]", "31") P_CLIP("%[b]", "%[b]", "31")  \
    P_SW_POST("%[a]", "%[y]", "4") P_SW_POST("%[b]", "%[y]", "4")
#define JOINED                                                                                               \
    [r] "+&r"(r), [y] "+&r"(y), [low] "+&r"(low), [high] "+&r"(high), [s] "=&r"(s), [t] "=&r"(t),            \
    [a] "=&r"(a), [b] "=&r"(b), [h] "=&r"(h), [i] "=&r"(i)                                                   \
    : [n] "r"(n / 2), [m] "r"(mantissa | mantissa << 16), [c] "r"(256), [right] "r"(right), BARRIER_OPERANDS(barrier),  \
    SUMMED(summed)
    if (n > 1 && add && right > 0)
        __asm__ volatile(BARRIER SC_LOOP_BEGIN("%[n]", 25 - 4 * %[summed]) JOIN_TWO
                         "lw %[s], 0(%[y])\n"
                         "lw %[t], 4(%[y])\n"
                         SC_ROUND("%[a]", "%[right]") SC_ROUND("%[b]", "%[right]")
                         ADD_TWO SC_LOOP_END(25 - 4 * %[summed]) : JOINED : "memory");
    else if (n > 1 && add) { /* limit, so that the shift cannot overflow; then clip to 30 bits */
        const int32_t left = -right, limit = 1 << (30 - left);
        __asm__ volatile(BARRIER SC_LOOP_BEGIN("%[n]", 29 - 4 * %[summed]) JOIN_TWO
                         P_CLIPR("%[a]", "%[a]", "%[limit]")
                         P_CLIPR("%[b]", "%[b]", "%[limit]")
                         "lw %[s], 0(%[y])\n"
                         "lw %[t], 4(%[y])\n"
                         "sll %[a], %[a], %[left]\n"
                         "sll %[b], %[b], %[left]\n"
                         P_CLIP("%[a]", "%[a]", "31") P_CLIP("%[b]", "%[b]", "31")
                         ADD_TWO SC_LOOP_END(29 - 4 * %[summed])
                         : JOINED, [left] "r"(left), [limit] "r"(limit) : "memory");
    }
    else if (n > 1)
        __asm__ volatile(BARRIER SC_LOOP_BEGIN("%[n]", 19 - 4 * %[summed]) JOIN_TWO
                         SC_ROUND("%[a]", "%[right]") SC_ROUND("%[b]", "%[right]")
                         P_SW_POST("%[a]", "%[y]", "4")
                         P_SW_POST("%[b]", "%[y]", "4") SC_LOOP_END(19 - 4 * %[summed]) : JOINED : "memory");
    else if (barrier)
        sc_team_barrier();
    /* clang-format on */
#undef JOIN_TWO
#undef ADD_TWO
#undef JOINED
#if !SC_EVEN_ROWS
    n &= 1;
#endif
#else
    if (barrier) sc_team_barrier();
#endif
#if !SC_EVEN_ROWS
    if (__builtin_expect(n > 0, !SC_XPULP))
        sc_join_rest(r, n, low, summed ? 0 : high, mantissa, right, add, y);
#endif
}

/* Slow path, for shifts that join_rows() cannot do. high: 0 if low holds the combined sums. */
void sc_join_any(const sc_matrix *m, const uint16_t *r, uint32_t row, uint32_t rows, const int32_t *low,
                 const int32_t *high, const sc_qvec *x, const sc_output *out, int32_t *dst);
#if !SC_SILU_JOINED
/* Gate and up rows that are not whole blocks, or whose shifts joined_silu() cannot do. */
void sc_join_gates(const uint16_t *r, uint32_t rows, const int32_t *low, const int32_t *high,
                   uint32_t mantissa, int32_t right, const sc_output *out, int32_t *dst);
#endif

/* The first three equal enum sc_epilogue: join_rows(), or joined_silu() of whole blocks. */
enum join_how { JOIN_STORE = SC_STORE, JOIN_ADD = SC_ADD, JOIN_SILU = SC_SILU, JOIN_GATES, JOIN_ANY };

/* What is the same for all rows of a matrix. */
typedef struct {
    const sc_matrix *m;
    const sc_qvec *x;
    const sc_output *out;
    uint32_t mantissa;
    int32_t right;
    enum join_how how;
    enum join_how plain; /* `how` for tokens whose shift is in the usual range */
} joining;

/* Switches to another token's vector. */
static inline void joining_next(joining *j, const sc_qvec *x) {
    j->x = x, j->mantissa = x->mantissa, j->right = right_shift(j->m, x);
    j->how = __builtin_expect(j->right > (j->out->kind == SC_ADD ? -31 : 0), 1) ? j->plain : JOIN_ANY;
}

static inline joining joining_of(const sc_matrix *m, const sc_qvec *x, const sc_output *out) {
    joining j = {.m = m, .out = out, .plain = (enum join_how)out->kind};
    if ((SC_GATE_SHIFT_LEAST < -12 || SC_GATE_SHIFT_MOST >= 16) && out->kind == SC_SILU &&
        (out->gate_shift < -12 || out->gate_shift >= 16))
        j.plain = JOIN_GATES;
#ifdef SC_GELU
    if (out->kind == SC_SILU) j.plain = JOIN_GATES;
#endif
#ifdef SC_HAS_BIAS
    if (out->bias) j.plain = JOIN_ANY;
#endif
    joining_next(&j, x);
    return j;
}

/* Sums of one token, of several, or of several with high sums already added to low ones. OF_ONE does for several,
 * in less code. */
enum row_sums { OF_ONE, OF_SEVERAL, OF_SEVERAL_SUMMED };

/* Finishes rows row .. row + rows - 1 of one token, all below m->rows. With `barrier`: calls sc_team_barrier()
 * first. */
SC_INLINE void join(const joining *j, const uint16_t *r, uint32_t row, uint32_t rows, const int32_t *low,
                    const int32_t *high, int32_t *dst, const int barrier, const enum row_sums kind) {
    const sc_output *const out = j->out;
    const int summed = kind == OF_SEVERAL_SUMMED;
#ifndef SC_JOIN_PORTABLE
    if (j->how == JOIN_SILU && (SC_SILU_JOINED || rows % SC_ROWS == 0)) {
        if (kind != OF_ONE)
            silu_of_several(r, rows / SC_ROWS, low, high, j->mantissa, j->right, out, dst + row / 2, summed);
        else
            joined_silu(r, rows / SC_ROWS, low, high, j->mantissa, j->right, out, dst + row / 2, barrier);
        return;
    }
#endif
    if (j->how == JOIN_ADD) {
        join_rows(r, rows, low, high, j->mantissa, j->right, 1, dst + row, barrier, summed);
    } else if (j->how == JOIN_STORE) {
        join_rows(r, rows, low, high, j->mantissa, j->right, 0, dst + row, barrier, summed);
    } else {
        if (barrier) sc_team_barrier();
        if (summed) high = 0;
#if !SC_SILU_JOINED
        if (j->how != JOIN_ANY) {
            sc_join_gates(r, rows, low, high, j->mantissa, j->right, out, dst + row / 2);
            return;
        }
#endif
        sc_join_any(j->m, r, row, rows, low, high, j->x, out, dst);
    }
}
#endif

#endif
