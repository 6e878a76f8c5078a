/* SPDX-License-Identifier: Apache-2.0
 * Native program: input words from stdin or a prompt on the command line, answers on stdout. */
#define _POSIX_C_SOURCE 200809L /* isatty */

#include "program.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "sc_abi.h"
#include "sc_arguments.h"

static void __attribute__((noreturn)) refuse(const char *why) {
    fflush(stdout);
    fprintf(stderr, "platform: %s\n", why);
    exit(SC_EXIT_PLATFORM);
}

/* ---- input ---- */

static uint32_t input[SC_INPUT_WORDS];

/* Missing words are 0. sc_program() checks the values. Returns 0 at the end of stdin. */
static int read_input(void) {
    memset(input, 0, sizeof input);
    size_t bytes = fread(input, 1, sizeof input, stdin);
    if (ferror(stdin)) {
        refuse("cannot read the input words from stdin");
    }
    static const char magic[] = "SCI"; /* SC_INPUT_MAGIC without the version */
    if (bytes > 0 && memcmp(input, magic, bytes < 3 ? bytes : 3) != 0) {
        refuse("stdin is for the input that --words makes; a prompt goes on the command line, see --help");
    }
    if (bytes % sizeof input[0] != 0) {
        refuse("the input on stdin is not a whole number of 32-bit words");
    }
    if (bytes > 0 && !input[SC_IN_MORE] && fgetc(stdin) != EOF) {
        refuse("more input words on stdin than the program was built for");
    }
    return bytes > 0;
}

uint32_t *sc_input_words(void) { return input; }

int sc_next_input(void) { return read_input(); }

/* ---- console and start ---- */

void sc_write(const char *text, uint32_t bytes) {
    fwrite(text, 1, bytes, stdout);
    if (memchr(text, '\n', bytes) != NULL) {
        fflush(stdout); /* so that a reader gets every line at once */
    }
}

void sc_exit(int code) {
    /* a failed write at a line end leaves no data, only the error flag */
    if (fflush(stdout) != 0 || ferror(stdout)) {
        refuse("cannot write to stdout");
    }
    exit(code);
}

/* Input words on stdin: how shrinkc runs the program. */
static int answer_words(void) {
    if (!read_input()) {
        refuse("no input words on stdin");
    }
    return sc_program();
}

/* A prompt on the command line. */
static int answer_arguments(int argc, char **argv) {
    if (sc_arguments(argc, argv, input) == SC_WORDS) {
        fwrite(input, 1, sizeof input, stdout);
        return 0;
    }
    return sc_program();
}

int main(int argc, char **argv) {
    sc_exit(argc > 1 || isatty(STDIN_FILENO) ? answer_arguments(argc, argv) : answer_words());
}
