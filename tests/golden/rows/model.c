/* shrinkc compile rows --target siracusa --bits 8 --embedding-bits 8 --context 24 --l1 262144 --code wmem --engines cores,neureka_1x1,neureka_3x3,neureka_both
 * SPDX-License-Identifier: Apache-2.0 */
#include "sc_platform.h"

#include "model.h"
#include "sc_kernels.h"
#include "sc_model.h"
#include "sc_engines.h"

extern const sc_engine sc_engine_neureka_1x1;
extern const sc_engine sc_engine_neureka_both;
SC_L1_DATA const sc_engine *const sc_engines[] = {
    [SC_ON_CORES] = 0,
    [SC_ON_NEUREKA_1X1] = &sc_engine_neureka_1x1,
    [SC_ON_NEUREKA_BOTH] = &sc_engine_neureka_both,
};



SC_L1_DATA const sc_layer sc_layers[SC_LAYERS] = {
    { { &sc_matrices[0], &sc_matrices[1], &sc_matrices[2], &sc_matrices[3] },
      5, 5, 16978, -56, 15, 1, 12, 11,
    },
    { { &sc_matrices[4], &sc_matrices[5], &sc_matrices[6], &sc_matrices[7] },
      5, 5, 16978, -56, 15, 1, 12, 11,
    },
};

sc_step_fn sc_step_norm, sc_step_linear, sc_step_heads, sc_step_attention, sc_step_quant;
SC_L1_DATA const sc_layer_step sc_layer_steps[] = {
    {sc_step_norm, SC_AT_X, SC_AT_XV, 16, 0, 0, 0, 0, SC_VECTOR, SC_CONTROLLER_NORM}, /* attn_in.q */
    {sc_step_linear, SC_AT_XV, SC_AT_Y, 0, 32, 32, 0, SC_STORE, SC_WORDS, SC_CONTROLLER_MATRIX}, /* qkv */
    {sc_step_heads, SC_AT_Y, SC_AT_Q8, 32, 4, 16, 0, 0, SC_BYTES, SC_CONTROLLER_HEADS}, /* q8 */
    {sc_step_attention, SC_AT_Q8, SC_AT_Y, 4, 32, 16, 0, 0, SC_WORDS, SC_CONTROLLER_ATTENTION}, /* attn */
    {sc_step_quant, SC_AT_Y, SC_AT_XV, 32, 0, 0, 1, 0, SC_VECTOR, SC_CONTROLLER_QUANT}, /* o_in.q */
    {sc_step_linear, SC_AT_XV, SC_AT_X, 0, 16, 16, 1, SC_ADD, SC_WORDS, SC_CONTROLLER_MATRIX}, /* mid */
    {sc_step_norm, SC_AT_X, SC_AT_XV, 16, 0, 0, 2, 1, SC_VECTOR, SC_CONTROLLER_NORM}, /* mlp_in.q */
    {sc_step_linear, SC_AT_XV, SC_AT_H, 0, 24, 24, 2, SC_SILU, SC_WORDS, SC_CONTROLLER_MATRIX}, /* h */
    {sc_step_quant, SC_AT_H, SC_AT_XV, 24, 0, 0, 3, 0, SC_VECTOR, SC_CONTROLLER_QUANT}, /* down_in.q */
    {sc_step_linear, SC_AT_XV, SC_AT_X, 0, 16, 16, 3, SC_ADD, SC_WORDS, SC_CONTROLLER_MATRIX}, /* out */
};

SC_L1_DATA const sc_matrix sc_embedding = {12928u, 256, 107, 14, 14, {16, 1, 16, 16, 2, 2, 12, 4, 12, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, SC_ON_NEUREKA_BOTH, 20, 1, 0};

SC_L1_DATA const sc_matrix sc_matrices[SC_MATRICES] = {
    {0u, 256, 32, 4, 4, {16, 1, 16, 16, 2, 2, 4, 4, 4, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, SC_ON_NEUREKA_1X1, 20, 0, 0}, /* layer0.qkv */
    {1088u, 256, 16, 2, 2, {16, 1, 16, 16, 2, 2, 12, 4, 12, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, SC_ON_NEUREKA_BOTH, 19, 1, 0}, /* layer0.o */
    {2176u, 256, 48, 6, 6, {16, 1, 16, 16, 2, 2, 12, 4, 12, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, SC_ON_NEUREKA_BOTH, 20, 1, 0}, /* layer0.gate_up */
    {5376u, 256, 16, 2, 2, {24, 1, 24, 24, 3, 3, 18, 6, 18, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, SC_ON_NEUREKA_BOTH, 16, 1, 0}, /* layer0.down */
    {6464u, 256, 32, 4, 4, {16, 1, 16, 16, 2, 2, 4, 4, 4, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, SC_ON_NEUREKA_1X1, 20, 0, 0}, /* layer1.qkv */
    {7552u, 256, 16, 2, 2, {16, 1, 16, 16, 2, 2, 12, 4, 12, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, SC_ON_NEUREKA_BOTH, 19, 1, 0}, /* layer1.o */
    {8640u, 256, 48, 6, 6, {16, 1, 16, 16, 2, 2, 12, 4, 12, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, SC_ON_NEUREKA_BOTH, 20, 1, 0}, /* layer1.gate_up */
    {11840u, 256, 16, 2, 2, {24, 1, 24, 24, 3, 3, 18, 6, 18, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, SC_ON_NEUREKA_BOTH, 16, 1, 0}, /* layer1.down */
    {12928u, 256, 107, 14, 14, {16, 1, 16, 16, 2, 2, 12, 4, 12, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, SC_ON_NEUREKA_BOTH, 20, 1, 0}, /* head */
};

SC_L1_DATA const int32_t sc_gains[2 * SC_LAYERS + 1][SC_HIDDEN] = {
    {
    2043895342, 1859401381, 1816287770, 2147483647, 1612224361, 1879776018, 2001709188, 1902157808, 1676837433, 1893295621, 2050809644, 1965368951, 1957862434, 1955918620, 1923231657, 1662039072,
    },
    {
    1760018913, 1994155261, 1910767395, 1902751261, 1710160655, 1459835820, 1703689653, 1775166496, 2147483647, 1977296514, 1929955047, 1761900458, 1734326250, 1990597119, 1801151193, 1807728125,
    },
    {
    1787561570, 1869079525, 1971326208, 1866167144, 1841583375, 2008581220, 1938074552, 1889731201, 1796198280, 1898552301, 1733741414, 2147483647, 1921095755, 1952210225, 1748282055, 1826393584,
    },
    {
    2073568609, 1950116070, 1784451548, 2054235134, 1884952648, 2147483647, 1916389962, 2019230302, 1683140877, 2043145793, 1880574394, 1623906349, 1600580823, 1764283804, 2107739521, 1540439328,
    },
    {
    1654471200, 1894119636, 1789464489, 1943689221, 1916151126, 1977812838, 2124417339, 1938452952, 1955962601, 2023107544, 1696689788, 1756608650, 1844317310, 1789966684, 2147483647, 1858868369,
    },
};

const int32_t sc_end_tokens[] = { 2, -1 };
