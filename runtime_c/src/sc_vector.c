/* SPDX-License-Identifier: Apache-2.0
 * Dynamic int8 vectors: twin of compiler/shrinkc/numerics/vectors.py. */
#include "sc_platform.h"

#include "sc_scan.h"

/* Segment, offset in it and length of a block. */
static inline uint32_t locate(const sc_cut *cut, uint32_t block, uint32_t *seg, uint32_t *at) {
    uint32_t g = 0, b = block;
    while (b >= cut->seg_blocks) { /* a handful of segments: cheaper than a division */
        b -= cut->seg_blocks;
        g++;
    }
    uint32_t len = (g + 1 == cut->nseg ? cut->last_elems : cut->seg_elems) - b * SC_BLOCK;
    *seg = g;
    *at = b * SC_BLOCK;
    return len < SC_BLOCK ? len : SC_BLOCK;
}

SC_HOT void sc_vec_scan(const sc_cut *cut, const int32_t *x, int32_t *y, const int32_t *gain,
                        const uint16_t *perm, int pre_shift, uint32_t *block_max, sc_part *parts, int core,
                        int cores) {
    int32_t top = 0;
    uint32_t low = 0, high = 0;
    for (uint32_t b = (uint32_t)core; b < cut->blocks; b += (uint32_t)cores) {
        uint32_t seg, at, len = locate(cut, b, &seg, &at);
        const uint32_t base = seg * cut->seg_elems + at;
        const int32_t *v = x + base;
        int32_t block_top = 0, gathered[SC_BLOCK];
        if (gain) add_squares(v, len, pre_shift, &low, &high); /* of all inputs, in whatever order */
        if (perm) {
            gather(x, perm + base, len, gathered);
            v = gathered;
        }
        if (gain) {
            apply_gain(v, gain + base, len, y + base);
            v = y + base;
        }
        SC_MAX_WORDS(block_top, v, len, 4);
        block_max[b] = (uint32_t)block_top;
        top = sc_max(top, block_top);
    }
    parts[core].max = (uint32_t)top;
    parts[core].sum = (uint64_t)high << 32 | low;
}

/* n int8 values of x * 2^-exponent * reciprocal / 2^23, both roundings half up */
static inline int8_t *quantize_run(const int32_t *src, uint32_t n, int exponent, int32_t reciprocal,
                                   int8_t *dst) {
    if (__builtin_expect(exponent > 0 && exponent < 16, 1)) { /* at 16 adding half could overflow */
#if SC_XPULP
        int32_t v;
        /* clang-format off */
        __asm__ volatile(SC_LOOP_BEGIN("%[n]", 5)
                         ".insn i 0x0b, 2, %[v], 4(%[src])\n"
                         SC_ROUND("%[v]", "%[e]")
                         "mul %[v], %[v], %[r]\n"
                         SC_ROUND_IMM("%[v]", "%[v]", "23")
                         ".insn s 0x2b, 0, %[v], 1(%[dst])\n" SC_LOOP_END(5)
                         : [src] "+&r"(src), [dst] "+&r"(dst), [v] "=&r"(v)
                         : [n] "r"(n), [e] "r"(exponent), [r] "r"(reciprocal)
                         : "memory");
/* clang-format on */
#else
        for (; n; n--)
            *dst++ =
                (int8_t)((sc_rshift(*src++, exponent) * reciprocal + (1 << (SC_QSHIFT - 1))) >> SC_QSHIFT);
#endif
        return dst;
    }
#if SC_XPULP
    if (exponent <= 0) { /* no more than 15 bits: nothing is lost */
        int32_t v;
        /* clang-format off */
        __asm__ volatile(SC_LOOP_BEGIN("%[n]", 5)
                         ".insn i 0x0b, 2, %[v], 4(%[src])\n"
                         "sll %[v], %[v], %[e]\n"
                         "mul %[v], %[v], %[r]\n"
                         SC_ROUND_IMM("%[v]", "%[v]", "23")
                         ".insn s 0x2b, 0, %[v], 1(%[dst])\n" SC_LOOP_END(5)
                         : [src] "+&r"(src), [dst] "+&r"(dst), [v] "=&r"(v)
                         : [n] "r"(n), [e] "r"(-exponent), [r] "r"(reciprocal)
                         : "memory");
        /* clang-format on */
        return dst;
    }
#endif
    for (; n; n--)
        *dst++ = (int8_t)((sc_shift(*src++, exponent) * reciprocal + (1 << (SC_QSHIFT - 1))) >> SC_QSHIFT);
    return dst;
}

SC_HOT void sc_vec_norm(const sc_part *parts, uint64_t eps, sc_qvec *out, int cores) {
    for (int c = 0; c < cores; c++) eps += parts[c].sum;
    normed(out, eps);
}

SC_HOT void sc_vec_quantize(const sc_cut *cut, const int32_t *y, const uint16_t *perm,
                            const uint32_t *block_max, const sc_part *parts, int norm, uint64_t eps,
                            sc_qvec *out, int core, int cores) {
    int32_t top = 0;
    SC_MAX_WORDS(top, &parts[0].max, (uint32_t)cores, (int)sizeof(sc_part));
    const int exponent = top ? sc_bits((uint32_t)top) - 15 : 0;
    const uint32_t mantissa = top ? (uint32_t)sc_shift(top, exponent) : 1u << 14;

    for (uint32_t b = (uint32_t)core; b < cut->blocks; b += (uint32_t)cores) {
        uint32_t seg, at, len = locate(cut, b, &seg, &at);
        const int last = seg + 1 == cut->nseg;
        const uint32_t first = b - at / SC_BLOCK, end = last ? cut->blocks : first + cut->seg_blocks;
        int32_t seg_top = 0;
        SC_MAX_WORDS(seg_top, block_max + first, end - first, 4);
        uint32_t c = cut->range, limit = mantissa;
        if (seg_top != top || top == 0) { /* otherwise both divisions are known */
            c = ((uint32_t)sc_shift(seg_top, exponent) * c + mantissa - 1) / mantissa;
            c += c == 0;
            limit = (mantissa * c + cut->range - 1) / cut->range;
        }
        const int32_t reciprocal = (int32_t)(((uint32_t)SC_QMAX << SC_QSHIFT) / limit);
        if (at == 0) out->c[seg] = (int32_t)c;

        const int32_t *v = y + seg * cut->seg_elems + at;
        int32_t gathered[SC_BLOCK];
        if (perm && !norm) {
            gather(y, perm + seg * cut->seg_elems + at, len, gathered);
            v = gathered;
        }
        int8_t *dst = quantize_run(v, len, exponent, reciprocal, out->q + seg * cut->seg_words * 4 + at);
        if (b + 1 == end) { /* the segment's padding must not disturb the dot product */
            uint32_t pad = 4u * (last ? cut->last_words : cut->seg_words) - at - len;
            for (; pad; pad--) *dst++ = 0;
        }
    }
    if (core == SC_LAST_CORE(cores)) { /* it has the fewest blocks */
        out->mantissa = mantissa;
        out->exponent = exponent;
        if (norm) sc_vec_norm(parts, eps, out, cores);
    }
}

void sc_vec_sums(const sc_cut *cut, sc_qvec *v, int core, int cores) {
    for (uint32_t g = (uint32_t)core; g < cut->nseg; g += (uint32_t)cores) {
        uint32_t words = g + 1 == cut->nseg ? cut->last_words : cut->seg_words;
        const int8_t *q = v->q + g * cut->seg_words * 4;
        int32_t sum = 0;
        for (uint32_t i = 0; i < words * 4; i++) sum += q[i];
        v->sum[g] = sum;
    }
}
