/* SPDX-License-Identifier: Apache-2.0
 * Input words, output lines and exit codes of the program that shrinkc runs.
 * Generated from compiler/shrinkc/abi/contract.py by `python -m pytest tests/abi --update-golden`. */
#ifndef SC_CONTRACT_H
#define SC_CONTRACT_H

#include "sc_abi.h"

#define SC_INPUT_MAGIC 0x31494353u /* "SCI1" */

/* input words of a run: 32 bits, little-endian, equal on all targets */
enum sc_input_word {
    SC_IN_MAGIC = 0,      /* SC_INPUT_MAGIC */
    SC_IN_PROMPT = 1,     /* prompt tokens, 1 .. context */
    SC_IN_NEW = 2,        /* maximum of new tokens, 0 .. context - prompt */
    SC_IN_SEED = 3,       /* seed of sampling */
    SC_IN_INV_TEMP = 4,   /* 65536 / temperature; 0 = greedy */
    SC_IN_TOP_P = 5,      /* 65536 * top_p, 1 .. 65536 */
    SC_IN_TRACE = 6,      /* enum sc_trace */
    SC_IN_DUMP_POS = 7,   /* with SC_TRACE_DUMP: position whose ops are printed */
    SC_IN_DUMP_LAYER = 8, /* with SC_TRACE_DUMP: layer whose ops are printed */
    SC_IN_IGNORE_EOS = 9, /* 1 = continue after an end token */
    SC_IN_LOOKUP = 10,    /* maximum tokens of a draft, 0 .. SC_LOOKUP_MAX; greedy only */
    SC_IN_KEPT = 11,      /* prompt tokens kept from the last input's session; 0 = a new session */
    SC_IN_MORE = 12,      /* 1 = another input may follow, which can keep this session */
    SC_IN_TOKENS = 16     /* first token; SC_CONTEXT words, prompt first */
};

/* exit codes besides 0 */
enum sc_exit_code {
    SC_EXIT_USAGE = 2,      /* invalid argument of the native program */
    SC_EXIT_REFUSED = 3,    /* the program refused its input */
    SC_EXIT_PLATFORM = 125, /* the platform refused the input or a request of the program */
    SC_EXIT_STACK = 126,    /* a stack overflowed */
    SC_EXIT_TRAP = 127      /* a core trapped (illegal instruction or bad access) */
};

/* first word of an output line, and what follows it */
#define SC_LINE_HASH "@H"    /* position layer hash: hash of the layer's output */
#define SC_LINE_LOGITS "@L"  /* position first v v ...: logits from number first on, 8 hex digits each */
#define SC_LINE_DUMP "@D"    /* op first v v ...: output of an op, at the requested position and layer */
#define SC_LINE_TIME "@C"    /* P|D time: of prefill or one decode pass, including sampling */
#define SC_LINE_TOKEN "@T"   /* position token hex: the token chosen after position, and its bytes */
#define SC_LINE_PASS "@V"    /* position tokens kept: tokens that the pass processed, and accepted ones */
#define SC_LINE_HOOK "@Y"    /* time: the longest between two calls of the layer hook */
#define SC_LINE_END "@Z"     /* tokens: the run is complete */
#define SC_LINE_REFUSED "@E" /* message: why the input was refused */
#define SC_LINE_PROFILE "@P" /* P|D layer op cores elapsed ...: one op of one pass */
#define SC_LINE_CORES "@S"   /* P|D layer op core begin arrived end active ...: of that core and the next */
#define SC_LINE_SPANS "@W"   /* P|D - unit core begin end: a wait for the unit, or N-EUREKA's work */

/* phase of a line of time or profile */
#define SC_PREFILL "P"
#define SC_DECODE "D"

#endif
