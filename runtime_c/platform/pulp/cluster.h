/* SPDX-License-Identifier: Apache-2.0
 * Registers of PULP chips that the platform uses. Offsets and bits are verified on GVSoC. Chip-specific
 * values are in regs.h. */
#ifndef SC_CLUSTER_H
#define SC_CLUSTER_H

#include <stdint.h>

#include "regs.h"
#include "sc_xpulp.h"

#define REG(address) (*(volatile uint32_t *)(uintptr_t)(address))

/* ---- cluster ---- */
#define CLUSTER_FETCH_ENABLE 0x10200008u /* one bit per core */
#define CLUSTER_BOOT(core) (0x10200040u + 4u * (core))
#define CLUSTER_CORES (SC_CORES + 1u) /* the workers and the controller */
#define CONTROLLER ((uint32_t)SC_CORES)

#define TIMER_CONFIG 0x10200400u /* 1 = run */
#define TIMER_COUNT 0x10200408u

#define ICACHE_ENABLE 0x10201400u

/* ---- event unit, registers of the calling core ---- */
#define EU_MASK 0x10204000u
#define EU_WAIT_CLEAR 0x1020403Cu
#define EU_DISPATCH 0x10204080u /* FIFO: the controller writes; every worker reads each word */
#define EU_DISPATCH_TEAM 0x10204084u
#define EU_BARRIER_MEMBERS(n) (0x10204200u + 0x20u * (n))
#define EU_BARRIER_TARGETS(n) (0x1020420Cu + 0x20u * (n))
#define EU_BARRIER_WAIT(n) (0x1020421Cu + 0x20u * (n)) /* arrive, sleep, clear */

#define EVENT_DMA (1u << 8)
#define EVENT_BARRIER (1u << 16)
#define EVENT_DISPATCH (1u << 18)

#define TEAM_BARRIER 0u   /* the workers and the controller */
#define WORKER_BARRIER 1u /* the workers */

/* Load that puts the core to sleep until the event unit answers (p.elw). The address is constant: several
 * loads share the instruction for its upper bits. */
#define ELW_PAGE(address) ((address) & ~0xFFFu)
#define ELW_OFFSET(address) ((address) & 0xFFFu) /* below 0x800 */
static inline __attribute__((always_inline)) uint32_t elw(const uint32_t address) {
    uint32_t value;
    __asm__ volatile(P_ELW("%0", "%1", SC_ALONE("%2"))
                     : "=r"(value)
                     : "r"(ELW_PAGE(address)), "i"(ELW_OFFSET(address))
                     : "memory");
    return value;
}

static inline uint32_t hart_id(void) {
    uint32_t id;
    __asm__ volatile("csrr %0, 0xF14" : "=r"(id));
    return id; /* 0 .. in the cluster; 0x3E0: fabric controller */
}

/* ---- DMA (mchan), channel of the calling core ---- */
#define DMA_COMMAND 0x10204400u /* read: allocates a counter; write: command, L1 address, other address */
#define DMA_STATUS 0x10204404u  /* read: busy counters; write 1 << n: frees counter n */
#define DMA_TO_L1 (1u << 17)
#define DMA_LINEAR (1u << 18)
#define DMA_EVENT (1u << 20)   /* wakes the core when its counter reaches 0 */
#define DMA_MAX_BYTES 0x10000u /* the field allows 131071; a power of two keeps alignment */

/* ---- SoC ---- */
#define SOC_EXIT 0x1A1040A0u /* write 0x80000000 | code: ends the simulation */
#define STDOUT_BYTE(cluster, core) (0x1A10F000u + ((cluster) << 7) + ((core) << 3))

#if defined(SC_HAS_FLASH) || SC_RAM_BYTES > 0
#define UDMA_CLOCKS 0x1A102000u /* one bit per peripheral */
#define UDMA_HYPERBUS_CLOCK (1u << HYPERBUS_PERIPHERAL)
/* flash channel, then HyperRAM channel, then shared registers */
#define HYPER(offset) (0x1A102080u + 0x80u * HYPERBUS_PERIPHERAL + (offset))
#define HYPER_L2_ADDRESS HYPER(0x00)
#define HYPER_BYTES HYPER(0x04)
#define HYPER_GO HYPER(0x08)
#define HYPER_GO_TRANSFER 0x10u
#define HYPER_COMMAND HYPER(0x18) /* bit 2 read, bit 0 linear burst */
#define HYPER_FLASH_ADDRESS HYPER(0x1C)
#define HYPER_STATUS HYPER(0x24)                    /* bit 0: busy */
#define HYPER_QUEUED(status) ((status) >> 1 & 255u) /* transfers outstanding */
#define HYPER_2D HYPER(0x28)
#define HYPER_L2_2D HYPER(0x34)
#define RAM(offset) HYPER(0x80 + (offset)) /* HyperRAM channel: registers are copied at the start */
#define RAM_L2_ADDRESS(direction) RAM(12u * (direction))
#define RAM_BYTES(direction) RAM(12u * (direction) + 4u)
#define RAM_GO(direction) RAM(12u * (direction) + 8u)
#define RAM_COMMAND RAM(0x18)
#define RAM_ADDRESS RAM(0x1C)
#define RAM_STATUS RAM(0x24)
#define RAM_2D RAM(0x28)
#define RAM_L2_2D RAM(0x34)
#define HYPER_PAGE_BOUND HYPER(0x100) /* 4: bursts are not split at pages */
#define HYPER_LATENCY HYPER(0x104)
#define HYPER_CHIP_SELECT HYPER(0x120) /* 0: HyperRAM, 1: HyperFlash */
#endif

/* ---- performance counters of a core, in builds with SC_PROFILE: each core reads its own ---- */
#ifdef SC_PROFILE

/* mcycle counts while a core sleeps; the performance counters (PCCR, from 0x780) do not. */
#define SC_CSR(csr)                                                                                          \
    ({                                                                                                       \
        uint32_t v_;                                                                                         \
        __asm__ volatile("csrr %0, " #csr : "=r"(v_)::"memory");                                             \
        v_;                                                                                                  \
    })

enum { SC_ELAPSED, SC_ACTIVE, SC_INSTRUCTIONS, SC_LOAD_STALLS, SC_ICACHE, SC_TRANSFERS, SC_COUNTERS };

typedef struct {
    uint32_t of[SC_COUNTERS];
} sc_counters;

/* Cycles of each core in waits for transfers since the restart: elapsed, and active. */
extern struct sc_waits {
    uint32_t elapsed, active;
} sc_waits[CLUSTER_CORES];

static inline void sc_counters_on(void) {
    __asm__ volatile("csrw 0xCC0, %0" ::"r"(0x17)); /* cycles, instructions, load stalls, cache misses */
    __asm__ volatile("csrw 0xCC1, %0" ::"r"(1));
}

static inline uint32_t sc_counters_begin(void) { return SC_CSR(mscratch); } /* cycle of the restart */

/* Counters of the calling core since its restart; *now: current cycle. The cycle is read last here, and first
 * in the restart, so that active cycles never exceed elapsed ones. */
static inline sc_counters sc_counters_read(uint32_t *now) {
    const uint32_t active = SC_CSR(0x780), instructions = SC_CSR(0x781), stalls = SC_CSR(0x782);
    const uint32_t icache = SC_CSR(0x784), cycle = SC_CSR(mcycle), elapsed = cycle - sc_counters_begin();
    const struct sc_waits *waits = &sc_waits[hart_id()];
    const sc_counters c = {{elapsed, active - waits->active, instructions, stalls, icache, waits->elapsed}};
    *now = cycle;
    return c;
}

/* Returns the current cycle. */
static inline uint32_t sc_counters_restart(void) {
    sc_waits[hart_id()] = (struct sc_waits){0, 0};
    const uint32_t now = SC_CSR(mcycle);
    __asm__ volatile("csrw 0x79F, zero" ::: "memory");           /* clears all counters */
    __asm__ volatile("csrw mscratch, %0" ::"r"(now) : "memory"); /* mcycle cannot be written */
    return now;
}

/* Builds for a trace (TRACE=1) also keep the begin and end of waits and of N-EUREKA's work. A ring per core,
 * which the core fills and port_profile.c empties. */
#ifndef SC_SPANS
#define SC_SPANS 0
#endif
#define SC_SPAN_ROOM 64 /* a power of two */
enum sc_unit { SC_UNIT_DMA, SC_UNIT_HYPERBUS, SC_UNIT_NEUREKA, SC_UNITS };
extern struct sc_spans {
    uint32_t used, reported, lost;
    struct {
        uint32_t unit, begin, end;
    } of[SC_SPAN_ROOM];
} sc_spans[CLUSTER_CORES];
void sc_span_done(enum sc_unit unit, uint32_t begin); /* it ends now */

/* First cycle of N-EUREKA's jobs in progress; 0: it is idle. One core at a time writes jobs. */
extern uint32_t sc_neureka_since;
static inline void sc_neureka_begun(void) {
    if (sc_neureka_since == 0) sc_neureka_since = SC_CSR(mcycle);
}
static inline void sc_neureka_ended(void) {
    if (sc_neureka_since) sc_span_done(SC_UNIT_NEUREKA, sc_neureka_since);
    sc_neureka_since = 0;
}

#define SC_WAIT_BEGIN const uint32_t from_ = SC_CSR(mcycle), active_ = SC_CSR(0x780);
#define SC_WAIT_END(unit)                                                                                    \
    {                                                                                                        \
        struct sc_waits *w_ = &sc_waits[hart_id()];                                                          \
        w_->elapsed += SC_CSR(mcycle) - from_;                                                               \
        w_->active += SC_CSR(0x780) - active_;                                                               \
        if (SC_SPANS) sc_span_done(unit, from_);                                                             \
    }

#else
#define SC_WAIT_BEGIN
#define SC_WAIT_END(unit)
#define SC_SPANS 0
#define sc_neureka_begun() ((void)0)
#define sc_neureka_ended() ((void)0)
#endif

#endif
