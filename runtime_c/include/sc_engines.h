/* SPDX-License-Identifier: Apache-2.0
 * Compute engines beside the cores, in programs that have matrices for one (SC_HAS_ENGINES).
 *
 * Such a matrix is neither cut into tiles nor copied: its engine reads it where it lies.  Its layout is
 * the engine's own: blocks of block_bytes, blocks in number, and what lies behind the last one.  What
 * comes out is what sc_matrix_tile() would give, integer for integer. */
#ifndef SC_ENGINES_H
#define SC_ENGINES_H

#include "sc_kernels.h"

#ifdef SC_HAS_ENGINES

/* What an engine's source defines as sc_engine_<name>; `at` is where the matrix begins.  Its scratch in L1 is at
 * SC_AT_ENGINE, if it asked for any. */
typedef struct {
    /* NULL, or by the last core alone, of every matrix before the first pass: what of it stays the same.  One
     * token's activations will be from q on. */
    void (*start)(const sc_matrix *m, const uint8_t *at, const int8_t *q);
    /* The next three by the controller, beside the workers, where SC_TEAM has it: never NULL.  First what can be done
     * before activations are there, of 16-bit vectors as begin(): of one token's, when nobody reads those before any
     * more, and behind a norm there is time for more; of several, while sums of the matrix before may still be read, if
     * no worker starts jobs. */
    void (*prepare)(const sc_matrix *m, uint32_t tokens, int behind_norm);
    /* Starts m @ x[0 .. tokens - 1].  The values are there, and the scratch is free; mantissas and exponents may not be
     * there yet. */
    void (*begin)(const sc_matrix *m, const sc_qvec *x, uint32_t tokens);
    /* What is to do beside end(): it meets the workers (sc_meet()) as often as that does. */
    void (*attend)(const sc_matrix *m, uint32_t tokens);
    /* By all workers, with their core: brings every row of m @ x[0 .. tokens - 1] to where `out` says, by
     * sc_matrix_rows() or sc_matrix_joined(), after it has met the controller (sc_meet()): then the activations are whole. */
    void (*end)(const sc_matrix *m, const uint8_t *at, const sc_qvec *x, uint32_t tokens,
                const sc_output *out, int core);
    /* This core's share of an embedding row, as sc_embed_row(); NULL where an engine runs no such matrix. */
    void (*row)(const sc_matrix *m, const uint8_t *at, uint32_t row, uint32_t k, uint32_t factor, int shift,
                int32_t *x, int core, int cores);
} sc_engine;

#ifdef SC_ONLY_ENGINE
extern const sc_engine SC_ONLY_ENGINE;
#else
extern const sc_engine *const sc_engines[]; /* by sc_matrix.engine; of the cores NULL */
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

/* Whether one of these runs a matrix that a pass multiplies with: all where none travels in tiles. */
static inline int sc_on_engine(const sc_matrix *m) {
#ifdef SC_HAS_ENGINES
    return SC_TILE_BYTES == 0 || m->engine != SC_ON_CORES;
#else
    (void)m;
    return 0;
#endif
}

/* What the controller does for the engine that runs a matrix, if there is anything. */
#ifdef SC_HAS_ENGINES
static inline void sc_engine_prepare(const sc_matrix *m, uint32_t tokens, int behind_norm) {
    if (sc_on_engine(m)) sc_engine_of(m)->prepare(m, tokens, behind_norm);
}
static inline void sc_engine_begin(const sc_matrix *m, const sc_qvec *x, uint32_t tokens) {
    if (sc_on_engine(m)) sc_engine_of(m)->begin(m, x, tokens);
}
static inline void sc_engine_attend(const sc_matrix *m, uint32_t tokens) {
    if (sc_on_engine(m)) sc_engine_of(m)->attend(m, tokens);
}
#else
#define sc_engine_prepare(m, tokens, behind_norm) ((void)(m), (void)(tokens), (void)(behind_norm))
#define sc_engine_begin(m, x, tokens) ((void)(m), (void)(x), (void)(tokens))
#define sc_engine_attend(m, tokens) ((void)(m), (void)(tokens))
#endif

#endif
