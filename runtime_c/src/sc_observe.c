/* SPDX-License-Identifier: Apache-2.0
 * Reports values of a pass: hashes of layers, logits, outputs of ops. One core reports, all wait. The time is
 * added to sc_now.untimed, which is subtracted from the step's time. */
#include "sc_platform.h"

#include "sc_buffers.h"

const char *const sc_op_names[] = {SC_OP_NAMES};

SC_INLINE uint32_t hash(const int32_t *v, uint32_t n) {
    uint32_t h = 0;
#if SC_XPULP
    int32_t word;
    /* clang-format off */
    __asm__ volatile(SC_LOOP_BEGIN("%[n]", 3)
                     P_LW_POST("%[word]", "%[v]", "4")
                     "mul %[h], %[h], %[by]\n"
                     "add %[h], %[h], %[word]\n" SC_LOOP_END(3)
                     : [v] "+&r"(v), [h] "+&r"(h), [word] "=&r"(word)
                     : [n] "r"(n), [by] "r"(SC_HASH_MULTIPLIER)
                     : "memory");
/* clang-format on */
#else
    for (uint32_t i = 0; i < n; i++) h = h * SC_HASH_MULTIPLIER + (uint32_t)v[i];
#endif
    return h;
}

/* Hashes of a pass, reported after it: the report would evict code of the layers from the instruction cache. */
static SC_L2 uint32_t hashes[SC_LAYERS][SC_CHUNK];

SC_WARM void sc_hash_layer(uint32_t layer) { hashes[layer][0] = hash(x[0], SC_HIDDEN); }

void sc_report(const llm_probe *probe) {
    if (sc_hooks.probe) sc_hooks.probe(sc_hooks.probe_user, probe);
}

void sc_report_hashes(void) {
    if (!(sc_now.trace & (SC_TRACE_PROOF | SC_TRACE_DUMP))) return;
    for (uint32_t layer = 0; layer < SC_LAYERS; layer++)
        for (uint32_t t = sc_first_wanted(layer); t < sc_now.tokens; t++)
            sc_report(&(llm_probe){.kind = LLM_HASH,
                                   .layer = layer,
                                   .position = sc_now.position + t,
                                   .count = 1,
                                   .values = &hashes[layer][t]});
}

void sc_report_all_logits(void) {
#if SC_ALL_LOGITS
    if (!(sc_now.trace & SC_TRACE_LOGITS)) return;
    for (uint32_t t = 0; t < sc_now.tokens; t++)
        sc_report(&(llm_probe){.kind = LLM_ALL_LOGITS,
                               .layer = SC_LAYERS,
                               .position = sc_now.position + t,
                               .count = SC_VOCAB,
                               .values = sc_all_logits[t]});
#endif
}

static void report_op(enum llm_probe_kind kind, const char *op, uint32_t layer, const void *values,
                      const int8_t *high, uint32_t n) {
    sc_report(&(llm_probe){.kind = kind,
                           .op = op,
                           .layer = layer,
                           .position = sc_now.dump_position,
                           .count = n,
                           .values = values,
                           .high = high});
}

/* op ends in ".q" (values). Also reports ".s": mantissa and exponent, and for int8 vectors ".c": group
 * scales. */
static void report_qvec(const char *op, uint32_t layer, const sc_qvec *v, const sc_matrix *reader,
                        uint32_t tokens) {
    const int32_t scale[2] = {(int32_t)v->mantissa, v->exponent};
    char name[16];
    int n = 0;
    while (op[n]) name[n] = op[n], n++;
    name[n] = 0;
    name[n - 1] = 's';
    report_op(LLM_INT32, name, layer, scale, 0, 2);
    if (SC_XGROUPS == 0 || reader->format & SC_FMT_Q16) {
        report_op(LLM_INT16, op, layer, v->q, v->q + sc_q16_pitch(reader, tokens), reader->in.k);
        return;
    }
    name[n - 1] = 'c';
    report_op(LLM_INT32, name, layer, v->c, 0, reader->in.groups);
    report_op(LLM_INT8, op, layer, v->q, 0, reader->in.words * 4u);
}

static __attribute__((noinline)) void dump(enum sc_op op, uint32_t layer) {
    const sc_layer *const l = &sc_layers[layer];
    const uint32_t t = sc_now.dump_position - sc_now.position; /* huge if it is before the chunk */
    if (t >= sc_now.tokens || op < SC_LAYER_FIRST || op > SC_LAYER_LAST) return; /* not an op of a layer */
    const sc_result *s = &sc_results[op - SC_LAYER_FIRST];
    const char *name = sc_op_names[op];
    if (s->layout == SC_VECTOR)
        report_qvec(name, layer, SC_BUFFER(const sc_qvec *, s->at) + t, l->m[s->slot],
                    sc_now.tokens - sc_first_of(s->slot, layer));
    else if (s->layout == SC_BYTES)
        report_op(LLM_INT8, name, layer, SC_BUFFER(const int8_t *, s->at) + t * s->count, 0, s->count);
    else
        report_op(LLM_INT32, name, layer, SC_BUFFER(const int32_t *, s->at) + t * s->stride, 0, s->count);
}

static __attribute__((noinline)) void report_logits(void) {
    const sc_window *w = &sc_now.window;
    for (uint32_t i = 0; i < w->tokens; i++)
        sc_report(&(llm_probe){.kind = LLM_LOGITS,
                               .layer = SC_LAYERS,
                               .position = sc_now.position + sc_now.tokens - w->tokens + i,
                               .first = w->row,
                               .count = w->rows,
                               .values = sc_logits + i * w->stride});
}

uint32_t sc_observed(uint32_t trace, uint32_t tokens) {
    if (trace & SC_TRACE_DUMP) return ~0u;
    if (!(trace & SC_TRACE_PROOF)) return 0;
    return (SC_HASHES_OVERLAPPED && tokens == 1 ? 0 : 1u << SC_LAYER_LAST) | 1u << SC_OP_LOGITS;
}

static SC_L2 uint32_t took; /* time of the last observation; in L2, so that no L1 address changes */

/* Everything but the hash of a layer's output. */
static __attribute__((noinline)) void observe(enum sc_op op, uint32_t layer) {
    if (sc_now.trace & SC_TRACE_DUMP && layer == sc_now.dump_layer) dump(op, layer);
    if (op == SC_OP_LOGITS) report_logits();
}

/* Observation of a layer's op by the controller, if it is in the team: the workers' instruction cache has no
 * room for it. Short code, so that verification does not slow down a step. */
SC_WARM void sc_observe(enum sc_op op, uint32_t layer, int core) {
    const int of_layer = layer < SC_LAYERS;
    for (int after = 0; after < 2; after++) {
        if (of_layer)
            sc_team_barrier();
        else
            sc_worker_barrier();
        if (after || core != (of_layer && SC_TEAM > SC_CORES ? SC_CORES : 0)) continue;
        const uint32_t start = sc_time();
        if (__builtin_expect(op != SC_LAYER_LAST || sc_now.trace & SC_TRACE_DUMP, 0)) observe(op, layer);
        for (uint32_t t = sc_first_wanted(layer); op == SC_LAYER_LAST && t < sc_now.tokens; t++)
            hashes[layer][t] = hash(x[t], SC_HIDDEN);
        took = sc_time() - start;
        sc_now.untimed += took;
    }
    if (sc_is_worker(core)) sc_profile_resume(took, core);
}
