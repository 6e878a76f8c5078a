/* SPDX-License-Identifier: Apache-2.0
 * Console and end of a program, from the platform. */
#ifndef SC_CONSOLE_H
#define SC_CONSOLE_H

#include <stdint.h>

void sc_write(const char *text, uint32_t bytes);
/* Stdin of a simulated chip: waits for all bytes, and returns how many were missing at the end. */
uint32_t sc_read_stdin(void *to, uint32_t bytes);
void sc_exit(int code) __attribute__((noreturn));

#endif
