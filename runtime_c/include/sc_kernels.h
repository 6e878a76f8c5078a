/* SPDX-License-Identifier: Apache-2.0
 * Kernels: no state, no barrier inside.  Every kernel takes (core, cores) and does that core's
 * share for any number of cores and any shape; tests run them for all cores in turn. */
#ifndef SC_KERNELS_H
#define SC_KERNELS_H

#include "model.h"
#include "sc_model.h"
#include "sc_num.h"

/* Of what prompts of matrices with one scale per row run: among the hot code where that of scales per group, which has
 * several times its size, leaves room for it. */
#if SC_XSEGS > 0
#define SC_WARM __attribute__((noinline))
#else
#define SC_WARM SC_HOT
#endif

/* ---- quantised vectors (numerics/vectors.py) ---- */

/* One token's quantised form. */
typedef struct {
    int8_t *q;    /* words * 4 bytes, 4-byte aligned; of a 16-bit one low bytes, and behind them high ones */
    int32_t *c;   /* nseg segment scales, 1 .. range */
    int32_t *sum; /* nseg sums of q, only for asymmetric weights, else NULL */
    uint32_t mantissa;
    int32_t exponent;
} sc_qvec;

/* A core's part of the scan, or of a 16-bit vector a share's. */
typedef struct {
    uint32_t max; /* of |y|, or of a share its bits before x was shifted up */
    int32_t up;   /* by which a share's x was shifted up */
    uint64_t sum; /* of (x >> pre_shift)^2, or of a share in the unit that is all shares' */
} sc_part;
#define SC_Q16_SHARES 8 /* of a 16-bit vector, whatever the cores */
#define SC_PARTS (SC_CORES > SC_Q16_SHARES ? SC_CORES : SC_Q16_SHARES)

/* The last core that has work in everything: tasks of one core go to it. */
#define SC_LAST_CORE(cores) ((cores) - 1)

/* First half of quantisation, this core's blocks: block_max[blocks] and parts[core] of |x|.  Place j
 * is made from input perm[j], or j without perm.  With gain (Q31, in the order of places) it is
 * RMSNorm: the sum of squares too, and the maxima are those of y = x * gain >> 31, which is written
 * to y (otherwise unused). */
void sc_vec_scan(const sc_cut *cut, const int32_t *x, int32_t *y, const int32_t *gain, const uint16_t *perm,
                 int pre_shift, uint32_t *block_max, sc_part *parts, int core, int cores);
/* Second half, after a barrier: int8 values and segment scales; the last core also sets mantissa
 * and exponent.  norm != 0: y is what the scan wrote, and they are those of RMSNorm with epsilon eps;
 * else y is the scan's x, with the same perm, and they are those of the vector itself. */
void sc_vec_quantize(const sc_cut *cut, const int32_t *y, const uint16_t *perm, const uint32_t *block_max,
                     const sc_part *parts, int norm, uint64_t eps, sc_qvec *out, int core, int cores);
/* After another barrier, only where sums are needed: sum[g] of q. */
void sc_vec_sums(const sc_cut *cut, sc_qvec *v, int core, int cores);
/* All of it by one core, with sums where `out` has a place for them; tops[nseg] is scratch. */
void sc_vec_token(const sc_cut *cut, const int32_t *x, int32_t *y, const int32_t *gain, const uint16_t *perm,
                  int pre_shift, uint64_t eps, uint32_t *tops, sc_qvec *out);
/* What RMSNorm makes of mantissa and exponent: by one core, when the vector is there. */
void sc_vec_norm(const sc_part *parts, uint64_t eps, sc_qvec *out, int cores);

/* 16-bit vectors, 256 * high + low, both signed bytes, of several tokens.  The same two halves, cut into shares
 * (sc_q16.h); with gain, sc_q16_norm() is the last part. */
typedef struct {
    const sc_cut *cut;
    const int32_t *x; /* [tokens][stride] */
    uint32_t stride;
    uint32_t first, tokens; /* first .. tokens - 1 are quantised */
    const int32_t *gain;
    const uint16_t *perm;
    int32_t *y; /* [tokens][y_stride], with gain */
    uint32_t y_stride;
    sc_part *parts; /* [tokens - first][SC_PARTS] */
    int8_t *q;      /* [tokens][2][pitch], where out[].q then point to */
    uint32_t pitch; /* sc_q16_pitch() */
    sc_qvec *out;
    int32_t *aside; /* SC_ASIDE_WORDS for each of the team, where vectors are made in place: else NULL */
} sc_q16_job;
#if SC_FRUGAL
/* Which of a layer's matrices it is, or of the head the first: side paths, whose matrices lie between, have no such plan. */
static inline enum sc_slot sc_slot_of(const sc_matrix *m) {
    return (enum sc_slot)((uint32_t)(m - sc_matrices) % SC_SLOTS);
}
#endif
/* Words of a token's room where vectors of several take the place of what they are made from, 0 where they do not:
 * Plan.frugal. */
static inline uint32_t sc_room_in_place(const sc_matrix *m) {
#if SC_FRUGAL
    return sc_slot_of(m) == SC_DOWN ? SC_ROOM_OF_DOWN : sc_slot_of(m) == SC_O ? SC_ROOM_OF_O : 0;
#else
    (void)m;
    return 0;
#endif
}
/* Bytes from low to high ones of a vector that is one of so many: in place half of its room.  What a matrix's copy for one
 * token has between them several do without. */
static inline uint32_t sc_q16_pitch(const sc_matrix *m, uint32_t tokens) {
    const uint32_t room = SC_FRUGAL && tokens > 1 ? sc_room_in_place(m) : 0;
    if (room) return 2 * room;
#ifdef SC_ENGINE_COPIES
    if (tokens > 1 && m->spread) return 4u * m->in.last_words;
#endif
    (void)tokens;
    return 4u * m->in.words;
}
void sc_q16_scan(const sc_q16_job *j, int core, int cores);
void sc_q16_quantize(const sc_q16_job *j, int core, int cores);
/* All of token t by one core, whatever `first` is: with a gain, or without a permutation. */
void sc_q16_token(const sc_q16_job *j, uint32_t t, uint64_t eps);
/* Of one token: `parts` are its shares. */
void sc_q16_norm(const sc_part *parts, uint64_t eps, sc_qvec *out);
void sc_q16_normed(uint64_t squares, sc_qvec *out); /* the same of q16_sum() */

/* ---- matrices ---- */

enum sc_epilogue { SC_STORE, SC_ADD, SC_SILU };

typedef struct {
    enum sc_epilogue kind;
    int32_t *dst; /* [tokens][stride] */
    uint32_t stride;
    int gate_shift, silu_shift, up_shift; /* SC_SILU: dst is [ffn], blocks are 4 gate + 4 up rows */
#ifdef SC_HAS_BIAS
    const int32_t *bias; /* [rows], added before anything else is done with a row; or NULL */
#endif
} sc_output;

/* Row blocks first .. first + count - 1 (at `tile`) times every token; side[t] is NULL-free when
 * m->b is set. */
void sc_matrix_tile(const sc_matrix *m, const uint8_t *tile, uint32_t first, uint32_t count, const sc_qvec *x,
                    const sc_qvec *side, uint32_t tokens, const sc_output *out, int core, int cores);

/* The same of several tokens, and quicker, but for 8-bit weights with 16-bit vectors (sc_for_several()): in
 * the core's own scratch, of an even number of tokens sums of a block, twice with 16-bit vectors, and behind them
 * weights made 8 bit. */
void sc_matrix_tokens(const sc_matrix *m, const uint8_t *tile, uint32_t first, uint32_t count,
                      const sc_qvec *x, const sc_qvec *side, uint32_t tokens, const sc_output *out,
                      int32_t *scratch, int core, int cores);
static inline int sc_for_several(const sc_matrix *m) {
    return (m->format & (SC_FMT_BITS | SC_FMT_Q16)) != (8 | SC_FMT_Q16);
}

#if SC_SPLIT
/* Where a tile has at most half as many blocks as there are cores, as many of them as there are for each split a
 * block's inputs.  First half, of one token: what this core's part adds to its block's sums. */
void sc_split_sums(const sc_matrix *m, const uint8_t *tile, uint32_t count, const sc_qvec *x,
                   int32_t (*sums)[SC_ROWS], int core, int cores);
/* Second half, after a barrier: with the sums of all cores, which it changes, what sc_matrix_tile() does with
 * those of a block, into the token's dst. */
void sc_split_rows(const sc_matrix *m, const uint8_t *tile, uint32_t first, uint32_t count, const sc_qvec *x,
                   const sc_qvec *side, int32_t (*sums)[SC_ROWS], const sc_output *out, int32_t *dst,
                   int core, int cores);
/* The same of several tokens, in place of sc_matrix_tokens(): sums are in the cores' scratch, that of the first at
 * `scratch` of the second half, and words `apart` from one to the next. */
void sc_split_sums_of_several(const sc_matrix *m, const uint8_t *tile, uint32_t count, const sc_qvec *x,
                              uint32_t tokens, int32_t *scratch, int core, int cores);
void sc_split_rows_of_several(const sc_matrix *m, const uint8_t *tile, uint32_t first, uint32_t count,
                              const sc_qvec *x, const sc_qvec *side, uint32_t tokens, const sc_output *out,
                              const int32_t *scratch, uint32_t apart, int core, int cores);
#endif
/* Whether it is done: a short block is not worth another barrier, and a segment has no parts. */
static inline int sc_is_split(const sc_matrix *m, uint32_t count, int cores) {
    return 2 * count <= (uint32_t)cores && m->in.words >= SC_SPLIT_WORDS &&
           ((m->format & SC_FMT_Q16) || m->in.nseg >= SC_SPLIT_SEGMENTS);
}

#ifdef SC_HAS_ENGINES
/* For engines that only multiply: rows of one token, from `row` on, a multiple of 8 where gate and up are
 * one matrix; rescaled with their multipliers r and stored as sc_matrix_tile() does it.  Of 16-bit vectors the
 * accumulators are low + 256 * high, or low where high is 0. */
void sc_matrix_joined(const sc_matrix *m, const uint16_t *r, uint32_t row, uint32_t rows, const int32_t *low,
                      const int32_t *high, const sc_qvec *x, const sc_output *out, int32_t *dst);
/* Rows row .. row + 7, from their accumulators y. */
void sc_matrix_rows(const sc_matrix *m, const uint16_t r[SC_ROWS], uint32_t row, int32_t y[SC_ROWS],
                    const sc_qvec *x, const sc_output *out, int32_t *dst);
#endif

/* One embedding row into x[k], this core's share. block is the row's block. */
void sc_embed_row(const sc_matrix *m, const uint8_t *block, uint32_t row, uint32_t k, uint32_t factor,
                  int shift, int32_t *x, int core, int cores);

#endif
