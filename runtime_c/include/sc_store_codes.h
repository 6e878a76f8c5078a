/* SPDX-License-Identifier: Apache-2.0
 * Keys and values for a cache of 4 bits. Bit-identical to store_parts() in numerics. A part of a head is its channels
 * with 8 bits, or those with codes of 4 bits; each has its own scale. */
#ifndef SC_STORE_CODES_H
#define SC_STORE_CODES_H

#include "sc_rotate.h"

/* Channels of a head: channel(part, i) is z[order[i]] * 2^-shift, of at most 15 bits and a sign. */
typedef struct {
    const int32_t *z;
    const uint8_t *order; /* or 0: in order */
    int count, shift;
    int32_t reciprocal;
    int32_t below; /* of codes: distance of the lowest from 0 */
} head_part;

static inline int32_t channel(const head_part *p, int i) {
    const int32_t z = p->z[p->order ? p->order[i] : i];
    return p->shift >= 0 ? z >> p->shift : (int32_t)((uint32_t)z << -p->shift);
}

/* 4-bit code of channel i, 0 after the last one. */
static inline int code_of(const head_part *p, int i) {
    if (i >= p->count) return 0;
    return sc_rshift(channel(p, i) * p->reciprocal + (p->below << SC_HEAD_QSHIFT), SC_HEAD_QSHIFT + 4) - 8;
}

static inline uint8_t two_codes(const head_part *p, int low, int high) {
    return (uint8_t)(((uint32_t)code_of(p, low) & 15) | (uint32_t)code_of(p, high) << 4);
}

/* Scale, reciprocal and offset of a part. `exponent`: of z. total: the sum of squares for a norm, or 0. Returns the
 * scale. */
SC_HOT static uint32_t scale_part(head_part *p, int codes, int unit, int exponent, uint64_t total) {
    int32_t low = 0, high = 0;
    for (int i = 0; i < p->count; i++) {
        const int32_t z = p->z[p->order ? p->order[i] : i];
        low = sc_min(low, z), high = sc_max(high, z);
    }
    uint32_t top = (uint32_t)sc_max(sc_max(-low, high), 1);
    const int n = p->shift = sc_top_bit(top) - 14;
    top = n >= 0 ? top >> n : top << -n;
    low = n >= 0 ? low >> n : (int32_t)((uint32_t)low << -n);
    high = n >= 0 ? high >> n : high << -n;
    if (codes) /* 127/120 of half the range */
        top = (uint32_t)((sc_max((high - low + 1) >> 1, 1 << 13) * 271 + 255) >> 8);
    exponent += n;
    uint32_t mantissa = top;
#ifdef SC_HAS_HEAD_NORM
    if (total) mantissa = head_rms(total, top, &exponent);
#else
    (void)total;
#endif
    const int right = sc_to_31(unit - exponent);
    const uint32_t scale = (mantissa + (1u << right) - 1) >> right, limit = scale << right;
    uint32_t reciprocal = ((uint32_t)SC_QMAX << SC_HEAD_QSHIFT) / (total ? top : limit);
    if (total && limit != mantissa) reciprocal = reciprocal * mantissa / limit;
    p->reciprocal = (int32_t)reciprocal;
    p->below = sc_max(-sc_rshift(low * p->reciprocal, SC_HEAD_QSHIFT), 1);
    return scale;
}

static inline void store16(uint8_t *at, uint32_t v) {
    const uint16_t low = (uint16_t)v;
    __builtin_memcpy(__builtin_assume_aligned(at, 2), &low, 2);
}

/* Appends a key to its record. z * 2^exponent: the rotated head. */
SC_HOT static void store_key(const sc_heads *h, int kv, const int32_t *z, int exponent, uint64_t total) {
    uint8_t *const record = h->k + h->position * SC_K_STRIDE + kv * SC_K_RECORD;
    const uint8_t *const order = h->orders + kv * SC_HEAD_DIM;
    const int unit = h->layer->k_unit;
#if SC_WIDE > 0
    head_part wide = {.z = z, .order = order, .count = SC_WIDE};
    store16(record, scale_part(&wide, 0, unit, exponent, total));
    for (int i = 0; i < SC_WIDE; i++)
        record[8 + i] = (uint8_t)sc_rshift(channel(&wide, i) * wide.reciprocal, SC_HEAD_QSHIFT);
#endif
    head_part codes = {.z = z, .order = order + SC_WIDE, .count = SC_CODES};
    store16(record + 4, scale_part(&codes, 1, unit, exponent, total));
    record[6] = (uint8_t)(128 - codes.below);
    for (int i = 0; i < 4 * SC_CODE_WORDS; i++) {
        const int first = 2 * (i & ~3) + (i & 3);
        record[8 + SC_WIDE + i] = two_codes(&codes, first, first + 4);
    }
}

/* Appends a value, rotated, to its V block, and its scale to the record. */
SC_HOT static void store_value(const sc_heads *h, int kv, const int32_t *x) {
    int32_t *const z = h->work, most = 1;
    for (int i = 0; i < SC_HEAD_DIM; i++) most = sc_max(most, sc_abs(x[i]));
    const int n = sc_top_bit((uint32_t)most) - 14;
    for (int i = 0; i < SC_HEAD_DIM; i++) z[i] = n >= 0 ? x[i] >> n : (int32_t)((uint32_t)x[i] << -n);
    rotate_head(z);
    uint8_t *to =
        h->v + h->position / SC_KV_POSITIONS * SC_V_BLOCK + kv * SC_V_HEAD + h->position % SC_KV_POSITIONS;
    head_part codes = {.z = z, .count = SC_HEAD_DIM};
    const uint32_t scale = scale_part(&codes, 1, h->layer->v_unit, n - SC_ROTATION_BITS / 2, 0);
    store16(h->k + h->position * SC_K_STRIDE + kv * SC_K_RECORD + 2, scale);
    if (h->value_scales) h->value_scales[kv] |= (uint16_t)scale;
    *to = (uint8_t)(128 - codes.below);
    for (int d = 0; d < SC_HEAD_DIM; d += 2) *(to += SC_KV_POSITIONS) = two_codes(&codes, d, d + 1);
}

/* int8 query in the order of the key's channels, padded with zeros. z * 2^-shift has at most 15 bits and a sign. */
SC_HOT static void order_query(const sc_heads *h, int kv, const int32_t *z, int shift, int32_t reciprocal,
                               int8_t *dst) {
    const head_part q = {
        .z = z, .order = h->orders + kv * SC_HEAD_DIM, .shift = shift, .reciprocal = reciprocal};
    for (int i = 0; i < SC_HEAD_DIM; i++)
        dst[i] = (int8_t)sc_rshift(channel(&q, i) * reciprocal, SC_HEAD_QSHIFT);
    for (int i = SC_HEAD_DIM; i < SC_HDP; i++) dst[i] = 0;
}

#endif
