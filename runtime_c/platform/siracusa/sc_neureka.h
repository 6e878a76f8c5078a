/* SPDX-License-Identifier: Apache-2.0
 * Registers and jobs of N-EUREKA, as far as matrix products need them. Offsets and bits are verified on
 * GVSoC. One core at a time writes jobs. */
#ifndef SC_NEUREKA_H
#define SC_NEUREKA_H

#include "cluster.h"

#define NEUREKA 0x10201000u
enum sc_neureka_register {
    NEUREKA_COMMIT = 0,  /* write 0: start when the engine is free; 1: start together with the next job */
    NEUREKA_ACQUIRE = 1, /* read: negative if both contexts are in use */
    NEUREKA_STATUS = 3,  /* bits 0 and 8: contexts in use */
    NEUREKA_JOB = 8      /* first register of a job */
};
#define EVENT_NEUREKA (1u << 12)

#define NEUREKA_WMEM 0x10400000u /* base of weight addresses; those in L1 are plain addresses */

/* Signed inputs, raw int32 sums, inputs prefetched, one offset for all weights. The lowest bits: bits per
 * weight - 1. */
#define NEUREKA_IN_WMEM (1u << 9)
#define NEUREKA_3X3 (1u << 10 | 1u << 15 | 2u << 21 | 1u << 23 | 1u << 26)
#define NEUREKA_PADDING(top, left) ((top) << 28 | (left) << 24 | (top) << 20 | (left) << 16)
#define NEUREKA_1X1 (NEUREKA_3X3 | 2u << 5)

/* Sums times 16-bit factors, without shift and offset; or sums added to the output. */
#define NEUREKA_TIMES (1u << 4 | 1u << 12)
#define NEUREKA_ADD (1u << 14)

/* Addresses and strides in bytes. Counts: outputs, or image rows, in the upper half. */
typedef struct {
    uint32_t weights, in, out;
    uint32_t in_pixel, in_row, out_pixel, out_row, weight_row;
    uint32_t last_out_in, tiles_out_in, pixels_in, pixels_out; /* pixels: of the last tile of 6 x 6 */
    uint32_t tiles_of_pixels, padding;                         /* zero pixels on each side */
    uint32_t offset, config;                                   /* offset: added to every weight */
} sc_neureka_job;

/* Hides the register base from GCC: stores relative to it take 2 bytes, while GCC would recompute every known
 * address. */
typedef volatile uint32_t *sc_neureka;
static inline __attribute__((always_inline)) sc_neureka sc_neureka_at(void) {
    sc_neureka at = &REG(NEUREKA);
    __asm__("" : "+r"(at));
    return at;
}

/* Waits while two jobs are in progress. Then the caller writes the registers and commits the job. A context
 * keeps its registers. */
static inline __attribute__((always_inline)) sc_neureka sc_neureka_acquire(void) {
    const sc_neureka at = sc_neureka_at();
    while ((int32_t)at[NEUREKA_ACQUIRE] < 0) {
    }
    return at;
}

/* Id (not 0) of the registers in each context: they are equal except for addresses if the id is equal.
 * Contexts are used in turn: [0] is the next one. */
extern uint32_t sc_neureka_configs[2];
static inline uint32_t sc_neureka_holds(void) { return sc_neureka_configs[0]; }
static inline void sc_neureka_written(uint32_t config) {
    sc_neureka_configs[0] = sc_neureka_configs[1];
    sc_neureka_configs[1] = config;
}

/* Registers that differ between a matrix's jobs. */
static inline __attribute__((always_inline)) void
sc_neureka_place(sc_neureka at, uint32_t weights, uint32_t out, uint32_t last_out_in, uint32_t tiles_out_in) {
    at[NEUREKA_JOB + 0] = weights;
    at[NEUREKA_JOB + 2] = out;
    at[NEUREKA_JOB + 15] = last_out_in;
    at[NEUREKA_JOB + 18] = tiles_out_in;
}

/* Number of tiles of a job's rows, and row stride, if they differ from the first job's. */
static inline void sc_neureka_count(sc_neureka at, uint32_t last_out_in, uint32_t tiles_out_in) {
    at[NEUREKA_JOB + 15] = last_out_in;
    at[NEUREKA_JOB + 18] = tiles_out_in;
}
static inline void sc_neureka_weight_row(sc_neureka at, uint32_t bytes) { at[NEUREKA_JOB + 13] = bytes; }

/* Output strides of pixels and image rows. */
static inline void sc_neureka_spread(sc_neureka at, uint32_t out_pixel, uint32_t out_row) {
    at[NEUREKA_JOB + 10] = out_pixel;
    at[NEUREKA_JOB + 11] = out_row;
}

/* Output: sums times one 16-bit factor per output; or sums added to the output. */
static inline void sc_neureka_times(sc_neureka at, uint32_t config, const uint16_t *factors) {
    at[NEUREKA_JOB + 3] = (uint32_t)(uintptr_t)factors;
    at[NEUREKA_JOB + 23] = config | NEUREKA_TIMES;
}
static inline void sc_neureka_add(sc_neureka at, uint32_t config) {
    at[NEUREKA_JOB + 23] = config | NEUREKA_ADD;
}

static inline void sc_neureka_read(sc_neureka at, uint32_t in) { at[NEUREKA_JOB + 1] = in; }

/* For a job of the same size as the context's previous job. */
static inline __attribute__((always_inline)) void sc_neureka_move(sc_neureka at, uint32_t weights,
                                                                  uint32_t in, uint32_t out) {
    at[NEUREKA_JOB + 0] = weights;
    at[NEUREKA_JOB + 1] = in;
    at[NEUREKA_JOB + 2] = out;
}

SC_HOT __attribute__((unused)) static void sc_neureka_configure(sc_neureka at, const sc_neureka_job *j) {
    at[NEUREKA_JOB + 1] = j->in;
    at[NEUREKA_JOB + 6] = j->in_pixel;
    at[NEUREKA_JOB + 7] = j->in_row;
    at[NEUREKA_JOB + 8] = 0;
    at[NEUREKA_JOB + 9] = 32;
    at[NEUREKA_JOB + 10] = j->out_pixel;
    at[NEUREKA_JOB + 11] = j->out_row;
    at[NEUREKA_JOB + 12] = 32;
    at[NEUREKA_JOB + 13] = j->weight_row;
    at[NEUREKA_JOB + 14] = 0;
    at[NEUREKA_JOB + 16] = j->pixels_out;
    at[NEUREKA_JOB + 17] = j->pixels_in;
    at[NEUREKA_JOB + 19] = j->tiles_of_pixels;
    at[NEUREKA_JOB + 20] = j->padding;
    at[NEUREKA_JOB + 21] = j->offset;
    at[NEUREKA_JOB + 22] = 0;
    at[NEUREKA_JOB + 23] = j->config;
}

/* Queues a job that starts together with the next one. */
static inline void sc_neureka_hold(void) { sc_neureka_at()[NEUREKA_COMMIT] = 1; }

static inline void sc_neureka_commit(void) {
    __asm__ volatile("" ::: "memory");
    if (SC_SPANS) sc_neureka_begun();
    sc_neureka_at()[NEUREKA_COMMIT] = 0;
}

/* Waits until at most `left` (0 or 1) jobs are in progress. A loop, because the event may be an older
 * job's. */
static inline __attribute__((always_inline)) void sc_neureka_wait(uint32_t left) {
    const sc_neureka at = sc_neureka_at();
    for (;;) {
        const uint32_t status = at[NEUREKA_STATUS];
        if ((status & 1) + (status >> 8 & 1) <= left) break;
        REG(EU_MASK) = EVENT_NEUREKA;
        (void)elw(EU_WAIT_CLEAR);
        REG(EU_MASK) = SC_EVENTS;
    }
    __asm__ volatile("" ::: "memory");
    if (SC_SPANS && left == 0) sc_neureka_ended();
}

#endif
