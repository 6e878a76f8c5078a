/* SPDX-License-Identifier: Apache-2.0
 * The command line of a native program, for runs that need no shrinkc. */
#ifndef SC_ARGUMENTS_H
#define SC_ARGUMENTS_H

#include <stdint.h>

enum sc_order {
    SC_RUN,  /* run with the words */
    SC_WORDS /* write them to stdout: they are for the program on another machine */
};

/* Fills in the words of sc_abi.h.  Ends the program where the arguments ask for help (0) or for
 * something that is not possible (2). */
enum sc_order sc_arguments(int argc, char **argv, uint32_t words[SC_INPUT_WORDS]);

#endif
