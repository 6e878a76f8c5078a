/* SPDX-License-Identifier: Apache-2.0
 * Sessions (llm.h): feeds tokens chunk by chunk, drafts and chooses, rewinds. Runs on the controller. */
#include "sc_platform.h"

#include "sc_runtime.h"

_Static_assert(SC_LOOKUP_MAX == LLM_LOOKUP_MAX, "llm.h and sc_abi.h agree");
#define SAME(trace, watch) _Static_assert((int)(trace) == (int)(watch), "llm.h and sc_abi.h agree")
SAME(SC_TRACE_PROOF, LLM_WATCH_LAYERS);
SAME(SC_TRACE_DUMP, LLM_WATCH_OPS);
SAME(SC_TRACE_TIME, LLM_WATCH_PROFILE);
SAME(SC_TRACE_LOGITS, LLM_WATCH_ALL_LOGITS);

SC_L2 sc_hooks_of_session sc_hooks;

/* The session whose keys and values are in the cache. */
static const llm *current;

#ifdef SC_WINDOW
/* End of the positions in the caches. It stays after a rewind: the rings hold what was written last. */
static uint32_t written;

static void note_written(uint32_t position, uint32_t end) {
    if (position == 0 || end > written) written = end;
}

/* From where tokens must be processed to continue at `position`: from there, or from the beginning if a ring no
 * longer holds the window before it. */
static uint32_t reachable(uint32_t position) {
    const uint32_t first = position < SC_WINDOW ? 0 : position + 1 - SC_WINDOW;
    return written > SC_RING + first ? 0 : position;
}
#endif

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

/* Processes n tokens from `position` on, chunk by chunk. want: result of the last chunk. Returns the number of
 * tokens that were not processed, because the layer hook asked to stop. */
SC_HOT static uint32_t process(const uint32_t *ids, uint32_t n, uint32_t position, enum sc_want want) {
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
        sc_now.observed = sc_observed(sc_now.trace, chunk) | sc_hooks.observed;
        sc_now.dumps = sc_now.trace & SC_TRACE_DUMP;
        sc_run_team(sc_forward, 0);
#ifdef SC_WINDOW
        note_written(position, position + chunk);
#endif
        uint32_t start = sc_time();
        sc_profile_report();
        sc_report_hashes();
        sc_report_all_logits();
        sc_now.untimed += sc_time() - start;
        ids += chunk, n -= chunk, position += chunk;
        if (sc_hooks.observed && sc_hooks.stop) break;
    }
    return n;
}

/* Chooses tokens after a pass; next[] holds the draft for `position` on. Keeps the correct draft tokens and
 * adds one token, but stops at an end token unless it is ignored. Returns the number of tokens. */
SC_HOT static uint32_t choose(const llm_sampling *how, uint32_t *next, uint32_t drafted, uint32_t position) {
    if (drafted == 0) {
        next[0] = sc_sample(how, position - 1);
        return 1;
    }
    for (uint32_t n = 0; n < drafted; n++) {
        const uint32_t guess = next[n];
        next[n] = sc_choice(n);
        if (next[n] != guess || (is_end(guess) && !how->ignore_end)) return n + 1;
    }
    next[drafted] = sc_choice(drafted);
    return drafted + 1;
}

void sc_call_layer_hook(uint32_t layer) {
    if (sc_hooks.layer && sc_hooks.layer(sc_hooks.layer_user, layer)) sc_hooks.stop = 1;
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
#ifdef SC_WINDOW
    s->cached = reachable(s->cached);
#endif
    for (size_t i = 0; i < n; i++) s->tokens[s->count + i] = ids[i];
    s->count += (uint32_t)n, s->returned = s->count;
    const uint32_t cached = s->cached, fed = s->count - cached, start = sc_time();
    sc_now.untimed = 0;
    const uint32_t left = process(s->tokens + cached, fed, cached, SC_LAST_LOGITS);
    s->pass = (llm_pass){cached, fed - left, 0, sc_time() - start - sc_now.untimed};
    s->cached = s->count - left;
    return stopped();
}

/* Prompt lookup: writes a draft of at most `most` tokens after the `count` tokens, and returns its length. */
static uint32_t draft(uint32_t *tokens, uint32_t count, uint32_t most) {
    const uint32_t left = SC_CONTEXT - count - 1;
    sc_profile_start(SC_CONTROLLER);
    const uint32_t drafted = sc_draft(tokens, count, left < most ? left : most);
    sc_profile_op(SC_OP_NEXT, SC_LAYERS, SC_CONTROLLER);
    const uint32_t start = sc_time();
    sc_profile_report();
    sc_now.untimed += sc_time() - start;
    return drafted;
}

static int is_sampling(const llm_sampling *how) {
    return how->top_p <= 65536 && how->lookup <= LLM_LOOKUP_MAX &&
           !(how->lookup && (how->inverse_temperature || SC_VERIFIED < 2));
}

/* Processes the tokens that are not cached, and chooses. Few accesses to the session, which is in slow memory.
 * Returns whether it was stopped before it could choose. */
SC_HOT static int pass(llm *s, const llm_sampling *how) {
#ifdef SC_WINDOW
    if (s->cached < s->count) s->cached = reachable(s->cached);
#endif
    uint32_t *const tokens = s->tokens, count = s->count, cached = s->cached;
    uint32_t untimed = sc_now.untimed, drafted = 0, n = 0;
    const uint32_t start = sc_time();
    if (cached < count) {
        sc_now.untimed = untimed = 0;
        if (how->lookup && count - cached == 1) drafted = draft(tokens, count, how->lookup);
        n = count + drafted - cached;
        const uint32_t left = process(tokens + cached, n, cached, drafted ? SC_CHOICES : SC_LAST_LOGITS);
        if (left) {
            s->cached = count - left; /* a draft is in the last chunk */
            return 1;
        }
    }
    sc_profile_start(SC_CONTROLLER);
    const uint32_t chosen = choose(how, tokens + count, drafted, count);
    sc_profile_op(SC_OP_NEXT, SC_LAYERS, SC_CONTROLLER);
    const uint32_t time = sc_time() - start - (sc_now.untimed - untimed);
    if (n > 0)
        s->pass = (llm_pass){cached, n, chosen, time};
    else
        s->pass.time += time, s->pass.chosen = chosen;
    s->count = count + chosen;
    s->cached = count + chosen - 1;
    sc_profile_report();
    return 0;
}

static int next(llm *s, const llm_sampling *how) {
    static const llm_sampling greedy = {0};
    if (!how) how = &greedy;
    if (s != current) return LLM_ERROR_SESSION;
    if (!is_sampling(how)) return LLM_ERROR_SAMPLING;
    if (s->count == 0) return LLM_ERROR_EMPTY;
    if (how->inverse_temperature) drop(s, s->returned); /* queued tokens are the most probable ones */
    if (s->returned == s->count) {                      /* nothing is queued */
        if (s->count == SC_CONTEXT) return LLM_FULL;
        if (pass(s, how)) return stopped();
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

static int on_layer(llm *s, llm_layer_hook *hook, void *user) {
    if (s != current) return LLM_ERROR_SESSION;
    sc_hooks.layer = hook, sc_hooks.layer_user = user;
    sc_hooks.observed = hook ? 1u << SC_LAYER_HOOK : 0;
    return LLM_OK;
}

static int init(llm *s) {
    current = s;
    sc_hooks = (sc_hooks_of_session){0};
    sc_now.position = sc_now.tokens = 0;
#ifdef SC_WINDOW
    written = 0;
#endif
    sc_now.want = SC_NO_LOGITS;
    sc_now.trace = 0;
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
    .on_layer = on_layer,
    .watch = watch,
};
