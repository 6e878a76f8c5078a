/* SPDX-License-Identifier: Apache-2.0
 * Time on a board: cycles. QEMU with -icount counts instructions. */
#include "sc_platform.h"

uint32_t sc_time(void) {
    uint32_t cycles;
    __asm__ volatile("csrr %0, mcycle" : "=r"(cycles));
    return cycles;
}
