/* SPDX-License-Identifier: Apache-2.0
 * Messages of a platform about its own program, such as traps, on its console. */
#include "sc_console.h"

void sc_message(const char *text) {
    uint32_t bytes = 0;
    while (text[bytes] != 0) {
        bytes++;
    }
    sc_write(text, bytes);
}

void sc_message_hex(uint32_t value) {
    char digits[10] = "0x";
    for (int i = 0; i < 8; i++) {
        digits[2 + i] = "0123456789abcdef"[value >> (28 - 4 * i) & 15];
    }
    sc_write(digits, sizeof digits);
}
