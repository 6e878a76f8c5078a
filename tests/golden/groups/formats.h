/* shrinkc compile groups --target siracusa --bits 4 --group-size 16 --short-last-group --asymmetric --embedding-bits 4 --context 40 --l1 21572 --code wmem --engines cores,neureka_1x1,neureka_3x3,neureka_both
 * SPDX-License-Identifier: Apache-2.0
 * Weight formats of this model; included by sc_dot.h. */
#include "sc_dot_w4.h"

/* X(bits, inputs per packed word, log2 of the factor of sums) */
#define SC_EACH_WIDTH(X) X(4, 8, 4)
/* X(sc_matrix.format) */
#define SC_EACH_FORMAT(X) X(4 | SC_FMT_GROUPED) X(4 | SC_FMT_GROUPED | SC_FMT_ASYM)

/* flags of some, and of all, formats used with several tokens at once */
#define SC_SEVERAL_SOME (4 | SC_FMT_GROUPED | 4 | SC_FMT_GROUPED | SC_FMT_ASYM)
#define SC_SEVERAL_ALL ((4 | SC_FMT_GROUPED) & (4 | SC_FMT_GROUPED | SC_FMT_ASYM))
