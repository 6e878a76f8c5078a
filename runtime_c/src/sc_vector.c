/* Dynamic int8 vectors: twin of compiler/shrinkc/numerics/vectors.py. */
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

SC_HOT void sc_vec_scan(const sc_cut *cut, const int32_t *x, int32_t *y, const int16_t *gain, int norm,
                        int pre_shift, uint32_t *block_max, sc_part *parts, int core, int cores) {
    int32_t top = 0;
    uint32_t low = 0, high = 0; /* the 64-bit sum by halves: GCC keeps these in registers */
    for (uint32_t b = (uint32_t)core; b < cut->blocks; b += (uint32_t)cores) {
        uint32_t seg, at, len = locate(cut, b, &seg, &at);
        const uint32_t base = seg * cut->seg_elems + at;
        int32_t block_top = 0;
        for (uint32_t i = base; i < base + len; i++) {
            int32_t v = x[i];
            if (norm) {
                const int32_t s = v >> pre_shift;
                const uint32_t square = (uint32_t)s * (uint32_t)s;
                low += square;
                high += (uint32_t)sc_mulh(s, s) + (low < square);
            }
            if (gain) y[i] = v = sc_scale_q15(v, gain[i]);
            block_top = sc_max(block_top, sc_abs(v));
        }
        block_max[b] = (uint32_t)block_top;
        top = sc_max(top, block_top);
    }
    parts[core].max = (uint32_t)top;
    parts[core].sum = (uint64_t)high << 32 | low;
}

/* The token's mantissa and exponent under RMSNorm: numerics/vectors.py norm_quantize_vector. */
SC_HOT static void norm_scale(const sc_part *parts, uint64_t eps, sc_qvec *out, int cores) {
    uint64_t total = eps;
    for (int c = 0; c < cores; c++) total += parts[c].sum;
    int j;
    uint32_t product = out->mantissa * sc_rsqrt(total, &j);
    int extra = sc_bits(product) - 15;
    out->mantissa = product >> extra;
    out->exponent += extra - j;
}

SC_HOT void sc_vec_quantize(const sc_cut *cut, const int32_t *y, const uint32_t *block_max, const sc_part *parts,
                            int norm, uint64_t eps, sc_qvec *out, int core, int cores) {
    int32_t top = 0;
    for (int c = 0; c < cores; c++) top = sc_max(top, (int32_t)parts[c].max);
    const int exponent = top ? sc_bits((uint32_t)top) - 15 : 0;
    const uint32_t mantissa = top ? (uint32_t)sc_shift(top, exponent) : 1u << 14;

    for (uint32_t b = (uint32_t)core; b < cut->blocks; b += (uint32_t)cores) {
        uint32_t seg, at, len = locate(cut, b, &seg, &at);
        const int last = seg + 1 == cut->nseg;
        const uint32_t first = b - at / SC_BLOCK, end = last ? cut->blocks : first + cut->seg_blocks;
        int32_t seg_top = 0;
        for (uint32_t i = first; i < end; i++) seg_top = sc_max(seg_top, (int32_t)block_max[i]);
        uint32_t c = cut->cmax, limit = mantissa;
        if (seg_top != top) { /* otherwise both divisions are known */
            c = ((uint32_t)sc_shift(seg_top, exponent) * c + mantissa - 1) / mantissa;
            c += c == 0;
            limit = (mantissa * c + cut->cmax - 1) / cut->cmax;
        }
        const int32_t reciprocal = (int32_t)(((uint32_t)SC_QMAX << SC_QSHIFT) / limit);
        if (at == 0) out->c[seg] = (int32_t)c;

        const int32_t *src = y + seg * cut->seg_elems + at, *stop = src + len;
        int8_t *dst = out->q + seg * cut->seg_words * 4 + at;
        while (src < stop)
            *dst++ = (int8_t)((sc_shift(*src++, exponent) * reciprocal + (1 << (SC_QSHIFT - 1))) >> SC_QSHIFT);
        if (b + 1 == end) { /* the segment's padding must not disturb the dot product */
            uint32_t pad = 4u * (last ? cut->last_words : cut->seg_words) - at - len;
            for (; pad; pad--) *dst++ = 0;
        }
    }
    if (core == SC_LAST_CORE(cores)) { /* it has the fewest blocks */
        out->mantissa = mantissa;
        out->exponent = exponent;
        if (norm) norm_scale(parts, eps, out, cores);
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
