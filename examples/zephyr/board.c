/* SPDX-License-Identifier: Apache-2.0
 * Zephyr's console. Polled, so that no input is lost while the model answers. */
#include "board.h"

#include <zephyr/device.h>
#include <zephyr/drivers/uart.h>
#include <zephyr/kernel.h>

static const struct device *const console = DEVICE_DT_GET(DT_CHOSEN(zephyr_console));

int board_read_line(char *to, size_t room) {
    for (size_t n = 0;;) {
        unsigned char c;
        while (uart_poll_in(console, &c) != 0) k_yield();
        if (c == '\n' || c == '\r') return (int)n;
        if (n < room) to[n++] = (char)c;
    }
}

void board_write(const char *text, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) uart_poll_out(console, (unsigned char)text[i]);
}
