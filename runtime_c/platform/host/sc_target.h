/* SPDX-License-Identifier: Apache-2.0
 * Host: the program runs natively, one worker or, with -DSC_CORES=N, N threads.
 *
 *   -DSC_CORES=N      N workers as threads, with a real barrier (for thread and address sanitizers)
 *   -DSC_LAZY_DMA     a transfer moves nothing until it is waited for, so that a program that uses
 *                     the bytes too early computes garbage instead of being right by luck
 *   -DSC_SIMD=0       the dot products as the 32-bit targets compute them, word by word
 */
#ifndef SC_TARGET_H
#define SC_TARGET_H

#include <stdint.h> /* __GLIBC__ */

#ifndef SC_CORES
#define SC_CORES 1
#endif
#if SC_CORES > 1 /* what only the cores of a SoC would do, threads can be seen to do right */
#define SC_TEAM (SC_CORES + 1)
#else
#define SC_TEAM SC_CORES
#endif
#define SC_XPULP 0
#define SC_ALL_LOGITS 1
#ifndef SC_SIMD
#define SC_SIMD 1
#endif
/* The matrix kernel exists twice in the program, which takes the one for the processor it runs on;
 * sanitizers are not ready when that is decided. */
#if SC_SIMD && defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) &&      \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define SC_CLONES __attribute__((target_clones("avx2", "default")))
#endif

#define SC_L1 __attribute__((aligned(16)))
#define SC_L1_LARGE SC_L1
#define SC_L1_ARENA(name, bytes) SC_L1 uint8_t name[bytes]
#define SC_L2 __attribute__((aligned(16)))
#define SC_WMEM __attribute__((aligned(16)))
#define SC_L1_DATA __attribute__((aligned(16)))
#define SC_HOT __attribute__((noinline))

#endif
