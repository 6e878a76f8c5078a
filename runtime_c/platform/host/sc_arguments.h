/* SPDX-License-Identifier: Apache-2.0
 * Command line of a native program. */
#ifndef SC_ARGUMENTS_H
#define SC_ARGUMENTS_H

#include <stdint.h>

enum sc_order {
    SC_RUN,  /* run with these words */
    SC_WORDS /* write the words to stdout, as input for another machine */
};

/* Fills in the words of sc_abi.h. Exits for --help (0) and for invalid arguments (2). */
enum sc_order sc_arguments(int argc, char **argv, uint32_t words[SC_INPUT_WORDS]);

#endif
