/* Runs kernels on data from stdin: see harness.py for the other end.
 *
 * Input: commands of 32-bit words {operation, words that follow, ...}.  Output: per command
 * {words that follow, ...}.  Inputs lie in blocks of exactly their size, so that the address
 * sanitizer sees a read beyond them; every output lies between canary words, which are checked.
 * All cores of a kernel run in turn, forwards or backwards.
 */
#include "sc_platform.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sc_heads.h"
#include "sc_runtime.h"
#include "sc_shares.h"

#define CANARY 0xC5C5C5C5u
#define CANARIES 8 /* words on each side */
#define GARBAGE 0xA5

static void __attribute__((noreturn)) fail(const char *what) {
    fflush(stdout);
    fprintf(stderr, "harness: %s\n", what);
    exit(99);
}

/* ---- the rest of the engine that the kernels under test ask for ---- */


uint8_t sc_arena[SC_ARENA_BYTES] __attribute__((aligned(16)));
#if !SC_LOGITS_IN_L1
int32_t sc_logits[SC_VOCAB];
#endif

void sc_run_workers(sc_worker_fn fn, void *arg) {
    for (int core = 0; core < SC_CORES; core++) fn(arg, core);
}

/* ---- input ---- */

static uint32_t *words;
static size_t at, total, end_of_command;

static uint32_t word(void) {
    if (at >= end_of_command) fail("command too short");
    return words[at++];
}

/* n words in a block of exactly their size */
static void *copy(size_t n) {
    if (n > end_of_command - at) fail("command too short");
    void *p = malloc(n ? n * 4 : 1);
    memcpy(p, words + at, n * 4);
    at += n;
    return p;
}

/* ---- output ---- */

static void put(const void *data, size_t n) { fwrite(data, 4, n, stdout); }
static void put_count(size_t n) {
    uint32_t count = (uint32_t)n;
    put(&count, 1);
}

/* A block of n words between canaries, filled with garbage. */
static void *guarded(size_t n) {
    uint32_t *p = malloc((n + 2 * CANARIES) * 4);
    for (int i = 0; i < CANARIES; i++) p[i] = CANARY;
    memset(p + CANARIES, GARBAGE, n * 4);
    for (int i = 0; i < CANARIES; i++) p[CANARIES + n + (size_t)i] = CANARY;
    return p + CANARIES;
}

static void check(const void *block, size_t n, const char *what) {
    const uint32_t *p = (const uint32_t *)block - CANARIES;
    for (int i = 0; i < CANARIES; i++)
        if (p[i] != CANARY || p[CANARIES + n + (size_t)i] != CANARY) fail(what);
}

static void release(void *block, size_t n, const char *what) {
    check(block, n, what);
    free((uint32_t *)block - CANARIES);
}

/* ---- numbers ---- */

static uint64_t wide(uint32_t low, uint32_t high) { return (uint64_t)high << 32 | low; }

static int32_t number(uint32_t fn, uint32_t a, uint32_t b, uint32_t c, int32_t *second) {
    int j = 0;
    uint32_t r;
    switch (fn) {
    case 0:
        return sc_sat64((int64_t)wide(a, b));
    case 1:
        return sc_sat_add((int32_t)a, (int32_t)b);
    case 2:
        return sc_rshift((int32_t)a, (int)b);
    case 3:
        return sc_shift((int32_t)a, (int)b);
    case 4:
        return sc_lshift_sat((int32_t)a, (int)b);
    case 5:
        return sc_requantize((int32_t)a, b, (int)c);
    case 6:
        return (int32_t)sc_exp2_mantissa(a);
    case 7:
        return (int32_t)sc_exp2_q20(a);
    case 8:
        return sc_sigmoid_q15((int32_t)a);
    case 9:
        return (int32_t)sc_isqrt(a);
    case 10:
        return sc_bits64(wide(a, b));
    case 11:
        r = sc_rsqrt(wide(a, b), &j);
        *second = j;
        return (int32_t)r;
    case 12:
        return (int32_t)sc_mix32(a);
    case 13:
        return sc_bits(a);
    case 14:
        return sc_sdot4((int32_t)a, (int32_t)b, (int32_t)c);
    case 16:
        return a < 256 ? sc_exp2_table[a] : 0;
    case 15:
        return sc_sdotu4((int32_t)a, (int32_t)b, (int32_t)c);
    }
    fail("no such number");
}

static void numbers(void) {
    uint32_t fn = word(), n = word();
    const uint32_t *a = copy(n), *b = copy(n), *c = copy(n);
    put_count(2 * (size_t)n);
    for (uint32_t i = 0; i < n; i++) {
        int32_t out[2] = {0, 0};
        out[0] = number(fn, a[i], b[i], c[i], &out[1]);
        put(out, 2);
    }
    free((void *)a), free((void *)b), free((void *)c);
}

#include "harness_vectors.h"

#include "harness_matrices.h"

#include "harness_heads.h"

static void sample(void) {
    llm_sampling how = {0};
    how.inverse_temperature = word();
    how.top_p = word();
    how.seed = word();
    uint32_t position = word();
    int32_t *logits = copy(SC_VOCAB);
    memcpy(sc_logits, logits, SC_VOCAB * 4);
    uint32_t token = sc_sample(&how, position);
    put_count(1);
    put(&token, 1);
    free(logits);
}

int main(void) {
#ifdef SC_AT_EXP2
    sc_run_workers(sc_fill_exp2, 0);
#endif
    size_t room = 1 << 16;
    words = malloc(room * 4);
    for (size_t n; (n = fread(words + total, 4, room - total, stdin)) > 0;) {
        total += n;
        if (total == room) words = realloc(words, (room *= 2) * 4);
    }
    while (at < total) {
        if (total - at < 2 || words[at + 1] > total - at - 2) fail("input ends inside a command");
        uint32_t operation = words[at];
        end_of_command = at + 2 + words[at + 1];
        at += 2;
        switch (operation) {
        case 1:
            numbers();
            break;
        case 2:
            vector();
            break;
        case 3:
            matrix();
            break;
        case 4:
            embed();
            break;
        case 5:
            heads();
            break;
        case 6:
            sample();
            break;
        case 7:
            wide_vectors();
            break;
#ifdef SC_HAS_ENGINES
        case 8:
            engine_rows();
            break;
#endif
        default:
            fail("no such operation");
        }
        if (at != end_of_command) fail("command too long");
    }
    free(words);
    return 0;
}
