/* SPDX-License-Identifier: Apache-2.0
 * SoCs of the PULP family: workers (cores 0 and up) and a controller behind them that runs sc_main().
 *
 * Barriers and DMA are a handful of instructions and sit in the middle of kernels, hence inline.
 * DMA may be used by any worker and by the controller; the core that started a transfer waits.
 * There are 16 counters in all: the cores together may have 16 transfers outstanding, a 17th start
 * waits for one to end.
 */
#ifndef SC_TARGET_H
#define SC_TARGET_H

#include "cluster.h"

#define SC_TEAM (SC_CORES + 1)
#ifndef SC_XPULP
#define SC_XPULP 1
#endif

/* The names begin with .bss so that the compiler gives them no bytes in the object file and refuses
 * an initialiser, which nothing would load. */
#define SC_L1 __attribute__((section(".bss.sc_l1"), aligned(16)))
#define SC_L1_LARGE __attribute__((section(".bss.sc_l1_large"), aligned(16)))
/* In assembly, as a symbol without a size: to one that it knows to be large the linker gives no short address. */
#define SC_L1_ARENA_OF(name, bytes)                                                                          \
    __asm__(".pushsection .bss.sc_l1_arena, \"aw\", @nobits\n.balign 16\n.globl " #name "\n" #name           \
            ":\n.zero " #bytes "\n.popsection")
#define SC_L1_ARENA(name, bytes) SC_L1_ARENA_OF(name, bytes)
#define SC_L2 __attribute__((section(".bss.sc_l2"), aligned(16)))
#define SC_WMEM __attribute__((section(".bss.sc_wmem"), aligned(16)))
#define SC_L1_DATA __attribute__((section(".sc_l1_data"), aligned(16)))
/* "hot" gathers these functions in the link (.text.hot), so that they do not evict each other from
 * the 4 KiB instruction cache, whose lines have 16 bytes. */
#define SC_HOT __attribute__((noinline, hot, aligned(16)))

/* What a cluster core may be woken by except inside a DMA wait. */
#define SC_EVENTS (EVENT_BARRIER | EVENT_DISPATCH)

typedef uint32_t sc_dma; /* the transfer's counter, 0..15 */

/* A span in which a core waits for a transfer: counted in a build with SC_PROFILE, else nothing. */
#ifdef SC_PROFILE
#include "sc_counters.h"
#else
#define SC_WAIT_BEGIN
#define SC_WAIT_END
#endif

static inline void sc_barrier(void) { (void)elw(EU_BARRIER_WAIT(WORKER_BARRIER)); }
#define SC_MEET_AT EU_BARRIER_WAIT(TEAM_BARRIER) /* for those who wait there themselves */
static inline void sc_meet(void) { (void)elw(SC_MEET_AT); }

static inline void sc_dma_command(uintptr_t l1, uintptr_t ext, uint32_t bytes, uint32_t direction) {
    REG(DMA_COMMAND) = bytes | direction | DMA_LINEAR | DMA_EVENT;
    REG(DMA_COMMAND) = l1;
    REG(DMA_COMMAND) = ext;
}

/* A transfer longer than one command takes: they share one counter. */
sc_dma sc_dma_start_long(uintptr_t l1, uintptr_t ext, uint32_t bytes, uint32_t direction);

static inline sc_dma sc_dma_start(uintptr_t l1, uintptr_t ext, uint32_t bytes, uint32_t direction) {
    if (__builtin_expect(bytes > DMA_MAX_BYTES, 0)) return sc_dma_start_long(l1, ext, bytes, direction);
    const sc_dma counter = REG(DMA_COMMAND);
    sc_dma_command(l1, ext, bytes, direction);
    return counter;
}

static inline sc_dma sc_dma_in(void *l1, const void *ext, uint32_t bytes) {
    __asm__ volatile("" ::: "memory"); /* the registers are volatile, the bytes they move are not */
    return sc_dma_start((uintptr_t)l1, (uintptr_t)ext, bytes, DMA_TO_L1);
}

static inline sc_dma sc_dma_out(void *ext, const void *l1, uint32_t bytes) {
    __asm__ volatile("" ::: "memory");
    return sc_dma_start((uintptr_t)l1, (uintptr_t)ext, bytes, 0);
}

/* The event may be an older transfer's: hence the loop.  "Wait and clear" clears every event of the
 * mask, hence a mask with the DMA alone. */
static inline void sc_dma_wait(sc_dma counter) {
    SC_WAIT_BEGIN
    while ((REG(DMA_STATUS) >> counter & 1) != 0) {
        REG(EU_MASK) = EVENT_DMA;
        (void)elw(EU_WAIT_CLEAR);
        REG(EU_MASK) = SC_EVENTS;
    }
    REG(DMA_STATUS) = 1u << counter;
    __asm__ volatile("" ::: "memory");
    SC_WAIT_END
}

static inline uint32_t sc_time(void) { return REG(TIMER_COUNT); }

#ifdef SC_NEUREKA
#include "sc_neureka.h"
#endif

#endif
