/* SPDX-License-Identifier: Apache-2.0
 * Tables of a tokenizer, which the compiler writes to blobs/tokenizer.bin
 * (compiler/shrinkc/codegen/tokenizer_blob.py). They begin with struct llm_tokenizer and are aligned to
 * words. All numbers are little-endian. */
#ifndef LLM_TOKENIZER_H
#define LLM_TOKENIZER_H

#include <stdint.h>

#define LLM_TOKENIZER_MAGIC 0x31544D4Cu /* "LMT1"; another layout has another last digit */
#define LLM_NO_ID 0xFFFFFFFFu

/* Offset in bytes from the start of the tables, and number of elements. */
typedef struct {
    uint32_t at, count;
} llm_span;

struct llm_tokenizer {
    uint32_t magic;
    uint32_t vocab;         /* number of token ids */
    uint32_t first;         /* first id of every prompt, or LLM_NO_ID */
    uint32_t unknown;       /* unit for unknown characters, or LLM_NO_ID: they are omitted */
    uint32_t fuse;          /* 1: neighbouring unknown characters share one unit */
    uint32_t wide;          /* 1: merges and pairs are 32-bit numbers; 0: 16-bit */
    uint32_t room_per_byte; /* room that suffices for every text: room_per_byte * bytes + room_more */
    uint32_t room_more;
    llm_span refusal;      /* text: why texts cannot be encoded here; empty if they can */
    llm_span empty;        /* words: ids of an empty text */
    llm_span before;       /* words: ids before any other text */
    llm_span steps;        /* llm_step: how text is split into pieces; the last step: units of a piece */
    llm_span added;        /* llm_added: strings that are tokens */
    llm_span added_starts; /* text: first bytes of `added` */
    llm_span units;        /* llm_unit, sorted by code: characters or bytes that are tokens */
    llm_span fallbacks;    /* words: units of the 256 bytes, for unknown characters; or empty */
    llm_span words;        /* llm_word, sorted by text: whole pieces that are tokens */
    llm_span merges;       /* left id, right id, id that they become; sorted by rank, best first */
    llm_span pairs;        /* indices of `merges`, sorted by left and right id */
};

/* A unit is the id of a character or a byte. With this bit, no merge joins a different unit in front of it,
 * nor what that unit became: text can be cut in front of it. */
#define LLM_UNIT_STARTS 0x80000000u

enum llm_step_kind {
    LLM_STEP_ADDED_EARLY,  /* split at added tokens that are searched in the original text */
    LLM_STEP_ADDED_LATE,   /* split at added tokens that are searched after the previous steps */
    LLM_STEP_PREPEND,      /* put text a in front */
    LLM_STEP_REPLACE,      /* replace each text a by text b */
    LLM_STEP_PREFIX,       /* put text a in front, unless the piece begins with it */
    LLM_STEP_PREFIX_FIRST, /* LLM_STEP_PREFIX, only at the beginning of the whole text */
    LLM_STEP_CUT_BEFORE,   /* each text a begins a piece */
    LLM_STEP_CUT_DIGIT,    /* each digit is a piece */
    LLM_STEP_CUT_DIGITS,   /* each run of digits is a piece */
    LLM_STEP_CUT_GPT2,     /* words by GPT-2's regular expression */
    LLM_STEP_CUT_LLAMA3,   /* words by LLaMA 3's regular expression */
    LLM_STEP_CHARACTERS,   /* last: merge the characters of the piece */
    LLM_STEP_BYTES,        /* last: merge the bytes of the piece */
    LLM_STEP_CUT_QWEN2,    /* words by Qwen2's regular expression */
    LLM_STEP_NFC           /* normalise to NFC: a are its characters, b its pairs (importer/nfc_table.py) */
};

typedef struct {
    uint32_t kind;
    llm_span a, b;
} llm_step;

typedef struct {
    llm_span text;
    uint32_t id, late;
} llm_added;

typedef struct {
    uint32_t code, unit;
} llm_unit;

typedef struct {
    llm_span text;
    uint32_t id;
} llm_word;

#endif
