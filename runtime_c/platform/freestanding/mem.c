/* SPDX-License-Identifier: Apache-2.0
 * memcpy, memmove, memset, memcmp for targets without a C library: GCC may call them in any program.
 *
 * Compile with -fno-tree-loop-distribute-patterns: otherwise GCC replaces these loops by calls of these
 * functions. */
#include <stddef.h>
#include <stdint.h>

/* may_alias: the words may belong to objects of any type. */
typedef uint32_t __attribute__((may_alias)) word;

static int words_fit(uintptr_t a, uintptr_t b) { return ((a | b) & 3) == 0; }

void *memcpy(void *to, const void *from, size_t bytes) {
    uint8_t *d = to;
    const uint8_t *s = from;
    if (words_fit((uintptr_t)d, (uintptr_t)s)) {
        for (; bytes >= 4; bytes -= 4, d += 4, s += 4) {
            *(word *)d = *(const word *)s;
        }
    }
    while (bytes-- > 0) {
        *d++ = *s++;
    }
    return to;
}

void *memmove(void *to, const void *from, size_t bytes) {
    uint8_t *d = to;
    const uint8_t *s = from;
    if (d <= s || d >= s + bytes) {
        return memcpy(to, from, bytes);
    }
    while (bytes-- > 0) {
        d[bytes] = s[bytes];
    }
    return to;
}

void *memset(void *to, int value, size_t bytes) {
    uint8_t *d = to;
    uint32_t four = (uint8_t)value * 0x01010101u;
    for (; bytes > 0 && ((uintptr_t)d & 3) != 0; bytes--) {
        *d++ = (uint8_t)value;
    }
    for (; bytes >= 4; bytes -= 4, d += 4) {
        *(word *)d = four;
    }
    while (bytes-- > 0) {
        *d++ = (uint8_t)value;
    }
    return to;
}

int memcmp(const void *a, const void *b, size_t bytes) {
    const uint8_t *x = a, *y = b;
    for (; bytes > 0; bytes--, x++, y++) {
        if (*x != *y) {
            return *x - *y;
        }
    }
    return 0;
}
