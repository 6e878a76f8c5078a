/* SPDX-License-Identifier: Apache-2.0
 * Port to PULP chips: workers and transfers. */
#include "sc_platform.h"

/* ---- DMA ---- */

sc_dma sc_dma_start_long(uintptr_t l1, uintptr_t ext, uint32_t bytes, uint32_t direction) {
    const sc_dma counter = REG(DMA_COMMAND);
    for (uint32_t n; bytes; bytes -= n, l1 += n, ext += n) {
        n = bytes < DMA_MAX_BYTES ? bytes : DMA_MAX_BYTES;
        sc_dma_command(l1, ext, n, direction);
    }
    return counter;
}

#ifdef SC_NEUREKA
SC_L1 uint32_t sc_neureka_configs[2];
#endif

/* ---- profile ---- */

#ifdef SC_PROFILE
struct sc_waits sc_waits[CLUSTER_CORES];
#if SC_SPANS
struct sc_spans sc_spans[CLUSTER_CORES];
uint32_t sc_neureka_since;

void sc_span_done(enum sc_unit unit, uint32_t begin) {
    const uint32_t end = SC_CSR(mcycle);
    struct sc_spans *s = &sc_spans[hart_id()];
    if (s->used - s->reported == SC_SPAN_ROOM) {
        s->lost++;
        return;
    }
    const uint32_t at = s->used % SC_SPAN_ROOM;
    s->of[at].unit = unit, s->of[at].begin = begin, s->of[at].end = end;
    s->used++;
}
#endif
#endif

#ifdef SC_HAS_FLASH
/* ---- flash ---- */

void sc_flash_start(void *l2, uint32_t flash_offset, uint32_t bytes) {
    __asm__ volatile("" ::: "memory");
    REG(HYPER_FLASH_ADDRESS) = flash_offset;
    REG(HYPER_L2_ADDRESS) = (uintptr_t)l2;
    REG(HYPER_BYTES) = bytes;
    REG(HYPER_GO) = HYPER_GO_TRANSFER;
}

void sc_flash_wait(uint32_t left) {
    SC_WAIT_BEGIN
    while (left > 0 ? HYPER_QUEUED(REG(HYPER_STATUS)) > left : (REG(HYPER_STATUS) & 1) != 0) {
    }
    __asm__ volatile("" ::: "memory");
    SC_WAIT_END(SC_UNIT_HYPERBUS)
}
#endif

#if SC_RAM_BYTES > 0

/* Both channels share the chip select. It stays on flash except at the start of a HyperRAM transfer. */
void sc_ram_start(void *l2, uint32_t ram_offset, uint32_t bytes, enum sc_direction direction) {
    __asm__ volatile("" ::: "memory");
    REG(HYPER_CHIP_SELECT) = 0;
    REG(RAM_ADDRESS) = ram_offset;
    REG(RAM_COMMAND) = direction == SC_FROM_RAM ? 5 : 1;
    REG(RAM_L2_ADDRESS(direction)) = (uintptr_t)l2;
    REG(RAM_BYTES(direction)) = bytes;
    REG(RAM_GO(direction)) = HYPER_GO_TRANSFER;
    REG(HYPER_CHIP_SELECT) = 1;
}

void sc_ram_wait(void) {
    SC_WAIT_BEGIN
    while ((REG(RAM_STATUS) & 1) != 0) {
    }
    __asm__ volatile("" ::: "memory");
    SC_WAIT_END(SC_UNIT_HYPERBUS)
}

#endif

/* ---- workers ---- */

static void start(sc_worker_fn fn, void *arg) {
    __asm__ volatile("" ::: "memory");
    REG(EU_DISPATCH) = (uintptr_t)fn;
    REG(EU_DISPATCH) = (uintptr_t)arg;
}

SC_HOT void sc_run_workers(sc_worker_fn fn, void *arg) {
    start(fn, arg);
    sc_team_barrier();
}

SC_HOT void sc_run_team(sc_worker_fn fn, void *arg) {
    start(fn, arg);
    fn(arg, CONTROLLER);
    sc_team_barrier();
}
