/* SPDX-License-Identifier: Apache-2.0
 * N-EUREKA: second layout of a matrix for single-token decode: 3x3 mode, output rows in the taps.
 * engines/neureka_both.py describes it. Weights: weight memory. */
#ifndef SC_NEUREKA_COPIES_H
#define SC_NEUREKA_COPIES_H

#include "sc_neureka_rows.h"

#ifdef SC_ENGINE_SECOND_LAYOUT
#define HALF_ROWS 64u /* equal to neureka_both.py, like the constants in start_copy() */
#define WEIGHTS_ALIGN 32u

/* For matrices without a second layout: all job sizes have the same output strides. */
static void same_places(matrix_jobs *jobs, uint32_t apart) {
    for (int e = 0; e < EXTENTS; e++) {
        jobs->extents[e].out_pixel = (uint16_t)jobs->job.out_pixel;
        jobs->extents[e].out_row = (uint16_t)jobs->job.out_row;
        jobs->extents[e].apart = (uint16_t)apart;
    }
}

/* Registers of a job with `rows` rows. With one tap for the vector, output pixels are in column order. */
static extent extent_of(uint32_t rows, uint32_t taps, uint32_t tiles, uint32_t last_in) {
    const uint32_t groups = TAPS / taps, n = (rows + groups - 1) / groups, ko = (n + OUTPUTS - 1) / OUTPUTS;
    return (extent){
        .last_out_in = (n - (ko - 1) * OUTPUTS) << 16 | last_in,
        .tiles_out_in = ko << 16 | tiles,
        .out_pixel = (uint16_t)(4 * n * (taps == 1 ? 3 : 1)),
        .out_row = (uint16_t)(4 * n),
        .apart = (uint16_t)(n * (taps == 1 ? TAPS : 3)),
    };
}

/* sc_engine_start() for a matrix with a second layout. The vector uses `taps` of a filter's 9 taps, so a filter holds
 * 9 / taps groups of rows. In the image, two columns of zeros separate the low bytes from the high bytes. Every tap
 * multiplies them for another output pixel, which gets the sums of that tap's group of rows. */
static void start_copy(matrix_jobs *jobs, const sc_matrix *m, const uint8_t *at, const int8_t *q) {
    const uint32_t taps = sc_taps(m);
    const uint32_t bits = bits_of(m), rows = padded_rows(m), pitch = 4u * m->in.words;
    const uint32_t in = pitch / (taps == 1 ? 3 : 9), tiles = (in + CHANNELS - 1) / CHANNELS;
    const uint32_t last_in = in - (tiles - 1) * CHANNELS, half = HALF_ROWS << (taps == 1);
    const uint32_t halves = (rows + half - 1) / half, whole = halves > 3 ? halves / 2 - 1 : 0;
    const uint32_t last = rows - (halves - 1) * half;
    const uint32_t scale_bytes = 2 * rows < WEIGHTS_ALIGN ? WEIGHTS_ALIGN : 2 * rows;
    const uint32_t weights = (uint32_t)(uintptr_t)at - NEUREKA_WMEM;
    const uint32_t column = taps == 1 ? in : 3 * in; /* bytes */
    jobs->extents[WHOLE] = extent_of(2 * half, taps, tiles, last_in);
    jobs->extents[HALF] = extent_of(half, taps, tiles, last_in);
    jobs->extents[LAST] = extent_of(last, taps, tiles, last_in);
    jobs->job = (sc_neureka_job){
        .weights =
            (weights + m->blocks * m->block_bytes + scale_bytes + WEIGHTS_ALIGN - 1) & ~(WEIGHTS_ALIGN - 1),
        .in = (uint32_t)(uintptr_t)q, /* adjusted below for padding on the left and on top */
        .out = (uint32_t)(uintptr_t)SC_BUFFER(uint8_t *, SC_AT_ENGINE),
        .in_pixel = column,
        .in_row = in,
        .out_pixel = jobs->extents[WHOLE].out_pixel,
        .out_row = jobs->extents[WHOLE].out_row,
        .weight_row = TILE_BYTES * bits * tiles,
        .tiles_of_pixels = 1u << 16 | 1u,
        .pixels_in = 3u << 16 | 6u,
        .pixels_out = 1u << 16 | (taps == TAPS ? 4u : 6u),
        .offset = (uint32_t)-(1 << (bits - 1)),
        .config = NEUREKA_3X3 | NEUREKA_IN_WMEM | (bits - 1),
    };
    if (taps < TAPS) jobs->job.in -= 2 * column, jobs->job.padding = NEUREKA_PADDING(0u, 2u);
    if (taps == 1) {
        jobs->job.in -= 2 * in, jobs->job.padding = NEUREKA_PADDING(2u, 2u);
        jobs->job.pixels_out = 3u << 16 | 6u;
    }
    jobs->half_bytes = (half * taps + TAPS - 1) / TAPS * tiles * bits * TILE_BYTES;
    jobs->rows = (uint16_t)(2 * half), jobs->last_rows = (uint16_t)last;
    jobs->last_each = (uint16_t)((last + SC_CORES * 2 - 1) / (SC_CORES * 2) * 2);
    jobs->last_blocks = (uint16_t)((last + SC_CORES * SC_ROWS - 1) / (SC_CORES * SC_ROWS) * SC_ROWS);
    jobs->whole = (uint16_t)whole, jobs->count = (uint16_t)(halves - whole);
    /* unique: 3x3 configs have bit 0 clear, others have bits 5 and 6 */
    jobs->config_id = m->in.words << 7 | (taps == TAPS ? 3u : taps == 3 ? 2u : 1u) << 5 | bits << 1 | 1u;
    jobs->zeros_at = (uint16_t)column, jobs->zeros = taps == TAPS ? 0 : (uint16_t)((pitch - column) / 4);
}

static inline uint32_t apart_of(const matrix_jobs *jobs, int e) { return jobs->extents[e].apart; }
static inline void write_places(sc_neureka at, const extent *e) {
    sc_neureka_spread(at, e->out_pixel, e->out_row);
}
/* Zeros between low and high bytes, when the vector is free again: an even number of words. */
SC_INLINE void clear_between(const matrix_jobs *jobs) {
    int8_t *q = SC_BUFFER(int8_t *, SC_AT_XQ) + jobs->zeros_at;
    uint32_t n = jobs->zeros / 2;
    if (n == 0) return;
    /* clang-format off */
    __asm__ volatile(SC_LOOP_BEGIN("%[n]", 2)
                     P_SW_POST("x0", "%[q]", "4")
                     P_SW_POST("x0", "%[q]", "4") SC_LOOP_END(2)
                     : [q] "+&r"(q) : [n] "r"(n) : "memory");
    /* clang-format on */
}

#else

static inline void start_copy(matrix_jobs *jobs, const sc_matrix *m, const uint8_t *at, const int8_t *q) {
    (void)jobs, (void)m, (void)at, (void)q;
}
static inline void same_places(matrix_jobs *jobs, uint32_t apart) { jobs->apart = (uint16_t)apart; }
static inline uint32_t apart_of(const matrix_jobs *jobs, int e) {
    (void)e;
    return jobs->apart;
}
static inline void write_places(sc_neureka at, const extent *e) { (void)at, (void)e; }
static inline void clear_between(const matrix_jobs *jobs) { (void)jobs; }

#endif
#endif
