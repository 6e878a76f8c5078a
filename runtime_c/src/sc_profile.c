/* SPDX-License-Identifier: Apache-2.0
 * Profile, only in programs built with SC_PROFILE: counters of each core per op.
 *
 *   elapsed active instructions load_stalls icache transfers worst
 *
 * Values are cycles, except instructions, and sums over the cores; the last two are the maximum. active: neither asleep nor waiting for a transfer;
 * transfers: waiting for one; worst: active. A barrier after each op assigns waiting to its op; the cost of
 * barrier and counting is excluded. Samples are kept until the end of the pass if possible, because transfers
 * would finish during the slow output. */
#include "sc_platform.h"

#include "sc_engine.h"

#ifdef SC_PROFILE

#define LAYER_OPS SC_LAYER_STEPS
#define ROOM (LAYER_OPS * (SC_LAYERS < 8 ? SC_LAYERS : 8) + SC_OPS - LAYER_OPS)

static struct {
    uint8_t op, cores;
    uint16_t layer;
} what[ROOM];
static sc_counters counted[ROOM][SC_CORES];
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

static void __attribute__((noinline)) make_room(int core) {
    sc_barrier();
    if (core == 0) sc_profile_report();
    sc_barrier();
}

/* hot, because the call itself counts for the op */
SC_HOT void sc_profile_op(enum sc_op op, uint32_t layer, int core) {
    const int alone = core == SC_CONTROLLER, slot = alone ? 0 : core;
    if (layer < SC_LAYERS) sc_meet();
    if (alone && layer < SC_LAYERS) return;
    if (!alone && layer == SC_LAYERS) sc_barrier();
    uint32_t end;
    const sc_counters now = sc_counters_read(&end);
    const uint32_t n = used[slot];
    counted[n][slot] = now;
    used[slot] = n + 1;
    if (slot == 0) {
        what[n].op = (uint8_t)op;
        what[n].layer = (uint16_t)layer;
        what[n].cores = alone ? 1 : SC_CORES;
    }
    if (!alone) {
        if (n + 1 == ROOM) make_room(core);
        sc_barrier();
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

void sc_profile_report(void) {
    if (sc_now.trace & SC_TRACE_TIME)
        for (uint32_t n = 0; n < used[0]; n++) report_sample(n);
    for (int core = 0; core < SC_CORES; core++) used[core] = 0;
}

#endif
