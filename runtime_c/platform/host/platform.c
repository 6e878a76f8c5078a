/* SPDX-License-Identifier: Apache-2.0
 * Platform of a native run: files, threads as workers, checks of transfers. sc_target.h has its compile-time
 * options. */
#define _POSIX_C_SOURCE 200809L /* pthread_barrier_t */

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "sc_platform.h"

#include "sc_abi.h"
#include "sc_arguments.h"

extern const uint8_t sc_blob_flash[];
extern const uint8_t sc_blob_flash_end[];

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "blobs and input are little-endian");

static void __attribute__((noreturn)) refuse(const char *why) {
    fflush(stdout);
    fprintf(stderr, "platform: %s\n", why);
    exit(SC_EXIT_PLATFORM);
}

/* ---- input ---- */

static uint32_t input[SC_INPUT_WORDS];

/* Missing words are 0. sc_main() checks the values. Returns 0 at the end of stdin. */
static int read_input(void) {
    memset(input, 0, sizeof input);
    size_t bytes = fread(input, 1, sizeof input, stdin);
    if (ferror(stdin)) {
        refuse("cannot read the input words from stdin");
    }
    static const char magic[] = "SCI"; /* SC_INPUT_MAGIC without the version */
    if (bytes > 0 && memcmp(input, magic, bytes < 3 ? bytes : 3) != 0) {
        refuse("stdin is for the input that --words makes; a prompt goes on the command line, see --help");
    }
    if (bytes % sizeof input[0] != 0) {
        refuse("the input on stdin is not a whole number of 32-bit words");
    }
    return bytes > 0;
}

uint32_t *sc_input_words(void) { return input; }

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

void sc_barrier(void) { pthread_barrier_wait(&worker_line); }

void sc_meet(void) { pthread_barrier_wait(&team_line); }

#else

static void start_workers(void) {}

void sc_run_workers(sc_worker_fn fn, void *arg) { fn(arg, 0); }

void sc_run_team(sc_worker_fn fn, void *arg) { fn(arg, 0); }

void sc_barrier(void) {}

void sc_meet(void) {}

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

/* ---- flash ---- */

#define MAX_QUEUED 8

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

/* ---- HyperRAM ---- */

#if SC_RAM_BYTES > 0

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

/* ---- console, time, start ---- */

void sc_write(const char *text, uint32_t bytes) {
    fwrite(text, 1, bytes, stdout);
    if (memchr(text, '\n', bytes) != NULL) {
        fflush(stdout); /* so that a reader gets every line at once */
    }
}

uint32_t sc_time(void) { return 0; }

void sc_exit(int code) {
    /* a failed write at a line end leaves no data, only the error flag */
    if (fflush(stdout) != 0 || ferror(stdout)) {
        refuse("cannot write to stdout");
    }
    exit(code);
}

/* Input words on stdin: how shrinkc runs the program. */
static int answer_words(void) {
    if (!read_input()) {
        refuse("no input words on stdin");
    }
    if (input[SC_IN_TRACE] != SC_TRACE_LOGITS && fgetc(stdin) != EOF) {
        refuse("more input words on stdin than the program was built for");
    }
    start_workers();
    int code;
    do {
        code = sc_main();
    } while (code == 0 && input[SC_IN_TRACE] == SC_TRACE_LOGITS && read_input());
    return code;
}

/* A prompt on the command line. */
static int answer_arguments(int argc, char **argv) {
    if (sc_arguments(argc, argv, input) == SC_WORDS) {
        fwrite(input, 1, sizeof input, stdout);
        return 0;
    }
    start_workers();
    return sc_main();
}

int main(int argc, char **argv) {
    sc_exit(argc > 1 || isatty(STDIN_FILENO) ? answer_arguments(argc, argv) : answer_words());
}
