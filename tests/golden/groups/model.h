/* shrinkc compile groups --target siracusa --bits 4 --group 16 --short-last-group --asymmetric --head-bits 4 --context 40 --l1 20680
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef MODEL_H
#define MODEL_H

#define SC_VOCAB 2600
#define SC_HIDDEN 60
#define SC_FFN 130
#define SC_MATRICES 13
#define SC_LAYERS 3
#define SC_HEADS 6
#define SC_KV_HEADS 3
#define SC_HEAD_DIM 10
#define SC_CONTEXT 40

/* a pass's ops in their order, as the graph calls them */
enum sc_op {
    SC_OP_EMBED,
    SC_OP_ATTN_IN,
    SC_OP_QKV,
    SC_OP_Q8,
    SC_OP_ATTN,
    SC_OP_O_IN,
    SC_OP_MID,
    SC_OP_MLP_IN,
    SC_OP_H,
    SC_OP_DOWN_IN,
    SC_OP_OUT,
    SC_OP_FINAL,
    SC_OP_LOGITS,
    SC_OP_NEXT,
    SC_OPS
};
#define SC_OP_NAMES "embed", "attn_in.q", "qkv", "q8", "attn", "o_in.q", "mid", "mlp_in.q", "h", "down_in.q", "out", "final.q", "logits", "next"

/* numbers */
#define SC_NORM_EPS 2517ull
#define SC_NORM_SHIFT 3
#define SC_EMBED_FACTOR 2139095040u
#define SC_EMBED_SHIFT 11
#define SC_DOT_SHIFT 3
#define SC_WEIGHT_BITS 15
#define SC_LOGIT_SHIFT 3
#define SC_PERMS 0
#define SC_STRIP_SPACE 0

/* schedule */
#define SC_CHUNK 1
#define SC_TILE_BYTES 784
#define SC_KV_IN_L1 0
#define SC_KV_TILE_BLOCKS 1
#define SC_KV_TILE_BYTES 192
#define SC_LOGITS_IN_L1 0
#define SC_STAGE_BYTES 0
#define SC_EMBED_STAGE 0
#define SC_PLANNED_CORES 8

/* widths of the shared buffers */
#define SC_Y_WORDS 132
#define SC_XQ_WORDS 34
#define SC_XSEGS 9
#define SC_XBLOCKS 17
#define SC_XSUMS 1
#define SC_RANK 0
#define SC_SQ_WORDS 0
#define SC_SSEGS 0
#define SC_HEAD_SCRATCH_BYTES 268
#define SC_HEAD_STATE_BYTES 76
#define SC_QVEC_BYTES 32
#define SC_MATRIX_BYTES 48
#define SC_LAYER_BYTES 24
#define SC_TABLE_BYTES 2560


/* L1 arena */
#define SC_ARENA_BYTES 6096
#define SC_AT_HEAD_SCRATCH 0 /* 2144 bytes */
#define SC_AT_HEAD_WORK 0 /* 320 bytes */
#define SC_AT_TILES 2144 /* 1568 bytes */
#define SC_AT_HEAD_STATE 3712 /* 608 bytes */
#define SC_AT_Y 4320 /* 528 bytes */
#define SC_AT_KV_TILE 4848 /* 384 bytes */
#define SC_AT_X 5232 /* 240 bytes */
#define SC_AT_XQ 5472 /* 144 bytes */
#define SC_AT_PARTS 5616 /* 128 bytes */
#define SC_AT_BLOCK_MAX 5744 /* 80 bytes */
#define SC_AT_Q8 5824 /* 80 bytes */
#define SC_AT_XC 5904 /* 48 bytes */
#define SC_AT_XSUM 5952 /* 48 bytes */
#define SC_AT_Q_SCALE 6000 /* 32 bytes */
#define SC_AT_ROPE 6032 /* 32 bytes */
#define SC_AT_XV 6064 /* 32 bytes */

#endif
