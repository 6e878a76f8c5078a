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
#include "llm_nfc.h"
#include "llm_tokenizer.h"
#include "llm_words.h"

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
        if (left == id && right == next) return merge;
        if (left < id || (left == id && right < next))
            low = middle + 1;
        else
            high = middle;
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
            if (to > 0) words[to - 1] = word_of(t, id_of(t, words[to - 1]), id);
            /* a merge of the new id may come before other merges like this one */
            best = word > merge && (to == 0 || words[to - 1] > merge);
        }
        words[to++] = word;
    }
    return to;
}

/* Makes ids of n > 0 units; returns how many. */
static size_t merge_all(const llm_tokenizer *t, uint32_t *words, size_t n) {
    for (size_t i = 0; i + 1 < n; i++) words[i] = word_of(t, words[i], words[i + 1]);
    words[n - 1] |= ALONE;
    for (;;) {
        uint32_t best = ALONE;
        for (size_t i = 0; i < n; i++) best = words[i] < best ? words[i] : best;
        if (best == ALONE) break;
        n = merge_everywhere(t, words, n, best);
    }
    for (size_t i = 0; i < n; i++) words[i] &= ~ALONE;
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
    if (bytes > j->tail - (j->count + j->units) * sizeof *j->ids) j->full = 1;
    return !j->full;
}

static void emit(job *j, uint32_t id) {
    if (fits(j, sizeof id)) j->ids[j->count++] = id;
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
        if (units[middle].code < code)
            low = middle + 1;
        else
            high = middle;
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
        if (order == 0 && word.n == s.n) return words[middle].id;
        if (order < 0 || (order == 0 && word.n < s.n))
            low = middle + 1;
        else
            high = middle;
    }
    return LLM_NO_ID;
}

static void add(job *j, uint32_t unit) {
    uint32_t id = unit & ~LLM_UNIT_STARTS;
    if (unit != id && id != j->unit) end_piece(j);
    if (fits(j, sizeof id)) {
        j->ids[j->count + j->units++] = id;
        j->unit = id;
    }
}

/* Whether each byte of s has a unit of its own. */
static int has_fallbacks(const llm_tokenizer *t, string s) {
    const uint32_t *units = table(t, t->fallbacks);
    size_t known = 0;
    while (t->fallbacks.count > 0 && known < s.n && units[s.at[known]] != LLM_NO_ID) known++;
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
        if (unit != LLM_NO_ID)
            add(j, unit);
        else
            unknown = t->unknown != LLM_NO_ID;
    }
    if (unknown) add(j, t->unknown);
    end_piece(j);
}

/* ---- steps ---- */

/* Puts `front` before the next n bytes of rewritten text; returns how many there are then. */
static size_t with_front(job *j, string front, size_t n) {
    if (!fits(j, front.n)) return 0;
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
    while (plain < n && s.at[plain] < FORMS_FROM) plain++;
    if (plain == n) return n;
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
    while (i < starts.n && starts.at[i] != s.at[0]) i++;
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
    while (n < s.n && added_at(j->t, from(s, n), late) == NULL) n++;
    return n;
}

/* Step i takes the next n > 0 bytes of its text and rewrites them, or cuts off their first piece. Returns the
 * bytes of the result. */
static size_t apply(job *j, size_t i, size_t n) {
    const llm_step *step = &j->steps[i];
    if (i == j->rewrite) { /* from here on the text is in `ids` */
        if (!fits(j, n)) return 0;
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
        while (i < j->last && n > 0) n = apply(j, i++, n);
        if (n > 0) encode_piece(j, n);
        j->first = 0;
        do { /* the innermost step that has cut text off and has more */
            if (i == 0) return;
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
    for (size_t i = 0; i < ids.count; i++) emit(j, id[i]);
}

int llm_encode(const llm_tokenizer *t, const char *utf8, size_t bytes, uint32_t *ids, size_t room) {
    if (!usable(t) || (bytes > 0 && t->refusal.count > 0)) return LLM_ERROR_TOKENIZER;
    /* so that counts and places fit in an int and in `ends` */
    const size_t most = INT32_MAX / sizeof *ids;
    room = room < most ? room : most;
    job j = {.t = t, .steps = table(t, t->steps), .text = (const uint8_t *)utf8, .ids = ids, .first = 1};
    if (!is_utf8((string){j.text, bytes})) return LLM_ERROR_UTF8;
    if (bytes > 0) {
        if (room < t->steps.count || bytes > most) return LLM_ERROR_ROOM;
        j.last = t->steps.count - 1;
        while (j.rewrite < j.last && !rewrites(&j.steps[j.rewrite])) j.rewrite++;
        j.ends = ids + room - t->steps.count;
        j.tail = (room - t->steps.count) * sizeof *ids;
        emit_all(&j, t->before);
        encode_text(&j, bytes);
        if (j.full) return LLM_ERROR_ROOM;
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
