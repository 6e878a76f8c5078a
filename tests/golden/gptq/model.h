/* shrinkc compile gptq --target siracusa --bits 8 --context 16 --l1 262144 --code wmem --engines cores,neureka_1x1,neureka_3x3,neureka_both
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
#define SC_LAYER_FIRST SC_OP_ATTN_IN
#define SC_LAYER_LAST SC_OP_OUT
#define SC_LAYER_CACHED SC_OP_ATTN /* when keys and values are in the cache */
#define SC_OP_NAMES "embed", "attn_in.q", "qkv", "q8", "attn", "o_in.q", "mid", "mlp_in.q", "h", "down_in.q", "out", "final.q", "logits", "next"

/* numbers */
#define SC_EMBED_FACTOR 1646454969u
#define SC_EMBED_SHIFT 15
#define SC_NORM_EPS 2684ull
#define SC_NORM_SHIFT 3
#define SC_NORM_DROP 17
#define SC_DOT_SHIFT 3
#define SC_WEIGHT_BITS 15
#define SC_LOGIT_SHIFT 4
#define SC_LAYER_NUMBERS int8_t k_unit; int8_t v_unit; uint16_t score_mantissa; int16_t score_exponent; int8_t mean_unit; int8_t gate_shift; int8_t silu_shift; int8_t up_shift
#define SC_PERMS 1
#define SC_STRIP_SPACE 1

/* schedule */
#define SC_CHUNK 16
#define SC_VERIFIED 9 /* tokens of a pass that gives the choices of all */
#define SC_LOGIT_TOKENS 1 /* tokens whose logits there is room for */
#define SC_TILE_BYTES 16896
#define SC_SPLIT 0 /* whether cores split blocks of tiles that have few */
#define SC_KV_IN_L1 1
#define SC_KV_WINDOW 0 /* blocks: no longer, a layer's cache comes into L1; else in pieces */
#define SC_KV_LAYERS_L2 0 /* the first layers, whose cache is there */
#define SC_KV_LAYERS_WMEM 0 /* the next ones */
#define SC_KV_LAYERS_HYPERRAM 0 /* the others */
#define SC_KV_LAYER_BYTES 1152
#define SC_KV_TILE_BLOCKS 4
#define SC_KV_TILE_BYTES 640
#define SC_LOGITS_IN_L1 1
#define SC_STAGE_BYTES 0
#define SC_STAGES 0
#define SC_EMBED_STAGE 0
#define SC_TABLE_STAGE 0
#define SC_PIECE_WINDOW 64
#define SC_ROPE_LEVEL SC_IN_L2
#define SC_ROPE_IN_FLASH 0
#define SC_ROPE_AT 0u
#define SC_ROPE_BYTES 512u
#define SC_PIECES_LEVEL SC_IN_L2
#define SC_PIECES_IN_FLASH 0
#define SC_PIECES_AT 512u
#define SC_PIECES_BYTES 560u
#define SC_PLANNED_CORES 8
#define SC_HANDS 8 /* cores that the plan has room for that take heads */

#define SC_IN_PLACE 0 /* memory/plan.py */
#define SC_SPILL_WORDS 0 /* that a core spills while it makes a vector in place */

/* widths of the shared buffers */
#define SC_Y_WORDS 128
#define SC_XQ_WORDS 32
#define SC_XGROUPS 6 /* of int8 vectors; 0: there are none */
#define SC_XBLOCKS 12
#define SC_XSUMS 1
#define SC_Q16 1 /* whether there are 16-bit vectors */
#define SC_RANK 9
#define SC_GATE_SHIFT_LEAST (2) /* of all layers: code for others is left out */
#define SC_GATE_SHIFT_MOST (7)
#define SC_SQ_WORDS 6
#define SC_HEAD_SCRATCH_BYTES 140
#define SC_HEAD_STATE_BYTES 140
#define SC_LAYER_BYTES 44
#define SC_K_BLOCK_BYTES 160
#define SC_V_BLOCK_BYTES 128

#define SC_SIDE_FORMAT (8 | SC_FMT_Q16) /* of the b matrices */
#define SC_HAS_ENGINES 1
#define SC_ON_CORES 0 /* sc_matrix.engine */
#define SC_ENGINE_TABLE 148 /* bytes of L1 that an engine keeps for each matrix */
#define SC_ENGINE_SECOND_LAYOUT 1 /* of matrices, for passes of one token */
#define SC_ON_NEUREKA_BOTH 1
#define SC_ONLY_ENGINE sc_engine_neureka_both /* of all matrices but the cores' */

/* L1 arena */
#define SC_ARENA_BYTES 89136
#define SC_AT_TILES 0
#define SC_BYTES_TILES 33792
#define SC_AT_ENGINE 33792
#define SC_BYTES_ENGINE 28032
#define SC_AT_HEAD_SCRATCH 33792
#define SC_BYTES_HEAD_SCRATCH 1120
#define SC_AT_HEAD_WORK 33792
#define SC_BYTES_HEAD_WORK 512
#define SC_AT_Q8 34912
#define SC_BYTES_Q8 1024
#define SC_AT_Q_SCALE 35936
#define SC_BYTES_Q_SCALE 256
#define SC_AT_PASS_SCALES 36192
#define SC_BYTES_PASS_SCALES 64
#define SC_AT_H 61824
#define SC_BYTES_H 6144
#define SC_AT_TOPS 61824
#define SC_BYTES_TOPS 576
#define SC_AT_Y 61824
#define SC_BYTES_Y 8192
#define SC_AT_LOGITS 62400
#define SC_BYTES_LOGITS 432
#define SC_AT_BLOCK_MAX 70016
#define SC_BYTES_BLOCK_MAX 768
#define SC_AT_PRODUCTS 70016
#define SC_BYTES_PRODUCTS 5216
#define SC_AT_X 75232
#define SC_BYTES_X 4096
#define SC_AT_PARTS 79328
#define SC_BYTES_PARTS 2048
#define SC_AT_XQ 81376
#define SC_BYTES_XQ 2048
#define SC_AT_K_CACHE 83424
#define SC_BYTES_K_CACHE 1280
#define SC_AT_V_CACHE 84704
#define SC_BYTES_V_CACHE 1024
#define SC_AT_SY 85728
#define SC_BYTES_SY 576
#define SC_AT_ROPE 86304
#define SC_BYTES_ROPE 512
#define SC_AT_SV 86816
#define SC_BYTES_SV 512
#define SC_AT_XV 87328
#define SC_BYTES_XV 512
#define SC_AT_SQ 87840
#define SC_BYTES_SQ 384
#define SC_AT_XC 88224
#define SC_BYTES_XC 384
#define SC_AT_XSUM 88608
#define SC_BYTES_XSUM 384
#define SC_AT_VALUE_SCALES 88992
#define SC_BYTES_VALUE_SCALES 16
#define SC_AT_MULTIPLIERS 89008
#define SC_BYTES_MULTIPLIERS 128

#endif
