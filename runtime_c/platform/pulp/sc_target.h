/* SPDX-License-Identifier: Apache-2.0
 * PULP chips: workers are cores 0 .. SC_CORES - 1; the controller is core SC_CORES and calls the
 * library.
 *
 * Barriers and DMA are inline, because they are few instructions in the middle of kernels. Any core may use
 * the DMA, and waits for its own transfers. The DMA has 16 counters for all cores: a 17th transfer waits
 * until one ends. */
#ifndef SC_TARGET_H
#define SC_TARGET_H

#define SC_XPULP 1

#include "cluster.h"

#define SC_TEAM (SC_CORES + 1)
#define SC_ALL_LOGITS 0
#define SC_SIMD 0
#define SC_CLONES

/* ".bss": no bytes in the object file, and the compiler rejects initialisers, which nothing would load. */
#define SC_L1 __attribute__((section(".bss.sc_l1"), aligned(16)))
#define SC_L1_LARGE __attribute__((section(".bss.sc_l1_large"), aligned(16)))
/* In assembly, without a symbol size: the linker gives no short address to symbols that it knows to be
 * large. */
#define SC_L1_ARENA_OF(name, bytes)                                                                          \
    __asm__(".pushsection .bss.sc_l1_arena, \"aw\", @nobits\n.balign 16\n.globl " #name "\n" #name           \
            ":\n.zero " #bytes "\n.popsection")
#define SC_L1_ARENA(name, bytes) SC_L1_ARENA_OF(name, bytes)
#define SC_L2 __attribute__((section(".bss.sc_l2"), aligned(16)))
#define SC_WMEM __attribute__((section(".bss.sc_wmem"), aligned(16)))
#define SC_L1_DATA __attribute__((section(".sc_l1_data"), aligned(16)))
#define SC_L1_TABLES                                                                                         \
    __attribute__((section(".sc_l1_data.tables"), aligned(16))) /* placed before the others */
/* "hot": the linker groups these functions (.text.hot), so that they do not evict each other from the 4 KiB
 * instruction cache with lines of 16 bytes. */
#define SC_HOT __attribute__((noinline, hot, aligned(16)))

/* Events that may wake a cluster core outside DMA waits. */
#define SC_EVENTS (EVENT_BARRIER | EVENT_DISPATCH)

typedef uint32_t sc_dma; /* counter of the transfer, 0 .. 15 */

static inline void sc_worker_barrier(void) { (void)elw(EU_BARRIER_WAIT(WORKER_BARRIER)); }
#define SC_TEAM_BARRIER_AT EU_BARRIER_WAIT(TEAM_BARRIER) /* for code that waits there itself */
static inline void sc_team_barrier(void) { (void)elw(SC_TEAM_BARRIER_AT); }

static inline void sc_dma_command(uintptr_t l1, uintptr_t ext, uint32_t bytes, uint32_t direction) {
    REG(DMA_COMMAND) = bytes | direction | DMA_LINEAR | DMA_EVENT;
    REG(DMA_COMMAND) = l1;
    REG(DMA_COMMAND) = ext;
}

/* For transfers longer than one command: all commands share one counter. */
sc_dma sc_dma_start_long(uintptr_t l1, uintptr_t ext, uint32_t bytes, uint32_t direction);

static inline sc_dma sc_dma_start(uintptr_t l1, uintptr_t ext, uint32_t bytes, uint32_t direction) {
    if (__builtin_expect(bytes > DMA_MAX_BYTES, 0)) return sc_dma_start_long(l1, ext, bytes, direction);
    const sc_dma counter = REG(DMA_COMMAND);
    sc_dma_command(l1, ext, bytes, direction);
    return counter;
}

static inline sc_dma sc_dma_in(void *l1, const void *ext, uint32_t bytes) {
    __asm__ volatile("" ::: "memory"); /* compiler barrier: the data are not volatile */
    return sc_dma_start((uintptr_t)l1, (uintptr_t)ext, bytes, DMA_TO_L1);
}

static inline sc_dma sc_dma_out(void *ext, const void *l1, uint32_t bytes) {
    __asm__ volatile("" ::: "memory");
    return sc_dma_start((uintptr_t)l1, (uintptr_t)ext, bytes, 0);
}

/* A loop, because the event may be an older transfer's. The mask has only the DMA, because "wait and clear"
 * clears all events in it. */
static inline void sc_dma_wait(sc_dma counter) {
    SC_WAIT_BEGIN
    while ((REG(DMA_STATUS) >> counter & 1) != 0) {
        REG(EU_MASK) = EVENT_DMA;
        (void)elw(EU_WAIT_CLEAR);
        REG(EU_MASK) = SC_EVENTS;
    }
    REG(DMA_STATUS) = 1u << counter;
    __asm__ volatile("" ::: "memory");
    SC_WAIT_END(SC_UNIT_DMA)
}

static inline uint32_t sc_time(void) { return REG(TIMER_COUNT); }

#ifdef SC_NEUREKA
#include "sc_neureka.h"
#endif

#endif
