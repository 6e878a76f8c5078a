/* SPDX-License-Identifier: Apache-2.0
 * Console and end of a program, from the platform. */
#ifndef SC_CONSOLE_H
#define SC_CONSOLE_H

#include <stdint.h>

void sc_write(const char *text, uint32_t bytes);
/* Stdin of a simulated chip: waits for all bytes, and returns how many were missing at the end. */
uint32_t sc_read_stdin(void *to, uint32_t bytes);
void sc_exit(int code) __attribute__((noreturn));

/* Messages of platforms without an operating system, about their own program: traps, stacks. */
void sc_message(const char *text);
void sc_message_hex(uint32_t value); /* "0x" and 8 digits */

#endif
