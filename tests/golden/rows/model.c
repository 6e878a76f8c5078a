/* shrinkc compile rows --target siracusa --bits 8 --head-bits 8 --context 24 --l1 262144 --engines cores,neureka,neureka_3x3
 * SPDX-License-Identifier: Apache-2.0 */
#include "sc_platform.h"

#include "model.h"
#include "sc_kernels.h"
#include "sc_model.h"
#include "sc_engines.h"

extern const sc_engine sc_engine_neureka;
SC_L1_DATA const sc_engine *const sc_engines[] = {
    [SC_ON_CORES] = 0,
    [SC_ON_NEUREKA] = &sc_engine_neureka,
};


SC_L1_DATA const sc_matrix sc_matrices[SC_MATRICES] = {
    {0u, 256, 32, 4, 4, {16, 1, 16, 16, 2, 2, 4, 4, 4, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, SC_ON_NEUREKA, 21, 0}, /* layer0.qkv */
    {1088u, 256, 16, 2, 2, {16, 1, 16, 16, 2, 2, 4, 4, 4, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, SC_ON_NEUREKA, 6, 0}, /* layer0.o */
    {1632u, 256, 48, 6, 6, {16, 1, 16, 16, 2, 2, 4, 4, 4, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, SC_ON_NEUREKA, 21, 0}, /* layer0.gate_up */
    {3264u, 256, 16, 2, 2, {24, 1, 24, 24, 3, 3, 6, 6, 6, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, SC_ON_NEUREKA, 15, 0}, /* layer0.down */
    {3808u, 256, 32, 4, 4, {16, 1, 16, 16, 2, 2, 4, 4, 4, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, SC_ON_NEUREKA, 21, 0}, /* layer1.qkv */
    {4896u, 256, 16, 2, 2, {16, 1, 16, 16, 2, 2, 4, 4, 4, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, SC_ON_NEUREKA, 6, 0}, /* layer1.o */
    {5440u, 256, 48, 6, 6, {16, 1, 16, 16, 2, 2, 4, 4, 4, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, SC_ON_NEUREKA, 21, 0}, /* layer1.gate_up */
    {7072u, 256, 16, 2, 2, {24, 1, 24, 24, 3, 3, 6, 6, 6, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, SC_ON_NEUREKA, 15, 0}, /* layer1.down */
    {7616u, 256, 107, 14, 14, {16, 1, 16, 16, 2, 2, 4, 4, 4, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, SC_ON_NEUREKA, 21, 0}, /* head */
};


SC_L1_DATA const sc_layer sc_layers[SC_LAYERS] = {
    { { &sc_matrices[0], &sc_matrices[1], &sc_matrices[2], &sc_matrices[3] },
      3, 3, 16978, -54, -1, 14, 13,
    },
    { { &sc_matrices[4], &sc_matrices[5], &sc_matrices[6], &sc_matrices[7] },
      3, 3, 16978, -54, -1, 14, 13,
    },
};

sc_step_fn sc_step_norm, sc_step_linear, sc_step_heads, sc_step_attention, sc_step_quant;
SC_L1_DATA const sc_layer_step sc_layer_steps[] = {
    {sc_step_norm, SC_AT_X, SC_AT_XV, 16, 0, 0, 0, 0, SC_VECTOR}, /* attn_in.q */
    {sc_step_linear, SC_AT_XV, SC_AT_Y, 0, 32, 32, 0, SC_STORE, SC_WORDS}, /* qkv */
    {sc_step_heads, SC_AT_Y, SC_AT_Q8, 32, 4, 16, 0, 0, SC_BYTES}, /* q8 */
    {sc_step_attention, SC_AT_Q8, SC_AT_Y, 4, 32, 16, 0, 0, SC_WORDS}, /* attn */
    {sc_step_quant, SC_AT_Y, SC_AT_XV, 32, 0, 0, 1, 0, SC_VECTOR}, /* o_in.q */
    {sc_step_linear, SC_AT_XV, SC_AT_X, 0, 16, 16, 1, SC_ADD, SC_WORDS}, /* mid */
    {sc_step_norm, SC_AT_X, SC_AT_XV, 16, 0, 0, 2, 1, SC_VECTOR}, /* mlp_in.q */
    {sc_step_linear, SC_AT_XV, SC_AT_Y, 0, 32, 24, 2, SC_SILU, SC_WORDS}, /* h */
    {sc_step_quant, SC_AT_Y, SC_AT_XV, 32, 0, 0, 3, 0, SC_VECTOR}, /* down_in.q */
    {sc_step_linear, SC_AT_XV, SC_AT_X, 0, 16, 16, 3, SC_ADD, SC_WORDS}, /* out */
};

SC_L1_DATA const sc_matrix sc_embedding = {7616u, 256, 107, 14, 14, {16, 1, 16, 16, 2, 2, 4, 4, 4, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, SC_ON_NEUREKA, 21, 0};

SC_L1_DATA const int16_t sc_gains[2 * SC_LAYERS + 1][SC_HIDDEN] = {
    {
    31186, 28371, 27714, 32767, 24600, 28682, 30543, 29024, 25586, 28889, 31292, 29988, 29874, 29844, 29345, 25360,
    },
    {
    26855, 30427, 29155, 29033, 26094, 22275, 25995, 27086, 32767, 30170, 29448, 26884, 26463, 30373, 27483, 27583,
    },
    {
    27275, 28519, 30079, 28475, 28099, 30648, 29572, 28834, 27407, 28969, 26454, 32767, 29313, 29787, 26676, 27868,
    },
    {
    31639, 29756, 27228, 31344, 28761, 32767, 29241, 30810, 25682, 31175, 28694, 24778, 24422, 26920, 32161, 23505,
    },
    {
    25244, 28901, 27304, 29657, 29237, 30178, 32415, 29578, 29845, 30869, 25889, 26803, 28141, 27312, 32767, 28363,
    },
};

const int32_t sc_end_tokens[] = { 2, -1 };
