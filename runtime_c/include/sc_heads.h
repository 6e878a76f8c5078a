/* SPDX-License-Identifier: Apache-2.0
 * RoPE, RMSNorm of heads, int8 quantisation, and append to the KV cache. Bit-identical to quantize_heads()
 * and store_heads() in numerics. A core processes every n-th head; data is in L1 or the cache's memory.
 *
 * Inline: each function has one caller, so only its loops occupy the instruction cache. */
#ifndef SC_HEADS_H
#define SC_HEADS_H

#include "sc_runtime.h"

static inline uint32_t pack_scale(uint32_t mantissa, int exponent) {
    return mantissa | (uint32_t)exponent << 16;
}

/* z = RoPE(x * 2^-e) * 2^15. Returns max(top, |z|). z may be x. */
SC_INLINE uint32_t rope_head(const int32_t *x, const int16_t *rope, int e, int32_t *z, int32_t top) {
#if SC_XPULP
    const int32_t *x2 = x + SC_HEAD_DIM / 2;
    int32_t *z2 = z + SC_HEAD_DIM / 2, a, b, u, v, w, s;
    /* clang-format off */
    __asm__ volatile(
        SC_LOOP_BEGIN("%[n]", 16)
        P_LW_POST("%[a]", "%[x]", "4")
        P_LW_POST("%[b]", "%[x2]", "4")
        P_LW_POST("%[w]", "%[rope]", "4") /* sine and cosine */
        "sra %[a], %[a], %[e]\n"
        "sra %[b], %[b], %[e]\n"
        "srai %[s], %[w], 16\n"
        P_MULS("%[u]", "%[a]", "%[w]")
        P_MULS("%[v]", "%[b]", "%[w]")
        P_MSU("%[u]", "%[b]", "%[s]")
        P_MAC("%[v]", "%[a]", "%[s]")
        P_SW_POST("%[u]", "%[z]", "4")
        P_SW_POST("%[v]", "%[z2]", "4")
        P_ABS("%[u]", "%[u]")
        P_ABS("%[v]", "%[v]")
        P_MAX("%[top]", "%[top]", "%[u]")
        P_MAX("%[top]", "%[top]", "%[v]")
        SC_LOOP_END(16)
        : [x] "+&r"(x), [x2] "+&r"(x2), [z] "+&r"(z), [z2] "+&r"(z2), [rope] "+&r"(rope), [top] "+&r"(top),
          [a] "=&r"(a), [b] "=&r"(b), [u] "=&r"(u), [v] "=&r"(v), [w] "=&r"(w), [s] "=&r"(s)
        : [n] "r"(SC_HEAD_DIM / 2), [e] "r"(e)
        : "memory");
    /* clang-format on */
#else
    for (int i = 0; i < SC_HEAD_DIM / 2; i++) {
        const int32_t a = x[i] >> e, b = x[i + SC_HEAD_DIM / 2] >> e, c = rope[2 * i], s = rope[2 * i + 1];
        const int32_t u = a * c - b * s, v = b * c + a * s;
        z[i] = u, z[i + SC_HEAD_DIM / 2] = v;
        top = sc_max(top, sc_max(sc_abs(u), sc_abs(v)));
    }
#endif
    return (uint32_t)top;
}

/* dst[i * stride] = int8 of z[i] * 2^-n * reciprocal. z[i] * 2^-n has at most 15 bits and a sign. */
SC_INLINE void round_head(const int32_t *z, int n, int32_t reciprocal, int8_t *dst, int stride) {
#if SC_XPULP
    int32_t a, b;
    /* clang-format off */
#define ROUND_HEAD(shift, count)                                                                             \
    __asm__ volatile(                                                                                        \
        SC_LOOP_BEGIN("%[n]", 8)                                                                             \
        P_LW_POST("%[a]", "%[z]", "4")                                                                       \
        P_LW_POST("%[b]", "%[z]", "4")                                                                       \
        shift " %[a], %[a], %[s]\n"                                                                          \
        shift " %[b], %[b], %[s]\n"                                                                          \
        P_MULSRN("%[a]", "%[a]", "%[r]", "%[q]")                                                             \
        P_MULSRN("%[b]", "%[b]", "%[r]", "%[q]")                                                             \
        P_SB_POST_R("%[a]", "%[dst]", "%[step]")                                                             \
        P_SB_POST_R("%[b]", "%[dst]", "%[step]")                                                             \
        SC_LOOP_END(8)                                                                                       \
        : [z] "+&r"(z), [dst] "+&r"(dst), [a] "=&r"(a), [b] "=&r"(b)                                         \
        : [n] "r"(SC_HEAD_DIM / 2), [s] "r"(count), [r] "r"(reciprocal), [step] "r"(stride),                 \
          [q] "i"(SC_HEAD_QSHIFT)                                                                            \
        : "memory")
    if (__builtin_expect(n >= 0, 1))
        ROUND_HEAD("sra", n);
    else
        ROUND_HEAD("sll", -n); /* few-bit weights give small sums */
#undef ROUND_HEAD
    /* clang-format on */
#else
    for (int i = 0; i < SC_HEAD_DIM; i++, dst += stride) {
        const int32_t v = n >= 0 ? z[i] >> n : (int32_t)((uint32_t)z[i] << -n);
        *dst = (int8_t)sc_rshift(v * reciprocal, SC_HEAD_QSHIFT);
    }
#endif
}

#ifdef SC_HAS_HEAD_NORM
/* y = x * gain; returns the sum of squares */
SC_HOT static uint64_t head_gains(const int32_t *x, const int16_t *gain, int32_t *y) {
    uint64_t total = 0;
    for (int i = 0; i < SC_HEAD_DIM; i++) {
        const int32_t s = x[i] >> SC_HEAD_NORM_SHIFT;
        total += (uint64_t)((int64_t)s * s);
        y[i] = sc_scale_q15(x[i], gain[i]);
    }
    return total;
}

/* RMSNorm over x: multiplies the head's mantissa and exponent by 1 / rms. */
SC_HOT static uint32_t head_rms(uint64_t total, uint32_t top, int *exponent) {
    int j;
    const uint32_t product = top * sc_rsqrt(total, &j);
    const int extra = sc_bits(product) - 15;
    *exponent += extra - j;
    return product >> extra;
}
#endif

#if SC_KV_BITS == 4
#include "sc_store_codes.h"
#endif

/* Processes heads first, first + step, ... of the token's q, k, v. Returns the first head of this core for
 * the next token. */
SC_INLINE int heads_prepare(const sc_heads *h, int head, int step) {
    for (; head < SC_HEADS + 2 * SC_KV_HEADS; head += step) {
        int at = head;
        SC_OPAQUE(at); /* else GCC keeps derived values across heads and runs out of registers */
        const int is_v = at >= SC_HEADS + SC_KV_HEADS;
        const int32_t *z = h->qkv + at * SC_HEAD_DIM;
#if SC_KV_BITS == 4
        if (is_v) {
            store_value(h, at - SC_HEADS - SC_KV_HEADS, z);
            continue;
        }
#endif
#ifdef SC_HAS_HEAD_NORM
        uint64_t total = h->layer->head_eps;
        if (!is_v) {
            total += head_gains(z, h->layer->head_gain[at >= SC_HEADS], h->work);
            z = h->work;
        }
#endif
        int32_t most = 1;
#if SC_XPULP && SC_HEAD_DIM % 4 == 0 && SC_HEAD_DIM <= 8
        for (int i = 0; i < SC_HEAD_DIM; i += 4) most = sc_max_four(most, z + i);
#else
        SC_MAX_RUN(most, z, SC_HEAD_DIM);
#endif
        uint32_t top = (uint32_t)most;
        int n = sc_top_bit(top) - 14, exponent = n;
        if (!is_v) {
            const int e = sc_max(n, 0);
            top = rope_head(z, h->rope, e, h->work, 1 << 14);
            z = h->work;
#if SC_KV_BITS == 4
            if (at >= SC_HEADS) {
#ifdef SC_HAS_HEAD_NORM
                store_key(h, at - SC_HEADS, z, e - 15, total);
#else
                store_key(h, at - SC_HEADS, z, e - 15, 0);
#endif
                continue;
            }
#endif
            n = sc_top_bit(top) - 14;
            exponent = e + n - 15;
        }
        top = n >= 0 ? top >> n : top << -n;
        uint32_t mantissa = top;
#ifdef SC_HAS_HEAD_NORM
        if (!is_v) mantissa = head_rms(total, top, &exponent);
#endif
        uint32_t limit = mantissa;
#if SC_KV_BITS == 4
        h->q_scale[at] = pack_scale(mantissa, exponent);
        order_query(h, at / (SC_HEADS / SC_KV_HEADS), z, n,
                    (int32_t)(((uint32_t)SC_QMAX << SC_HEAD_QSHIFT) / top), h->q8 + at * SC_HDP);
        (void)limit;
#else
        int8_t *dst;
        int stride = 1;
        if (at < SC_HEADS) {
            dst = h->q8 + at * SC_HDP;
            h->q_scale[at] = pack_scale(mantissa, exponent);
        } else {
            const int kv = at - SC_HEADS - (is_v ? SC_KV_HEADS : 0);
            const int unit = is_v ? h->layer->v_unit : h->layer->k_unit;
            const int right = sc_to_31(unit - exponent);
            const uint32_t scale = (mantissa + (1u << right) - 1) >> right;
            uint8_t *record = h->k + h->position * SC_K_STRIDE + kv * SC_K_RECORD;
            ((uint16_t *)(void *)record)[is_v] = (uint16_t)scale;
            limit = scale << right;
            dst = (int8_t *)record + 4;
            if (is_v) {
                dst = (int8_t *)h->v + h->position / SC_KV_POSITIONS * SC_V_BLOCK +
                      h->position % SC_KV_POSITIONS + kv * SC_V_HEAD;
                stride = SC_KV_POSITIONS;
                if (h->value_scales) h->value_scales[kv] |= (uint16_t)scale;
            }
        }
        int32_t reciprocal;
#ifdef SC_HAS_HEAD_NORM
        if (!is_v) {
            const uint32_t plain = ((uint32_t)SC_QMAX << SC_HEAD_QSHIFT) / top;
            reciprocal = (int32_t)(limit == mantissa ? plain : plain * mantissa / limit);
        } else
#endif
            reciprocal = (int32_t)(((uint32_t)SC_QMAX << SC_HEAD_QSHIFT) / limit);
        round_head(z, n, reciprocal, dst, stride);
        if (SC_HDP > SC_HEAD_DIM && !is_v) dst[SC_HEAD_DIM] = dst[SC_HEAD_DIM + 1] = 0;
#endif
    }
    return head - (SC_HEADS + 2 * SC_KV_HEADS);
}

#endif
