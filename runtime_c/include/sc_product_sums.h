/* SPDX-License-Identifier: Apache-2.0
 * Adds up the products that N-EUREKA computes per quantisation group g of inputs (sc_products.c):
 * acc += round((p * d - b * sum(x)) / 2^drop) * c; p: product, d: scale, b: offset of the row, c: scale of x.
 * Runs on all workers; all buffers are in L1. */
#ifndef SC_PRODUCT_SUMS_H
#define SC_PRODUCT_SUMS_H

#include "sc_dot.h"
#include "sc_epilogue.h"

/* Words of the product buffer. PITCH: between the groups of a step; one word per token. ROW_WORDS: between
 * rows. ACC_PITCH: between pairs of rows of accumulators, in units of two words. The last two are odd, so
 * that cores at different rows use different banks. */
#define PITCH SC_CHUNK
#define ROW_WORDS(step) ((step) * PITCH | 1)
#define ACC_PITCH (SC_CHUNK | 1)

enum { PAIRS = SC_ROWS / 2, EVERY = SC_CORES / PAIRS }; /* row pairs of a block; stride of a core's blocks */
_Static_assert(SC_CORES % PAIRS == 0, "a core has one pair of rows");

/* What the loops over blocks and tokens load from memory, because no registers are left. */
typedef struct {
    int32_t offsets;        /* bytes from a pair's scales to its offsets or zero points */
    int32_t group;          /* bytes to the next group */
    int32_t blocks;         /* bytes to the core's next block */
    int32_t fold;           /* sc_fold() of the format */
    int32_t tokens;         /* number of tokens */
    int32_t back;           /* bytes that the pointers to group scales advance over all tokens */
    int32_t sums, acc;      /* bytes from a block's end to the core's next block */
    int32_t count;          /* number of the core's blocks */
    const uint8_t *t;       /* scales of the current block's pair of rows */
    const int32_t *c, *sum; /* group scale and sum of the first token; of two groups, the second */
    const int32_t *p, *q;   /* products of a group, and of the next group */
    int32_t *to;
    uint32_t row; /* first row of the core in the run */
} adding;
_Static_assert(sizeof(adding) == 4 * 16, "loads count words");

/* A run: consecutive blocks of a tile, processed together. Steps use buffers 0 and 1 in turn. */
typedef struct {
    const uint8_t *blocks; /* first group of the first block */
    uint32_t block_bytes, group_bytes, count;
    uint32_t groups, step; /* number of groups; groups per step */
    uint32_t each, last;   /* words of a group, and of the last group */
    uint32_t rows_apart;   /* bytes between the groups of a step in rows[] */
    uint32_t row_words;    /* words between rows in sums[] */
    uint8_t *rows[2];      /* int8[group of a step][8 * count][inputs], padded to whole image rows */
    int32_t *sums[2];      /* [8 * count][row_words]; a row holds [group of a step][PITCH] */
    int32_t *acc;          /* [4 * count][ACC_PITCH][2] */
} run;

/* clang-format off */
#define LOAD(rd, place) "lw %[" rd "], 4*" #place "(%[known])\n"
#define STORE(rs, place) "sw %[" rs "], 4*" #place "(%[known])\n"
#define WITH(...) __VA_ARGS__
#define WITHOUT(...)
#define BEGIN(OFFSET)                                                                                        \
    LOAD("e", 8) LOAD("c", 10) OFFSET(LOAD("sum", 11)) LOAD("p", 12) LOAD("acc", 14)
#define NEXT                                                                                                 \
    LOAD("f", 6) LOAD("k", 7)                                                                                \
    "sub %[c], %[c], %[e]\n" "add %[p], %[p], %[f]\n" "add %[acc], %[acc], %[k]\n"

/* Loops that add one group and two. OFFSET(): only for formats with offsets. `extra` counts the instructions
 * of OFFSET() in both loops, `inner` those in the inner loop. Registers are scarce: k also holds a group's
 * sum(x). */
#define ADD_ONE(inner, extra, OFFSET, FETCH)                                                                 \
    BEGIN(OFFSET)                                                                                            \
    SC_OUTER_LOOP_BEGIN("%[e]", 27 + extra)                                                                  \
    LOAD("k", 9) LOAD("u", 2) OFFSET(LOAD("e", 0))                                                           \
    "lbu %[d0], 0(%[k])\n" "lbu %[d1], 1(%[k])\n"                                                            \
    OFFSET("add %[f], %[k], %[e]\n" LOAD("h", 3) FETCH("f", "b0", "b1", "d0", "d1"))                         \
    "add %[k], %[k], %[u]\n" LOAD("u", 4) STORE("k", 9)                                                      \
    OFFSET("sll %[b0], %[b0], %[h]\n" "sll %[b1], %[b1], %[h]\n")                                            \
    SC_INNER_LOOP_BEGIN("%[u]", 13 + inner)                                                                  \
    P_LW_R("%[f]", "%[p]", "%[row]") P_LW_POST("%[e]", "%[p]", "4") P_LW_POST_R("%[u]", "%[c]", "%[stride]") \
    OFFSET(P_LW_POST_R("%[k]", "%[sum]", "%[stride]"))                                                       \
    "mul %[f], %[f], %[d1]\n" "mul %[e], %[e], %[d0]\n"                                                      \
    OFFSET(P_MSU("%[f]", "%[b1]", "%[k]") P_MSU("%[e]", "%[b0]", "%[k]"))                                    \
    "lw %[k], 0(%[acc])\n" "lw %[h], 4(%[acc])\n"                                                            \
    SC_ROUND("%[f]", "%[drop]") SC_ROUND("%[e]", "%[drop]")                                                  \
    P_MAC("%[k]", "%[e]", "%[u]") P_MAC("%[h]", "%[f]", "%[u]")                                              \
    P_SW_POST("%[k]", "%[acc]", "4") P_SW_POST("%[h]", "%[acc]", "4") SC_LOOP_END(13 + inner) "\n"           \
    LOAD("e", 5) NEXT OFFSET("sub %[sum], %[sum], %[e]\n") SC_OUTER_LOOP_END(27 + extra)
#define ADD_TWO(inner, extra, OFFSET, FETCH)                                                                 \
    BEGIN(OFFSET) LOAD("q", 13)                                                                              \
    SC_OUTER_LOOP_BEGIN("%[e]", 41 + extra)                                                                  \
    LOAD("k", 9) LOAD("x", 1) LOAD("u", 2) OFFSET(LOAD("e", 0))                                              \
    "lbu %[d0], 0(%[k])\n" "lbu %[d1], 1(%[k])\n" "add %[y], %[k], %[x]\n"                                   \
    OFFSET("add %[f], %[k], %[e]\n" FETCH("f", "b0", "b1", "d0", "d1"))                                      \
    "lbu %[d2], 0(%[y])\n" "lbu %[d3], 1(%[y])\n"                                                            \
    OFFSET("add %[y], %[y], %[e]\n" LOAD("v", 3) FETCH("y", "b2", "b3", "d2", "d3"))                         \
    "add %[k], %[k], %[u]\n" LOAD("u", 4) STORE("k", 9)                                                      \
    OFFSET("sll %[b0], %[b0], %[v]\n" "sll %[b1], %[b1], %[v]\n"                                             \
           "sll %[b2], %[b2], %[v]\n" "sll %[b3], %[b3], %[v]\n")                                            \
    SC_INNER_LOOP_BEGIN("%[u]", 22 + inner)                                                                  \
    P_LW_R("%[f]", "%[p]", "%[row]") P_LW_POST("%[e]", "%[p]", "4") OFFSET("lw %[k], -4(%[sum])\n")          \
    P_LW_R("%[y]", "%[q]", "%[row]") P_LW_POST("%[x]", "%[q]", "4")                                          \
    "mul %[f], %[f], %[d1]\n" "mul %[e], %[e], %[d0]\n"                                                      \
    OFFSET(P_MSU("%[f]", "%[b1]", "%[k]") P_MSU("%[e]", "%[b0]", "%[k]"))                                    \
    OFFSET(P_LW_POST_R("%[k]", "%[sum]", "%[stride]"))                                                       \
    "lw %[u], -4(%[c])\n" P_LW_POST_R("%[v]", "%[c]", "%[stride]")                                           \
    "mul %[y], %[y], %[d3]\n" "mul %[x], %[x], %[d2]\n"                                                      \
    OFFSET(P_MSU("%[y]", "%[b3]", "%[k]") P_MSU("%[x]", "%[b2]", "%[k]"))                                    \
    "lw %[k], 0(%[acc])\n" "lw %[h], 4(%[acc])\n"                                                            \
    SC_ROUND("%[f]", "%[drop]") SC_ROUND("%[e]", "%[drop]")                                                  \
    SC_ROUND("%[y]", "%[drop]") SC_ROUND("%[x]", "%[drop]")                                                  \
    P_MAC("%[k]", "%[e]", "%[u]") P_MAC("%[h]", "%[f]", "%[u]")                                              \
    P_MAC("%[k]", "%[x]", "%[v]") P_MAC("%[h]", "%[y]", "%[v]")                                              \
    P_SW_POST("%[k]", "%[acc]", "4") P_SW_POST("%[h]", "%[acc]", "4") SC_LOOP_END(22 + inner) "\n"           \
    LOAD("e", 5) NEXT "add %[q], %[q], %[f]\n" OFFSET("sub %[sum], %[sum], %[e]\n")                          \
    SC_OUTER_LOOP_END(41 + extra)
/* Offsets of a pair of rows. THERE loads them: 2 instructions. OF_ZEROS multiplies zero points (one byte for
 * both) by scales: 6 */
#define THERE(at, b, c, d, e) "lh %[" b "], 0(%[" at "])\n" "lh %[" c "], 2(%[" at "])\n"
#define OF_ZEROS(at, b, c, d, e)                                                                             \
    "lb %[" c "], 0(%[" at "])\n"                                                                            \
    "slli %[" b "], %[" c "], 28\n" "srai %[" c "], %[" c "], 4\n" "srai %[" b "], %[" b "], 28\n"           \
    "mul %[" b "], %[" b "], %[" d "]\n" "mul %[" c "], %[" c "], %[" e "]\n"

/* Flat sums: 4-bit weights in the low nibbles of bytes, so the products have no factor 2^fold, and fit 16
 * bits. A word holds a scale d and an offset -b, another one p and sum(x); without offsets, d is alone. These
 * load d and -b of a pair of rows, and advance k to the next group: 3, 9 and 14 instructions. */
#define FLAT_PLAIN(d, e)                                                                                     \
    "lbu %[" d "], 0(%[k])\n" "lbu %[" e "], 1(%[k])\n" "add %[k], %[k], %[y]\n"
#define FLAT_THERE(d, e)                                                                                     \
    "add %[f], %[k], %[x]\n" "lbu %[" d "], 0(%[k])\n" "lw %[f], 0(%[f])\n" "lbu %[" e "], 1(%[k])\n"        \
    PV_SUB_H("%[f]", "x0", "%[f]") "add %[k], %[k], %[y]\n"                                                  \
    PV_PACK_H("%[" d "]", "%[f]", "%[" d "]") "srli %[f], %[f], 16\n" PV_PACK_H("%[" e "]", "%[f]", "%[" e "]")
/* d * (1 - 2^16 z): its lower half is d */
#define FLAT_ZEROS(d, e)                                                                                     \
    "add %[f], %[k], %[x]\n" "lbu %[" d "], 0(%[k])\n" "lb %[f], 0(%[f])\n" "lbu %[" e "], 1(%[k])\n"        \
    "slli %[u], %[f], 28\n" "srai %[f], %[f], 4\n" "srai %[u], %[u], 12\n" "slli %[f], %[f], 16\n"           \
    "li %[a], 1\n" "sub %[u], %[a], %[u]\n" "sub %[f], %[a], %[f]\n"                                         \
    "mul %[" d "], %[" d "], %[u]\n" "mul %[" e "], %[" e "], %[f]\n" "add %[k], %[k], %[y]\n"
/* p * d - b * sum(x) for two rows: 4 and 2 instructions */
#define FLAT_DOTS(a, b, d, e)                                                                                \
    PV_PACK_H("%[" a "]", "%[k]", "%[" a "]") PV_PACK_H("%[" b "]", "%[k]", "%[" b "]")                      \
    PV_DOTSP_H("%[" a "]", "%[" a "]", "%[" d "]") PV_DOTSP_H("%[" b "]", "%[" b "]", "%[" e "]")
#define FLAT_MULS(a, b, d, e)                                                                                \
    P_MULS("%[" a "]", "%[" a "]", "%[" d "]") P_MULS("%[" b "]", "%[" b "]", "%[" e "]")
/* Loads the pair's products with a group of the step; group 0 last, because that advances p. */
#define FLAT_SUMS(a, b, group)                                                                             \
    "lw %[" a "], 4*" #group "*%[pitch](%[p])\n" "lw %[" b "], 4*(%[row] + " #group "*%[pitch])(%[p])\n"
#define FLAT_FIRST(a, b) "lw %[" b "], 4*%[row](%[p])\n" P_LW_POST("%[" a "]", "%[p]", "4")
#define FLAT_ADD(a, b, c)                                                                                    \
    SC_ROUND("%[" a "]", "%[drop]") SC_ROUND("%[" b "]", "%[drop]")                                          \
    P_MAC("%[h]", "%[" a "]", "%[" c "]") P_MAC("%[e]", "%[" b "]", "%[" c "]")
/* Adds one group, or both groups of a step. `fetch` and `inner` count instructions; `some` is 1 with
 * offsets. */
#define FLAT_LOOP(fetch, inner, some, OFFSET, FETCH, ...)                                                    \
    BEGIN(OFFSET)                                                                                            \
    SC_OUTER_LOOP_BEGIN("%[e]", 14 + 2 * some + fetch + inner)                                               \
    LOAD("k", 9) LOAD("y", 1) OFFSET(LOAD("x", 0)) FETCH                                                     \
    LOAD("f", 9) LOAD("u", 2) "add %[f], %[f], %[u]\n" STORE("f", 9) LOAD("u", 4)                            \
    SC_INNER_LOOP_BEGIN("%[u]", inner) __VA_ARGS__                                                           \
    P_SW_POST("%[h]", "%[acc]", "4") P_SW_POST("%[e]", "%[acc]", "4") SC_LOOP_END(inner) "\n"                \
    LOAD("e", 5) NEXT OFFSET("sub %[sum], %[sum], %[e]\n") SC_OUTER_LOOP_END(14 + 2 * some + fetch + inner)
#define FLAT_ONE(fetch, inner, some, OFFSET, FETCH, PRODUCTS)                                                \
    FLAT_LOOP(fetch, inner, some, OFFSET, FETCH("d0", "e0"),                                                 \
              FLAT_FIRST("f", "g") OFFSET(P_LW_POST_R("%[k]", "%[sum]", "%[stride]"))                        \
              P_LW_POST_R("%[u]", "%[c]", "%[stride]") PRODUCTS("f", "g", "d0", "e0")                        \
              "lw %[h], 0(%[acc])\n" "lw %[e], 4(%[acc])\n" FLAT_ADD("f", "g", "u"))
#define FLAT_TWO(fetch, inner, some, OFFSET, FETCH, PRODUCTS)                                                \
    FLAT_LOOP(2 * fetch, inner, some, OFFSET, FETCH("d0", "e0") FETCH("d1", "e1"),                           \
              FLAT_SUMS("f", "g", 1) OFFSET("lw %[k], 4(%[sum])\n") FLAT_FIRST("x", "y")                     \
              PRODUCTS("f", "g", "d1", "e1") OFFSET(P_LW_POST_R("%[k]", "%[sum]", "%[stride]"))              \
              "lw %[u], 4(%[c])\n" P_LW_POST_R("%[v]", "%[c]", "%[stride]") PRODUCTS("x", "y", "d0", "e0")   \
              "lw %[h], 0(%[acc])\n" "lw %[e], 4(%[acc])\n"                                                  \
              FLAT_ADD("f", "g", "u") FLAT_ADD("x", "y", "v"))
/* clang-format on */

/* The work of a core in a run: two rows of each of its blocks, for all tokens. */
static adding adding_of(const run *r, const int format, const sc_qvec *x, uint32_t tokens, int core) {
    const uint32_t pair = (uint32_t)core % PAIRS, first = (uint32_t)core / PAIRS;
    const int32_t block = EVERY * SC_ROWS * 4, n = (int32_t)tokens;
    return (adding){
        .offsets = SC_ROWS + (SC_SEVERAL_HAS(SC_FMT_ZEROS) ? -(int32_t)pair : 2 * (int32_t)pair),
        .group = (int32_t)r->group_bytes,
        .blocks = EVERY * (int32_t)r->block_bytes,
        .fold = sc_fold(format),
        .tokens = n,
        .back = n * 4 * (int32_t)(x[1].c - x[0].c),
        .sums = block * (int32_t)r->row_words - 4 * n,
        .acc = block * ACC_PITCH - 8 * n,
        .count = (int32_t)((r->count + EVERY - 1 - first) / EVERY),
        .t = r->blocks + first * r->block_bytes + 2 * pair,
        .c = x[0].c,
        .sum = SC_SEVERAL_HAS(SC_FMT_ASYM) ? x[0].sum : 0,
        .to = r->acc + (first * SC_ROWS + 2 * pair) * ACC_PITCH,
        .row = first * SC_ROWS + 2 * pair,
    };
}

#define OUT                                                                                                  \
    [p] "=&r"(p), [c] "=&r"(c), [acc] "=&r"(acc), [e] "=&r"(e), [f] "=&r"(f), [k] "=&r"(k), [h] "=&r"(h),    \
        [u] "=&r"(u)
#define ADDED(loop, ...) __asm__ volatile(loop : OUT, __VA_ARGS__ : IN : "memory")

/* Adds the products of the n groups of a step to the core's accumulators: see the formula above. */
SC_INLINE void add_rows(const run *r, const int format, adding *known, const sc_qvec *x, uint32_t n,
                        uint32_t buffer, int32_t drop) {
    if (known->count == 0) return;
    const int32_t stride = 4 * (int32_t)(x[1].c - x[0].c), row = 4 * (int32_t)r->row_words;
    const int asym = SC_SEVERAL_HAS(SC_FMT_ASYM), zeros = SC_SEVERAL_HAS(SC_FMT_ZEROS);
    const int more = n > 1;
    /* A program with zero points has no code space for another loop: it adds formats with offsets one group
     * at a time. */
    const int apart = (SC_SEVERAL_SOME & SC_FMT_ZEROS) != 0, two = more && !(apart && asym && !zeros);
    known->p = r->sums[buffer] + known->row * r->row_words, known->q = known->p + PITCH;
    if (two) known->c++, known->sum += asym;
    const uint8_t *t = known->t;
    int32_t p, c, acc, e, f, k, h, u, v, d0, d1, sum, b0, b1, q, x_, y_, d2, d3, b2, b3;
#define ROWS [d0] "=&r"(d0), [d1] "=&r"(d1)
#define OFFSETS [sum] "=&r"(sum), [b0] "=&r"(b0), [b1] "=&r"(b1)
#define MORE [b2] "=&r"(b2), [b3] "=&r"(b3)
#define IN [row] "r"(row), [stride] "r"(stride), [drop] "r"(drop), [known] "r"(known)
#define TWO [q] "=&r"(q), [x] "=&r"(x_), [y] "=&r"(y_), [v] "=&r"(v), [d2] "=&r"(d2), [d3] "=&r"(d3)
    for (int left = more && !two;; left--) {
        if (two && zeros)
            ADDED(ADD_TWO(6, 27, WITH, OF_ZEROS), ROWS, TWO, OFFSETS, MORE);
        else if (!apart && two && asym)
            ADDED(ADD_TWO(6, 19, WITH, THERE), ROWS, TWO, OFFSETS, MORE);
        else if (two)
            ADDED(ADD_TWO(0, 0, WITHOUT, THERE), ROWS, TWO);
        else if (zeros)
            ADDED(ADD_ONE(3, 15, WITH, OF_ZEROS), ROWS, OFFSETS);
        else if (asym)
            ADDED(ADD_ONE(3, 11, WITH, THERE), ROWS, OFFSETS);
        else
            ADDED(ADD_ONE(0, 0, WITHOUT, THERE), ROWS);
        known->t = t += (1 + two) * (int32_t)r->group_bytes;
        known->c++, known->sum += asym;
        if (left <= 0) break;
        known->p = known->q;
    }
#undef IN
#undef ROWS
#undef OFFSETS
#undef MORE
#undef TWO
}

#ifdef SC_FLAT_FORMAT
/* add_rows() for flat sums. */
SC_INLINE void add_flat_rows(const run *r, adding *known, const sc_qvec *x, uint32_t n, uint32_t buffer,
                             int32_t drop) {
    if (known->count == 0) return;
    const int32_t stride = 4 * (int32_t)(x[1].c - x[0].c);
    const int asym = (SC_FLAT_FORMAT & SC_FMT_ASYM) > 0, zeros = (SC_FLAT_FORMAT & SC_FMT_ZEROS) > 0;
    const uint8_t *t = known->t;
    const int two = n > 1;
    int32_t p, c, acc, e, f, k, h, u, v, g_, x_, y_, sum, a, d0, d1, e0, e1;
#define ROWS [g] "=&r"(g_), [x] "=&r"(x_), [y] "=&r"(y_), [d0] "=&r"(d0), [e0] "=&r"(e0)
#define OFFSETS [sum] "=&r"(sum), [a] "=&r"(a)
#define TWO [v] "=&r"(v), [d1] "=&r"(d1), [e1] "=&r"(e1)
#define IN                                                                                                   \
    [row] "i"(ROW_WORDS(2)), [pitch] "i"(PITCH), [stride] "r"(stride), [drop] "r"(drop), [known] "r"(known)
    known->p = r->sums[buffer] + known->row * ROW_WORDS(2);
    if (two && zeros)
        ADDED(FLAT_TWO(14, 28, 1, WITH, FLAT_ZEROS, FLAT_DOTS), ROWS, OFFSETS, TWO);
    else if (two && asym)
        ADDED(FLAT_TWO(9, 28, 1, WITH, FLAT_THERE, FLAT_DOTS), ROWS, OFFSETS, TWO);
    else if (two)
        ADDED(FLAT_TWO(3, 22, 0, WITHOUT, FLAT_PLAIN, FLAT_MULS), ROWS, TWO);
    else if (zeros)
        ADDED(FLAT_ONE(14, 16, 1, WITH, FLAT_ZEROS, FLAT_DOTS), ROWS, OFFSETS);
    else if (asym)
        ADDED(FLAT_ONE(9, 16, 1, WITH, FLAT_THERE, FLAT_DOTS), ROWS, OFFSETS);
    else
        ADDED(FLAT_ONE(3, 13, 0, WITHOUT, FLAT_PLAIN, FLAT_MULS), ROWS);
    known->t = t += n * r->group_bytes;
    known->c += n, known->sum += asym ? n : 0;
#undef ROWS
#undef OFFSETS
#undef TWO
#undef IN
}
#endif

SC_INLINE void add(const run *r, const int format, int is_flat, adding *known, const sc_qvec *x, uint32_t n,
                   uint32_t buffer, int32_t drop) {
#ifdef SC_FLAT_FORMAT
    if (is_flat) {
        add_flat_rows(r, known, x, n, buffer, drop - SC_W4_FOLD);
        return;
    }
#endif
    (void)is_flat;
    add_rows(r, format, known, x, n, buffer, drop);
}

#endif
