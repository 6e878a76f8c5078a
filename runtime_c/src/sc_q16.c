/* SPDX-License-Identifier: Apache-2.0
 * Dynamic 16-bit vectors: twin of compiler/shrinkc/numerics/vectors.py. */
#include "sc_platform.h"

#include "sc_scan.h"

/* A core's inputs, whose number is returned; *first of them is its first. */
static inline uint32_t share_of(uint32_t k, uint32_t *first, int core, int cores) {
    const uint32_t each = (k + (uint32_t)cores - 1) / (uint32_t)cores, at = each * (uint32_t)core;
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

SC_HOT void sc_q16_scan(const sc_q16_job *j, int core, int cores) {
    uint32_t first;
    const uint32_t n = share_of(j->cut->k, &first, core, cores);
    const int16_t *gain = j->gain + first;
    for (uint32_t t = j->first; t < j->tokens; t += j->step) {
        const int32_t *x = j->x + t * j->stride;
        int32_t top = 0, *y = j->y + t * j->y_stride + first;
        uint32_t low = 0, high = 0;
        if (SC_PERMS && j->gain && j->perm && n > 0) {
            add_squares(x + first, n, SC_NORM_SHIFT, &low, &high); /* of all inputs, in whatever order */
            gather(x, j->perm + first, n, y);
            apply_gain(y, gain, n, y);
            SC_MAX_WORDS(top, y, n, 4);
        } else if (n > 0) {
            if (j->gain)
                top = norm_run(x + first, gain, n, SC_NORM_SHIFT, y, &low, &high);
            else
                SC_MAX_WORDS(top, x + first, n, 4); /* a permutation changes no maximum */
        }
        sc_part *part = j->parts + t * j->parts_stride + (uint32_t)core;
        part->max = (uint32_t)top;
        part->sum = (uint64_t)high << 32 | low;
    }
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

SC_HOT void sc_q16_quantize(const sc_q16_job *j, int core, int cores) {
    const sc_cut *cut = j->cut;
    const uint32_t pitch = 4u * cut->words;
    uint32_t first;
    const uint32_t n = share_of(cut->k, &first, core, cores);
    for (uint32_t t = j->first; t < j->tokens; t += j->step) {
        const sc_part *part = j->parts + t * j->parts_stride;
        const int32_t *x = j->gain ? j->y + t * j->y_stride : j->x + t * j->stride;
        int8_t *q = j->q + 2 * t * pitch;
        int32_t top = 0;
        SC_MAX_WORDS(top, &part->max, (uint32_t)cores, (int)sizeof(sc_part));
        const int exponent = top ? sc_bits((uint32_t)top) - cut->range : 0;
        if (SC_PERMS && j->perm && !j->gain) {
            for (uint32_t at = first; at < first + n; at += SC_BLOCK) {
                int32_t gathered[SC_BLOCK];
                const uint32_t left = first + n - at, len = left < SC_BLOCK ? left : SC_BLOCK;
                gather(x, j->perm + at, len, gathered);
                split_run(gathered, len, exponent, q + at, pitch);
            }
        } else if (n > 0) {
            split_run(x + first, n, exponent, q + first, pitch);
        }
        if (core == SC_LAST_CORE(cores)) { /* it has the fewest inputs */
            for (uint32_t i = cut->k; i < pitch; i++) q[i] = q[pitch + i] = 0;
            j->out[t].q = q;
            j->out[t].mantissa = 1u << 14;
            j->out[t].exponent = exponent;
        }
    }
}

SC_HOT void sc_q16_norm(const sc_q16_job *j, uint64_t eps, int cores) {
    for (uint32_t t = j->first; t < j->tokens; t += j->step)
        sc_vec_norm(j->parts + t * j->parts_stride, eps, &j->out[t], cores);
}
