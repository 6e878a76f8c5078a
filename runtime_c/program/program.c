/* SPDX-License-Identifier: Apache-2.0
 * Answers the input words with plain text, or with the lines of sc_contract.h if the run is verified or timed. */
#include "program.h"

#include "sc_contract.h"
#include "sc_platform.h"

#define CONTEXT (SC_INPUT_WORDS - SC_IN_TOKENS)

/* ---- text output, line-buffered: one core at a time ---- */

#define SMALL static __attribute__((noinline)) /* one copy: L2 is for weights */

#define LINE 256
static char line[LINE];
static uint32_t used;

SMALL void flush(void) {
    if (used) sc_write(line, used);
    used = 0;
}

SMALL void put_char(char c) {
    line[used++] = c;
    if (c == '\n' || used == LINE) flush();
}

SMALL void put_string(const char *text) {
    while (*text) put_char(*text++);
}

SMALL void put_hex(uint32_t v, int digits) {
    while (digits-- > 0) put_char("0123456789abcdef"[v >> (4 * digits) & 15]);
}

/* The digits of v, somewhere in the buffer. */
static const char *decimal(uint32_t v, char digits[11]) {
    int i = 10;
    digits[i] = 0;
    do digits[--i] = (char)('0' + v % 10);
    while (v /= 10);
    return digits + i;
}

SMALL void put_uint(uint32_t v) {
    char digits[11];
    put_string(decimal(v, digits));
}

/* Value i, of int32 values or of the bytes of int8 or 16-bit ones. */
static uint32_t value(const int32_t *words, const int8_t *low, const int8_t *high, uint32_t i) {
    return words ? (uint32_t)words[i] : (uint32_t)(low[i] + (high ? 256 * high[i] : 0));
}

/* Lines of "tag name first v v ..." in hexadecimal; `first`: number of the first value. */
SMALL void put_values(const char *tag, const char *name, uint32_t first, const int32_t *words,
                      const int8_t *low, const int8_t *high, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        if (i % 24 == 0) {
            if (i) put_string("\n");
            put_string(tag);
            put_string(" ");
            put_string(name);
            put_string(" ");
            put_uint(first + i);
        }
        put_string(" ");
        put_hex(value(words, low, high, i), 8);
    }
    if (n) put_string("\n");
}

static void put_words(const char *tag, const char *name, uint32_t first, const int32_t *v, uint32_t n) {
    put_values(tag, name, first, v, 0, 0, n);
}

static void put_bytes(const char *tag, const char *name, const int8_t *v, const int8_t *high, uint32_t n) {
    put_values(tag, name, 0, 0, v, high, n);
}

/* ---- the session ---- */

static llm session;
static char text[SC_TEXT_BYTES]; /* of one token */
static uint32_t prompt;          /* tokens of the prompt */

static int refuse(const char *message) {
    put_string(SC_LINE_REFUSED " ");
    put_string(message);
    put_string("\n"); /* a line end flushes */
    return SC_EXIT_REFUSED;
}

static int refuse_result(int result) {
    put_string(SC_LINE_REFUSED " result of llm.h: -");
    put_uint((uint32_t)-result);
    put_string("\n");
    return SC_EXIT_REFUSED;
}

/* ---- what a run prints ---- */

static void put_text(uint32_t token) {
    const size_t n = llm_text(&session, token, text, sizeof text);
    for (size_t i = 0; i < n; i++) put_char(text[i]);
    flush();
}

static void put_number(uint32_t v) {
    put_string(" ");
    put_uint(v);
}

static void put_token(uint32_t position, uint32_t token) {
    session.text_begun = 1; /* with a space at the beginning, if the token has one */
    const size_t n = llm_text(&session, token, text, sizeof text);
    put_string(SC_LINE_TOKEN);
    put_number(position);
    put_number(token);
    put_string(" ");
    for (size_t i = 0; i < n; i++) put_hex((uint8_t)text[i], 2);
    put_string("\n");
}

/* The last pass; lookup: whether tokens may have been drafted. */
static void put_pass(int lookup) {
    const llm_pass *p = &session.pass;
    const int prefill = p->position + p->tokens <= prompt;
    put_string(SC_LINE_TIME " ");
    put_string(prefill ? SC_PREFILL : SC_DECODE);
    put_number(p->time);
    put_string("\n");
    if (prefill || !lookup) return;
    put_string(SC_LINE_PASS);
    put_number(p->position);
    put_number(p->tokens);
    put_number(p->chosen);
    put_string("\n");
}

static void put_counters(const char *tag, const llm_probe *p) {
    const uint32_t *values = p->values;
    put_string(tag);
    put_string(" ");
    put_string(p->position < prompt ? SC_PREFILL : SC_DECODE);
    if (p->layer < SC_MODEL.layers)
        put_number(p->layer);
    else
        put_string(" -");
    put_string(" ");
    put_string(p->op);
    for (uint32_t i = 0; i < p->count; i++) put_number(values[i]);
    put_string("\n");
}

static void put_hash(const llm_probe *p) {
    put_string(SC_LINE_HASH);
    put_number(p->position);
    put_number(p->layer);
    put_string(" ");
    put_hex(*(const uint32_t *)p->values, 8);
    put_string("\n");
}

static void put_probe(void *unused, const llm_probe *p) {
    char digits[11];
    (void)unused;
    switch (p->kind) {
    case LLM_HASH:
        put_hash(p);
        break;
    case LLM_LOGITS:
        put_words(SC_LINE_LOGITS, decimal(p->position, digits), p->first, p->values, p->count);
        break;
    case LLM_ALL_LOGITS:
        sc_write(p->values, 4 * p->count);
        break;
    case LLM_INT32:
        put_words(SC_LINE_DUMP, p->op, p->first, p->values, p->count);
        break;
    case LLM_INT8:
    case LLM_INT16:
        put_bytes(SC_LINE_DUMP, p->op, p->values, p->high, p->count);
        break;
    case LLM_COUNTERS:
        put_counters(SC_LINE_PROFILE, p);
        break;
    case LLM_CORES:
        put_counters(SC_LINE_CORES, p);
        break;
    case LLM_SPANS:
        put_counters(SC_LINE_SPANS, p);
        break;
    }
}

/* ---- time between calls of the layer hook ---- */

static uint32_t last_call, longest;

static int time_hook(void *unused, uint32_t layer) {
    (void)unused, (void)layer;
    const uint32_t now = sc_time();
    if (now - last_call > longest) longest = now - last_call;
    last_call = now;
    return 0;
}

/* ---- one input ---- */

static const char *fault_of(const uint32_t *in) {
    const uint32_t most = in[SC_IN_NEW], trace = in[SC_IN_TRACE];
    if (in[SC_IN_MAGIC] != SC_INPUT_MAGIC) return "input of another version";
    if (in[SC_IN_PROMPT] < 1 || in[SC_IN_PROMPT] > CONTEXT || most > CONTEXT - in[SC_IN_PROMPT])
        return "prompt and new tokens exceed the context";
    if (in[SC_IN_KEPT] >= in[SC_IN_PROMPT]) return "no new token in the prompt";
    if (in[SC_IN_TOP_P] < 1 || in[SC_IN_TOP_P] > 65536) return "top_p outside 1..65536";
    for (uint32_t i = 0; i < in[SC_IN_PROMPT]; i++)
        if (in[SC_IN_TOKENS + i] >= SC_MODEL.vocabulary) return "prompt token outside the vocabulary";
    if (in[SC_IN_LOOKUP] > SC_LOOKUP_MAX) return "more tokens to draft than a draft may have";
    if (in[SC_IN_LOOKUP] && in[SC_IN_INV_TEMP]) return "lookup is for greedy sampling";
    if (trace & SC_TRACE_LOGITS && (trace != SC_TRACE_LOGITS || most > 0))
        return "raw logits are for prompts alone, on a host";
    return 0;
}

static int answer(uint32_t *in) {
    const char *fault = fault_of(in);
    if (fault) return refuse(fault);
    const uint32_t most = in[SC_IN_NEW], trace = in[SC_IN_TRACE], lookup = in[SC_IN_LOOKUP];
    const uint32_t kept = in[SC_IN_KEPT];
    llm_sampling how = {.inverse_temperature = in[SC_IN_INV_TEMP],
                        .top_p = in[SC_IN_TOP_P],
                        .seed = in[SC_IN_SEED],
                        .ignore_end = (int)in[SC_IN_IGNORE_EOS]};
    prompt = in[SC_IN_PROMPT];
    /* the tokens of the input are those of the session, so that its first ones stay */
    int result =
        kept ? llm_rewind(&session, kept) : llm_init(&session, &SC_MODEL, in + SC_IN_TOKENS, CONTEXT);
    /* shrinkc notes changed files, compares every integer, and names the first difference */
    if (result == LLM_ERROR_WEIGHTS) result = LLM_OK;
    if (result == LLM_OK && trace != SC_TRACE_TEXT)
        result = llm_watch(&session, trace & SC_TRACE_LOGITS ? trace : trace | LLM_WATCH_PROFILE,
                           in[SC_IN_DUMP_POS], in[SC_IN_DUMP_LAYER], put_probe, 0);
    if (result == LLM_ERROR_WATCH) return refuse("raw logits are for prompts alone, on a host");
    if (result < 0) return refuse_result(result);

    for (uint32_t i = kept; trace == SC_TRACE_TEXT && i < prompt; i++) put_text(session.tokens[i]);
    const int timed = trace == (SC_TRACE_TIME | SC_TRACE_HOOK);
    if (timed) llm_on_layer(&session, time_hook, 0);
    if (timed) longest = 0, last_call = sc_time();
    result = llm_feed(&session, session.tokens + kept, prompt - kept);
    if (timed) time_hook(0, 0);
    if (trace & SC_TRACE_LOGITS) return 0;
    uint32_t made = 0;
    while (result >= 0 && made < most) {
        const int queued = session.returned < session.count;
        if (!queued) how.lookup = made && lookup > most - made - 1 ? most - made - 1 : lookup;
        if (timed) last_call = sc_time();
        result = llm_next(&session, &how);
        if (timed) time_hook(0, 0);
        if (result == LLM_ERROR_SAMPLING)
            return refuse("no room for lookup: a pass of this program cannot verify a draft");
        if (result < 0 && result != LLM_END) break;
        const uint32_t token = session.tokens[session.returned - 1];
        if (trace == SC_TRACE_TEXT) {
            if (result != LLM_END) put_text(token);
        } else {
            if (!queued) put_pass(lookup > 0);
            put_token(prompt + made - 1, token);
        }
        made++;
    }
    if (result < 0 && result != LLM_END) return refuse_result(result);
    if (timed) {
        put_string(SC_LINE_HOOK);
        put_number(longest);
        put_string("\n");
    }
    if (trace != SC_TRACE_TEXT) {
        put_string(SC_LINE_END);
        put_number(made);
    }
    put_string("\n");
    flush();
    return 0;
}

int sc_program(void) {
    int code;
    do code = answer(sc_input_words());
    while (code == 0 && sc_input_words()[SC_IN_MORE] && sc_next_input());
    return code;
}
