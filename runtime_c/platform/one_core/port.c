/* SPDX-License-Identifier: Apache-2.0
 * Port to one RV32 core: one worker; transfers are copies. */
#include "sc_platform.h"

/* ---- the one worker ---- */

void sc_run_workers(sc_worker_fn fn, void *arg) { fn(arg, 0); }

void sc_run_team(sc_worker_fn fn, void *arg) { fn(arg, 0); }

void sc_worker_barrier(void) {}

void sc_team_barrier(void) {}

/* ---- transfers: complete when started ---- */

sc_dma sc_dma_in(void *l1, const void *ext, uint32_t bytes) {
    __builtin_memcpy(l1, ext, bytes);
    return 0;
}

sc_dma sc_dma_out(void *ext, const void *l1, uint32_t bytes) {
    __builtin_memcpy(ext, l1, bytes);
    return 0;
}

void sc_dma_wait(sc_dma handle) { (void)handle; }

#ifdef SC_HAS_FLASH
extern const uint8_t sc_blob_flash[];

void sc_flash_start(void *l2, uint32_t flash_offset, uint32_t bytes) {
    __builtin_memcpy(l2, sc_blob_flash + flash_offset, bytes);
}

void sc_flash_wait(uint32_t left) { (void)left; }
#endif

#if SC_RAM_BYTES > 0
static uint8_t ram[SC_RAM_BYTES];

void sc_ram_start(void *l2, uint32_t ram_offset, uint32_t bytes, enum sc_direction direction) {
    if (direction == SC_FROM_RAM) {
        __builtin_memcpy(l2, ram + ram_offset, bytes);
    } else {
        __builtin_memcpy(ram + ram_offset, l2, bytes);
    }
}

void sc_ram_wait(void) {}
#endif

/* ---- time: cycles of a board. In user mode of QEMU the counters return host time, which differs in every run ---- */

uint32_t sc_time(void) {
    uint32_t cycles = 0;
#if SC_CYCLE_COUNTER
    __asm__ volatile("csrr %0, mcycle" : "=r"(cycles));
#endif
    return cycles;
}
