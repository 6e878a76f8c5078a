/* SPDX-License-Identifier: Apache-2.0
 * Multiplies a tile by the vectors of several tokens: selects the kernel. All workers call it, each with its
 * core number. */
#ifndef SC_MULTIPLY_H
#define SC_MULTIPLY_H

#include "sc_buffers.h"
#include "sc_products.h"

/* Adapter inputs of the last `tokens` tokens of the forward pass. */
static inline const sc_qvec *adapters_of(uint32_t tokens) {
    return SC_RANK > 0 ? sv + (sc_now.tokens - tokens) : 0;
}

#if SC_SPLIT
/* Alternates between two buffers of partial sums, so that one barrier per token is enough. */
SC_PHASE static void multiply_split(const sc_matrix *m, const uint8_t *tile, uint32_t first, uint32_t count,
                                    const sc_qvec *in, uint32_t tokens, const sc_output *out, int core) {
    const sc_qvec *const adapters = adapters_of(tokens);
    for (uint32_t t = 0; t < tokens; t++) {
        const sc_qvec *adapter = SC_RANK > 0 ? &adapters[t] : 0;
        sc_split_sums(m, tile, count, &in[t], split[t & 1], core, SC_CORES);
        sc_worker_barrier();
        sc_split_rows(m, tile, first, count, &in[t], adapter, split[t & 1], out, out->dst + t * out->stride,
                      core, SC_CORES);
    }
}
#endif

/* The tile's rows for all tokens of the prefill chunk. */
static inline void multiply(const sc_matrix *m, const uint8_t *tile, uint32_t first, uint32_t count,
                            const sc_qvec *in, uint32_t tokens, const sc_output *out, int core) {
    const sc_qvec *const adapters = adapters_of(tokens);
#ifdef SC_PRODUCTS
    if (tokens > 1 && sc_on_products(m)) {
        sc_matrix_products(m, tile, first, count, in, adapters, tokens, out,
                           SC_BUFFER(uint8_t *, SC_AT_PRODUCTS), core);
        return;
    }
#endif
#ifdef SC_AT_PRODUCTS
    if (tokens > 1 && sc_for_several(m)) {
        const uint32_t apart = SC_BYTES_PRODUCTS / SC_PLANNED_CORES / 4;
        int32_t *const scratches = SC_BUFFER(int32_t *, SC_AT_PRODUCTS);
        int32_t *const own = scratches + apart * (uint32_t)core;
#if SC_SPLIT
        if (sc_is_split(m, count, SC_CORES)) {
            sc_split_sums_of_several(m, tile, count, in, tokens, own, core, SC_CORES);
            sc_worker_barrier();
            sc_split_rows_of_several(m, tile, first, count, in, adapters, tokens, out, scratches, apart, core,
                                     SC_CORES);
            return;
        }
#endif
        sc_matrix_tokens(m, tile, first, count, in, adapters, tokens, out, own, core, SC_CORES);
        return;
    }
#endif
#if SC_SPLIT
    if (sc_is_split(m, count, SC_CORES)) {
        multiply_split(m, tile, first, count, in, tokens, out, core);
        return;
    }
#endif
    sc_matrix_tile(m, tile, first, count, in, adapters, tokens, out, core, SC_CORES);
}

/* Called before the first tile: converts the activations for the engine, in place. No other kernel can read
 * them then. */
static inline void multiply_first(const sc_matrix *m, const sc_qvec *in, uint32_t tokens, int core) {
#ifdef SC_PRODUCTS
    if (tokens > 1 && sc_on_products(m)) sc_products_planes(m, in, tokens, core);
#else
    (void)m, (void)in, (void)tokens, (void)core;
#endif
}

#endif
