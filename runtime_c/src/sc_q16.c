/* SPDX-License-Identifier: Apache-2.0
 * Dynamic quantisation to 16 bits, for several tokens or permuted inputs. sc_q16.h defines shares and the
 * formulas. One core per token, or workers share a token; vectors are in L1. */
#include "sc_platform.h"

#include "sc_q16.h"

static inline const uint16_t *perm_of_job(const sc_q16_job *j) {
#if SC_PERMS
    return j->perm;
#else
    (void)j;
    return 0;
#endif
}

/* RMSNorm and quantisation of one token by one core: the same shares as with several cores, so the same
 * result. */
static inline int norm_token(const sc_q16_job *j, const int32_t *x, int32_t *y, int8_t *q, uint64_t *eps) {
    const sc_vector_layout *const layout = j->layout;
    const uint32_t k = layout->k, each = q16_places(k);
    const int32_t *gain = j->gain;
    const uint16_t *perm = perm_of_job(j);
    const int32_t *of = y;
    int32_t most = -30;
    uint8_t ups[SC_Q16_SHARES], *up = ups;
    for (uint32_t left = k, n = each; left; left -= n, gain += n, y += n, up++) {
        int32_t top = 1;
        uint32_t squares;
        const int32_t *from = x;
        if (left < n) n = left;
        if (SC_PERMS && perm) {
            gather(x, perm, n, y);
            from = y, perm += n;
        } else {
            x += n;
        }
        SC_MAX_RUN(top, from, n);
        const int by = 30 - sc_top_bit((uint32_t)top);
        top = (int32_t)q16_gain(from, gain, n, by, j->norm_drop, y, &squares);
        *eps += q16_squares(squares, by, j->norm_unit);
        most = sc_max(most, sc_top_bit((uint32_t)top) + 1 - by);
        *up = (uint8_t)by;
    }
    const int right = most - layout->range;
    up = ups;
    for (uint32_t left = k, n = each; left; left -= n, of += n, q += n) {
        if (left < n) n = left;
        q16_split(of, n, sc_min(right + *up++, 31), 30, q, j->pitch);
    }
    return most;
}

/* q16_split() in place: the bytes replace their source, which has pitch / 2 words, high bytes from the middle
 * on. High bytes overtake the reads in the first two thirds, so the values at risk are copied to `aside`
 * first. In fours, as q16_split() works. */
SC_INLINE void split_in_place(const int32_t *x, uint32_t n, int right, int bits, int8_t *q, uint32_t pitch,
                              int32_t *aside) {
    const uint32_t from = pitch / 16 * 4, to = (pitch + 11) / 12 * 4, end = to < n ? to : n;
    const uint32_t least = from < n ? from : n;
    for (uint32_t i = from; i < end; i++) aside[i - from] = x[i];
    q16_split(x, least, right, bits, q, pitch);
    if (from < end) q16_split(aside, end - from, right, bits, q + from, pitch);
    if (end < n) q16_split(x + end, n - end, right, bits, q + end, pitch);
}

SC_WARM void sc_q16_token(const sc_q16_job *j, uint32_t t, uint64_t eps) {
    const sc_vector_layout *const layout = j->layout;
    const int32_t *const x = j->x + t * j->stride;
    int8_t *const q = j->q + 2 * t * j->pitch;
    sc_qvec *const out = &j->out[t];
    int32_t most;
    if (j->gain) {
        most = norm_token(j, x, j->y + t * j->y_stride, q, &eps);
    } else { /* without gain all shares have one shift */
        int32_t top = 1;
        SC_MAX_RUN(top, x, layout->k);
        most = sc_top_bit((uint32_t)top) + 1;
#if SC_IN_PLACE
        if (j->spill)
            split_in_place(x, layout->k, most - layout->range, most, q, j->pitch, j->spill);
        else
#endif
            q16_split(x, layout->k, most - layout->range, most, q, j->pitch);
    }
    q16_pad(layout, q, j->pitch);
    out->q = q;
    q16_scale(layout, most, j->gain != 0, out);
    if (j->gain) normed(out, eps);
}

SC_WARM void sc_q16_scan(const sc_q16_job *j, int core, int cores) {
    for (uint32_t t = j->first; t < j->tokens; t++) {
        for (int share = core; share < SC_Q16_SHARES; share += cores) {
            uint32_t first;
            const uint32_t n = q16_share(j->layout->k, (uint32_t)share, &first);
            const int32_t *x = j->x + t * j->stride, *gain = j->gain ? j->gain + first : 0;
            int32_t *y = j->y + t * j->y_stride + first;
            if (SC_PERMS && gain && perm_of_job(j)) {
                gather(x, perm_of_job(j) + first, n, y);
                x = y;
            } else {
                x += first; /* without gain a permutation does not change the maximum */
            }
            q16_scan(x, gain, n, j->norm_drop, j->norm_unit, y, j->parts + (t - j->first) * SC_PARTS + share);
        }
    }
}

SC_WARM void sc_q16_quantize(const sc_q16_job *j, int core, int cores) {
    const uint32_t pitch = j->pitch;
    for (uint32_t t = j->first; t < j->tokens; t++) {
        const sc_part *parts = j->parts + (t - j->first) * SC_PARTS;
        const int32_t *x = j->gain ? j->y + t * j->y_stride : j->x + t * j->stride;
        int8_t *q = j->q + 2 * t * pitch;
        const int most = q16_bits(parts);
        for (int share = core; share < SC_Q16_SHARES; share += cores) {
            uint32_t at, left = q16_share(j->layout->k, (uint32_t)share, &at);
#if SC_PERMS
            const uint16_t *const perm = j->gain ? 0 : j->perm; /* with gain the scan has applied it */
            for (uint32_t n; left; left -= n, at += n) {        /* gathers a block at a time */
                int32_t gathered[SC_BLOCK];
                const int32_t *v = x + at;
                n = perm && left > SC_BLOCK ? SC_BLOCK : left;
                if (perm) {
                    gather(x, perm + at, n, gathered);
                    v = gathered;
                }
                q16_quantize(j->layout, v, n, most, j->gain != 0, parts[share].up, q + at, pitch);
            }
#else
            q16_quantize(j->layout, x + at, left, most, j->gain != 0, parts[share].up, q + at, pitch);
#endif
        }
        if ((int)(t - j->first) % cores != core) continue;
        q16_pad(j->layout, q, pitch);
        j->out[t].q = q;
        q16_scale(j->layout, most, j->gain != 0, &j->out[t]);
    }
}

#if SC_Q16_PADDED
SC_WARM void sc_q16_pad(const sc_vector_layout *layout, int8_t *q, uint32_t pitch) {
    for (uint32_t i = layout->k; i < 4u * layout->last_words; i++) q[i] = q[pitch + i] = 0;
}
#endif

SC_HOT void sc_q16_normed(uint64_t squares, sc_qvec *out) { normed(out, squares); }

SC_WARM void sc_q16_norm(const sc_part *parts, uint64_t eps, sc_qvec *out) {
    normed(out, q16_sum(parts, eps));
}

SC_WARM void sc_q16_split_any(const int32_t *x, uint32_t n, int right, int bits, int8_t *low, int8_t *high) {
#if SC_XPULP
    if (n >= 4 && bits <= 30) {
        int32_t a, b, c, d;
        if (right > 0)
            SC_SPLIT_FOUR(SC_ROUNDED, right);
        else
            SC_SPLIT_FOUR(SC_LIFTED, -right);
        n %= 4;
    }
#else
    (void)bits;
#endif
    for (; n; n--) {
        const int32_t v = sc_shift(*x++, right);
        *low++ = (int8_t)v;
        *high++ = (int8_t)((v + 128) >> 8);
    }
}
