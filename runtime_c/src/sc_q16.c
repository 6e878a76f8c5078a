/* SPDX-License-Identifier: Apache-2.0
 * Dynamic 16-bit vectors of several tokens, or whose inputs are permuted: sc_q16.h says what a share is. */
#include "sc_platform.h"

#include "sc_q16.h"

SC_HOT void sc_q16_scan(const sc_q16_job *j, int core, int cores) {
    for (uint32_t t = j->first; t < j->tokens; t += j->step) {
        if (cores == 1 && !j->gain) { /* shares are shifted together: one loop for all */
            sc_part *parts = j->parts + t * SC_PARTS;
            q16_scan(j->x + t * j->stride, 0, j->cut->k, 0, 0, &parts[0]);
            for (int share = 1; share < SC_Q16_SHARES; share++) parts[share].max = parts[0].max;
            continue;
        }
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
    for (uint32_t t = j->first; t < j->tokens; t += j->step) {
        const sc_part *parts = j->parts + t * SC_PARTS;
        const int32_t *x = j->gain ? j->y + t * j->y_stride : j->x + t * j->stride;
        int8_t *q = j->q + 2 * t * pitch;
        const int most = q16_bits(parts);
        if (cores == 1 && !j->gain && !(SC_PERMS && j->perm)) {
            q16_quantize(j->cut, x, j->cut->k, most, 0, 0, q);
            q16_finish(j->cut, most, 0, q, &j->out[t]);
            continue;
        }
        for (int share = core; share < SC_Q16_SHARES; share += cores) {
            uint32_t first;
            const uint32_t n = q16_share(j->cut->k, (uint32_t)share, &first);
            if (SC_PERMS && j->perm && !j->gain) {
                for (uint32_t at = first; at < first + n; at += SC_BLOCK) {
                    int32_t gathered[SC_BLOCK];
                    const uint32_t left = first + n - at, len = left < SC_BLOCK ? left : SC_BLOCK;
                    gather(x, j->perm + at, len, gathered);
                    q16_quantize(j->cut, gathered, len, most, 0, 0, q + at);
                }
            } else {
                q16_quantize(j->cut, x + first, n, most, j->gain != 0, parts[share].up, q + first);
            }
        }
        if ((int)((t - j->first) / j->step) % cores == core)
            q16_finish(j->cut, most, j->gain != 0, q, &j->out[t]);
    }
}

SC_HOT void sc_q16_norm(const sc_part *parts, uint64_t eps, sc_qvec *out) {
    const int unit = 2 * (SC_NORM_DROP - SC_NORM_SHIFT);
    for (int share = 0; share < SC_Q16_SHARES; share++)
        eps += parts[share].sum << unit >> 2 * parts[share].up;
    normed(out, eps);
}

void sc_q16_split_any(const int32_t *x, uint32_t n, int right, int8_t *low, int8_t *high) {
    for (; n; n--) {
        const int32_t v = sc_shift(*x++, right);
        *low++ = (int8_t)v;
        *high++ = (int8_t)((v + 128) >> 8);
    }
}
