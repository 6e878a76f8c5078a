/* SPDX-License-Identifier: Apache-2.0
 * Text to token ids on the host; what the model's tokenizer does with a text is in the tables that
 * the compiler made of it, blobs/tokenizer.bin. */
#ifndef SC_ENCODE_H
#define SC_ENCODE_H

#include <stddef.h>
#include <stdint.h>

#define SC_TOKENIZER_MAGIC 0x31544353u /* "SCT1" */
#define SC_NO_ID 0xFFFFFFFFu

/* Where something lies, in bytes from the beginning of the tables, and how many of it there are. */
typedef struct {
    uint32_t at, count;
} sc_span;

/* The beginning of the tables: 32-bit little-endian words. */
typedef struct {
    uint32_t magic;
    uint32_t vocab;    /* ids are below it */
    uint32_t first;    /* the id that every prompt begins with, or SC_NO_ID */
    uint32_t unknown;  /* the id of characters that have none, or SC_NO_ID: they are left out */
    uint32_t fuse;     /* 1: neighbours without an id share one */
    sc_span refusal;   /* bytes: why texts cannot be encoded here; none where they can */
    sc_span empty;     /* words: the ids of a text without tokens */
    sc_span before;    /* words: ids in front of any other text's */
    sc_span steps;     /* sc_step: from the text to pieces of it, the last says what a piece is made of */
    sc_span added;     /* sc_added: texts that are tokens */
    sc_span units;     /* sc_unit, by code: characters (or bytes) that are tokens */
    sc_span fallbacks; /* words: the ids of 256 bytes, for characters without one; or nothing */
    sc_span merges;    /* sc_merge, by left and right */
    sc_span words;     /* sc_word, by text: pieces that are tokens as a whole */
} sc_tokenizer;

enum sc_step_kind {
    SC_ADDED_EARLY,  /* cut out the added tokens that are looked for in the text as given */
    SC_ADDED_LATE,   /* and those that are looked for after the steps above */
    SC_PREPEND,      /* text a in front */
    SC_REPLACE,      /* each text a by text b */
    SC_PREFIX,       /* text a in front, unless the piece begins with it */
    SC_PREFIX_FIRST, /* the same, and only where the whole text begins */
    SC_CUT_BEFORE,   /* each text a begins a piece */
    SC_CUT_DIGIT,    /* each digit is a piece */
    SC_CUT_DIGITS,   /* each run of digits is a piece */
    SC_CUT_GPT2,     /* words as GPT-2 has them */
    SC_CUT_LLAMA3,   /* words as LLaMA 3 has them */
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

/* The ids of a prompt, allocated; NULL without memory.  The text has to be UTF-8, and one that is not
 * empty needs tables without a refusal. */
uint32_t *sc_encode(const sc_tokenizer *t, const char *text, size_t bytes, size_t *count);

int sc_is_utf8(const char *text, size_t bytes);

#endif
