/* SPDX-License-Identifier: Apache-2.0
 * Reads tables that lie among the weights (weight memory, L2 or flash): RoPE rows for a pass, and the text of
 * tokens. One core. */
#include "sc_platform.h"

#include "sc_buffers.h"

#if SC_TABLE_STAGE > 0
static SC_L2 uint8_t stage[SC_TABLE_STAGE] __attribute__((aligned(4)));

static const uint8_t *fetched(uint32_t flash_offset, uint32_t bytes) {
    sc_flash_start(stage, flash_offset, bytes);
    sc_flash_wait(0);
    return stage;
}
#endif

/* int16 [position][head_dim / 2][cos, sin] in Q15; with two tables first the row of one, then of the other. */
SC_WARM void sc_load_rope(void) {
    const uint32_t row = sizeof rope[0], at = SC_ROPE_AT + sc_now.position * row;
#if SC_ROPE_IN_FLASH
    const uint8_t *rows = fetched(at, sc_now.tokens * row);
#else
    const uint8_t *rows = SC_BLOB(SC_ROPE_LEVEL) + at;
#endif
    sc_dma_wait(sc_dma_in(rope, rows, sc_now.tokens * row));
}

#if SC_PIECES_IN_FLASH
static uint32_t staged, staged_end; /* range of table bytes that the stage holds */
#endif

/* Pointer to byte `at` of the text table, valid up to the next multiple of 4. The table: uint32 offsets[vocab
 * + 1], then the text. */
static const uint8_t *piece_table(uint32_t at) {
#if SC_PIECES_IN_FLASH
    if (at < staged || at >= staged_end) {
        staged = at & ~3u;
        staged_end = staged + SC_PIECE_WINDOW < SC_PIECES_BYTES ? staged + SC_PIECE_WINDOW : SC_PIECES_BYTES;
        fetched(SC_PIECES_AT + staged, staged_end - staged);
    }
    return stage + (at - staged);
#else
    return SC_BLOB(SC_PIECES_LEVEL) + SC_PIECES_AT + at;
#endif
}

static uint32_t piece_offset(uint32_t i) { return *(const uint32_t *)(const void *)piece_table(4 * i); }

sc_piece sc_piece_of(uint32_t token) {
#if SC_PIECES_IN_FLASH
    staged = staged_end = 0; /* RoPE rows may have overwritten the stage */
#endif
    sc_piece piece = {piece_offset(token), 0};
    piece.end = piece_offset(token + 1);
    return piece;
}

uint8_t sc_piece_byte(uint32_t at) { return *piece_table(4 * (SC_VOCAB + 1) + at); }

static uint32_t stored_word(uint32_t level, uint32_t at) {
    (void)level; /* of a program with one memory */
#ifdef SC_HAS_FLASH
    if (level == SC_IN_FLASH) {
        static SC_L2 uint32_t word;
        sc_flash_start(&word, at, sizeof word);
        sc_flash_wait(0);
        return word;
    }
#endif
    return *(const uint32_t *)(const void *)(SC_BLOB(level) + at);
}

int sc_weights_match(void) {
    static const struct {
        uint32_t level, words, hash;
    } stored[] = {SC_STORED_WEIGHTS};
    for (uint32_t i = 0; i < sizeof stored / sizeof stored[0]; i++) {
        const uint32_t words = stored[i].words,
                       step = words < 2 * SC_SAMPLED_WORDS ? 1 : words / SC_SAMPLED_WORDS;
        uint32_t hash = 0;
        for (uint32_t n = 0; n < words; n += step)
            hash = hash * SC_HASH_MULTIPLIER + stored_word(stored[i].level, 4 * n);
        if (hash != stored[i].hash) return 0;
    }
    return 1;
}
