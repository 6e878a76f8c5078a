/* SPDX-License-Identifier: Apache-2.0
 * Text output, line-buffered. One core at a time. */
#include "program.h"

#define LINE 256
static char line[LINE];
static uint32_t used;

void sc_putc(char c) {
    line[used++] = c;
    if (c == '\n' || used == LINE) sc_flush();
}

void sc_flush(void) {
    if (used) sc_write(line, used);
    used = 0;
}

void sc_puts(const char *text) {
    while (*text) sc_putc(*text++);
}

void sc_put_hex(uint32_t v, int digits) {
    while (digits-- > 0) sc_putc("0123456789abcdef"[v >> (4 * digits) & 15]);
}

void sc_put_uint(uint32_t v) {
    char t[11];
    int i = 10;
    t[i] = 0;
    do t[--i] = (char)('0' + v % 10);
    while (v /= 10);
    sc_puts(t + i);
}

static void begin_line(const char *tag, uint32_t first) {
    sc_puts(tag);
    sc_puts(" ");
    sc_put_uint(first);
}

void sc_put_words(const char *tag, uint32_t first, const int32_t *v, uint32_t n) {
    for (uint32_t i = 0; i < n;) {
        begin_line(tag, first + i);
        for (uint32_t end = n - i < 24 ? n : i + 24; i < end; i++) {
            sc_puts(" ");
            sc_put_hex((uint32_t)v[i], 8);
        }
        sc_puts("\n");
    }
}

void sc_put_bytes(const char *tag, const int8_t *v, const int8_t *high, uint32_t n) {
    for (uint32_t i = 0; i < n;) {
        begin_line(tag, i);
        for (uint32_t end = n - i < 24 ? n : i + 24; i < end; i++) {
            sc_puts(" ");
            sc_put_hex((uint32_t)(v[i] + (high ? 256 * high[i] : 0)), 8);
        }
        sc_puts("\n");
    }
}
