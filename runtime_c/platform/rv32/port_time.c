/* SPDX-License-Identifier: Apache-2.0
 * Time for qemu-riscv32: none. Its user mode returns host time for rdinstret, which differs in every run. */
#include "sc_platform.h"

uint32_t sc_time(void) { return 0; }
