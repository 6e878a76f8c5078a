/* shrinkc compile gptq --target siracusa --bits 8 --context 16 --l1 262144
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef MODEL_H
#define MODEL_H

#define SC_VOCAB 107
#define SC_HIDDEN 64
#define SC_FFN 96
#define SC_MATRICES 16
#define SC_LAYERS 2
#define SC_HEADS 4
#define SC_KV_HEADS 2
#define SC_HEAD_DIM 16
#define SC_CONTEXT 16

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
#define SC_NORM_EPS 2684ull
#define SC_NORM_SHIFT 3
#define SC_EMBED_FACTOR 1646404724u
#define SC_EMBED_SHIFT 15
#define SC_DOT_SHIFT 3
#define SC_WEIGHT_BITS 15
#define SC_LOGIT_SHIFT 3
#define SC_PERMS 1
#define SC_STRIP_SPACE 1

/* schedule */
#define SC_CHUNK 8
#define SC_TILE_BYTES 16896
#define SC_KV_IN_L1 1
#define SC_KV_TILE_BLOCKS 4
#define SC_KV_TILE_BYTES 0
#define SC_LOGITS_IN_L1 1
#define SC_STAGE_BYTES 0
#define SC_EMBED_STAGE 0
#define SC_PLANNED_CORES 8

/* widths of the shared buffers */
#define SC_Y_WORDS 128
#define SC_XQ_WORDS 24
#define SC_XSEGS 6
#define SC_XBLOCKS 12
#define SC_XSUMS 1
#define SC_RANK 9
#define SC_SQ_WORDS 3
#define SC_SSEGS 1
#define SC_HEAD_SCRATCH_BYTES 140
#define SC_HEAD_STATE_BYTES 204
#define SC_LAYER_BYTES 40
#define SC_K_BLOCK_BYTES 192
#define SC_V_BLOCK_BYTES 128

#define SC_SIDE_FORMAT (8) /* of the b matrices */

/* L1 arena */
#define SC_ARENA_BYTES 49632
#define SC_AT_TILES 0 /* 33792 bytes */
#define SC_AT_LOGITS 33792 /* 432 bytes */
#define SC_AT_Y 33792 /* 4096 bytes */
#define SC_AT_X 37888 /* 2048 bytes */
#define SC_AT_HEAD_STATE 39936 /* 1632 bytes */
#define SC_AT_HEAD_WORK 39936 /* 512 bytes */
#define SC_AT_K_CACHE 41568 /* 1536 bytes */
#define SC_AT_HEAD_SCRATCH 43104 /* 1120 bytes */
#define SC_AT_PARTS 44224 /* 1024 bytes */
#define SC_AT_V_CACHE 45248 /* 1024 bytes */
#define SC_AT_XQ 46272 /* 768 bytes */
#define SC_AT_Q8 47040 /* 512 bytes */
#define SC_AT_BLOCK_MAX 47552 /* 384 bytes */
#define SC_AT_SY 47936 /* 288 bytes */
#define SC_AT_ROPE 48224 /* 256 bytes */
#define SC_AT_SV 48480 /* 256 bytes */
#define SC_AT_XV 48736 /* 256 bytes */
#define SC_AT_XC 48992 /* 192 bytes */
#define SC_AT_XSUM 49184 /* 192 bytes */
#define SC_AT_Q_SCALE 49376 /* 128 bytes */
#define SC_AT_SQ 49504 /* 96 bytes */
#define SC_AT_SC 49600 /* 32 bytes */

#endif
