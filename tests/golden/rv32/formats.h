/* shrinkc compile rv32 --target rv32 --bits 8 --embedding-bits 8 --context 12 --l1 1073741824 --engines cores
 * SPDX-License-Identifier: Apache-2.0
 * Weight formats of this model; included by sc_dot.h. */
#include "sc_dot_w8.h"

/* X(bits, inputs per packed word, log2 of the factor of sums) */
#define SC_EACH_WIDTH(X) X(8, 4, 0)
/* X(sc_matrix.format) */
#define SC_EACH_FORMAT(X) X(8 | SC_FMT_Q16)
