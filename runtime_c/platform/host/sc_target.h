/* SPDX-License-Identifier: Apache-2.0
 * Host: a native program with one worker, or N threads as workers.
 *
 *   -DSC_CORES=N      N worker threads with real barriers (for thread and address sanitizers)
 *   -DSC_LAZY_DMA     copies data only at the wait: a program that reads too early gets wrong results
 *   -DSC_SIMD=0       dot products word by word, as on 32-bit targets */
#ifndef SC_TARGET_H
#define SC_TARGET_H

#include <stdint.h> /* __GLIBC__ */

#ifndef SC_CORES
#define SC_CORES 1
#endif
#if SC_CORES > 1 /* threads test the concurrency of a chip */
#define SC_TEAM (SC_CORES + 1)
#else
#define SC_TEAM SC_CORES
#endif
#define SC_XPULP 0
#define SC_ALL_LOGITS 1
#ifndef SC_SIMD
#define SC_SIMD 1
#endif
/* Compiles the matrix kernel twice and selects one for the processor at start. Not with sanitizers, which are
 * not initialised yet when it is selected. */
#if SC_SIMD && defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) &&      \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define SC_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define SC_CLONES
#endif

#define SC_L1 __attribute__((aligned(16)))
#define SC_L1_LARGE SC_L1
#define SC_L1_ARENA(name, bytes) SC_L1 uint8_t name[bytes]
#define SC_L2 __attribute__((aligned(16)))
#define SC_WMEM __attribute__((aligned(16)))
#define SC_L1_DATA __attribute__((aligned(16)))
#define SC_L1_TABLES SC_L1_DATA
#define SC_HOT __attribute__((noinline))

#endif
