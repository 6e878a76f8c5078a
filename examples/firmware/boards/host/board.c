/* SPDX-License-Identifier: Apache-2.0
 * A PC: stdin and stdout. */
#include "board.h"

#include <stdio.h>

int board_read_line(char *to, size_t room) {
    size_t n = 0;
    int c;
    while ((c = getchar()) != EOF && c != '\n')
        if (n < room) to[n++] = (char)c;
    return c == EOF && n == 0 ? -1 : (int)n;
}

void board_write(const char *text, size_t bytes) {
    fwrite(text, 1, bytes, stdout);
    fflush(stdout);
}
