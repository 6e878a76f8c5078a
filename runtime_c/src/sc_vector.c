/* Dynamic int8 vectors: twin of compiler/shrinkc/numerics/vectors.py. */
#include "sc_platform.h"

#include "sc_kernels.h"

sc_cut sc_cut_of(const sc_matrix *m, uint32_t k) {
    sc_cut c;
    c.k = k;
    c.seg_elems = m->seg_elems;
    c.last_elems = m->last_elems;
    c.nseg = m->nseg;
    c.cmax = m->cmax;
    c.format = m->format;
    c.seg_blocks = (c.seg_elems + SC_BLOCK - 1) / SC_BLOCK;
    c.blocks = (c.nseg - 1) * c.seg_blocks + (c.last_elems + SC_BLOCK - 1) / SC_BLOCK;
    c.seg_words = sc_seg_words(c.seg_elems, c.format);
    c.words = (c.nseg - 1) * c.seg_words + sc_seg_words(c.last_elems, c.format);
    return c;
}

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

SC_HOT void sc_vec_scan(const sc_cut *cut, const int32_t *x, int32_t *y, const int16_t *gain, int pre_shift,
                        sc_scan *scan, int core, int cores) {
    uint32_t top = 0;
    uint64_t sum = 0;
    for (uint32_t b = (uint32_t)core; b < cut->blocks; b += (uint32_t)cores) {
        uint32_t seg, at, len = locate(cut, b, &seg, &at);
        uint32_t base = seg * cut->seg_elems + at;
        int32_t block_top = 0;
        for (uint32_t i = base; i < base + len; i++) {
            int32_t v = x[i], s = v >> pre_shift;
            sum += (uint64_t)((int64_t)s * s);
            if (gain) {
                v = sc_sat64(((int64_t)v * gain[i]) >> 15);
                y[i] = v;
            }
            block_top = sc_max(block_top, sc_abs(v));
        }
        scan->block_max[b] = (uint32_t)block_top;
        top = (uint32_t)sc_max((int32_t)top, block_top);
    }
    scan->core_max[core] = top;
    scan->core_sum[core] = sum;
}

/* The token's mantissa and exponent under RMSNorm: numerics/vectors.py norm_quantize_vector. */
static void norm_scale(const sc_scan *scan, uint64_t eps, sc_qvec *out, uint32_t mantissa, int exponent,
                       int cores) {
    uint64_t total = eps;
    for (int c = 0; c < cores; c++) total += scan->core_sum[c];
    int j;
    uint32_t product = mantissa * sc_rsqrt(total, &j);
    int extra = sc_bits(product) - 15;
    out->mantissa = product >> extra;
    out->exponent = exponent + extra - j;
}

SC_HOT void sc_vec_quantize(const sc_cut *cut, const int32_t *y, const sc_scan *scan, int norm, uint64_t eps,
                            sc_qvec *out, int core, int cores) {
    uint32_t top = 0;
    for (int c = 0; c < cores; c++) top = (uint32_t)sc_max((int32_t)top, (int32_t)scan->core_max[c]);
    int exponent = top ? sc_bits(top) - 15 : 0;
    uint32_t mantissa = top ? (uint32_t)sc_shift((int32_t)top, exponent) : 1u << 14;

    for (uint32_t b = (uint32_t)core; b < cut->blocks; b += (uint32_t)cores) {
        uint32_t seg, at, len = locate(cut, b, &seg, &at);
        uint32_t first = b - at / SC_BLOCK;
        uint32_t end = seg + 1 == cut->nseg ? cut->blocks : first + cut->seg_blocks;
        uint32_t seg_top = 0;
        for (uint32_t i = first; i < end; i++)
            seg_top = (uint32_t)sc_max((int32_t)seg_top, (int32_t)scan->block_max[i]);
        uint32_t top15 = (uint32_t)sc_shift((int32_t)seg_top, exponent);
        uint32_t c = (top15 * cut->cmax + mantissa - 1) / mantissa;
        if (c == 0) c = 1;
        uint32_t limit = (mantissa * c + cut->cmax - 1) / cut->cmax;
        int32_t reciprocal = (int32_t)(((uint32_t)SC_QMAX << SC_QSHIFT) / limit);
        if (at == 0) out->c[seg] = (int32_t)c;

        const int32_t *src = y + seg * cut->seg_elems + at;
        int8_t *dst = out->q + seg * cut->seg_words * 4 + at;
        for (uint32_t i = 0; i < len; i++)
            dst[i] = (int8_t)sc_rshift(sc_shift(src[i], exponent) * reciprocal, SC_QSHIFT);
        if (b + 1 == end) { /* the segment's padding must not disturb the dot product */
            uint32_t words = seg + 1 == cut->nseg ? cut->words - seg * cut->seg_words : cut->seg_words;
            for (uint32_t i = at + len; i < words * 4; i++) dst[i - at] = 0;
        }
    }
    if (core == cores - 1) { /* the core with the fewest blocks */
        out->mantissa = mantissa;
        out->exponent = exponent;
        if (norm) norm_scale(scan, eps, out, mantissa, exponent, cores);
    }
}

void sc_vec_sums(const sc_cut *cut, sc_qvec *v, int core, int cores) {
    for (uint32_t g = (uint32_t)core; g < cut->nseg; g += (uint32_t)cores) {
        uint32_t words = g + 1 == cut->nseg ? cut->words - g * cut->seg_words : cut->seg_words;
        const int8_t *q = v->q + g * cut->seg_words * 4;
        int32_t sum = 0;
        for (uint32_t i = 0; i < words * 4; i++) sum += q[i];
        v->sum[g] = sum;
    }
}
