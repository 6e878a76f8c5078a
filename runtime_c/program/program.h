/* SPDX-License-Identifier: Apache-2.0
 * The program that shrinkc runs: reads input words, answers in lines (sc_abi.h). A client of llm.h.
 *
 * The platform provides input, console and exit. */
#ifndef PROGRAM_H
#define PROGRAM_H

#include <stdint.h>

#include "llm.h"
#include "sc_console.h"

extern const llm_model SC_MODEL;

/* ---- from the platform ---- */
uint32_t *sc_input_words(void); /* the run's input (sc_abi.h); new tokens are appended to the prompt */
int sc_next_input(void);        /* replaces it by the next one; 0: there is none */

/* Answers the input, and those that follow; returns the exit code. */
int sc_program(void);

/* ---- text output, line-buffered; one core at a time ---- */
void sc_putc(char c);
void sc_flush(void);
void sc_puts(const char *text);
void sc_put_hex(uint32_t v, int digits);
void sc_put_uint(uint32_t v);
const char *sc_decimal(uint32_t v, char digits[11]); /* its digits, somewhere in the buffer */
/* Lines of "tag name first v v ..." in hexadecimal; `first`: number of the first value. */
void sc_put_words(const char *tag, const char *name, uint32_t first, const int32_t *v, uint32_t n);
/* Such lines for int8 values, or 16-bit values if `high` has their upper bytes. */
void sc_put_bytes(const char *tag, const char *name, const int8_t *v, const int8_t *high, uint32_t n);

#endif
