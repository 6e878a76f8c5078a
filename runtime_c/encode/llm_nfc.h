/* SPDX-License-Identifier: Apache-2.0
 * Normalisation form NFC (https://unicode.org/reports/tr15): characters are decomposed, marks are sorted by their
 * combining class, and both are composed again. The tables are in the tokenizer's blob. */
#ifndef LLM_NFC_H
#define LLM_NFC_H

#include "llm_words.h"

/* Result of the normalisation. A starter is a character of class 0; marks are the characters after it. */
typedef struct {
    string forms, pairs;
    uint8_t *starter; /* last one, or NULL */
    uint8_t *marks, *end;
} composer;

enum { FORM_CODE, FORM_FIRST, FORM_SECOND, FORM_PARTS };
#define FORM_BYTES (3 * FORM_PARTS)
#define FORM_IS_CLASS 0xFFFFFFu
#define GROWTH 3        /* a character decomposes to at most this many times its bytes */
#define FORMS_FROM 0xCC /* first byte of U+0300: characters before it do not change */

enum {
    HANGUL_S = 0xAC00,
    HANGUL_L = 0x1100,
    HANGUL_V = 0x1161,
    HANGUL_T = 0x11A7,
    HANGUL_LS = 19,
    HANGUL_VS = 21,
    HANGUL_TS = 28
};

static size_t put_character(uint8_t *to, uint32_t code) {
    if (code < 0x80) {
        to[0] = (uint8_t)code;
        return 1;
    }
    size_t n = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--) {
        to[i] = (uint8_t)(0x80 | (code & 0x3F));
        code >>= 6;
    }
    to[0] = (uint8_t)(0xF00u >> n | code);
    return n;
}

static uint32_t form_part(const uint8_t *form, size_t part) {
    form += 3 * part;
    return form[0] | (uint32_t)form[1] << 8 | (uint32_t)form[2] << 16;
}

/* The form of a character that has one, or NULL. */
static const uint8_t *form_of(string forms, uint32_t code) {
    size_t low = 0, high = forms.n / FORM_BYTES;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const uint8_t *form = forms.at + FORM_BYTES * middle;
        uint32_t found = form_part(form, FORM_CODE);
        if (found == code) return form;
        if (found < code)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

static uint32_t class_of(string forms, uint32_t code) {
    const uint8_t *form = form_of(forms, code);
    return form != NULL && form_part(form, FORM_SECOND) == FORM_IS_CLASS ? form_part(form, FORM_FIRST) : 0;
}

/* What two characters compose to, or 0. */
static uint32_t composed(const composer *c, uint32_t first, uint32_t second) {
    if (first - HANGUL_L < HANGUL_LS && second - HANGUL_V < HANGUL_VS)
        return HANGUL_S + ((first - HANGUL_L) * HANGUL_VS + second - HANGUL_V) * HANGUL_TS;
    if (first - HANGUL_S < HANGUL_LS * HANGUL_VS * HANGUL_TS && (first - HANGUL_S) % HANGUL_TS == 0 &&
        second - HANGUL_T - 1 < HANGUL_TS - 1) {
        return first + second - HANGUL_T;
    }
    size_t low = 0, high = c->pairs.n / 2;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const uint8_t *index = c->pairs.at + 2 * middle;
        const uint8_t *form = c->forms.at + (size_t)FORM_BYTES * (index[0] | (uint32_t)index[1] << 8);
        uint32_t left = form_part(form, FORM_FIRST), right = form_part(form, FORM_SECOND);
        if (left == first && right == second) return form_part(form, FORM_CODE);
        if (left < first || (left == first && right < second))
            low = middle + 1;
        else
            high = middle;
    }
    return 0;
}

/* The character at `at`, before the end of the result. */
static size_t character_at(const composer *c, const uint8_t *at, uint32_t *code) {
    return character((string){at, (size_t)(c->end - at)}, code);
}

/* Moves what is from `at` on to `to`. */
static void shift_text(composer *c, const uint8_t *at, uint8_t *to) {
    memmove(to, at, (size_t)(c->end - at));
    c->end += to - at;
}

/* Composes the starter with each of its marks that no mark of the same or a higher class separates from it. */
static void compose_marks(composer *c) {
    uint32_t base, code, last = 0;
    if (c->starter == NULL || c->marks == c->end) return;
    character_at(c, c->starter, &base);
    uint8_t *at = c->marks;
    while (at < c->end) {
        size_t n = character_at(c, at, &code);
        uint32_t class = class_of(c->forms, code), one = last < class ? composed(c, base, code) : 0;
        if (one == 0) {
            last = class;
            at += n;
            continue;
        }
        shift_text(c, at + n, at);
        uint8_t bytes[4];
        n = put_character(bytes, one);
        uint8_t *marks = c->starter + n;
        at += marks - c->marks;
        shift_text(c, c->marks, marks);
        memcpy(c->starter, bytes, n);
        c->marks = marks;
        base = one;
    }
}

/* Adds a character that does not decompose. */
static void append(composer *c, uint32_t code) {
    uint32_t class = class_of(c->forms, code), other;
    uint8_t bytes[4];
    size_t n = put_character(bytes, code);
    if (class > 0) {
        uint8_t *at = c->marks;
        while (at < c->end) {
            size_t length = character_at(c, at, &other);
            if (class_of(c->forms, other) > class) break;
            at += length;
        }
        shift_text(c, at, at + n);
        memcpy(at, bytes, n);
        return;
    }
    compose_marks(c);
    if (c->starter != NULL && c->marks == c->end) {
        character_at(c, c->starter, &other);
        uint32_t one = composed(c, other, code);
        if (one != 0) {
            c->marks = c->end = c->starter + put_character(c->starter, one);
            return;
        }
    }
    memcpy(c->end, bytes, n);
    c->starter = c->end;
    c->marks = c->end += n;
}

static void append_decomposed(composer *c, uint32_t code) {
    uint32_t rest[4], count = 0;
    const uint8_t *form;
    while ((form = form_of(c->forms, code)) != NULL && form_part(form, FORM_SECOND) != FORM_IS_CLASS) {
        if (form_part(form, FORM_SECOND) != 0 && count < sizeof rest / sizeof *rest)
            rest[count++] = form_part(form, FORM_SECOND);
        code = form_part(form, FORM_FIRST);
    }
    append(c, code);
    while (count > 0) append(c, rest[--count]);
}

#endif
