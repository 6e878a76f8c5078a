/* SPDX-License-Identifier: Apache-2.0
 * Converts between bytes and the bit planes of N-EUREKA's 1x1 mode. A word has four inputs: bit b of input j
 * is bit 8 j + b as bytes, and bit 4 b + j as planes. */
#ifndef SC_PLANES_H
#define SC_PLANES_H

#include "sc_kernels.h"

/* A step of the bit permutation: swaps each bit that has u but not v set in its index with the one that has v
 * but not u. with_v: mask of the latter. */
static inline uint32_t exchanged(uint32_t x, int u, int v, uint32_t with_v) {
    const int apart = (1 << u) - (1 << v);
    const uint32_t t = (x >> apart ^ x) & with_v;
    return x ^ t ^ t << apart;
}

/* Planes to bytes. */
static inline uint32_t bytes_of(uint32_t planes) {
    planes = exchanged(planes, 4, 1, 0x0000CCCCu);
    planes = exchanged(planes, 3, 0, 0x00AA00AAu);
    planes = exchanged(planes, 2, 1, 0x0C0C0C0Cu);
    return exchanged(planes, 1, 0, 0x22222222u);
}

/* Bytes to planes. */
static inline uint32_t planes_of(uint32_t bytes) {
    bytes = exchanged(bytes, 1, 0, 0x22222222u);
    bytes = exchanged(bytes, 2, 1, 0x0C0C0C0Cu);
    bytes = exchanged(bytes, 3, 0, 0x00AA00AAu);
    return exchanged(bytes, 4, 1, 0x0000CCCCu);
}

#endif
