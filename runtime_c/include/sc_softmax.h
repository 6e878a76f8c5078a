/* SPDX-License-Identifier: Apache-2.0
 * Attention of one head: out = sum(softmax(q * k) * v), in integers. Bit-identical to attend() in numerics. A
 * core processes every n-th head; the cache and scratch buffers are in L1. Inline, like sc_heads.h. */
#ifndef SC_SOFTMAX_H
#define SC_SOFTMAX_H

#include "sc_runtime.h"

static inline int32_t load32(const void *p) {
    int32_t v;
    __builtin_memcpy(&v, __builtin_assume_aligned(p, 4), 4);
    return v;
}

static inline uint32_t load16(const uint8_t *p) {
    uint16_t v;
    __builtin_memcpy(&v, __builtin_assume_aligned(p, 2), 2);
    return v;
}

static inline int32_t scale_mantissa(uint32_t s) { return (int32_t)sc_low16(s); }
static inline int32_t scale_exponent(uint32_t s) { return (int32_t)s >> 16; }

/* Loads with post-increment: an immediate if the stride fits, else a register. */
#define V_STEP (SC_V_BLOCK - (VALUES - 1) * SC_KV_POSITIONS) /* from a block's last word to the next block */
#define SHORT_STRIDES (SC_K_STRIDE < 2048 && SC_V_BLOCK < 2048)
#if SHORT_STRIDES
#define STEP(n) "i"(n)
#define LW_STEP P_LW_POST
#define LHU_STEP P_LHU_POST
#else
#define STEP(n) "r"(n)
#define LW_STEP P_LW_POST_R
#define LHU_STEP P_LHU_POST_R
#endif

/* State of a head's softmax. */
typedef struct {
    int32_t least;   /* negated scores: the largest score */
    uint32_t total;  /* sum of probabilities, Q16 */
    uint32_t factor; /* (score difference * 2^-(18 + shift)) * factor is in log2 units, Q9; 16 bits */
    int32_t shift;   /* 0 .. 31 */
    uint32_t most;   /* larger shifted differences count as this; 16 bits */
} head_softmax;

/* The largest difference that matters, for an odd 16-bit factor. With the full table: one whose product with
 * the factor is 16 to 18 octaves, where exp2 is 0 (a linear bound of 2^31 / factor, at most 12 % above
 * it). */
static inline uint32_t largest_difference(uint32_t factor) {
#ifdef SC_AT_EXP2
    return 0x18000u - factor;
#else
    (void)factor;
    return 0xFFFF;
#endif
}

SC_INLINE head_softmax softmax_begin(const sc_layer *layer, uint32_t q_scale) {
    const uint32_t product = (uint32_t)scale_mantissa(q_scale) * layer->score_mantissa;
    const int extra = sc_top_bit(product) - 15;
    const int shift = -(extra + scale_exponent(q_scale) + layer->score_exponent + 9 + 18);
    const uint32_t factor = product >> extra | 1;
    return (head_softmax){
        .least = 1 << 30, .factor = factor, .shift = sc_to_31(shift), .most = largest_difference(factor)};
}

/* Score loop in assembly. An instruction between each load and its use avoids stalls; so the previous score
 * is compared late. DOT_INSNS instructions. */
/* clang-format off */
#define DOT_LOAD(t) P_LW_POST("%[" #t "]", "%[row]", "4")
#define DOT_LAST(t) LW_STEP("%[" #t "]", "%[row]", "%[rs]")
#define DOT_LEAST P_MIN("%[least]", "%[least]", "%[v]")
#define DOT_FIRST(t) PV_DOTSP_B("%[v]", "%[q0]", "%[" #t "]")
#define DOT_NEXT(i, t) PV_SDOTSP_B("%[v]", "%[q" #i "]", "%[" #t "]")
#if SC_HDP == 4
#define DOT_STEPS DOT_LAST(t) DOT_LEAST DOT_FIRST(t)
#define DOT_OPERANDS , [q0] "r"(q[0])
#define DOT_INSNS 3
#elif SC_HDP == 8
#define DOT_STEPS DOT_LOAD(t) DOT_LAST(u) DOT_LEAST DOT_FIRST(t) DOT_NEXT(1, u)
#define DOT_OPERANDS , [q0] "r"(q[0]), [q1] "r"(q[1])
#define DOT_INSNS 5
#elif SC_HDP == 12
#define DOT_STEPS DOT_LOAD(t) DOT_LOAD(u) DOT_LEAST DOT_FIRST(t) DOT_LAST(t) DOT_NEXT(1, u) DOT_NEXT(2, t)
#define DOT_OPERANDS , [q0] "r"(q[0]), [q1] "r"(q[1]), [q2] "r"(q[2])
#define DOT_INSNS 7
#elif SC_HDP == 16
#define DOT_STEPS DOT_LOAD(t) DOT_LOAD(u) DOT_LEAST DOT_FIRST(t) DOT_LOAD(t) DOT_NEXT(1, u) DOT_LAST(u) \
    DOT_NEXT(2, t) DOT_NEXT(3, u)
#define DOT_OPERANDS , [q0] "r"(q[0]), [q1] "r"(q[1]), [q2] "r"(q[2]), [q3] "r"(q[3])
#define DOT_INSNS 9
#endif
#define SCORE_INSNS (4 + DOT_INSNS)
/* clang-format on */

/* Negated score: -(q * k), rounded to 16 bits, times the key's scale. At most 32767^2. */
static inline int32_t key_score(int32_t product, const uint8_t *record) {
    int32_t v = -product;
#if SC_DOT_SHIFT > 0
    v = (v + (1 << (SC_DOT_SHIFT - 1))) >> SC_DOT_SHIFT;
#if SC_XPULP
    return SC_VALUE(P_MULS, v, load16(record));
#endif
#endif
    return v * (int32_t)load16(record);
}

#if SC_XPULP && SC_HDP > 16
/* Products of a query with the keys of four positions from k on. */
typedef struct {
    int32_t v0, v1, v2, v3;
} key_products;

SC_INLINE key_products four_products(const int8_t *q8, const uint8_t *k, uint32_t words) {
    const uint8_t *k1 = k + SC_K_STRIDE, *k2 = k1 + SC_K_STRIDE, *k3 = k2 + SC_K_STRIDE;
    key_products p = {0, 0, 0, 0};
    int32_t q, a, b;
    /* clang-format off */
    __asm__ volatile(SC_LOOP_BEGIN("%[n]", 9)
                     P_LW_POST("%[q]", "%[q8]", "4")
                     P_LW_POST("%[a]", "%[k]", "4") P_LW_POST("%[b]", "%[k1]", "4")
                     PV_SDOTSP_B("%[v0]", "%[q]", "%[a]") PV_SDOTSP_B("%[v1]", "%[q]", "%[b]")
                     P_LW_POST("%[a]", "%[k2]", "4") P_LW_POST("%[b]", "%[k3]", "4")
                     PV_SDOTSP_B("%[v2]", "%[q]", "%[a]") PV_SDOTSP_B("%[v3]", "%[q]", "%[b]")
                     SC_LOOP_END(9)
                     : [q8] "+&r"(q8), [k] "+&r"(k), [k1] "+&r"(k1), [k2] "+&r"(k2), [k3] "+&r"(k3), [q] "=&r"(q),
                       [a] "=&r"(a), [b] "=&r"(b), [v0] "+&r"(p.v0), [v1] "+&r"(p.v1), [v2] "+&r"(p.v2),
                       [v3] "+&r"(p.v3)
                     : [n] "r"(words)
                     : "memory");
    /* clang-format on */
    return p;
}
#endif

#if SC_KV_BITS == 4
#include "sc_codes.h"
#include "sc_rotate.h"
#else
/* Scores of `count` positions, whose K records begin at row. Returns the end of the records. */
SC_INLINE const uint8_t *softmax_scores(head_softmax *s, int32_t *out, const int8_t *q8, const uint8_t *row,
                                        uint32_t count) {
    int32_t least = s->least;
#if SC_XPULP && SC_HDP <= 16 && SC_DOT_SHIFT > 0
    int32_t q[SC_HDP / 4], scale, v = least, t, u; /* a small query stays in registers, negated */
    for (int d = 0; d < SC_HDP / 4; d++) q[d] = SC_VALUE(PV_SUB_B, 0, load32(q8 + 4 * d));
    /* clang-format off */
    __asm__ volatile(
        ".balign 4\n.option push\n.option norvc\n.option norelax\n"
        LP_SETUP("0", "%[n]", "%[body]") "771:\n"
        P_LHU_POST("%[sc]", "%[row]", "4")
        DOT_STEPS
        P_ADDRN("%[v]", "%[v]", "x0", "%[ds]")
        P_MULS("%[v]", "%[v]", "%[sc]") /* times the key's scale */
        P_SW_POST("%[v]", "%[out]", "4")
        "772:\n.if (772b - 771b) - 4*(%[insns])\n.error \"a hardware loop is miscounted\"\n.endif\n"
        ".option pop\n"
        DOT_LEAST
        : [row] "+&r"(row), [out] "+&r"(out), [least] "+&r"(least), [sc] "=&r"(scale), [v] "+&r"(v), [t] "=&r"(t),
          [u] "=&r"(u)
        : [n] "r"(count), [ds] "i"(SC_DOT_SHIFT), [rs] STEP(SC_K_STRIDE - SC_HDP),
          [body] "i"(2 * SCORE_INSNS), [insns] "i"(SCORE_INSNS) DOT_OPERANDS
        : "memory");
    /* clang-format on */
#else
#if SC_XPULP && SC_HDP > 16
    for (; count >= 4; count -= 4, out += 4, row += 4 * SC_K_STRIDE) {
        const key_products p = four_products(q8, row + 4, SC_HDP / 4);
        out[0] = key_score(p.v0, row);
        out[1] = key_score(p.v1, row + SC_K_STRIDE);
        out[2] = key_score(p.v2, row + 2 * SC_K_STRIDE);
        out[3] = key_score(p.v3, row + 3 * SC_K_STRIDE);
        least = sc_min(sc_min(least, out[0]), sc_min(out[1], sc_min(out[2], out[3])));
    }
#endif
    for (const int32_t *end = out + count; out < end; row += SC_K_STRIDE) {
        const uint8_t *data = row + 4;
        int32_t v = 0;
#if SC_XPULP && SC_HDP % 8 == 0
        const int8_t *query = q8;
        int32_t a, b, c, d;
        /* clang-format off */
        __asm__ volatile(SC_LOOP_BEGIN("%[n]", 6)
                         P_LW_POST("%[a]", "%[q]", "4") P_LW_POST("%[b]", "%[k]", "4")
                         P_LW_POST("%[c]", "%[q]", "4") P_LW_POST("%[d]", "%[k]", "4")
                         PV_SDOTSP_B("%[v]", "%[a]", "%[b]") PV_SDOTSP_B("%[v]", "%[c]", "%[d]")
                         SC_LOOP_END(6)
                         : [q] "+&r"(query), [k] "+&r"(data), [v] "+&r"(v), [a] "=&r"(a), [b] "=&r"(b), [c] "=&r"(c),
                           [d] "=&r"(d)
                         : [n] "r"(SC_HDP / 8)
                         : "memory");
        /* clang-format on */
#else
        for (int d = 0; d < SC_HDP; d += 4) v = sc_sdot4(v, load32(q8 + d), load32(data + d));
#endif
        v = key_score(v, row);
        least = sc_min(least, v);
        *out++ = v;
    }
#endif
    s->least = least;
    return row;
}
#endif

/* Right shift that gives probability * value scale SC_ATTENTION_WEIGHT_BITS bits. scales: all scales ORed, which has
 * the bits of the largest. */
SC_INLINE int weight_drop(uint32_t scales) { return sc_top_bit(scales) + 17 - SC_ATTENTION_WEIGHT_BITS; }

/* Bitwise OR of the value scales of positions from .. to - 1. k: their K records. */
SC_INLINE uint32_t value_scales_of(const uint8_t *k, uint32_t kv, uint32_t from, uint32_t to) {
    const uint8_t *scale = k + from * SC_K_STRIDE + kv * SC_K_RECORD + 2;
    uint32_t scales = 0;
    for (; from < to; from++, scale += SC_K_STRIDE) scales |= load16(scale);
    return scales;
}

/* VALUES: channels at a time. Four weights are used as four high and four low bytes. With many channels the
 * weights are split once, otherwise for every group of channels. Eight channels at a time halve the loads of
 * weights for large heads. */
#if SC_HEAD_DIM % 4
#define VALUES 2
#elif SC_XPULP && SC_HEAD_DIM % 8 == 0 && SC_HEAD_DIM >= 32
#define VALUES 8
#else
#define VALUES 4
#endif
/* WEIGHS_FOUR: one loop instead of two over positions, for long contexts and short heads. Elsewhere the code
 * costs more instruction cache than it saves. */
#ifdef SC_AT_EXP2
#define WEIGHS_FOUR (SC_XPULP && SC_KV_BITS == 8 && VALUES == 4 && SC_HEAD_DIM <= 8 && SHORT_STRIDES)
#else
#define WEIGHS_FOUR 0
#endif
#define SPLIT_WEIGHTS                                                                                        \
    (SC_XPULP && (SC_KV_BITS == 4 || (VALUES >= 4 && SC_HEAD_DIM >= (WEIGHS_FOUR ? 8 : 16))))

#if SPLIT_WEIGHTS
SC_INLINE void split_weights(uint16_t *weight, uint32_t blocks) {
    int32_t a, b, v;
    uint16_t *to = weight;
    /* clang-format off */
    __asm__ volatile(SC_LOOP_BEGIN("%[n]", 7)
                     P_LW_POST("%[a]", "%[w]", "4")
                     P_LW_POST("%[v]", "%[w]", "4")
                     "mv %[b], %[a]\n"
                     PV_SHUFFLE2_B("%[a]", "%[v]", "%[high]")
                     PV_SHUFFLE2_B("%[b]", "%[v]", "%[low]")
                     P_SW_POST("%[a]", "%[to]", "4")
                     P_SW_POST("%[b]", "%[to]", "4")
                     SC_LOOP_END(7)
                     : [w] "+&r"(weight), [to] "+&r"(to), [a] "=&r"(a), [b] "=&r"(b), [v] "=&r"(v)
                     : [n] "r"(blocks), [high] "r"(0x07050301), [low] "r"(0x06040200)
                     : "memory");
    /* clang-format on */
}
#endif

/* Weights of `count` positions. scales: scale of the first value. Returns the end of the weights. */
SC_INLINE uint16_t *softmax_weights(head_softmax *s, const int32_t *score, uint16_t *weight,
                                    const uint8_t *scales, uint32_t count, int drop) {
    const int32_t least = s->least;
    const int shift = s->shift;
    const uint32_t factor = s->factor;
    uint32_t total = s->total;
#if SC_XPULP
    int32_t d, scale, i, p;
    /* clang-format off */
    __asm__ volatile(
#ifdef SC_AT_EXP2
        P_LW_POST("%[d]", "%[score]", "4")
        SC_LOOP_BEGIN("%[n]", 11)
        LHU_STEP("%[sc]", "%[scales]", "%[ss]")
        P_ADDUNR("%[d]", "%[least]", "%[shift]") /* least is negated */
        P_MINU("%[d]", "%[d]", "%[most]")
        P_MULUN("%[d]", "%[d]", "%[f]", "18") /* Q9 */
        "andi %[i], %[d], -2\n"
        P_LHU_R("%[p]", "%[table]", "%[i]")
        P_LW_POST("%[d]", "%[score]", "4") /* next score; reads one too many at the end */
        "add %[total], %[total], %[p]\n"
        P_MULU("%[p]", "%[p]", "%[sc]")
        SC_ROUND("%[p]", "%[drop]")
        P_SH_POST("%[p]", "%[w]", "2")
        SC_LOOP_END(11)
#else
        SC_LOOP_BEGIN("%[n]", 13)
        P_LW_POST("%[d]", "%[score]", "4")
        LHU_STEP("%[sc]", "%[scales]", "%[ss]")
        P_ADDUNR("%[d]", "%[least]", "%[shift]")
        P_CLIPU("%[d]", "%[d]", "17") /* saturates to 16 bits, unsigned */
        P_MULUN("%[d]", "%[d]", "%[f]", "18")
        "andi %[i], %[d], 510\n"
        P_LHU_R("%[p]", "%[table]", "%[i]")
        "srli %[d], %[d], 9\n"
        "srl %[p], %[p], %[d]\n"
        "add %[total], %[total], %[p]\n"
        P_MULU("%[p]", "%[p]", "%[sc]")
        SC_ROUND("%[p]", "%[drop]")
        P_SH_POST("%[p]", "%[w]", "2")
        SC_LOOP_END(13)
#endif
        : [score] "+&r"(score), [scales] "+&r"(scales), [w] "+&r"(weight), [total] "+&r"(total), [d] "=&r"(d),
          [sc] "=&r"(scale), [i] "=&r"(i), [p] "=&r"(p)
        : [n] "r"(count), [least] "r"(-least), [shift] "r"(shift), [f] "r"(factor), [drop] "r"(drop),
#ifdef SC_AT_EXP2
          [most] "r"(s->most), [table] "r"(SC_EXP2_VALUES),
#else
          [table] "r"(sc_exp2_table),
#endif
          [ss] STEP(SC_K_STRIDE)
        : "memory");
    /* clang-format on */
#else
    for (const int32_t *end = score + count; score < end; scales += SC_K_STRIDE) {
        uint32_t d = (uint32_t)(*score++ - least) >> shift;
        d = ((d < s->most ? d : s->most) * factor) >> 18;
#ifdef SC_AT_EXP2
        const uint32_t p = SC_EXP2_VALUES[d >> 1];
#else
        const uint32_t p = sc_exp2_table[d >> 1 & 255] >> (d >> 9);
#endif
        total += p;
        *weight++ = (uint16_t)((p * load16(scales) + (1u << (drop - 1))) >> drop);
    }
#endif
    s->total = total;
    return weight;
}

/* The same, then zeros up to a whole block. */
SC_INLINE void softmax_weigh(head_softmax *s, const int32_t *score, uint16_t *weight, const uint8_t *scales,
                             uint32_t count, int drop) {
    weight = softmax_weights(s, score, weight, scales, count, drop);
    weight[0] = weight[1] = weight[2] = 0;
#if SPLIT_WEIGHTS
    split_weights(weight - count, (count + SC_KV_POSITIONS - 1) / SC_KV_POSITIONS);
#endif
}

#if SC_KV_BITS == 4
#include "sc_code_values.h"
#else
#include "sc_weighted_values.h"
#endif

#if SC_KV_BITS == 4
/* Weighted sums of the values; row: the KV head in the first V block. */
SC_INLINE void head_values(const uint8_t *row, const uint16_t *weight, uint32_t count, int32_t *out) {
    for (int d = 0; d < SC_HEAD_DIM; d++) out[d] = 0;
    add_values(row, weight, count, out);
}
#endif

#if WEIGHS_FOUR
#include "sc_weigh_four.h"
#endif

/* How a weighted sum is divided by the sum of probabilities. */
typedef struct {
    int32_t factor, limit, half;
    int left, right;
} mean_scale;

SC_INLINE mean_scale head_mean(uint32_t total, int drop, const sc_layer *layer) {
    const int z_shift = sc_top_bit(total) - 15;
    const uint32_t reciprocal = 0x80000000u / (total >> z_shift);
    const int shift = 20 + z_shift - drop - layer->mean_unit;
    mean_scale m;
    m.factor = (int32_t)(reciprocal << 14);
    m.left = sc_to_31(-shift);
    m.right = sc_to_31(shift);
    m.limit = (int32_t)(0xFFFFFFFFu >> m.left >> 1) - 1;
    m.half = (1 << m.right) >> 1;
    return m;
}

/* n > 0 sums, in place. */
SC_INLINE void means(mean_scale m, int32_t *sum, uint32_t n) {
#if SC_XPULP
    int32_t v;
    int32_t *out = sum;
    /* clang-format off */
#if SC_HEAD_DIM >= 32 /* two at a time, so that neither waits for the other's result */
    int32_t w;
    __asm__ volatile(SC_LOOP_BEGIN("%[n]", 14)
                     P_LW_POST("%[v]", "%[sum]", "4") P_LW_POST("%[w]", "%[sum]", "4")
                     "mulh %[v], %[v], %[factor]\n"
                     "mulh %[w], %[w], %[factor]\n"
                     P_CLIPR("%[v]", "%[v]", "%[limit]")
                     P_CLIPR("%[w]", "%[w]", "%[limit]")
                     "sll %[v], %[v], %[left]\n"
                     "sll %[w], %[w], %[left]\n"
                     "add %[v], %[v], %[half]\n"
                     "add %[w], %[w], %[half]\n"
                     "sra %[v], %[v], %[right]\n"
                     "sra %[w], %[w], %[right]\n"
                     P_SW_POST("%[v]", "%[out]", "4")
                     P_SW_POST("%[w]", "%[out]", "4")
                     SC_LOOP_END(14)
                     : [sum] "+&r"(sum), [out] "+&r"(out), [v] "=&r"(v), [w] "=&r"(w)
                     : [n] "r"(n / 2), [factor] "r"(m.factor), [limit] "r"(m.limit),
                       [left] "r"(m.left), [half] "r"(m.half), [right] "r"(m.right)
                     : "memory");
    if (n % 2 == 0) return;
    n = 1;
#endif
    __asm__ volatile(SC_LOOP_BEGIN("%[n]", 7)
                     P_LW_POST("%[v]", "%[sum]", "4")
                     "mulh %[v], %[v], %[factor]\n"
                     P_CLIPR("%[v]", "%[v]", "%[limit]") /* clip to -(limit + 1) .. limit */
                     "sll %[v], %[v], %[left]\n"
                     "add %[v], %[v], %[half]\n"
                     "sra %[v], %[v], %[right]\n"
                     P_SW_POST("%[v]", "%[out]", "4")
                     SC_LOOP_END(7)
                     : [sum] "+&r"(sum), [out] "+&r"(out), [v] "=&r"(v)
                     : [n] "r"(n), [factor] "r"(m.factor), [limit] "r"(m.limit),
                       [left] "r"(m.left), [half] "r"(m.half), [right] "r"(m.right)
                     : "memory");
    /* clang-format on */
#else
    for (; n; n--, sum++) {
        const int32_t high = sc_min(sc_max(sc_mulh(*sum, m.factor), -m.limit - 1), m.limit);
        *sum = ((int32_t)((uint32_t)high << m.left) + m.half) >> m.right;
    }
#endif
}

/* Attention of heads first, first + step, ... below `end`. Returns the next head minus SC_HEADS: this core's
 * first head of the next token if end == SC_HEADS. last: no later position is in use. */
SC_INLINE int heads_attend(const sc_heads *h, int head, int step, int end, int last) {
    for (; head < end; head += step) {
        int at = head;
        SC_OPAQUE(at); /* else GCC keeps derived values across heads and runs out of registers */
        const uint32_t kv = (uint32_t)at / (SC_HEADS / SC_KV_HEADS);
        const uint32_t count = h->position + 1;
        const uint8_t *const records = h->k + kv * SC_K_RECORD;
        int32_t *const score = h->scratch->score;
        uint16_t *const weight = h->scratch->weight;
        int32_t *const out = h->out + at * SC_HEAD_DIM;
        const uint8_t *row = h->v + kv * SC_V_HEAD;
        head_softmax s = softmax_begin(h->layer, h->q_scale[at]);
        int d = 0;
        const uint8_t *const after = softmax_scores(&s, score, h->q8 + at * SC_HDP, records, count);
        const int drop = weight_drop(h->value_scales[kv]);
#if WEIGHS_FOUR
        if (last) {
            uint8_t *const next = h->k + (after - h->k); /* writable */
            const uint32_t none = no_positions(s.least, score + count, next, count);
            weigh_values(&s, score, weight, records + 2, row, (count + none) / SC_KV_POSITIONS, drop, out);
            s.total -= none * sc_exp2_table[0];
            d = VALUES, row += VALUES * SC_KV_POSITIONS;
        } else
#else
        (void)after;
#endif
            softmax_weigh(&s, score, weight, records + 2, count, drop);
#if SC_KV_BITS == 4
        (void)d;
        head_values(row, weight, count, out);
#else
        for (; d < SC_HEAD_DIM; d += VALUES, row += VALUES * SC_KV_POSITIONS)
            weighted_values(row, weight, count, out + d);
#endif
        means(head_mean(s.total, drop, h->layer), out, SC_HEAD_DIM);
#if SC_KV_BITS == 4
        rotate_head(out);
#endif
    }
    (void)last;
    return head - SC_HEADS;
}

#endif
