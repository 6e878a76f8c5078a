/* SPDX-License-Identifier: Apache-2.0
 * Interface of engines other than the cores, such as N-EUREKA.
 *
 * An engine reads a matrix in place, in a layout of its own: `blocks` blocks of block_bytes, then further
 * data. `at`: start of the matrix. Scratch in L1: SC_AT_ENGINE, if the engine needs any. */
#ifndef SC_ENGINES_H
#define SC_ENGINES_H

#include "sc_kernels.h"

/* Whether an engine runs a matrix. */
static inline int sc_on_engine(const sc_matrix *m) {
#ifndef SC_HAS_ENGINES
    (void)m;
    return 0;
#elif SC_ENGINES_ALONE
    (void)m;
    return 1;
#else
    return m->engine != SC_ON_CORES;
#endif
}

#ifdef SC_ONLY_ENGINE

/* By the last core for every matrix, before the first pass: precomputes constants. q: where the vector of a
 * single token will be. */
void sc_engine_start(const sc_matrix *m, const uint8_t *at, const int8_t *q);
/* prepare, begin, control: by the controller, overlapped with the workers.
 * prepare: work before the activations exist. One token: earlier activations are no longer read; after a norm
 * there is more time. Several tokens: earlier sums may still be read if no worker starts jobs. */
void sc_engine_prepare(const sc_matrix *m, uint32_t tokens, int after_norm);
/* Starts m @ x[0 .. tokens - 1]. Values are complete and scratch is free; scales may still be missing. */
void sc_engine_begin(const sc_matrix *m, uint32_t tokens);
/* Controller's part during end, with the same number of sc_team_barrier(). */
void sc_engine_control(const sc_matrix *m, uint32_t tokens);
/* By all workers: computes m @ x[0 .. tokens - 1] and stores it as `out` says. The first sc_team_barrier()
 * waits for the complete activations. */
void sc_engine_end(const sc_matrix *m, const uint8_t *at, const sc_qvec *x, uint32_t tokens,
                   const sc_output *out, int core);
/* This core's share of a row of the embedding: k values. */
void sc_engine_row(const sc_matrix *m, const uint8_t *at, uint32_t row, uint32_t k, uint32_t factor,
                   int shift, int32_t *x, int core, int cores);

#elif defined(SC_HAS_ENGINES)

/* The same functions of each engine, sc_engine_<name>. row: NULL if it runs no embedding. */
typedef struct {
    void (*start)(const sc_matrix *m, const uint8_t *at, const int8_t *q);
    void (*prepare)(const sc_matrix *m, uint32_t tokens, int after_norm);
    void (*begin)(const sc_matrix *m, uint32_t tokens);
    void (*control)(const sc_matrix *m, uint32_t tokens);
    void (*end)(const sc_matrix *m, const uint8_t *at, const sc_qvec *x, uint32_t tokens,
                const sc_output *out, int core);
    void (*row)(const sc_matrix *m, const uint8_t *at, uint32_t row, uint32_t k, uint32_t factor, int shift,
                int32_t *x, int core, int cores);
} sc_engine;

extern const sc_engine *const sc_engines[]; /* index: sc_matrix.engine; NULL for the cores */

#define sc_engine_start(m, at, q) sc_engines[(m)->engine]->start(m, at, q)
#define sc_engine_prepare(m, tokens, after_norm) sc_engines[(m)->engine]->prepare(m, tokens, after_norm)
#define sc_engine_begin(m, tokens) sc_engines[(m)->engine]->begin(m, tokens)
#define sc_engine_control(m, tokens) sc_engines[(m)->engine]->control(m, tokens)
#define sc_engine_end(m, at, x, tokens, out, core) sc_engines[(m)->engine]->end(m, at, x, tokens, out, core)
#define sc_engine_row(m, at, row_, k, factor, shift, x, core, cores)                                         \
    sc_engines[(m)->engine]->row(m, at, row_, k, factor, shift, x, core, cores)

#else

#define sc_engine_prepare(m, tokens, after_norm) ((void)(m), (void)(tokens), (void)(after_norm))
#define sc_engine_begin(m, tokens) ((void)(m), (void)(tokens))
#define sc_engine_control(m, tokens) ((void)(m), (void)(tokens))

#endif

#endif
