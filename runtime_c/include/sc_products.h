/* SPDX-License-Identifier: Apache-2.0
 * A tile's product with several tokens where segments have scales: N-EUREKA multiplies, the cores bring it what it
 * reads and add up what comes out.  The same integers as sc_matrix_tokens() gives, which a target without the engine
 * calls. */
#ifndef SC_PRODUCTS_H
#define SC_PRODUCTS_H

#include "sc_kernels.h"

#if defined(SC_SEVERAL_ON_NEUREKA) && defined(SC_NEUREKA)
#define SC_PRODUCTS 1

static inline int sc_on_products(const sc_matrix *m) {
    return (m->format & (SC_FMT_GROUPED | SC_FMT_Q16)) == SC_FMT_GROUPED &&
           (m->in.seg_words | m->in.last_words) % SC_PRODUCT_WORDS == 0;
}

/* This core's share of a matrix's activations, in place: bit planes, which the engine reads as weights.  Once, before
 * the first tile and a barrier after they were made. */
void sc_products_planes(const sc_matrix *m, const sc_qvec *x, uint32_t tokens, int core);

/* As sc_matrix_tokens(), in `room`, of which all cores have the same; all of them, which meet at barriers. */
void sc_matrix_products(const sc_matrix *m, const uint8_t *tile, uint32_t first, uint32_t count,
                        const sc_qvec *x, const sc_qvec *side, uint32_t tokens, const sc_output *out,
                        uint8_t *room, int core);
#endif

#endif
