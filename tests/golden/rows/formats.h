/* shrinkc compile rows --target siracusa --bits 8 --embedding-bits 8 --context 24 --l1 262144 --code wmem --engines cores,neureka_1x1,neureka_3x3,neureka_both
 * SPDX-License-Identifier: Apache-2.0
 * Weight formats of this model; included by sc_dot.h. */
#include "sc_dot_w8.h"

/* X(bits, inputs per packed word, log2 of the factor of sums) */
#define SC_EACH_WIDTH(X) X(8, 4, 0)
/* X(sc_matrix.format) */
#define SC_EACH_FORMAT(X) X(8 | SC_FMT_Q16)
