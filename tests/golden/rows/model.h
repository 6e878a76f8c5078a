/* shrinkc compile rows --target siracusa --bits 8 --embedding-bits 8 --context 24 --l1 262144 --code wmem --engines cores,neureka_1x1,neureka_3x3,neureka_both
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
#define SC_LAYER_CACHED SC_OP_ATTN /* when keys and values are in the cache */
#define SC_OP_NAMES "embed", "attn_in.q", "qkv", "q8", "attn", "o_in.q", "mid", "mlp_in.q", "h", "down_in.q", "out", "final.q", "logits", "next"

/* numbers */
#define SC_EMBED_FACTOR 1849707600u
#define SC_EMBED_SHIFT 6
#define SC_NORM_EPS 2684ull
#define SC_NORM_SHIFT 2
#define SC_NORM_DROP 17
#define SC_DOT_SHIFT 2
#define SC_WEIGHT_BITS 15
#define SC_LOGIT_SHIFT -1
#define SC_LAYER_NUMBERS int8_t k_unit; int8_t v_unit; uint16_t score_mantissa; int16_t score_exponent; int8_t mean_unit; int8_t gate_shift; int8_t silu_shift; int8_t up_shift
#define SC_PERMS 0
#define SC_STRIP_SPACE 1

/* schedule */
#define SC_CHUNK 36
#define SC_VERIFIED 9 /* tokens of a pass that gives the choices of all */
#define SC_LOGIT_TOKENS 9 /* tokens whose logits there is room for */
#define SC_TILE_BYTES 0
#define SC_SPLIT 0 /* whether cores split blocks of tiles that have few */
#define SC_KV_IN_L1 1
#define SC_KV_WINDOW 0 /* blocks: no longer, a layer's cache comes into L1; else in pieces */
#define SC_KV_LAYERS_L2 0 /* the first layers, whose cache is there */
#define SC_KV_LAYERS_WMEM 0 /* the next ones */
#define SC_KV_LAYERS_HYPERRAM 0 /* the others */
#define SC_KV_LAYER_BYTES 480
#define SC_KV_TILE_BLOCKS 6
#define SC_KV_TILE_BYTES 288
#define SC_LOGITS_IN_L1 1
#define SC_STAGE_BYTES 0
#define SC_STAGES 0
#define SC_EMBED_STAGE 0
#define SC_TABLE_STAGE 0
#define SC_PIECE_WINDOW 64
#define SC_ROPE_LEVEL SC_IN_L2
#define SC_ROPE_IN_FLASH 0
#define SC_ROPE_AT 0u
#define SC_ROPE_BYTES 384u
#define SC_PIECES_LEVEL SC_IN_L2
#define SC_PIECES_IN_FLASH 0
#define SC_PIECES_AT 384u
#define SC_PIECES_BYTES 560u
#define SC_PLANNED_CORES 8
#define SC_HANDS 9 /* cores that the plan has room for that take heads */

#define SC_IN_PLACE 1 /* memory/plan.py */
#define SC_SPILL_WORDS 14 /* that a core spills while it makes a vector in place */
#define SC_ROOM_OF_O 0 /* words of a token, in which the vector comes to be; 0: it has a place of its own */
#define SC_SOURCE_OF_O SC_AT_XQ
#define SC_ROOM_OF_DOWN 24 /* words of a token, in which the vector comes to be; 0: it has a place of its own */
#define SC_SOURCE_OF_DOWN SC_AT_H

/* widths of the shared buffers */
#define SC_Y_WORDS 32
#define SC_XQ_WORDS 12
#define SC_XGROUPS 0 /* of int8 vectors; 0: there are none */
#define SC_XBLOCKS 0
#define SC_XSUMS 0
#define SC_Q16 1 /* whether there are 16-bit vectors */
#define SC_RANK 0
#define SC_GATE_SHIFT_LEAST (1) /* of all layers: code for others is left out */
#define SC_GATE_SHIFT_MOST (1)
#define SC_SQ_WORDS 0
#define SC_HEAD_SCRATCH_BYTES 204
#define SC_HEAD_STATE_BYTES 76
#define SC_LAYER_BYTES 28
#define SC_K_BLOCK_BYTES 48
#define SC_V_BLOCK_BYTES 32

#define SC_HAS_ENGINES 1
#define SC_ON_CORES 0 /* sc_matrix.engine */
#define SC_ENGINE_TABLE 148 /* bytes of L1 that an engine keeps for each matrix */
#define SC_ENGINE_SECOND_LAYOUT 1 /* of matrices, for passes of one token */
#define SC_ON_NEUREKA_1X1 1
#define SC_ON_NEUREKA_BOTH 2

/* L1 arena */
#define SC_ARENA_BYTES 68016
#define SC_AT_ENGINE 0
#define SC_BYTES_ENGINE 56064
#define SC_AT_HEAD_SCRATCH 0
#define SC_BYTES_HEAD_SCRATCH 1840
#define SC_AT_HEAD_WORK 0
#define SC_BYTES_HEAD_WORK 288
#define SC_AT_Q8 1840
#define SC_BYTES_Q8 576
#define SC_AT_Q_SCALE 2416
#define SC_BYTES_Q_SCALE 288
#define SC_AT_PASS_SCALES 2704
#define SC_BYTES_PASS_SCALES 80
#define SC_AT_H 56064
#define SC_BYTES_H 3456
#define SC_AT_LOGITS 56064
#define SC_BYTES_LOGITS 3856
#define SC_AT_Y 56064
#define SC_BYTES_Y 4608
#define SC_AT_TOPS 59920
#define SC_BYTES_TOPS 576
#define SC_AT_X 60672
#define SC_BYTES_X 2304
#define SC_AT_XQ 62976
#define SC_BYTES_XQ 1152
#define SC_AT_XV 64128
#define SC_BYTES_XV 1152
#define SC_AT_K_CACHE 65280
#define SC_BYTES_K_CACHE 576
#define SC_AT_ROPE 65856
#define SC_BYTES_ROPE 576
#define SC_AT_PARTS 66432
#define SC_BYTES_PARTS 512
#define SC_AT_V_CACHE 66944
#define SC_BYTES_V_CACHE 384
#define SC_AT_VALUE_SCALES 67328
#define SC_BYTES_VALUE_SCALES 16
#define SC_AT_MULTIPLIERS 67344
#define SC_BYTES_MULTIPLIERS 672

#endif
