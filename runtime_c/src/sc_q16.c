/* SPDX-License-Identifier: Apache-2.0
 * Dynamic 16-bit vectors of several tokens, or whose inputs are permuted: sc_q16.h says what a share is. */
#include "sc_platform.h"

#include "sc_q16.h"

SC_WARM void sc_q16_token(const sc_q16_job *j, uint32_t t, uint64_t eps) {
    const sc_cut *const cut = j->cut;
    const int32_t *const gain = j->gain, *x = j->x + t * j->stride;
    /* without a gain shares are shifted together: one for all */
    const uint32_t k = cut->k, pitch = 4u * cut->words;
    const uint32_t each = gain ? q16_places(k) : k;
    int32_t *const y = j->y + t * j->y_stride;
    int8_t *const q = j->q + 2 * t * pitch;
    sc_qvec *const out = &j->out[t];
    int32_t most = -30;
    sc_part parts[SC_Q16_SHARES], *part = parts;
    for (uint32_t at = 0, n = each; at < k; at += n, part++) {
        const int32_t *from = x + at;
        if (k - at < n) n = k - at;
        if (SC_PERMS && gain && j->perm) {
            gather(x, j->perm + at, n, y + at);
            from = y + at;
        }
        q16_scan(from, gain ? gain + at : 0, n, SC_NORM_DROP, y + at, part);
        if (gain) eps += part->sum;
        most = sc_max(most, (int32_t)part->max);
    }
    if (gain) x = y;
    part = parts;
    for (uint32_t at = 0, n = each; at < k; at += n, part++) {
        if (k - at < n) n = k - at;
        q16_quantize(cut, x + at, n, most, gain != 0, part->up, q + at);
    }
    q16_pad(cut, q);
    out->q = q;
    q16_scale(cut, most, gain != 0, out);
    if (gain) normed(out, eps);
}

SC_WARM void sc_q16_scan(const sc_q16_job *j, int core, int cores) {
    for (uint32_t t = j->first; t < j->tokens; t++) {
        for (int share = core; share < SC_Q16_SHARES; share += cores) {
            uint32_t first;
            const uint32_t n = q16_share(j->cut->k, (uint32_t)share, &first);
            const int32_t *x = j->x + t * j->stride, *gain = j->gain ? j->gain + first : 0;
            int32_t *y = j->y + t * j->y_stride + first;
            if (SC_PERMS && gain && j->perm) {
                gather(x, j->perm + first, n, y);
                x = y;
            } else {
                x += first; /* a permutation changes no maximum, but those of shares with a gain */
            }
            q16_scan(x, gain, n, SC_NORM_DROP, y, j->parts + t * SC_PARTS + share);
        }
    }
}

SC_WARM void sc_q16_quantize(const sc_q16_job *j, int core, int cores) {
    const uint32_t pitch = 4u * j->cut->words;
    const uint16_t *const perm = SC_PERMS && !j->gain ? j->perm : 0; /* with a gain the scan has gathered */
    for (uint32_t t = j->first; t < j->tokens; t++) {
        const sc_part *parts = j->parts + t * SC_PARTS;
        const int32_t *x = j->gain ? j->y + t * j->y_stride : j->x + t * j->stride;
        int8_t *q = j->q + 2 * t * pitch;
        const int most = q16_bits(parts);
        for (int share = core; share < SC_Q16_SHARES; share += cores) {
            uint32_t at, left = q16_share(j->cut->k, (uint32_t)share, &at);
            for (uint32_t n; left; left -= n, at += n) { /* a permutation gathers a block at a time */
                int32_t gathered[SC_BLOCK];
                const int32_t *v = x + at;
                n = perm && left > SC_BLOCK ? SC_BLOCK : left;
                if (perm) {
                    gather(x, perm + at, n, gathered);
                    v = gathered;
                }
                q16_quantize(j->cut, v, n, most, j->gain != 0, parts[share].up, q + at);
            }
        }
        if ((int)(t - j->first) % cores != core) continue;
        q16_pad(j->cut, q);
        j->out[t].q = q;
        q16_scale(j->cut, most, j->gain != 0, &j->out[t]);
    }
}

SC_WARM void sc_q16_pad(const sc_cut *cut, int8_t *q) {
    const uint32_t pitch = 4u * cut->words;
    for (uint32_t i = cut->k; i < 4u * cut->last_words; i++) q[i] = q[pitch + i] = 0;
}

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
