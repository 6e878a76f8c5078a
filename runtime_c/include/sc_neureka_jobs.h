/* SPDX-License-Identifier: Apache-2.0
 * N-EUREKA: splits a matrix product into jobs: rows and tokens of each job, place of its sums in
 * L1, register values. Used by the controller (to write jobs) and the workers (to read sums). */
#ifndef SC_NEUREKA_JOBS_H
#define SC_NEUREKA_JOBS_H

#include "sc_neureka_rows.h"

/* How a matrix is split into jobs. */
typedef struct {
    uint32_t log, rows;    /* log2 of the rows per job; rows in all */
    uint32_t tokens, each; /* tokens in all; per job: all, or one */
    uint32_t pixels;       /* output pixels of a job */
    uint32_t apart;        /* pixels from low to high sums; several tokens' are one matrix_jobs */
    uint32_t count;
    uint32_t lead; /* rows by which the first jobs are smaller, because the cores wait for them */
    /* the engine adds high sums to low sums in separate jobs, because one tile cannot hold both for all tokens */
    uint32_t summed;
#ifdef SC_ENGINE_REMAINDERS
    uint32_t paired; /* jobs in which every other one has tails; pairs of them alternate over the tokens */
#endif
} job_split;

static inline job_split split_of(const sc_matrix *m, uint32_t tokens) {
    job_split c = {.log = JOB_ROWS_LOG, .rows = padded_rows(m), .tokens = tokens, .each = tokens, .apart = 1};
    c.summed = SC_CHUNK > PIXELS / 2 && is_1x1(m) && tokens > PIXELS / 2;
    c.pixels = c.summed ? tokens : 2 * tokens;
    if (!is_1x1(m)) {
        c.each = 1;
        c.apart = tail_column(m) ? 4 : 3; /* a tail, padded to a column, is between low and high bytes */
        c.pixels = c.apart + 1;
    }
    if (c.pixels > 6) c.pixels = (c.pixels + 5) / 6 * 6;
    /* more rows with few tokens: a job must take longer than writing the next one */
    if (c.pixels <= 4 || !is_1x1(m) || c.summed) c.log++;
    if (is_1x1(m) && c.pixels > 4 && c.rows > OUTPUTS) c.lead = (c.summed ? 5 : 1) * OUTPUTS;
    c.count = (c.rows + c.lead + (1u << c.log) - 1) >> c.log;
#ifdef SC_ENGINE_REMAINDERS
    c.paired = c.each < tokens && m->remainders == TAILS_OF_EVERY_OTHER ? c.count & ~1u : 0;
#endif
    if (!ONLY_1X1 && c.each < tokens) c.count *= tokens;
    return c;
}

/* Rows in the jobs before number `rows`: if the first jobs are smaller, 32, 64, then full ones. */
static inline uint32_t rows_before(const job_split *c, uint32_t rows) {
    return rows == 1 && c->lead ? OUTPUTS : rows ? (rows << c->log) - c->lead : 0;
}

/* Rows and first token of a job. */
typedef struct {
    uint32_t first, count, token;
} job_share;

static inline job_share share_of_job(const job_split *c, uint32_t job) {
    uint32_t rows = job, token = 0;
    if (!ONLY_1X1 && c->each < c->tokens) rows = job / c->tokens, token = job % c->tokens;
#ifdef SC_ENGINE_REMAINDERS
    if (rows < c->paired) {
        const uint32_t in_pair = (rows & 1) * c->tokens + token;
        rows = (rows & ~1u) + (in_pair & 1), token = in_pair / 2;
    }
#endif
    const uint32_t first = rows_before(c, rows), left = c->rows - first;
    const uint32_t most = rows_before(c, rows + 1) - first;
    return (job_share){first, left < most ? left : most, token};
}

/* share_of_job(c, job), computed quickly from job_share p of the previous job. */
static inline job_share next_share(const job_split *c, uint32_t job, job_share p) {
#ifdef SC_ENGINE_REMAINDERS
    if (c->paired) return share_of_job(c, job);
#endif
    if (c->lead) return share_of_job(c, job);
    if (!ONLY_1X1) {
        if ((p.token += c->each) < c->tokens) return p;
    }
    const uint32_t left = c->rows - (p.first += p.count);
    if (left < p.count) p.count = left;
    p.token = 0;
    return p;
}

#ifdef SC_ENGINE_REMAINDERS
#define TOKEN_PIXELS 5u
#else
#define TOKEN_PIXELS 4u
#endif
#define SC_NEUREKA_SUMS ((4u * TOKEN_PIXELS + 2) << (JOB_ROWS_LOG + 1)) /* bytes per job of one token */

/* L1 scratch of a job: its rows' multipliers, if L1 does not hold those of all matrices, then sums
 * [pixel][row]. */
static inline uint16_t *scales_of(const job_split *c, uint32_t job) {
    const uint32_t bytes = c->tokens == 1 ? SC_NEUREKA_SUMS : (4 * c->pixels + 2) << c->log;
    return (uint16_t *)(void *)(SC_BUFFER(uint8_t *, SC_AT_ENGINE) + job % JOBS * bytes);
}
static inline int32_t *sums_of(const job_split *c, uint32_t job) {
    return (int32_t *)(void *)(scales_of(c, job) + (1u << c->log));
}
/* Register values of a job. Inline, because prefill waits for it and it is not in the hot code. */
SC_INLINE sc_neureka_job job_of(const sc_matrix *m, const uint8_t *at, const int8_t *q, const job_split *c,
                                uint32_t job) {
    const job_share p = share_of_job(c, job);
    const uint32_t pitch = sc_q16_pitch(m, c->tokens), in = channels(m), ki = tiles_of(m);
    const uint32_t last = in - (ki - 1) * channels_of_tile(m);
    const uint32_t ko = (p.count + OUTPUTS - 1) / OUTPUTS;
    sc_neureka_job j = {
        .weights = (uint32_t)(uintptr_t)at - NEUREKA_WMEM + p.first / SC_ROWS * m->block_bytes,
        .in = (uint32_t)(uintptr_t)q + 2 * pitch * p.token,
        .out = (uint32_t)(uintptr_t)sums_of(c, job),
        .weight_row = tile_bytes(m) * tiles_of(m),
        .last_out_in = (p.count - (ko - 1) * OUTPUTS) << 16 | last,
        .tiles_out_in = ko << 16 | ki,
        .tiles_of_pixels = 1u << 16 | 1u,
    };
    if (is_1x1(m)) { /* vectors are pixels, 6 per image row */
        const uint32_t width = c->pixels < 6 ? c->pixels : 6;
        j.pixels_in = j.pixels_out = c->pixels / width << 16 | width;
        j.in_pixel = pitch << c->summed, j.in_row = width * j.in_pixel;
        j.out_pixel = 4u << c->log, j.out_row = width * j.out_pixel;
        j.offset = (uint32_t)-128;
        j.config = NEUREKA_1X1 | NEUREKA_IN_WMEM | 7u;
    } else { /* A vector is a 3x3 image, low bytes left of high bytes. The first output pixel sums low bytes
              * only, the last one high bytes only; these two are used. */
        j.pixels_out = 1u << 16 | c->pixels, j.pixels_in = 3u << 16 | (c->pixels + 2);
        j.in_pixel = 3 * in, j.in_row = in;
        j.out_pixel = j.out_row = 4u << c->log;
        j.offset = (uint32_t)-(1 << (bits_of(m) - 1));
        j.config = NEUREKA_3X3 | NEUREKA_IN_WMEM | (bits_of(m) - 1);
    }
    return j;
}

#endif
