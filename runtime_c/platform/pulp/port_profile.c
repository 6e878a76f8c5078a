/* SPDX-License-Identifier: Apache-2.0
 * Profile, only in programs built with SC_PROFILE: counters of each core per op.
 *
 *   elapsed active instructions load_stalls icache transfers worst
 *
 * Values are cycles, except instructions, and sums over the cores; the last two are the maximum. active:
 * neither asleep nor waiting for a transfer; transfers: waiting for one; worst: active. A barrier after each op
 * assigns waiting to its op; the cost of barrier and counting is excluded. Samples are kept until the end of the
 * pass if possible, because transfers would finish during the slow output. */
#include "sc_platform.h"

#include "sc_runtime.h"

#ifdef SC_PROFILE

/* Builds with SC_SPANS also report begin and end of each core's part of an op, and of waits and of N-EUREKA's
 * work, for a trace. Values of LLM_CORES: the first core; for it and the next ones, cycles of begin, arrival at
 * the op's last barrier and end, and active cycles. Values of LLM_SPANS, of the unit `op`: the core; begin and
 * end of each span. The unit "lost": the core; how many spans had no room. */
#define LAYER_OPS SC_LAYER_STEPS
#define ROOM (LAYER_OPS * (SC_LAYERS < 8 ? SC_LAYERS : 8) + SC_OPS - LAYER_OPS)

static struct {
    uint8_t op, cores;
    uint16_t layer;
} what[ROOM];
static sc_counters counted[ROOM][SC_CORES];
static uint32_t ended[SC_SPANS ? ROOM : 1][SC_CORES], arrived[SC_SPANS ? ROOM : 1][SC_CORES];
static uint32_t used[SC_CORES]; /* per core, so that no core reads a count that another one changes */

void sc_profile_start(int core) {
    (void)core;
    sc_counters_on();
    (void)sc_counters_restart();
}

void sc_profile_resume(uint32_t untimed, int core) {
    const uint32_t op_end = sc_counters_begin(), now = sc_counters_restart();
    if (core == 0) sc_now.untimed += now - op_end - untimed;
}

/* The controller's part of ops of layers. A ring, because it goes on while core 0 reports. */
static struct {
    uint8_t op;
    uint16_t layer;
    uint32_t cycles[4];
} controller_ops[ROOM];
static uint32_t controller_used, controller_reported;

static void count_controller(enum sc_op op, uint32_t layer, uint32_t arrival) {
    uint32_t end;
    const sc_counters now = sc_counters_read(&end);
    const uint32_t at = controller_used % ROOM, begin = end - now.of[SC_ELAPSED];
    if (controller_used - controller_reported < ROOM) {
        controller_ops[at].op = (uint8_t)op, controller_ops[at].layer = (uint16_t)layer;
        controller_ops[at].cycles[0] = begin, controller_ops[at].cycles[1] = arrival,
        controller_ops[at].cycles[2] = end;
        controller_ops[at].cycles[3] = now.of[SC_ACTIVE];
        controller_used++;
    }
    (void)sc_counters_restart();
}

/* Whether a core's ring of spans is half full, as the workers saw it before the last barrier. */
static volatile uint32_t crowded;

static void __attribute__((noinline)) make_room(int core) {
    sc_worker_barrier();
    if (core == 0) {
        crowded = 0;
        sc_profile_report();
    }
    sc_worker_barrier();
}

/* hot, because the call itself counts for the op */
SC_HOT void sc_profile_op(enum sc_op op, uint32_t layer, int core) {
    const int alone = core == SC_CONTROLLER, slot = alone ? 0 : core;
    const uint32_t arrival = SC_SPANS ? SC_CSR(mcycle) : 0;
    if (layer < SC_LAYERS) sc_team_barrier();
    if (alone && layer < SC_LAYERS) {
        if (SC_SPANS) count_controller(op, layer, arrival);
        return;
    }
    if (!alone && layer == SC_LAYERS) sc_worker_barrier();
    uint32_t end;
    const sc_counters now = sc_counters_read(&end);
    const uint32_t n = used[slot];
    counted[n][slot] = now;
    used[slot] = n + 1;
    if (SC_SPANS) {
        ended[n][slot] = end, arrived[n][slot] = arrival;
        if (sc_spans[core].used - sc_spans[core].reported > SC_SPAN_ROOM / 2) crowded = 1;
    }
    if (slot == 0) {
        what[n].op = (uint8_t)op;
        what[n].layer = (uint16_t)layer;
        what[n].cores = alone ? 1 : SC_CORES;
    }
    if (!alone) {
        if (n + 1 == ROOM) make_room(core);
        sc_worker_barrier();
        if (SC_SPANS && crowded) make_room(core);
    }
    const uint32_t begin = sc_counters_restart();
    if (slot == 0) sc_now.untimed += begin - end;
}

/* Values of LLM_COUNTERS: cores, then the values above. */
static void report_sample(uint32_t n) {
    uint32_t values[2 + SC_COUNTERS] = {what[n].cores}, transfers = 0, worst = 0;
    for (uint32_t core = 0; core < what[n].cores; core++) {
        const uint32_t *c = counted[n][core].of;
        for (int i = SC_ELAPSED; i < SC_TRANSFERS; i++) values[1 + i] += c[i];
        if (c[SC_TRANSFERS] > transfers) transfers = c[SC_TRANSFERS];
        if (c[SC_ACTIVE] > worst) worst = c[SC_ACTIVE];
    }
    values[1 + SC_TRANSFERS] = transfers;
    values[1 + SC_COUNTERS] = worst;
    sc_report(&(llm_probe){.kind = LLM_COUNTERS,
                           .op = sc_op_names[what[n].op],
                           .layer = what[n].layer,
                           .position = sc_now.position,
                           .count = 2 + SC_COUNTERS,
                           .values = values});
}

static void report_trace(enum llm_probe_kind kind, const char *op, uint32_t layer, const uint32_t *values,
                         uint32_t count) {
    sc_report(&(llm_probe){.kind = kind,
                           .op = op,
                           .layer = layer,
                           .position = sc_now.position,
                           .count = count,
                           .values = values});
}

static void report_cores(uint32_t n) {
    uint32_t values[1 + 4 * SC_CORES] = {what[n].cores == 1 ? SC_CONTROLLER : 0}, *to = values;
    for (uint32_t core = 0; core < what[n].cores; core++) {
        const uint32_t *c = counted[n][core].of, end = ended[n][core];
        *++to = end - c[SC_ELAPSED], *++to = arrived[n][core], *++to = end, *++to = c[SC_ACTIVE];
    }
    report_trace(LLM_CORES, sc_op_names[what[n].op], what[n].layer, values, 1 + 4 * what[n].cores);
}

static void report_controller(void) {
    for (; controller_reported != controller_used; controller_reported++) {
        const uint32_t at = controller_reported % ROOM;
        uint32_t values[5] = {SC_CONTROLLER};
        for (int i = 0; i < 4; i++) values[1 + i] = controller_ops[at].cycles[i];
        report_trace(LLM_CORES, sc_op_names[controller_ops[at].op], controller_ops[at].layer, values, 5);
    }
}

static void report_spans(uint32_t core) {
    static const char *const names[SC_UNITS] = {"dma", "hyperbus", "neureka"};
    struct sc_spans *s = &sc_spans[core];
    for (; s->reported != s->used; s->reported++) {
        const uint32_t at = s->reported % SC_SPAN_ROOM;
        const uint32_t values[3] = {core, s->of[at].begin, s->of[at].end};
        report_trace(LLM_SPANS, names[s->of[at].unit], SC_LAYERS, values, 3);
    }
    if (s->lost) report_trace(LLM_SPANS, "lost", SC_LAYERS, (const uint32_t[]){core, s->lost}, 2);
    s->lost = 0;
}

void sc_profile_report(void) {
    if (sc_now.trace & SC_TRACE_TIME)
        for (uint32_t n = 0; n < used[0]; n++) {
            report_sample(n);
            if (SC_SPANS) report_cores(n);
        }
    if (SC_SPANS) {
        report_controller();
        for (uint32_t core = 0; core <= SC_CORES; core++) report_spans(core);
    }
    for (int core = 0; core < SC_CORES; core++) used[core] = 0;
}

#endif
