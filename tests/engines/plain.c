/* SPDX-License-Identifier: Apache-2.0
 * The C twin of plain.py.  The sums of all rows are left in the scratch, row by row, and given to the cores in blocks
 * of 8, so that almost every core reads what others wrote. */
#include "sc_platform.h"

#include "sc_runtime.h"

#ifdef SC_ON_PLAIN

#ifndef SC_ONLY_ENGINE /* sc_engines[] has them, under these names */
#undef sc_engine_start
#undef sc_engine_prepare
#undef sc_engine_begin
#undef sc_engine_control
#undef sc_engine_end
#undef sc_engine_row
#define sc_engine_start plain_start
#define sc_engine_prepare plain_prepare
#define sc_engine_begin plain_begin
#define sc_engine_control plain_control
#define sc_engine_end plain_end
#define sc_engine_row plain_row
#endif

#define ROWS 16u
#define sums SC_BUFFER(int32_t *, SC_AT_ENGINE) /* [tokens][rows] */

static uint32_t stored(const sc_matrix *m) { return m->blocks * ROWS; }
static const uint8_t *multipliers(const sc_matrix *m, const uint8_t *at) {
    return at + m->blocks * m->block_bytes;
}
static int32_t scale(const sc_matrix *m, const uint8_t *at, uint32_t row, uint32_t g) {
    if (!(m->format & SC_FMT_GROUPED)) return 1;
    return multipliers(m, at)[2 * stored(m) + row * m->in.groups + g];
}

static int32_t wide_sum(const sc_matrix *m, const int8_t *w, const int8_t *low) {
    const int8_t *high = low + 4u * m->in.words;
    int32_t acc = 0;
    for (uint32_t i = 0; i < 4u * m->in.words; i++) acc += w[i] * (low[i] + 256 * high[i]);
    return acc;
}

static void sum(const sc_matrix *m, const uint8_t *at, const sc_qvec *x, uint32_t tokens, int core) {
    for (uint32_t t = 0; t < tokens; t++) {
        for (uint32_t row = (uint32_t)core; row < stored(m); row += SC_CORES) {
            const int8_t *w = (const int8_t *)at + row * (m->block_bytes / ROWS), *q = x[t].q;
            if (m->format & SC_FMT_Q16) {
                sums[t * stored(m) + row] = wide_sum(m, w, q);
                continue;
            }
            int32_t acc = 0;
            for (uint32_t g = 0; g < m->in.groups; g++) {
                uint32_t n = 4u * (g + 1 < m->in.groups ? m->in.group_words : m->in.last_words);
                int32_t s = 0;
                for (uint32_t i = 0; i < n; i++) s += w[i] * q[i];
                w += n, q += n;
                s *= scale(m, at, row, g);
                if (m->drop) s = (s + (1 << (m->drop - 1))) >> m->drop;
                acc += s * x[t].c[g];
            }
            sums[t * stored(m) + row] = acc;
        }
    }
}

void sc_engine_end(const sc_matrix *m, const uint8_t *at, const sc_qvec *x, uint32_t tokens,
                   const sc_output *out, int core) {
    sc_team_barrier(); /* the activations are there */
    sum(m, at, x, tokens, core);
    sc_worker_barrier();
    for (uint32_t t = 0; t < tokens; t++) {
        for (uint32_t row = (uint32_t)core * SC_ROWS; row < m->rows; row += SC_CORES * SC_ROWS) {
            int32_t y[SC_ROWS];
            uint16_t r[SC_ROWS];
            __builtin_memcpy(y, &sums[t * stored(m) + row], sizeof y);
            __builtin_memcpy(r, multipliers(m, at) + 2 * row, sizeof r);
            sc_matrix_rows(m, r, row, y, &x[t], out, out->dst + t * out->stride);
        }
    }
}

void sc_engine_row(const sc_matrix *m, const uint8_t *at, uint32_t row, uint32_t k, uint32_t factor,
                   int shift, int32_t *x, int core, int cores) {
    const int8_t *w = (const int8_t *)at + row * (m->block_bytes / ROWS);
    const uint8_t *r = multipliers(m, at) + 2 * row;
    for (uint32_t i = (uint32_t)core; i < k; i += (uint32_t)cores) {
        uint32_t g = i / m->in.group_elems;
        int32_t v = w[4 * g * m->in.group_words + i - g * m->in.group_elems] * scale(m, at, row, g);
        x[i] = sc_requantize(v * (r[0] | r[1] << 8), factor, shift);
    }
}

/* The controller has nothing to do for it but to say that the activations are there. */
void sc_engine_start(const sc_matrix *m, const uint8_t *at, const int8_t *q) { (void)m, (void)at, (void)q; }
void sc_engine_prepare(const sc_matrix *m, uint32_t tokens, int after_norm) {
    (void)m, (void)tokens, (void)after_norm;
}
void sc_engine_begin(const sc_matrix *m, uint32_t tokens) { (void)m, (void)tokens; }
void sc_engine_control(const sc_matrix *m, uint32_t tokens) {
    (void)m, (void)tokens;
    sc_team_barrier();
}

#ifndef SC_ONLY_ENGINE
const sc_engine sc_engine_plain = {sc_engine_start,   sc_engine_prepare, sc_engine_begin,
                                   sc_engine_control, sc_engine_end,     sc_engine_row};
#endif

#endif
