/* SPDX-License-Identifier: Apache-2.0
 * Matrix times several vectors: Y[tokens][rows] = X[tokens][k] * W[rows][k]. A worker widens the weights of a
 * quantisation group to int8 once for all tokens, and multiplies two vectors per load. Weights, X and
 * scratch: L1. */
#include "sc_platform.h"

#ifdef SC_AT_PRODUCTS
#include "sc_dot.h"
#include "sc_epilogue.h"
#include "sc_split.h"

/* The core's scratch buffer: sums of each token (even number; separate for low and high bytes with 16-bit
 * activations), then widened weights. */
SC_INLINE void widen(const int format, int32_t *to, const uint8_t **w, uint32_t words) {
#define WIDEN(bits, inputs, fold)                                                                            \
    case bits:                                                                                               \
        sc_widen_w##bits(to, 1, SC_ROWS, w, words);                                                          \
        return;
    switch (format & SC_FMT_BITS) { SC_EACH_WIDTH(WIDEN) }
    __builtin_unreachable();
}

/* The next `words` words at *w as int8: the weights themselves, or widened. */
SC_INLINE const uint8_t *rows_of(const int format, const uint8_t **w, uint32_t words, int32_t *wide) {
    const uint8_t *rows = *w;
    if ((format & SC_FMT_BITS) == 8) {
        *w += 4 * SC_ROWS * words;
        return rows;
    }
    widen(format, wide, w, words);
    return (const uint8_t *)wide;
}

/* to[8][2]: products of 8 rows with two vectors. */
SC_INLINE void pair_products(const uint8_t *w, const int8_t *x, const int8_t *y, uint32_t words,
                             int32_t *to) {
    sc_rows p, q;
    sc_dot_pair(&p, &q, w, x, y, words);
#define KEEP(r) to[2 * r] = p.s##r, to[2 * r + 1] = q.s##r;
    SC_EACH_ROW(KEEP)
}

/* How a group's products with two vectors are added. */
typedef struct {
    const uint8_t *d, *b; /* the group's scales and offsets */
    int32_t u, v;         /* the vectors' scales for this group */
    int32_t less, other;  /* factors of the offsets */
    int32_t drop;
} group;

/* acc[r] += round((p[r] * d[r] + b[r] * less) / 2^drop) * u, then the same for the second vector. The loops
 * fit a core's instruction buffer. */
SC_INLINE void add_pair(const int format, const group *s, const int32_t *p, int32_t *acc) {
    const uint8_t *d = s->d, *b = s->b;
#if SC_XPULP
    int32_t scale, offset, e, f, g, h;
    /* clang-format off */
#define PAIR_TAIL                                                                                            \
    SC_ROUND("%[e]", "%[drop]") SC_ROUND("%[f]", "%[drop]")                                                  \
    P_MAC("%[g]", "%[e]", "%[u]") P_MAC("%[h]", "%[f]", "%[v]")                                              \
    P_SW_POST("%[g]", "%[acc]", "4")                                                                         \
    "sw %[h], 28(%[acc])\n"
    if (SC_SEVERAL_HAS(SC_FMT_ASYM)) {
        __asm__ volatile(SC_LOOP_BEGIN("%[n]", 16)
                         P_LBU_POST("%[scale]", "%[d]", "1")
                         P_LH_POST("%[offset]", "%[b]", "2")
                         P_LW_POST("%[e]", "%[p]", "4") P_LW_POST("%[f]", "%[p]", "4")
                         "lw %[g], 0(%[acc])\n"
                         "mul %[e], %[e], %[scale]\n"
                         "mul %[f], %[f], %[scale]\n"
                         "lw %[h], 32(%[acc])\n"
                         P_MAC("%[e]", "%[offset]", "%[less]") P_MAC("%[f]", "%[offset]", "%[other]")
                         PAIR_TAIL SC_LOOP_END(16)
                         : [d] "+&r"(d), [b] "+&r"(b), [p] "+&r"(p), [acc] "+&r"(acc), [scale] "=&r"(scale),
                           [offset] "=&r"(offset), [e] "=&r"(e), [f] "=&r"(f), [g] "=&r"(g), [h] "=&r"(h)
                         : [n] "r"(SC_ROWS), [less] "r"(s->less), [other] "r"(s->other), [u] "r"(s->u),
                           [v] "r"(s->v), [drop] "r"(s->drop)
                         : "memory");
        return;
    }
    if (SC_SEVERAL_HAS(SC_FMT_GROUPED)) {
        (void)offset;
        __asm__ volatile(SC_LOOP_BEGIN("%[n]", 13)
                         P_LBU_POST("%[scale]", "%[d]", "1")
                         P_LW_POST("%[e]", "%[p]", "4") P_LW_POST("%[f]", "%[p]", "4")
                         "lw %[g], 0(%[acc])\n"
                         "mul %[e], %[e], %[scale]\n"
                         "mul %[f], %[f], %[scale]\n"
                         "lw %[h], 32(%[acc])\n"
                         PAIR_TAIL SC_LOOP_END(13)
                         : [d] "+&r"(d), [p] "+&r"(p), [acc] "+&r"(acc), [scale] "=&r"(scale), [e] "=&r"(e),
                           [f] "=&r"(f), [g] "=&r"(g), [h] "=&r"(h)
                         : [n] "r"(SC_ROWS), [u] "r"(s->u), [v] "r"(s->v), [drop] "r"(s->drop)
                         : "memory");
        return;
    }
#undef PAIR_TAIL
/* clang-format on */
#endif
    for (int r = 0; r < SC_ROWS; r++, p += 2) {
        int32_t e = p[0] >> sc_fold(format), f = p[1] >> sc_fold(format); /* exact */
        if (SC_SEVERAL_HAS(SC_FMT_GROUPED)) {
            const int32_t scale = d[r], offset = SC_SEVERAL_HAS(SC_FMT_ASYM) ? sc_offset16(b, r) : 0;
            e = sc_round(sc_mac((int32_t)((uint32_t)p[0] * (uint32_t)scale), offset, s->less), s->drop);
            f = sc_round(sc_mac((int32_t)((uint32_t)p[1] * (uint32_t)scale), offset, s->other), s->drop);
        }
        acc[r] = sc_mac(acc[r], e, s->u);
        acc[SC_ROWS + r] = sc_mac(acc[SC_ROWS + r], f, s->v);
    }
}

/* sums[token][8] of quantisation groups first .. end - 1 of a block whose weights begin at w: block_dot() for
 * all tokens. Exact in int32. */
static inline void block_groups(const sc_matrix *m, const int format, const uint8_t *w, uint32_t first,
                                uint32_t end, const sc_qvec *x, uint32_t tokens, int32_t *wide,
                                int32_t *sums) {
    int32_t products[2 * SC_ROWS];
    int16_t offsets[SC_ROWS];
    group s = {.drop = m->drop};
    for (uint32_t g = first, at = first * 4 * m->in.group_words; g < end; g++) {
        const uint32_t words = g + 1 < m->in.groups ? m->in.group_words : m->in.last_words;
        s.d = w, s.b = w + SC_ROWS;
        /* once for all tokens: add_pair() then only knows offsets */
        if (SC_SEVERAL_HAS(SC_FMT_ZEROS)) s.b = sc_offsets_of_zeros(s.d, offsets);
        w += SC_SEVERAL_TABLES;
        const uint8_t *const rows = rows_of(format, &w, words, wide);
        int32_t *acc = sums;
        for (uint32_t t = 0; t < tokens; t += 2, acc += 2 * SC_ROWS) {
            const sc_qvec *u = &x[t], *v = &x[t + 1 < tokens ? t + 1 : t];
            pair_products(rows, u->q + at, v->q + at, words, products);
            s.u = u->c[g], s.v = v->c[g];
            if (SC_SEVERAL_HAS(SC_FMT_ASYM)) {
                s.less = -u->sum[g] * (1 << sc_fold(format));
                s.other = -v->sum[g] * (1 << sc_fold(format));
            }
            add_pair(format, &s, products, acc);
        }
        at += 4 * words;
    }
}

/* block_groups() for 16-bit activations, SC_WIDE_WORDS words at a time. The two vectors are the low and the
 * high bytes. */
static inline void block_pieces(const sc_matrix *m, const int format, const uint8_t *w, uint32_t first,
                                uint32_t end, const sc_qvec *x, uint32_t tokens, int32_t *wide,
                                int32_t *sums) {
    for (uint32_t at = first; at < end; at += SC_WIDE_WORDS) {
        const uint32_t left = end - at, words = left < SC_WIDE_WORDS ? left : SC_WIDE_WORDS;
        const uint8_t *const rows = rows_of(format, &w, words, wide);
        int32_t *acc = sums;
        for (uint32_t t = 0; t < tokens; t++, acc += 2 * SC_ROWS) {
            const int8_t *q = x[t].q + 4 * at;
            sc_rows low, high;
            sc_dot_pair(&low, &high, rows, q, q + 4 * m->in.words, words);
#define JOIN(r) acc[r] += low.s##r, acc[SC_ROWS + r] += high.s##r;
            SC_EACH_ROW(JOIN)
        }
    }
    for (uint32_t t = 0; t < tokens; t++, sums += 2 * SC_ROWS)
        for (int r = 0; r < SC_ROWS; r++)
            sums[r] = (int32_t)((uint32_t)(sums[SC_ROWS + r] >> sc_fold(format)) << 8) +
                      (sums[r] >> sc_fold(format));
}

/* A core's part of a block for all tokens of x: sums[token][each], results in the first 8. */
SC_INLINE void block_tokens(const sc_matrix *m, const int format, const uint8_t *w, uint32_t first,
                            uint32_t end, const sc_qvec *x, uint32_t tokens, int32_t *wide, int32_t *sums,
                            uint32_t each) {
    for (uint32_t j = 0; j < each * ((tokens + 1) / 2 * 2); j++) sums[j] = 0;
    if (SC_SEVERAL_HAS(SC_FMT_Q16))
        block_pieces(m, format, w, first, end, x, tokens, wide, sums);
    else
        block_groups(m, format, w, first, end, x, tokens, wide, sums);
}

/* Words of sums per token. */
SC_INLINE uint32_t sums_of(const int format) { return SC_SEVERAL_HAS(SC_FMT_Q16) ? 2 * SC_ROWS : SC_ROWS; }

SC_HOT void sc_matrix_tokens(const sc_matrix *m, const uint8_t *tile, uint32_t first, uint32_t count,
                             const sc_qvec *x, const sc_qvec *adapter, uint32_t tokens, const sc_output *out,
                             int32_t *scratch, int core, int cores) {
    const int format = m->format;
    const uint32_t each = sums_of(format), even = (tokens + 1) / 2 * 2;
    const uint32_t whole = SC_SEVERAL_HAS(SC_FMT_Q16) ? m->in.words : m->in.groups;
    int32_t *const wide = scratch + each * even;
    /* Cores share the blocks. With fewer blocks than cores they share the tokens too, an even number each. */
    const uint32_t parts = count < (uint32_t)cores ? (uint32_t)cores / count : 1;
    const uint32_t share = (even / 2 + parts - 1) / parts * 2;
    for (uint32_t i = (uint32_t)core; i < count * parts; i += (uint32_t)cores) {
        const uint32_t b = i / parts, from = (i - b * parts) * share;
        if (from >= tokens) continue;
        const uint32_t n = tokens - from < share ? tokens - from : share;
        const uint8_t *const block = tile + b * m->block_bytes;
        block_tokens(m, format, block + 2 * SC_ROWS, 0, whole, x + from, n, wide, scratch, each);
        int32_t *y = scratch, *dst = out->dst + from * out->stride;
        for (uint32_t t = from; t < from + n; t++, y += each, dst += out->stride)
            finish_sums(m, block, (first + b) * SC_ROWS, &x[t], adapter_of(adapter, t), out, dst, y);
    }
}

#if SC_SPLIT
void sc_split_sums_of_several(const sc_matrix *m, const uint8_t *tile, uint32_t count, const sc_qvec *x,
                              uint32_t tokens, int32_t *scratch, int core, int cores) {
    const int format = m->format;
    const sc_split_place at = sc_split_at(count, core, cores);
    if (at.block >= count) return;
    const uint32_t each = sums_of(format);
    const sc_split_part p = sc_split_inputs(m, format, &at);
    const uint8_t *const w = tile + at.block * m->block_bytes + 2 * SC_ROWS + p.bytes;
    block_tokens(m, format, w, p.first, p.end, x, tokens, scratch + each * ((tokens + 1) / 2 * 2), scratch,
                 each);
}

void sc_split_rows_of_several(const sc_matrix *m, const uint8_t *tile, uint32_t first, uint32_t count,
                              const sc_qvec *x, const sc_qvec *adapter, uint32_t tokens, const sc_output *out,
                              const int32_t *scratch, uint32_t apart, int core, int cores) {
    const int format = m->format;
    const sc_split_place at = sc_split_at(count, core, cores);
    if (at.block >= count) return;
    const uint8_t *const block = tile + at.block * m->block_bytes;
    const uint32_t each = sums_of(format);
    scratch += at.block * at.parts * apart;
    for (uint32_t t = at.part; t < tokens; t += at.parts) {
        int32_t y[SC_ROWS] = {0};
        for (uint32_t p = 0; p < at.parts; p++)
            for (uint32_t r = 0; r < SC_ROWS; r++)
                y[r] = (int32_t)((uint32_t)y[r] + (uint32_t)scratch[p * apart + t * each + r]);
        finish_sums(m, block, (first + at.block) * SC_ROWS, &x[t], adapter_of(adapter, t), out,
                    out->dst + t * out->stride, y);
    }
}
#endif

#endif
