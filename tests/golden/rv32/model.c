/* shrinkc compile rv32 --target rv32 --bits 8 --head-bits 8 --context 12 --l1 1073741824 --engines cores
 * SPDX-License-Identifier: Apache-2.0 */
#include "sc_platform.h"

#include "model.h"
#include "sc_kernels.h"
#include "sc_model.h"


SC_L1_DATA const sc_matrix sc_matrices[SC_MATRICES] = {
    {0u, 208, 70, 9, 9, {24, 1, 24, 24, 3, 3, 6, 6, 6, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, 22, 0}, /* layer0.qkv */
    {1872u, 368, 24, 3, 3, {42, 1, 42, 42, 6, 6, 11, 11, 11, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, 5, 0}, /* layer0.o */
    {2976u, 208, 48, 6, 6, {24, 1, 24, 24, 3, 3, 6, 6, 6, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, 22, 0}, /* layer0.gate_up */
    {4224u, 208, 24, 3, 3, {24, 1, 24, 24, 3, 3, 6, 6, 6, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, 15, 0}, /* layer0.down */
    {4848u, 208, 70, 9, 9, {24, 1, 24, 24, 3, 3, 6, 6, 6, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, 22, 0}, /* layer1.qkv */
    {6720u, 368, 24, 3, 3, {42, 1, 42, 42, 6, 6, 11, 11, 11, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, 5, 0}, /* layer1.o */
    {7824u, 208, 48, 6, 6, {24, 1, 24, 24, 3, 3, 6, 6, 6, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, 22, 0}, /* layer1.gate_up */
    {9072u, 208, 24, 3, 3, {24, 1, 24, 24, 3, 3, 6, 6, 6, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, 15, 0}, /* layer1.down */
    {9696u, 208, 107, 14, 14, {24, 1, 24, 24, 3, 3, 6, 6, 6, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, 22, 0}, /* head */
};


SC_L1_DATA const sc_layer sc_layers[SC_LAYERS] = {
    { { &sc_matrices[0], &sc_matrices[1], &sc_matrices[2], &sc_matrices[3] },
      3, 3, 25669, -52, -2, 15, 14,
    },
    { { &sc_matrices[4], &sc_matrices[5], &sc_matrices[6], &sc_matrices[7] },
      3, 3, 25669, -52, -2, 15, 14,
    },
};

sc_step_fn sc_step_norm, sc_step_linear, sc_step_heads, sc_step_attention, sc_step_quant;
SC_L1_DATA const sc_layer_step sc_layer_steps[] = {
    {sc_step_norm, SC_AT_X, SC_AT_XV, 24, 0, 0, 0, 0, SC_VECTOR}, /* attn_in.q */
    {sc_step_linear, SC_AT_XV, SC_AT_Y, 0, 70, 70, 0, SC_STORE, SC_WORDS}, /* qkv */
    {sc_step_heads, SC_AT_Y, SC_AT_Q8, 70, 12, 48, 0, 0, SC_BYTES}, /* q8 */
    {sc_step_attention, SC_AT_Q8, SC_AT_Y, 12, 70, 42, 0, 0, SC_WORDS}, /* attn */
    {sc_step_quant, SC_AT_Y, SC_AT_XV, 70, 0, 0, 1, 0, SC_VECTOR}, /* o_in.q */
    {sc_step_linear, SC_AT_XV, SC_AT_X, 0, 24, 24, 1, SC_ADD, SC_WORDS}, /* mid */
    {sc_step_norm, SC_AT_X, SC_AT_XV, 24, 0, 0, 2, 1, SC_VECTOR}, /* mlp_in.q */
    {sc_step_linear, SC_AT_XV, SC_AT_Y, 0, 70, 24, 2, SC_SILU, SC_WORDS}, /* h */
    {sc_step_quant, SC_AT_Y, SC_AT_XV, 70, 0, 0, 3, 0, SC_VECTOR}, /* down_in.q */
    {sc_step_linear, SC_AT_XV, SC_AT_X, 0, 24, 24, 3, SC_ADD, SC_WORDS}, /* out */
};

SC_L1_DATA const sc_matrix sc_embedding = {9696u, 208, 107, 14, 14, {24, 1, 24, 24, 3, 3, 6, 6, 6, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, 22, 0};

SC_L1_DATA const int16_t sc_gains[2 * SC_LAYERS + 1][SC_HIDDEN] = {
    {
    28971, 29826, 26578, 24321, 30827, 27009, 24111, 32096, 25347, 26562, 32110, 29116, 26114, 27256, 25104, 26352, 30623, 19622, 25196, 29186,
    21588, 26392, 32731, 32767,
    },
    {
    31760, 26262, 27825, 24210, 28966, 27301, 32767, 26070, 26800, 30583, 27773, 23095, 26686, 26846, 30714, 23031, 26054, 24747, 25971, 24862,
    24305, 29963, 27173, 29131,
    },
    {
    30882, 27821, 28592, 25766, 32767, 30121, 29112, 26481, 28992, 25829, 30014, 26650, 22411, 26284, 25041, 29066, 27205, 25461, 27415, 24589,
    24260, 28557, 28227, 27833,
    },
    {
    28065, 32767, 28078, 29779, 30387, 28903, 29243, 29540, 29344, 28995, 29284, 30447, 28227, 31854, 28371, 28363, 27544, 28937, 26917, 26748,
    27544, 29864, 26868, 26780,
    },
    {
    25192, 27423, 29503, 29059, 23625, 27935, 24732, 29873, 26954, 26737, 22828, 32497, 31327, 32767, 28172, 27980, 24556, 24844, 29930, 28129,
    27490, 24888, 27606, 29191,
    },
};

const int32_t sc_end_tokens[] = { 2, -1 };
