/* SPDX-License-Identifier: Apache-2.0
 * Prompt-lookup speculative decoding: proposes the tokens that followed an earlier occurrence of the last
 * tokens. Workers share the search.
 *
 * Takes the latest of the longest matches, up to SC_NGRAM tokens; shorter matches give shorter drafts. A
 * draft never changes the chosen tokens. */
#include "sc_platform.h"

#include "sc_engine.h"

#define SC_NGRAM 3u
#define AT_BITS 28

_Static_assert(SC_CONTEXT < 1 << AT_BITS, "a position beside the length of what was found there");

static SC_L1 struct {
    const uint32_t *tokens;
    uint32_t count;
    uint32_t found[SC_CORES]; /* match length << AT_BITS | position of its last token */
} s;

static void search(void *unused, int core) {
    const uint32_t *last = s.tokens + s.count - 1, token = *last;
    uint32_t found = 0;
    (void)unused;
    for (uint32_t at = (uint32_t)core; at + 1 < s.count; at += SC_CORES) {
        if (s.tokens[at] != token) continue;
        uint32_t n = 1;
        while (n < SC_NGRAM && n <= at && s.tokens[at - n] == *(last - n)) n++;
        if ((n << AT_BITS | at) > found) found = n << AT_BITS | at;
    }
    s.found[core] = found;
}

uint32_t sc_draft(uint32_t *tokens, uint32_t count, uint32_t most) {
    if (most > SC_VERIFIED - 1) most = SC_VERIFIED - 1;
    if (most == 0) return 0;
    s.tokens = tokens;
    s.count = count;
    sc_run_workers(search, 0);
    uint32_t best = 0;
    for (int c = 0; c < SC_CORES; c++)
        if (s.found[c] > best) best = s.found[c];
    if (best == 0) return 0;
    const uint32_t length = best >> AT_BITS, from = (best & ~(~0u << AT_BITS)) + 1;
    const uint32_t n = length == SC_NGRAM || most < 2 * length + 1 ? most : 2 * length + 1;
    for (uint32_t i = 0; i < n; i++) tokens[count + i] = tokens[from + i]; /* source and draft may overlap */
    return n;
}
