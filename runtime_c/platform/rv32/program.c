/* SPDX-License-Identifier: Apache-2.0
 * Start, input and console of programs for qemu-riscv32: Linux system calls only. */
#include "program.h"

#include "sc_contract.h"

enum { SYS_READ = 63, SYS_WRITE = 64, SYS_EXIT = 93 };
enum { STDIN = 0, STDOUT = 1, STDERR = 2 };

static int32_t syscall3(int32_t number, int32_t a, uint32_t b, uint32_t c) {
    register int32_t a7 __asm__("a7") = number;
    register int32_t a0 __asm__("a0") = a;
    register uint32_t a1 __asm__("a1") = b;
    register uint32_t a2 __asm__("a2") = c;
    __asm__ volatile("ecall" : "+r"(a0) : "r"(a7), "r"(a1), "r"(a2) : "memory");
    return a0;
}

static void __attribute__((noreturn)) leave(int code) {
    for (;;) {
        syscall3(SYS_EXIT, code, 0, 0);
    }
}

/* A pipe may accept only a part. On an error the program ends without a message. */
static void write_all(int file, const char *text, uint32_t bytes) {
    while (bytes > 0) {
        int32_t done = syscall3(SYS_WRITE, file, (uintptr_t)text, bytes);
        if (done <= 0) {
            leave(SC_EXIT_PLATFORM);
        }
        text += done;
        bytes -= (uint32_t)done;
    }
}

/* ---- console ---- */

static char line[512];
static uint32_t line_bytes;

static void flush(void) {
    write_all(STDOUT, line, line_bytes);
    line_bytes = 0;
}

void sc_write(const char *text, uint32_t bytes) {
    for (uint32_t i = 0; i < bytes; i++) {
        line[line_bytes++] = text[i];
        if (line_bytes == sizeof line || text[i] == '\n') {
            flush(); /* so that a reader gets every line at once */
        }
    }
}

static uint32_t length(const char *text) {
    uint32_t n = 0;
    while (text[n] != 0) {
        n++;
    }
    return n;
}

static void __attribute__((noreturn)) refuse(const char *why) {
    flush();
    write_all(STDERR, "platform: ", 10);
    write_all(STDERR, why, length(why));
    write_all(STDERR, "\n", 1);
    leave(SC_EXIT_PLATFORM);
}

void sc_exit(int code) {
    flush();
    leave(code);
}

/* ---- input ---- */

static uint32_t input[SC_INPUT_WORDS];

/* Returns the number of bytes; fewer than `room` at the end of stdin. */
static uint32_t read_all(void *to, uint32_t room) {
    uint32_t bytes = 0;
    int32_t got;
    do {
        got = syscall3(SYS_READ, STDIN, (uintptr_t)to + bytes, room - bytes);
        bytes += got > 0 ? (uint32_t)got : 0;
    } while (got > 0 && bytes < room);
    if (got < 0) {
        refuse("cannot read the input words from stdin");
    }
    return bytes;
}

/* Missing words are 0. sc_program() checks the values. */
int sc_next_input(void) {
    for (uint32_t i = 0; i < SC_INPUT_WORDS; i++) {
        input[i] = 0;
    }
    uint32_t bytes = read_all(input, sizeof input), more;
    if (bytes % sizeof input[0] != 0) {
        refuse("the input on stdin is not a whole number of 32-bit words");
    }
    if (bytes > 0 && !input[SC_IN_MORE] && read_all(&more, sizeof more) > 0) {
        refuse("more input words on stdin than the program was built for");
    }
    return bytes > 0;
}

uint32_t *sc_input_words(void) { return input; }

/* ---- start ---- */

/* The kernel provides the stack; the loader has zeroed .bss. gp cannot be loaded relative to itself. */
__asm__(".pushsection .text.start, \"ax\"\n"
        ".globl _start\n"
        "_start:\n"
        ".option push\n"
        ".option norelax\n"
        "la gp, __global_pointer$\n"
        ".option pop\n"
        "andi sp, sp, -16\n"
        "call start\n"
        ".popsection");

static void __attribute__((noreturn, used)) start(void) {
    if (!sc_next_input()) {
        refuse("no input words on stdin");
    }
    sc_exit(sc_program());
}
