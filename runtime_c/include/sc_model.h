/* SPDX-License-Identifier: Apache-2.0
 * The generated tables in model.c, and types of its layers. All cores read them, most in L1. */
#ifndef SC_MODEL_H
#define SC_MODEL_H

#include "model.h"
#include "sc_kernels.h"

/* Matrices of a layer in stream order. */
enum sc_slot { SC_QKV, SC_O, SC_GU, SC_DOWN, SC_SLOTS };

typedef struct {
    const sc_matrix *m[SC_SLOTS];
    /* Scales in the KV cache are in units of 2^k_unit and 2^v_unit. q * k times score_mantissa * 2^score_exponent is in
     * units of log2; the result of attention is in units of 2^-mean_unit. Gates are shifted right by gate_shift for the
     * sigmoid; silu(gate) and up are shifted left by silu_shift and up_shift before they are multiplied. */
    SC_LAYER_NUMBERS;
#ifdef SC_HAS_BIAS
    const int32_t *bias[SC_SLOTS]; /* [rows], in the fixed point of the result; or NULL */
#endif
#ifdef SC_HAS_HEAD_NORM
    const int16_t *head_gain[2]; /* Q15 [head_dim], for q and k */
    uint64_t head_eps;           /* in units of the sum of squares */
#endif
} sc_layer;

#ifdef SC_WINDOW
/* KV cache of a layer: a ring if its tokens attend to the last SC_WINDOW positions only. */
typedef struct {
    uint32_t windowed; /* 1 or 0 */
    uint32_t first;    /* blocks of the layers before it */
    uint32_t at;       /* offset in its memory if that is not L1 */
} sc_cache_place;
extern const sc_cache_place sc_cache_places[]; /* [SC_LAYERS] */
#endif

#ifdef SC_POST_NORMS
/* An RMSNorm after a block. */
typedef struct {
    const int32_t *gain; /* [SC_HIDDEN], Q31 */
    uint64_t eps;        /* as in the sum of squares */
    uint32_t factor; /* factor * 2^exponent: sqrt(SC_HIDDEN) in units of the residual stream and of gain */
    int32_t exponent;
} sc_post_norm;
extern const sc_post_norm sc_post_norms[]; /* [2 * SC_LAYERS] */
#endif
#ifdef SC_ROPE_TABLES
extern const uint8_t sc_rope_tables[]; /* [SC_LAYERS] */
#endif

/* Where the result of a layer's op is in the L1 arena. Only observation reads it. */
enum sc_layout { SC_WORDS, SC_BYTES, SC_VECTOR }; /* int32; int8; array of sc_qvec */
typedef struct {
    uint32_t at;     /* arena offset */
    uint32_t stride; /* words per token; not for sc_qvec */
    uint32_t count;  /* values per token with padding; not for sc_qvec */
    uint8_t slot;    /* SC_VECTOR: enum sc_slot of the matrix that reads it */
    uint8_t layout;  /* enum sc_layout */
} sc_result;

#define SC_LAYER_STEPS (SC_LAYER_LAST - SC_LAYER_FIRST + 1)
extern const sc_result sc_results[]; /* [SC_LAYER_STEPS], in the order of enum sc_op */

extern const char *const sc_op_names[]; /* of enum sc_op */

#if SC_RANK > 0
/* An adapter's first matrix, a, precedes its matrix. */
#endif
/* All matrices in the order of a pass; the LM head is last. */
extern const sc_matrix sc_matrices[];
extern const sc_layer sc_layers[];
extern const sc_matrix sc_embedding;
/* RMSNorm weights, Q31: attention and MLP of each layer, final. */
extern const int32_t sc_norm_weights[2 * SC_LAYERS + 1][SC_HIDDEN];
#if SC_PERMS
extern const uint16_t
    *const sc_perms[]; /* of each matrix; element j of its input is value perm[j]; or NULL */
#endif
extern const int32_t sc_end_tokens[]; /* ends with -1 */

#if SC_IN_PLACE
/* Slot of a matrix in its layer; the LM head is slot 0. Adapters lie between them: models with adapters have
 * no in-place plan. */
static inline enum sc_slot sc_slot_of(const sc_matrix *m) {
    return (enum sc_slot)((uint32_t)(m - sc_matrices) % SC_SLOTS);
}
#endif
/* Words of a token's room if the vectors of several tokens replace their source in place, else 0:
 * Plan.in_place. */
static inline uint32_t sc_room_in_place(const sc_matrix *m) {
#if SC_IN_PLACE
    return sc_slot_of(m) == SC_DOWN ? SC_ROOM_OF_DOWN : sc_slot_of(m) == SC_O ? SC_ROOM_OF_O : 0;
#else
    (void)m;
    return 0;
#endif
}
/* Taps per vector of a matrix's second layout (engines/neureka_both.py); 0: it has none. */
static inline uint32_t sc_taps(const sc_matrix *m) {
#ifdef SC_TAPS
    (void)m;
    return SC_TAPS;
#else
    return m->taps;
#endif
}
/* Bytes from the low to the high bytes of a vector: in place, half of its room. The second layout has padding
 * between them, which only a single token needs. */
static inline uint32_t sc_q16_pitch(const sc_matrix *m, uint32_t tokens) {
    const uint32_t room = SC_IN_PLACE && tokens > 1 ? sc_room_in_place(m) : 0;
    if (room) return 2 * room;
    if (tokens > 1 && sc_taps(m)) return 4u * m->in.last_words;
    (void)tokens;
    return 4u * m->in.words;
}

#endif
