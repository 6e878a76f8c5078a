/* SPDX-License-Identifier: Apache-2.0
 * Text to token ids, exactly as the library `tokenizers` does it. Steps split the text into pieces. Then
 * byte-pair merges are applied to a piece by rank; of equal ranks, the leftmost first. */
#include "sc_encode.h"

#include <stdlib.h>
#include <string.h>

#include "sc_unicode.h"

typedef struct {
    const uint8_t *at;
    size_t n;
} string;

typedef struct {
    const sc_tokenizer *t;
    uint32_t *ids;
    size_t count, room;
    int failed; /* out of memory */
} job;

static const void *table(const sc_tokenizer *t, sc_span span) { return (const uint8_t *)t + span.at; }

static string text_of(const sc_tokenizer *t, sc_span span) { return (string){table(t, span), span.count}; }

static int begins(string s, string start) { return s.n >= start.n && memcmp(s.at, start.at, start.n) == 0; }

static string from(string s, size_t at) { return (string){s.at + at, s.n - at}; }

/* count > 0 elements of size > 0 bytes. */
static void *allocate(job *j, size_t count, size_t size) {
    void *memory = count > SIZE_MAX / size ? NULL : malloc(count * size);
    j->failed |= memory == NULL;
    return memory;
}

static void emit(job *j, uint32_t id) {
    if (j->count == j->room) {
        size_t room = 2 * j->room + 64;
        uint32_t *ids = realloc(j->ids, room * sizeof *ids);
        if (ids == NULL) {
            j->failed = 1;
            return;
        }
        j->ids = ids;
        j->room = room;
    }
    j->ids[j->count++] = id;
}

/* ---- characters ---- */

/* First character of a non-empty UTF-8 text; returns its bytes. */
static size_t character(string s, uint32_t *code) {
    uint32_t c = s.at[0];
    size_t n = c < 0x80 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
    static const uint8_t mask[] = {0, 0x7F, 0x1F, 0x0F, 0x07};
    c &= mask[n];
    for (size_t i = 1; i < n; i++) {
        c = c << 6 | (s.at[i] & 0x3Fu);
    }
    *code = c;
    return n;
}

int sc_is_utf8(const char *text, size_t bytes) {
    string s = {(const uint8_t *)text, bytes};
    while (s.n > 0) {
        static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
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
        if (code < least[n] || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) {
            return 0;
        }
        s = from(s, n);
    }
    return 1;
}

static int within(uint32_t code, const uint32_t (*ranges)[2], size_t count) {
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (ranges[middle][1] < code) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < count && ranges[low][0] <= code;
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
    static const char *const endings[] = {"s", "t", "re", "ve", "m", "ll", "d"};
    if (s.at[0] != '\'') {
        return 0;
    }
    if (any_case && begins(from(s, 1), (string){(const uint8_t *)"\xC5\xBF", 2})) {
        return 3;
    }
    for (size_t i = 0; i < sizeof endings / sizeof endings[0]; i++) {
        size_t n = strlen(endings[i]), same = 0;
        while (same < n && same + 1 < s.n) {
            uint8_t c = s.at[1 + same];
            if (any_case && c >= 'A' && c <= 'Z') {
                c = (uint8_t)(c | 0x20);
            }
            if (c != (uint8_t)endings[i][same]) {
                break;
            }
            same++;
        }
        if (same == n) {
            return 1 + n;
        }
    }
    return 0;
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
 * |\s+(?!\S)|\s+ */
static size_t cut_llama3(string s) {
    size_t n;
    if ((n = contraction(s, 1)) > 0 || (n = led_letters(s)) > 0 || (n = run_of(NUMBER, s, 3)) > 0) {
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

/* ---- merging ---- */

#define NOTHING SIZE_MAX

typedef struct {
    uint32_t id;
    size_t before, after; /* neighbours, or NOTHING */
    int gone;             /* merged into the previous symbol */
} symbol;

typedef struct {
    uint32_t rank, id; /* of the merge */
    size_t at;         /* left symbol */
} candidate;

typedef struct {
    const sc_tokenizer *t;
    symbol *symbols;
    candidate *heap;
    size_t waiting;
} merging;

static int sooner(candidate a, candidate b) { return a.rank < b.rank || (a.rank == b.rank && a.at < b.at); }

static void push(merging *m, candidate c) {
    size_t at = m->waiting++;
    while (at > 0 && sooner(c, m->heap[(at - 1) / 2])) {
        m->heap[at] = m->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    m->heap[at] = c;
}

static candidate pop(merging *m) {
    candidate top = m->heap[0], last = m->heap[--m->waiting];
    size_t at = 0, child;
    while ((child = 2 * at + 1) < m->waiting) {
        if (child + 1 < m->waiting && sooner(m->heap[child + 1], m->heap[child])) {
            child++;
        }
        if (!sooner(m->heap[child], last)) {
            break;
        }
        m->heap[at] = m->heap[child];
        at = child;
    }
    m->heap[at] = last;
    return top;
}

static const sc_merge *find_merge(const sc_tokenizer *t, uint32_t left, uint32_t right) {
    const sc_merge *merges = table(t, t->merges);
    size_t low = 0, high = t->merges.count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const sc_merge *m = &merges[middle];
        if (m->left < left || (m->left == left && m->right < right)) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < t->merges.count && merges[low].left == left && merges[low].right == right ? &merges[low]
                                                                                           : NULL;
}

/* The merge of symbol `left` and the next one. */
static const sc_merge *merge_at(const merging *m, size_t left) {
    if (left == NOTHING || m->symbols[left].gone || m->symbols[left].after == NOTHING) {
        return NULL;
    }
    return find_merge(m->t, m->symbols[left].id, m->symbols[m->symbols[left].after].id);
}

static void consider(merging *m, size_t left) {
    const sc_merge *merge = merge_at(m, left);
    if (merge != NULL) {
        push(m, (candidate){merge->rank, merge->id, left});
    }
}

static void merge_all(merging *m, size_t count) {
    for (size_t i = 0; i + 1 < count; i++) {
        consider(m, i);
    }
    while (m->waiting > 0) {
        candidate best = pop(m);
        const sc_merge *merge = merge_at(m, best.at);
        if (merge == NULL || merge->id != best.id) {
            continue; /* one of the two has been merged with another since */
        }
        symbol *left = &m->symbols[best.at], *right = &m->symbols[left->after];
        left->id = best.id;
        left->after = right->after;
        right->gone = 1;
        if (left->after != NOTHING) {
            m->symbols[left->after].before = best.at;
        }
        consider(m, left->before);
        consider(m, best.at);
    }
}

/* ---- units ---- */

static uint32_t find_unit(const sc_tokenizer *t, uint32_t code) {
    const sc_unit *units = table(t, t->units);
    size_t low = 0, high = t->units.count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (units[middle].code < code) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < t->units.count && units[low].code == code ? units[low].id : SC_NO_ID;
}

static uint32_t find_word(const sc_tokenizer *t, string s) {
    const sc_word *words = table(t, t->words);
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
    return SC_NO_ID;
}

static void add(symbol *symbols, size_t *count, uint32_t id) { symbols[(*count)++] = (symbol){.id = id}; }

/* Adds the ids of all bytes; returns 0 if one has none. */
static int add_bytes(const sc_tokenizer *t, string s, symbol *symbols, size_t *count) {
    const uint32_t *ids = table(t, t->fallbacks);
    if (t->fallbacks.count == 0) {
        return 0;
    }
    for (size_t i = 0; i < s.n; i++) {
        if (ids[s.at[i]] == SC_NO_ID) {
            return 0;
        }
    }
    for (size_t i = 0; i < s.n; i++) {
        add(symbols, count, ids[s.at[i]]);
    }
    return 1;
}

/* At most one symbol per byte of s. */
static size_t to_symbols(const sc_tokenizer *t, string s, int bytes, symbol *symbols) {
    size_t count = 0, n;
    int unknown = 0; /* pending: as in the library, it is added before the next known unit */
    for (; s.n > 0; s = from(s, n)) {
        uint32_t code = s.at[0];
        n = bytes ? 1 : character(s, &code);
        uint32_t id = find_unit(t, code);
        if (id == SC_NO_ID && add_bytes(t, (string){s.at, n}, symbols, &count)) {
            continue;
        }
        if (unknown && (id != SC_NO_ID || !t->fuse)) {
            add(symbols, &count, t->unknown);
            unknown = 0;
        }
        if (id != SC_NO_ID) {
            add(symbols, &count, id);
        } else {
            unknown = t->unknown != SC_NO_ID;
        }
    }
    if (unknown) {
        add(symbols, &count, t->unknown);
    }
    for (size_t i = 0; i < count; i++) {
        symbols[i].before = i > 0 ? i - 1 : NOTHING;
        symbols[i].after = i + 1 < count ? i + 1 : NOTHING;
    }
    return count;
}

static void merge_piece(job *j, string s, int bytes) {
    uint32_t whole = find_word(j->t, s);
    if (whole != SC_NO_ID) {
        emit(j, whole);
        return;
    }
    /* 3 n candidates: n - 1 at first; each of at most n - 1 merges removes one and adds up to two */
    merging m = {j->t, allocate(j, s.n, sizeof(symbol)), NULL, 0};
    m.heap = s.n > SIZE_MAX / 3 ? NULL : allocate(j, 3 * s.n, sizeof(candidate));
    if (m.symbols != NULL && m.heap != NULL) {
        size_t count = to_symbols(j->t, s, bytes, m.symbols);
        merge_all(&m, count);
        for (size_t i = 0; i < count; i = m.symbols[i].after) {
            emit(j, m.symbols[i].id);
        }
    }
    free(m.symbols);
    free(m.heap);
}

/* ---- steps ---- */

static void follow(job *j, const sc_step *step, string s, int first);

/* The next step on `front` + s. */
static void with_front(job *j, const sc_step *step, string front, string s, int first) {
    uint8_t *joined = allocate(j, front.n + s.n, 1);
    if (joined != NULL) {
        memcpy(joined, front.at, front.n);
        memcpy(joined + front.n, s.at, s.n);
        follow(j, step + 1, (string){joined, front.n + s.n}, first);
    }
    free(joined);
}

static void with_replaced(job *j, const sc_step *step, string s, int first) {
    string old = text_of(j->t, step->a), new = text_of(j->t, step->b);
    size_t found = 0, n = 0;
    for (size_t at = 0; at < s.n; at += begins(from(s, at), old) ? old.n : 1) {
        found += (size_t)begins(from(s, at), old);
    }
    uint8_t *replaced = found * new.n > SIZE_MAX / 2 ? NULL : allocate(j, s.n + found * new.n, 1);
    if (replaced != NULL) {
        for (size_t at = 0; at < s.n;) {
            if (begins(from(s, at), old)) {
                memcpy(replaced + n, new.at, new.n);
                n += new.n;
                at += old.n;
            } else {
                replaced[n++] = s.at[at++];
            }
        }
        follow(j, step + 1, (string){replaced, n}, first);
    }
    free(replaced);
}

/* The longest added token at the start of s (of equals the first), or NULL. */
static const sc_added *added_at(const sc_tokenizer *t, string s, uint32_t late) {
    const sc_added *added = table(t, t->added), *best = NULL;
    for (size_t i = 0; i < t->added.count; i++) {
        if (added[i].late == late && begins(s, text_of(t, added[i].text)) &&
            (best == NULL || added[i].text.count > best->text.count)) {
            best = &added[i];
        }
    }
    return best;
}

static void between_added(job *j, const sc_step *step, string s, int first) {
    size_t start = 0, at = 0;
    while (at < s.n) {
        const sc_added *token = added_at(j->t, from(s, at), step->kind == SC_ADDED_LATE);
        if (token == NULL) {
            at++;
            continue;
        }
        follow(j, step + 1, (string){s.at + start, at - start}, first && start == 0);
        emit(j, token->id);
        at += token->text.count;
        start = at;
    }
    follow(j, step + 1, from(s, start), first && start == 0);
}

static size_t cut(const sc_tokenizer *t, const sc_step *step, string s) {
    switch (step->kind) {
    case SC_CUT_BEFORE:
        return cut_before(s, text_of(t, step->a));
    case SC_CUT_DIGIT:
        return cut_digits(s, 1);
    case SC_CUT_DIGITS:
        return cut_digits(s, 0);
    case SC_CUT_GPT2:
        return cut_gpt2(s);
    default:
        return cut_llama3(s);
    }
}

/* Applies `step` and the following steps to a piece. first: the piece begins the whole text. */
static void follow(job *j, const sc_step *step, string s, int first) {
    if (s.n == 0) {
        return;
    }
    string a = text_of(j->t, step->a);
    switch (step->kind) {
    case SC_ADDED_EARLY:
    case SC_ADDED_LATE:
        between_added(j, step, s, first);
        break;
    case SC_PREPEND:
        with_front(j, step, a, s, first);
        break;
    case SC_REPLACE:
        with_replaced(j, step, s, first);
        break;
    case SC_PREFIX:
    case SC_PREFIX_FIRST:
        if (begins(s, a) || (step->kind == SC_PREFIX_FIRST && !first)) {
            follow(j, step + 1, s, first);
        } else {
            with_front(j, step, a, s, first);
        }
        break;
    case SC_CHARACTERS:
    case SC_BYTES:
        merge_piece(j, s, step->kind == SC_BYTES);
        break;
    default:
        for (size_t n; s.n > 0; s = from(s, n), first = 0) {
            n = cut(j->t, step, s);
            follow(j, step + 1, (string){s.at, n}, first);
        }
    }
}

uint32_t *sc_encode(const sc_tokenizer *t, const char *text, size_t bytes, size_t *count) {
    job j = {.t = t};
    const uint32_t *before = table(t, t->before), *empty = table(t, t->empty);
    for (size_t i = 0; i < t->before.count; i++) {
        emit(&j, before[i]);
    }
    if (bytes > 0) {
        follow(&j, table(t, t->steps), (string){(const uint8_t *)text, bytes}, 1);
    }
    if (j.count == t->before.count && !j.failed) { /* no tokens: use the ids of an empty text */
        j.count = 0;
        for (size_t i = 0; i < t->empty.count; i++) {
            emit(&j, empty[i]);
        }
    } else if (!j.failed && t->first != SC_NO_ID && j.ids[0] != t->first) {
        emit(&j, SC_NO_ID); /* makes room for one more */
        if (!j.failed) {
            memmove(j.ids + 1, j.ids, (j.count - 1) * sizeof *j.ids);
            j.ids[0] = t->first;
        }
    }
    if (j.ids == NULL && !j.failed) {
        j.ids = allocate(&j, 1, sizeof *j.ids); /* an empty result is not NULL */
    }
    if (j.failed) {
        free(j.ids);
        return NULL;
    }
    *count = j.count;
    return j.ids;
}
