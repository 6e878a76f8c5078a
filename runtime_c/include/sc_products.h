/* SPDX-License-Identifier: Apache-2.0
 * Grouped matrix times several tokens on N-EUREKA: the workers widen the weights to int8 and add up the
 * products per quantisation group. Reads weights in L1; same result as sc_matrix_tokens(). */
#ifndef SC_PRODUCTS_H
#define SC_PRODUCTS_H

#include "model.h"
#include "sc_kernels.h"

#if defined(SC_SEVERAL_ON_NEUREKA) && defined(SC_NEUREKA)
#define SC_PRODUCTS 1

static inline int sc_on_products(const sc_matrix *m) {
    return (m->format & (SC_FMT_GROUPED | SC_FMT_Q16)) == SC_FMT_GROUPED &&
           (m->in.group_words | m->in.last_words) % SC_PRODUCT_WORDS == 0;
}

/* Converts this core's share of the activations to bit planes, in place; the engine reads them as its
 * weights. Once per matrix, after a barrier, before the first tile. */
void sc_products_planes(const sc_matrix *m, const sc_qvec *x, uint32_t tokens, int core);

/* Like sc_matrix_tokens(). All workers call it with the same `room` (L1); it contains barriers. */
void sc_matrix_products(const sc_matrix *m, const uint8_t *tile, uint32_t first, uint32_t count,
                        const sc_qvec *x, const sc_qvec *adapter, uint32_t tokens, const sc_output *out,
                        uint8_t *room, int core);
#endif

#endif
