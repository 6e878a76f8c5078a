/* SPDX-License-Identifier: Apache-2.0
 * RoPE, int8 heads, cache append and attention: twin of quantize_heads(), store_heads() and attend().
 *
 * Inline, because a step of a pass knows where its buffers are and because what is called from one place needs
 * no more of the instruction cache than its loops do. */
#ifndef SC_HEADS_H
#define SC_HEADS_H

#include "sc_attention.h"

static inline int32_t load32(const void *p) {
    int32_t v;
    __builtin_memcpy(&v, __builtin_assume_aligned(p, 4), 4);
    return v;
}

static inline uint32_t pack_scale(uint32_t mantissa, int exponent) {
    return mantissa | (uint32_t)exponent << 16;
}
static inline int32_t scale_mantissa(uint32_t s) { return (int32_t)sc_low16(s); }
static inline int32_t scale_exponent(uint32_t s) { return (int32_t)s >> 16; }

/* z = x * 2^-e, turned by RoPE and 2^15 times as large; returns the larger of top and max |z|.  z may be x. */
static inline uint32_t turn_head(const int32_t *x, const int16_t *rope, int e, int32_t *z, int32_t top) {
#if SC_XPULP
    const int32_t *x2 = x + SC_HEAD_DIM / 2;
    int32_t *z2 = z + SC_HEAD_DIM / 2, a, b, u, v, w, s;
    /* clang-format off */
    __asm__ volatile(
        SC_LOOP_BEGIN("%[n]", 16)
        SC_LW_POST("%[a]", "%[x]")
        SC_LW_POST("%[b]", "%[x2]")
        SC_LW_POST("%[w]", "%[rope]") /* sine and cosine */
        "sra %[a], %[a], %[e]\n"
        "sra %[b], %[b], %[e]\n"
        "srai %[s], %[w], 16\n"
        ".insn r 0x5b, 0, 0x40, %[u], %[a], %[w]\n" /* the product of the low halves */
        ".insn r 0x5b, 0, 0x40, %[v], %[b], %[w]\n"
        ".insn r 0x33, 1, 0x21, %[u], %[b], %[s]\n" /* u -= b * s */
        ".insn r 0x33, 0, 0x21, %[v], %[a], %[s]\n" /* v += a * s */
        ".insn s 0x2b, 2, %[u], 4(%[z])\n"
        ".insn s 0x2b, 2, %[v], 4(%[z2])\n"
        ".insn r 0x33, 0, 0x02, %[u], %[u], x0\n"
        ".insn r 0x33, 0, 0x02, %[v], %[v], x0\n"
        ".insn r 0x33, 6, 0x02, %[top], %[top], %[u]\n"
        ".insn r 0x33, 6, 0x02, %[top], %[top], %[v]\n"
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

/* dst[i * stride] = z[i] * 2^-n times the reciprocal, an int8 */
static inline void round_head(const int32_t *z, int n, int32_t reciprocal, int8_t *dst, int stride) {
#if SC_XPULP
    int32_t a, b;
    /* clang-format off */
    __asm__ volatile(
        SC_LOOP_BEGIN("%[n]", 8)
        SC_LW_POST("%[a]", "%[z]")
        SC_LW_POST("%[b]", "%[z]")
        "sra %[a], %[a], %[s]\n"
        "sra %[b], %[b], %[s]\n"
        ".insn r 0x5b, 4, 0x40 + %[q], %[a], %[a], %[r]\n" /* rounded product of the low halves */
        ".insn r 0x5b, 4, 0x40 + %[q], %[b], %[b], %[r]\n"
        ".insn r 0x2b, 4, 0, %[step], %[dst], %[a]\n"
        ".insn r 0x2b, 4, 0, %[step], %[dst], %[b]\n"
        SC_LOOP_END(8)
        : [z] "+&r"(z), [dst] "+&r"(dst), [a] "=&r"(a), [b] "=&r"(b)
        : [n] "r"(SC_HEAD_DIM / 2), [s] "r"(n), [r] "r"(reciprocal), [step] "r"(stride), [q] "i"(SC_HEAD_QSHIFT)
        : "memory");
    /* clang-format on */
#else
    for (int i = 0; i < SC_HEAD_DIM; i++, dst += stride)
        *dst = (int8_t)sc_rshift((z[i] >> n) * reciprocal, SC_HEAD_QSHIFT);
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

/* The head after RMSNorm over x: mantissa and exponent times 1 / rms. */
SC_HOT static uint32_t head_rms(uint64_t total, uint32_t top, int *exponent) {
    int j;
    const uint32_t product = top * sc_rsqrt(total, &j);
    const int extra = sc_bits(product) - 15;
    *exponent += extra - j;
    return product >> extra;
}
#endif

/* Heads first, first + step, ... below SC_HEADS + 2 * SC_KV_HEADS of the token's qkv: RoPE, int8, and for k and v
 * the append at its position.  Returns the next head, less the number of all: the next token's first. */
static inline int heads_prepare(const sc_heads *h, int head, int step) {
    for (; head < SC_HEADS + 2 * SC_KV_HEADS; head += step) {
        int at = head;
        SC_OPAQUE(
            at); /* or what follows from it is kept from head to head, in more registers than there are */
        const int is_v = at >= SC_HEADS + SC_KV_HEADS;
        const int32_t *z = h->qkv + at * SC_HEAD_DIM;
#ifdef SC_HAS_HEAD_NORM
        uint64_t total = h->layer->head_eps;
        if (!is_v) {
            total += head_gains(z, h->layer->head_gain[at >= SC_HEADS], h->work);
            z = h->work;
        }
#endif
        int32_t most = 1;
        SC_MAX_WORDS(most, z, SC_HEAD_DIM, 4);
        uint32_t top = (uint32_t)most;
        int n = sc_top_bit(top) - 14, exponent = n;
        if (!is_v) {
            const int e = sc_max(n, 0);
            top = turn_head(z, h->rope, e, h->work, 1 << 14);
            z = h->work;
            n = sc_top_bit(top) - 14;
            exponent = e + n - 15;
        } else if (__builtin_expect(n < 0, 0)) {
            for (int i = 0; i < SC_HEAD_DIM; i++) h->work[i] = (int32_t)((uint32_t)z[i] << -n);
            z = h->work, top <<= -n, n = 0;
        }
        top >>= n;
        uint32_t mantissa = top, limit;
#ifdef SC_HAS_HEAD_NORM
        if (!is_v) mantissa = head_rms(total, top, &exponent);
#endif
        limit = mantissa;
        int8_t *dst;
        int stride = 1;
        if (at < SC_HEADS) {
            dst = h->q8 + at * SC_HDP;
            h->q_scale[at] = pack_scale(mantissa, exponent);
        } else {
            const int kv = at - SC_HEADS - (is_v ? SC_KV_HEADS : 0);
            const int unit = is_v ? h->layer->v_unit : h->layer->k_unit;
            const int right = sc_min(sc_max(unit - exponent, 0), 31);
            const uint32_t scale = (mantissa + (1u << right) - 1) >> right;
            uint8_t *record = h->k + h->position * SC_K_STRIDE + kv * SC_K_RECORD;
            ((uint16_t *)(void *)record)[is_v] = (uint16_t)scale;
            limit = scale << right;
            dst = (int8_t *)record + 4;
            if (is_v) {
                dst = (int8_t *)h->v + h->position / SC_KV_POSITIONS * SC_V_BLOCK +
                      h->position % SC_KV_POSITIONS + kv * SC_HEAD_DIM * SC_KV_POSITIONS;
                stride = SC_KV_POSITIONS;
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
    }
    return head - (SC_HEADS + 2 * SC_KV_HEADS);
}

/* Where the softmax of a head stands. */
typedef struct {
    int32_t least;    /* score, of which the largest is the least here: they are negated */
    uint32_t records; /* largest scales of a position: that of its value in the upper half */
    uint32_t total;   /* sum of probabilities, Q16 */
    uint32_t factor;  /* score differences times 2^-(18 + shift) and this, of 16 bits, are log2 units in Q9 */
    int32_t shift;    /* 0 .. 31 */
} head_softmax;

static inline head_softmax head_begin(const sc_layer *layer, uint32_t q_scale) {
    const uint32_t product = (uint32_t)scale_mantissa(q_scale) * layer->score_mantissa;
    const int extra = sc_top_bit(product) - 15;
    const int shift = -(extra + scale_exponent(q_scale) + layer->score_exponent + 9 + 18);
    return (head_softmax){
        .least = 1 << 30, .factor = product >> extra, .shift = sc_min(sc_max(shift, 0), 31)};
}

/* The score loop's dot product in assembly: every load but the last of a small head is followed by
 * another one before it is used.  DOT_INSNS instructions. */
/* clang-format off */
#define DOT_LOAD(t) SC_LW_POST("%[" #t "]", "%[row]")
#define DOT_LAST(t) ".insn r 0x0b, 7, 0x10, %[" #t "], %[row], %[rs]\n"
#define DOT_FIRST(t) ".insn r 0x57, 1, 0x4C, %[v], %[q0], %[" #t "]\n"
#define DOT_NEXT(i, t) SC_SDOT("%[v]", "%[q" #i "]", "%[" #t "]")
#define DOT_RECORDS ".insn r 0x33, 7, 0x02, %[rec], %[rec], %[sc]\n"
#if SC_HDP == 4
#define DOT_STEPS DOT_LAST(t) DOT_RECORDS DOT_FIRST(t)
#define DOT_OPERANDS , [q0] "r"(q[0])
#define DOT_INSNS 3
#elif SC_HDP == 8
#define DOT_STEPS DOT_LOAD(t) DOT_LAST(u) DOT_RECORDS DOT_FIRST(t) DOT_NEXT(1, u)
#define DOT_OPERANDS , [q0] "r"(q[0]), [q1] "r"(q[1])
#define DOT_INSNS 5
#elif SC_HDP == 12
#define DOT_STEPS DOT_LOAD(t) DOT_LOAD(u) DOT_FIRST(t) DOT_LAST(t) DOT_NEXT(1, u) DOT_NEXT(2, t) DOT_RECORDS
#define DOT_OPERANDS , [q0] "r"(q[0]), [q1] "r"(q[1]), [q2] "r"(q[2])
#define DOT_INSNS 7
#elif SC_HDP == 16
#define DOT_STEPS DOT_LOAD(t) DOT_LOAD(u) DOT_FIRST(t) DOT_LOAD(t) DOT_NEXT(1, u) DOT_LAST(u) DOT_NEXT(2, t) \
    DOT_RECORDS DOT_NEXT(3, u)
#define DOT_OPERANDS , [q0] "r"(q[0]), [q1] "r"(q[1]), [q2] "r"(q[2]), [q3] "r"(q[3])
#define DOT_INSNS 9
#endif
/* clang-format on */

/* Scores of `count` positions whose K records begin at row. */
static inline void head_scores(head_softmax *s, int32_t *out, const int8_t *q8, const uint8_t *row,
                               uint32_t count) {
    int32_t least = s->least;
    uint32_t records = s->records;
#if SC_XPULP && SC_HDP <= 16 && SC_DOT_SHIFT > 0
    int32_t q[SC_HDP / 4], scale, v, t, u; /* a small head stays in registers, negated */
    for (int d = 0; d < SC_HDP / 4; d++) q[d] = SC_R2(0x57, 1, 0x04, 0, load32(q8 + 4 * d));
    /* clang-format off */
    __asm__ volatile(
        ".balign 4\n.option push\n.option norvc\n.option norelax\n"
        ".insn i 0x7b, 4, x0, %[n], %[body]\n771:\n"
        SC_LW_POST("%[sc]", "%[row]")
        DOT_STEPS
        SC_ROUND_IMM("%[v]", "%[v]", "%[ds]")
        ".insn r 0x5b, 0, 0x40, %[v], %[v], %[sc]\n" /* times the key's scale, the low half */
        ".insn r 0x33, 4, 0x02, %[least], %[least], %[v]\n"
        ".insn s 0x2b, 2, %[v], 4(%[out])\n"
        "772:\n.if (772b - 771b) - 4*(%[insns])\n.error \"a hardware loop is miscounted\"\n.endif\n"
        ".option pop"
        : [row] "+&r"(row), [out] "+&r"(out), [least] "+&r"(least), [rec] "+&r"(records), [sc] "=&r"(scale),
          [v] "=&r"(v), [t] "=&r"(t), [u] "=&r"(u)
        : [n] "r"(count), [ds] "i"(SC_DOT_SHIFT), [rs] "r"(SC_K_STRIDE - SC_HDP),
          [body] "i"(2 * (5 + DOT_INSNS)), [insns] "i"(5 + DOT_INSNS) DOT_OPERANDS
        : "memory");
    /* clang-format on */
#else
    for (const int32_t *end = out + count; out < end; row += SC_K_STRIDE) {
        const uint32_t record = (uint32_t)load32(row);
        const uint8_t *data = row + 4;
        int32_t v = 0;
#if SC_XPULP && SC_HDP % 8 == 0
        const int8_t *query = q8;
        int32_t a, b, c, d;
        /* clang-format off */
        __asm__ volatile(SC_LOOP_BEGIN("%[n]", 6)
                         SC_LW_POST("%[a]", "%[q]") SC_LW_POST("%[b]", "%[k]")
                         SC_LW_POST("%[c]", "%[q]") SC_LW_POST("%[d]", "%[k]")
                         SC_SDOT("%[v]", "%[a]", "%[b]") SC_SDOT("%[v]", "%[c]", "%[d]")
                         SC_LOOP_END(6)
                         : [q] "+&r"(query), [k] "+&r"(data), [v] "+&r"(v), [a] "=&r"(a), [b] "=&r"(b), [c] "=&r"(c),
                           [d] "=&r"(d)
                         : [n] "r"(SC_HDP / 8)
                         : "memory");
        /* clang-format on */
#else
        for (int d = 0; d < SC_HDP; d += 4) v = sc_sdot4(v, load32(q8 + d), load32(data + d));
#endif
        v = -v;
#if SC_DOT_SHIFT > 0
        v = (v + (1 << (SC_DOT_SHIFT - 1))) >> SC_DOT_SHIFT;
#endif
        v *= (int32_t)sc_low16(record); /* at most 32767^2 */
        if (record > records) records = record;
        least = sc_min(least, v);
        *out++ = v;
    }
#endif
    s->least = least;
    s->records = records;
}

/* by how many bits a probability times its value's scale, at most records >> 16, loses to have SC_WEIGHT_BITS */
static inline int weight_drop(uint32_t records) { return sc_top_bit(records) + 1 - SC_WEIGHT_BITS; }

/* The weights of `count` positions, and zeros after them up to a whole block; scales: the first value's. */
static inline void head_weigh(head_softmax *s, const int32_t *score, uint16_t *weight, const uint8_t *scales,
                              uint32_t count) {
    const int32_t least = s->least;
    const int shift = s->shift, drop = weight_drop(s->records);
    const uint32_t factor = s->factor;
    uint32_t total = s->total;
#if SC_XPULP
    int32_t d, scale, i, p;
    /* clang-format off */
    __asm__ volatile(
        SC_LOOP_BEGIN("%[n]", 13)
        SC_LW_POST("%[d]", "%[score]")
        ".insn r 0x0b, 7, 0x28, %[sc], %[scales], %[ss]\n"
        ".insn r 0x5b, 2, 0x60, %[d], %[least], %[shift]\n" /* (d - least) >> shift, unsigned */
        ".insn r 0x33, 5, 0x02, %[d], %[d], %[most]\n"
        ".insn r 0x5b, 0, 18, %[d], %[d], %[f]\n" /* (d * f) >> 18, of the low halves: Q9 */
        "andi %[i], %[d], 510\n"
        ".insn r 0x03, 7, 0x28, %[p], %[table], %[i]\n"
        "srli %[d], %[d], 9\n"
        "srl %[p], %[p], %[d]\n"
        "add %[total], %[total], %[p]\n"
        ".insn r 0x5b, 0, 0, %[p], %[p], %[sc]\n"
        SC_ROUND("%[p]", "%[drop]")
        ".insn s 0x2b, 1, %[p], 2(%[w])\n"
        SC_LOOP_END(13)
        : [score] "+&r"(score), [scales] "+&r"(scales), [w] "+&r"(weight), [total] "+&r"(total), [d] "=&r"(d),
          [sc] "=&r"(scale), [i] "=&r"(i), [p] "=&r"(p)
        : [n] "r"(count), [least] "r"(-least), [most] "r"(0xFFFF), [shift] "r"(shift), [f] "r"(factor),
          [table] "r"(sc_exp2_table), [drop] "r"(drop), [ss] "r"(SC_K_STRIDE)
        : "memory");
    /* clang-format on */
#else
    for (const int32_t *end = score + count; score < end; scales += SC_K_STRIDE) {
        uint32_t d = (uint32_t)(*score++ - least) >> shift;
        d = ((d < 0xFFFF ? d : 0xFFFF) * factor) >> 18;
        const uint32_t p = sc_exp2_table[d >> 1 & 255] >> (d >> 9);
        uint16_t scale;
        __builtin_memcpy(&scale, scales, 2);
        total += p;
        *weight++ = (uint16_t)((p * scale + (1u << (drop - 1))) >> drop);
    }
#endif
    s->total = total;
    weight[0] = weight[1] = weight[2] = 0;
}

/* Channels at a time. */
#if SC_HEAD_DIM % 4 == 0
#define VALUES 4
#define VALUES_BEGIN SC_LOOP_BEGIN("%[n]", 17)
#else
#define VALUES 2
#define VALUES_BEGIN SC_LOOP_BEGIN("%[n]", 11)
#endif

/* sum[i] = values of channel i from row on times the weights of `count` positions */
static inline void weighted_values(const uint8_t *row, const uint16_t *weight, uint32_t count,
                                   int32_t sum[VALUES]) {
#if SC_XPULP
    /* weights of four positions become four high and four low bytes */
    int32_t v0, v1, a, b, h0 = 0, l0 = 0, h1 = 0, l1 = 0;
#if VALUES == 4
    int32_t h2 = 0, l2 = 0, h3 = 0, l3 = 0;
#endif
    /* clang-format off */
    __asm__ volatile(VALUES_BEGIN
                     SC_LW_POST("%[a]", "%[w]")
                     SC_LW_POST("%[v1]", "%[w]")
                     "mv %[b], %[a]\n"
                     ".insn r 0x57, 1, 0x64, %[a], %[v1], %[high]\n"
                     ".insn r 0x57, 1, 0x64, %[b], %[v1], %[low]\n"
                     SC_LW_POST("%[v0]", "%[row]")
#if VALUES == 4
                     SC_LW_POST("%[v1]", "%[row]")
                     SC_SDOTU("%[h0]", "%[a]", "%[v0]") SC_SDOTU("%[l0]", "%[b]", "%[v0]")
                     SC_LW_POST("%[v0]", "%[row]")
                     SC_SDOTU("%[h1]", "%[a]", "%[v1]") SC_SDOTU("%[l1]", "%[b]", "%[v1]")
                     ".insn r 0x0b, 7, 0x10, %[v1], %[row], %[rs]\n"
                     SC_SDOTU("%[h2]", "%[a]", "%[v0]") SC_SDOTU("%[l2]", "%[b]", "%[v0]")
                     SC_SDOTU("%[h3]", "%[a]", "%[v1]") SC_SDOTU("%[l3]", "%[b]", "%[v1]")
                     SC_LOOP_END(17) "\n"
                     SC_MAC("%[l2]", "%[h2]", "%[c]") SC_MAC("%[l3]", "%[h3]", "%[c]")
                     "sw %[l2], 8(%[sum])\n"
                     "sw %[l3], 12(%[sum])\n"
#else
                     ".insn r 0x0b, 7, 0x10, %[v1], %[row], %[rs]\n"
                     SC_SDOTU("%[h0]", "%[a]", "%[v0]") SC_SDOTU("%[l0]", "%[b]", "%[v0]")
                     SC_SDOTU("%[h1]", "%[a]", "%[v1]") SC_SDOTU("%[l1]", "%[b]", "%[v1]")
                     SC_LOOP_END(11) "\n"
#endif
                     SC_MAC("%[l0]", "%[h0]", "%[c]") SC_MAC("%[l1]", "%[h1]", "%[c]")
                     "sw %[l0], 0(%[sum])\n"
                     "sw %[l1], 4(%[sum])\n"
                     : [row] "+&r"(row), [w] "+&r"(weight), [h0] "+&r"(h0), [h1] "+&r"(h1), [l0] "+&r"(l0),
                       [l1] "+&r"(l1), [v0] "=&r"(v0), [v1] "=&r"(v1), [a] "=&r"(a), [b] "=&r"(b)
#if VALUES == 4
                       , [h2] "+&r"(h2), [h3] "+&r"(h3), [l2] "+&r"(l2), [l3] "+&r"(l3)
#endif
                     : [n] "r"((count + SC_KV_POSITIONS - 1) / SC_KV_POSITIONS), [c] "r"(256), [sum] "r"(sum),
                       [rs] "r"(SC_V_BLOCK - (VALUES - 1) * SC_KV_POSITIONS), [high] "r"(0x07050301),
                       [low] "r"(0x06040200)
                     : "memory");
/* clang-format on */
#else
    for (int i = 0; i < VALUES; i++) {
        sum[i] = 0;
        for (uint32_t p = 0; p < count; p++) {
            const uint32_t at = p / SC_KV_POSITIONS * SC_V_BLOCK + p % SC_KV_POSITIONS;
            sum[i] += weight[p] * ((const int8_t *)row)[at + (uint32_t)i * SC_KV_POSITIONS];
        }
    }
#endif
}

/* How a weighted sum becomes a mean in the values' fixed point. */
typedef struct {
    int32_t factor, limit, half;
    int left, right;
} mean_scale;

static inline mean_scale head_mean(uint32_t total, uint32_t records, const sc_layer *layer) {
    const int z_shift = sc_top_bit(total) - 15;
    const uint32_t reciprocal = 0x80000000u / (total >> z_shift);
    const int shift = 20 + z_shift - weight_drop(records) - layer->v_unit;
    mean_scale m;
    m.factor = (int32_t)(reciprocal << 14);
    m.left = sc_min(sc_max(-shift, 0), 31);
    m.right = sc_min(sc_max(shift, 0), 30);
    m.limit = SC_INT32_MAX >> m.left;
    m.half = (1 << m.right) >> 1;
    return m;
}

/* In place, n > 0 sums. */
static inline void means(mean_scale m, int32_t *sum, uint32_t n) {
#if SC_XPULP
    int32_t v;
    int32_t *out = sum;
    /* clang-format off */
    __asm__ volatile(SC_LOOP_BEGIN("%[n]", 8)
                     SC_LW_POST("%[v]", "%[sum]")
                     "mulh %[v], %[v], %[factor]\n"
                     ".insn r 0x33, 6, 0x02, %[v], %[v], %[least]\n"
                     ".insn r 0x33, 4, 0x02, %[v], %[v], %[most]\n"
                     "sll %[v], %[v], %[left]\n"
                     "add %[v], %[v], %[half]\n"
                     "sra %[v], %[v], %[right]\n"
                     ".insn s 0x2b, 2, %[v], 4(%[out])\n"
                     SC_LOOP_END(8)
                     : [sum] "+&r"(sum), [out] "+&r"(out), [v] "=&r"(v)
                     : [n] "r"(n), [factor] "r"(m.factor), [least] "r"(-m.limit), [most] "r"(m.limit),
                       [left] "r"(m.left), [half] "r"(m.half), [right] "r"(m.right)
                     : "memory");
    /* clang-format on */
#else
    for (; n; n--, sum++) {
        const int32_t high = sc_min(sc_max(sc_mulh(*sum, m.factor), -m.limit), m.limit);
        *sum = ((int32_t)((uint32_t)high << m.left) + m.half) >> m.right;
    }
#endif
}

/* The attention of heads first, first + step, ... below SC_HEADS, and what is left as above. */
static inline int heads_attend(const sc_heads *h, int head, int step) {
    for (; head < SC_HEADS; head += step) {
        int at = head;
        SC_OPAQUE(
            at); /* or what follows from it is kept from head to head, in more registers than there are */
        const uint32_t kv = (uint32_t)at / (SC_HEADS / SC_KV_HEADS);
        const uint32_t count = h->position + 1;
        const uint8_t *const records = h->k + kv * SC_K_RECORD;
        int32_t *const score = h->scratch->score;
        uint16_t *const weight = h->scratch->weight;
        head_softmax s = head_begin(h->layer, h->q_scale[at]);
        head_scores(&s, score, h->q8 + at * SC_HDP, records, count);
        head_weigh(&s, score, weight, records + 2, count);
        int32_t *const out = h->out + at * SC_HEAD_DIM;
        const uint8_t *row = h->v + kv * SC_HEAD_DIM * SC_KV_POSITIONS;
        for (int d = 0; d < SC_HEAD_DIM; d += VALUES, row += VALUES * SC_KV_POSITIONS)
            weighted_values(row, weight, count, out + d);
        means(head_mean(s.total, s.records, h->layer), out, SC_HEAD_DIM);
    }
    return head - SC_HEADS;
}

#endif
