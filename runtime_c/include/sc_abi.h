/* SPDX-License-Identifier: Apache-2.0
 * What shrinkc and the programs that it makes say to each other, and sizes that both count with.  Made of
 * compiler/shrinkc/abi/contract.py, whose changes `python -m pytest tests/abi --update-golden` brings here. */
#ifndef SC_ABI_H
#define SC_ABI_H

#define SC_INPUT_MAGIC 0x31494353u     /* "SCI1" */
#define SC_HASH_MULTIPLIER 0x01000193u /* h = h * this + word, from 0 */
#define SC_ROWS 8                      /* of a block */
#define SC_BLOCK 8                     /* inputs that one core scans or quantises at a time */
#define SC_PRODUCT_BLOCKS 8            /* of a run that N-EUREKA multiplies with several tokens */
#define SC_PRODUCT_WORDS 8             /* of a row that it takes at a time */
#define SC_PRODUCT_PAIR_WORDS 16       /* of a group up to which two are a step */
#define SC_FLAT_WORDS 8                /* of a group of 4 bit up to which sums have 16 */
#define SC_SPLIT_WORDS 192             /* of a row from which on cores split a block, where a tile has few */
#define SC_SPLIT_GROUPS 8              /* and groups, where it has scales for them */
#define SC_WIDE_WORDS 32               /* of a row of a 16-bit vector's matrix, made 8 bit at a time */
#define SC_LOOKUP_MAX 8                /* most tokens of a draft */
#define SC_QVEC_BYTES 32               /* sizeof(sc_qvec) on a 64-bit host */
#define SC_MATRIX_BYTES 48             /* sizeof(sc_matrix) on a 32-bit target */
#define SC_PART_BYTES 16               /* sizeof(sc_part) */
#define SC_TOP_BYTES 8                 /* sizeof(sc_top) */
#define SC_TABLE_BYTES 2560            /* of the tables of exp2 and sigmoid */

/* words of a run's input: 32 bit, little-endian, the same on every target */
enum sc_input_word {
    SC_IN_MAGIC = 0,      /* SC_INPUT_MAGIC */
    SC_IN_PROMPT = 1,     /* prompt tokens, 1 .. context */
    SC_IN_NEW = 2,        /* most new tokens, 0 .. context - prompt */
    SC_IN_SEED = 3,       /* of the sampler */
    SC_IN_INV_TEMP = 4,   /* 65536 / temperature; 0 = greedy */
    SC_IN_TOP_P = 5,      /* 65536 * top_p, 1 .. 65536 */
    SC_IN_TRACE = 6,      /* enum sc_trace */
    SC_IN_DUMP_POS = 7,   /* with SC_TRACE_DUMP: the position whose ops are printed whole */
    SC_IN_DUMP_LAYER = 8, /* and the layer */
    SC_IN_IGNORE_EOS = 9, /* 1 = go on after an end token */
    SC_IN_LOOKUP = 10,    /* most tokens to draft for a pass, 0 .. SC_LOOKUP_MAX; greedy only */
    SC_IN_TOKENS = 16     /* first prompt token; the context's words follow */
};

/* what a run prints */
enum sc_trace {
    SC_TRACE_TEXT = 0,  /* the text and nothing else */
    SC_TRACE_PROOF = 1, /* lines: tokens, logits, a hash of every layer's output */
    SC_TRACE_DUMP = 2,  /* and every op of one layer at one position */
    SC_TRACE_TIME = 4,  /* lines for tokens and time only: nothing else is measured or hashed */
    SC_TRACE_LOGITS = 8 /* nothing but raw int32 logits of every prompt position; no new tokens */
};

/* exit codes beside 0 */
enum sc_exit_code {
    SC_EXIT_USAGE = 2,      /* an argument of the native program is not possible */
    SC_EXIT_REFUSED = 3,    /* the engine refused its input */
    SC_EXIT_PLATFORM = 125, /* the platform refused the input or a request of the program */
    SC_EXIT_STACK = 126,    /* a stack overflowed */
    SC_EXIT_TRAP = 127      /* a core trapped (illegal instruction or bad access) */
};

/* the first word of a line, and what follows it */
#define SC_LINE_HASH "@H"    /* position layer hash: of the layer's output, where it has one */
#define SC_LINE_LOGITS "@L"  /* position first v v ...: logits from first on, 8 hex digits each */
#define SC_LINE_DUMP "@D"    /* op first v v ...: an op's output, of the position and layer asked for */
#define SC_LINE_TIME "@C"    /* P|D time: of the prefill, of one decode pass, sampling included */
#define SC_LINE_TOKEN "@T"   /* position token hex: the token chosen after position, and its bytes */
#define SC_LINE_PASS "@V"    /* position tokens kept: so many were fed from there on, and so many count */
#define SC_LINE_END "@Z"     /* tokens: the run is complete */
#define SC_LINE_REFUSED "@E" /* message: the input was refused */
#define SC_LINE_PROFILE "@P" /* P|D layer op cores elapsed ...: one op of one pass, see sc_profile.c */

/* what a line of time or profile is about */
#define SC_PREFILL "P"
#define SC_DECODE "D"

#endif
