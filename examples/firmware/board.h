/* SPDX-License-Identifier: Apache-2.0
 * What main.c needs of a board. */
#ifndef BOARD_H
#define BOARD_H

#include <stddef.h>

/* Reads a line without its end, and returns its length; or -1 when there are no more. Cuts long lines. */
int board_read_line(char *to, size_t room);
void board_write(const char *text, size_t bytes);

#endif
