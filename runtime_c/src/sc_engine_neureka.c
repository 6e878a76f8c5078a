/* SPDX-License-Identifier: Apache-2.0
 * Matrix products on N-EUREKA: y = W * x, x: int16 as low and high bytes. Same integers as
 * compiler/shrinkc/engines/neureka_*.py. The engine reads W in weight memory and x in L1.
 *
 * A matrix is a sequence of jobs, each with some rows and one or all tokens. The controller writes jobs and
 * keeps two in progress. Meanwhile the workers combine, rescale and store the sums of the previous job. Targets without the engine compute the same sums on the cores. */
#include "sc_platform.h"

#include "sc_runtime.h"

#if defined(SC_ON_NEUREKA_1X1) || defined(SC_ON_NEUREKA_3X3) || defined(SC_ON_NEUREKA_BOTH)

#ifndef SC_ONLY_ENGINE /* sc_engines[] has them, under these names */
#undef sc_engine_start
#undef sc_engine_prepare
#undef sc_engine_begin
#undef sc_engine_control
#undef sc_engine_end
#undef sc_engine_row
#define sc_engine_start neureka_start
#define sc_engine_prepare neureka_prepare
#define sc_engine_begin neureka_begin
#define sc_engine_control neureka_control
#define sc_engine_end neureka_end
#define sc_engine_row neureka_row
#endif

#include "sc_epilogue_neureka.h"
#include "sc_neureka_rows.h"

#define OUTPUTS 32u    /* per tile */
#define JOB_ROWS_LOG 6 /* equal to neureka_1x1.py, like the next two */
#define JOBS 3u
#define PIXELS 36 /* per tile */
#define TOKENS_MAX 36u

_Static_assert(SC_CHUNK <= TOKENS_MAX, "more tokens than a job takes");
_Static_assert((JOBS * (4 * 4 + 2)) << (JOB_ROWS_LOG + 1) <= SC_BYTES_ENGINE,
               "planned room of one token's jobs");
#if defined(SC_ON_NEUREKA_1X1) || defined(SC_ON_NEUREKA_BOTH)
#define PIXELS_MAX (2 * SC_CHUNK <= 6 ? 2 * SC_CHUNK : (2 * SC_CHUNK + 5) / 6 * 6)
_Static_assert((SC_CHUNK > PIXELS / 2 ? (JOBS * (4 * PIXELS + 2)) << (JOB_ROWS_LOG + 1)
                                      : (JOBS * (4 * PIXELS_MAX + 2)) << JOB_ROWS_LOG) <= SC_BYTES_ENGINE,
               "planned room of many tokens' jobs");
#endif

#if SC_IN_PLACE && defined(SC_ON_NEUREKA_3X3)
#error "vectors of the 3x3 mode are jobs_of_matrices, which have a place of their own"
#endif

#ifdef SC_NEUREKA
_Static_assert(SC_TEAM > SC_CORES, "the controller looks after the engine");

#include "sc_neureka_jobs.h"

/* Registers that depend on the number of rows of a job. */
typedef struct {
    uint32_t last_out_in, tiles_out_in;
#ifdef SC_ENGINE_SECOND_LAYOUT
    uint16_t out_pixel, out_row; /* output strides in bytes */
    uint16_t apart;              /* words from low to high sums */
#endif
} extent;
enum { WHOLE, HALF, LAST, EXTENTS };

/* Registers of a matrix's jobs for one token, computed once: jobs differ only in rows. */
typedef struct {
    sc_neureka_job job; /* of the first job */
    extent extents[EXTENTS];
    uint32_t config_id;       /* equal if registers differ only in addresses and extent */
    uint32_t half_bytes;      /* weight bytes of half a job's rows */
    uint16_t count;           /* number of jobs; 0: the cores run the matrix */
    uint16_t whole;           /* number of whole jobs before those with half as many rows */
    uint16_t rows, last_rows; /* rows of a whole job, of the last job */
#ifdef SC_ENGINE_SECOND_LAYOUT
    uint16_t zeros_at, zeros; /* second layout: end of the low bytes, words of zeros after them */
#else
    uint16_t apart; /* words from low to high sums */
#endif
    uint16_t last_each, last_blocks; /* rows per core in the last job: even, or whole blocks */
    const uint16_t *multipliers;     /* [rows], in L1 if the plan has room */
#ifdef SC_ENGINE_REMAINDERS
    uint16_t tail_row; /* bytes that the engine reads of a row with a tail */
    uint16_t tail_at;  /* first byte of a tail in the vector */
    uint16_t high;     /* bytes from low to high bytes of the vector */
    uint8_t tail_words, tails : 4, nibbles : 4;
#endif
} matrix_jobs;
_Static_assert(sizeof(matrix_jobs) <= SC_ENGINE_TABLE, "planned size of matrix_jobs");
static SC_L1_LARGE matrix_jobs jobs_of_matrices[SC_MATRICES];

#ifdef SC_AT_MULTIPLIERS
/* Copies the multipliers of all N-EUREKA matrices to L1, because a core stalls for each load from weight
 * memory. */
static const uint16_t *keep_multipliers(const sc_matrix *m, const uint8_t *at) {
    uint8_t *to = SC_BUFFER(uint8_t *, SC_AT_MULTIPLIERS);
    for (const sc_matrix *before = sc_matrices; before < m; before++)
        if (sc_on_engine(before)) to += 2 * padded_rows(before);
    sc_dma_wait(sc_dma_in(to, multipliers(m, at), 2 * padded_rows(m)));
    return (const uint16_t *)(const void *)to;
}
#else
#define keep_multipliers multipliers
#endif

/* Number of whole jobs for one token. The last two or three jobs have half as many rows, because the engine
 * is idle while the cores finish the last sums. */
static uint32_t whole_jobs(const sc_matrix *m, const job_split *whole, const job_split *half) {
#ifdef SC_ENGINE_REMAINDERS
    if (m->remainders) return whole->count;
#endif
    (void)m;
    return half->count < 2 ? whole->count : half->count < 4 ? 0 : half->count / 2 - 1;
}

static inline matrix_jobs *jobs_of(const sc_matrix *m) { return &jobs_of_matrices[m - sc_matrices]; }

#include "sc_neureka_copies.h"

void sc_engine_start(const sc_matrix *m, const uint8_t *at, const int8_t *q) {
    matrix_jobs *const jobs = jobs_of(m);
    jobs->multipliers = keep_multipliers(m, at);
    if (sc_taps(m)) {
        start_copy(jobs, m, at, q);
        return;
    }
    const job_split c = split_of(m, 1);
    job_split half = c;
    half.log--, half.count = (c.rows + (1u << half.log) - 1) >> half.log;
    const uint32_t whole = whole_jobs(m, &c, &half);
    const job_split *const ends = whole == c.count ? &c : &half;
    const job_share last = share_of_job(ends, ends->count - 1);
    const sc_neureka_job first = job_of(m, at, q, ends, 0), end = job_of(m, at, q, ends, ends->count - 1);
    jobs->job = job_of(m, at, q, &c, 0);
    jobs->extents[WHOLE] = (extent){.last_out_in = first.last_out_in, .tiles_out_in = jobs->job.tiles_out_in};
    jobs->extents[HALF] = (extent){.last_out_in = first.last_out_in, .tiles_out_in = first.tiles_out_in};
    jobs->extents[LAST] = (extent){.last_out_in = end.last_out_in, .tiles_out_in = end.tiles_out_in};
    same_places(jobs, c.apart << c.log);
    jobs->half_bytes = (m->block_bytes << half.log) / SC_ROWS;
    jobs->rows = (uint16_t)(1u << c.log), jobs->last_rows = (uint16_t)last.count;
    jobs->last_each = (uint16_t)((last.count + SC_CORES * 2 - 1) / (SC_CORES * 2) * 2);
    jobs->last_blocks = (uint16_t)((last.count + SC_CORES * SC_ROWS - 1) / (SC_CORES * SC_ROWS) * SC_ROWS);
    jobs->config_id = m->in.words << 7 | bits_of(m) << 1 | (uint32_t)is_1x1(m);
#ifdef SC_ENGINE_REMAINDERS
    jobs->tails = m->remainders;
    if (m->remainders) {
        jobs->tail_words = (uint8_t)tail_words(m), jobs->tail_at = (uint16_t)tail_of(m).first;
        jobs->tail_row = (uint16_t)(tile_bytes(m) * tiles_before_tail(m)),
        jobs->high = (uint16_t)(4 * m->in.words);
        jobs->nibbles = has_nibbles(m) & 1;
        jobs->last_each = jobs->last_blocks;
        jobs->config_id |= (uint32_t)m->remainders << 5;
    }
#endif
    jobs->whole = (uint16_t)whole, jobs->count = (uint16_t)(ends == &c ? whole : half.count - whole);
}

/* Half jobs before job `job` of one token. */
static inline uint32_t halves_before(const matrix_jobs *jobs, uint32_t job) {
    return job + (job < jobs->whole ? job : jobs->whole);
}

#include "sc_neureka_tails.h"

/* Writes the next job for one token, without starting it. Waits while two jobs are in progress. */
SC_HOT static void write_one(const matrix_jobs *jobs, uint32_t job) {
    const extent *const e = &jobs->extents[job + 1u == jobs->count ? LAST : job < jobs->whole ? WHOLE : HALF];
    const sc_neureka at = sc_neureka_acquire();
    sc_neureka_place(at, jobs->job.weights + halves_before(jobs, job) * jobs->half_bytes,
                     jobs->job.out + job % JOBS * SC_NEUREKA_SUMS, e->last_out_in, e->tiles_out_in);
    if (sc_neureka_holds() != jobs->config_id) sc_neureka_configure(at, &jobs->job);
    write_places(at, e);
    write_tail(at, jobs, job, e->last_out_in, e->tiles_out_in);
    sc_neureka_written(jobs->config_id);
}

/* Current matrix in passes with one token (or one left in the last layer). Written by the controller. */
static SC_L1 struct {
    const matrix_jobs
        *current; /* of the current jobs; the workers copy it before the first barrier in sc_engine_end() */
    const sc_matrix *of;    /* matrix whose first job is written, or 0 */
    const matrix_jobs *end; /* end of the pass's matrices */
    uint32_t written;       /* jobs written before sc_engine_begin() */
} single;

static inline void write_first(const matrix_jobs *jobs) {
    single.current = jobs;
    write_one(jobs, 0);
    fetch_tails(jobs, 0);
}

/* For a pass's first matrix, and for one after a matrix of another engine. */
SC_WARM static void prepare_first(const sc_matrix *m) {
    single.end = jobs_of(sc_pass_end());
    single.of = m;
    write_first(jobs_of(m));
}

#include "sc_neureka_several.h"

SC_HOT void sc_engine_prepare(const sc_matrix *m, uint32_t tokens, int after_norm) {
    if (tokens > 1) {
        prepare_several(m, tokens);
        return;
    }
    if (__builtin_expect(single.of != m, 0)) prepare_first(m);
    const matrix_jobs *const jobs = single.current;
    clear_between(jobs);
    single.written = 1;
    if (after_norm && jobs->count > 1) {
        /* there is time, and the engine continues right after the first job */
        single.written = 2;
        sc_neureka_hold();
        write_one(jobs, 1);
    }
}

/* The first job starts before anything else: all cores wait for it. */
SC_HOT void sc_engine_begin(const sc_matrix *m, uint32_t tokens) {
    sc_neureka_commit();
    if (tokens > 1) begun_several(m, tokens);
}

SC_HOT void sc_engine_control(const sc_matrix *m, uint32_t tokens) {
    if (tokens > 1) {
        control_several(m, tokens);
        return;
    }
    const matrix_jobs *jobs = single.current;
    uint32_t job = 0, left;
    await_tails(jobs, 0);
    sc_team_barrier(); /* the vector's scale is ready */
    do {               /* keeps two jobs in progress */
        left = jobs->count - ++job;
        if (left && job >= single.written) {
            write_one(jobs, job);
            sc_neureka_commit();
        }
#ifdef SC_ENGINE_REMAINDERS
        if (left) { /* tail weights of this job replace those of the job before the last */
            fetch_tails(jobs, job);
            await_tails(jobs, job);
        }
#endif
        sc_neureka_wait(left > 0);
        sc_team_barrier();
    } while (left);
    /* writes the next matrix's first job while the workers finish the last sums */
    const int follows = ++jobs != single.end && jobs->count;
    single.of = follows ? single.of + 1 : 0;
    if (follows) write_first(jobs);
}

#ifdef SC_ENGINE_REMAINDERS
#define BARRIER_IN_JOIN 0 /* tails are added first */
#else
#define BARRIER_IN_JOIN 1
#endif

SC_HOT void sc_engine_end(const sc_matrix *m, const uint8_t *at, const sc_qvec *x, uint32_t tokens,
                          const sc_output *out, int core) {
    (void)at; /* matrix_jobs has everything */
    if (tokens > 1) {
        end_several(m, x, tokens, out, core);
        return;
    }
    const matrix_jobs *const jobs = single.current;
    /* This core's rows of a job: `rows` from `mine` on; `row`: first row of the job. */
    uint32_t rows = jobs->rows / SC_CORES, mine = rows * (uint32_t)core, row = 0, job = 0, places = JOBS;
    uint32_t apart = apart_of(jobs, jobs->whole ? WHOLE : HALF), left = jobs->count;
    int32_t *sums = (int32_t *)(uintptr_t)jobs->job.out;
    sc_team_barrier();
    const joining j = joining_of(m, x, out);
    if (has_any_tails(jobs)) own_tails(jobs, 0, x, core);
    for (;;) {
        if (job == jobs->whole) mine /= 2, rows /= 2, apart = apart_of(jobs, HALF);
        if (--left == 0) {
            const uint32_t each = out->kind == SC_SILU ? jobs->last_blocks : jobs->last_each;
            const uint32_t there = m->rows - row;
            apart = apart_of(jobs, LAST);
            mine = each * (uint32_t)core;
            if (mine >= there) {
                sc_team_barrier();
                return;
            }
            rows = there - mine < each ? there - mine : each;
        }
        int32_t *const low = sums + mine;
        const uint32_t of = row + mine;
#ifdef SC_ENGINE_REMAINDERS
        sc_team_barrier();
        if (has_tails(jobs, job)) add_own_tails(jobs, core, low, (rows + SC_ROWS - 1) / SC_ROWS * SC_ROWS);
#endif
        join(&j, jobs->multipliers + of, of, rows, low, low + apart, out->dst, BARRIER_IN_JOIN, OF_ONE);
        if (left == 0) return;
        job++;
        if (has_tails(jobs, job)) own_tails(jobs, job, x, core);
        row += rows * SC_CORES;
        sums += SC_NEUREKA_SUMS / 4;
        if (--places == 0) places = JOBS, sums -= JOBS * SC_NEUREKA_SUMS / 4;
    }
}

#else

void sc_engine_start(const sc_matrix *m, const uint8_t *at, const int8_t *q) { (void)m, (void)at, (void)q; }
void sc_engine_prepare(const sc_matrix *m, uint32_t tokens, int after_norm) {
    (void)m, (void)tokens, (void)after_norm;
}
void sc_engine_begin(const sc_matrix *m, uint32_t tokens) { (void)m, (void)tokens; }
void sc_engine_control(const sc_matrix *m, uint32_t tokens) {
    (void)m, (void)tokens;
    sc_team_barrier();
}

/* low + 256 * high dot product. A whole piece has a constant length, so compilers vectorise the loop. */
static inline int32_t dot(const int8_t *w, const int8_t *low, const int8_t *high, uint32_t n) {
    int32_t l = 0, h = 0;
    if (n == PIECE_MAX) {
        for (uint32_t i = 0; i < PIECE_MAX; i++) l += w[i] * low[i], h += w[i] * high[i];
    } else {
        for (uint32_t i = 0; i < n; i++) l += w[i] * low[i], h += w[i] * high[i];
    }
    return l + 256 * h;
}

void sc_engine_end(const sc_matrix *m, const uint8_t *at, const sc_qvec *x, uint32_t tokens,
                   const sc_output *out, int core) {
    const uint32_t pitch = sc_q16_pitch(m, tokens);
    sc_team_barrier();
    for (uint32_t b = (uint32_t)core; b < m->blocks; b += SC_CORES) {
        int32_t acc[SC_CHUNK][SC_ROWS] = {{0}};
        const uint32_t pieces = pieces_of_tile(m) * tiles_of_row(m, b * SC_ROWS);
        for (uint32_t r = 0; r < SC_ROWS; r++) {
            for (uint32_t i = 0; i < pieces; i++) {
                int8_t w[PIECE_MAX];
                const piece p = unpack(m, row_at(m, at, b * SC_ROWS + r), i, w);
                for (uint32_t t = 0; t < tokens; t++)
                    acc[t][r] += dot(w, x[t].q + p.first, x[t].q + pitch + p.first, p.count);
            }
        }
#ifdef SC_ENGINE_REMAINDERS
        for (uint32_t t = 0; has_tail(m, b * SC_ROWS) && t < tokens; t++) {
            const tail_place p = tail_of(m);
            const int8_t *const q = x[t].q + p.first;
            sc_rows of;
            dot_tails(&of, tails_at(m, at, b * SC_ROWS), q, q + pitch, p, (uint32_t)has_nibbles(m));
#define SUM(r) acc[t][r] += of.s##r;
            SC_EACH_ROW(SUM)
#undef SUM
        }
#endif
        for (uint32_t t = 0; t < tokens; t++)
            sc_matrix_rows(m, multipliers(m, at) + b * SC_ROWS, b * SC_ROWS, acc[t], &x[t], out,
                           out->dst + t * out->stride);
    }
}

#endif

#ifndef SC_ONLY_ENGINE
#define FUNCTIONS                                                                                            \
    {sc_engine_start, sc_engine_prepare, sc_engine_begin, sc_engine_control, sc_engine_end, sc_engine_row}
SC_L1_DATA const sc_engine sc_engine_neureka_1x1 = FUNCTIONS, sc_engine_neureka_both = FUNCTIONS,
                           sc_engine_neureka_3x3 = FUNCTIONS;
#endif

#endif
