/* SPDX-License-Identifier: Apache-2.0
 * qemu-system-riscv32 -M virt: a 16550 UART, and a device that ends the emulator. For another board with a 16550,
 * change the addresses. */
#include "board.h"

#include <stdint.h>

#define UART ((volatile uint8_t *)0x10000000u)
#define TEST_DEVICE (*(volatile uint32_t *)0x100000u)

enum { DATA = 0, LINE_STATUS = 5 }; /* registers */
enum { RECEIVED = 1, CAN_SEND = 32 };
enum { END_OF_INPUT = 4 }; /* Ctrl-D */

int board_read_line(char *to, size_t room) {
    for (size_t n = 0;;) {
        while (!(UART[LINE_STATUS] & RECEIVED)) {
        }
        const char c = (char)UART[DATA];
        if (c == END_OF_INPUT) return -1;
        if (c == '\n' || c == '\r') return (int)n;
        if (n < room) to[n++] = c;
    }
}

void board_write(const char *text, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) {
        while (!(UART[LINE_STATUS] & CAN_SEND)) {
        }
        UART[DATA] = (uint8_t)text[i];
    }
}

/* start.S calls it with the result of main(). The emulator ends with that exit code. */
void board_end(int code) {
    TEST_DEVICE = code ? (uint32_t)code << 16 | 0x3333 : 0x5555;
    for (;;) {
    }
}
