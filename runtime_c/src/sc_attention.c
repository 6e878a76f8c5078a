/* SPDX-License-Identifier: Apache-2.0
 * RoPE, int8 heads, cache append and attention: twin of quantize_heads() and attend(). */
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
#endif

SC_HOT void sc_head_prepare(SC_IF_HEAD_NORM(const sc_layer *layer) const int32_t *qkv, int head,
                            uint32_t position, const int16_t *rope, int8_t *q8, uint32_t *q_scale, uint8_t *k,
                            uint8_t *v, int32_t *work) {
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
    int32_t reciprocal = (int32_t)(((uint32_t)SC_QMAX << SC_QSHIFT) / top);
#ifdef SC_HAS_HEAD_NORM
    if (!is_v) {
        int j;
        const uint32_t product = top * sc_rsqrt(total, &j);
        const int extra = sc_bits(product) - 15;
        top = product >> extra;
        exponent += extra - j;
    }
#endif
    uint32_t scale = pack_scale(top, exponent), slot = position % SC_KV_POSITIONS;
    int8_t *dst;
    int stride = 1, padding = SC_HDP - SC_HEAD_DIM;
    if (head < SC_HEADS) {
        dst = q8 + head * SC_HDP;
        q_scale[head] = scale;
    } else {
        int kv = head - SC_HEADS - (is_v ? SC_KV_HEADS : 0);
        uint8_t *record = k + position * SC_K_STRIDE + (uint32_t)kv * SC_K_RECORD;
        ((uint32_t *)(void *)record)[is_v] = scale;
        dst = (int8_t *)record + 8;
        if (is_v) {
            dst = (int8_t *)v + position / SC_KV_POSITIONS * SC_V_BLOCK + kv * SC_HEAD_DIM * SC_KV_POSITIONS +
                  slot;
            stride = SC_KV_POSITIONS;
            padding = 0;
        }
    }
    for (int i = 0; i < SC_HEAD_DIM; i++, dst += stride)
        *dst = (int8_t)sc_rshift(work[i] * reciprocal, SC_QSHIFT);
    for (; padding > 0; padding--) *dst++ = 0;
}

void sc_head_begin(sc_head_state *s) {
    s->top = -(1 << 30);
    s->e_max = -(1 << 20);
    s->total = 0;
    for (int i = 0; i < SC_HDP; i++) s->acc[0][i] = s->acc[1][i] = 0;
}

/* The score loop's dot product in assembly, one step per word of the head. */
/* clang-format off */
#define DOT_FIRST ".insn i 0x0b, 2, %[t], 4(%[row])\n.insn r 0x57, 1, 0x4C, %[v], %[q0], %[t]\n"
#define DOT_NEXT(i) ".insn i 0x0b, 2, %[t], 4(%[row])\n.insn r 0x57, 1, 0x5C, %[v], %[q" #i "], %[t]\n"
#if SC_HDP == 4
#define DOT_STEPS DOT_FIRST
#define DOT_OPERANDS , [q0] "r"(q[0])
#elif SC_HDP == 8
#define DOT_STEPS DOT_FIRST DOT_NEXT(1)
#define DOT_OPERANDS , [q0] "r"(q[0]), [q1] "r"(q[1])
#elif SC_HDP == 12
#define DOT_STEPS DOT_FIRST DOT_NEXT(1) DOT_NEXT(2)
#define DOT_OPERANDS , [q0] "r"(q[0]), [q1] "r"(q[1]), [q2] "r"(q[2])
#elif SC_HDP == 16
#define DOT_STEPS DOT_FIRST DOT_NEXT(1) DOT_NEXT(2) DOT_NEXT(3)
#define DOT_OPERANDS , [q0] "r"(q[0]), [q1] "r"(q[1]), [q2] "r"(q[2]), [q3] "r"(q[3])
#endif
/* clang-format on */

SC_HOT void sc_head_scores(sc_head_state *s, sc_head_scratch *w, const sc_layer *layer, const int8_t *q8,
                           uint32_t q_scale, int kv_head, const uint8_t *k, uint32_t first, uint32_t count) {
    const uint32_t product = (uint32_t)scale_mantissa(q_scale) * layer->score_mantissa;
    const int extra = sc_bits(product) - 15;
    const int32_t c = (int32_t)(product >> extra);
    const int base = -(15 + SC_DOT_SHIFT + extra + scale_exponent(q_scale) + layer->score_exponent);
    int32_t *out = w->score + first, top = s->top;
#if SC_HDP <= 16
    int32_t q[SC_HDP / 4]; /* a small head stays in registers */
    for (int d = 0; d < SC_HDP / 4; d++) q[d] = load32(q8 + 4 * d);
#define Q(d) q[(d) / 4]
#else
#define Q(d) load32(q8 + (d))
#endif
    const uint8_t *row = k + kv_head * SC_K_RECORD;
#if SC_XPULP && SC_HDP <= 16 && SC_DOT_SHIFT > 0
    {
        int32_t scale, v, t;
        /* clang-format off */
        __asm__ volatile(
            ".balign 4\n.option push\n.option norvc\n"
            ".insn i 0x7b, 4, x0, %[n], %[body]\n"
            ".insn i 0x0b, 2, %[sc], 8(%[row])\n"
            DOT_STEPS
            ".insn r 0x33, 5, 0x08, %[t], %[sc], x0\n" /* mantissa */
            "mul %[t], %[t], %[c]\n"
            "srai %[sc], %[sc], 16\n"
            "sub %[sc], %[base], %[sc]\n"
            ".insn r 0x33, 4, 0x02, %[sc], %[sc], %[l30]\n"
            ".insn r 0x33, 6, 0x02, %[sc], %[sc], %[one]\n" /* shift */
            SC_ROUND_IMM("%[v]", "%[v]", "%[ds]")
            SC_ROUND_IMM("%[t]", "%[t]", "15") /* factor */
            "mul %[v], %[v], %[t]\n"
            SC_ROUND("%[v]", "%[sc]")
            ".insn s 0x2b, 2, %[v], 4(%[out])\n"
            ".insn r 0x33, 6, 0x02, %[top], %[top], %[v]\n"
            "add %[row], %[row], %[rs]\n"
            ".option pop"
            : [row] "+&r"(row), [out] "+&r"(out), [top] "+&r"(top), [sc] "=&r"(scale),
              [v] "=&r"(v), [t] "=&r"(t)
            : [n] "r"(count), [c] "r"(c), [base] "r"(base), [l30] "r"(30), [one] "r"(1), [ds] "i"(SC_DOT_SHIFT),
              [rs] "r"(SC_K_STRIDE - SC_K_RECORD), [body] "i"(2 * (14 + SC_HDP / 2)) DOT_OPERANDS
            : "memory");
        /* clang-format on */
    }
#else
    for (const int32_t *end = out + count; out < end; row += SC_K_STRIDE) {
        const uint32_t scale = (uint32_t)load32(row);
        const int32_t factor = (c * scale_mantissa(scale) + (1 << 14)) >> 15;
        const int shift = sc_max(sc_min(base - scale_exponent(scale), 30), 1);
        const uint8_t *data = row + 8;
        int32_t v = 0;
        for (int d = 0; d < SC_HDP; d += 4) v = sc_sdot4(v, Q(d), load32(data + d));
#if SC_DOT_SHIFT > 0
        v = (v + (1 << (SC_DOT_SHIFT - 1))) >> SC_DOT_SHIFT;
#endif
        v = (v * factor + (1 << (shift - 1))) >> shift; /* the product is at most 2^30 */
        top = sc_max(top, v);
        *out++ = v;
    }
#endif
    s->top = top;
}
#undef Q

SC_HOT void sc_head_weigh(sc_head_state *s, sc_head_scratch *w, int kv_head, const uint8_t *k, uint32_t first,
                          uint32_t count) {
    const int32_t top = s->top;
    uint32_t total = s->total;
    int32_t e_max = s->e_max;
    int32_t *score = w->score + first, e;
    int8_t *exponent = w->exponent + first;
    const uint8_t *scales = k + kv_head * SC_K_RECORD + 4;
#if SC_XPULP
    {
        int32_t delta, scale, m, p;
        /* clang-format off */
        __asm__ volatile(
            SC_LOOP_BEGIN("%[n]", 26)
            "lw %[d], 0(%[score])\n"
            ".insn r 0x0b, 7, 0x10, %[sc], %[scales], %[ss]\n"
            "sub %[d], %[top], %[d]\n"
            ".insn r 0x33, 5, 0x08, %[p], %[d], x0\n" /* fraction */
            "mul %[m], %[p], %[c3]\n"
            "srli %[d], %[d], 16\n"
            ".insn r 0x33, 4, 0x02, %[d], %[d], %[l31]\n" /* n */
            "srli %[m], %[m], 16\n"
            "sub %[m], %[c2], %[m]\n"
            "mul %[m], %[m], %[p]\n"
            "srai %[e], %[sc], 16\n"
            "sub %[e], %[e], %[d]\n" /* exponent */
            "srli %[m], %[m], 16\n"
            "sub %[m], %[c1], %[m]\n"
            "mul %[m], %[m], %[p]\n"
            ".insn r 0x33, 5, 0x08, %[sc], %[sc], x0\n"
            ".insn s 0x2b, 0, %[e], 1(%[ex])\n"
            "srli %[m], %[m], 16\n"
            "sub %[m], %[c0], %[m]\n"
            SC_ROUND_IMM("%[m]", "%[m]", "1") /* mantissa */
            "mul %[sc], %[m], %[sc]\n"
            ".insn r 0x33, 6, 0x02, %[emax], %[emax], %[e]\n"
            "slli %[m], %[m], 5\n"
            "srl %[m], %[m], %[d]\n"
            "add %[total], %[total], %[m]\n"
            ".insn s 0x2b, 2, %[sc], 4(%[score])\n"
            SC_LOOP_END(26)
            : [score] "+&r"(score), [scales] "+&r"(scales), [ex] "+&r"(exponent), [total] "+&r"(total),
              [emax] "+&r"(e_max), [d] "=&r"(delta), [sc] "=&r"(scale), [m] "=&r"(m), [p] "=&r"(p), [e] "=&r"(e)
            : [n] "r"(count), [top] "r"(top), [l31] "r"(31), [c0] "r"(65531), [c1] "r"(45287), [c2] "r"(15078),
              [c3] "r"(2557), [ss] "r"(SC_K_STRIDE)
            : "memory");
        /* clang-format on */
    }
#else
    for (const int32_t *end = score + count; score < end; scales += SC_K_STRIDE) {
        const uint32_t delta = (uint32_t)(top - *score), scale = (uint32_t)load32(scales);
        const int32_t whole = sc_min((int32_t)(delta >> 16), 31);
        const uint32_t mantissa = sc_exp2_mantissa(sc_low16(delta));
        e = scale_exponent(scale) - whole;
        total += (mantissa << 5) >> whole;
        e_max = sc_max(e_max, e);
        *score++ = (int32_t)(mantissa * (uint32_t)scale_mantissa(scale));
        *exponent++ = (int8_t)e;
    }
#endif
    s->total = total;
    s->e_max = e_max;
}

SC_HOT void sc_head_fix(sc_head_state *s, sc_head_scratch *w, uint32_t count) {
    const int base = s->e_max + 30 - SC_WEIGHT_BITS;
    const int32_t *weight = w->score;
    const int8_t *exponent = w->exponent;
    uint8_t *high = w->high, *low = w->low;
#if SC_XPULP
    int32_t shift, a, t;
    /* clang-format off */
    __asm__ volatile(
        SC_LOOP_BEGIN("%[n]", 10)
        ".insn i 0x0b, 0, %[s], 1(%[ex])\n"
        ".insn i 0x0b, 2, %[a], 4(%[w])\n"
        "sub %[s], %[base], %[s]\n"
        ".insn r 0x33, 4, 0x02, %[s], %[s], %[l31]\n"
        SC_ROUND("%[a]", "%[s]")
        ".insn r 0x33, 4, 0x02, %[a], %[a], %[most]\n"
        "srli %[t], %[a], 7\n"
        "andi %[a], %[a], 127\n"
        ".insn s 0x2b, 0, %[t], 1(%[high])\n"
        ".insn s 0x2b, 0, %[a], 1(%[low])\n"
        SC_LOOP_END(10)
        : [ex] "+&r"(exponent), [w] "+&r"(weight), [high] "+&r"(high), [low] "+&r"(low), [s] "=&r"(shift), [a] "=&r"(a),
          [t] "=&r"(t)
        : [n] "r"(count), [base] "r"(base), [l31] "r"(31), [most] "r"((1 << SC_WEIGHT_BITS) - 1)
        : "memory");
/* clang-format on */
#else
    const int32_t *end = weight + count;
    do {
        /* weights are below 2^30: adding half cannot overflow */
        const int shift = sc_min(base - *exponent++, 31);
        int32_t a = (int32_t)(((uint32_t)*weight++ + (1u << (shift - 1))) >> shift);
        a = sc_min(a, (1 << SC_WEIGHT_BITS) - 1);
        *high++ = (uint8_t)(a >> 7);
        *low++ = (uint8_t)(a & 127);
    } while (weight < end);
#endif
    for (; count % SC_KV_POSITIONS; count++) *high++ = *low++ = 0;
}

SC_HOT void sc_head_values(sc_head_state *s, const sc_head_scratch *w, int kv_head, const uint8_t *v,
                           uint32_t first, uint32_t count) {
    const uint8_t *base = v + kv_head * SC_HEAD_DIM * SC_KV_POSITIONS;
    for (int d = 0; d < SC_HEAD_DIM; d += 2) {
        int32_t h0 = s->acc[0][d], l0 = s->acc[1][d], h1 = s->acc[0][d + 1], l1 = s->acc[1][d + 1];
        const uint8_t *row = base + d * SC_KV_POSITIONS;
        const uint8_t *high = w->high + first, *low = w->low + first;
#if SC_XPULP
        int32_t v0, v1, a, b;
        /* clang-format off */
        __asm__ volatile(SC_LOOP_BEGIN("%[n]", 9)
                         SC_LW_POST("%[a]", "%[high]")
                         "lw %[v0], 0(%[row])\n"
                         "lw %[v1], 4(%[row])\n"
                         SC_LW_POST("%[b]", "%[low]")
                         SC_SDOTU("%[h0]", "%[a]", "%[v0]") SC_SDOTU("%[h1]", "%[a]", "%[v1]")
                         "add %[row], %[row], %[rs]\n"
                         SC_SDOTU("%[l0]", "%[b]", "%[v0]") SC_SDOTU("%[l1]", "%[b]", "%[v1]")
                         SC_LOOP_END(9)
                         : [row] "+&r"(row), [high] "+&r"(high), [low] "+&r"(low), [h0] "+&r"(h0), [h1] "+&r"(h1),
                           [l0] "+&r"(l0), [l1] "+&r"(l1), [v0] "=&r"(v0), [v1] "=&r"(v1), [a] "=&r"(a), [b] "=&r"(b)
                         : [n] "r"((count + SC_KV_POSITIONS - 1) / SC_KV_POSITIONS), [rs] "r"(SC_V_BLOCK)
                         : "memory");
/* clang-format on */
#else
        for (uint32_t p = 0; p < count; p += SC_KV_POSITIONS, row += SC_V_BLOCK) {
            int32_t v0 = load32(row), v1 = load32(row + 4), a = load32(high + p), b = load32(low + p);
            h0 = sc_sdotu4(h0, a, v0);
            h1 = sc_sdotu4(h1, a, v1);
            l0 = sc_sdotu4(l0, b, v0);
            l1 = sc_sdotu4(l1, b, v1);
        }
#endif
        s->acc[0][d] = h0, s->acc[1][d] = l0, s->acc[0][d + 1] = h1, s->acc[1][d + 1] = l1;
    }
}

SC_HOT void sc_head_finish(const sc_head_state *s, int32_t *out) {
    int z_shift = sc_bits(s->total) - 16;
    uint32_t reciprocal = 0x80000000u / (s->total >> z_shift);
    int shift = 15 + z_shift - s->e_max - (30 - SC_WEIGHT_BITS);
    for (int d = 0; d < SC_HEAD_DIM; d++) {
        int32_t acc = (int32_t)((uint32_t)s->acc[0][d] << 7) + s->acc[1][d];
        out[d] = sc_requantize(acc, reciprocal << 14, shift);
    }
}
