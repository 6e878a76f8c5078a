/* SPDX-License-Identifier: Apache-2.0
 * Performance counters of a core, for builds with SC_PROFILE. Each core reads its own. */
#ifndef SC_COUNTERS_H
#define SC_COUNTERS_H

#include "cluster.h"

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
 * which the core fills and sc_profile.c empties. */
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

#endif
