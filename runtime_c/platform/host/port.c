/* SPDX-License-Identifier: Apache-2.0
 * Port to a host: threads as workers, checks of transfers. sc_target.h has its compile-time options. */
#define _POSIX_C_SOURCE 200809L /* pthread_barrier_t */

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sc_platform.h"

#include "sc_contract.h"

extern const uint8_t sc_blob_flash[];
extern const uint8_t sc_blob_flash_end[];

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "blobs are little-endian");

static void __attribute__((noreturn)) refuse(const char *why) {
    fflush(stdout);
    fprintf(stderr, "platform: %s\n", why);
    exit(SC_EXIT_PLATFORM);
}

/* ---- workers ---- */

#if SC_CORES > 1

static pthread_barrier_t start_line, finish_line, team_line, worker_line;
static struct {
    sc_worker_fn fn;
    void *arg;
} job; /* written by the controller before start_line, read by workers after it */

static void *work(void *core) {
    for (;;) {
        pthread_barrier_wait(&start_line);
        job.fn(job.arg, (int)(intptr_t)core);
        pthread_barrier_wait(&finish_line);
    }
    return NULL;
}

static void start_workers(void) {
    static int started;
    if (started) {
        return;
    }
    started = 1;
    pthread_barrier_init(&start_line, NULL, SC_CORES + 1);
    pthread_barrier_init(&finish_line, NULL, SC_CORES + 1);
    pthread_barrier_init(&worker_line, NULL, SC_CORES);
    pthread_barrier_init(&team_line, NULL, SC_TEAM);
    for (intptr_t core = 0; core < SC_CORES; core++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, work, (void *)core) != 0) {
            refuse("cannot start a worker thread");
        }
        pthread_detach(thread);
    }
}

static void start(sc_worker_fn fn, void *arg) {
    start_workers(); /* at the first job */
    job.fn = fn;
    job.arg = arg;
    pthread_barrier_wait(&start_line);
}

void sc_run_workers(sc_worker_fn fn, void *arg) {
    start(fn, arg);
    pthread_barrier_wait(&finish_line);
}

void sc_run_team(sc_worker_fn fn, void *arg) {
    start(fn, arg);
    fn(arg, SC_CORES);
    pthread_barrier_wait(&finish_line);
}

void sc_worker_barrier(void) { pthread_barrier_wait(&worker_line); }

void sc_team_barrier(void) { pthread_barrier_wait(&team_line); }

#else

void sc_run_workers(sc_worker_fn fn, void *arg) { fn(arg, 0); }

void sc_run_team(sc_worker_fn fn, void *arg) { fn(arg, 0); }

void sc_worker_barrier(void) {}

void sc_team_barrier(void) {}

#endif

/* ---- transfers ---- */

struct transfer {
    void *to;
    const void *from; /* NULL: nothing outstanding */
    uint32_t bytes;
};

#define MAX_OUTSTANDING 8 /* per caller, as sc_platform.h allows */
#define MAX_TOGETHER 16   /* counters of the DMA: on a chip a 17th transfer would wait for ever */
#define POISON 0xA5       /* content of the destination until the wait */

static void begin(struct transfer *slot, void *to, const void *from, uint32_t bytes) {
    if (bytes == 0) {
        refuse("a transfer of 0 bytes");
    }
    *slot = (struct transfer){to, from, bytes};
#ifdef SC_LAZY_DMA
    memset(to, POISON, bytes);
#else
    memcpy(to, from, bytes);
#endif
}

static void finish(struct transfer *slot) {
    if (slot->from == NULL) {
        refuse("wait for a transfer that this core has not started");
    }
#ifdef SC_LAZY_DMA
    memcpy(slot->to, slot->from, slot->bytes);
#endif
    slot->from = NULL;
}

/* Per thread, as on the chip: the core that starts a transfer waits for it. */
static _Thread_local struct transfer outstanding[MAX_OUTSTANDING];
static atomic_uint together; /* in all threads */

static sc_dma dma(void *to, const void *from, uint32_t bytes) {
    if (atomic_fetch_add_explicit(&together, 1, memory_order_relaxed) >= MAX_TOGETHER) {
        refuse("more than 16 transfers outstanding in all");
    }
    for (sc_dma i = 0; i < MAX_OUTSTANDING; i++) {
        if (outstanding[i].from == NULL) {
            begin(&outstanding[i], to, from, bytes);
            return i;
        }
    }
    refuse("more than 8 transfers outstanding");
}

sc_dma sc_dma_in(void *l1, const void *ext, uint32_t bytes) { return dma(l1, ext, bytes); }

sc_dma sc_dma_out(void *ext, const void *l1, uint32_t bytes) { return dma(ext, l1, bytes); }

void sc_dma_wait(sc_dma handle) {
    if (handle >= MAX_OUTSTANDING) {
        refuse("wait for a handle that does not exist");
    }
    finish(&outstanding[handle]);
    atomic_fetch_sub_explicit(&together, 1, memory_order_relaxed);
}

#define MAX_QUEUED 8 /* transfers of flash, and of HyperRAM */

#ifdef SC_HAS_FLASH
/* ---- flash ---- */

static struct transfer flash[MAX_QUEUED]; /* oldest first */
static uint32_t flash_queued;

void sc_flash_start(void *l2, uint32_t flash_offset, uint32_t bytes) {
    size_t size = (size_t)(sc_blob_flash_end - sc_blob_flash);
    if (flash_queued == MAX_QUEUED) {
        refuse("more than 8 flash transfers outstanding");
    }
    if (((uintptr_t)l2 | flash_offset) % 4 != 0) {
        refuse("a flash transfer that is not 4-byte aligned");
    }
    if (flash_offset > size || bytes > size - flash_offset) {
        refuse("a flash transfer beyond the end of the flash image");
    }
    begin(&flash[flash_queued++], l2, sc_blob_flash + flash_offset, bytes);
}

void sc_flash_wait(uint32_t left) {
    if (flash_queued <= left) {
        refuse("wait for a flash transfer that was not started");
    }
    uint32_t done = flash_queued - left;
    for (uint32_t i = 0; i < done; i++) {
        finish(&flash[i]);
    }
    memmove(flash, flash + done, left * sizeof flash[0]);
    flash_queued = left;
}
#endif

#if SC_RAM_BYTES > 0
/* ---- HyperRAM ---- */

static uint8_t ram[SC_RAM_BYTES];
static struct transfer queue[MAX_QUEUED];
static uint32_t queued;

/* Copies at the wait, to detect sources that are overwritten too early. */
void sc_ram_start(void *l2, uint32_t ram_offset, uint32_t bytes, enum sc_direction direction) {
    if (((uintptr_t)l2 | ram_offset | bytes) % 4 != 0) {
        refuse("a HyperRAM transfer that is not 4-byte aligned");
    }
    if (ram_offset > sizeof ram || bytes > sizeof ram - ram_offset || bytes == 0) {
        refuse("a HyperRAM transfer of nothing, or beyond what the program was planned for");
    }
    if (queued == MAX_QUEUED) {
        refuse("more than 8 HyperRAM transfers outstanding");
    }
    uint8_t *there = ram + ram_offset;
    queue[queued] =
        direction == SC_FROM_RAM ? (struct transfer){l2, there, bytes} : (struct transfer){there, l2, bytes};
#ifdef SC_LAZY_DMA
    queued++;
#else
    memcpy(queue[queued].to, queue[queued].from, bytes);
#endif
}

void sc_ram_wait(void) {
    for (uint32_t i = 0; i < queued; i++) {
        memcpy(queue[i].to, queue[i].from, queue[i].bytes);
    }
    queued = 0;
}

#endif

/* ---- time ---- */

uint32_t sc_time(void) { return 0; }
