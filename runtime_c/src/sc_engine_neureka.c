/* SPDX-License-Identifier: Apache-2.0
 * N-EUREKA in 1x1 mode: C twin of compiler/shrinkc/engines/neureka.py.
 *
 * A matrix is a sequence of jobs of JOB_ROWS rows.  Two are under way while the cores join, rescale and store
 * the rows of the one before; a target without the engine computes the same sums where it stores them. */
#include "sc_platform.h"

#include "sc_engine.h"
#include "sc_engines.h"

#ifdef SC_ON_NEUREKA

#define BLOCK 32u      /* inputs and outputs of a block */
#define JOB_ROWS_LOG 6 /* agrees with neureka.py */
#define JOBS 3u
#define TOKENS_MAX 18u

_Static_assert(SC_CHUNK <= TOKENS_MAX, "more tokens than a job takes");

static inline uint32_t input_blocks(const sc_matrix *m) { return (m->in.k + BLOCK - 1) / BLOCK; }
static inline const uint8_t *multipliers(const sc_matrix *m, const uint8_t *at) {
    return at + m->blocks * m->block_bytes;
}
static inline uint32_t padded_rows(const sc_matrix *m) { return m->blocks * SC_ROWS; }

/* inputs 4 word .. 4 word + 3 of a row */
static inline void unpack(const uint8_t *word, int8_t w[4]) {
    uint32_t v =
        (uint32_t)word[0] | (uint32_t)word[1] << 8 | (uint32_t)word[2] << 16 | (uint32_t)word[3] << 24;
    uint32_t byte[4] = {0};
    for (int b = 0; b < 8; b++, v >>= 4)
        for (int j = 0; j < 4; j++) byte[j] |= (v >> j & 1) << b;
    for (int j = 0; j < 4; j++) w[j] = (int8_t)(byte[j] - 128);
}

#ifdef SC_NEUREKA

/* Scratch: multipliers of all rows, then JOBS times the sums [pixel][row of the job]. */
#define scales SC_BUFFER(uint16_t *, SC_AT_ENGINE)
static SC_L1 sc_dma scales_dma;

typedef struct {
    uint32_t rows, count; /* of a job, a power of two; jobs */
    uint32_t bytes;       /* of the sums of a job */
} job_sizes;

/* Of few tokens more rows: a job is to last longer than it takes to write the next one's. */
static inline job_sizes sizes_of(const sc_matrix *m, uint32_t tokens) {
    const uint32_t vectors = 2 * tokens, pixels = vectors <= 6 ? vectors : (vectors + 5) / 6 * 6;
    const int log = pixels <= 4 ? JOB_ROWS_LOG + 1 : JOB_ROWS_LOG;
    return (job_sizes){1u << log, (padded_rows(m) + (1u << log) - 1) >> log, pixels << (log + 2)};
}

static inline int32_t *sums(const sc_matrix *m, const job_sizes *s, uint32_t job) {
    return (int32_t *)(void *)((uint8_t *)scales + (2 * padded_rows(m) + 15) / 16 * 16 +
                               job % JOBS * s->bytes);
}

/* The next job, to be committed; waits while two are under way. */
SC_HOT static void write_job(const sc_matrix *m, const uint8_t *at, const int8_t *q, uint32_t tokens,
                             uint32_t job) {
    const job_sizes s = sizes_of(m, tokens);
    const uint32_t first = job * s.rows, left = padded_rows(m) - first, rows = left < s.rows ? left : s.rows;
    const uint32_t vectors = 2 * tokens, width = vectors <= 6 ? vectors : 6;
    const uint32_t height = vectors <= 6 ? 1 : (vectors + 5) / 6, pitch = 4u * m->in.words;
    const uint32_t row_bytes = m->block_bytes / SC_ROWS, ki = input_blocks(m),
                   ko = (rows + BLOCK - 1) / BLOCK;
    const sc_neureka_job j = {
        .weights = (uint32_t)(uintptr_t)at + first * row_bytes,
        .in = (uint32_t)(uintptr_t)q,
        .out = (uint32_t)(uintptr_t)sums(m, &s, job),
        .in_pixel = pitch,
        .in_row = pitch * width,
        .out_pixel = 4 * s.rows,
        .out_row = 4 * s.rows * width,
        .weight_row = row_bytes,
        .last_out_in = (rows - (ko - 1) * BLOCK) << 16 | (m->in.k - (ki - 1) * BLOCK),
        .last_pixels = height << 16 | width,
        .tiles_out_in = ko << 16 | ki,
    };
    sc_neureka_write(&j);
}

SC_HOT static void prepare(const sc_matrix *m, const uint8_t *at, const int8_t *q, uint32_t tokens,
                           int core) {
    if (core != SC_LAST_CORE(SC_CORES)) return;
    write_job(m, at, q, tokens, 0);
    scales_dma = sc_dma_in(scales, multipliers(m, at), 2 * padded_rows(m));
}

SC_HOT static void begin(const sc_matrix *m, const uint8_t *at, const sc_qvec *x, uint32_t tokens, int core) {
    if (core != SC_LAST_CORE(SC_CORES)) return;
    sc_neureka_commit();
    if (sizes_of(m, tokens).count > 1) {
        write_job(m, at, x->q, tokens, 1);
        sc_neureka_commit();
    }
}

SC_HOT static void end(const sc_matrix *m, const uint8_t *at, const sc_qvec *x, uint32_t tokens,
                       const sc_output *out, int core) {
    const job_sizes s = sizes_of(m, tokens);
    for (uint32_t job = 0; job < s.count; job++) {
        if (core == SC_LAST_CORE(SC_CORES)) {
            if (job == 0) sc_dma_wait(scales_dma);
            sc_neureka_wait(job + 1 < s.count);
        }
        sc_barrier(); /* the sums are there, and nobody reads those of the job before any more */
        if (core == SC_LAST_CORE(SC_CORES) && job + 2 < s.count) {
            write_job(m, at, x->q, tokens, job + 2);
            sc_neureka_commit();
        }
        const uint32_t first = job * s.rows, left = padded_rows(m) - first,
                       rows = left < s.rows ? left : s.rows;
        /* all rows of some tokens, or some rows of all */
        const uint32_t each =
            tokens >= SC_CORES ? rows : (rows + SC_CORES * SC_ROWS - 1) / (SC_CORES * SC_ROWS) * SC_ROWS;
        const uint32_t mine = tokens >= SC_CORES ? 0 : each * (uint32_t)core;
        if (mine >= rows) continue;
        const uint32_t n = rows - mine < each ? rows - mine : each;
        for (uint32_t t = tokens >= SC_CORES ? (uint32_t)core : 0; t < tokens;
             t += tokens >= SC_CORES ? SC_CORES : 1) {
            const int32_t *low = sums(m, &s, job) + 2 * s.rows * t + mine;
            sc_matrix_joined(m, scales + first + mine, first + mine, n, low, low + s.rows, &x[t], out,
                             out->dst + t * out->stride);
        }
    }
}

#else

#define prepare 0

static void begin(const sc_matrix *m, const uint8_t *at, const sc_qvec *x, uint32_t tokens, int core) {
    (void)m, (void)at, (void)x, (void)tokens, (void)core;
}

static void end(const sc_matrix *m, const uint8_t *at, const sc_qvec *x, uint32_t tokens,
                const sc_output *out, int core) {
    sc_barrier();
    const uint32_t row_bytes = m->block_bytes / SC_ROWS, pitch = 4u * m->in.words;
    for (uint32_t b = (uint32_t)core; b < m->blocks; b += SC_CORES) {
        int32_t acc[SC_CHUNK][SC_ROWS] = {{0}};
        for (uint32_t r = 0; r < SC_ROWS; r++) {
            const uint8_t *word = at + (b * SC_ROWS + r) * row_bytes;
            for (uint32_t i = 0; i < m->in.k; i += 4, word += 4) {
                const uint32_t n = m->in.k - i < 4 ? m->in.k - i : 4;
                int8_t w[4];
                unpack(word, w);
                for (uint32_t t = 0; t < tokens; t++) {
                    const int8_t *low = x[t].q + i, *high = low + pitch;
                    for (uint32_t j = 0; j < n; j++) acc[t][r] += w[j] * (low[j] + 256 * high[j]);
                }
            }
        }
        uint16_t r[SC_ROWS];
        __builtin_memcpy(r, multipliers(m, at) + 2 * b * SC_ROWS, sizeof r);
        for (uint32_t t = 0; t < tokens; t++)
            sc_matrix_rows(m, r, b * SC_ROWS, acc[t], &x[t], out, out->dst + t * out->stride);
    }
}

#endif

static void read_row(const sc_matrix *m, const uint8_t *at, uint32_t row, uint32_t k, uint32_t factor,
                     int shift, int32_t *x, int core, int cores) {
    const uint8_t *word = at + row * (m->block_bytes / SC_ROWS), *r = multipliers(m, at) + 2 * row;
    const int32_t scale = r[0] | r[1] << 8;
    for (uint32_t i = 4 * (uint32_t)core; i < k; i += 4 * (uint32_t)cores) {
        int8_t w[4];
        unpack(word + i, w);
        for (uint32_t j = 0; j < 4 && i + j < k; j++) x[i + j] = sc_requantize(w[j] * scale, factor, shift);
    }
}

SC_L1_DATA const sc_engine sc_engine_neureka = {prepare, begin, end, read_row};

#endif
