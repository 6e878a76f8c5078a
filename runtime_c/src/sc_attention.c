/* SPDX-License-Identifier: Apache-2.0
 * RoPE, int8 heads, cache append and attention: twin of quantize_heads(), store_heads() and attend(). */
#include "sc_platform.h"

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

/* y = mantissas of x with a common exponent, rotated by RoPE if rope; returns the exponent and
 * sets *top to max |y|, which fits 15 bits (or is exactly 2^15). */
SC_HOT static int head_mantissas(const int32_t *x, const int16_t *rope, int32_t *y, uint32_t *top) {
    int32_t m = 0;
    SC_MAX_WORDS(m, x, SC_HEAD_DIM, 4);
    int exponent = m ? sc_bits((uint32_t)m) - 15 : 0;
    sc_shift_words(x, y, SC_HEAD_DIM, exponent);
    if (rope) {
        for (int i = 0; i < SC_HEAD_DIM / 2; i++, rope += 2) {
            int32_t a = y[i], b = y[i + SC_HEAD_DIM / 2], c = rope[0], s = rope[1];
            y[i] = sc_rshift(a * c - b * s, 15);
            y[i + SC_HEAD_DIM / 2] = sc_rshift(b * c + a * s, 15);
        }
        m = 0;
        SC_MAX_WORDS(m, y, SC_HEAD_DIM, 4);
        int extra = m ? sc_bits((uint32_t)m) - 15 : 0;
        if (extra) sc_shift_words(y, y, SC_HEAD_DIM, extra);
        exponent += extra;
    }
    m = 0;
    SC_MAX_WORDS(m, y, SC_HEAD_DIM, 4);
    *top = m ? (uint32_t)m : 1u << 14;
    return exponent;
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

SC_HOT void sc_head_prepare(const sc_layer *layer, const int32_t *qkv, int head, uint32_t position,
                            const int16_t *rope, int8_t *q8, uint32_t *q_scale, uint8_t *k, uint8_t *v,
                            int32_t *work) {
    const int is_v = head >= SC_HEADS + SC_KV_HEADS;
    const int32_t *x = qkv + head * SC_HEAD_DIM;
    uint32_t top;
#ifdef SC_HAS_HEAD_NORM
    uint64_t total = layer->head_eps;
    if (!is_v) {
        total += head_gains(x, layer->head_gain[head >= SC_HEADS], work);
        x = work;
    }
#endif
    int exponent = head_mantissas(x, is_v ? 0 : rope, work, &top);
    uint32_t mantissa = top, limit = top;
    int right = 0; /* by how many bits the unit of the cache's scales is larger than that of y */
#ifdef SC_HAS_HEAD_NORM
    if (!is_v) mantissa = head_rms(total, top, &exponent);
#endif
    uint32_t slot = position % SC_KV_POSITIONS;
    int8_t *dst;
    int stride = 1, padding = SC_HDP - SC_HEAD_DIM;
    if (head < SC_HEADS) {
        dst = q8 + head * SC_HDP;
        q_scale[head] = pack_scale(mantissa, exponent);
    } else {
        int kv = head - SC_HEADS - (is_v ? SC_KV_HEADS : 0);
        const int unit = is_v ? layer->v_unit : layer->k_unit;
        const int left = sc_min(sc_max(exponent - unit, 0), 16);
        right = sc_min(sc_max(unit - exponent, 0), 31);
        uint32_t scale = (mantissa + (1u << right) - 1) >> right << left;
        scale = (uint32_t)sc_max(sc_min((int32_t)scale, SC_STORED_MAX), 1);
        if (right) limit = scale << right;
        uint8_t *record = k + position * SC_K_STRIDE + (uint32_t)kv * SC_K_RECORD;
        ((uint16_t *)(void *)record)[is_v] = (uint16_t)scale;
        dst = (int8_t *)record + 4;
        if (is_v) {
            dst = (int8_t *)v + position / SC_KV_POSITIONS * SC_V_BLOCK + kv * SC_HEAD_DIM * SC_KV_POSITIONS +
                  slot;
            stride = SC_KV_POSITIONS;
            padding = 0;
        }
    }
    int32_t reciprocal;
#ifdef SC_HAS_HEAD_NORM
    if (!is_v) {
        const uint32_t plain = ((uint32_t)SC_QMAX << SC_QSHIFT) / top;
        reciprocal = (int32_t)(right ? plain * mantissa / limit : plain);
    } else
#endif
        reciprocal = (int32_t)(((uint32_t)SC_QMAX << SC_QSHIFT) / limit);
    for (int i = 0; i < SC_HEAD_DIM; i++, dst += stride)
        *dst = (int8_t)sc_rshift(work[i] * reciprocal, SC_QSHIFT);
    for (; padding > 0; padding--) *dst++ = 0;
}

SC_HOT void sc_head_begin(sc_head_state *s, const sc_layer *layer, uint32_t q_scale) {
    const uint32_t product = (uint32_t)scale_mantissa(q_scale) * layer->score_mantissa;
    const int extra = sc_bits(product) - 16;
    const int shift = -(extra + scale_exponent(q_scale) + layer->score_exponent + 9);
    s->factor = (uint16_t)(product >> extra);
    s->shift = (uint16_t)sc_min(sc_max(shift, 18), 49);
    s->top = -(1 << 30);
    s->records = 0;
    s->total = 0;
    for (int i = 0; i < SC_HEAD_DIM; i++) s->acc[i] = 0;
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

SC_HOT void sc_head_scores(sc_head_state *s, sc_head_scratch *w, const int8_t *q8, int kv_head,
                           const uint8_t *k, uint32_t first, uint32_t count) {
    int32_t *out = w->score + first, top = s->top;
    uint32_t records = s->records;
    const uint8_t *row = k + kv_head * SC_K_RECORD;
#if SC_XPULP && SC_HDP <= 16 && SC_DOT_SHIFT > 0
    int32_t q[SC_HDP / 4], scale, v, t, u; /* a small head stays in registers */
    for (int d = 0; d < SC_HDP / 4; d++) q[d] = load32(q8 + 4 * d);
    /* clang-format off */
    __asm__ volatile(
        ".balign 4\n.option push\n.option norvc\n.option norelax\n"
        ".insn i 0x7b, 4, x0, %[n], %[body]\n771:\n"
        SC_LW_POST("%[sc]", "%[row]")
        DOT_STEPS
        SC_ROUND_IMM("%[v]", "%[v]", "%[ds]")
        ".insn r 0x5b, 0, 0x40, %[v], %[v], %[sc]\n" /* times the key's scale, the low half */
        ".insn r 0x33, 6, 0x02, %[top], %[top], %[v]\n"
        ".insn s 0x2b, 2, %[v], 4(%[out])\n"
        "772:\n.if (772b - 771b) - 4*(%[insns])\n.error \"a hardware loop is miscounted\"\n.endif\n"
        ".option pop"
        : [row] "+&r"(row), [out] "+&r"(out), [top] "+&r"(top), [rec] "+&r"(records), [sc] "=&r"(scale),
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
#if SC_DOT_SHIFT > 0
        v = (v + (1 << (SC_DOT_SHIFT - 1))) >> SC_DOT_SHIFT;
#endif
        v *= (int32_t)sc_low16(record); /* at most 32767^2 */
        if (record > records) records = record;
        top = sc_max(top, v);
        *out++ = v;
    }
#endif
    s->top = top;
    s->records = records;
}

/* by how many bits a probability times its value's scale loses to have SC_WEIGHT_BITS */
static inline int weight_drop(const sc_head_state *s) {
    return 16 + sc_bits(s->records >> 16) - SC_WEIGHT_BITS;
}

SC_HOT void sc_head_weigh(sc_head_state *s, sc_head_scratch *w, int kv_head, const uint8_t *k, uint32_t first,
                          uint32_t count) {
    const int32_t top = s->top;
    const int shift = s->shift, drop = weight_drop(s);
    const uint32_t most = shift < 33 ? (1u << (shift - 2)) - 1 : 0x7FFFFFFF, factor = s->factor;
    uint32_t total = s->total;
    const int32_t *score = w->score + first;
    uint16_t *weight = w->weight + first;
    const uint8_t *scales = k + kv_head * SC_K_RECORD + 2;
#if SC_XPULP
    int32_t d, scale, i, p;
    /* clang-format off */
    __asm__ volatile(
        SC_LOOP_BEGIN("%[n]", 14)
        SC_LW_POST("%[d]", "%[score]")
        ".insn r 0x0b, 7, 0x28, %[sc], %[scales], %[ss]\n"
        "sub %[d], %[top], %[d]\n"
        ".insn r 0x33, 5, 0x02, %[d], %[d], %[most]\n"
        "srl %[d], %[d], %[shift]\n"
        ".insn r 0x5b, 0, 18, %[d], %[d], %[f]\n" /* (d * f) >> 18, of the low halves: Q9 */
        "andi %[i], %[d], 510\n"
        ".insn r 0x03, 7, 0x28, %[p], %[table], %[i]\n"
        "srli %[d], %[d], 9\n"
        "srl %[p], %[p], %[d]\n"
        "add %[total], %[total], %[p]\n"
        ".insn r 0x5b, 0, 0, %[p], %[p], %[sc]\n"
        SC_ROUND("%[p]", "%[drop]")
        ".insn s 0x2b, 1, %[p], 2(%[w])\n"
        SC_LOOP_END(14)
        : [score] "+&r"(score), [scales] "+&r"(scales), [w] "+&r"(weight), [total] "+&r"(total), [d] "=&r"(d),
          [sc] "=&r"(scale), [i] "=&r"(i), [p] "=&r"(p)
        : [n] "r"(count), [top] "r"(top), [most] "r"(most), [shift] "r"(shift - 18), [f] "r"(factor),
          [table] "r"(sc_exp2_table), [drop] "r"(drop), [ss] "r"(SC_K_STRIDE)
        : "memory");
    /* clang-format on */
#else
    for (const int32_t *end = score + count; score < end; scales += SC_K_STRIDE) {
        uint32_t d = (uint32_t)(top - *score++);
        d = (d < most ? d : most) >> (shift - 18);
        d = (d * factor) >> 18;
        const uint32_t p = sc_exp2_table[d >> 1 & 255] >> (d >> 9);
        uint16_t scale;
        __builtin_memcpy(&scale, scales, 2);
        total += p;
        *weight++ = (uint16_t)((p * scale + (1u << (drop - 1))) >> drop);
    }
#endif
    s->total = total;
    for (; (first + count) % SC_KV_POSITIONS; count++) *weight++ = 0;
}

/* Channels at a time. */
#if SC_HEAD_DIM % 4 == 0
#define VALUES 4
#define VALUES_BEGIN SC_LOOP_BEGIN("%[n]", 17)
#else
#define VALUES 2
#define VALUES_BEGIN SC_LOOP_BEGIN("%[n]", 11)
#endif

SC_HOT void sc_head_values(sc_head_state *s, const sc_head_scratch *w, int kv_head, const uint8_t *v,
                           uint32_t first, uint32_t count) {
    const uint8_t *base = v + kv_head * SC_HEAD_DIM * SC_KV_POSITIONS;
    for (int d = 0; d < SC_HEAD_DIM; d += VALUES) {
        const uint8_t *row = base + d * SC_KV_POSITIONS;
        const uint16_t *weight = w->weight + first;
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
                         SC_LOOP_END(17)
#else
                         ".insn r 0x0b, 7, 0x10, %[v1], %[row], %[rs]\n"
                         SC_SDOTU("%[h0]", "%[a]", "%[v0]") SC_SDOTU("%[l0]", "%[b]", "%[v0]")
                         SC_SDOTU("%[h1]", "%[a]", "%[v1]") SC_SDOTU("%[l1]", "%[b]", "%[v1]")
                         SC_LOOP_END(11)
#endif
                         : [row] "+&r"(row), [w] "+&r"(weight), [h0] "+&r"(h0), [h1] "+&r"(h1), [l0] "+&r"(l0),
                           [l1] "+&r"(l1), [v0] "=&r"(v0), [v1] "=&r"(v1), [a] "=&r"(a), [b] "=&r"(b)
#if VALUES == 4
                           , [h2] "+&r"(h2), [h3] "+&r"(h3), [l2] "+&r"(l2), [l3] "+&r"(l3)
#endif
                         : [n] "r"((count + SC_KV_POSITIONS - 1) / SC_KV_POSITIONS),
                           [rs] "r"(SC_V_BLOCK - (VALUES - 1) * SC_KV_POSITIONS), [high] "r"(0x07050301),
                           [low] "r"(0x06040200)
                         : "memory");
/* clang-format on */
#define ADD(i) s->acc[d + i] = (int32_t)((uint32_t)s->acc[d + i] + ((uint32_t)h##i << 8) + (uint32_t)l##i);
        ADD(0)
        ADD(1)
#if VALUES == 4
        ADD(2)
        ADD(3)
#endif
#else
        for (int i = 0; i < VALUES; i++)
            for (uint32_t p = 0; p < count; p++) {
                const uint32_t at = p / SC_KV_POSITIONS * SC_V_BLOCK + p % SC_KV_POSITIONS;
                s->acc[d + i] += weight[p] * ((const int8_t *)row)[at + (uint32_t)i * SC_KV_POSITIONS];
            }
#endif
    }
}

SC_HOT void sc_head_finish(const sc_head_state *s, int32_t *out, const sc_layer *layer) {
    const int z_shift = sc_bits(s->total) - 16;
    const uint32_t reciprocal = 0x80000000u / (s->total >> z_shift);
    const int shift = 20 + z_shift - weight_drop(s) - layer->v_unit;
    for (int d = 0; d < SC_HEAD_DIM; d++) out[d] = sc_requantize(s->acc[d], reciprocal << 14, shift);
}
