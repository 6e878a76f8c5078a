/* SPDX-License-Identifier: Apache-2.0
 * Input of the program that shrinkc runs on PULP chips. */
#include "program.h"

#include "sc_contract.h"

/* Replaced in the ELF file before a run; if not, read from stdin. Initialised so that the file has bytes for it. */
uint32_t sc_input_section[SC_INPUT_WORDS] __attribute__((section(".sc_input"), used)) = {0};

int sc_next_input(void) { return sc_read_stdin(sc_input_section, sizeof sc_input_section) == 0; }

uint32_t *sc_input_words(void) {
    if (sc_input_section[SC_IN_MAGIC] == 0) {
        sc_next_input();
    }
    return sc_input_section;
}

int main(void) { return sc_program(); }
