/* SPDX-License-Identifier: Apache-2.0
 * Constants that shrinkc and all compiled models share.
 * Generated from compiler/shrinkc/abi/contract.py by `python -m pytest tests/abi --update-golden`. */
#ifndef SC_ABI_H
#define SC_ABI_H

#define SC_HASH_MULTIPLIER 0x01000193u /* h = h * this + word, from 0 */
#define SC_SAMPLED_WORDS 64            /* minimum of words checked in each blob */
#define SC_ROWS 8                      /* rows of a block */
#define SC_BLOCK 8                     /* inputs that a core quantises at a time */
#define SC_PRODUCT_BLOCKS 8            /* blocks of a run in products on N-EUREKA */
#define SC_PRODUCT_WORDS 8             /* words of a row per engine tile */
#define SC_PRODUCT_PAIR_WORDS 16       /* most words of a group for two groups per step */
#define SC_FLAT_WORDS 8                /* most words of a 4-bit group with 16-bit sums */
#define SC_SPLIT_WORDS 192             /* minimum words of a row for splitting a block among cores */
#define SC_SPLIT_GROUPS 8              /* minimum groups for splitting a block */
#define SC_WIDE_WORDS 32               /* words widened to int8 at a time, for 16-bit vectors */
#define SC_LOOKUP_MAX 8                /* maximum tokens of a draft */
#define SC_QVEC_BYTES 32               /* sizeof(sc_qvec) on a 64-bit host */
#define SC_MATRIX_BYTES 48             /* sizeof(sc_matrix) on a 32-bit target */
#define SC_PART_BYTES 16               /* sizeof(sc_part) */
#define SC_TOP_BYTES 8                 /* sizeof(sc_top) */
#define SC_TABLE_BYTES 2560            /* tables of exp2 and sigmoid */

/* what a run reports */
enum sc_trace {
    SC_TRACE_TEXT = 0,  /* text only */
    SC_TRACE_PROOF = 1, /* lines: tokens, logits, hash of every layer's output */
    SC_TRACE_DUMP = 2,  /* in addition, every op of one layer at one position */
    SC_TRACE_TIME = 4,  /* lines: tokens and time only */
    SC_TRACE_HOOK = 16, /* with TIME alone: the longest time between two calls of the layer hook */
    SC_TRACE_LOGITS = 8 /* raw int32 logits of every prompt position, no new tokens */
};

#endif
