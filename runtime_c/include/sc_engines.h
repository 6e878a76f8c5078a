/* SPDX-License-Identifier: Apache-2.0
 * Interface of engines other than the cores (N-EUREKA), in programs with matrices for one (SC_HAS_ENGINES).
 *
 * An engine reads a matrix in place, in a layout of its own: `blocks` blocks of block_bytes, then further
 * data. Results equal sc_matrix_tile() bit for bit. */
#ifndef SC_ENGINES_H
#define SC_ENGINES_H

#include "sc_kernels.h"

#ifdef SC_HAS_ENGINES

/* sc_engine_<name>. `at`: start of the matrix. Scratch in L1: SC_AT_ENGINE, if the engine needs any. */
typedef struct {
    /* NULL, or by the last core for every matrix, before the first pass: precomputes constants. q: where the
     * vector of a single token will be. */
    void (*start)(const sc_matrix *m, const uint8_t *at, const int8_t *q);
    /* prepare, begin, control: by the controller, overlapped with the workers; not NULL if it is in the team.
     * prepare: work before the activations exist. One token: earlier activations are no longer read; after a
     * norm there is more time. Several tokens: earlier sums may still be read if no worker starts jobs. */
    void (*prepare)(const sc_matrix *m, uint32_t tokens, int after_norm);
    /* Starts m @ x[0 .. tokens - 1]. Values are complete and scratch is free; scales may still be missing. */
    void (*begin)(const sc_matrix *m, const sc_qvec *x, uint32_t tokens);
    /* Controller's part during end(), with the same number of sc_team_barrier(). */
    void (*control)(const sc_matrix *m, uint32_t tokens);
    /* By all workers: computes m @ x[0 .. tokens - 1] and stores it as `out` says, with sc_matrix_rows() or
     * sc_matrix_joined(). The first sc_team_barrier() waits for the complete activations. */
    void (*end)(const sc_matrix *m, const uint8_t *at, const sc_qvec *x, uint32_t tokens,
                const sc_output *out, int core);
    /* Like sc_embed_row(): this core's share of an embedding row. NULL if the engine runs no embedding. */
    void (*row)(const sc_matrix *m, const uint8_t *at, uint32_t row, uint32_t k, uint32_t factor, int shift,
                int32_t *x, int core, int cores);
} sc_engine;

#ifdef SC_ONLY_ENGINE
extern const sc_engine SC_ONLY_ENGINE;
#else
extern const sc_engine *const sc_engines[]; /* index: sc_matrix.engine; NULL for the cores */
#endif

static inline const sc_engine *sc_engine_of(const sc_matrix *m) {
#ifdef SC_ONLY_ENGINE
    (void)m;
    return &SC_ONLY_ENGINE;
#else
    return sc_engines[m->engine];
#endif
}

#endif

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

/* The controller's calls for the engine of a matrix, if it has one. */
#ifdef SC_HAS_ENGINES
static inline void sc_engine_prepare(const sc_matrix *m, uint32_t tokens, int after_norm) {
    if (sc_on_engine(m)) sc_engine_of(m)->prepare(m, tokens, after_norm);
}
static inline void sc_engine_begin(const sc_matrix *m, const sc_qvec *x, uint32_t tokens) {
    if (sc_on_engine(m)) sc_engine_of(m)->begin(m, x, tokens);
}
static inline void sc_engine_control(const sc_matrix *m, uint32_t tokens) {
    if (sc_on_engine(m)) sc_engine_of(m)->control(m, tokens);
}
#else
#define sc_engine_prepare(m, tokens, after_norm) ((void)(m), (void)(tokens), (void)(after_norm))
#define sc_engine_begin(m, x, tokens) ((void)(m), (void)(x), (void)(tokens))
#define sc_engine_control(m, tokens) ((void)(m), (void)(tokens))
#endif

#endif
