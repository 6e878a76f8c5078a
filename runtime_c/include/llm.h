/* SPDX-License-Identifier: Apache-2.0
 * Public interface of a compiled language model. Needs no C library and no heap. With a model named stories:
 *
 *     LLM_DECLARE(stories);
 *     static uint32_t tokens[CONTEXT], ids[ROOM];
 *     llm s; char text[TEXT_BYTES];
 *     int id, n = llm_encode(&stories_tokenizer, prompt, strlen(prompt), ids, ROOM);
 *     if (n > 0 && llm_init(&s, &stories_model, tokens, CONTEXT) == LLM_OK && llm_feed(&s, ids, n) == LLM_OK)
 *         while ((id = llm_next(&s, NULL)) >= 0) print(text, llm_text(&s, id, text, sizeof text));
 *
 * The library of a model defines NAME_model. Its buffers are static, in sections that the linker script places. A
 * session is one conversation; it keeps its KV cache between calls. One session at a time uses a model: llm_init()
 * ends the one before. One core calls all functions: the controller of a cluster. */
#ifndef LLM_H
#define LLM_H

#include <stddef.h>
#include <stdint.h>

#define LLM_VERSION 1    /* of this interface */
#define LLM_LOOKUP_MAX 8 /* most tokens of a draft */

/* Declares a model of that name and the tables of its tokenizer. */
#define LLM_DECLARE(name)                                                                                    \
    extern const llm_model name##_model;                                                                     \
    extern const llm_tokenizer name##_tokenizer

/* Results. Values from 0 on are token ids or counts. */
enum llm_result {
    LLM_OK = 0,
    LLM_END = -1,             /* llm_next: the model has ended its text */
    LLM_FULL = -2,            /* the context has too little room; nothing was done */
    LLM_STOPPED = -3,         /* the layer hook asked to stop; the session can go on */
    LLM_ERROR_VERSION = -10,  /* header and library have different versions */
    LLM_ERROR_WEIGHTS = -11,  /* the weights in memory are not those of the library; the session
                               * can be used, with other results */
    LLM_ERROR_MEMORY = -12,   /* the token buffer is NULL or too small */
    LLM_ERROR_SESSION = -13,  /* the session is not initialised, or another one uses the model now */
    LLM_ERROR_TOKEN = -14,    /* a token id outside the vocabulary */
    LLM_ERROR_EMPTY = -15,    /* llm_next before any token was fed */
    LLM_ERROR_SAMPLING = -16, /* a sampling parameter is out of range */
    LLM_ERROR_POSITION = -17, /* llm_rewind beyond the tokens of the session */
    LLM_ERROR_WATCH = -18,    /* this build cannot report what llm_watch asks for */
    LLM_ERROR_UTF8 = -19,     /* llm_encode: the text is not UTF-8 */
    LLM_ERROR_ROOM = -20,     /* llm_encode: `ids` is too small */
    LLM_ERROR_TOKENIZER = -21 /* llm_encode: tables of another version, or it cannot be run on a device */
};

/* How llm_next() chooses a token. {0} chooses the most probable one. */
typedef struct {
    uint32_t inverse_temperature; /* 65536 / temperature; 0: the most probable token */
    uint32_t top_p;               /* 65536 * top-p, 1 .. 65536; 0: 65536 */
    uint32_t seed;
    uint32_t lookup; /* prompt lookup: most tokens of a draft, 0 .. LLM_LOOKUP_MAX; needs temperature 0 */
    int ignore_end;  /* an end token does not end the text */
} llm_sampling;

/* The last forward pass, or prefill and the choice after it. */
typedef struct {
    uint32_t position; /* of its first token */
    uint32_t tokens;   /* processed */
    uint32_t chosen;   /* tokens that llm_next() can return after it */
    uint32_t time;     /* by the platform's clock, without hooks and probes; 0 without a clock */
} llm_pass;

typedef int llm_layer_hook(void *user, uint32_t layer);
typedef struct llm_probe llm_probe;
typedef void llm_probe_hook(void *user, const llm_probe *probe);

typedef struct llm_model llm_model;

/* A session. Placed by the caller; its fields are read-only. */
typedef struct {
    const llm_model *model;
    uint32_t *tokens; /* [count]: fed and chosen, an end token too */
    uint32_t count;
    uint32_t returned; /* tokens fed, or returned by llm_next(); the rest of count is queued */
    uint32_t cached;   /* tokens whose keys and values are in the cache */
    int text_begun;
    llm_pass pass;
} llm;

/* What llm_watch() reports. */
enum llm_watch_flags {
    LLM_WATCH_LAYERS = 1,     /* hash of each layer's output, for each token; and logits */
    LLM_WATCH_OPS = 2,        /* output of every operation of one layer at one position */
    LLM_WATCH_PROFILE = 4,    /* counters of each operation, in builds with SC_PROFILE */
    LLM_WATCH_ALL_LOGITS = 8, /* logits of every token, in builds for the host; alone */
};
enum llm_probe_kind {
    LLM_HASH,
    LLM_LOGITS,
    LLM_ALL_LOGITS,
    LLM_INT32,
    LLM_INT8,
    LLM_INT16,
    LLM_COUNTERS,
    LLM_CORES,
    LLM_SPANS
};
struct llm_probe {
    enum llm_probe_kind kind;
    const char *op;    /* name of the operation; NULL for hashes and logits */
    uint32_t layer;    /* or the number of layers, outside of them */
    uint32_t position; /* of the token, or of the pass's first token */
    uint32_t first, count;
    const void *values; /* first .. first + count - 1. LLM_HASH: uint32. LLM_INT8 and _INT16: int8, low bytes
                         * of 16 bits. LLM_COUNTERS, _CORES, _SPANS (PROFILE=1): uint32. Else int32 */
    const int8_t *high; /* LLM_INT16: high bytes */
};

/* A compiled model. */
struct llm_model {
    uint32_t version; /* LLM_VERSION of the library */
    const char *name;
    const char *license; /* of the weights, as the model's files state it */
    uint32_t vocabulary; /* token ids are below it */
    uint32_t context;    /* most tokens of a session, and words of its token buffer */
    uint32_t layers;
    uint32_t text_bytes; /* of the longest token's text */
    /* called through the functions below */
    int (*init)(llm *);
    int (*feed)(llm *, const uint32_t *, size_t);
    int (*next)(llm *, const llm_sampling *);
    size_t (*text)(llm *, uint32_t, char *, size_t);
    int (*rewind)(llm *, uint32_t);
    int (*on_layer)(llm *, llm_layer_hook *, void *);
    int (*watch)(llm *, uint32_t, uint32_t, uint32_t, llm_probe_hook *, void *);
};

/* Begins a session. tokens: room for model->context ids, in memory that the caller places. */
static inline int llm_init(llm *s, const llm_model *model, uint32_t *tokens, size_t room) {
    *s = (llm){0};
    if (model->version != LLM_VERSION) return LLM_ERROR_VERSION;
    if (!tokens || room < model->context) return LLM_ERROR_MEMORY;
    s->model = model;
    s->tokens = tokens;
    return model->init(s);
}

/* Prefill: processes n tokens after those of the session. Drops tokens that llm_next() has not returned. */
static inline int llm_feed(llm *s, const uint32_t *ids, size_t n) {
    return s->model ? s->model->feed(s, ids, n) : LLM_ERROR_SESSION;
}

/* Chooses the next token and returns its id. how: NULL for the most probable token. After LLM_END, the last of
 * s->tokens is the end token. */
static inline int llm_next(llm *s, const llm_sampling *how) {
    return s->model ? s->model->next(s, how) : LLM_ERROR_SESSION;
}

/* Copies the text of a token to `to`, at most `room` bytes, and returns its length. The text is UTF-8, but a
 * token may hold a part of a character. Some tokenizers drop a space at the beginning of a session's text. */
static inline size_t llm_text(llm *s, uint32_t id, char *to, size_t room) {
    return s->model ? s->model->text(s, id, to, room) : 0;
}

/* Forgets the tokens from `position` on. 0: the session begins anew. With a sliding window, forgetting many
 * tokens makes the next call process the others again. */
static inline int llm_rewind(llm *s, uint32_t position) {
    return s->model ? s->model->rewind(s, position) : LLM_ERROR_SESSION;
}

/* hook(user, layer) is called after each layer of a pass, by the calling core: to yield or to feed a
 * watchdog. If it returns other than 0, llm_feed() or llm_next() ends after this pass with LLM_STOPPED. */
static inline int llm_on_layer(llm *s, llm_layer_hook *hook, void *user) {
    return s->model ? s->model->on_layer(s, hook, user) : LLM_ERROR_SESSION;
}

/* For verification: reports values of passes to hook(user, probe), on the core that has them. what: enum
 * llm_watch_flags. position, layer: for LLM_WATCH_OPS. */
static inline int llm_watch(llm *s, uint32_t what, uint32_t position, uint32_t layer, llm_probe_hook *hook,
                            void *user) {
    return s->model ? s->model->watch(s, what, position, layer, hook, user) : LLM_ERROR_SESSION;
}

/* ---- text to ids: the same code for all models ---- */

typedef struct llm_tokenizer llm_tokenizer; /* tables, constant: llm_tokenizer.h */

/* Writes the ids of a prompt to `ids` and returns their number, or an error.
 *
 * ids[room] is also the only working memory: all of it may be overwritten, and after an error its content
 * means nothing. llm_encode_room(t, bytes) words always suffice, and fewer do for most texts: for the ids so far;
 * a word for each character (or byte) of the piece that is being merged; and the rest of the text, if the
 * tokenizer rewrites it. A piece is a word with the space in front of it; text without spaces may be one piece.
 *
 * Time: linear in the text, except that a piece takes about two memory accesses x its length x the number of
 * different pairs that are merged in it. */
int llm_encode(const llm_tokenizer *t, const char *utf8, size_t bytes, uint32_t *ids, size_t room);

/* Words that suffice for every text of that many bytes; 0 if llm_encode() returns LLM_ERROR_TOKENIZER. */
size_t llm_encode_room(const llm_tokenizer *t, size_t bytes);

#endif
