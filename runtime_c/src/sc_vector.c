/* SPDX-License-Identifier: Apache-2.0
 * Dynamic vectors of 8 and 16 bit: twin of compiler/shrinkc/numerics/vectors.py. */
#include "sc_platform.h"

#include "sc_kernels.h"

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

/* Adds the squares of v[i] >> shift to a 64-bit sum held in two halves: GCC would spill a uint64_t. */
static inline void add_squares(const int32_t *v, uint32_t n, int shift, uint32_t *low, uint32_t *high) {
#if SC_XPULP
    int32_t s, square;
    /* clang-format off */
    __asm__ volatile(SC_LOOP_BEGIN("%[n]", 8)
                     ".insn i 0x0b, 2, %[s], 4(%[v])\n"
                     "sra %[s], %[s], %[shift]\n"
                     "mul %[q], %[s], %[s]\n"
                     "mulh %[s], %[s], %[s]\n"
                     "add %[l], %[l], %[q]\n"
                     "sltu %[q], %[l], %[q]\n"
                     "add %[h], %[h], %[s]\n"
                     "add %[h], %[h], %[q]\n" SC_LOOP_END(8)
                     : [v] "+&r"(v), [l] "+&r"(*low), [h] "+&r"(*high), [s] "=&r"(s), [q] "=&r"(square)
                     : [n] "r"(n), [shift] "r"(shift)
                     : "memory");
/* clang-format on */
#else
    for (; n; n--) {
        const int32_t s = *v++ >> shift;
        const uint32_t square = (uint32_t)s * (uint32_t)s;
        *low += square;
        *high += (uint32_t)sc_mulh(s, s) + (*low < square);
    }
#endif
}

/* y[i] = x[i] * gain[i] / 2^15 rounded down */
static inline void apply_gain(const int32_t *x, const int16_t *gain, uint32_t n, int32_t *y) {
#if SC_XPULP
    int32_t high, low, g;
    /* clang-format off */
    __asm__ volatile(SC_LOOP_BEGIN("%[n]", 8)
                     ".insn i 0x0b, 1, %[g], 2(%[gain])\n"
                     ".insn i 0x0b, 2, %[l], 4(%[x])\n"
                     "mulh %[h], %[l], %[g]\n"
                     "mul %[l], %[l], %[g]\n"
                     "slli %[h], %[h], 17\n"
                     "srli %[l], %[l], 15\n"
                     "or %[l], %[l], %[h]\n"
                     ".insn s 0x2b, 2, %[l], 4(%[y])\n" SC_LOOP_END(8)
                     : [x] "+&r"(x), [gain] "+&r"(gain), [y] "+&r"(y), [h] "=&r"(high), [l] "=&r"(low),
                       [g] "=&r"(g)
                     : [n] "r"(n)
                     : "memory");
/* clang-format on */
#else
    for (; n; n--) *y++ = sc_scale_q15(*x++, *gain++);
#endif
}

static inline void gather(const int32_t *x, const uint16_t *perm, uint32_t n, int32_t *y) {
    for (; n; n--) *y++ = x[*perm++];
}

SC_HOT void sc_vec_scan(const sc_cut *cut, const int32_t *x, int32_t *y, const int16_t *gain,
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

/* The token's mantissa and exponent under RMSNorm: numerics/vectors.py norm_quantize_vector. */
SC_HOT void sc_vec_norm(const sc_part *parts, uint64_t eps, sc_qvec *out, int cores) {
    uint64_t total = eps;
    for (int c = 0; c < cores; c++) total += parts[c].sum;
    int j;
    uint32_t product = out->mantissa * sc_rsqrt(total, &j);
    int extra = sc_bits(product) - 15;
    out->mantissa = product >> extra;
    out->exponent += extra - j;
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

/* This core's inputs of a 16-bit vector: whole words, whose number is returned; *first of them is its first. */
static inline uint32_t share_of(uint32_t k, uint32_t *first, int core, int cores) {
    const uint32_t each = (k + 4u * (uint32_t)cores - 1) / (4u * (uint32_t)cores) * 4;
    const uint32_t at = each * (uint32_t)core;
    *first = at;
    return at >= k ? 0 : k - at < each ? k - at : each;
}

/* add_squares() and apply_gain() of the same words, and the largest |y| */
static inline int32_t norm_run(const int32_t *x, const int16_t *gain, uint32_t n, int shift, int32_t *y,
                               uint32_t *low, uint32_t *high) {
    int32_t top = 0;
#if SC_XPULP
    int32_t v, g, h, s;
    if (n == 0) return 0;
    /* clang-format off */
    __asm__ volatile(SC_LOOP_BEGIN("%[n]", 17)
                     SC_LW_POST("%[v]", "%[x]")
                     ".insn i 0x0b, 1, %[g], 2(%[gain])\n"
                     "sra %[s], %[v], %[shift]\n"
                     "mulh %[h], %[s], %[s]\n"
                     "mul %[s], %[s], %[s]\n"
                     "add %[hi], %[hi], %[h]\n"
                     "add %[l], %[l], %[s]\n"
                     "sltu %[s], %[l], %[s]\n"
                     "mulh %[h], %[v], %[g]\n"
                     "add %[hi], %[hi], %[s]\n"
                     "mul %[v], %[v], %[g]\n"
                     "slli %[h], %[h], 17\n"
                     "srli %[v], %[v], 15\n"
                     "or %[v], %[v], %[h]\n"
                     ".insn s 0x2b, 2, %[v], 4(%[y])\n"
                     ".insn r 0x33, 0, 0x02, %[v], %[v], x0\n"
                     ".insn r 0x33, 6, 0x02, %[t], %[t], %[v]\n"
                     SC_LOOP_END(17)
                     : [x] "+&r"(x), [gain] "+&r"(gain), [y] "+&r"(y), [l] "+&r"(*low), [hi] "+&r"(*high),
                       [t] "+&r"(top), [v] "=&r"(v), [g] "=&r"(g), [h] "=&r"(h), [s] "=&r"(s)
                     : [n] "r"(n), [shift] "r"(shift)
                     : "memory");
/* clang-format on */
#else
    add_squares(x, n, shift, low, high);
    apply_gain(x, gain, n, y);
    SC_MAX_WORDS(top, y, n, 4);
#endif
    return top;
}

SC_HOT void sc_q16_scan(const sc_cut *cut, const int32_t *x, int32_t *y, const int16_t *gain,
                        const uint16_t *perm, int pre_shift, sc_part *parts, int core, int cores) {
    int32_t top = 0;
    uint32_t low = 0, high = 0, first;
    const uint32_t n = share_of(cut->k, &first, core, cores);
    const int32_t *v = x + first;
    if (gain && SC_PERMS && perm) {
        add_squares(v, n, pre_shift, &low, &high); /* of all inputs, in whatever order */
        gather(x, perm + first, n, y + first);
        apply_gain(y + first, gain + first, n, y + first);
        SC_MAX_WORDS(top, y + first, n, 4);
    } else if (gain) {
        top = norm_run(v, gain + first, n, pre_shift, y + first, &low, &high);
    } else if (n > 0) {
        SC_MAX_WORDS(top, v, n, 4); /* a permutation changes no maximum */
    }
    parts[core].max = (uint32_t)top;
    parts[core].sum = (uint64_t)high << 32 | low;
}

/* n values of x * 2^-exponent, rounded half up, as low bytes and, `pitch` behind them, high bytes */
static inline void split_run(const int32_t *src, uint32_t n, int exponent, int8_t *low, uint32_t pitch) {
    int8_t *high = low + pitch;
#if SC_XPULP
    if (__builtin_expect(exponent > 0 && exponent < 17, 1)) { /* at 17 adding half could overflow */
        int32_t v;
        /* clang-format off */
        __asm__ volatile(SC_LOOP_BEGIN("%[n]", 6)
                         ".insn i 0x0b, 2, %[v], 4(%[src])\n"
                         SC_ROUND("%[v]", "%[e]")
                         ".insn s 0x2b, 0, %[v], 1(%[low])\n"
                         "addi %[v], %[v], 128\n"
                         "srai %[v], %[v], 8\n"
                         ".insn s 0x2b, 0, %[v], 1(%[high])\n" SC_LOOP_END(6)
                         : [src] "+&r"(src), [low] "+&r"(low), [high] "+&r"(high), [v] "=&r"(v)
                         : [n] "r"(n), [e] "r"(exponent)
                         : "memory");
        /* clang-format on */
        return;
    }
    if (exponent <= 0) {
        int32_t v;
        /* clang-format off */
        __asm__ volatile(SC_LOOP_BEGIN("%[n]", 6)
                         ".insn i 0x0b, 2, %[v], 4(%[src])\n"
                         "sll %[v], %[v], %[e]\n"
                         ".insn s 0x2b, 0, %[v], 1(%[low])\n"
                         "addi %[v], %[v], 128\n"
                         "srai %[v], %[v], 8\n"
                         ".insn s 0x2b, 0, %[v], 1(%[high])\n" SC_LOOP_END(6)
                         : [src] "+&r"(src), [low] "+&r"(low), [high] "+&r"(high), [v] "=&r"(v)
                         : [n] "r"(n), [e] "r"(-exponent)
                         : "memory");
        /* clang-format on */
        return;
    }
#endif
    for (; n; n--) {
        const int32_t v = sc_shift(*src++, exponent);
        *low++ = (int8_t)v;
        *high++ = (int8_t)((v + 128) >> 8);
    }
}

SC_HOT void sc_q16_quantize(const sc_cut *cut, const int32_t *y, const uint16_t *perm, const sc_part *parts,
                            int8_t *q, sc_qvec *out, int core, int cores) {
    int32_t top = 0;
    SC_MAX_WORDS(top, &parts[0].max, (uint32_t)cores, (int)sizeof(sc_part));
    const int exponent = top ? sc_bits((uint32_t)top) - cut->range : 0;
    const uint32_t pitch = 4u * cut->words;
    uint32_t first;
    const uint32_t n = share_of(cut->k, &first, core, cores);
    if (SC_PERMS && perm) {
        for (uint32_t at = first; at < first + n; at += SC_BLOCK) {
            int32_t gathered[SC_BLOCK];
            const uint32_t left = first + n - at, len = left < SC_BLOCK ? left : SC_BLOCK;
            gather(y, perm + at, len, gathered);
            split_run(gathered, len, exponent, q + at, pitch);
        }
    } else if (n > 0) {
        split_run(y + first, n, exponent, q + first, pitch);
    }
    if (core == SC_LAST_CORE(cores)) { /* it has the fewest inputs */
        for (uint32_t i = cut->k; i < pitch; i++) q[i] = q[pitch + i] = 0;
        out->q = q;
        out->mantissa = 1u << 14;
        out->exponent = exponent;
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
