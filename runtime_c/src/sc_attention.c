/* RoPE, int8 heads, cache append and attention: twin of quantize_heads() and attend(). */
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
static inline int32_t scale_mantissa(uint32_t s) { return (int32_t)(s & 0xFFFF); }
static inline int32_t scale_exponent(uint32_t s) { return (int32_t)s >> 16; }

/* y = mantissas of x with a common exponent, rotated by RoPE if rope; returns the exponent and
 * sets *top to max |y|, which fits 15 bits (or is exactly 2^15). */
static int head_mantissas(const int32_t *x, const int16_t *rope, int32_t *y, uint32_t *top) {
    uint32_t m = 0;
    for (int i = 0; i < SC_HEAD_DIM; i++) m = (uint32_t)sc_max((int32_t)m, sc_abs(x[i]));
    int exponent = m ? sc_bits(m) - 15 : 0;
    for (int i = 0; i < SC_HEAD_DIM; i++) y[i] = sc_shift(x[i], exponent);
    if (rope) {
        for (int i = 0; i < SC_HEAD_DIM / 2; i++) {
            int32_t a = y[i], b = y[i + SC_HEAD_DIM / 2], c = rope[2 * i], s = rope[2 * i + 1];
            y[i] = sc_rshift(a * c - b * s, 15);
            y[i + SC_HEAD_DIM / 2] = sc_rshift(b * c + a * s, 15);
        }
        m = 0;
        for (int i = 0; i < SC_HEAD_DIM; i++) m = (uint32_t)sc_max((int32_t)m, sc_abs(y[i]));
        int extra = m ? sc_bits(m) - 15 : 0;
        for (int i = 0; i < SC_HEAD_DIM; i++) y[i] = sc_shift(y[i], extra);
        exponent += extra;
    }
    m = 0;
    for (int i = 0; i < SC_HEAD_DIM; i++) m = (uint32_t)sc_max((int32_t)m, sc_abs(y[i]));
    *top = m ? m : 1u << 14;
    return exponent;
}

SC_HOT void sc_head_prepare(const int32_t *qkv, int head, uint32_t position, const int16_t *rope, int8_t *q8,
                            uint32_t *q_scale, uint8_t *k, uint8_t *v, int32_t *work) {
    const int is_v = head >= SC_HEADS + SC_KV_HEADS;
    uint32_t top;
    int exponent = head_mantissas(qkv + head * SC_HEAD_DIM, is_v ? 0 : rope, work, &top);
    int32_t reciprocal = (int32_t)(((uint32_t)SC_QMAX << SC_QSHIFT) / top);
    uint32_t scale = pack_scale(top, exponent), slot = position % SC_KV_POSITIONS;
    int8_t *dst;
    int stride = 1, padding = SC_HDP - SC_HEAD_DIM;
    if (head < SC_HEADS) {
        dst = q8 + head * SC_HDP;
        q_scale[head] = scale;
    } else {
        int kv = head - SC_HEADS - (is_v ? SC_KV_HEADS : 0);
        uint8_t *block = is_v ? v + position / SC_KV_POSITIONS * SC_V_BLOCK : k + position / SC_KV_POSITIONS * SC_K_BLOCK;
        uint32_t *scales = (uint32_t *)(void *)block;
        scales[slot * SC_KV_HEADS + (uint32_t)kv] = scale;
        block += SC_KV_SCALES;
        if (is_v) {
            dst = (int8_t *)block + kv * SC_HEAD_DIM * SC_KV_POSITIONS + slot;
            stride = SC_KV_POSITIONS;
            padding = 0;
        } else {
            dst = (int8_t *)block + (slot * SC_KV_HEADS + (uint32_t)kv) * SC_HDP;
        }
    }
    for (int i = 0; i < SC_HEAD_DIM; i++, dst += stride) *dst = (int8_t)sc_rshift(work[i] * reciprocal, SC_QSHIFT);
    for (; padding > 0; padding--) *dst++ = 0;
}

void sc_head_begin(sc_head_state *s) {
    s->top = -SC_SCORE_MAX;
    s->e_max = -(1 << 20);
    s->total = 0;
    for (int i = 0; i < SC_HDP; i++) s->acc[0][i] = s->acc[1][i] = 0;
}

SC_HOT void sc_head_scores(sc_head_state *s, sc_head_scratch *w, const sc_layer *layer, const int8_t *q8,
                           uint32_t q_scale, int kv_head, const uint8_t *k, uint32_t first, uint32_t count) {
    const uint32_t product = (uint32_t)scale_mantissa(q_scale) * layer->score_mantissa;
    const int extra = sc_bits(product) - 15;
    const int32_t c = (int32_t)(product >> extra);
    const int base = -(15 + SC_DOT_SHIFT + extra + scale_exponent(q_scale) + layer->score_exponent);
    int32_t top = s->top;
    const uint8_t *block = k;
    for (uint32_t p = 0; p < count; block += SC_K_BLOCK) {
        const uint32_t *scales = (const uint32_t *)(const void *)block + kv_head;
        const uint8_t *row = block + SC_KV_SCALES + kv_head * SC_HDP;
        for (int i = 0; i < SC_KV_POSITIONS && p < count; i++, p++, row += SC_KV_HEADS * SC_HDP) {
            int32_t dot = 0;
            for (int d = 0; d < SC_HDP; d += 4) dot = sc_sdot4(dot, load32(q8 + d), load32(row + d));
            uint32_t scale = scales[i * SC_KV_HEADS];
            int32_t factor = sc_rshift(c * scale_mantissa(scale), 15);
            int shift = base - scale_exponent(scale);
            int32_t v = (SC_DOT_SHIFT > 0 ? sc_rshift(dot, SC_DOT_SHIFT > 0 ? SC_DOT_SHIFT : 1) : dot) * factor;
            if (shift > 0)
                v = sc_rshift(v, shift > 31 ? 31 : shift);
            else
                v = sc_lshift_sat(v, shift < -31 ? 31 : -shift);
            v = sc_min(sc_max(v, -SC_SCORE_MAX), SC_SCORE_MAX);
            w->score[first + p] = v;
            top = sc_max(top, v);
        }
    }
    s->top = top;
}

SC_HOT void sc_head_weigh(sc_head_state *s, sc_head_scratch *w, int kv_head, const uint8_t *v, uint32_t first,
                          uint32_t count) {
    uint32_t total = s->total;
    int32_t e_max = s->e_max;
    for (uint32_t p = 0; p < count; v += SC_V_BLOCK) {
        const uint32_t *scales = (const uint32_t *)(const void *)v + kv_head;
        for (int i = 0; i < SC_KV_POSITIONS && p < count; i++, p++) {
            uint32_t delta = (uint32_t)(s->top - w->score[first + p]), n = delta >> 16;
            uint32_t weight = 0;
            int32_t e = -128;
            if (n <= 31) {
                uint32_t mantissa = sc_exp2_mantissa(delta & 0xFFFF), scale = scales[i * SC_KV_HEADS];
                total += (mantissa << 5) >> n;
                weight = mantissa * (uint32_t)scale_mantissa(scale);
                e = scale_exponent(scale) - (int32_t)n;
                e_max = sc_max(e_max, e);
            }
            w->score[first + p] = (int32_t)weight;
            w->exponent[first + p] = (int8_t)e;
        }
    }
    s->total = total;
    s->e_max = e_max;
}

SC_HOT void sc_head_fix(sc_head_state *s, sc_head_scratch *w, uint32_t count) {
    const int base = s->e_max + 30 - SC_WEIGHT_BITS;
    uint32_t p = 0;
    for (; p < count; p++) {
        int shift = base - w->exponent[p];
        int32_t a = shift > 31 ? 0 : sc_rshift(w->score[p], shift);
        a = sc_min(a, (1 << SC_WEIGHT_BITS) - 1);
        w->high[p] = (uint8_t)(a >> 7);
        w->low[p] = (uint8_t)(a & 127);
    }
    for (; p % SC_KV_POSITIONS; p++) w->high[p] = w->low[p] = 0;
}

SC_HOT void sc_head_values(sc_head_state *s, const sc_head_scratch *w, int kv_head, const uint8_t *v,
                           uint32_t first, uint32_t count) {
    const uint8_t *base = v + SC_KV_SCALES + kv_head * SC_HEAD_DIM * SC_KV_POSITIONS;
    for (int d = 0; d < SC_HEAD_DIM; d += 2) {
        int32_t h0 = s->acc[0][d], l0 = s->acc[1][d], h1 = s->acc[0][d + 1], l1 = s->acc[1][d + 1];
        const uint8_t *row = base + d * SC_KV_POSITIONS;
        const uint8_t *high = w->high + first, *low = w->low + first;
        for (uint32_t p = 0; p < count; p += SC_KV_POSITIONS, row += SC_V_BLOCK) {
            int32_t v0 = load32(row), v1 = load32(row + 4), a = load32(high + p), b = load32(low + p);
            h0 = sc_sdotu4(h0, a, v0);
            h1 = sc_sdotu4(h1, a, v1);
            l0 = sc_sdotu4(l0, b, v0);
            l1 = sc_sdotu4(l1, b, v1);
        }
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
