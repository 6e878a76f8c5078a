/* SPDX-License-Identifier: Apache-2.0
 * Siracusa and PULP-open in GVSoC. Output: the simulator's console. Input: a section of the program, which `make run`
 * replaces in a copy, because the UART of these simulated boards receives nothing. Start-up is in the compiled
 * directory (src/platform/pulp). */
#include "board.h"

#include "sc_console.h"

char board_input[1024] __attribute__((section(".sc_input"), used)) = "Once upon a time\n";

int board_read_line(char *to, size_t room) {
    static size_t at;
    size_t n = 0;
    if (at == sizeof board_input || !board_input[at]) return -1;
    for (char c; at < sizeof board_input && (c = board_input[at]) && (at++, c != '\n');)
        if (n < room) to[n++] = c;
    return (int)n;
}

void board_write(const char *text, size_t bytes) { sc_write(text, (uint32_t)bytes); }
