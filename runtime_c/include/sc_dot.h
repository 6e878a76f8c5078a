/* SPDX-License-Identifier: Apache-2.0
 * The dot products of a block's rows with one segment of an activation vector, a file per storage
 * format (compiler/shrinkc/storage documents the words).  Each has
 *
 *   SC_W<bits>_INPUTS  inputs of a row that are stored together
 *   SC_W<bits>_FOLD    log2 of what its sums are multiplied by
 *   sc_dot_w<bits>()   a += 2^FOLD * sum of w * x over the next `words` activation words; w and x move on
 *   sc_get_w<bits>()   one weight, for an embedding row
 *
 * The eight sums are named fields, not an array, and every function is inlined: they live in
 * registers.  Where an instruction set has a loop of its own, that loop counts its instructions by
 * hand and the assembler checks the count.
 */
#ifndef SC_DOT_H
#define SC_DOT_H

#include "sc_model.h"
#include "sc_num.h"

typedef struct {
    int32_t s0, s1, s2, s3, s4, s5, s6, s7;
} sc_rows;

/* X(row) for each of the 8 rows of a block */
#define SC_EACH_ROW(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)

SC_INLINE int32_t sc_load32(const void *p) {
    int32_t v;
    __builtin_memcpy(&v, __builtin_assume_aligned(p, 4), 4);
    return v;
}

#define SC_DOT_OUT(r) [a##r] "+&r"(a->s##r), /* of assembly */

#if SC_SIMD && !SC_XPULP

/* The same sums in the compiler's vectors, for hosts: a product is at most 128 * 128, which fits 16
 * bits; every row has two sums of two products each per word. */
typedef int8_t sc_v_bytes __attribute__((vector_size(4 * SC_ROWS)));
typedef int32_t sc_v_words __attribute__((vector_size(4 * SC_ROWS)));
typedef int16_t sc_v_halves __attribute__((vector_size(8 * SC_ROWS)));
typedef int32_t sc_v_sums __attribute__((vector_size(8 * SC_ROWS)));

/* *sums += rows of *w times the four bytes of x; pointers, because vectors are no portable arguments */
SC_INLINE void sc_v_dot(sc_v_sums *sums, const sc_v_words *w, int32_t x) {
    const sc_v_words spread = *w * 0 + x;
    const sc_v_halves p = __builtin_convertvector((sc_v_bytes)*w, sc_v_halves) *
                          __builtin_convertvector((sc_v_bytes)spread, sc_v_halves);
    const sc_v_sums pairs = (sc_v_sums)p;
    *sums += (pairs << 16 >> 16) + (pairs >> 16);
}

SC_INLINE void sc_v_load(sc_v_words *rows, const uint8_t *w) { __builtin_memcpy(rows, w, sizeof *rows); }

#define SC_V_ROW(r) a->s##r += sums[2 * r] + sums[2 * r + 1];

#endif

#include "formats.h" /* generated: the files of the formats that this model has */

#endif
