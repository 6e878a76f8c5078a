/* SPDX-License-Identifier: Apache-2.0
 * Console, traps and end of programs for `qemu-system-riscv32 -M virt`: a 16550 UART, and a device that ends the
 * emulator. For another board, replace addresses and registers. */
#include "uart.h"

#include "sc_console.h"
#include "sc_contract.h"

#define UART ((volatile uint8_t *)0x10000000u)
#define TEST_DEVICE (*(volatile uint32_t *)0x100000u)

enum { DATA = 0, LINE_STATUS = 5 }; /* registers */
enum { RECEIVED = 1, CAN_SEND = 32 };

extern char __stack_guard[], __stack_start[]; /* link.ld */

/* ---- console ---- */

static void put(char c) {
    while (!(UART[LINE_STATUS] & CAN_SEND)) {
    }
    UART[DATA] = (uint8_t)c;
}

uint8_t sc_read(void) {
    while (!(UART[LINE_STATUS] & RECEIVED)) {
    }
    return UART[DATA];
}

void sc_write(const char *text, uint32_t bytes) {
    for (uint32_t i = 0; i < bytes; i++) {
        put(text[i]);
    }
}

/* ---- end ---- */

void sc_exit(int code) {
    TEST_DEVICE = code == 0 ? 0x5555 : (uint32_t)code << 16 | 0x3333;
    for (;;) {
    }
}

/* From crt0.S. */
void __attribute__((noreturn, used)) sc_trap_report(uint32_t cause, uint32_t pc, uint32_t address) {
    const int overflow = address >= (uintptr_t)__stack_guard && address < (uintptr_t)__stack_start;
    sc_message(overflow ? "\nplatform: stack overflow, cause " : "\nplatform: trap, cause ");
    sc_message_hex(cause);
    sc_message(" address ");
    sc_message_hex(address);
    sc_message(" pc ");
    sc_message_hex(pc);
    sc_message("\n");
    sc_exit(overflow ? SC_EXIT_STACK : SC_EXIT_TRAP);
}
