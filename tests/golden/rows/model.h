/* shrinkc compile rows --target siracusa --bits 8 --head-bits 8 --context 24 --l1 262144
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef MODEL_H
#define MODEL_H

#define SC_VOCAB 107
#define SC_HIDDEN 16
#define SC_FFN 24
#define SC_MATRICES 9
#define SC_LAYERS 2
#define SC_HEADS 2
#define SC_KV_HEADS 1
#define SC_HEAD_DIM 8
#define SC_CONTEXT 24

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
#define SC_LAYER_FIRST SC_OP_ATTN_IN
#define SC_LAYER_LAST SC_OP_OUT
#define SC_OP_NAMES "embed", "attn_in.q", "qkv", "q8", "attn", "o_in.q", "mid", "mlp_in.q", "h", "down_in.q", "out", "final.q", "logits", "next"

/* numbers */
#define SC_EMBED_FACTOR 1828032000u
#define SC_EMBED_SHIFT 6
#define SC_NORM_EPS 2684ull
#define SC_NORM_SHIFT 2
#define SC_DOT_SHIFT 2
#define SC_WEIGHT_BITS 15
#define SC_LOGIT_SHIFT -1
#define SC_LAYER_NUMBERS int8_t k_unit; int8_t v_unit; uint16_t score_mantissa; int16_t score_exponent; int8_t gate_shift; int8_t silu_shift; int8_t up_shift
#define SC_PERMS 0
#define SC_STRIP_SPACE 1

/* schedule */
#define SC_CHUNK 8
#define SC_VERIFIED 8 /* tokens of a pass that gives the choices of all */
#define SC_TILE_BYTES 2016
#define SC_KV_IN_L1 1
#define SC_KV_LAYER_IN_L1 0 /* else, where not all is: in pieces */
#define SC_KV_TILE_BLOCKS 6
#define SC_KV_TILE_BYTES 0
#define SC_LOGITS_IN_L1 1
#define SC_STAGE_BYTES 0
#define SC_EMBED_STAGE 0
#define SC_PLANNED_CORES 8

/* widths of the shared buffers */
#define SC_Y_WORDS 32
#define SC_XQ_WORDS 6
#define SC_XSEGS 1
#define SC_XBLOCKS 3
#define SC_XSUMS 0
#define SC_RANK 0
#define SC_SQ_WORDS 0
#define SC_SSEGS 0
#define SC_HEAD_SCRATCH_BYTES 204
#define SC_HEAD_STATE_BYTES 76
#define SC_LAYER_BYTES 28
#define SC_K_BLOCK_BYTES 48
#define SC_V_BLOCK_BYTES 32


/* L1 arena */
#define SC_ARENA_BYTES 10688
#define SC_AT_TILES 0
#define SC_BYTES_TILES 4032
#define SC_AT_HEAD_SCRATCH 4032
#define SC_BYTES_HEAD_SCRATCH 1632
#define SC_AT_HEAD_WORK 4032
#define SC_BYTES_HEAD_WORK 256
#define SC_AT_TOPS 4032
#define SC_BYTES_TOPS 512
#define SC_AT_LOGITS 4544
#define SC_BYTES_LOGITS 432
#define SC_AT_PARTS 5664
#define SC_BYTES_PARTS 1024
#define SC_AT_Y 6688
#define SC_BYTES_Y 1024
#define SC_AT_HEAD_STATE 7712
#define SC_BYTES_HEAD_STATE 608
#define SC_AT_K_CACHE 8320
#define SC_BYTES_K_CACHE 576
#define SC_AT_X 8896
#define SC_BYTES_X 512
#define SC_AT_V_CACHE 9408
#define SC_BYTES_V_CACHE 384
#define SC_AT_XV 9792
#define SC_BYTES_XV 256
#define SC_AT_XQ 10048
#define SC_BYTES_XQ 192
#define SC_AT_Q8 10240
#define SC_BYTES_Q8 128
#define SC_AT_ROPE 10368
#define SC_BYTES_ROPE 128
#define SC_AT_BLOCK_MAX 10496
#define SC_BYTES_BLOCK_MAX 96
#define SC_AT_Q_SCALE 10592
#define SC_BYTES_Q_SCALE 64
#define SC_AT_XC 10656
#define SC_BYTES_XC 32

#endif
