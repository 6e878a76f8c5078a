/* SPDX-License-Identifier: Apache-2.0
 * N-EUREKA: layout of its weights in weight memory. The cores read embedding rows, and unpack rows
 * for targets without the engine. */
#ifndef SC_NEUREKA_ROWS_H
#define SC_NEUREKA_ROWS_H

#include "sc_dot.h"
#include "sc_kernels.h"
#include "sc_planes.h"

/* Of a row: 8 bit planes of 32 inputs (1x1 mode), or a bit plane of 9 taps of 28 inputs (3x3 mode). */
#define TILE_BYTES 32u
#define INPUTS 32u /* per tile in 1x1 mode */
#define TAPS 9u
#define CHANNELS 28u /* per tile in 3x3 mode */

#ifdef SC_ON_NEUREKA_3X3
#define ONLY_1X1 0
#else
#define ONLY_1X1 1 /* several tokens are multiplied in 1x1 mode: all in one job */
#endif
/* Whether a matrix's rows are stored for the 1x1 mode: for all passes, or for several tokens (SC_ON_NEUREKA_BOTH). */
static inline int is_1x1(const sc_matrix *m) {
#if !defined(SC_ON_NEUREKA_1X1) && !defined(SC_ON_NEUREKA_BOTH)
    (void)m;
    return 0;
#elif !defined(SC_ON_NEUREKA_3X3)
    (void)m;
    return 1;
#else
    return m->engine != SC_ON_NEUREKA_3X3;
#endif
}

static inline uint32_t bits_of(const sc_matrix *m) { return m->format & SC_FMT_BITS; }
static inline uint32_t channels_of_tile(const sc_matrix *m) { return is_1x1(m) ? INPUTS : CHANNELS; }
static inline const uint16_t *multipliers(const sc_matrix *m, const uint8_t *at) {
    return (const uint16_t *)(const void *)(at + m->blocks * m->block_bytes);
}
static inline uint32_t padded_rows(const sc_matrix *m) { return m->blocks * SC_ROWS; }

#ifdef SC_ENGINE_REMAINDERS
enum { TAILS_OF_ALL = 1, TAILS_OF_EVERY_OTHER = 2 }; /* Remainders in engines/engine.py */
static inline int job_has_tails(uint32_t tails, uint32_t job) { return tails && !(job & (tails - 1)); }
/* If all jobs have tails, a vector's tail follows its image, padded to a fourth column. */
static inline int tail_column(const sc_matrix *m) { return m->remainders == TAILS_OF_ALL; }
#else
#define tail_column(m) 0
#endif

/* Channels of an input vector, which is an image for the engine. 1x1 mode: one per input; 3x3 mode: 9 inputs
 * each. */
static inline uint32_t channels(const sc_matrix *m) {
    return is_1x1(m) ? m->in.k : 4u * m->in.words / (tail_column(m) ? TAPS + 3 : TAPS);
}

/* Tiles of a row. */
static inline uint32_t tiles_of(const sc_matrix *m) {
    return (channels(m) + channels_of_tile(m) - 1) / channels_of_tile(m);
}
static inline uint32_t tile_bytes(const sc_matrix *m) {
    return is_1x1(m) ? TILE_BYTES : TILE_BYTES * bits_of(m);
}

#ifdef SC_ENGINE_REMAINDERS
#define ROWS_LOG 7 /* rows of a job; the job's tails follow its rows */
/* Tails: blocks of 8 rows with words of 8 or 4 bits, as the cores read them. One word between blocks, so that
 * neighbouring blocks begin in different L1 banks. */
#define TAIL_BLOCK(words) (4u * (SC_ROWS * (words) + 1))
static inline int has_tail(const sc_matrix *m, uint32_t row) {
    return job_has_tails(m->remainders, row >> ROWS_LOG);
}
/* Tiles that the engine reads of a row with a tail, and of any row. */
static inline uint32_t tiles_before_tail(const sc_matrix *m) { return tiles_of(m) - !tail_column(m); }
static inline uint32_t tiles_of_row(const sc_matrix *m, uint32_t row) {
    return has_tail(m, row) ? tiles_before_tail(m) : tiles_of(m);
}
/* Inputs of a tail: 4 of the last channels for each tap, then the next 4; with nibbles, 8 for each tap. */
typedef struct {
    uint32_t first, count, step; /* first input; words per group, `step` inputs apart */
    uint32_t groups, apart;      /* groups, `apart` inputs apart */
} tail_place;
static inline int has_nibbles(const sc_matrix *m) {
    return bits_of(m) <= 4 && (tail_column(m) || channels(m) - CHANNELS * tiles_before_tail(m) == 8);
}
static inline tail_place tail_of(const sc_matrix *m) {
    const uint32_t c = channels(m), whole = CHANNELS * tiles_before_tail(m);
    const uint32_t first = tail_column(m) ? TAPS * c : whole, words = (m->in.k - TAPS * c + 3) / 4;
    if (has_nibbles(m))
        return (tail_place){first, 2, 4, tail_column(m) ? (words + 1) / 2 : TAPS, tail_column(m) ? 8 : c};
    if (tail_column(m)) return (tail_place){first, words, 4, 1, 0};
    return (tail_place){first, TAPS, c, (c - whole) / 4, 4};
}
/* Words of a row's tail. */
static inline uint32_t tail_words(const sc_matrix *m) {
    const tail_place p = tail_of(m);
    return has_nibbles(m) ? p.groups : p.count * p.groups;
}
static inline const uint8_t *job_at(const sc_matrix *m, const uint8_t *at, uint32_t row) {
    return at + (row >> ROWS_LOG) * ((1u << ROWS_LOG) / SC_ROWS) * m->block_bytes;
}
static inline const uint8_t *row_at(const sc_matrix *m, const uint8_t *at, uint32_t row) {
    return job_at(m, at, row) + row % (1u << ROWS_LOG) * tile_bytes(m) * tiles_of_row(m, row);
}
/* Tails of the row's block. */
static inline const uint8_t *tails_at(const sc_matrix *m, const uint8_t *at, uint32_t row) {
    const uint32_t left = padded_rows(m) - (row >> ROWS_LOG << ROWS_LOG), most = 1u << ROWS_LOG;
    return job_at(m, at, row) + (left < most ? left : most) * tile_bytes(m) * tiles_before_tail(m) +
           row % most / SC_ROWS * TAIL_BLOCK(tail_words(m));
}

/* Sums of a block's tails with low and high bytes of a vector; those of dot_nibbles() are 16 times too large.
 * Returns the next block. */
#if SC_XPULP
/* clang-format off */
static inline const uint8_t *dot_bytes(sc_rows *a, sc_rows *b, const uint8_t *w, const int8_t *x, const int8_t *y,
                                       tail_place p) {
    int32_t x0 = (int32_t)p.groups, x1, t0, t1;
    __asm__ volatile(SC_EACH_ROW(SC_PAIR_ZERO)
                     SC_OUTER_LOOP_BEGIN("%[x0]", 26 + 3)
                     SC_INNER_LOOP_BEGIN("%[count]", 26)
                     P_LW_POST_R("%[x0]", "%[x]", "%[step]") P_LW_POST_R("%[x1]", "%[y]", "%[step]")
                     SC_PAIR_ROWS
                     SC_LOOP_END(26) "\n"
                     "add %[x], %[x], %[back]\n"
                     "add %[y], %[y], %[back]\n" SC_OUTER_LOOP_END(26 + 3)
                     : SC_EACH_ROW(SC_PAIR_OUT) [w] "+&r"(w), [x] "+&r"(x), [y] "+&r"(y), [x0] "+&r"(x0),
                       [x1] "=&r"(x1), [t0] "=&r"(t0), [t1] "=&r"(t1)
                     : [count] "r"(p.count), [step] "r"(p.step), [back] "r"(p.apart - p.count * p.step)
                     : "memory");
    return w + 4;
}

/* Low nibbles of a word are multiplied by x0 and y0, high ones by x1 and y1. The next word is loaded to a
 * free register; after the block's last word that is the gap between blocks. */
#define NIBBLES_ROW(r, word, other)                                                                                  \
    PV_SLL_SCI_B(other, word, "4")                                                                                   \
    PV_SDOTSP_B("%[a" #r "]", "%[x0]", other) PV_SDOTSP_B("%[b" #r "]", "%[y0]", other)                              \
    P_LW_POST(other, "%[w]", "4")                                                                                    \
    PV_AND_SCI_B(word, word, "-16")                                                                                  \
    PV_SDOTSP_B("%[a" #r "]", "%[x1]", word) PV_SDOTSP_B("%[b" #r "]", "%[y1]", word)
#define NIBBLES_TWO(even, odd) NIBBLES_ROW(even, "%[t0]", "%[t1]") NIBBLES_ROW(odd, "%[t1]", "%[t0]")

/* 60 instructions with 12 loads per 128 products; bytes would need 52 with 20. Loads cost more, since
 * N-EUREKA uses the same L1 banks and waits for them. */
static inline const uint8_t *dot_nibbles(sc_rows *a, sc_rows *b, const uint8_t *w, const int8_t *x, const int8_t *y,
                                         uint32_t words, uint32_t apart) {
    int32_t x0, x1, y0, y1, t0, t1;
    __asm__ volatile(SC_EACH_ROW(SC_PAIR_ZERO)
                     P_LW_POST("%[t0]", "%[w]", "4") "\n"
                     SC_LOOP_BEGIN("%[words]", 60)
                     "lw %[x1], 4(%[x])\nlw %[y1], 4(%[y])\n"
                     P_LW_POST_R("%[x0]", "%[x]", "%[apart]") P_LW_POST_R("%[y0]", "%[y]", "%[apart]")
                     NIBBLES_TWO(0, 1) NIBBLES_TWO(2, 3) NIBBLES_TWO(4, 5) NIBBLES_TWO(6, 7)
                     SC_LOOP_END(60)
                     : SC_EACH_ROW(SC_PAIR_OUT) [w] "+&r"(w), [x] "+&r"(x), [y] "+&r"(y), [x0] "=&r"(x0),
                       [x1] "=&r"(x1), [y0] "=&r"(y0), [y1] "=&r"(y1), [t0] "=&r"(t0), [t1] "=&r"(t1)
                     : [words] "r"(words), [apart] "r"(apart)
                     : "memory");
    return w;
}
/* clang-format on */
#else
static inline const uint8_t *dot_bytes(sc_rows *a, sc_rows *b, const uint8_t *w, const int8_t *x,
                                       const int8_t *y, tail_place p) {
    *a = *b = (sc_rows){0};
    for (; p.groups; p.groups--, x += p.apart, y += p.apart) {
        for (uint32_t i = 0; i < p.count; i++, w += 4 * SC_ROWS) {
            const int32_t low = sc_load32(x + i * p.step), high = sc_load32(y + i * p.step);
#define ROW(r)                                                                                               \
    a->s##r = sc_sdot4(a->s##r, low, sc_load32(w + 4 * r));                                                  \
    b->s##r = sc_sdot4(b->s##r, high, sc_load32(w + 4 * r));
            SC_EACH_ROW(ROW)
#undef ROW
        }
    }
    return w + 4;
}

static inline const uint8_t *dot_nibbles(sc_rows *a, sc_rows *b, const uint8_t *w, const int8_t *x,
                                         const int8_t *y, uint32_t words, uint32_t apart) {
    *a = *b = (sc_rows){0};
    for (; words; words--, x += apart, y += apart, w += 4 * SC_ROWS) {
        uint32_t word, lower, upper;
#define ROW(r)                                                                                               \
    word = (uint32_t)sc_load32(w + 4 * r), lower = word << 4 & 0xF0F0F0F0u, upper = word & 0xF0F0F0F0u;      \
    a->s##r = sc_sdot4(sc_sdot4(a->s##r, sc_load32(x), (int32_t)lower), sc_load32(x + 4), (int32_t)upper);   \
    b->s##r = sc_sdot4(sc_sdot4(b->s##r, sc_load32(y), (int32_t)lower), sc_load32(y + 4), (int32_t)upper);
        SC_EACH_ROW(ROW)
#undef ROW
    }
    return w + 4;
}
#endif

/* Sums of a block's tails: low + 256 * high. No overflow: 16 times the sum of 72 inputs is below 2^29. */
static inline const uint8_t *dot_tails(sc_rows *sums, const uint8_t *w, const int8_t *low, const int8_t *high,
                                       tail_place p, uint32_t nibbles) {
    sc_rows a, b;
    w = nibbles ? dot_nibbles(&a, &b, w, low, high, p.groups, p.apart) : dot_bytes(&a, &b, w, low, high, p);
    const int by = nibbles ? 4 : 0;
#define SUM(r) sums->s##r = (int32_t)((uint32_t)a.s##r + ((uint32_t)b.s##r << 8)) >> by;
    SC_EACH_ROW(SUM)
#undef SUM
    return w;
}
#else
#define tiles_of_row(m, row) tiles_of(m)
static inline const uint8_t *row_at(const sc_matrix *m, const uint8_t *at, uint32_t row) {
    return at + row * tile_bytes(m) * tiles_of(m);
}
#endif

/* Consecutive inputs of a row: those of a tile; in 3x3 mode of one of its 9 taps. */
typedef struct {
    uint32_t first, count;
} piece;

#define PIECE_MAX INPUTS
static inline uint32_t pieces_of_tile(const sc_matrix *m) { return is_1x1(m) ? 1 : TAPS; }

/* Bit planes to bytes: nibble b of a word holds bit b of 4 inputs. */
static inline uint32_t signed_bytes(uint32_t nibbles, uint32_t bits) {
    const uint32_t up = (128u - (1u << (bits - 1))) * 0x01010101u; /* subtracts 2^(bits - 1) from each byte */
    return (bytes_of(nibbles) + up) ^ 0x80808080u;
}

/* Sign-extends the low nibble of each of 4 bytes. */
static inline uint32_t signed_nibbles(uint32_t word) {
    return (((word & 0x0F0F0F0Fu) ^ 0x08080808u) + 0x78787878u) ^ 0x80808080u;
}

#if ONLY_1X1
/* Unpacks tile i of a row. */
static inline piece unpack(const sc_matrix *m, const uint8_t *row, uint32_t i, int8_t w[PIECE_MAX]) {
    const uint32_t first = INPUTS * i, left = m->in.k - first;
    for (uint32_t q = 0; q < INPUTS; q += 4) {
        uint32_t word;
        __builtin_memcpy(&word, row + TILE_BYTES * i + q, 4);
        word = signed_bytes(word, 8);
        __builtin_memcpy(w + q, &word, 4);
    }
    return (piece){first, left < INPUTS ? left : INPUTS};
}
#else
/* Location of piece i of a row in its bit planes. */
typedef struct {
    uint32_t byte, bit; /* byte offset of the first plane; bit offset in a plane */
    piece inputs;
} place;

static inline place place_of(const sc_matrix *m, uint32_t i) {
    if (is_1x1(m)) {
        const uint32_t at = PIECE_MAX * i, left = m->in.k - at;
        return (place){TILE_BYTES * i, 0, (piece){at, left < PIECE_MAX ? left : PIECE_MAX}};
    }
    const uint32_t k = tail_column(m) ? TAPS * channels(m) : m->in.k, tile = i / TAPS, tap = i % TAPS;
    const uint32_t of_tile = channels_of_tile(m), channel = tile * of_tile, left = channels(m) - channel;
    const uint32_t there = left < of_tile ? left : of_tile;
    const uint32_t first =
        (tap % 3 * 3 + tap / 3) * channels(m) + channel; /* the image is filled column by column */
    return (place){tile * bits_of(m) * TILE_BYTES, 28 * tap,
                   (piece){first, first >= k          ? 0
                                  : k - first < there ? k - first
                                                      : there}};
}

/* Unpacks piece i of a row. */
static inline piece unpack(const sc_matrix *m, const uint8_t *row, uint32_t i, int8_t w[PIECE_MAX]) {
    const uint32_t bits = is_1x1(m) ? 8 : bits_of(m);
    const place p = place_of(m, i);
    uint32_t word[PIECE_MAX / 4] = {0};
    if (is_1x1(m)) {
        __builtin_memcpy(word, row + p.byte, sizeof word);
    } else { /* bit 28 * tap + channel of plane b is bit b of the weight; taps are counted row by row, inputs
              * column by column */
        for (uint32_t b = 0; b < bits; b++) {
            uint32_t plane;
            __builtin_memcpy(&plane, row + p.byte + b * TILE_BYTES + p.bit / 8, 4);
            plane >>= p.bit % 8;
            for (uint32_t q = 0; 4 * q < p.inputs.count; q++) word[q] |= (plane >> 4 * q & 15) << 4 * b;
        }
    }
    for (uint32_t q = 0; q < PIECE_MAX / 4; q++) word[q] = signed_bytes(word[q], bits);
    __builtin_memcpy(w, word, sizeof word);
    return p.inputs;
}
#endif

/* Whether four bytes at a time always are four inputs, and the embedding's shift is to the right, as it usually is. */
#if defined(SC_ON_NEUREKA_3X3) || SC_HIDDEN % 4 || SC_EMBED_SHIFT < 1 || SC_EMBED_SHIFT > 30
#define WHOLE_WORDS 0
#else
#define WHOLE_WORDS 1
#endif

/* x[j] = sc_requantize() of byte j * multiplier, for min(count, 4) bytes. High words are at most 2^22, so rounding
 * cannot overflow. */
SC_INLINE void read_four(uint32_t word, uint32_t count, int32_t scale, uint32_t factor, int shift,
                         int32_t *x) {
#define READ(j) x[j] = sc_round(sc_mulh((int8_t)(word >> 8 * (j)) * scale, (int32_t)factor), shift)
#if WHOLE_WORDS
    (void)count;
    READ(0), READ(1), READ(2), READ(3);
#else
    if (__builtin_expect(shift > 0 && shift < 31 && count >= 4, 1)) {
        READ(0), READ(1), READ(2), READ(3);
        return;
    }
    for (uint32_t j = 0; j < 4 && j < count; j++, word >>= 8)
        x[j] = sc_requantize((int8_t)word * scale, factor, shift);
#endif
#undef READ
}

/* Dequantises an embedding row: four inputs at a time, so that all cores have work. */
SC_WARM void sc_engine_row(const sc_matrix *m, const uint8_t *at, uint32_t row, uint32_t k, uint32_t factor,
                           int shift, int32_t *x, int core, int cores) {
    const uint8_t *weights = row_at(m, at, row);
    const int32_t scale = multipliers(m, at)[row];
    if (is_1x1(m)) {
        for (uint32_t i = 4u * (uint32_t)core; i < k; i += 4u * (uint32_t)cores) {
            uint32_t word;
            __builtin_memcpy(&word, __builtin_assume_aligned(weights + i, 4), 4);
            read_four(signed_bytes(word, 8), k - i, scale, factor, shift, x + i);
        }
        return;
    }
#if !ONLY_1X1
    const uint32_t bits = bits_of(m), quads = (channels_of_tile(m) + 3) / 4;
    for (uint32_t i = (uint32_t)core; i < pieces_of_tile(m) * tiles_of_row(m, row) * quads;
         i += (uint32_t)cores) {
        const place p = place_of(m, i / quads);
        const uint32_t q = i % quads;
        uint32_t word = 0;
        if (4 * q >= p.inputs.count) continue;
        for (uint32_t b = 0; b < bits; b++) {
            uint32_t plane;
            __builtin_memcpy(&plane, weights + p.byte + b * TILE_BYTES + p.bit / 8, 4);
            word |= (plane >> p.bit % 8 >> 4 * q & 15) << 4 * b;
        }
        read_four(signed_bytes(word, bits), p.inputs.count - 4 * q, scale, factor, shift,
                  x + p.inputs.first + 4 * q);
    }
#ifdef SC_ENGINE_REMAINDERS
    if (!has_tail(m, row)) return;
    const tail_place p = tail_of(m);
    const uint8_t *words = tails_at(m, at, row) + 4 * (row % SC_ROWS);
    const uint32_t nibbles = (uint32_t)has_nibbles(m);
    for (uint32_t i = (uint32_t)core; i < p.count * p.groups; i += (uint32_t)cores) {
        const uint32_t first = p.first + i % p.count * p.step + i / p.count * p.apart;
        if (first >= k) continue;
        uint32_t word = (uint32_t)sc_load32(words + 4 * SC_ROWS * (i >> nibbles));
        if (nibbles) word = signed_nibbles(i & 1 ? word >> 4 : word);
        read_four(word, k - first, scale, factor, shift, x + first);
    }
#endif
#endif
}

#endif
