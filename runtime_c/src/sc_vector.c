/* SPDX-License-Identifier: Apache-2.0
 * Dynamic quantisation to int8, one scale per quantisation group, with RMSNorm if there is a gain.
 * Bit-identical to compiler/shrinkc/numerics/vectors.py. Workers share the blocks of a vector; vectors are in
 * L1. */
#include "sc_platform.h"

#include "sc_scan.h"

/* A block: its group, its index in the group, and its number of elements. */
typedef struct {
    uint32_t group, at, len;
} block_at;

/* The block `at` blocks after the first one of group group. */
SC_INLINE block_at block_place(const sc_vector_layout *layout, uint32_t group, uint32_t at) {
    for (; at >= layout->group_blocks; at -= layout->group_blocks)
        group++; /* few groups: cheaper than a division */
    const uint32_t left =
        (group + 1 == layout->groups ? layout->last_elems : layout->group_elems) - at * SC_BLOCK;
    return (block_at){group, at, left < SC_BLOCK ? left : SC_BLOCK};
}

/* Elements at .. at + n - 1: in place, or gathered with perm (then n <= SC_BLOCK). */
static inline const int32_t *ordered(const int32_t *x, const uint16_t *perm, uint32_t at, uint32_t n,
                                     int32_t *gathered) {
    if (!perm) return x + at;
    gather(x, perm + at, n, gathered);
    return gathered;
}

/* max(top, |x|) over n elements. With gain: writes y = x * gain, and the maximum is of |y|. */
static inline int32_t gained_top(const int32_t *x, int32_t *y, const int32_t *gain, const uint16_t *perm,
                                 uint32_t at, uint32_t n, int32_t top) {
    int32_t gathered[SC_BLOCK];
    const int32_t *v = ordered(x, perm, at, n, gathered);
    if (gain) {
        apply_gain(v, gain + at, n, y + at);
        v = y + at;
    }
    SC_MAX_RUN(top, v, n);
    return top;
}

SC_HOT void sc_vec_scan(const sc_vector_layout *layout, const int32_t *x, int32_t *y, const int32_t *gain,
                        const uint16_t *perm, int pre_shift, uint32_t *block_max, sc_part *parts, int core,
                        int cores) {
    int32_t top = 0;
    uint32_t low = 0, high = 0;
    block_at p = block_place(layout, 0, (uint32_t)core);
    for (uint32_t b = (uint32_t)core; b < layout->x_blocks;
         b += (uint32_t)cores, p = block_place(layout, p.group, p.at + (uint32_t)cores)) {
        const uint32_t base = p.group * layout->group_elems + p.at * SC_BLOCK;
        if (gain) add_squares(x + base, p.len, pre_shift, &low, &high); /* of all inputs, in any order */
        const int32_t block_top = gained_top(x, y, gain, perm, base, p.len, 0);
        block_max[b] = (uint32_t)block_top;
        top = sc_max(top, block_top);
    }
    parts[core].max = (uint32_t)top;
    parts[core].sum = (uint64_t)high << 32 | low;
}

/* n > 0 int8 values: x * 2^-exponent * reciprocal / 2^23, both steps rounded half up. Returns the end. */
static inline int8_t *quantize_run(const int32_t *src, uint32_t n, int exponent, int32_t reciprocal,
                                   int8_t *dst) {
#if SC_XPULP
    if (__builtin_expect(exponent < 16, 1)) { /* at 16 the rounding could overflow */
        /* Two halves at once, so that no instruction waits for its input. With an odd n both halves include
         * the middle element. */
        const uint32_t half = (n + 1) / 2, apart = n - half;
        const int32_t *src2 = src + apart;
        int8_t *const end = dst + n, *dst2 = dst + apart;
        int32_t v, w;
        /* clang-format off */
#define QUANTIZE(SHIFT, count)                                                                               \
        __asm__ volatile(SC_LOOP_BEGIN("%[n]", 10)                                                           \
                         P_LW_POST("%[v]", "%[src]", "4") P_LW_POST("%[w]", "%[src2]", "4")                  \
                         SHIFT("%[v]") SHIFT("%[w]")                                                         \
                         "mul %[v], %[v], %[r]\nmul %[w], %[w], %[r]\n"                                      \
                         P_ADDRN("%[v]", "%[v]", "x0", "23") P_ADDRN("%[w]", "%[w]", "x0", "23")             \
                         P_SB_POST("%[v]", "%[dst]", "1")                                                    \
                         P_SB_POST("%[w]", "%[dst2]", "1") SC_LOOP_END(10)                                   \
                         : [src] "+&r"(src), [src2] "+&r"(src2), [dst] "+&r"(dst), [dst2] "+&r"(dst2),       \
                           [v] "=&r"(v), [w] "=&r"(w)                                                        \
                         : [n] "r"(half), [by] "r"(count), [r] "r"(reciprocal)                                \
                         : "memory")
        /* clang-format on */
        if (__builtin_expect(exponent > 0, 1))
            QUANTIZE(SC_ROUNDED, exponent);
        else /* at most 15 bits: the shift is exact */
            QUANTIZE(SC_LIFTED, -exponent);
#undef QUANTIZE
        return end;
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

/* A token's mantissa and exponent from its largest magnitude. */
static inline void scale_of(uint32_t top, sc_qvec *out) {
    out->exponent = top ? sc_bits(top) - 15 : 0;
    out->mantissa = top ? (uint32_t)sc_shift((int32_t)top, out->exponent) : 1u << 14;
}

/* Group scale c. *reciprocal: 127 * 2^SC_QSHIFT / (magnitude that 127 represents). */
static inline uint32_t group_scale(const sc_vector_layout *layout, uint32_t group_top, uint32_t top,
                                   uint32_t mantissa, int exponent, int32_t *reciprocal) {
    uint32_t c = layout->range, limit = mantissa;
    if (group_top != top || top == 0) { /* otherwise both quotients are known */
        c = ((uint32_t)sc_shift((int32_t)group_top, exponent) * c + mantissa - 1) / mantissa;
        c += c == 0;
        limit = (mantissa * c + layout->range - 1) / layout->range;
    }
    *reciprocal = (int32_t)(((uint32_t)SC_QMAX << SC_QSHIFT) / limit);
    return c;
}

/* Zeros after the group's last element, so that they do not change dot products. */
static inline void pad(int8_t *dst, uint32_t count) {
    for (; count; count--) *dst++ = 0;
}

SC_HOT void sc_vec_quantize(const sc_vector_layout *layout, const int32_t *y, const uint16_t *perm,
                            const uint32_t *block_max, const sc_part *parts, int norm, uint64_t eps,
                            sc_qvec *out, int core, int cores) {
    int32_t top = 0;
    SC_MAX_WORDS(top, &parts[0].max, (uint32_t)cores, (int)sizeof(sc_part));
    sc_qvec scale = *out;
    scale_of((uint32_t)top, &scale);

    block_at p = block_place(layout, 0, (uint32_t)core);
    for (uint32_t b = (uint32_t)core; b < layout->x_blocks;
         b += (uint32_t)cores, p = block_place(layout, p.group, p.at + (uint32_t)cores)) {
        const int last = p.group + 1 == layout->groups;
        const uint32_t at = p.at * SC_BLOCK, first = b - p.at,
                       end = last ? layout->x_blocks : first + layout->group_blocks;
        int32_t group_top = 0, reciprocal;
        SC_MAX_WORDS(group_top, block_max + first, end - first, 4);
        const uint32_t c = group_scale(layout, (uint32_t)group_top, (uint32_t)top, scale.mantissa,
                                       scale.exponent, &reciprocal);
        if (at == 0) out->c[p.group] = (int32_t)c;

        int32_t gathered[SC_BLOCK];
        const int32_t *v = ordered(y, norm ? 0 : perm, p.group * layout->group_elems + at, p.len, gathered);
        int8_t *dst = quantize_run(v, p.len, scale.exponent, reciprocal,
                                   out->q + p.group * layout->group_words * 4 + at);
        if (b + 1 == end) pad(dst, 4u * (last ? layout->last_words : layout->group_words) - at - p.len);
    }
    if (core == SC_LAST_CORE(cores)) { /* it has the fewest blocks */
        out->mantissa = scale.mantissa;
        out->exponent = scale.exponent;
        if (norm) sc_vec_norm(parts, eps, out, cores);
    }
}

static inline int32_t sum_of(const int8_t *q, uint32_t words) {
    int32_t sum = 0;
    for (; words; words--, q += 4) {
        int32_t four;
        __builtin_memcpy(&four, __builtin_assume_aligned(q, 4), 4);
        sum = sc_sdot4(sum, four, 0x01010101);
    }
    return sum;
}

void sc_vec_token(const sc_vector_layout *layout, const int32_t *x, int32_t *y, const int32_t *gain,
                  const uint16_t *perm, int pre_shift, uint64_t eps, uint32_t *tops, sc_qvec *out) {
    uint32_t low = 0, high = 0;
    int32_t top = 0;
    for (uint32_t g = 0, base = 0; g < layout->groups; g++, base += layout->group_elems) {
        const uint32_t count = g + 1 == layout->groups ? layout->last_elems : layout->group_elems;
        const uint32_t most = perm ? SC_BLOCK : count; /* elements at a time */
        int32_t group_top = 0;
        if (gain) add_squares(x + base, count, pre_shift, &low, &high); /* of all inputs, in any order */
        for (uint32_t at = base, left = count, n; left; left -= n, at += n) {
            n = left < most ? left : most;
            group_top = gained_top(x, y, gain, perm, at, n, group_top);
        }
        tops[g] = (uint32_t)group_top;
        top = sc_max(top, group_top);
    }
    scale_of((uint32_t)top, out);
    const int exponent = out->exponent;
    for (uint32_t g = 0, base = 0; g < layout->groups; g++, base += layout->group_elems) {
        const int last = g + 1 == layout->groups;
        const uint32_t count = last ? layout->last_elems : layout->group_elems;
        const uint32_t words = last ? layout->last_words : layout->group_words,
                       most = perm && !gain ? SC_BLOCK : count;
        int8_t *const q = out->q + g * layout->group_words * 4, *dst = q;
        int32_t reciprocal;
        out->c[g] =
            (int32_t)group_scale(layout, tops[g], (uint32_t)top, out->mantissa, exponent, &reciprocal);
        for (uint32_t at = base, left = count, n; left; left -= n, at += n) {
            int32_t gathered[SC_BLOCK];
            n = left < most ? left : most;
            const int32_t *v = gain ? y + at : ordered(x, perm, at, n, gathered);
            dst = quantize_run(v, n, exponent, reciprocal, dst);
        }
        pad(dst, 4 * words - count);
        if (out->sum) out->sum[g] = sum_of(q, words);
    }
    if (gain) normed(out, eps + ((uint64_t)high << 32 | low));
}

void sc_vec_sums(const sc_vector_layout *layout, sc_qvec *v, int core, int cores) {
    for (uint32_t g = (uint32_t)core; g < layout->groups; g += (uint32_t)cores)
        v->sum[g] = sum_of(v->q + g * layout->group_words * 4,
                           g + 1 == layout->groups ? layout->last_words : layout->group_words);
}
