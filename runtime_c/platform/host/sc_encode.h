/* SPDX-License-Identifier: Apache-2.0
 * Text to token ids, on the host. The compiler writes the tokenizer's rules to tables in
 * blobs/tokenizer.bin. */
#ifndef SC_ENCODE_H
#define SC_ENCODE_H

#include <stddef.h>
#include <stdint.h>

#define SC_TOKENIZER_MAGIC 0x31544353u /* "SCT1" */
#define SC_NO_ID 0xFFFFFFFFu

/* Offset in bytes from the start of the tables, and number of elements. */
typedef struct {
    uint32_t at, count;
} sc_span;

/* Header of the tables: 32-bit little-endian words. */
typedef struct {
    uint32_t magic;
    uint32_t vocab;    /* number of token ids */
    uint32_t first;    /* first id of every prompt, or SC_NO_ID */
    uint32_t unknown;  /* id for unknown characters, or SC_NO_ID: they are omitted */
    uint32_t fuse;     /* 1: neighbouring unknown characters share one id */
    sc_span refusal;   /* text: why texts cannot be encoded here; empty if they can */
    sc_span empty;     /* words: ids of an empty text */
    sc_span before;    /* words: ids before any other text */
    sc_span steps;     /* sc_step: how text is split into pieces; the last step: units of a piece */
    sc_span added;     /* sc_added: strings that are tokens */
    sc_span units;     /* sc_unit, sorted by code: characters or bytes that are tokens */
    sc_span fallbacks; /* words: ids of the 256 bytes, for unknown characters; or empty */
    sc_span merges;    /* sc_merge, sorted by left and right */
    sc_span words;     /* sc_word, sorted by text: whole pieces that are tokens */
} sc_tokenizer;

enum sc_step_kind {
    SC_ADDED_EARLY,  /* split at added tokens that are searched in the original text */
    SC_ADDED_LATE,   /* split at added tokens that are searched after the previous steps */
    SC_PREPEND,      /* put text a in front */
    SC_REPLACE,      /* replace each text a by text b */
    SC_PREFIX,       /* put text a in front, unless the piece begins with it */
    SC_PREFIX_FIRST, /* SC_PREFIX, only at the beginning of the whole text */
    SC_CUT_BEFORE,   /* each text a begins a piece */
    SC_CUT_DIGIT,    /* each digit is a piece */
    SC_CUT_DIGITS,   /* each run of digits is a piece */
    SC_CUT_GPT2,     /* words by GPT-2's regular expression */
    SC_CUT_LLAMA3,   /* words by LLaMA 3's regular expression */
    SC_CHARACTERS,   /* last: merge the characters of the piece */
    SC_BYTES         /* last: merge the bytes of the piece */
};

typedef struct {
    uint32_t kind;
    sc_span a, b;
} sc_step;

typedef struct {
    sc_span text;
    uint32_t id, late;
} sc_added;

typedef struct {
    uint32_t code, id;
} sc_unit;

typedef struct {
    uint32_t left, right, rank, id;
} sc_merge;

typedef struct {
    sc_span text;
    uint32_t id;
} sc_word;

/* Returns the ids of a prompt (allocated), or NULL if out of memory. The text must be UTF-8. If it is not
 * empty, `refusal` must be. */
uint32_t *sc_encode(const sc_tokenizer *t, const char *text, size_t bytes, size_t *count);

int sc_is_utf8(const char *text, size_t bytes);

#endif
