/* SPDX-License-Identifier: Apache-2.0
 * Hadamard rotation of values for a cache of 4 bits. */
#ifndef SC_ROTATE_H
#define SC_ROTATE_H

#include "sc_attention.h"

/* Values are stored after a Hadamard rotation of blocks of 2^SC_ROTATION_BITS channels, and results are rotated back. */
#define SC_ROTATION_BITS __builtin_ctz(SC_HEAD_DIM)

/* rotate_heads() in numerics, modulo 2^32 */
SC_HOT static void rotate_head(int32_t *x) {
    for (int half = 1; half < 1 << SC_ROTATION_BITS; half *= 2)
        for (int32_t *a = x; a < x + SC_HEAD_DIM; a += half)
            for (int32_t *const end = a + half; a < end; a++) {
                const uint32_t first = (uint32_t)*a, second = (uint32_t)a[half];
                *a = (int32_t)(first + second), a[half] = (int32_t)(first - second);
            }
}

#endif
