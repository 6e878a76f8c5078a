/* SPDX-License-Identifier: Apache-2.0
 * The program that shrinkc runs: reads input words, answers in lines (sc_contract.h). A client of llm.h.
 *
 * The platform provides input, console and exit. */
#ifndef PROGRAM_H
#define PROGRAM_H

#include <stdint.h>

#include "llm.h"
#include "sc_console.h"

extern const llm_model SC_MODEL;

/* ---- from the platform ---- */
uint32_t *sc_input_words(void); /* the run's input (sc_contract.h); new tokens are appended to the prompt */
int sc_next_input(void);        /* replaces it by the next one; 0: there is none */

/* Answers the input, and those that follow; returns the exit code. */
int sc_program(void);

#endif
