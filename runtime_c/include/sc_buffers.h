/* SPDX-License-Identifier: Apache-2.0
 * The L1 arena's buffers by name, for the forward pass and its dumps only. */
#ifndef SC_BUFFERS_H
#define SC_BUFFERS_H

#include "sc_engine.h"

/* Per chunk.  x is the residual stream, y each op's fixed-point output in turn (qkv and attention
 * output, h, final norm), xq and xc the int8 input of the matrix at hand. */
#define x SC_BUFFER(int32_t(*)[SC_HIDDEN], SC_AT_X)
#define y SC_BUFFER(int32_t(*)[SC_Y_WORDS], SC_AT_Y)
#define xq SC_BUFFER(int8_t(*)[SC_XQ_WORDS * 4], SC_AT_XQ)
#define xc SC_BUFFER(int32_t(*)[SC_XSEGS], SC_AT_XC)
#define xsum SC_BUFFER(int32_t(*)[SC_XSEGS], SC_AT_XSUM)
#define block_max SC_BUFFER(uint32_t(*)[SC_XBLOCKS], SC_AT_BLOCK_MAX)
#define parts SC_BUFFER(sc_part(*)[SC_CORES], SC_AT_PARTS)
#define sy SC_BUFFER(int32_t(*)[SC_RANK], SC_AT_SY)
#define sq SC_BUFFER(int8_t(*)[SC_SQ_WORDS * 4], SC_AT_SQ)
#define scales SC_BUFFER(int32_t(*)[SC_SSEGS], SC_AT_SC)
#define rope SC_BUFFER(int16_t(*)[SC_HEAD_DIM], SC_AT_ROPE)
#define q8 SC_BUFFER(int8_t(*)[SC_HEADS * SC_HDP], SC_AT_Q8)
#define q_scale SC_BUFFER(uint32_t(*)[SC_HEADS], SC_AT_Q_SCALE)
#define scratch SC_BUFFER(sc_head_scratch *, SC_AT_HEAD_SCRATCH)
#define state SC_BUFFER(sc_head_state *, SC_AT_HEAD_STATE)
#define work SC_BUFFER(int32_t(*)[SC_HEAD_DIM], SC_AT_HEAD_WORK)
#define xv SC_BUFFER(sc_qvec *, SC_AT_XV)
#if SC_RANK > 0
#define sv SC_BUFFER(sc_qvec *, SC_AT_SV)
#else
#define sv ((sc_qvec *)0)
#endif
#endif
