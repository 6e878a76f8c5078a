/* SPDX-License-Identifier: Apache-2.0
 * Dynamic 16-bit vectors of several tokens, or whose inputs are permuted: sc_q16.h says what a share is. */
#include "sc_platform.h"

#include "sc_q16.h"

/* Places first .. first + n - 1 without a gain, gathered a block at a time where there is a permutation. */
SC_INLINE void quantize_places(const sc_q16_job *j, const int32_t *x, uint32_t first, uint32_t n, int most,
                               int8_t *q) {
    if (!(SC_PERMS && j->perm)) {
        q16_quantize(j->cut, x + first, n, most, 0, 0, q + first);
        return;
    }
    for (uint32_t at = first; at < first + n; at += SC_BLOCK) {
        int32_t gathered[SC_BLOCK];
        const uint32_t left = first + n - at, len = left < SC_BLOCK ? left : SC_BLOCK;
        gather(x, j->perm + at, len, gathered);
        q16_quantize(j->cut, gathered, len, most, 0, 0, q + at);
    }
}

SC_HOT void sc_q16_token(const sc_q16_job *j, uint32_t t, uint64_t eps) {
    const sc_cut *const cut = j->cut;
    const uint32_t k = cut->k, pitch = 4u * cut->words, each = (k + SC_Q16_SHARES - 1) / SC_Q16_SHARES;
    const int32_t *const gain = j->gain, *x = j->x + t * j->stride;
    int8_t *const q = j->q + 2 * t * pitch;
    sc_qvec *const out = &j->out[t];
    int32_t *const y = j->y + t * j->y_stride;
    int32_t most = -30;
    uint32_t low = (uint32_t)eps, high = (uint32_t)(eps >> 32);
    sc_part parts[SC_Q16_SHARES], *part = parts;
    if (!gain) { /* shares are shifted together: one loop for all */
        q16_scan(x, 0, k, 0, 0, part);
        most = (int32_t)part->max;
        quantize_places(j, x, 0, k, most, q);
        q16_finish(cut, most, 0, q, out);
        return;
    }
    for (uint32_t at = 0, n = each; at < k; at += n, part++) {
        const int32_t *from = x + at;
        if (k - at < n) n = k - at;
        if (SC_PERMS && j->perm) {
            gather(x, j->perm + at, n, y + at);
            from = y + at;
        }
        q16_scan(from, gain + at, n, SC_NORM_DROP, y + at, part);
        q16_add_squares((uint32_t)part->sum, part->up, &low, &high);
        most = sc_max(most, (int32_t)part->max);
    }
    part = parts;
    for (uint32_t at = 0, n = each; at < k; at += n, part++) {
        if (k - at < n) n = k - at;
        q16_quantize(cut, y + at, n, most, 1, part->up, q + at);
    }
    q16_finish(cut, most, 1, q, out);
    normed(out, (uint64_t)high << 32 | low);
}

SC_HOT void sc_q16_scan(const sc_q16_job *j, int core, int cores) {
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

SC_HOT void sc_q16_quantize(const sc_q16_job *j, int core, int cores) {
    const uint32_t pitch = 4u * j->cut->words;
    for (uint32_t t = j->first; t < j->tokens; t++) {
        const sc_part *parts = j->parts + t * SC_PARTS;
        const int32_t *x = j->gain ? j->y + t * j->y_stride : j->x + t * j->stride;
        int8_t *q = j->q + 2 * t * pitch;
        const int most = q16_bits(parts);
        for (int share = core; share < SC_Q16_SHARES; share += cores) {
            uint32_t first;
            const uint32_t n = q16_share(j->cut->k, (uint32_t)share, &first);
            if (j->gain)
                q16_quantize(j->cut, x + first, n, most, 1, parts[share].up, q + first);
            else
                quantize_places(j, x, first, n, most, q);
        }
        if ((int)(t - j->first) % cores == core) q16_finish(j->cut, most, j->gain != 0, q, &j->out[t]);
    }
}

SC_HOT void sc_q16_norm(const sc_part *parts, uint64_t eps, sc_qvec *out) {
    uint32_t low = (uint32_t)eps, high = (uint32_t)(eps >> 32);
    for (const sc_part *p = parts; p < parts + SC_Q16_SHARES; p++)
        q16_add_squares((uint32_t)p->sum, p->up, &low, &high);
    normed(out, (uint64_t)high << 32 | low);
}

__attribute__((noinline, cold)) void sc_q16_split_any(const int32_t *x, uint32_t n, int right, int8_t *low,
                                                      int8_t *high) {
    for (; n; n--) {
        const int32_t v = sc_shift(*x++, right);
        *low++ = (int8_t)v;
        *high++ = (int8_t)((v + 128) >> 8);
    }
}
