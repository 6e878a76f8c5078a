/* SPDX-License-Identifier: Apache-2.0
 * N-EUREKA's jobs, as far as matrices need them; offsets and bits were tried on GVSoC. */
#ifndef SC_NEUREKA_H
#define SC_NEUREKA_H

#include "cluster.h"

#define NEUREKA_COMMIT 0x10201000u  /* write 0: run it when the engine is free */
#define NEUREKA_ACQUIRE 0x10201004u /* read: negative while both contexts are taken */
#define NEUREKA_STATUS 0x1020100Cu  /* bits 0 and 8: the contexts that are taken */
#define NEUREKA_JOB(i) (0x10201020u + 4u * (i))
#define EVENT_NEUREKA (1u << 12)

#define NEUREKA_WMEM 0x10400000u /* weights there count from here, those in L1 have addresses */

/* Signed input, raw signed 32-bit sums, inputs loaded beside the work, one offset for all weights; the lowest bits
 * are those of a weight less 1. */
#define NEUREKA_IN_WMEM (1u << 9)
#define NEUREKA_3X3 (1u << 10 | 1u << 15 | 2u << 21 | 1u << 23 | 1u << 26)
#define NEUREKA_PADDING(top, left) ((top) << 28 | (left) << 24 | (top) << 20 | (left) << 16)
#define NEUREKA_1X1 (NEUREKA_3X3 | 2u << 5)

/* Addresses and strides in bytes; counts of outputs, or of image rows, in the upper half. */
typedef struct {
    uint32_t weights, in, out;
    uint32_t in_pixel, in_row, out_pixel, out_row, weight_row;
    uint32_t last_out_in, tiles_out_in, pixels_in, pixels_out; /* pixels: of the last tile of 6 x 6 */
    uint32_t tiles_of_pixels, padding;                         /* pixels of zeros on each side */
    uint32_t offset, config;                                   /* what is added to every weight */
} sc_neureka_job;

/* For one core at a time: waits while two jobs are under way.  Then come the job's registers, which a context keeps
 * until they are written again; the job runs when it is committed. */
static inline __attribute__((always_inline)) void sc_neureka_acquire(void) {
    while ((int32_t)REG(NEUREKA_ACQUIRE) < 0) {
    }
}

/* What a context's registers hold but for a job's place, as a number that is not 0 of who wrote it.  Contexts take
 * turns. */
extern uint32_t sc_neureka_forms[2], sc_neureka_context;
static inline uint32_t sc_neureka_holds(void) { return sc_neureka_forms[sc_neureka_context]; }
static inline void sc_neureka_written(uint32_t form) {
    sc_neureka_forms[sc_neureka_context] = form;
    sc_neureka_context ^= 1;
}

/* What differs between a matrix's jobs. */
static inline __attribute__((always_inline)) void
sc_neureka_place(uint32_t weights, uint32_t out, uint32_t last_out_in, uint32_t tiles_out_in) {
    REG(NEUREKA_JOB(0)) = weights;
    REG(NEUREKA_JOB(2)) = out;
    REG(NEUREKA_JOB(15)) = last_out_in;
    REG(NEUREKA_JOB(18)) = tiles_out_in;
}

/* Where a job's rows have other tiles than those of the form, how many, and how far they are apart. */
static inline void sc_neureka_count(uint32_t last_out_in, uint32_t tiles_out_in) {
    REG(NEUREKA_JOB(15)) = last_out_in;
    REG(NEUREKA_JOB(18)) = tiles_out_in;
}
static inline void sc_neureka_weight_row(uint32_t bytes) { REG(NEUREKA_JOB(13)) = bytes; }

/* And how far its results' pixels and rows of pixels are apart. */
static inline void sc_neureka_spread(uint32_t out_pixel, uint32_t out_row) {
    REG(NEUREKA_JOB(10)) = out_pixel;
    REG(NEUREKA_JOB(11)) = out_row;
}

static inline void sc_neureka_read(uint32_t in) { REG(NEUREKA_JOB(1)) = in; }

/* The same of jobs that have as much to do as the one that the context had before. */
static inline __attribute__((always_inline)) void sc_neureka_move(uint32_t weights, uint32_t in,
                                                                  uint32_t out) {
    REG(NEUREKA_JOB(0)) = weights;
    REG(NEUREKA_JOB(1)) = in;
    REG(NEUREKA_JOB(2)) = out;
}

SC_HOT __attribute__((unused)) static void sc_neureka_form(const sc_neureka_job *j) {
    REG(NEUREKA_JOB(1)) = j->in;
    REG(NEUREKA_JOB(6)) = j->in_pixel;
    REG(NEUREKA_JOB(7)) = j->in_row;
    REG(NEUREKA_JOB(8)) = 0;
    REG(NEUREKA_JOB(9)) = 32;
    REG(NEUREKA_JOB(10)) = j->out_pixel;
    REG(NEUREKA_JOB(11)) = j->out_row;
    REG(NEUREKA_JOB(12)) = 32;
    REG(NEUREKA_JOB(13)) = j->weight_row;
    REG(NEUREKA_JOB(14)) = 0;
    REG(NEUREKA_JOB(16)) = j->pixels_out;
    REG(NEUREKA_JOB(17)) = j->pixels_in;
    REG(NEUREKA_JOB(19)) = j->tiles_of_pixels;
    REG(NEUREKA_JOB(20)) = j->padding;
    REG(NEUREKA_JOB(21)) = j->offset;
    REG(NEUREKA_JOB(22)) = 0;
    REG(NEUREKA_JOB(23)) = j->config;
}

static inline void sc_neureka_commit(void) {
    __asm__ volatile("" ::: "memory");
    REG(NEUREKA_COMMIT) = 0;
}

/* Until at most `left` (0 or 1) jobs are under way.  The event may be an older job's: hence the loop. */
static inline __attribute__((always_inline)) void sc_neureka_wait(uint32_t left) {
    for (;;) {
        const uint32_t status = REG(NEUREKA_STATUS);
        if ((status & 1) + (status >> 8 & 1) <= left) break;
        REG(EU_MASK) = EVENT_NEUREKA;
        (void)elw(EU_WAIT_CLEAR);
        REG(EU_MASK) = SC_EVENTS;
    }
    __asm__ volatile("" ::: "memory");
}

#endif
