/* SPDX-License-Identifier: Apache-2.0
 * Proof: what the host needs to compare every integer that matters, as text lines.
 *
 *   @H position layer hash      hash of the layer's output, the residual stream
 *   @L position first v v ...   logits from `first` on, 8 hex digits each
 *   @D op first v v ...         an op's output, printed whole where the input asks for it
 * Time spent here is added to sc_now.untimed and taken off the step. */
#include "sc_platform.h"

#include "sc_engine.h"

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

static uint32_t hash(const int32_t *v, uint32_t n) {
    uint32_t h = 0;
    for (uint32_t i = 0; i < n; i++) h = h * SC_HASH_MULTIPLIER + (uint32_t)v[i];
    return h;
}

void sc_trace_layer(uint32_t layer, const int32_t *x, uint32_t stride) {
    uint32_t start = sc_time();
    for (uint32_t t = 0; t < sc_now.tokens; t++) {
        sc_puts("@H ");
        sc_put_uint(sc_now.position + t);
        sc_puts(" ");
        sc_put_uint(layer);
        sc_puts(" ");
        sc_put_hex(hash(x + t * stride, SC_HIDDEN), 8);
        sc_puts("\n");
    }
    sc_now.untimed += sc_time() - start;
}

void sc_put_words(const char *tag, const int32_t *v, uint32_t n) {
    for (uint32_t i = 0; i < n;) {
        sc_puts(tag);
        sc_puts(" ");
        sc_put_uint(i);
        for (uint32_t end = n - i < 24 ? n : i + 24; i < end; i++) {
            sc_puts(" ");
            sc_put_hex((uint32_t)v[i], 8);
        }
        sc_puts("\n");
    }
}

void sc_trace_logits(void) {
    uint32_t start = sc_time();
    char tag[16] = "@L ", digits[11];
    uint32_t v = sc_now.position + sc_now.tokens - 1;
    int i = 10, at = 3;
    digits[i] = 0;
    do digits[--i] = (char)('0' + v % 10);
    while (v /= 10);
    while (digits[i]) tag[at++] = digits[i++];
    tag[at] = 0;
    sc_put_words(tag, sc_logits, SC_VOCAB);
    sc_now.untimed += sc_time() - start;
}
