/* SPDX-License-Identifier: Apache-2.0
 * Converts the result of an operation into the quantised input of a matrix, with RMSNorm if there is a gain.
 * All workers and the controller call it; sources and vectors are in L1. */
#ifndef SC_INPUTS_H
#define SC_INPUTS_H

#include "sc_buffers.h"
#include "sc_products.h"
#include "sc_q16.h"

/* Permutation of a matrix's inputs, or NULL. The second matrix of an adapter has none. */
static inline const uint16_t *perm_of(const sc_matrix *m) {
#if SC_PERMS
    return (uintptr_t)m - (uintptr_t)sc_matrices < SC_MATRICES * sizeof *m ? sc_perms[m - sc_matrices] : 0;
#else
    (void)m;
    return 0;
#endif
}

#if defined(SC_HAS_ENGINES) || SC_TILE_BYTES == 0
/* Address of a matrix that is read in place. */
static const uint8_t *in_place(const sc_matrix *m) { return SC_BLOB(m->level) + m->offset; }
#endif

/* Number of tokens that cores process whole, one core per token. The workers split each remaining token,
 * unless more than half of the team would get one. */
static inline uint32_t whole_tokens(uint32_t tokens) {
    const uint32_t left = tokens % SC_TEAM;
    return 2 * left > SC_TEAM ? tokens : tokens - left;
}

/* Whether workers start engine jobs. The engine can then still be busy when the controller's part of a step
 * is over. */
#ifdef SC_PRODUCTS
#define WORKERS_START_JOBS 1
#else
#define WORKERS_START_JOBS 0
#endif

#if SC_Q16
static inline void norm_several(uint32_t mine, uint32_t shared, sc_qvec *out) {
    for (uint32_t t = mine; t < shared; t += SC_CORES) sc_q16_norm(parts[t], SC_NORM_EPS, &out[t]);
}

#define NORM_UNIT (2 * (SC_NORM_DROP - SC_NORM_SHIFT)) /* 0 .. 31; 32 for 2 to 4 inputs */

/* src -> out: 16-bit input of matrix m for tokens first .. sc_now.tokens - 1, with values from `to` on. With
 * gain: RMSNorm first. For several tokens, or one with permuted inputs. */
SC_WARM static void quantize_q16(const sc_matrix *m, const int32_t *src, uint32_t stride, const int32_t *gain,
                                 uint32_t first, int8_t *to, sc_qvec *out, int core) {
    const uint32_t tokens = sc_now.tokens - first;
    src += first * stride;
    sc_q16_job j = {.layout = &m->in,
                    .x = src,
                    .stride = stride,
                    .tokens = tokens,
                    .gain = gain,
                    .norm_drop = SC_NORM_DROP,
                    .norm_unit = NORM_UNIT,
                    .y = y[0],
                    .y_stride = SC_Y_WORDS,
                    .parts = parts[0],
                    .q = to,
                    .pitch = sc_q16_pitch(m, tokens),
                    .out = out + first};
#if SC_PERMS
    j.perm = perm_of(m);
#endif
#if SC_IN_PLACE
    if ((const void *)to == src) j.spill = (int32_t *)(void *)xq[0] + core * SC_SPILL_WORDS;
#endif
    const int starts = !sc_is_worker(core) && sc_on_engine(m); /* engine jobs */
    if (starts && tokens > 1 && !WORKERS_START_JOBS) sc_engine_prepare(m, tokens, 0);
    sc_team_barrier();
    if (starts && (tokens == 1 || WORKERS_START_JOBS)) sc_engine_prepare(m, tokens, 0);
    uint32_t whole = whole_tokens(tokens);
    if (perm_of(m) && !gain) whole = 0;
#if SC_IN_PLACE
    if (j.spill) whole = tokens;
#endif
    for (uint32_t t = (uint32_t)core; t < whole; t += SC_TEAM) sc_q16_token(&j, t, SC_NORM_EPS);
    j.first = whole;
    if (whole < tokens) {
        if (sc_is_worker(core)) sc_q16_scan(&j, core, SC_CORES);
        sc_team_barrier();
        if (sc_is_worker(core)) sc_q16_quantize(&j, core, SC_CORES);
    }
    const uint32_t shared = tokens - whole;
    const uint32_t mine = j.gain && sc_is_worker(core) ? (uint32_t)core : shared; /* its first token */
    if (tokens == 1)
        norm_several(mine, shared, j.out + whole); /* before the barrier: the next step needs it */
    if (SC_TEAM > SC_CORES || sc_on_engine(m)) sc_team_barrier();
    if (starts) sc_engine_begin(m, tokens);
    if (tokens > 1) norm_several(mine, shared, j.out + whole);
}

/* Quantises one token: each worker has a share. */
SC_PHASE static void quantize_token(const sc_matrix *m, const int32_t *src, const int32_t *gain, int core) {
    if (core < 0 || core >= SC_CORES) __builtin_unreachable(); /* no loops if each core has one share */
    const sc_vector_layout *const layout = &m->in;
    /* With an engine, the controller finishes the token (padding, scale) from the shares' parts, while the
     * workers quantise its values and, with a norm, the engine runs its first job. */
    const int finishes = core == SC_LAST_CORE(SC_CORES) && !(SC_TEAM > SC_CORES && sc_on_engine(m));
    uint32_t first, n = q16_share(layout->k, (uint32_t)core, &first);
    sc_team_barrier();
    for (int share = core; share < SC_Q16_SHARES; share += SC_CORES) {
        if (share != core) n = q16_share(layout->k, (uint32_t)share, &first);
        q16_scan(src + first, gain ? gain + first : 0, n, SC_NORM_DROP, NORM_UNIT, y[0] + first,
                 &parts[0][share]);
        if (SC_CORES == SC_Q16_SHARES) break;
    }
    sc_team_barrier();
    const int most = q16_bits(parts[0]);
    if (gain) src = y[0];
    for (int share = core; share < SC_Q16_SHARES; share += SC_CORES) {
        if (SC_CORES != SC_Q16_SHARES) n = q16_share(layout->k, (uint32_t)share, &first);
        q16_quantize(layout, src + first, n, most, gain != 0, parts[0][share].up, xq[0] + first,
                     4u * layout->words);
        if (SC_CORES == SC_Q16_SHARES) break;
    }
    if (finishes) {
        q16_pad(layout, xq[0], 4u * layout->words);
        q16_scale(layout, most, gain != 0, xv);
        if (SC_IN_PLACE) xv->q = xq[0]; /* may still point to where one of several tokens was */
    }
    if (sc_on_engine(m)) sc_team_barrier();
    if (finishes && gain) sc_q16_norm(parts[0], SC_NORM_EPS, xv);
}

/* Whether quantize_token() makes the matrix's input. */
static inline int one_token(const sc_matrix *m) {
    return sc_now.tokens == 1 && (SC_XGROUPS == 0 || m->format & SC_FMT_Q16) && !perm_of(m);
}
#else
#define one_token(m) 0
#endif

#if SC_XGROUPS == 0
#define quantize quantize_q16 /* all vectors have 16 bits */
#else
/* quantize_q16(), or the same for int8 vectors. */
SC_PHASE static void quantize(const sc_matrix *m, const int32_t *src, uint32_t stride, const int32_t *gain,
                              uint32_t first, int8_t *to, sc_qvec *out, int core) {
    const uint16_t *const perm = perm_of(m);
#if SC_Q16
    if (m->format & SC_FMT_Q16) {
        quantize_q16(m, src, stride, gain, first, to, out, core);
        return;
    }
#endif
    sc_team_barrier();
    const sc_vector_layout *layout = &m->in;
    (void)to;
    const uint32_t tokens = sc_now.tokens, whole = first + whole_tokens(tokens - first);
    for (uint32_t t = first + (uint32_t)core; t < whole; t += SC_TEAM) {
        sc_qvec v = out[t];
#if SC_Q16
        v.q = xq[t]; /* a 16-bit vector may have moved the pointer */
#endif
        if (!(SC_XSUMS && m->format & SC_FMT_ASYM)) v.sum = 0;
        sc_vec_token(layout, src + t * stride, y[t], gain, perm, SC_NORM_SHIFT, SC_NORM_EPS, block_max[t],
                     &v);
        v.sum = out[t].sum;
        out[t] = v;
    }
    if (SC_TEAM > SC_CORES && whole > first) sc_team_barrier(); /* waits for the controller's tokens */
    if (!sc_is_worker(core)) return;
    if (whole < tokens) {
#if SC_Q16
        if (core == 0)
            for (uint32_t t = whole; t < tokens; t++) out[t].q = xq[t];
#endif
        for (uint32_t t = whole; t < tokens; t++)
            sc_vec_scan(layout, src + t * stride, y[t], gain, perm, SC_NORM_SHIFT, block_max[t],
                        parts[t - whole], core, SC_CORES);
        sc_worker_barrier();
        if (gain) src = y[0], stride = SC_Y_WORDS;
        for (uint32_t t = whole; t < tokens; t++)
            sc_vec_quantize(layout, src + t * stride, perm, block_max[t], parts[t - whole], gain != 0,
                            SC_NORM_EPS, &out[t], core, SC_CORES);
#if SC_XSUMS
        if (m->format & SC_FMT_ASYM) {
            sc_worker_barrier();
            for (uint32_t t = whole; t < tokens; t++) sc_vec_sums(layout, &out[t], core, SC_CORES);
        }
#endif
    }
}
#endif

#endif
