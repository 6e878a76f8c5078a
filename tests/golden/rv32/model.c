/* shrinkc compile rv32 --target rv32 --bits 8 --embedding-bits 8 --context 12 --l1 1073741824 --engines cores
 * SPDX-License-Identifier: Apache-2.0 */
#include "sc_platform.h"

#include "model.h"
#include "sc_kernels.h"
#include "sc_model.h"



SC_L1_DATA const sc_layer sc_layers[SC_LAYERS] = {
    { { &sc_matrices[0], &sc_matrices[1], &sc_matrices[2], &sc_matrices[3] },
      5, 5, 25669, -54, 16, 0, 13, 12,
    },
    { { &sc_matrices[4], &sc_matrices[5], &sc_matrices[6], &sc_matrices[7] },
      5, 5, 25669, -54, 16, 0, 13, 12,
    },
};

sc_step_fn sc_step_norm, sc_step_linear, sc_step_heads, sc_step_attention, sc_step_quant;
SC_L1_DATA const sc_layer_step sc_layer_steps[] = {
    {sc_step_norm, SC_AT_X, SC_AT_XV, 24, 0, 0, 0, 0, SC_VECTOR, SC_CONTROLLER_NORM}, /* attn_in.q */
    {sc_step_linear, SC_AT_XV, SC_AT_Y, 0, 70, 70, 0, SC_STORE, SC_WORDS, SC_CONTROLLER_MATRIX}, /* qkv */
    {sc_step_heads, SC_AT_Y, SC_AT_Q8, 70, 12, 48, 0, 0, SC_BYTES, SC_CONTROLLER_HEADS}, /* q8 */
    {sc_step_attention, SC_AT_Q8, SC_AT_Y, 12, 70, 42, 0, 0, SC_WORDS, SC_CONTROLLER_ATTENTION}, /* attn */
    {sc_step_quant, SC_AT_Y, SC_AT_XV, 70, 0, 0, 1, 0, SC_VECTOR, SC_CONTROLLER_QUANT}, /* o_in.q */
    {sc_step_linear, SC_AT_XV, SC_AT_X, 0, 24, 24, 1, SC_ADD, SC_WORDS, SC_CONTROLLER_MATRIX}, /* mid */
    {sc_step_norm, SC_AT_X, SC_AT_XV, 24, 0, 0, 2, 1, SC_VECTOR, SC_CONTROLLER_NORM}, /* mlp_in.q */
    {sc_step_linear, SC_AT_XV, SC_AT_H, 0, 24, 24, 2, SC_SILU, SC_WORDS, SC_CONTROLLER_MATRIX}, /* h */
    {sc_step_quant, SC_AT_H, SC_AT_XV, 24, 0, 0, 3, 0, SC_VECTOR, SC_CONTROLLER_QUANT}, /* down_in.q */
    {sc_step_linear, SC_AT_XV, SC_AT_X, 0, 24, 24, 3, SC_ADD, SC_WORDS, SC_CONTROLLER_MATRIX}, /* out */
};

SC_L1_DATA const sc_matrix sc_embedding = {9696u, 208, 107, 14, 14, {24, 1, 24, 24, 3, 3, 6, 6, 6, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, 21, 0};

SC_L1_DATA const sc_matrix sc_matrices[SC_MATRICES] = {
    {0u, 208, 70, 9, 9, {24, 1, 24, 24, 3, 3, 6, 6, 6, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, 21, 0}, /* layer0.qkv */
    {1872u, 368, 24, 3, 3, {42, 1, 42, 42, 6, 6, 11, 11, 11, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, 19, 0}, /* layer0.o */
    {2976u, 208, 48, 6, 6, {24, 1, 24, 24, 3, 3, 6, 6, 6, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, 21, 0}, /* layer0.gate_up */
    {4224u, 208, 24, 3, 3, {24, 1, 24, 24, 3, 3, 6, 6, 6, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, 16, 0}, /* layer0.down */
    {4848u, 208, 70, 9, 9, {24, 1, 24, 24, 3, 3, 6, 6, 6, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, 21, 0}, /* layer1.qkv */
    {6720u, 368, 24, 3, 3, {42, 1, 42, 42, 6, 6, 11, 11, 11, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, 19, 0}, /* layer1.o */
    {7824u, 208, 48, 6, 6, {24, 1, 24, 24, 3, 3, 6, 6, 6, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, 21, 0}, /* layer1.gate_up */
    {9072u, 208, 24, 3, 3, {24, 1, 24, 24, 3, 3, 6, 6, 6, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, 16, 0}, /* layer1.down */
    {9696u, 208, 107, 14, 14, {24, 1, 24, 24, 3, 3, 6, 6, 6, 14}, SC_IN_WMEM, 8 | SC_FMT_Q16, 0, 21, 0}, /* head */
};

SC_L1_DATA const int32_t sc_gains[2 * SC_LAYERS + 1][SC_HIDDEN] = {
    {
    1898685840, 1954734722, 1741881449, 1593927506, 2020336520, 1770084632, 1580215984, 2103503955, 1661222704, 1740827267, 2104439652, 1908227003, 1711468939, 1786310934, 1645270018, 1727066279, 2007001499, 1285977246, 1651326194, 1912790530,
    1414846086, 1729651572, 2145135323, 2147483647,
    },
    {
    2081506415, 1721151828, 1823595744, 1586694168, 1898396958, 1789233420, 2147483647, 1708566613, 1756388867, 2004323165, 1820216144, 1513594257, 1748963077, 1759456807, 2012929946, 1509378254, 1707516808, 1621858701, 1702055116, 1629433935,
    1592898966, 1963707811, 1780837508, 1909167519,
    },
    {
    2023965269, 1823352529, 1873859635, 1688650618, 2147483647, 1974044593, 1907943481, 1735515047, 1900056655, 1692763148, 1967054925, 1746570399, 1468739629, 1722580604, 1641135723, 1904906251, 1782935069, 1668633783, 1796741957, 1611499847,
    1589976646, 1871566993, 1849920876, 1824120110,
    },
    {
    1839340162, 2147483647, 1840160112, 1951684904, 1991487816, 1894215188, 1916504140, 1936017006, 1923152712, 1900300998, 1919236769, 1995468199, 1849954096, 2087651775, 1859407190, 1858866100, 1805199499, 1896478849, 1764104574, 1752987961,
    1805209589, 1957257028, 1760876375, 1755131111,
    },
    {
    1651006810, 1797219338, 1933595114, 1904443063, 1548315726, 1830823701, 1620855198, 1957844591, 1766486506, 1752264137, 1496070399, 2129794681, 2053086478, 2147483647, 1846353310, 1833738568, 1609329329, 1628213075, 1961555979, 1843510316,
    1801620493, 1631085453, 1809228234, 1913138832,
    },
};

const int32_t sc_end_tokens[] = { 2, -1 };
