/* SPDX-License-Identifier: Apache-2.0
 * One RV32IMC core, the only worker, without a C library. What is constant needs no section of its own: it
 * lies with all other constants. */
#ifndef SC_TARGET_H
#define SC_TARGET_H

#define SC_CORES 1
#define SC_TEAM SC_CORES
#define SC_ALL_LOGITS 0
#define SC_SIMD 0
#define SC_CLONES
#define SC_XPULP 0

#define SC_L1 __attribute__((aligned(16)))
#define SC_L1_LARGE SC_L1
#define SC_L1_ARENA(name, bytes) SC_L1 uint8_t name[bytes]
#define SC_L2 __attribute__((aligned(16)))
#define SC_WMEM __attribute__((aligned(16)))
#define SC_L1_DATA __attribute__((aligned(16)))
#define SC_L1_TABLES SC_L1_DATA
#define SC_HOT __attribute__((noinline))

#endif
