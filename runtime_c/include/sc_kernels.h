/* SPDX-License-Identifier: Apache-2.0
 * Interface of the kernels. A kernel has no state, no barrier and no constant of the model: shapes are
 * arguments. It does the share of core `core` of `cores`, for any number of cores and any shape. */
#ifndef SC_KERNELS_H
#define SC_KERNELS_H

#include "sc_matrix.h"
#include "sc_num.h"

#if SC_XGROUPS > 0
/* Code that prefill uses with per-channel matrices. The much larger code for grouped matrices needs the cache. */
#define SC_WARM __attribute__((noinline))
#else
/* Code that prefill uses. */
#define SC_WARM SC_HOT
#endif

/* ---- quantised vectors (numerics/vectors.py) ---- */

/* Quantised vector of one token: x[i] = q[i] * c[group] * mantissa * 2^exponent * kappa; kappa: a constant of
 * the matrix (numerics/vectors.py). */
typedef struct {
    int8_t
        *q; /* [4 * words], 4-byte aligned. 16-bit: low bytes; high bytes follow sc_q16_pitch() bytes later */
    int32_t *c;   /* [groups] group scales, 1 .. range */
    int32_t *sum; /* [groups] sums of q, only for asymmetric weights, else NULL */
    uint32_t mantissa;
    int32_t exponent;
} sc_qvec;

/* Maximum and sum of squares over a core's part of a vector, or over a share of a 16-bit vector. */
typedef struct {
    uint32_t max; /* of |y|; 16-bit: bits of the largest |x| before the shift by `up` */
    int32_t up;   /* 16-bit: left shift of the share's x */
    uint64_t sum; /* of (x >> pre_shift)^2; 16-bit: in a unit common to all shares */
} sc_part;
#define SC_Q16_SHARES 8 /* of a 16-bit vector, independent of the number of cores */
#define SC_PARTS (SC_CORES > SC_Q16_SHARES ? SC_CORES : SC_Q16_SHARES)

/* The core with the least work in uneven splits: it gets tasks for a single core. */
#define SC_LAST_CORE(cores) ((cores) - 1)

/* First half of quantisation: maxima of this core's blocks to block_max[blocks], of |x| to parts[core].
 * Element j is made from x[perm[j]], or x[j] without perm. With gain (Q31, in the order of elements) also
 * RMSNorm's sum of squares; then y = x * gain >> 31 is written, and the maxima are those of y. */
void sc_vec_scan(const sc_vector_layout *layout, const int32_t *x, int32_t *y, const int32_t *gain,
                 const uint16_t *perm, int pre_shift, uint32_t *block_max, sc_part *parts, int core,
                 int cores);
/* Second half, after a barrier: int8 values and group scales; the last core also sets mantissa and exponent.
 * norm != 0: y is the y of the scan, and RMSNorm with epsilon eps is applied. norm == 0: y is the x of the
 * scan, with the same perm. */
void sc_vec_quantize(const sc_vector_layout *layout, const int32_t *y, const uint16_t *perm,
                     const uint32_t *block_max, const sc_part *parts, int norm, uint64_t eps, sc_qvec *out,
                     int core, int cores);
/* After another barrier, for asymmetric weights: sum[g] of q. */
void sc_vec_sums(const sc_vector_layout *layout, sc_qvec *v, int core, int cores);
/* Both halves by one core, and sums if `out` has a place for them. tops[groups]: scratch. */
void sc_vec_token(const sc_vector_layout *layout, const int32_t *x, int32_t *y, const int32_t *gain,
                  const uint16_t *perm, int pre_shift, uint64_t eps, uint32_t *tops, sc_qvec *out);
/* Applies RMSNorm to mantissa and exponent. One core, after the vector is complete. */
void sc_vec_norm(const sc_part *parts, uint64_t eps, sc_qvec *out, int cores);

/* 16-bit vectors, 256 * high + low (signed bytes), of several tokens. The same two halves, split into shares
 * (sc_q16.h). With gain, sc_q16_norm() follows. */
typedef struct {
    const sc_vector_layout *layout;
    const int32_t *x; /* [tokens][stride] */
    uint32_t stride;
    uint32_t first, tokens; /* tokens first .. tokens - 1 are quantised */
    const int32_t *gain;
    int norm_drop, norm_unit; /* with gain: as in q16_scan() */
#if SC_PERMS
    const uint16_t *perm; /* element j is made from x[perm[j]]; or NULL */
#endif
    int32_t *y; /* [tokens][y_stride], only with gain */
    uint32_t y_stride;
    sc_part *parts; /* [tokens - first][SC_PARTS] */
    int8_t *q;      /* [tokens][2][pitch]; out[].q point into it */
    uint32_t pitch; /* sc_q16_pitch() */
    sc_qvec *out;
#if SC_IN_PLACE
    int32_t *spill; /* SC_SPILL_WORDS of this core, if vectors replace their source in place; else NULL */
#endif
} sc_q16_job;
void sc_q16_scan(const sc_q16_job *j, int core, int cores);
void sc_q16_quantize(const sc_q16_job *j, int core, int cores);
/* All of token t by one core, whatever `first` is. Needs a gain, or no permutation. */
void sc_q16_token(const sc_q16_job *j, uint32_t t, uint64_t eps);
/* RMSNorm of one token from its shares. */
void sc_q16_norm(const sc_part *parts, uint64_t eps, sc_qvec *out);
void sc_q16_normed(uint64_t squares, sc_qvec *out); /* the same from q16_sum() */

/* ---- matrices ---- */

enum sc_epilogue { SC_STORE, SC_ADD, SC_SILU };

typedef struct {
    enum sc_epilogue kind;
    int32_t *dst; /* [tokens][stride] */
    uint32_t stride;
    int gate_shift, silu_shift, up_shift; /* SC_SILU: dst is [ffn]; a block has 4 gate and 4 up rows */
#ifdef SC_HAS_BIAS
    const int32_t *bias; /* [rows], added to a row first; or NULL */
#endif
} sc_output;

/* Blocks first .. first + count - 1 of the matrix, stored at `tile`, times all tokens. adapter[t] is valid if
 * m->adapter is set. */
void sc_matrix_tile(const sc_matrix *m, const uint8_t *tile, uint32_t first, uint32_t count, const sc_qvec *x,
                    const sc_qvec *adapter, uint32_t tokens, const sc_output *out, int core, int cores);

/* Faster than sc_matrix_tile() for several tokens, except for 8-bit weights with 16-bit vectors
 * (sc_for_several()). scratch: the core's own; sums of a block for an even number of tokens (twice with
 * 16-bit vectors), then weights widened to int8. */
void sc_matrix_tokens(const sc_matrix *m, const uint8_t *tile, uint32_t first, uint32_t count,
                      const sc_qvec *x, const sc_qvec *adapter, uint32_t tokens, const sc_output *out,
                      int32_t *scratch, int core, int cores);
static inline int sc_for_several(const sc_matrix *m) {
    return (m->format & (SC_FMT_BITS | SC_FMT_Q16)) != (8 | SC_FMT_Q16);
}

#if SC_SPLIT
/* For tiles with at most half as many blocks as cores (sc_is_split()): several cores share a block's inputs.
 * First half, one token: this core's partial sums of its block. */
void sc_split_sums(const sc_matrix *m, const uint8_t *tile, uint32_t count, const sc_qvec *x,
                   int32_t (*sums)[SC_ROWS], int core, int cores);
/* Second half, after a barrier: adds the partial sums of all cores (and overwrites them), finishes rows like
 * sc_matrix_tile(), and writes the token's dst. */
void sc_split_rows(const sc_matrix *m, const uint8_t *tile, uint32_t first, uint32_t count, const sc_qvec *x,
                   const sc_qvec *adapter, int32_t (*sums)[SC_ROWS], const sc_output *out, int32_t *dst,
                   int core, int cores);
/* Both halves for several tokens, instead of sc_matrix_tokens(). Partial sums are in the cores' scratch
 * buffers, which begin at `scratch` (second half) and are `apart` words apart. */
void sc_split_sums_of_several(const sc_matrix *m, const uint8_t *tile, uint32_t count, const sc_qvec *x,
                              uint32_t tokens, int32_t *scratch, int core, int cores);
void sc_split_rows_of_several(const sc_matrix *m, const uint8_t *tile, uint32_t first, uint32_t count,
                              const sc_qvec *x, const sc_qvec *adapter, uint32_t tokens, const sc_output *out,
                              const int32_t *scratch, uint32_t apart, int core, int cores);
#endif
/* Whether to split. A short block is not worth another barrier, and a quantisation group cannot be split. */
static inline int sc_is_split(const sc_matrix *m, uint32_t count, int cores) {
    return 2 * count <= (uint32_t)cores && m->in.words >= SC_SPLIT_WORDS &&
           ((m->format & SC_FMT_Q16) || m->in.groups >= SC_SPLIT_GROUPS);
}

#ifdef SC_HAS_ENGINES
/* For engines that only multiply: finishes rows row .. row + rows - 1 of one token from their sums, as
 * sc_matrix_tile() does; r: their multipliers. `row` is a multiple of 8 if gate and up are one matrix. The
 * sum is low + 256 * high, or low if high is 0. */
void sc_matrix_joined(const sc_matrix *m, const uint16_t *r, uint32_t row, uint32_t rows, const int32_t *low,
                      const int32_t *high, const sc_qvec *x, const sc_output *out, int32_t *dst);
/* Finishes rows row .. row + 7 from their sums y. */
void sc_matrix_rows(const sc_matrix *m, const uint16_t r[SC_ROWS], uint32_t row, int32_t y[SC_ROWS],
                    const sc_qvec *x, const sc_output *out, int32_t *dst);
#endif

/* Dequantises one embedding row into x[k]: this core's share. block: the row's block. */
void sc_embed_row(const sc_matrix *m, const uint8_t *block, uint32_t row, uint32_t k, uint32_t factor,
                  int shift, int32_t *x, int core, int cores);

#endif
