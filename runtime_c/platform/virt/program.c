/* SPDX-License-Identifier: Apache-2.0
 * Input of the program that shrinkc runs on boards: all of its words come over the UART. */
#include "program.h"

#include "uart.h"

uint32_t *sc_input_words(void) {
    static uint32_t input[SC_INPUT_WORDS];
    static uint32_t bytes;
    for (; bytes < sizeof input; bytes++) {
        ((uint8_t *)input)[bytes] = sc_read();
    }
    return input;
}
