/* SPDX-License-Identifier: Apache-2.0
 * Input of the program that shrinkc runs on PULP chips. */
#include "program.h"

/* Replaced in the ELF file before a run; initialised so that the file has bytes for it. */
uint32_t sc_input_section[SC_INPUT_WORDS] __attribute__((section(".sc_input"), used)) = {0};

uint32_t *sc_input_words(void) { return sc_input_section; }

int sc_next_input(void) { return 0; }
