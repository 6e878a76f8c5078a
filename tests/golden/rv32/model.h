/* shrinkc compile rv32 --target rv32 --bits 8 --embedding-bits 8 --context 12 --l1 1073741824 --engines cores
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef MODEL_H
#define MODEL_H

#define SC_VOCAB 107
#define SC_HIDDEN 24
#define SC_FFN 24
#define SC_MATRICES 9
#define SC_LAYERS 2
#define SC_HEADS 3
#define SC_KV_HEADS 1
#define SC_HEAD_DIM 14
#define SC_CONTEXT 12

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
#define SC_EMBED_FACTOR 1447872200u
#define SC_EMBED_SHIFT 6
#define SC_NORM_EPS 1007ull
#define SC_NORM_SHIFT 3
#define SC_NORM_DROP 17
#define SC_DOT_SHIFT 3
#define SC_WEIGHT_BITS 15
#define SC_LOGIT_SHIFT -1
#define SC_LAYER_NUMBERS int8_t k_unit; int8_t v_unit; uint16_t score_mantissa; int16_t score_exponent; int8_t mean_unit; int8_t gate_shift; int8_t silu_shift; int8_t up_shift
#define SC_PERMS 0
#define SC_STRIP_SPACE 1

/* schedule */
#define SC_CHUNK 16
#define SC_VERIFIED 9 /* tokens of a pass that gives the choices of all */
#define SC_LOGIT_TOKENS 1 /* tokens whose logits there is room for */
#define SC_TILE_BYTES 2912
#define SC_SPLIT 0 /* whether cores split blocks of tiles that have few */
#define SC_KV_IN_L1 1
#define SC_KV_WINDOW 0 /* blocks: no longer, a layer's cache comes into L1; else in pieces */
#define SC_KV_LAYERS_L2 0 /* the first layers, whose cache is there */
#define SC_KV_LAYERS_WMEM 0 /* the next ones */
#define SC_KV_LAYERS_HYPERRAM 0 /* the others */
#define SC_KV_LAYER_BYTES 416
#define SC_KV_TILE_BLOCKS 3
#define SC_KV_TILE_BYTES 240
#define SC_LOGITS_IN_L1 1
#define SC_STAGE_BYTES 0
#define SC_STAGES 0
#define SC_EMBED_STAGE 0
#define SC_TABLE_STAGE 0
#define SC_PIECE_WINDOW 64
#define SC_ROPE_LEVEL SC_IN_L2
#define SC_ROPE_IN_FLASH 0
#define SC_ROPE_AT 0u
#define SC_ROPE_BYTES 336u
#define SC_PIECES_LEVEL SC_IN_L2
#define SC_PIECES_IN_FLASH 0
#define SC_PIECES_AT 336u
#define SC_PIECES_BYTES 560u
#define SC_PLANNED_CORES 8
#define SC_HANDS 8 /* cores that the plan has room for that take heads */

#define SC_IN_PLACE 0 /* memory/plan.py */
#define SC_SPILL_WORDS 0 /* that a core spills while it makes a vector in place */

/* widths of the shared buffers */
#define SC_Y_WORDS 70
#define SC_XQ_WORDS 22
#define SC_XGROUPS 0 /* of int8 vectors; 0: there are none */
#define SC_XBLOCKS 0
#define SC_XSUMS 0
#define SC_Q16 1 /* whether there are 16-bit vectors */
#define SC_RANK 0
#define SC_GATE_SHIFT_LEAST (0) /* of all layers: code for others is left out */
#define SC_GATE_SHIFT_MOST (0)
#define SC_SQ_WORDS 0
#define SC_HEAD_SCRATCH_BYTES 140
#define SC_HEAD_STATE_BYTES 140
#define SC_LAYER_BYTES 28
#define SC_K_BLOCK_BYTES 80
#define SC_V_BLOCK_BYTES 56


/* L1 arena */
#define SC_ARENA_BYTES 15744
#define SC_AT_TILES 0
#define SC_BYTES_TILES 5824
#define SC_AT_H 5824
#define SC_BYTES_H 1536
#define SC_AT_TOPS 5824
#define SC_BYTES_TOPS 576
#define SC_AT_Y 5824
#define SC_BYTES_Y 4480
#define SC_AT_LOGITS 6400
#define SC_BYTES_LOGITS 432
#define SC_AT_X 10304
#define SC_BYTES_X 1536
#define SC_AT_HEAD_SCRATCH 11840
#define SC_BYTES_HEAD_SCRATCH 1120
#define SC_AT_HEAD_WORK 11840
#define SC_BYTES_HEAD_WORK 448
#define SC_AT_XQ 11840
#define SC_BYTES_XQ 1408
#define SC_AT_Q8 12960
#define SC_BYTES_Q8 768
#define SC_AT_PARTS 13248
#define SC_BYTES_PARTS 512
#define SC_AT_PASS_SCALES 13728
#define SC_BYTES_PASS_SCALES 32
#define SC_AT_XV 13760
#define SC_BYTES_XV 512
#define SC_AT_K_CACHE 14272
#define SC_BYTES_K_CACHE 480
#define SC_AT_ROPE 14752
#define SC_BYTES_ROPE 448
#define SC_AT_V_CACHE 15200
#define SC_BYTES_V_CACHE 336
#define SC_AT_Q_SCALE 15536
#define SC_BYTES_Q_SCALE 192
#define SC_AT_VALUE_SCALES 15728
#define SC_BYTES_VALUE_SCALES 16

#endif
