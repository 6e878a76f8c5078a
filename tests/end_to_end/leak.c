/* SPDX-License-Identifier: Apache-2.0
 * The kernel of test_new_op.py: out = round(v * leak_factor / 2^LEAK_SHIFT) in a buffer of its own. */
#include "sc_platform.h"

#include "sc_buffers.h"

#ifndef WRONG
#define WRONG 0
#endif

SC_VIEW(leaked, LEAKED, int32_t[(SC_FFN + 3) / 4 * 4], SC_CHUNK);

SC_HOT void sc_step_leak(const int32_t *src, uint32_t src_stride, uint32_t dst_stride, uint32_t count, uint32_t layer,
                          int core) {
    const int32_t factor = sc_layers[layer].leak_factor, half = 1 << (SC_LEAK_SHIFT - 1);
    (void)dst_stride;
    sc_team_barrier();
    for (uint32_t t = 0; t < sc_now.tokens; t++) {
        const int32_t *v = src + t * src_stride;
        for (uint32_t i = (uint32_t)core; i < count; i += SC_CORES)
            leaked[t][i] = (int32_t)(((int64_t)v[i] * factor + half) >> SC_LEAK_SHIFT) + (i == 7 ? WRONG : 0);
    }
}
