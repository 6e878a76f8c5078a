/* SPDX-License-Identifier: Apache-2.0
 * The input of a run: 32-bit little-endian words, the same on every target.  shrinkc writes them, or the
 * native program with --words. */
#ifndef SC_INPUT_H
#define SC_INPUT_H

#define SC_INPUT_MAGIC 0x31494353u /* "SCI1" */

enum sc_input_word {
    SC_IN_MAGIC = 0,
    SC_IN_PROMPT = 1,   /* prompt tokens, 1 .. context */
    SC_IN_NEW = 2,      /* most new tokens, 0 .. context - prompt */
    SC_IN_SEED = 3,     /* of the sampler */
    SC_IN_INV_TEMP = 4, /* 65536 / temperature; 0 = greedy */
    SC_IN_TOP_P = 5,    /* 65536 * top_p, 1 .. 65536 */
    SC_IN_TRACE = 6,    /* enum sc_trace */
    SC_IN_DUMP_POS = 7, /* with SC_TRACE_DUMP: position and layer whose ops are printed whole */
    SC_IN_DUMP_LAYER = 8,
    SC_IN_IGNORE_EOS = 9, /* 1 = go on after an end token */
    SC_IN_TOKENS = 16     /* first prompt token; SC_CONTEXT words follow */
};

enum sc_trace {
    SC_TRACE_TEXT = 0,  /* print the text and nothing else */
    SC_TRACE_PROOF = 1, /* protocol lines: tokens, logits, a hash of every layer's output */
    SC_TRACE_DUMP = 2,  /* and every op of one layer at one position */
    SC_TRACE_TIME = 4,  /* protocol lines for tokens and time only: nothing else is measured or hashed */
    /* only where a target has SC_ALL_LOGITS: the int32 logits of every prompt position, raw, and nothing
     * else; no new tokens.  Further blocks of input, all of full length, may follow for further runs. */
    SC_TRACE_LOGITS = 8
};

#endif
