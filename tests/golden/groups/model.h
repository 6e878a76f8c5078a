/* shrinkc compile groups --target siracusa --bits 4 --group-size 16 --short-last-group --asymmetric --embedding-bits 4 --context 40 --l1 21572 --code wmem --engines cores,neureka_1x1,neureka_3x3,neureka_both
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
#define SC_LAYER_FIRST SC_OP_ATTN_IN
#define SC_LAYER_LAST SC_OP_OUT
#define SC_LAYER_CACHED SC_OP_ATTN /* when keys and values are in the cache */
#define SC_OP_NAMES "embed", "attn_in.q", "qkv", "q8", "attn", "o_in.q", "mid", "mlp_in.q", "h", "down_in.q", "out", "final.q", "logits", "next"

/* numbers */
#define SC_EMBED_FACTOR 2139095040u
#define SC_EMBED_SHIFT 11
#define SC_NORM_EPS 2517ull
#define SC_NORM_SHIFT 3
#define SC_NORM_DROP 17
#define SC_DOT_SHIFT 3
#define SC_WEIGHT_BITS 15
#define SC_LOGIT_SHIFT 4
#define SC_LAYER_NUMBERS int8_t k_unit; int8_t v_unit; uint16_t score_mantissa; int16_t score_exponent; int8_t mean_unit; int8_t gate_shift; int8_t silu_shift; int8_t up_shift
#define SC_PERMS 0
#define SC_STRIP_SPACE 0

/* schedule */
#define SC_CHUNK 1
#define SC_VERIFIED 1 /* tokens of a pass that gives the choices of all */
#define SC_LOGIT_TOKENS 1 /* tokens whose logits there is room for */
#define SC_TILE_BYTES 784
#define SC_SPLIT 0 /* whether cores split blocks of tiles that have few */
#define SC_KV_IN_L1 0
#define SC_KV_WINDOW 2 /* blocks: no longer, a layer's cache comes into L1; else in pieces */
#define SC_KV_LAYERS_L2 3 /* the first layers, whose cache is there */
#define SC_KV_LAYERS_WMEM 0 /* the next ones */
#define SC_KV_LAYERS_HYPERRAM 0 /* the others */
#define SC_KV_LAYER_BYTES 3120
#define SC_KV_TILE_BLOCKS 1
#define SC_KV_TILE_BYTES 192
#define SC_LOGITS_IN_L1 0
#define SC_STAGE_BYTES 0
#define SC_STAGES 0
#define SC_EMBED_STAGE 0
#define SC_TABLE_STAGE 0
#define SC_PIECE_WINDOW 64
#define SC_ROPE_LEVEL SC_IN_L2
#define SC_ROPE_IN_FLASH 0
#define SC_ROPE_AT 0u
#define SC_ROPE_BYTES 800u
#define SC_PIECES_LEVEL SC_IN_L2
#define SC_PIECES_IN_FLASH 0
#define SC_PIECES_AT 800u
#define SC_PIECES_BYTES 10688u
#define SC_PLANNED_CORES 8
#define SC_HANDS 8 /* cores that the plan has room for that take heads */

#define SC_IN_PLACE 0 /* memory/plan.py */
#define SC_SPILL_WORDS 0 /* that a core spills while it makes a vector in place */

/* widths of the shared buffers */
#define SC_Y_WORDS 120
#define SC_XQ_WORDS 34
#define SC_XGROUPS 9 /* of int8 vectors; 0: there are none */
#define SC_XBLOCKS 17
#define SC_XSUMS 1
#define SC_Q16 0 /* whether there are 16-bit vectors */
#define SC_RANK 0
#define SC_GATE_SHIFT_LEAST (6) /* of all layers: code for others is left out */
#define SC_GATE_SHIFT_MOST (6)
#define SC_SQ_WORDS 0
#define SC_HEAD_SCRATCH_BYTES 268
#define SC_HEAD_STATE_BYTES 76
#define SC_LAYER_BYTES 28
#define SC_K_BLOCK_BYTES 192
#define SC_V_BLOCK_BYTES 120


/* L1 arena */
#define SC_ARENA_BYTES 5888
#define SC_AT_H 0
#define SC_BYTES_H 528
#define SC_AT_HEAD_SCRATCH 0
#define SC_BYTES_HEAD_SCRATCH 2144
#define SC_AT_HEAD_WORK 0
#define SC_BYTES_HEAD_WORK 320
#define SC_AT_TOPS 0
#define SC_BYTES_TOPS 64
#define SC_AT_XQ 528
#define SC_BYTES_XQ 144
#define SC_AT_PARTS 672
#define SC_BYTES_PARTS 128
#define SC_AT_BLOCK_MAX 800
#define SC_BYTES_BLOCK_MAX 80
#define SC_AT_XC 880
#define SC_BYTES_XC 48
#define SC_AT_XSUM 928
#define SC_BYTES_XSUM 48
#define SC_AT_TILES 2144
#define SC_BYTES_TILES 1568
#define SC_AT_KV_LAYER 3712
#define SC_BYTES_KV_LAYER 624
#define SC_AT_HEAD_STATE 4336
#define SC_BYTES_HEAD_STATE 608
#define SC_AT_Y 4944
#define SC_BYTES_Y 480
#define SC_AT_X 5424
#define SC_BYTES_X 240
#define SC_AT_Q8 5664
#define SC_BYTES_Q8 80
#define SC_AT_Q_SCALE 5744
#define SC_BYTES_Q_SCALE 32
#define SC_AT_ROPE 5776
#define SC_BYTES_ROPE 32
#define SC_AT_VALUE_SCALES 5808
#define SC_BYTES_VALUE_SCALES 32
#define SC_AT_XV 5840
#define SC_BYTES_XV 32
#define SC_AT_PASS_SCALES 5872
#define SC_BYTES_PASS_SCALES 16

#endif
