/* SPDX-License-Identifier: Apache-2.0
 * N-EUREKA: matrix times several tokens (prefill): the controller writes jobs, the workers finish
 * their sums (L1). */
#ifndef SC_NEUREKA_SEVERAL_H
#define SC_NEUREKA_SEVERAL_H

#include "sc_epilogue_neureka.h"
#include "sc_neureka_jobs.h"
#include "sc_neureka_tails.h"

#ifndef SC_AT_MULTIPLIERS
static SC_L1 sc_dma scales_dma[JOBS];
#endif
static SC_L1 sc_neureka_job several; /* register values of the matrix's first job */

/* If the engine adds high to low sums: job HIGH computes 256 * high, job LOW adds the low sums to it. */
enum half { BOTH, HIGH, LOW };
#if SC_CHUNK > PIXELS / 2
static SC_L1_DATA const uint16_t times_256[2u << JOB_ROWS_LOG] = {
#define EIGHT 256, 256, 256, 256, 256, 256, 256, 256
#define THIRTY_TWO EIGHT, EIGHT, EIGHT, EIGHT
    THIRTY_TWO, THIRTY_TWO, THIRTY_TWO, THIRTY_TWO
#undef THIRTY_TWO
#undef EIGHT
};
#endif

/* Identifies register values that are equal except for addresses. */
static inline uint32_t config_of(const sc_matrix *m, uint32_t tokens) {
    return sc_q16_pitch(m, tokens) << 5 | (jobs_of(m)->config_id & 127) | tokens << 24;
}

/* Writes the next job, without starting it. Waits while two jobs are in progress. */
SC_WARM static void write_job(const sc_matrix *m, const job_split *c, uint32_t job, enum half half) {
    const sc_neureka_job *const first = &several;
    const uint32_t config = config_of(m, c->tokens);
    const job_share p = share_of_job(c, job);
    const uint32_t ko = (p.count + OUTPUTS - 1) / OUTPUTS;
    const uint32_t last = (p.count - (ko - 1) * OUTPUTS) << 16 | (first->last_out_in & 0xFFFF);
    const uint32_t tiles = ko << 16 | (first->tiles_out_in & 0xFFFF);
    const sc_neureka at = sc_neureka_acquire();
    if (sc_neureka_holds() != config) sc_neureka_configure(at, first);
    sc_neureka_place(at, first->weights + p.first / SC_ROWS * m->block_bytes,
                     (uint32_t)(uintptr_t)sums_of(c, job), last, tiles);
    /* in-place vectors of different lengths have equal strides, so their config ids are equal too */
    if (SC_IN_PLACE) sc_neureka_weight_row(at, first->weight_row);
    write_tail(at, jobs_of(m), p.first >> c->log, last, tiles);
    const uint32_t pitch = sc_q16_pitch(m, c->tokens);
    sc_neureka_read(at, first->in + 2 * pitch * p.token + (half == HIGH ? pitch : 0));
#if SC_CHUNK > PIXELS / 2
    if (half == HIGH) sc_neureka_times(at, first->config, times_256);
    if (half == LOW) sc_neureka_add(at, first->config);
#endif
    sc_neureka_written(config);
}

/* Copies a job's row multipliers to L1, if they are not there. */
static inline void fetch_scales(const sc_matrix *m, const job_split *c, uint32_t job) {
#ifndef SC_AT_MULTIPLIERS
    const job_share p = share_of_job(c, job);
    if (job < c->count)
        scales_dma[job % JOBS] = sc_dma_in(scales_of(c, job), jobs_of(m)->multipliers + p.first, 2 * p.count);
#else
    (void)m, (void)c, (void)job;
#endif
}

static inline void write_next(const sc_matrix *m, const job_split *c, uint32_t job, enum half half) {
    if (job >= c->count) return;
    write_job(m, c, job, half);
    sc_neureka_commit();
    if (half != LOW) fetch_scales(m, c, job);
}

static SC_L1 const sc_matrix *first_written; /* matrix whose first jobs are written, or 0 */

/* Writes the first two jobs. Sums of the matrix before may still be read. */
SC_WARM static void prepare_several(const sc_matrix *m, uint32_t tokens) {
    if (first_written == m) return;
    const job_split c = split_of(m, tokens);
    first_written = m;
    const int8_t *const q = SC_BUFFER(const int8_t *, sc_vectors_at(m, tokens));
    several = job_of(m, SC_BLOB(m->level) + m->offset, q, &c, 0);
    write_job(m, &c, 0, c.summed ? HIGH : BOTH);
    if (!c.summed && c.count == 1) return;
    sc_neureka_hold();
    write_job(m, &c, !c.summed, c.summed ? LOW : BOTH);
}

/* The same for the next matrix if it processes the same tokens: while the workers finish the last sums. */
static inline void prepare_next(const sc_matrix *m, uint32_t tokens) {
    const sc_matrix *const next = m + 1, *const last = sc_layers[SC_LAYERS - 1].m[SC_QKV];
    if (next == sc_pass_end() || !jobs_of(next)->count || tokens < sc_now.tokens) return;
    if (next == sc_matrices + SC_MATRICES - 1 && sc_first_of_head() > 0) return;
    if (next <= last || sc_now.first_wanted == 0) prepare_several(next, tokens);
}

static inline void begun_several(const sc_matrix *m, uint32_t tokens) {
    first_written = 0;
#ifndef SC_AT_MULTIPLIERS
    const job_split c = split_of(m, tokens);
    fetch_scales(m, &c, 0);
    if (!c.summed) fetch_scales(m, &c, 1);
#endif
    (void)m, (void)tokens;
    fetch_tails(jobs_of(m), 0);
}

SC_WARM static void control_several(const sc_matrix *m, uint32_t tokens) {
    const job_split c = split_of(m, tokens);
    const matrix_jobs *const jobs = jobs_of(m);
    for (uint32_t job = 0; job < c.count; job++) {
        const uint32_t left = job + 1 < c.count;
        if (c.summed) write_next(m, &c, job + 1, HIGH); /* runs after this job */
        await_tails_of_all(jobs, &c, job);
#ifndef SC_AT_MULTIPLIERS
        sc_dma_wait(scales_dma[job % JOBS]);
#endif
        sc_neureka_wait(left);
        sc_team_barrier(); /* sums are complete, and the cores are done with the job before */
        if (c.summed)
            write_next(m, &c, job + 1, LOW);
        else
            write_next(m, &c, job + 2, BOTH);
        fetch_tails_of_all(jobs, &c, job);
    }
    prepare_next(m, tokens);
}

/* This core's share of a job: `count` blocks from block `first` of token `token` on. Blocks are counted
 * through all tokens of the job; each token has `blocks`. */
SC_INLINE void store_share(const sc_matrix *m, const sc_qvec *x, const job_share *p, uint32_t log,
                           uint32_t apart, uint32_t token, uint32_t first, uint32_t blocks, uint32_t count,
                           const uint16_t *scales, int32_t *sums, const sc_output *out,
                           const enum row_sums kind) {
    const uint32_t rows_left = m->rows - p->first;
    const int tailed = has_tails(jobs_of(m), p->first >> log);
    const sc_qvec *of = x + p->token + token;
    int32_t *dst = out->dst + (p->token + token) * out->stride;
    joining j = joining_of(m, of, out);
    const uint32_t step = (kind == OF_SEVERAL_SUMMED ? 1u : 2u) << log;
    sums += token * step;
    for (;;) {
        const uint32_t n = count < blocks - first ? count : blocks - first, at = first * SC_ROWS;
        int32_t *const low = sums + at;
        if (tailed) multiply_tails(jobs_of(m), p->first >> log, of->q, at, n * SC_ROWS, 1, low);
        if (at < rows_left) {
            const uint32_t left = rows_left - at, rows = left < n * SC_ROWS ? left : n * SC_ROWS;
            join(&j, scales + at, p->first + at, rows, low, low + apart, dst, 0, kind);
        }
        count -= n;
        if (count == 0) break;
        first = 0, of++, sums += step, dst += out->stride;
        joining_next(&j, of);
    }
}

/* Up to this many tokens, N-EUREKA computes low and high sums in one tile (half its pixels each). Longer
 * chunks get combined sums. Their last tokens could be separate too, but that is not worth the code. */
#define SUMS_APART 18

SC_WARM static void end_several(const sc_matrix *m, const sc_qvec *x, uint32_t tokens, const sc_output *out,
                                int core) {
    const job_split c = split_of(m, tokens);
    const uint32_t apart = c.apart << c.log, log_blocks = c.log - 3;
    job_share p = share_of_job(&c, 0);
    uint32_t place = 0;
    for (uint32_t job = 0;; place = place + 1 < JOBS ? place + 1 : 0) {
        const uint32_t blocks = p.count / SC_ROWS, all = c.each * blocks;
        const uint32_t block = all * (uint32_t)core / SC_CORES, stop = all * ((uint32_t)core + 1) / SC_CORES;
        const uint32_t token = blocks == 1u << log_blocks ? block >> log_blocks : block / blocks;
#ifdef SC_AT_MULTIPLIERS
        const uint16_t *const scales = jobs_of(m)->multipliers + p.first;
#else
        const uint16_t *const scales = scales_of(&c, place);
#endif
        sc_team_barrier();
        if (block < stop && c.summed)
            store_share(m, x, &p, c.log, 0, token, block - token * blocks, blocks, stop - block, scales,
                        sums_of(&c, place), out, OF_SEVERAL_SUMMED);
        else if (block < stop)
            store_share(m, x, &p, c.log, apart, token, block - token * blocks, blocks, stop - block, scales,
                        sums_of(&c, place), out, SC_CHUNK <= SUMS_APART ? OF_SEVERAL : OF_ONE);
        if (++job == c.count) return;
        p = next_share(&c, job, p);
    }
}

#endif
