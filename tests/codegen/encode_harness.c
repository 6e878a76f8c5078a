/* SPDX-License-Identifier: Apache-2.0
 * Encodes texts; runs on the host and, without a C library, in qemu-riscv32 and on PULP chips.
 *
 * stdin: 32-bit length of the tables, tables; then for each text its length, how much room to give, and its
 * bytes. stdout: for each text a line of ids or "error -19". In the end "stack N cycles M": the most bytes of
 * stack that a call took (0 on the host), and the cycles of all calls (0 except on PULP chips). */
#include "llm.h"

#include <stdint.h>

#define ROOM_THAT_SUFFICES 0xFFFFFFFFu
#define MANY_ROOMS 0xFFFFFFFEu /* the same, then smaller ones: try_rooms() */
#define CANARIES 4
#define CANARY(i) (0xC0FFEE00u + (uint32_t)(i))

enum { FAULT_INPUT = 2, FAULT_CANARY, FAULT_ROOM, FAULT_MEMORY };

#ifdef __riscv
void *memcpy(void *to, const void *from, size_t bytes); /* of freestanding/mem.c */
void *memset(void *to, int value, size_t bytes);
int memcmp(const void *a, const void *b, size_t bytes);

#ifdef ON_PULP
#include "sc_console.h"

#define MEMORY_BYTES (1 << 20)
#define MEMORY_SECTION section(".bss.sc_l2")
#define PAINTED 150 /* words of stack; the controller has 260 */

extern const uint8_t input[], input_end[]; /* stdin */

static long read(int file, void *to, size_t bytes) {
    static size_t at;
    size_t left = (size_t)(input_end - input) - at;
    bytes = bytes < left ? bytes : left;
    memcpy(to, input + at, bytes);
    at += bytes;
    return file * 0 + (long)bytes;
}

static long write(int file, const void *from, size_t bytes) {
    sc_write(from, bytes);
    return file * 0 + (long)bytes;
}

static void __attribute__((noreturn)) leave(int code) { sc_exit(code); }

static uint32_t cycle(void) {
    uint32_t now;
    __asm__ volatile("csrr %0, mcycle" : "=r"(now));
    return now;
}
#else
#define MEMORY_BYTES (48 << 20)
#define MEMORY_SECTION aligned(16)
#define PAINTED 2048

static long call(long number, long a, const void *b, size_t c) {
    register long a7 __asm__("a7") = number, a0 __asm__("a0") = a, a2 __asm__("a2") = (long)c;
    register const void *a1 __asm__("a1") = b;
    __asm__ volatile("ecall" : "+r"(a0) : "r"(a7), "r"(a1), "r"(a2) : "memory");
    return a0;
}

static long read(int file, void *to, size_t bytes) { return call(63, file, to, bytes); }
static long write(int file, const void *from, size_t bytes) { return call(64, file, from, bytes); }
static void __attribute__((noreturn)) leave(int code) {
    for (;;) call(93, code, NULL, 0);
}

static uint32_t cycle(void) { return 0; }

void __attribute__((naked, used, section(".text.start"))) _start(void) {
    __asm__ volatile(".option push; .option norelax; la gp, __global_pointer$; .option pop; call main");
}
#endif

/* Blocks are given back in the reverse order. */
static uint8_t memory[MEMORY_BYTES] __attribute__((aligned(16), MEMORY_SECTION));
static size_t taken;

static void *take(size_t bytes) {
    void *block = memory + taken;
    taken += (bytes + 15) & ~(size_t)15;
    if (taken > sizeof memory) leave(FAULT_MEMORY);
    return block;
}

static void give_back(void *block) { taken = (size_t)((uint8_t *)block - memory); }

static uint32_t stack_used, cycles;

static int __attribute__((noinline)) encode(const llm_tokenizer *t, const char *text, size_t bytes,
                                            uint32_t *ids, size_t room) {
    uint32_t *top, paint = 0xBADC0DE5, i = PAINTED;
    __asm__ volatile("mv %0, sp" : "=r"(top));
    for (volatile uint32_t *at = top - 1; at >= top - PAINTED; at--) *at = paint;
    uint32_t began = cycle();
    int count = llm_encode(t, text, bytes, ids, room);
    cycles += cycle() - began;
    while (i > 0 && ((volatile uint32_t *)top)[-(long)i] == paint) i--;
    stack_used = 4 * i > stack_used ? 4 * i : stack_used;
    return count;
}
#else
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void __attribute__((noreturn)) leave(int code) { exit(code); }

static void *take(size_t bytes) {
    void *block = malloc(bytes > 0 ? bytes : 1);
    if (block == NULL) leave(FAULT_MEMORY);
    return block;
}

static void give_back(void *block) { free(block); }

static const uint32_t stack_used, cycles;
#define encode llm_encode
#endif

/* ---- input and output ---- */

static int get(void *to, size_t bytes) {
    static uint8_t buffer[4096];
    static size_t at, end;
    for (size_t i = 0; i < bytes; i++) {
        if (at == end) {
            long got = read(0, buffer, sizeof buffer);
            if (got <= 0) return 0;
            at = 0;
            end = (size_t)got;
        }
        ((uint8_t *)to)[i] = buffer[at++];
    }
    return 1;
}

static char line[4096];
static size_t line_bytes;

static void flush(void) {
    for (size_t at = 0; at < line_bytes;) {
        long done = write(1, line + at, line_bytes - at);
        if (done <= 0) leave(FAULT_INPUT);
        at += (size_t)done;
    }
    line_bytes = 0;
}

static void put(const char *text) {
    while (*text != 0) {
        if (line_bytes == sizeof line) flush();
        line[line_bytes++] = *text++;
    }
}

static void put_number(int32_t value) {
    char digits[12], *at = digits + sizeof digits - 1;
    uint32_t rest = value < 0 ? 0u - (uint32_t)value : (uint32_t)value;
    for (*at = 0; rest > 0 || *at == 0; rest /= 10) *--at = (char)('0' + rest % 10);
    if (value < 0) *--at = '-';
    put(at);
}

/* ---- encoding ---- */

static int encode_in(const llm_tokenizer *t, const char *text, size_t bytes, uint32_t *ids, size_t room) {
    memset(ids, 0x5A, room * sizeof *ids);
    for (size_t i = 0; i < CANARIES; i++) ids[room + i] = CANARY(i);
    int count = encode(t, text, bytes, ids, room);
    for (size_t i = 0; i < CANARIES; i++)
        if (ids[room + i] != CANARY(i)) leave(FAULT_CANARY);
    if (count > 0 && (size_t)count > room) leave(FAULT_CANARY);
    return count;
}

/* Whether `room` suffices; then the ids are those expected, else the error is LLM_ERROR_ROOM. */
static int suffices(const llm_tokenizer *t, const char *text, size_t bytes, const uint32_t *expected,
                    int count, size_t room) {
    uint32_t *ids = take((room + CANARIES) * sizeof *ids);
    int found = encode_in(t, text, bytes, ids, room);
    if (found == count) {
        if (count > 0 && memcmp(ids, expected, (size_t)count * sizeof *ids) != 0) leave(FAULT_ROOM);
    } else if (found != LLM_ERROR_ROOM) {
        leave(FAULT_ROOM);
    }
    give_back(ids);
#ifndef __riscv
    ids = take(room * sizeof *ids); /* no word more: the sanitizer notices each access beyond */
    if (llm_encode(t, text, bytes, ids, room) != found) leave(FAULT_ROOM);
    give_back(ids);
#endif
    return found == count;
}

/* There is a least room that suffices, each larger one does, and `room` is one of them. */
static void try_rooms(const llm_tokenizer *t, const char *text, size_t bytes, const uint32_t *expected,
                      int count, size_t room) {
    size_t low = 0, high = room, step = room / 50 + 1;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (suffices(t, text, bytes, expected, count, middle)) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    for (size_t some = 0; some < room; some += step)
        if (suffices(t, text, bytes, expected, count, some) != (some >= low)) leave(FAULT_ROOM);
}

static void __attribute__((noreturn)) run(void) {
    uint32_t size, asked[2];
    if (!get(&size, sizeof size)) leave(FAULT_INPUT);
    llm_tokenizer *t = take(size);
    if (!get(t, size)) leave(FAULT_INPUT);
    while (get(asked, sizeof asked)) {
        size_t bytes = asked[0], room = asked[1];
        if (room >= MANY_ROOMS) room = llm_encode_room(t, bytes);
        char *text = take(bytes);
        if (!get(text, bytes)) leave(FAULT_INPUT);
        uint32_t *ids = take((room + CANARIES) * sizeof *ids);
        int count = encode_in(t, text, bytes, ids, room);
        if (count < 0) {
            put("error ");
            put_number(count);
        }
        for (int i = 0; i < count; i++) {
            if (i > 0) put(" ");
            put_number((int32_t)ids[i]);
        }
        put("\n");
        if (asked[1] == MANY_ROOMS) try_rooms(t, text, bytes, ids, count, room);
        give_back(ids);
        give_back(text);
    }
    put("stack ");
    put_number((int32_t)stack_used);
    put(" cycles ");
    put_number((int32_t)cycles);
    put("\n");
    flush();
    give_back(t);
    leave(0);
}

int main(void) { run(); }
