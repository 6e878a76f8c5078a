/* SPDX-License-Identifier: Apache-2.0
 * Text to token ids, exactly as the library `tokenizers` gives them. Needs no heap and no C library except
 * memcpy, memmove and memcmp.
 *
 * Steps rewrite the text and cut it into pieces. Each step works on one piece of the step before it, and all
 * later steps finish that piece before its next one. Then byte-pair merges are applied to the piece by rank;
 * of equal ranks, the leftmost first.
 *
 * How ids[room] is used:
 *
 *   | ids so far | units of a piece | free | text that a step has rewritten, and not used yet | ends of steps |
 *
 * Text is used from its beginning, and no byte becomes more words than llm_encode_room() counts for it. So
 * the ids can take the place of the text.
 *
 * In a compiled directory there are only the steps that its tokenizer takes. */
#include "llm.h"
#include "llm_characters.h"
#include "llm_tokenizer.h"

/* Not from <string.h>: compilers without a C library have none. */
void *memcpy(void *to, const void *from, size_t bytes);
void *memmove(void *to, const void *from, size_t bytes);
int memcmp(const void *a, const void *b, size_t bytes);

typedef struct {
    const uint8_t *at;
    size_t n;
} string;

typedef struct {
    const llm_tokenizer *t;
    const llm_step *steps;
    size_t last;    /* index of the step that makes units */
    size_t rewrite; /* index of the first step that rewrites text; later steps find their text in `ids` */
    const uint8_t *text;
    size_t text_at; /* bytes of `text` that have been used */
    uint32_t *ids;
    size_t count; /* ids so far */
    size_t units; /* words after them: units of the current piece */
    size_t tail;  /* first byte, counted from `ids`, of the rewritten text */
    size_t tail_end;
    uint32_t *ends; /* where the text of each step that cuts ends: as text_at, or as tail */
    uint32_t unit;  /* the unit that was added last */
    int first;      /* nothing has been used yet: the current piece begins the text */
    int full;       /* `ids` was too small */
} job;

static const void *table(const llm_tokenizer *t, llm_span span) { return (const uint8_t *)t + span.at; }

static string text_of(const llm_tokenizer *t, llm_span span) { return (string){table(t, span), span.count}; }

static int begins(string s, string start) {
    if (s.n < start.n) {
        return 0;
    }
    for (size_t i = 0; i < start.n; i++) {
        if (s.at[i] != start.at[i]) {
            return 0;
        }
    }
    return 1;
}

static string from(string s, size_t at) { return (string){s.at + at, s.n - at}; }

/* ---- characters ---- */

/* First character of a non-empty UTF-8 text; returns its bytes. */
static size_t character(string s, uint32_t *code) {
    uint32_t c = s.at[0];
    size_t n = c < 0x80 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
    if (n > 1) {
        c &= 0x7Fu >> n;
        for (size_t i = 1; i < n; i++) {
            c = c << 6 | (s.at[i] & 0x3Fu);
        }
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
        if (n == 0 || n > s.n) {
            return 0;
        }
        for (size_t i = 1; i < n; i++) {
            if ((s.at[i] & 0xC0) != 0x80) {
                return 0;
            }
        }
        character(s, &code);
        uint32_t least = n == 1 ? 0 : n == 2 ? 0x80 : n == 3 ? 0x800 : 0x10000;
        if (code < least || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) {
            return 0;
        }
        s = from(s, n);
    }
    return 1;
}

/* ranges: sorted; each is its first code << LLM_RANGE_BITS, and how many codes follow. */
static int within(uint32_t code, const uint32_t *ranges, size_t count) {
    size_t low = 0, high = count; /* the range begins at or before low - 1 */
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (ranges[middle] >> LLM_RANGE_BITS <= code) {
            low = middle + 1;
        } else {
            high = middle;
        }
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
    if (s.n == 0) {
        return END;
    }
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
    while (most-- > 0 && classify(from(s, at), &code, &n) == wanted) {
        at += n;
    }
    return at;
}

/* ---- splits: length of the first piece of s, which is not empty ---- */

/* 's 't 're 've 'm 'll 'd, or 0. With any_case, the long s counts as s. */
static size_t contraction(string s, int any_case) {
    if (s.n < 2 || s.at[0] != '\'') {
        return 0;
    }
    uint8_t a = s.at[1], b = s.n > 2 ? s.at[2] : 0;
    if (any_case) {
        if (a == 0xC5 && b == 0xBF) {
            return 3;
        }
        a |= 0x20; /* lower case, of letters */
        b |= 0x20;
    }
    if (a == 's' || a == 't' || a == 'm' || a == 'd') {
        return 2;
    }
    return (a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}

/* \s+(?!\S)|\s+ : all spaces; without the last one if text follows. */
static size_t spaces(string s) {
    size_t all = run_of(SPACE, s, SIZE_MAX), at = 0, n = 0;
    uint32_t code;
    if (all == s.n) {
        return all;
    }
    while (at + (n = character(from(s, at), &code)) < all) {
        at += n;
    }
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
    if (c == LETTER || c == NUMBER || code == '\r' || code == '\n') {
        lead = 0;
    }
    run = run_of(LETTER, from(s, lead), SIZE_MAX);
    return run > 0 ? lead + run : 0;
}

static size_t line_ends(string s) {
    size_t n = 0;
    while (n < s.n && (s.at[n] == '\r' || s.at[n] == '\n')) {
        n++;
    }
    return n;
}

/* (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+
 * |\s+(?!\S)|\s+ , with up to `numbers` \p{N} in a piece: 3 for LLaMA 3, 1 for Qwen2 */
static size_t cut_llama3(string s, size_t numbers) {
    size_t n;
    if ((n = contraction(s, 1)) > 0 || (n = led_letters(s)) > 0 || (n = run_of(NUMBER, s, numbers)) > 0) {
        return n;
    }
    if ((n = spaced_run(OTHER, s)) > 0) {
        return n + line_ends(from(s, n));
    }
    for (n = run_of(SPACE, s, SIZE_MAX); n > 0; n--) {
        if (s.at[n - 1] == '\r' || s.at[n - 1] == '\n') {
            return n;
        }
    }
    return spaces(s);
}

static size_t cut_digits(string s, int alone) {
    uint32_t code;
    size_t at = character(s, &code), n;
    int digit = WITHIN(code, digit_ranges);
    if (digit && alone) {
        return at;
    }
    while (at < s.n && (n = character(from(s, at), &code), WITHIN(code, digit_ranges) == digit)) {
        at += n;
    }
    return at;
}

static size_t cut_before(string s, string start) {
    for (size_t at = 1; at < s.n; at++) {
        if (begins(from(s, at), start)) {
            return at;
        }
    }
    return s.n;
}

/* ---- NFC: characters are decomposed, marks sorted by their class, and both composed again ---- */

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
#define FORMS_FROM 0xCC /* first byte of U+0300: characters before it stay as they are */

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
        if (found == code) {
            return form;
        }
        if (found < code) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return NULL;
}

static uint32_t class_of(string forms, uint32_t code) {
    const uint8_t *form = form_of(forms, code);
    return form != NULL && form_part(form, FORM_SECOND) == FORM_IS_CLASS ? form_part(form, FORM_FIRST) : 0;
}

/* What two characters compose to, or 0. */
static uint32_t composed(const composer *c, uint32_t first, uint32_t second) {
    if (first - HANGUL_L < HANGUL_LS && second - HANGUL_V < HANGUL_VS) {
        return HANGUL_S + ((first - HANGUL_L) * HANGUL_VS + second - HANGUL_V) * HANGUL_TS;
    }
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
        if (left == first && right == second) {
            return form_part(form, FORM_CODE);
        }
        if (left < first || (left == first && right < second)) {
            low = middle + 1;
        } else {
            high = middle;
        }
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
    if (c->starter == NULL || c->marks == c->end) {
        return;
    }
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
            if (class_of(c->forms, other) > class) {
                break;
            }
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
        if (form_part(form, FORM_SECOND) != 0 && count < sizeof rest / sizeof *rest) {
            rest[count++] = form_part(form, FORM_SECOND);
        }
        code = form_part(form, FORM_FIRST);
    }
    append(c, code);
    while (count > 0) {
        append(c, rest[--count]);
    }
}

/* ---- merging ---- */

/* A word of a piece, between units and ids: the index of the merge of its id with the next one, or this bit
 * and the id, if the two do not merge. So the best merge is the smallest word. */
#define ALONE 0x80000000u

enum merge_part { LEFT, RIGHT, MERGED, MERGE_PARTS };

static uint32_t number(const llm_tokenizer *t, llm_span span, size_t i) {
    const void *numbers = table(t, span);
    return t->wide ? ((const uint32_t *)numbers)[i] : ((const uint16_t *)numbers)[i];
}

static uint32_t merge_part(const llm_tokenizer *t, size_t merge, enum merge_part part) {
    return number(t, t->merges, MERGE_PARTS * merge + part);
}

static uint32_t id_of(const llm_tokenizer *t, uint32_t word) {
    return word & ALONE ? word & ~ALONE : merge_part(t, word, LEFT);
}

/* The word of an id that is followed by `next`. */
static uint32_t word_of(const llm_tokenizer *t, uint32_t id, uint32_t next) {
    size_t low = 0, high = t->pairs.count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        uint32_t merge = number(t, t->pairs, middle), left = merge_part(t, merge, LEFT);
        uint32_t right = merge_part(t, merge, RIGHT);
        if (left == id && right == next) {
            return merge;
        }
        if (left < id || (left == id && right < next)) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return ALONE | id;
}

/* Applies a merge wherever it is the best one, from left to right; returns how many words are left. */
static size_t merge_everywhere(const llm_tokenizer *t, uint32_t *words, size_t n, uint32_t merge) {
    size_t to = 0;
    int best = 1;
    for (size_t at = 0; at < n; at++) {
        uint32_t word = words[at];
        if (word == merge && best) {
            uint32_t id = merge_part(t, merge, MERGED);
            at++; /* the right one is gone */
            word = at + 1 < n ? word_of(t, id, id_of(t, words[at + 1])) : ALONE | id;
            if (to > 0) {
                words[to - 1] = word_of(t, id_of(t, words[to - 1]), id);
            }
            /* a merge of the new id may come before other merges like this one */
            best = word > merge && (to == 0 || words[to - 1] > merge);
        }
        words[to++] = word;
    }
    return to;
}

/* Makes ids of n > 0 units; returns how many. */
static size_t merge_all(const llm_tokenizer *t, uint32_t *words, size_t n) {
    for (size_t i = 0; i + 1 < n; i++) {
        words[i] = word_of(t, words[i], words[i + 1]);
    }
    words[n - 1] |= ALONE;
    for (;;) {
        uint32_t best = ALONE;
        for (size_t i = 0; i < n; i++) {
            best = words[i] < best ? words[i] : best;
        }
        if (best == ALONE) {
            break;
        }
        n = merge_everywhere(t, words, n, best);
    }
    for (size_t i = 0; i < n; i++) {
        words[i] &= ~ALONE;
    }
    return n;
}

/* ---- text and ids ---- */

/* Bytes of the text of step i that have been used, or where the rest begins in `ids`. */
static size_t *place(job *j, size_t i) { return i > j->rewrite ? &j->tail : &j->text_at; }

/* The next n bytes of the text of step i. */
static string next(job *j, size_t i, size_t n) {
    const uint8_t *text = i > j->rewrite ? (const uint8_t *)j->ids : j->text;
    return (string){text + *place(j, i), n};
}

/* Whether `bytes` more fit between ids and rewritten text. */
static int fits(job *j, size_t bytes) {
    if (bytes > j->tail - (j->count + j->units) * sizeof *j->ids) {
        j->full = 1;
    }
    return !j->full;
}

static void emit(job *j, uint32_t id) {
    if (fits(j, sizeof id)) {
        j->ids[j->count++] = id;
    }
}

static void end_piece(job *j) {
    if (j->units > 0) {
        j->count += merge_all(j->t, j->ids + j->count, j->units);
        j->units = 0;
    }
}

/* ---- units ---- */

static uint32_t find_unit(const llm_tokenizer *t, uint32_t code) {
    const llm_unit *units = table(t, t->units);
    size_t low = 0, high = t->units.count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (units[middle].code < code) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < t->units.count && units[low].code == code ? units[low].unit : LLM_NO_ID;
}

static uint32_t find_word(const llm_tokenizer *t, string s) {
    const llm_word *words = table(t, t->words);
    size_t low = 0, high = t->words.count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        string word = text_of(t, words[middle].text);
        int order = memcmp(word.at, s.at, word.n < s.n ? word.n : s.n);
        if (order == 0 && word.n == s.n) {
            return words[middle].id;
        }
        if (order < 0 || (order == 0 && word.n < s.n)) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return LLM_NO_ID;
}

static void add(job *j, uint32_t unit) {
    uint32_t id = unit & ~LLM_UNIT_STARTS;
    if (unit != id && id != j->unit) {
        end_piece(j);
    }
    if (fits(j, sizeof id)) {
        j->ids[j->count + j->units++] = id;
        j->unit = id;
    }
}

/* Whether each byte of s has a unit of its own. */
static int has_fallbacks(const llm_tokenizer *t, string s) {
    const uint32_t *units = table(t, t->fallbacks);
    size_t known = 0;
    while (t->fallbacks.count > 0 && known < s.n && units[s.at[known]] != LLM_NO_ID) {
        known++;
    }
    return known == s.n;
}

/* Ids of the next n > 0 bytes of text. */
static void encode_piece(job *j, size_t n) {
    const llm_tokenizer *t = j->t;
    const uint32_t *fallbacks = table(t, t->fallbacks);
    const int bytes = j->steps[j->last].kind == LLM_STEP_BYTES;
    size_t *at = place(j, j->last);
    uint32_t unit = find_word(t, next(j, j->last, n));
    if (unit != LLM_NO_ID) {
        *at += n;
        emit(j, unit);
        return;
    }
    int unknown = 0; /* pending: as in the library, it is added before the next known unit */
    while (n > 0 && !j->full) {
        string s = next(j, j->last, n);
        uint32_t code = s.at[0];
        size_t length = bytes ? 1 : character(s, &code);
        n -= length;
        unit = find_unit(t, code);
        if (unit == LLM_NO_ID && has_fallbacks(t, (string){s.at, length})) {
            while (length-- > 0) { /* first the byte is read: its unit may take its place */
                unit = fallbacks[next(j, j->last, 1).at[0]];
                *at += 1;
                add(j, unit);
            }
            continue;
        }
        *at += length;
        if (unknown && (unit != LLM_NO_ID || !t->fuse)) {
            add(j, t->unknown);
            unknown = 0;
        }
        if (unit != LLM_NO_ID) {
            add(j, unit);
        } else {
            unknown = t->unknown != LLM_NO_ID;
        }
    }
    if (unknown) {
        add(j, t->unknown);
    }
    end_piece(j);
}

/* ---- steps ---- */

/* Puts `front` before the next n bytes of rewritten text; returns how many there are then. */
static size_t with_front(job *j, string front, size_t n) {
    if (!fits(j, front.n)) {
        return 0;
    }
    j->tail -= front.n;
    memcpy((uint8_t *)j->ids + j->tail, front.at, front.n);
    return front.n + n;
}

/* Writes the next n bytes from the end of the ids on, then moves them to where they ended before. */
static size_t with_replaced(job *j, string old, string new, size_t n) {
    uint8_t *bytes = (uint8_t *)j->ids, *start = bytes + j->count * sizeof *j->ids, *to = start;
    string s = next(j, SIZE_MAX, n);
    while (s.n > 0) {
        if (!begins(s, old)) {
            *to++ = *s.at;
            s = from(s, 1);
            continue;
        }
        s = from(s, old.n);
        if (new.n > (size_t)(s.at - to)) {
            j->full = 1;
            return 0;
        }
        memcpy(to, new.at, new.n);
        to += new.n;
    }
    size_t replaced = (size_t)(to - start);
    j->tail += n - replaced;
    memmove(bytes + j->tail, start, replaced);
    return replaced;
}

/* Like with_replaced, for the normalisation form NFC. */
static size_t with_nfc(job *j, string forms, string pairs, size_t n) {
    uint8_t *bytes = (uint8_t *)j->ids, *start = bytes + j->count * sizeof *j->ids;
    string s = next(j, SIZE_MAX, n);
    size_t plain = 0;
    while (plain < n && s.at[plain] < FORMS_FROM) {
        plain++;
    }
    if (plain == n) {
        return n;
    }
    composer c = {.forms = forms, .pairs = pairs, .starter = NULL, .marks = start, .end = start};
    while (s.n > 0) {
        uint32_t code;
        size_t length = character(s, &code);
        s = from(s, length);
        if (GROWTH * length > (size_t)(s.at - c.end)) {
            j->full = 1;
            return 0;
        }
        append_decomposed(&c, code);
    }
    compose_marks(&c);
    n = (size_t)(c.end - start);
    j->tail = (size_t)(s.at - bytes) - n;
    memmove(bytes + j->tail, start, n);
    return n;
}

/* The longest added token at the start of s (of equals the first), or NULL. */
static const llm_added *added_at(const llm_tokenizer *t, string s, uint32_t late) {
    const llm_added *added = table(t, t->added), *best = NULL;
    string starts = text_of(t, t->added_starts);
    size_t i = 0;
    while (i < starts.n && starts.at[i] != s.at[0]) {
        i++;
    }
    for (size_t k = i < starts.n ? 0 : t->added.count; k < t->added.count; k++) {
        if (added[k].late == late && begins(s, text_of(t, added[k].text)) &&
            (best == NULL || added[k].text.count > best->text.count)) {
            best = &added[k];
        }
    }
    return best;
}

/* Uses the added tokens at the start of the next n bytes; returns how many bytes are before the next one. */
static size_t until_added(job *j, size_t i, size_t n) {
    uint32_t late = j->steps[i].kind == LLM_STEP_ADDED_LATE;
    string s = next(j, i, n);
    const llm_added *token;
    while (s.n > 0 && (token = added_at(j->t, s, late)) != NULL) {
        s = from(s, token->text.count);
        *place(j, i) += token->text.count;
        emit(j, token->id);
        j->first = 0;
    }
    n = 0;
    while (n < s.n && added_at(j->t, from(s, n), late) == NULL) {
        n++;
    }
    return n;
}

/* Step i takes the next n > 0 bytes of its text and rewrites them, or cuts off their first piece. Returns the
 * bytes of the result. */
static size_t apply(job *j, size_t i, size_t n) {
    const llm_step *step = &j->steps[i];
    if (i == j->rewrite) { /* from here on the text is in `ids` */
        if (!fits(j, n)) {
            return 0;
        }
        j->tail -= n;
        memcpy((uint8_t *)j->ids + j->tail, j->text + j->text_at, n);
        j->text_at += n;
    }
    switch (step->kind) {
#ifndef LLM_WITHOUT_PREPEND
    case LLM_STEP_PREPEND:
        return with_front(j, text_of(j->t, step->a), n);
#endif
#ifndef LLM_WITHOUT_REPLACE
    case LLM_STEP_REPLACE:
        return with_replaced(j, text_of(j->t, step->a), text_of(j->t, step->b), n);
#endif
#ifndef LLM_WITHOUT_NFC
    case LLM_STEP_NFC:
        return with_nfc(j, text_of(j->t, step->a), text_of(j->t, step->b), n);
#endif
#ifndef LLM_WITHOUT_PREFIX
    case LLM_STEP_PREFIX:
    case LLM_STEP_PREFIX_FIRST:
        return begins(next(j, SIZE_MAX, n), text_of(j->t, step->a)) ||
                       (step->kind == LLM_STEP_PREFIX_FIRST && !j->first)
                   ? n
                   : with_front(j, text_of(j->t, step->a), n);
#endif
    default:
        break;
    }
    j->ends[i] = (uint32_t)(*place(j, i) + n);
    string s = next(j, i, n);
    switch (step->kind) {
#ifndef LLM_WITHOUT_ADDED
    case LLM_STEP_ADDED_EARLY:
    case LLM_STEP_ADDED_LATE:
        return until_added(j, i, n);
#endif
#ifndef LLM_WITHOUT_CUT_BEFORE
    case LLM_STEP_CUT_BEFORE:
        return cut_before(s, text_of(j->t, step->a));
#endif
#ifndef LLM_WITHOUT_CUT_DIGITS
    case LLM_STEP_CUT_DIGIT:
    case LLM_STEP_CUT_DIGITS:
        return cut_digits(s, step->kind == LLM_STEP_CUT_DIGIT);
#endif
#ifndef LLM_WITHOUT_CUT_GPT2
    case LLM_STEP_CUT_GPT2:
        return cut_gpt2(s);
#endif
#ifndef LLM_WITHOUT_CUT_LLAMA3
    case LLM_STEP_CUT_LLAMA3:
    case LLM_STEP_CUT_QWEN2:
        return cut_llama3(s, step->kind == LLM_STEP_CUT_QWEN2 ? 1 : 3);
#endif
    default:
        return s.n;
    }
}

static int rewrites(const llm_step *step) {
    return step->kind == LLM_STEP_PREPEND || step->kind == LLM_STEP_REPLACE ||
           step->kind == LLM_STEP_PREFIX || step->kind == LLM_STEP_PREFIX_FIRST || step->kind == LLM_STEP_NFC;
}

static void encode_text(job *j, size_t n) {
    size_t i = 0;
    while (!j->full) {
        while (i < j->last && n > 0) {
            n = apply(j, i++, n);
        }
        if (n > 0) {
            encode_piece(j, n);
        }
        j->first = 0;
        do { /* the innermost step that has cut text off and has more */
            if (i == 0) {
                return;
            }
            i--;
        } while (rewrites(&j->steps[i]) || (n = j->ends[i] - *place(j, i)) == 0);
    }
}

/* ---- interface ---- */

static int usable(const llm_tokenizer *t) { return t->magic == LLM_TOKENIZER_MAGIC; }

size_t llm_encode_room(const llm_tokenizer *t, size_t bytes) {
    return usable(t) ? t->room_per_byte * bytes + t->room_more : 0;
}

static void emit_all(job *j, llm_span ids) {
    const uint32_t *id = table(j->t, ids);
    for (size_t i = 0; i < ids.count; i++) {
        emit(j, id[i]);
    }
}

int llm_encode(const llm_tokenizer *t, const char *utf8, size_t bytes, uint32_t *ids, size_t room) {
    if (!usable(t) || (bytes > 0 && t->refusal.count > 0)) {
        return LLM_ERROR_TOKENIZER;
    }
    /* so that counts and places fit in an int and in `ends` */
    const size_t most = INT32_MAX / sizeof *ids;
    room = room < most ? room : most;
    job j = {.t = t, .steps = table(t, t->steps), .text = (const uint8_t *)utf8, .ids = ids, .first = 1};
    if (!is_utf8((string){j.text, bytes})) {
        return LLM_ERROR_UTF8;
    }
    if (bytes > 0) {
        if (room < t->steps.count || bytes > most) {
            return LLM_ERROR_ROOM;
        }
        j.last = t->steps.count - 1;
        while (j.rewrite < j.last && !rewrites(&j.steps[j.rewrite])) {
            j.rewrite++;
        }
        j.ends = ids + room - t->steps.count;
        j.tail = (room - t->steps.count) * sizeof *ids;
        emit_all(&j, t->before);
        encode_text(&j, bytes);
        if (j.full) {
            return LLM_ERROR_ROOM;
        }
    }
    j.tail = room * sizeof *ids;
    if (bytes == 0 || j.count == t->before.count) { /* no tokens: the ids of an empty text */
        j.count = 0;
        emit_all(&j, t->empty);
    } else if (t->first != LLM_NO_ID && ids[0] != t->first && fits(&j, sizeof *ids)) {
        memmove(ids + 1, ids, j.count++ * sizeof *ids);
        ids[0] = t->first;
    }
    return j.full ? LLM_ERROR_ROOM : (int)j.count;
}
