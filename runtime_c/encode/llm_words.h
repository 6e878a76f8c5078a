/* SPDX-License-Identifier: Apache-2.0
 * Characters of UTF-8 texts, their classes, and the words that a text is divided into before byte-pair merges. */
#ifndef LLM_WORDS_H
#define LLM_WORDS_H

#include "llm.h"
#include "llm_characters.h"

/* Not from <string.h>: compilers without a C library have none. */
void *memcpy(void *to, const void *from, size_t bytes);
void *memmove(void *to, const void *from, size_t bytes);
int memcmp(const void *a, const void *b, size_t bytes);

typedef struct {
    const uint8_t *at;
    size_t n;
} string;

static int begins(string s, string start) {
    if (s.n < start.n) return 0;
    for (size_t i = 0; i < start.n; i++)
        if (s.at[i] != start.at[i]) return 0;
    return 1;
}

static string from(string s, size_t at) { return (string){s.at + at, s.n - at}; }

/* First character of a non-empty UTF-8 text; returns its bytes. */
static size_t character(string s, uint32_t *code) {
    uint32_t c = s.at[0];
    size_t n = c < 0x80 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
    if (n > 1) {
        c &= 0x7Fu >> n;
        for (size_t i = 1; i < n; i++) c = c << 6 | (s.at[i] & 0x3Fu);
    }
    *code = c;
    return n;
}

static int is_utf8(string s) {
    while (s.n > 0) {
        uint32_t lead = s.at[0], code;
        size_t n = lead < 0x80   ? 1
                   : lead < 0xC0 ? 0
                   : lead < 0xE0 ? 2
                   : lead < 0xF0 ? 3
                   : lead < 0xF8 ? 4
                                 : 0;
        if (n == 0 || n > s.n) return 0;
        for (size_t i = 1; i < n; i++)
            if ((s.at[i] & 0xC0) != 0x80) return 0;
        character(s, &code);
        uint32_t least = n == 1 ? 0 : n == 2 ? 0x80 : n == 3 ? 0x800 : 0x10000;
        if (code < least || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) return 0;
        s = from(s, n);
    }
    return 1;
}

/* ranges: sorted; each is its first code << LLM_RANGE_BITS, and how many codes follow. */
static int within(uint32_t code, const uint32_t *ranges, size_t count) {
    size_t low = 0, high = count; /* the range begins at or before low - 1 */
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (ranges[middle] >> LLM_RANGE_BITS <= code)
            low = middle + 1;
        else
            high = middle;
    }
    return low > 0 &&
           code - (ranges[low - 1] >> LLM_RANGE_BITS) <= (ranges[low - 1] & ((1u << LLM_RANGE_BITS) - 1));
}

#define WITHIN(code, ranges) within(code, ranges, sizeof(ranges) / sizeof(ranges)[0])

enum character_class { OTHER, LETTER, NUMBER, SPACE, END };

/* Class of the first character of s; END if s is empty (*n is 0). */
static enum character_class classify(string s, uint32_t *code, size_t *n) {
    *code = 0;
    *n = 0;
    if (s.n == 0) return END;
    *n = character(s, code);
    if (*code < 0x80) {
        uint32_t lower = *code | 0x20;
        return lower >= 'a' && lower <= 'z'                       ? LETTER
               : *code >= '0' && *code <= '9'                     ? NUMBER
               : *code == ' ' || (*code >= '\t' && *code <= '\r') ? SPACE
                                                                  : OTHER;
    }
    return WITHIN(*code, letter_ranges)   ? LETTER
           : WITHIN(*code, number_ranges) ? NUMBER
           : WITHIN(*code, space_ranges)  ? SPACE
                                          : OTHER;
}

static size_t run_of(enum character_class wanted, string s, size_t most) {
    size_t at = 0, n;
    uint32_t code;
    while (most-- > 0 && classify(from(s, at), &code, &n) == wanted) at += n;
    return at;
}

/* ---- splits: length of the first piece of s, which is not empty ---- */

/* 's 't 're 've 'm 'll 'd, or 0. With any_case, the long s counts as s. */
static size_t contraction(string s, int any_case) {
    if (s.n < 2 || s.at[0] != '\'') return 0;
    uint8_t a = s.at[1], b = s.n > 2 ? s.at[2] : 0;
    if (any_case) {
        if (a == 0xC5 && b == 0xBF) return 3;
        a |= 0x20; /* lower case, of letters */
        b |= 0x20;
    }
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    return (a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}

/* \s+(?!\S)|\s+ : all spaces; without the last one if text follows. */
static size_t spaces(string s) {
    size_t all = run_of(SPACE, s, SIZE_MAX), at = 0, n = 0;
    uint32_t code;
    if (all == s.n) return all;
    while (at + (n = character(from(s, at), &code)) < all) at += n;
    return at > 0 ? at : all;
}

/* An optional space and a run of one class, or 0. */
static size_t spaced_run(enum character_class wanted, string s) {
    size_t space = s.at[0] == ' ', run = run_of(wanted, from(s, space), SIZE_MAX);
    return run > 0 ? space + run : 0;
}

/* 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ */
static size_t cut_gpt2(string s) {
    size_t n;
    if ((n = contraction(s, 0)) > 0 || (n = spaced_run(LETTER, s)) > 0 || (n = spaced_run(NUMBER, s)) > 0 ||
        (n = spaced_run(OTHER, s)) > 0) {
        return n;
    }
    return spaces(s);
}

/* [^\r\n\p{L}\p{N}]?\p{L}+ , or 0. */
static size_t led_letters(string s) {
    uint32_t code;
    size_t lead, run;
    enum character_class c = classify(s, &code, &lead);
    if (c == LETTER || c == NUMBER || code == '\r' || code == '\n') lead = 0;
    run = run_of(LETTER, from(s, lead), SIZE_MAX);
    return run > 0 ? lead + run : 0;
}

static size_t line_ends(string s) {
    size_t n = 0;
    while (n < s.n && (s.at[n] == '\r' || s.at[n] == '\n')) n++;
    return n;
}

/* (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+
 * |\s+(?!\S)|\s+ , with up to `numbers` \p{N} in a piece: 3 for LLaMA 3, 1 for Qwen2 */
static size_t cut_llama3(string s, size_t numbers) {
    size_t n;
    if ((n = contraction(s, 1)) > 0 || (n = led_letters(s)) > 0 || (n = run_of(NUMBER, s, numbers)) > 0)
        return n;
    if ((n = spaced_run(OTHER, s)) > 0) return n + line_ends(from(s, n));
    for (n = run_of(SPACE, s, SIZE_MAX); n > 0; n--)
        if (s.at[n - 1] == '\r' || s.at[n - 1] == '\n') return n;
    return spaces(s);
}

static size_t cut_digits(string s, int alone) {
    uint32_t code;
    size_t at = character(s, &code), n;
    int digit = WITHIN(code, digit_ranges);
    if (digit && alone) return at;
    while (at < s.n && (n = character(from(s, at), &code), WITHIN(code, digit_ranges) == digit)) at += n;
    return at;
}

static size_t cut_before(string s, string start) {
    for (size_t at = 1; at < s.n; at++)
        if (begins(from(s, at), start)) return at;
    return s.n;
}

#endif
