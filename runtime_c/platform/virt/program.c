/* SPDX-License-Identifier: Apache-2.0
 * Input of the program that shrinkc runs on boards: all of its words come over the UART. */
#include "program.h"

#include "uart.h"

static uint32_t input[SC_INPUT_WORDS];

int sc_next_input(void) {
    for (uint32_t i = 0; i < sizeof input; i++) {
        ((uint8_t *)input)[i] = sc_read();
    }
    return 1;
}

uint32_t *sc_input_words(void) {
    static int is_read;
    if (!is_read) {
        is_read = sc_next_input();
    }
    return input;
}

int main(void) { return sc_program(); }
