/* SPDX-License-Identifier: Apache-2.0
 * Generation loop: prefill, decode with the KV cache until an end token, text output. Runs on the controller.
 *
 * Prints plain text, or the lines of sc_abi.h if a run is verified or timed. */
#include "sc_platform.h"

#include "sc_engine.h"

_Static_assert(SC_INPUT_WORDS == SC_IN_TOKENS + SC_CONTEXT, "words of a whole input");

static int refuse(const char *message) {
    sc_puts(SC_LINE_REFUSED " ");
    sc_puts(message);
    sc_puts("\n"); /* a line end flushes */
    return SC_EXIT_REFUSED;
}

static int begun; /* the tokenizer drops one leading space of the whole text */

static void emit_text(uint32_t token) {
    sc_piece p = sc_piece_of(token);
    uint32_t i = p.at;
    if (SC_STRIP_SPACE && !begun && i < p.end && sc_piece_byte(i) == ' ') i++;
    begun |= p.at < p.end;
    for (; i < p.end; i++) sc_putc((char)sc_piece_byte(i));
    sc_flush();
}

static void emit_line(uint32_t position, uint32_t token) {
    sc_puts(SC_LINE_TOKEN " ");
    sc_put_uint(position);
    sc_puts(" ");
    sc_put_uint(token);
    sc_puts(" ");
    sc_piece p = sc_piece_of(token);
    for (uint32_t i = p.at; i < p.end; i++) sc_put_hex(sc_piece_byte(i), 2);
    sc_puts("\n");
}

static void emit_pass(uint32_t position, uint32_t tokens, uint32_t kept) {
    sc_puts(SC_LINE_PASS " ");
    sc_put_uint(position);
    sc_puts(" ");
    sc_put_uint(tokens);
    sc_puts(" ");
    sc_put_uint(kept);
    sc_puts("\n");
}

static void emit_time(const char *what, uint32_t time) {
    sc_puts(SC_LINE_TIME " ");
    sc_puts(what);
    sc_puts(" ");
    sc_put_uint(time);
    sc_puts("\n");
}

static int is_end(uint32_t token) {
    for (const int32_t *e = sc_end_tokens; *e >= 0; e++)
        if ((uint32_t)*e == token) return 1;
    return 0;
}

/* First token of the pass that needs logits, or whose last layer is dumped. */
static uint32_t first_wanted(uint32_t tokens) {
    if (sc_now.want == SC_CHOICES || sc_now.trace & SC_TRACE_LOGITS) return 0;
    const uint32_t first = tokens - (sc_now.want == SC_LAST_LOGITS);
    const uint32_t seen = sc_now.dump_position - sc_now.position; /* huge if it is before the chunk */
    return sc_now.trace & SC_TRACE_DUMP && sc_now.dump_layer + 1 == SC_LAYERS && seen < first ? seen : first;
}

/* Processes n tokens from `position` on, chunk by chunk. want: result of the last chunk. */
SC_HOT static void feed(const uint32_t *ids, uint32_t n, uint32_t position, enum sc_want want) {
    while (n) {
        uint32_t chunk = n < SC_CHUNK ? n : SC_CHUNK;
        for (uint32_t i = 0; i < chunk; i++) sc_now.ids[i] = ids[i];
        /* some tokens of a draft may have been rejected */
        const uint32_t known = sc_now.position + (sc_now.want == SC_CHOICES ? 0 : sc_now.tokens);
        sc_now.known = known <= position ? known : 0;
        sc_now.next = chunk == 1 && known == position;
        sc_now.position = position;
        sc_now.tokens = chunk;
        sc_now.want = chunk == n || (sc_now.trace & SC_TRACE_LOGITS) ? want : SC_NO_LOGITS;
        sc_now.first_wanted = first_wanted(chunk);
        sc_now.observed = sc_observed(sc_now.trace, chunk);
        sc_run_team(sc_forward, 0);
        uint32_t start = sc_time();
        sc_profile_print();
        sc_put_hashes();
        sc_now.untimed += sc_time() - start;
#if SC_ALL_LOGITS
        if (sc_now.trace & SC_TRACE_LOGITS) sc_write((const char *)sc_all_logits, chunk * SC_VOCAB * 4u);
#endif
        ids += chunk, n -= chunk, position += chunk;
    }
}

/* Chooses tokens after a pass; next[] holds the draft for `position` on. Keeps the correct draft tokens and
 * adds one token, but stops at an end token unless go_on. Returns how many. */
SC_HOT static uint32_t choose(const sc_sampling *how, uint32_t *next, uint32_t drafted, uint32_t position,
                              int go_on) {
    uint32_t n = 0, draft;
    do {
        draft = next[n];
        next[n] = drafted ? sc_choice(n) : sc_sample(how, position - 1);
    } while (n++ < drafted && next[n - 1] == draft && (go_on || !is_end(draft)));
    return n;
}

int sc_main(void) {
    uint32_t *in = sc_input_words(), *ids = in + SC_IN_TOKENS;
    const uint32_t prompt = in[SC_IN_PROMPT], most = in[SC_IN_NEW], end = prompt + most;
    const uint32_t lookup = in[SC_IN_LOOKUP];
    const int go_on = (int)in[SC_IN_IGNORE_EOS];
    const sc_sampling how = {in[SC_IN_INV_TEMP], in[SC_IN_TOP_P], in[SC_IN_SEED]};
    if (in[SC_IN_MAGIC] != SC_INPUT_MAGIC) return refuse("input of another version");
    if (prompt < 1 || prompt > SC_CONTEXT || most > SC_CONTEXT - prompt)
        return refuse("prompt and new tokens exceed the context");
    if (how.top_p_q16 < 1 || how.top_p_q16 > 65536) return refuse("top_p outside 1..65536");
    for (uint32_t i = 0; i < prompt; i++)
        if (ids[i] >= SC_VOCAB) return refuse("prompt token outside the vocabulary");
    if (lookup > SC_LOOKUP_MAX) return refuse("more tokens to draft than a draft may have");
    if (lookup && how.inv_temp_q16) return refuse("lookup is for greedy sampling");
    if (lookup && SC_VERIFIED < 2)
        return refuse("no room for lookup: a pass of this program cannot verify a draft");

    sc_now.trace = in[SC_IN_TRACE];
    if ((sc_now.trace & SC_TRACE_LOGITS) && (!SC_ALL_LOGITS || sc_now.trace != SC_TRACE_LOGITS || most > 0))
        return refuse("raw logits are for prompts alone, on a host");
    sc_now.dump_position = in[SC_IN_DUMP_POS];
    sc_now.dump_layer = in[SC_IN_DUMP_LAYER];
    const int text = sc_now.trace == SC_TRACE_TEXT;
    begun = 0;
    for (uint32_t i = 0; text && i < prompt; i++) emit_text(ids[i]);

#ifdef SC_AT_EXP2
    sc_run_workers(sc_fill_exp2, 0);
#endif
    sc_run_workers(sc_start, 0);
    uint32_t count = prompt, drafted = 0, start = sc_time();
    int ended = most == 0;
    sc_now.untimed = 0;
    feed(ids, prompt, 0, SC_LAST_LOGITS);
    if (sc_now.trace & SC_TRACE_LOGITS) return 0;
    while (!ended) {
        const uint32_t first = count, fed = 1 + drafted;
        sc_profile_start(SC_CONTROLLER);
        count += choose(&how, ids + count, drafted, count, go_on);
        drafted = 0;
        if (lookup && count < end)
            drafted = sc_draft(ids, count, end - count - 1 < lookup ? end - count - 1 : lookup);
        sc_profile_op(SC_OP_NEXT, SC_LAYERS, SC_CONTROLLER);
        uint32_t time = sc_time() - start - sc_now.untimed;
        sc_profile_print();
        const int at_end = !go_on && is_end(ids[count - 1]);
        ended = at_end || count == end;
        if (!text) emit_time(first == prompt ? SC_PREFILL : SC_DECODE, time);
        if (!text && lookup && first > prompt) emit_pass(first - 1, fed, count - first);
        for (uint32_t i = first; i < count; i++) {
            if (!text) emit_line(i - 1, ids[i]);
            if (text && !(at_end && i + 1 == count)) emit_text(ids[i]);
        }
        if (ended) break;
        sc_now.untimed = 0;
        start = sc_time();
        feed(ids + count - 1, 1 + drafted, count - 1, drafted ? SC_CHOICES : SC_LAST_LOGITS);
    }
    if (!text) {
        sc_puts(SC_LINE_END " ");
        sc_put_uint(count - prompt);
    }
    sc_puts("\n");
    sc_flush();
    return 0;
}
