/* SPDX-License-Identifier: Apache-2.0
 * Decoders of the study of weight codes: each multiplies the coded weights of 8 rows
 * by an int8 vector. weight_codes.py writes the data. Portable C, and Xpulp code for Siracusa.
 *
 * A matrix is cut into blocks of 8 rows. A block's stream begins at a byte, after 2 zero bits, lowest bit first. It
 * holds one symbol of 1 to 4 weights for each row and column position, in the order of the method (enum wc_method).
 * Weights of unusual size are not in the code: the stream has a smaller value, and a correction adds the rest.
 *
 * One load gives at least 25 bits, 2 of which are no longer used. The encoder guarantees that the symbols decoded
 * from one load fit. A damaged stream gives wrong sums and an error. It cannot make the decoder read outside of its
 * buffer: a symbol takes at most WC_MAX_BITS, the number of symbols is fixed, and wc_block() checks the room first. */
#ifndef WC_DECODE_H
#define WC_DECODE_H

#include <stdint.h>

#include "sc_xpulp.h"

#define WC_ROWS 8
#define WC_MAX_BITS 12
#define WC_LOAD 4 /* bytes that a load may read after the last bit */

enum wc_method {
    WC_ROW_PAIRS = 2, /* one position, 8 rows; two rows per load */
    WC_ROW_THREE =
        3, /* three positions, four rows; three positions of a row per load; then the other four rows */
    WC_ROW_FOUR = 4, /* four positions in the same way */
    WC_QUADS = 5,    /* as WC_ROW_PAIRS; four weights per symbol, lengths in a second table */
    WC_CODEBOOK = 6, /* as WC_ROW_PAIRS; four weights per 12-bit index, no lengths */
};

enum wc_error { WC_OK, WC_BAD_OFFSETS, WC_BAD_STREAM, WC_BAD_CORRECTION };

/* Words of the file that weight_codes.py writes; then the table, the vectors, tile offsets [tiles + 1], tiles. */
typedef struct {
    uint32_t method, rows, inputs;
    uint32_t symbols;     /* per row */
    uint32_t entries;     /* of the table: a power of two, at most 4096 */
    uint32_t table_words; /* entries; with WC_QUADS a quarter more, for the lengths in bytes */
    uint32_t tile_blocks, tiles, tile_bytes; /* bytes of the largest tile */
    uint32_t spare[3];
} wc_shape;

/* Entry of the table: byte 0: bits of the code word, bytes 1 to 3: up to three weights. With WC_QUADS and
 * WC_CODEBOOK bytes 0 to 3 are four weights. `expanded`: one word per symbol position with the inputs in the bytes of
 * their weights; the other bytes are 0. */
typedef struct {
    const wc_shape *shape;
    const uint32_t *table;
    const int32_t *expanded;
    const int8_t *x;
} wc_operands;

/* Whether no code word of the table is longer than WC_MAX_BITS. */
static inline int wc_table_fits(const wc_shape *s, const uint32_t *table) {
    const uint8_t *lengths = (const uint8_t *)(table + s->entries);
    if (s->method == WC_CODEBOOK) return 1;
    for (uint32_t i = 0; i < s->entries; i++) {
        if ((s->method == WC_QUADS ? lengths[i] : table[i] & 255) > WC_MAX_BITS) return 0;
    }
    return 1;
}

/* A buffer for tiles needs these bytes more than the largest tile. */
static inline uint32_t wc_stream_reach(const wc_shape *s) {
    return (2 + s->symbols * WC_ROWS * WC_MAX_BITS) / 8 + WC_LOAD;
}
static inline uint32_t wc_buffer_bytes(const wc_shape *s) {
    return (s->tile_bytes + wc_stream_reach(s) + 15) & ~15u;
}

#if SC_XPULP

#define WC_SDOTUP_B(d, a, b) SC_R(0x57, 1, "0x50", d, a, b)  /* pv.sdotup.b */
#define WC_LBU_R(d, ptr, b) SC_R(0x03, 7, "0x20", d, ptr, b) /* p.lbu */

/* clang-format off */
#define WC_REFILL                                                                                            \
    "srli %[i], %[p], 3\n" P_LW_R("%[w]", "%[base]", "%[i]") "andi %[i], %[p], 7\nsrl %[w], %[w], %[i]\n"
#define WC_LOOKUP(e) "and %[i], %[w], %[mask]\n" P_LW_R(e, "%[table]", "%[i]")
#define WC_COUNT(e) WC_SDOTUP_B("%[p]", e, "%[one]")
#define WC_SUM(row, e, x) PV_SDOTSP_B("%[a" #row "]", e, x)
#define WC_ZERO_FOUR "li %[a0], 0\nli %[a1], 0\nli %[a2], 0\nli %[a3], 0\n"
#define WC_ZERO WC_ZERO_FOUR "li %[a4], 0\nli %[a5], 0\nli %[a6], 0\nli %[a7], 0\n"
#define WC_SUMS_FOUR [a0] "=&r"(a[0]), [a1] "=&r"(a[1]), [a2] "=&r"(a[2]), [a3] "=&r"(a[3])
#define WC_SUMS WC_SUMS_FOUR, [a4] "=&r"(a[4]), [a5] "=&r"(a[5]), [a6] "=&r"(a[6]), [a7] "=&r"(a[7])

/* 12 instructions and `between`, which stands where the core would wait for the entry. The sum of e1 is left to the
 * next two rows. */
#define WC_TWO_ROWS(row, between)                                                                            \
    WC_REFILL WC_LOOKUP("%[e0]") between "srl %[w], %[w], %[e0]\n" WC_LOOKUP("%[e1]")                        \
    WC_COUNT("%[e0]") WC_SUM(row, "%[e0]", "%[x0]") WC_COUNT("%[e1]")

/* 53 instructions per 8 symbols */
static inline uint32_t wc_row_pairs(int32_t *a, const uint8_t *base, uint32_t p, const wc_operands *o) {
    const int32_t *x = o->expanded;
    uint32_t w, i, e0, e1, x0;
    __asm__ volatile(WC_ZERO
                     SC_LOOP_BEGIN("%[n]", 53)
                     WC_TWO_ROWS(0, P_LW_POST("%[x0]", "%[x]", "4"))
                     WC_TWO_ROWS(2, WC_SUM(1, "%[e1]", "%[x0]"))
                     WC_TWO_ROWS(4, WC_SUM(3, "%[e1]", "%[x0]"))
                     WC_TWO_ROWS(6, WC_SUM(5, "%[e1]", "%[x0]"))
                     WC_SUM(7, "%[e1]", "%[x0]")
                     SC_LOOP_END(53)
                     : WC_SUMS, [p] "+&r"(p), [x] "+&r"(x), [w] "=&r"(w), [i] "=&r"(i), [e0] "=&r"(e0),
                       [e1] "=&r"(e1), [x0] "=&r"(x0)
                     : [base] "r"(base), [table] "r"(o->table), [mask] "r"(4 * (o->shape->entries - 1)), [one] "r"(1),
                       [n] "r"(o->shape->symbols)
                     : "memory");
    return p;
}

#define WC_THEN(row, e, x, next) "srl %[w], %[w], " e "\n" WC_LOOKUP(next) WC_COUNT(e) WC_SUM(row, e, x)
#define WC_THREE(row, between)                                                                               \
    WC_REFILL WC_LOOKUP("%[e0]") between WC_THEN(row, "%[e0]", "%[x0]", "%[e1]")                             \
    WC_THEN(row, "%[e1]", "%[x1]", "%[e2]") WC_COUNT("%[e2]")
#define WC_THREE_SUM(row) WC_SUM(row, "%[e2]", "%[x2]")

/* Four rows, whose loop fits the 512 bytes of a core's own instruction cache: 75 instructions per 12 symbols */
static inline uint32_t wc_three_of_four_rows(int32_t *a, const uint8_t *base, uint32_t p, const wc_operands *o) {
    const int32_t *x = o->expanded;
    uint32_t w, i, e0, e1, e2, x0, x1, x2;
    __asm__ volatile(WC_ZERO_FOUR
                     SC_LOOP_BEGIN("%[n]", 75)
                     P_LW_POST("%[x0]", "%[x]", "4") P_LW_POST("%[x1]", "%[x]", "4")
                     WC_THREE(0, P_LW_POST("%[x2]", "%[x]", "4")) WC_THREE(1, WC_THREE_SUM(0))
                     WC_THREE(2, WC_THREE_SUM(1)) WC_THREE(3, WC_THREE_SUM(2)) WC_THREE_SUM(3)
                     SC_LOOP_END(75)
                     : WC_SUMS_FOUR, [p] "+&r"(p), [x] "+&r"(x), [w] "=&r"(w), [i] "=&r"(i), [e0] "=&r"(e0),
                       [e1] "=&r"(e1), [e2] "=&r"(e2), [x0] "=&r"(x0), [x1] "=&r"(x1), [x2] "=&r"(x2)
                     : [base] "r"(base), [table] "r"(o->table), [mask] "r"(4 * (o->shape->entries - 1)), [one] "r"(1),
                       [n] "r"(o->shape->symbols / 3)
                     : "memory");
    return p;
}

static inline uint32_t wc_row_three(int32_t *a, const uint8_t *base, uint32_t p, const wc_operands *o) {
    for (int half = 0; half < WC_ROWS; half += 4) p = wc_three_of_four_rows(a + half, base, p, o);
    return p;
}

#define WC_FOUR(row, between)                                                                                \
    WC_REFILL WC_LOOKUP("%[e0]") between WC_THEN(row, "%[e0]", "%[x0]", "%[e1]")                             \
    WC_THEN(row, "%[e1]", "%[x1]", "%[e0]") WC_THEN(row, "%[e0]", "%[x2]", "%[e1]") WC_COUNT("%[e1]")
#define WC_FOUR_SUM(row) WC_SUM(row, "%[e1]", "%[x3]")

/* 96 instructions per 16 symbols */
static inline uint32_t wc_four_of_four_rows(int32_t *a, const uint8_t *base, uint32_t p, const wc_operands *o) {
    const int32_t *x = o->expanded;
    uint32_t w, i, e0, e1, x0, x1, x2, x3;
    __asm__ volatile(WC_ZERO_FOUR
                     SC_LOOP_BEGIN("%[n]", 96)
                     P_LW_POST("%[x0]", "%[x]", "4") P_LW_POST("%[x1]", "%[x]", "4") P_LW_POST("%[x2]", "%[x]", "4")
                     WC_FOUR(0, P_LW_POST("%[x3]", "%[x]", "4")) WC_FOUR(1, WC_FOUR_SUM(0))
                     WC_FOUR(2, WC_FOUR_SUM(1)) WC_FOUR(3, WC_FOUR_SUM(2)) WC_FOUR_SUM(3)
                     SC_LOOP_END(96)
                     : WC_SUMS_FOUR, [p] "+&r"(p), [x] "+&r"(x), [w] "=&r"(w), [i] "=&r"(i), [e0] "=&r"(e0),
                       [e1] "=&r"(e1), [x0] "=&r"(x0), [x1] "=&r"(x1), [x2] "=&r"(x2), [x3] "=&r"(x3)
                     : [base] "r"(base), [table] "r"(o->table), [mask] "r"(4 * (o->shape->entries - 1)), [one] "r"(1),
                       [n] "r"(o->shape->symbols / 4)
                     : "memory");
    return p;
}

static inline uint32_t wc_row_four(int32_t *a, const uint8_t *base, uint32_t p, const wc_operands *o) {
    for (int half = 0; half < WC_ROWS; half += 4) p = wc_four_of_four_rows(a + half, base, p, o);
    return p;
}

#define WC_QUAD(e, l)                                                                                        \
    "and %[i], %[w], %[mask]\n" P_LW_R(e, "%[table]", "%[i]") "srli %[i], %[i], 2\n"                         \
    WC_LBU_R(l, "%[lengths]", "%[i]")
/* 16 instructions and `between` */
#define WC_TWO_QUADS(row, between)                                                                           \
    WC_REFILL WC_QUAD("%[e0]", "%[l0]") between "srl %[w], %[w], %[l0]\nadd %[p], %[p], %[l0]\n"             \
    WC_QUAD("%[e1]", "%[l1]") WC_SUM(row, "%[e0]", "%[x0]") "add %[p], %[p], %[l1]\n"

/* 69 instructions per 8 symbols */
static inline uint32_t wc_quads(int32_t *a, const uint8_t *base, uint32_t p, const wc_operands *o) {
    const int32_t *x = o->expanded;
    uint32_t w, i, e0, e1, l0, l1, x0;
    __asm__ volatile(WC_ZERO
                     SC_LOOP_BEGIN("%[n]", 69)
                     WC_TWO_QUADS(0, P_LW_POST("%[x0]", "%[x]", "4"))
                     WC_TWO_QUADS(2, WC_SUM(1, "%[e1]", "%[x0]"))
                     WC_TWO_QUADS(4, WC_SUM(3, "%[e1]", "%[x0]"))
                     WC_TWO_QUADS(6, WC_SUM(5, "%[e1]", "%[x0]"))
                     WC_SUM(7, "%[e1]", "%[x0]")
                     SC_LOOP_END(69)
                     : WC_SUMS, [p] "+&r"(p), [x] "+&r"(x), [w] "=&r"(w), [i] "=&r"(i), [e0] "=&r"(e0),
                       [e1] "=&r"(e1), [l0] "=&r"(l0), [l1] "=&r"(l1), [x0] "=&r"(x0)
                     : [base] "r"(base), [table] "r"(o->table), [lengths] "r"(o->table + o->shape->entries),
                       [mask] "r"(4 * (o->shape->entries - 1)), [n] "r"(o->shape->symbols)
                     : "memory");
    return p;
}

/* Two 12-bit indices in 3 bytes. 7 instructions and `between`. */
#define WC_TWO_INDICES(row, between)                                                                         \
    P_LW_POST("%[w]", "%[base]", "3") between WC_LOOKUP("%[e0]") "srli %[w], %[w], 12\n"                     \
    WC_LOOKUP("%[e1]") WC_SUM(row, "%[e0]", "%[x0]")

/* 33 instructions per 8 symbols */
static inline uint32_t wc_codebook(int32_t *a, const uint8_t *base, uint32_t p, const wc_operands *o) {
    const int32_t *x = o->expanded;
    uint32_t w, i, e0, e1, x0;
    base += p >> 3;
    __asm__ volatile(WC_ZERO
                     SC_LOOP_BEGIN("%[n]", 33)
                     WC_TWO_INDICES(0, P_LW_POST("%[x0]", "%[x]", "4"))
                     WC_TWO_INDICES(2, WC_SUM(1, "%[e1]", "%[x0]"))
                     WC_TWO_INDICES(4, WC_SUM(3, "%[e1]", "%[x0]"))
                     WC_TWO_INDICES(6, WC_SUM(5, "%[e1]", "%[x0]"))
                     WC_SUM(7, "%[e1]", "%[x0]")
                     SC_LOOP_END(33)
                     : WC_SUMS, [base] "+&r"(base), [x] "+&r"(x), [w] "=&r"(w), [i] "=&r"(i), [e0] "=&r"(e0),
                       [e1] "=&r"(e1), [x0] "=&r"(x0)
                     : [table] "r"(o->table), [mask] "r"(4 * (o->shape->entries - 1)), [n] "r"(o->shape->symbols)
                     : "memory");
    return p + o->shape->symbols * WC_ROWS * WC_MAX_BITS;
}
/* clang-format on */

#else

static inline uint32_t wc_load(const uint8_t *at) {
    return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

/* Dot product of bytes `from` to 3, signed. */
static inline int32_t wc_dot(uint32_t e, uint32_t x, int from) {
    int32_t sum = 0;
    for (int i = from; i < 4; i++) sum += (int8_t)(e >> 8 * i) * (int8_t)(x >> 8 * i);
    return sum;
}

/* All methods: `together` symbols per load; of one row, or of consecutive rows. Returns the position after the last
 * symbol, in bits. */
static inline uint32_t wc_symbols(int32_t *a, const uint8_t *base, uint32_t p, const wc_operands *o) {
    const wc_shape *s = o->shape;
    const uint8_t *lengths = (const uint8_t *)(o->table + s->entries);
    const int in_row = s->method == WC_ROW_THREE || s->method == WC_ROW_FOUR;
    const uint32_t columns = in_row ? s->method : 1, together = in_row ? columns : 2, rows = in_row ? 4 : 8;
    uint32_t w = 0;
    for (int r = 0; r < WC_ROWS; r++) a[r] = 0;
    for (uint32_t j = 0; j < s->symbols * WC_ROWS; j++) {
        /* the order of symbols: parts of `rows`, then groups of `columns`, then rows, then columns */
        const uint32_t group = j / columns, column = j % columns, groups = s->symbols / columns;
        const uint32_t row = group / (rows * groups) * rows + group % rows;
        const uint32_t position = group / rows % groups * columns + column;
        if (j % together == 0) w = wc_load(base + (p >> 3)) >> (p & 7);
        const uint32_t index = w >> 2 & (s->entries - 1), e = o->table[index];
        const uint32_t bits = s->method == WC_QUADS      ? lengths[index]
                              : s->method == WC_CODEBOOK ? WC_MAX_BITS
                                                         : e & 255;
        a[row] += wc_dot(e, (uint32_t)o->expanded[position], s->method < WC_QUADS);
        p += bits, w >>= bits;
    }
    return p;
}

#endif

static inline uint32_t wc_half(const uint8_t *at) { return at[0] | (uint32_t)at[1] << 8; }

/* *sum += correction * x for all corrections of a row. One takes 2 bytes: how many inputs after the one before, and
 * a signed value. Returns whether all are inside of the row. */
static inline int wc_correct(int32_t *sum, const uint8_t *from, const uint8_t *to, const wc_operands *o) {
    const uint32_t last = o->shape->inputs - 1;
    uint32_t column = 0;
    for (; from < to; from += 2) {
        column += from[0];
        *sum += (int8_t)from[1] * o->x[column < last ? column : last];
    }
    return column <= last;
}

/* Sums of a block's 8 rows. A tile: uint16 offsets in bytes of its streams [tile_blocks + 1], of the corrections of
 * its rows [8 * tile_blocks + 1], streams, corrections. It lies in a buffer of wc_buffer_bytes(). */
static inline enum wc_error wc_block(int32_t *a, const uint8_t *tile, uint32_t block, const wc_operands *o) {
    const wc_shape *s = o->shape;
    const uint8_t *offsets = tile + 2 * block, *rows = tile + 2 * (s->tile_blocks + 1 + WC_ROWS * block);
    const uint32_t begin = wc_half(offsets), end = wc_half(offsets + 2);
    uint32_t p = 8 * begin;
    if (begin > s->tile_bytes) return WC_BAD_OFFSETS;
#if SC_XPULP
    switch (s->method) {
#ifdef WC_METHOD /* a program has one kernel, as a compiled model has */
    default:
        p = WC_METHOD(a, tile, p, o);
#endif
    }
#else
    p = wc_symbols(a, tile, p, o);
#endif
    if ((p + 2 + 7) >> 3 != end) return WC_BAD_STREAM;
    for (int r = 0; r < WC_ROWS; r++) {
        const uint32_t from = wc_half(rows + 2 * r), to = wc_half(rows + 2 * r + 2);
        if (from > to || to > s->tile_bytes || (to - from) % 2) return WC_BAD_OFFSETS;
        if (!wc_correct(&a[r], tile + from, tile + to, o)) return WC_BAD_CORRECTION;
    }
    return WC_OK;
}

#endif
