/* SPDX-License-Identifier: Apache-2.0
 * Bit planes of N-EUREKA's 1x1 mode: bit b of byte j of a word of four inputs is its bit 4 b + j there. */
#ifndef SC_PLANES_H
#define SC_PLANES_H

#include <stdint.h>

/* Bits whose number has bit u, and not v, and those that have v, and not u, change places. */
static inline uint32_t exchanged(uint32_t x, int u, int v, uint32_t with_v) {
    const int apart = (1 << u) - (1 << v);
    const uint32_t t = (x >> apart ^ x) & with_v;
    return x ^ t ^ t << apart;
}

/* What is number 4 b + j becomes 8 j + b. */
static inline uint32_t bytes_of(uint32_t planes) {
    planes = exchanged(planes, 4, 1, 0x0000CCCCu);
    planes = exchanged(planes, 3, 0, 0x00AA00AAu);
    planes = exchanged(planes, 2, 1, 0x0C0C0C0Cu);
    return exchanged(planes, 1, 0, 0x22222222u);
}

/* The other way round. */
static inline uint32_t planes_of(uint32_t bytes) {
    bytes = exchanged(bytes, 1, 0, 0x22222222u);
    bytes = exchanged(bytes, 2, 1, 0x0C0C0C0Cu);
    bytes = exchanged(bytes, 3, 0, 0x00AA00AAu);
    return exchanged(bytes, 4, 1, 0x0000CCCCu);
}

#endif
