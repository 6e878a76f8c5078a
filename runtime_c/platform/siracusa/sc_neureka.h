/* SPDX-License-Identifier: Apache-2.0
 * N-EUREKA's jobs, as far as matrices need them; offsets and bits were tried on GVSoC. */
#ifndef SC_NEUREKA_H
#define SC_NEUREKA_H

#include "cluster.h"

#define NEUREKA 0x10201000u
enum sc_neureka_register {
    NEUREKA_COMMIT = 0,  /* write 0: run it when the engine is free; 1: when the next one is to be */
    NEUREKA_ACQUIRE = 1, /* read: negative while both contexts are taken */
    NEUREKA_STATUS = 3,  /* bits 0 and 8: the contexts that are taken */
    NEUREKA_JOB = 8      /* the first of a job */
};
#define EVENT_NEUREKA (1u << 12)

#define NEUREKA_WMEM 0x10400000u /* weights there count from here, those in L1 have addresses */

/* Signed input, raw signed 32-bit sums, inputs loaded beside the work, one offset for all weights; the lowest bits
 * are those of a weight less 1. */
#define NEUREKA_IN_WMEM (1u << 9)
#define NEUREKA_3X3 (1u << 10 | 1u << 15 | 2u << 21 | 1u << 23 | 1u << 26)
#define NEUREKA_PADDING(top, left) ((top) << 28 | (left) << 24 | (top) << 20 | (left) << 16)
#define NEUREKA_1X1 (NEUREKA_3X3 | 2u << 5)

/* Sums times factors of 16 bits, with none of the shifts and offsets that there could be; or added to what is there. */
#define NEUREKA_TIMES (1u << 4 | 1u << 12)
#define NEUREKA_ADD (1u << 14)

/* Addresses and strides in bytes; counts of outputs, or of image rows, in the upper half. */
typedef struct {
    uint32_t weights, in, out;
    uint32_t in_pixel, in_row, out_pixel, out_row, weight_row;
    uint32_t last_out_in, tiles_out_in, pixels_in, pixels_out; /* pixels: of the last tile of 6 x 6 */
    uint32_t tiles_of_pixels, padding;                         /* pixels of zeros on each side */
    uint32_t offset, config;                                   /* what is added to every weight */
} sc_neureka_job;

/* Where the registers begin, as what the compiler does not know: it would make each one's address anew, and a store
 * to one behind a known address takes 2 bytes of code. */
typedef volatile uint32_t *sc_neureka;
static inline __attribute__((always_inline)) sc_neureka sc_neureka_at(void) {
    sc_neureka at = &REG(NEUREKA);
    __asm__("" : "+r"(at));
    return at;
}

/* For one core at a time: waits while two jobs are under way.  Then come the job's registers, which a context keeps
 * until they are written again; the job runs when it is committed. */
static inline __attribute__((always_inline)) sc_neureka sc_neureka_acquire(void) {
    const sc_neureka at = sc_neureka_at();
    while ((int32_t)at[NEUREKA_ACQUIRE] < 0) {
    }
    return at;
}

/* What a context's registers hold but for a job's place, as a number that is not 0 of who wrote it.  Contexts take
 * turns: of the next one, and of the one after it. */
extern uint32_t sc_neureka_forms[2];
static inline uint32_t sc_neureka_holds(void) { return sc_neureka_forms[0]; }
static inline void sc_neureka_written(uint32_t form) {
    sc_neureka_forms[0] = sc_neureka_forms[1];
    sc_neureka_forms[1] = form;
}

/* What differs between a matrix's jobs. */
static inline __attribute__((always_inline)) void
sc_neureka_place(sc_neureka at, uint32_t weights, uint32_t out, uint32_t last_out_in, uint32_t tiles_out_in) {
    at[NEUREKA_JOB + 0] = weights;
    at[NEUREKA_JOB + 2] = out;
    at[NEUREKA_JOB + 15] = last_out_in;
    at[NEUREKA_JOB + 18] = tiles_out_in;
}

/* Where a job's rows have other tiles than those of the form, how many, and how far they are apart. */
static inline void sc_neureka_count(sc_neureka at, uint32_t last_out_in, uint32_t tiles_out_in) {
    at[NEUREKA_JOB + 15] = last_out_in;
    at[NEUREKA_JOB + 18] = tiles_out_in;
}
static inline void sc_neureka_weight_row(sc_neureka at, uint32_t bytes) { at[NEUREKA_JOB + 13] = bytes; }

/* And how far its results' pixels and rows of pixels are apart. */
static inline void sc_neureka_spread(sc_neureka at, uint32_t out_pixel, uint32_t out_row) {
    at[NEUREKA_JOB + 10] = out_pixel;
    at[NEUREKA_JOB + 11] = out_row;
}

/* Instead of raw sums: these times factors, of 16 bits for each output; or added to what is there. */
static inline void sc_neureka_times(sc_neureka at, uint32_t config, const uint16_t *factors) {
    at[NEUREKA_JOB + 3] = (uint32_t)(uintptr_t)factors;
    at[NEUREKA_JOB + 23] = config | NEUREKA_TIMES;
}
static inline void sc_neureka_add(sc_neureka at, uint32_t config) {
    at[NEUREKA_JOB + 23] = config | NEUREKA_ADD;
}

static inline void sc_neureka_read(sc_neureka at, uint32_t in) { at[NEUREKA_JOB + 1] = in; }

/* The same of jobs that have as much to do as the one that the context had before. */
static inline __attribute__((always_inline)) void sc_neureka_move(sc_neureka at, uint32_t weights,
                                                                  uint32_t in, uint32_t out) {
    at[NEUREKA_JOB + 0] = weights;
    at[NEUREKA_JOB + 1] = in;
    at[NEUREKA_JOB + 2] = out;
}

SC_HOT __attribute__((unused)) static void sc_neureka_form(sc_neureka at, const sc_neureka_job *j) {
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

/* A job that is written, but waits for the one behind it. */
static inline void sc_neureka_hold(void) { sc_neureka_at()[NEUREKA_COMMIT] = 1; }

static inline void sc_neureka_commit(void) {
    __asm__ volatile("" ::: "memory");
    sc_neureka_at()[NEUREKA_COMMIT] = 0;
}

/* Until at most `left` (0 or 1) jobs are under way.  The event may be an older job's: hence the loop. */
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
}

#endif
