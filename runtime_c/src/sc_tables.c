/* SPDX-License-Identifier: Apache-2.0
 * sigmoid(-i / 16) in Q16, i = 0 .. 256: numerics/fixed.py SIGMOID_TABLE, held equal by a test. */
#include "sc_platform.h"

#include "sc_model.h"
#include "sc_num.h"

/* what the planner reserves for the tables in L1: memory/plan.py */
_Static_assert(sizeof(void *) != 4 || sizeof(sc_matrix) == SC_MATRIX_BYTES, "planned size of sc_matrix");
_Static_assert(sizeof(void *) != 4 || sizeof(sc_layer) == SC_LAYER_BYTES, "planned size of sc_layer");
_Static_assert(257 * sizeof(uint16_t) <= SC_SIGMOID_BYTES, "planned size of the sigmoid's table");

/* clang-format off */
SC_L1_DATA const uint16_t sc_sigmoid_table[257] = {
    32768, 31744, 30723, 29705, 28693, 27689, 26695, 25712, 24743, 23788, 22849, 21928, 21025, 20143, 19282, 18442,
    17625, 16832, 16062, 15316, 14595, 13898, 13226, 12579, 11955, 11357, 10782, 10230, 9702, 9197, 8714, 8252,
    7812, 7392, 6992, 6611, 6249, 5904, 5577, 5266, 4971, 4692, 4427, 4176, 3938, 3713, 3500, 3298,
    3108, 2928, 2758, 2598, 2446, 2303, 2168, 2041, 1921, 1808, 1701, 1601, 1506, 1417, 1333, 1253,
    1179, 1109, 1042, 980, 922, 867, 815, 766, 720, 677, 636, 598, 562, 528, 497, 467,
    439, 412, 387, 364, 342, 321, 302, 284, 267, 251, 236, 221, 208, 195, 184, 172,
    162, 152, 143, 134, 126, 119, 111, 105, 98, 92, 87, 82, 77, 72, 68, 64,
    60, 56, 53, 50, 47, 44, 41, 39, 36, 34, 32, 30, 28, 27, 25, 23,
    22, 21, 19, 18, 17, 16, 15, 14, 13, 13, 12, 11, 10, 10, 9, 9,
    8, 8, 7, 7, 6, 6, 6, 5, 5, 5, 4, 4, 4, 4, 3, 3,
    3, 3, 3, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1,
    1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0,
};
/* clang-format on */
