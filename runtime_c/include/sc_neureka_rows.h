/* SPDX-License-Identifier: Apache-2.0
 * How the rows of a matrix lie that N-EUREKA reads, and what reads them otherwise; for sc_engine_neureka.c alone. */
#ifndef SC_NEUREKA_ROWS_H
#define SC_NEUREKA_ROWS_H

#include "sc_dot.h"
#include "sc_kernels.h"
#include "sc_planes.h"

#ifndef SC_ON_NEUREKA
#define SC_ON_NEUREKA 255
#endif

#define TILE_BYTES 32u /* of a row: 8 bit planes of 32 inputs, or one of 9 times 28 */
#define TAPS 9u
#define CHANNELS 28u /* of a tile of a 3x3 image */

static inline int dense(const sc_matrix *m) { return m->engine == SC_ON_NEUREKA; }
static inline uint32_t bits_of(const sc_matrix *m) { return m->format & SC_FMT_BITS; }
static inline uint32_t channels_of_tile(const sc_matrix *m) { return dense(m) ? 32 : CHANNELS; }
static inline const uint16_t *multipliers(const sc_matrix *m, const uint8_t *at) {
    return (const uint16_t *)(const void *)(at + m->blocks * m->block_bytes);
}
static inline uint32_t padded_rows(const sc_matrix *m) { return m->blocks * SC_ROWS; }

#ifdef SC_ENGINE_TAILS
/* Channels of a row's tiles, of a 3x3 image. */
static inline uint32_t channels_of_tiles(const sc_matrix *m) {
    return m->block_bytes / SC_ROWS / (TILE_BYTES * bits_of(m)) * CHANNELS;
}
/* Inputs of a row that are not the engine's. */
static inline uint32_t tail(const sc_matrix *m) {
    const uint32_t whole = dense(m) ? m->in.k : TAPS * channels_of_tiles(m);
    return m->in.k > whole ? m->in.k - whole : 0;
}
/* Tails: blocks of 8 rows, words of 8 bit as those of the cores', behind the multipliers.  A word more apart than
 * they have, neighbours begin in other L1 banks. */
#define TAIL_BLOCK(words) (4u * (SC_ROWS * (words) + 1))
static inline const uint8_t *tails(const sc_matrix *m, const uint8_t *at) {
    const uint32_t scales = 2 * padded_rows(m);
    return (const uint8_t *)multipliers(m, at) + (scales < 32 ? 32 : scales);
}
#else
static inline uint32_t tail(const sc_matrix *m) {
    (void)m;
    return 0;
}
#define channels_of_tiles(m) 0u
#endif
/* Whole words of it. */
static inline uint32_t tail_words(const sc_matrix *m) { return (tail(m) + 3) / 4; }
/* Channels of the image that an input is; a 3x3 image has 9 inputs of each. */
static inline uint32_t channels(const sc_matrix *m) {
    return dense(m) ? m->in.k : tail(m) ? channels_of_tiles(m) : 4u * m->in.words / TAPS;
}

/* Inputs of a row that lie together: those of a tile, or of one of its 9 taps. */
typedef struct {
    uint32_t first, count;
} piece;

#define PIECE_MAX 32u

static inline uint32_t pieces_of(const sc_matrix *m) {
    const uint32_t tiles = (channels(m) + channels_of_tile(m) - 1) / channels_of_tile(m);
    return dense(m) ? tiles : 9 * tiles;
}

/* Where piece i of a row begins, as bits of its planes. */
typedef struct {
    uint32_t byte, bit; /* of the first plane; bit of a plane */
    piece inputs;
} place;

static inline place place_of(const sc_matrix *m, uint32_t i) {
    const uint32_t k = m->in.k - tail(m), tile = dense(m) ? i : i / 9, tap = dense(m) ? 0 : i % 9;
    const uint32_t of_tile = channels_of_tile(m), channel = tile * of_tile, left = channels(m) - channel;
    const uint32_t there = left < of_tile ? left : of_tile, first = tap * channels(m) + channel;
    return (place){tile * (dense(m) ? 1 : bits_of(m)) * TILE_BYTES, 28 * tap,
                   (piece){first, first >= k          ? 0
                                  : k - first < there ? k - first
                                                      : there}};
}

/* Nibble b of a word has bit b of 4 inputs: as signed bytes. */
static inline uint32_t signed_bytes(uint32_t nibbles, uint32_t bits) {
    const uint32_t up = (128u - (1u << (bits - 1))) * 0x01010101u; /* each byte less 2^(bits - 1) */
    return (bytes_of(nibbles) + up) ^ 0x80808080u;
}

/* Piece i of a row.  Bit 28 tap + channel of a 3x3 image's plane b is that one's bit b. */
static inline piece unpack(const sc_matrix *m, const uint8_t *row, uint32_t i, int8_t w[PIECE_MAX]) {
    const uint32_t bits = dense(m) ? 8 : bits_of(m);
    const place p = place_of(m, i);
    uint32_t word[PIECE_MAX / 4] = {0};
    if (dense(m)) {
        __builtin_memcpy(word, row + p.byte, sizeof word);
    } else {
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

/* sc_requantize() of min(count, 4) bytes of a word times a row's multiplier.  High words are at most 2^22, so that adding
 * half a unit cannot overflow; shifts that are clamped, or to the left, are rare. */
SC_INLINE void read_four(uint32_t word, uint32_t count, int32_t scale, uint32_t factor, int shift,
                         int32_t *x) {
    if (__builtin_expect(shift > 0 && shift < 31 && count >= 4, 1)) {
#define READ(j) x[j] = sc_round(sc_mulh((int8_t)(word >> 8 * (j)) * scale, (int32_t)factor), shift)
        READ(0), READ(1), READ(2), READ(3);
#undef READ
        return;
    }
    for (uint32_t j = 0; j < 4 && j < count; j++, word >>= 8)
        x[j] = sc_requantize((int8_t)word * scale, factor, shift);
}

/* Four inputs at a time, so that few of them are work for all cores. */
SC_WARM static void read_row(const sc_matrix *m, const uint8_t *at, uint32_t row, uint32_t k, uint32_t factor,
                             int shift, int32_t *x, int core, int cores) {
    const uint8_t *weights = at + row * (m->block_bytes / SC_ROWS);
    const int32_t scale = multipliers(m, at)[row];
    if (dense(m)) { /* one after the other */
        for (uint32_t i = 4u * (uint32_t)core; i < k; i += 4u * (uint32_t)cores) {
            uint32_t word;
            __builtin_memcpy(&word, __builtin_assume_aligned(weights + i, 4), 4);
            read_four(signed_bytes(word, 8), k - i, scale, factor, shift, x + i);
        }
        return;
    }
    const uint32_t bits = bits_of(m), quads = (channels_of_tile(m) + 3) / 4;
    for (uint32_t i = (uint32_t)core; i < pieces_of(m) * quads; i += (uint32_t)cores) {
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
#ifdef SC_ENGINE_TAILS
    const uint32_t left = tail(m), first = k - left;
    const uint8_t *const words =
        tails(m, at) + row / SC_ROWS * TAIL_BLOCK(tail_words(m)) + 4 * (row % SC_ROWS);
    for (uint32_t i = 4u * (uint32_t)core; i < left; i += 4u * (uint32_t)cores)
        read_four((uint32_t)sc_load32(words + SC_ROWS * i), left - i, scale, factor, shift, x + first + i);
#endif
}

#endif
