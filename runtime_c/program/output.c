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

const char *sc_decimal(uint32_t v, char digits[11]) {
    int i = 10;
    digits[i] = 0;
    do digits[--i] = (char)('0' + v % 10);
    while (v /= 10);
    return digits + i;
}

void sc_put_uint(uint32_t v) {
    char digits[11];
    sc_puts(sc_decimal(v, digits));
}

/* Value i, of int32 values or of the bytes of int8 or 16-bit ones. */
static uint32_t value(const int32_t *words, const int8_t *low, const int8_t *high, uint32_t i) {
    return words ? (uint32_t)words[i] : (uint32_t)(low[i] + (high ? 256 * high[i] : 0));
}

static void put_values(const char *tag, const char *name, uint32_t first, const int32_t *words,
                       const int8_t *low, const int8_t *high, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        if (i % 24 == 0) {
            if (i) sc_puts("\n");
            sc_puts(tag);
            sc_puts(" ");
            sc_puts(name);
            sc_puts(" ");
            sc_put_uint(first + i);
        }
        sc_puts(" ");
        sc_put_hex(value(words, low, high, i), 8);
    }
    if (n) sc_puts("\n");
}

void sc_put_words(const char *tag, const char *name, uint32_t first, const int32_t *v, uint32_t n) {
    put_values(tag, name, first, v, 0, 0, n);
}

void sc_put_bytes(const char *tag, const char *name, const int8_t *v, const int8_t *high, uint32_t n) {
    put_values(tag, name, 0, 0, v, high, n);
}
