/* SPDX-License-Identifier: Apache-2.0
 * Sessions (llm.h): feeds tokens chunk by chunk, drafts and chooses, rewinds. Runs on the controller. */
#include "sc_platform.h"

#include "sc_engine.h"

_Static_assert(SC_LOOKUP_MAX == LLM_LOOKUP_MAX, "llm.h and sc_abi.h agree");
#define SAME(trace, watch) _Static_assert((int)(trace) == (int)(watch), "llm.h and sc_abi.h agree")
SAME(SC_TRACE_PROOF, LLM_WATCH_LAYERS);
SAME(SC_TRACE_DUMP, LLM_WATCH_OPS);
SAME(SC_TRACE_TIME, LLM_WATCH_PROFILE);
SAME(SC_TRACE_LOGITS, LLM_WATCH_ALL_LOGITS);

SC_L2 sc_hooks_of_session sc_hooks;

/* The session whose keys and values are in the cache. */
static const llm *current;

static int is_end(uint32_t token) {
    for (const int32_t *e = sc_end_tokens; *e >= 0; e++)
        if ((uint32_t)*e == token) return 1;
    return 0;
}

/* First token of the pass that needs logits, or whose last layer is observed. */
static uint32_t first_wanted(uint32_t tokens) {
    if (sc_now.want == SC_CHOICES || sc_now.trace & SC_TRACE_LOGITS) return 0;
    const uint32_t first = tokens - (sc_now.want == SC_LAST_LOGITS);
    const uint32_t seen = sc_now.dump_position - sc_now.position; /* huge if it is before the chunk */
    return sc_now.trace & SC_TRACE_DUMP && sc_now.dump_layer + 1 == SC_LAYERS && seen < first ? seen : first;
}

/* Processes the session's tokens that are not cached yet, chunk by chunk. want: result of the last chunk.
 * Returns whether the hook asked to stop before the
 * last chunk. */
SC_HOT static int process(llm *s, enum sc_want want) {
    uint32_t position = s->cached, n = s->count + s->drafted - position;
    const uint32_t *ids = s->tokens + position;
    sc_hooks.layer = s->layer_hook, sc_hooks.layer_user = s->layer_user;
    sc_hooks.stop = 0;
    while (n && !sc_hooks.stop) {
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
        sc_profile_report();
        sc_report_hashes();
        sc_report_all_logits();
        sc_now.untimed += sc_time() - start;
        ids += chunk, n -= chunk, position += chunk;
    }
    s->cached = position - (n ? 0 : s->drafted);
    return n > 0;
}

/* Chooses tokens after a pass; behind the session's tokens is the draft. Keeps the correct draft tokens and adds
 * one token, but stops at an end token unless it is ignored. */
SC_HOT static void choose(llm *s, const llm_sampling *how) {
    uint32_t *const next = s->tokens + s->count, n = 0, draft;
    do {
        draft = next[n];
        next[n] = s->drafted ? sc_choice(n) : sc_sample(how, s->count - 1);
    } while (n++ < s->drafted && next[n - 1] == draft && (how->ignore_end || !is_end(draft)));
    s->count += n;
    s->cached = s->count - 1;
}

static void begin_pass(llm *s, uint32_t position) {
    s->pass = (llm_pass){.position = position};
    sc_now.untimed = 0;
}

/* Drops tokens from `count` on. The last token is processed again, because its logits are gone. */
static void drop(llm *s, uint32_t count) {
    if (count == s->count) return;
    s->count = s->returned = count;
    if (s->cached >= count) s->cached = count ? count - 1 : 0;
}

/* LLM_STOPPED if the hook asked to stop, once; else LLM_OK. */
static int stopped(void) {
    const int stop = sc_hooks.stop;
    sc_hooks.stop = 0;
    return stop ? LLM_STOPPED : LLM_OK;
}

static int feed(llm *s, const uint32_t *ids, size_t n) {
    if (s != current) return LLM_ERROR_SESSION;
    if (n == 0) return LLM_OK;
    if (n > SC_CONTEXT - s->returned) return LLM_FULL;
    for (size_t i = 0; i < n; i++)
        if (ids[i] >= SC_VOCAB) return LLM_ERROR_TOKEN;
    /* a choice is not needed any more, but its position may not be cached yet */
    s->count = s->returned;
    if (s->cached > s->count) s->cached = s->count;
    for (size_t i = 0; i < n; i++) s->tokens[s->count + i] = ids[i];
    s->count += (uint32_t)n, s->returned = s->count;
    s->drafted = 0;
    begin_pass(s, s->cached);
    s->pass.tokens = s->count - s->cached;
    const uint32_t start = sc_time();
    process(s, SC_LAST_LOGITS);
    s->pass.time = sc_time() - start - sc_now.untimed;
    return stopped();
}

/* Prompt lookup: a draft behind the session's tokens, of at most `most` tokens. */
static void draft(llm *s, uint32_t most) {
    const uint32_t left = SC_CONTEXT - s->count - 1;
    sc_profile_start(SC_CONTROLLER);
    s->drafted = sc_draft(s->tokens, s->count, left < most ? left : most);
    sc_profile_op(SC_OP_NEXT, SC_LAYERS, SC_CONTROLLER);
    const uint32_t start = sc_time();
    sc_profile_report();
    sc_now.untimed += sc_time() - start;
}

static int is_sampling(const llm_sampling *how) {
    return how->top_p <= 65536 && how->lookup <= LLM_LOOKUP_MAX &&
           !(how->lookup && (how->inverse_temperature || SC_VERIFIED < 2));
}

SC_HOT static int next(llm *s, const llm_sampling *how) {
    static const llm_sampling greedy = {0};
    if (!how) how = &greedy;
    if (s != current) return LLM_ERROR_SESSION;
    if (!is_sampling(how)) return LLM_ERROR_SAMPLING;
    if (s->count == 0) return LLM_ERROR_EMPTY;
    if (how->inverse_temperature) drop(s, s->returned); /* queued tokens are the most probable ones */
    if (s->returned == s->count) { /* nothing is queued */
        if (s->count == SC_CONTEXT) return LLM_FULL;
        const int fed = s->cached == s->count;
        if (!fed) begin_pass(s, s->cached);
        const uint32_t start = sc_time(), untimed = sc_now.untimed;
        if (!fed) {
            s->drafted = 0;
            if (how->lookup && s->count - s->cached == 1) draft(s, how->lookup);
            s->pass.tokens = s->count + s->drafted - s->cached;
            if (process(s, s->drafted ? SC_CHOICES : SC_LAST_LOGITS)) return stopped();
        }
        sc_profile_start(SC_CONTROLLER);
        choose(s, how);
        sc_profile_op(SC_OP_NEXT, SC_LAYERS, SC_CONTROLLER);
        s->pass.chosen = s->count - s->returned;
        s->pass.time += sc_time() - start - (sc_now.untimed - untimed);
        sc_profile_report();
        if (stopped()) return LLM_STOPPED; /* the token is queued */
    }
    const uint32_t token = s->tokens[s->returned++];
    return is_end(token) && !how->ignore_end ? LLM_END : (int)token;
}

static size_t text(llm *s, uint32_t id, char *to, size_t room) {
    if (s != current || id >= SC_VOCAB) return 0;
    sc_piece p = sc_piece_of(id);
    const int begun = s->text_begun || p.at < p.end;
    if (SC_STRIP_SPACE && !s->text_begun && p.at < p.end && sc_piece_byte(p.at) == ' ') p.at++;
    const uint32_t n = p.end - p.at < room ? p.end - p.at : (uint32_t)room;
    for (uint32_t i = 0; i < n; i++) to[i] = (char)sc_piece_byte(p.at + i);
    if (p.end - p.at <= room) s->text_begun = begun; /* not if the caller has to ask again */
    return p.end - p.at;
}

static int rewind_to(llm *s, uint32_t position) {
    if (s != current) return LLM_ERROR_SESSION;
    if (position > s->returned) return LLM_ERROR_POSITION;
    drop(s, position);
    if (position == 0) s->text_begun = 0;
    return LLM_OK;
}

static int watch(llm *s, uint32_t what, uint32_t position, uint32_t layer, llm_probe_hook *hook, void *user) {
    if (s != current) return LLM_ERROR_SESSION;
    if (what & LLM_WATCH_ALL_LOGITS && (!SC_ALL_LOGITS || what != LLM_WATCH_ALL_LOGITS))
        return LLM_ERROR_WATCH;
    sc_now.trace = hook ? what : 0;
    sc_now.dump_position = position;
    sc_now.dump_layer = layer;
    sc_hooks.probe = hook, sc_hooks.probe_user = user;
    return LLM_OK;
}

static int init(llm *s) {
    current = s;
    sc_hooks.layer = 0;
    sc_now.position = sc_now.tokens = 0;
    sc_now.want = SC_NO_LOGITS;
    sc_now.trace = 0;
    sc_hooks.probe = 0;
#ifdef SC_AT_EXP2
    sc_run_workers(sc_fill_exp2, 0);
#endif
    sc_run_workers(sc_start, 0);
    return sc_weights_match() ? LLM_OK : LLM_ERROR_WEIGHTS;
}

const llm_model SC_MODEL = {
    .version = LLM_VERSION,
    .name = SC_MODEL_NAME,
    .license = SC_MODEL_LICENSE,
    .vocabulary = SC_VOCAB,
    .context = SC_CONTEXT,
    .layers = SC_LAYERS,
    .text_bytes = SC_TEXT_BYTES,
    .init = init,
    .feed = feed,
    .next = next,
    .text = text,
    .rewind = rewind_to,
    .watch = watch,
};
