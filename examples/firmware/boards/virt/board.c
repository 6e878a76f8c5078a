/* SPDX-License-Identifier: Apache-2.0
 * qemu-system-riscv32 -M virt: its UART. Start-up and the UART's registers are in the compiled directory
 * (src/platform/virt), with the linker script (src/toolchain/virt). */
#include "board.h"

#include "sc_console.h"
#include "uart.h"

enum { END_OF_INPUT = 4 }; /* Ctrl-D */

int board_read_line(char *to, size_t room) {
    for (size_t n = 0;;) {
        const char c = (char)sc_read();
        if (c == END_OF_INPUT) return -1;
        if (c == '\n' || c == '\r') return (int)n;
        if (n < room) to[n++] = c;
    }
}

void board_write(const char *text, size_t bytes) { sc_write(text, (uint32_t)bytes); }
