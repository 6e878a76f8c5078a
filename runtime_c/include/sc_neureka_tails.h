/* SPDX-License-Identifier: Apache-2.0
 * N-EUREKA: tails (Remainders in engines/engine.py): inputs of a row after the last whole tile. The workers
 * multiply them (weights in L1) while the engine computes the rest. */
#ifndef SC_NEUREKA_TAILS_H
#define SC_NEUREKA_TAILS_H

#include "sc_neureka_rows.h"

#ifdef SC_ENGINE_REMAINDERS
static inline int has_any_tails(const matrix_jobs *jobs) { return jobs->tails > 0; }
static inline int has_tails(const matrix_jobs *jobs, uint32_t job) { return job_has_tails(jobs->tails, job); }

/* L1 after the sums of one token's jobs: tail sums of a job, its tail weights, and those of the next job if
 * consecutive jobs have tails. */
_Static_assert(SC_CORES == 1 || (2u << JOB_ROWS_LOG) % (SC_CORES * SC_ROWS) == 0,
               "a core has whole blocks of a job");
_Static_assert(JOB_ROWS_LOG + 1 == ROWS_LOG, "jobs of a 3x3 image");
static SC_L1 sc_dma tails_dma[2];
_Static_assert(JOBS *SC_NEUREKA_SUMS + (4u << ROWS_LOG) + 2 * (1u << ROWS_LOG) / SC_ROWS * TAIL_BLOCK(1) <=
                   SC_BYTES_ENGINE,
               "planned room of a job's tails");
static inline int32_t *tail_sums(void) {
    return (int32_t *)(void *)(SC_BUFFER(uint8_t *, SC_AT_ENGINE) + JOBS * SC_NEUREKA_SUMS);
}
/* Tail sums of a core. The last job has other rows per core, and its tail sums are computed before all cores
 * are done with the job before. */
static inline int32_t *own_sums(const matrix_jobs *jobs, int core) {
    return tail_sums() + jobs->rows / SC_CORES * (uint32_t)core;
}
/* Two buffers for tail weights if consecutive jobs have tails, else one. */
static inline uint32_t turn_of(const matrix_jobs *jobs, uint32_t job) { return jobs->tails & job & 1; }
static inline uint8_t *tail_tile(const matrix_jobs *jobs, uint32_t job) {
    return (uint8_t *)(tail_sums() + (1u << ROWS_LOG)) +
           turn_of(jobs, job) * (jobs->rows / SC_ROWS) * TAIL_BLOCK(jobs->tail_words);
}

/* If only some jobs have tails: registers that differ for a job with a tail. */
static inline void write_tail(sc_neureka at, const matrix_jobs *jobs, uint32_t job, uint32_t last_out_in,
                              uint32_t tiles_out_in) {
    if (jobs->tails != TAILS_OF_EVERY_OTHER) return;
    const int tailed = has_tails(jobs, job);
    sc_neureka_weight_row(at, tailed ? jobs->tail_row : jobs->job.weight_row);
    if (!tailed) return;
    sc_neureka_count(at, (last_out_in & 0xFFFF0000u) | CHANNELS, tiles_out_in - 1);
}

/* Starts the copy of a job's tail weights to L1. By the controller, when the buffer is free. */
SC_HOT static void fetch_some_tails(const matrix_jobs *jobs, uint32_t job) {
    const uint32_t rows = job + 1u == jobs->count ? jobs->last_rows : jobs->rows;
    const uint8_t *const at =
        (const uint8_t *)(uintptr_t)(NEUREKA_WMEM + jobs->job.weights + 2 * job * jobs->half_bytes);
    tails_dma[turn_of(jobs, job)] = sc_dma_in(tail_tile(jobs, job), at + rows * jobs->tail_row,
                                              rows / SC_ROWS * TAIL_BLOCK(jobs->tail_words));
}
static inline void fetch_tails(const matrix_jobs *jobs, uint32_t job) {
    if (has_tails(jobs, job)) fetch_some_tails(jobs, job);
}

/* Tail sums of rows first .. first + rows - 1 of a job (whole blocks). add: adds them to `sums`. */
SC_HOT static void multiply_tails(const matrix_jobs *jobs, uint32_t job, const int8_t *q, uint32_t first,
                                  uint32_t rows, int add, int32_t *sums) {
    const uint32_t words = jobs->tail_words;
    const int8_t *const low = q + jobs->tail_at, *const high = low + jobs->high;
    const uint32_t all = jobs->tails == TAILS_OF_ALL, nibbles = jobs->nibbles;
    const tail_place p = nibbles ? (tail_place){0, 2, 4, words, all ? 8 : jobs->job.in_row}
                         : all   ? (tail_place){0, words, 4, 1, 0}
                                 : (tail_place){0, TAPS, jobs->job.in_row, words / TAPS, 4};
    const uint8_t *w = tail_tile(jobs, job) + first / SC_ROWS * TAIL_BLOCK(words);
    for (; rows; rows -= SC_ROWS, sums += SC_ROWS) {
        sc_rows of;
        w = dot_tails(&of, w, low, high, p, nibbles);
#define SUM(r) sums[r] = (int32_t)((add ? (uint32_t)sums[r] : 0) + (uint32_t)of.s##r);
        SC_EACH_ROW(SUM)
#undef SUM
    }
}

/* low[n] += this core's tail sums. */
static inline void add_own_tails(const matrix_jobs *jobs, int core, int32_t *low, uint32_t n) {
    const int32_t *sums = own_sums(jobs, core);
#if SC_XPULP
    int32_t a, b, c, d;
    /* clang-format off */
    __asm__ volatile(SC_LOOP_BEGIN("%[n]", 8)
                     P_LW_POST("%[a]", "%[sums]", "4") P_LW_POST("%[c]", "%[sums]", "4")
                     "lw %[b], 0(%[low])\nlw %[d], 4(%[low])\n"
                     "add %[a], %[a], %[b]\nadd %[c], %[c], %[d]\n"
                     P_SW_POST("%[a]", "%[low]", "4") P_SW_POST("%[c]", "%[low]", "4")
                     SC_LOOP_END(8)
                     : [low] "+&r"(low), [sums] "+&r"(sums), [a] "=&r"(a), [b] "=&r"(b), [c] "=&r"(c), [d] "=&r"(d)
                     : [n] "r"(n / 2)
                     : "memory");
    /* clang-format on */
#else
    for (; n; n--, low++) *low = (int32_t)((uint32_t)*low + (uint32_t)*sums++);
#endif
}

/* Computes this core's tail sums for a job of one token. The weights must be in L1. */
SC_HOT static void own_tails(const matrix_jobs *jobs, uint32_t job, const sc_qvec *x, int core) {
    const int last = job + 1u == jobs->count;
    const uint32_t n = last ? jobs->last_blocks : jobs->rows / SC_CORES, mine = n * (uint32_t)core;
    const uint32_t left = (last ? jobs->last_rows : jobs->rows) - mine;
    if (mine >= (last ? jobs->last_rows : jobs->rows)) return;
    multiply_tails(jobs, job, x->q, mine, n < left ? n : left, 0, own_sums(jobs, core));
}

/* Waits for a job's tail weights. By the controller, before the barrier with the workers. */
static inline void await_tails(const matrix_jobs *jobs, uint32_t job) {
    if (has_tails(jobs, job)) sc_dma_wait(tails_dma[turn_of(jobs, job)]);
}

/* The same for several tokens, which share tail weights: before the first token's job. */
static inline void await_tails_of_all(const matrix_jobs *jobs, const job_split *c, uint32_t job) {
    const uint32_t rows = job / c->tokens, in_turn = rows < c->paired ? rows & 1 : 0;
    if (has_any_tails(jobs) && job == rows * c->tokens && !in_turn) await_tails(jobs, rows);
}
/* Starts the copy of the next tail weights once the buffer is free. If jobs of a pair alternate: not before
 * the pair's last token. */
static inline void fetch_tails_of_all(const matrix_jobs *jobs, const job_split *c, uint32_t job) {
    if (!has_any_tails(jobs)) return;
    const uint32_t rows = job / c->tokens, token = job - rows * c->tokens;
    const int free = rows < c->paired ? (rows & 1) && token + 1 == c->tokens : token == 0;
    if (free && rows + 1 < jobs->count) fetch_tails(jobs, rows + 1);
}

#else

static inline int has_any_tails(const matrix_jobs *jobs) {
    (void)jobs;
    return 0;
}
static inline int has_tails(const matrix_jobs *jobs, uint32_t job) {
    (void)jobs, (void)job;
    return 0;
}
static inline void write_tail(sc_neureka at, const matrix_jobs *jobs, uint32_t job, uint32_t last_out_in,
                              uint32_t tiles_out_in) {
    (void)at, (void)jobs, (void)job, (void)last_out_in, (void)tiles_out_in;
}
static inline void fetch_tails(const matrix_jobs *jobs, uint32_t job) { (void)jobs, (void)job; }
static inline void await_tails(const matrix_jobs *jobs, uint32_t job) { (void)jobs, (void)job; }
static inline void await_tails_of_all(const matrix_jobs *jobs, const job_split *c, uint32_t job) {
    (void)jobs, (void)c, (void)job;
}
static inline void fetch_tails_of_all(const matrix_jobs *jobs, const job_split *c, uint32_t job) {
    (void)jobs, (void)c, (void)job;
}
static inline void multiply_tails(const matrix_jobs *jobs, uint32_t job, const int8_t *q, uint32_t first,
                                  uint32_t rows, int add, int32_t *sums) {
    (void)jobs, (void)job, (void)q, (void)first, (void)rows, (void)add, (void)sums;
}
static inline void own_tails(const matrix_jobs *jobs, uint32_t job, const sc_qvec *x, int core) {
    (void)jobs, (void)job, (void)x, (void)core;
}
static inline void add_own_tails(const matrix_jobs *jobs, int core, int32_t *low, uint32_t n) {
    (void)jobs, (void)core, (void)low, (void)n;
}

#endif
#endif
