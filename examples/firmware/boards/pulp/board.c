/* SPDX-License-Identifier: Apache-2.0
 * Siracusa and PULP-open in GVSoC. Output: the simulator's console. Input: the simulator's stdin, because the UART of
 * these simulated boards receives nothing. Start-up is in the compiled directory (src/platform/pulp). */
#include "board.h"

#include "sc_console.h"

int board_read_line(char *to, size_t room) {
    size_t n = 0;
    for (char c;; n += n < room) {
        if (sc_read_stdin(&c, 1)) return -1;
        if (c == '\n') return (int)n;
        if (n < room) to[n] = c;
    }
}

void board_write(const char *text, size_t bytes) { sc_write(text, (uint32_t)bytes); }
