/* SPDX-License-Identifier: Apache-2.0
 * Chooses the next token from the logits: argmax, or temperature and top-p. Bit-identical to
 * numerics/sampling.py. Logits: L1 or L2. Each worker has a contiguous part of the vocabulary; ties go to the
 * lowest index. */
#include "sc_platform.h"

#include "sc_buffers.h"

static SC_L1 struct {
    uint64_t mass[SC_CORES];
    int32_t max;
    uint32_t factor, threshold;
    int shift;
} s;

static void share(uint32_t n, int core, uint32_t *from, uint32_t *to) {
    const uint32_t each = (n + SC_CORES - 1) / SC_CORES;
    *from = (uint32_t)core * each < n ? (uint32_t)core * each : n;
    *to = *from + each < n ? *from + each : n;
}

SC_WARM void sc_compare(uint32_t t, const int32_t *v, uint32_t row, uint32_t rows, int core) {
    uint32_t from, to;
    share(rows, core, &from, &to);
    sc_top top = tops[t][core];
    if (row == 0) top = (sc_top){-SC_INT32_MAX, from < to ? from : SC_VOCAB};
    const int32_t *eight = 0; /* the eight with the largest value */
    for (; from + 8 <= to; from += 8) {
        const int32_t *const w = v + from;
        const int32_t low = sc_max(sc_max(w[0], w[1]), sc_max(w[2], w[3])),
                      high = sc_max(sc_max(w[4], w[5]), sc_max(w[6], w[7])), most = sc_max(low, high);
        if (__builtin_expect(most > top.value, 0)) top.value = most, eight = w;
    }
    if (eight) {
        top.index = row + (uint32_t)(eight - v);
        for (; *eight != top.value; eight++) top.index++;
    }
    for (; from < to; from++)
        if (v[from] > top.value) top = (sc_top){v[from], row + from};
    tops[t][core] = top;
}

SC_WARM static const sc_top *top_of(uint32_t t) {
    const sc_top *best = &tops[t][0];
    for (int c = 1; c < SC_CORES; c++) {
        const sc_top *other = &tops[t][c];
        if (other->value > best->value || (other->value == best->value && other->index < best->index))
            best = other;
    }
    return best;
}

uint32_t sc_choice(uint32_t t) { return top_of(t)->index; }

SC_WARM static void find_top(void *unused, int core) {
    (void)unused;
    sc_compare(0, sc_logits, 0, SC_VOCAB, core);
}

/* logits -> probabilities Q20, in place */
static void exponentiate(void *unused, int core) {
    uint32_t from, to;
    uint64_t mass = 0;
    (void)unused;
    share(SC_VOCAB, core, &from, &to);
    for (uint32_t i = from; i < to; i++) {
        int32_t below = sc_sat64((int64_t)s.max - sc_logits[i]);
        uint32_t p = sc_exp2_q20((uint32_t)sc_requantize(below, s.factor, s.shift));
        sc_logits[i] = (int32_t)p;
        mass += p;
    }
    s.mass[core] = mass;
}

static void mass_above(void *unused, int core) {
    uint32_t from, to;
    uint64_t mass = 0;
    (void)unused;
    share(SC_VOCAB, core, &from, &to);
    for (uint32_t i = from; i < to; i++) {
        if ((uint32_t)sc_logits[i] >= s.threshold) mass += (uint32_t)sc_logits[i];
    }
    s.mass[core] = mass;
}

static uint64_t total_mass(void) {
    uint64_t total = 0;
    for (int c = 0; c < SC_CORES; c++) total += s.mass[c];
    return total;
}

/* Top-p: the smallest set of most probable tokens whose mass reaches top_p; includes ties. */
static void keep_nucleus(uint32_t top_p_q16) {
    uint64_t need = (total_mass() * top_p_q16 + 65535) >> 16;
    uint32_t found = 0;
    for (int bit = 20; bit >= 0; bit--) {
        s.threshold = found | 1u << bit;
        sc_run_workers(mass_above, 0);
        if (total_mass() >= need) found = s.threshold;
    }
    s.threshold = found;
    sc_run_workers(mass_above, 0);
}

/* Samples a token; the largest logit is known. */
static __attribute__((noinline)) uint32_t draw_token(const llm_sampling *how, uint32_t position) {
    s.max = top_of(0)->value;
    uint64_t factor = (uint64_t)how->inverse_temperature * 47274u; /* log2(e) in Q15 */
    int shift = sc_bits64(factor) - 31;
    s.factor = (uint32_t)(shift > 0 ? factor >> shift : factor << -shift);
    s.shift = SC_LOGIT_SHIFT - 1 - shift;
    s.threshold = 0;
    sc_run_workers(exponentiate, 0);
    if (how->top_p > 0 && how->top_p < 65536) keep_nucleus(how->top_p);

    uint64_t mass = total_mass();
    uint32_t draw = sc_mix32(how->seed + position * 0x9E3779B9u);
    /* (draw * mass) >> 32 without 128-bit arithmetic: mass is below 2^52 */
    uint64_t target = (((uint64_t)draw * (uint32_t)mass) >> 32) + (uint64_t)draw * (uint32_t)(mass >> 32);
    int core = 0;
    while (core + 1 < SC_CORES && target >= s.mass[core]) target -= s.mass[core++];
    uint32_t from, to;
    share(SC_VOCAB, core, &from, &to);
    for (uint32_t i = from; i < to; i++) {
        uint32_t p = (uint32_t)sc_logits[i] >= s.threshold ? (uint32_t)sc_logits[i] : 0;
        if (target < p) return i;
        target -= p;
    }
    return SC_VOCAB - 1;
}

SC_WARM uint32_t sc_sample(const llm_sampling *how, uint32_t position) {
    sc_run_workers(find_top, 0);
    return how->inverse_temperature == 0 ? sc_choice(0) : draw_token(how, position);
}

/* ---- prompt lookup ---- */

/* Prompt-lookup speculative decoding: proposes the tokens that followed an earlier occurrence of the last tokens.
 * Workers share the search. Takes the latest of the longest matches, up to SC_NGRAM tokens; shorter matches give
 * shorter drafts. A draft never changes the chosen tokens. */
#define SC_NGRAM 3u
#define AT_BITS 28

_Static_assert(SC_CONTEXT < 1 << AT_BITS, "a position beside the length of what was found there");

static SC_L1 struct {
    const uint32_t *tokens;
    uint32_t count;
    uint32_t found[SC_CORES]; /* match length << AT_BITS | position of its last token */
} lookup;

static void search(void *unused, int core) {
    const uint32_t *last = lookup.tokens + lookup.count - 1, token = *last;
    uint32_t found = 0;
    (void)unused;
    for (uint32_t at = (uint32_t)core; at + 1 < lookup.count; at += SC_CORES) {
        if (lookup.tokens[at] != token) continue;
        uint32_t n = 1;
        while (n < SC_NGRAM && n <= at && lookup.tokens[at - n] == *(last - n)) n++;
        if ((n << AT_BITS | at) > found) found = n << AT_BITS | at;
    }
    lookup.found[core] = found;
}

uint32_t sc_draft(uint32_t *tokens, uint32_t count, uint32_t most) {
    if (most > SC_VERIFIED - 1) most = SC_VERIFIED - 1;
    if (most == 0) return 0;
    lookup.tokens = tokens;
    lookup.count = count;
    sc_run_workers(search, 0);
    uint32_t best = 0;
    for (int c = 0; c < SC_CORES; c++)
        if (lookup.found[c] > best) best = lookup.found[c];
    if (best == 0) return 0;
    const uint32_t length = best >> AT_BITS, from = (best & ~(~0u << AT_BITS)) + 1;
    const uint32_t n = length == SC_NGRAM || most < 2 * length + 1 ? most : 2 * length + 1;
    for (uint32_t i = 0; i < n; i++) tokens[count + i] = tokens[from + i]; /* source and draft may overlap */
    return n;
}
