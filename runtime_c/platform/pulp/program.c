/* SPDX-License-Identifier: Apache-2.0
 * Input of the program that shrinkc runs on PULP chips. */
#include "program.h"

#include "sc_abi.h"

/* Replaced in the ELF file before a run, or read from stdin if it is not; initialised so that the file has bytes for it. */
uint32_t sc_input_section[SC_INPUT_WORDS] __attribute__((section(".sc_input"), used)) = {0};

/* Reads the stdin of the simulator, by a semihosting call. The simulator waits meanwhile. */
int sc_next_input(void) {
    const uint32_t arguments[3] = {0, (uintptr_t)sc_input_section, sizeof sc_input_section};
    register uintptr_t a0 __asm__("a0") = 6; /* read; then the number of bytes that stdin lacked */
    register uintptr_t a1 __asm__("a1") = (uintptr_t)arguments;
    __asm__ volatile(".option push\n"
                     ".option norvc\n"
                     "slli x0, x0, 0x1f\n"
                     "ebreak\n"
                     "srai x0, x0, 7\n"
                     ".option pop"
                     : "+r"(a0)
                     : "r"(a1)
                     : "memory");
    return a0 == 0;
}

uint32_t *sc_input_words(void) {
    if (sc_input_section[SC_IN_MAGIC] == 0) {
        sc_next_input();
    }
    return sc_input_section;
}
