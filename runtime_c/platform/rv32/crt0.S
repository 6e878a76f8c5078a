/* SPDX-License-Identifier: Apache-2.0
 * Entry of the freestanding RV32 program. The kernel provides the stack; the loader has zeroed .bss. */
    .section .text.start, "ax"
    .globl _start
_start:
    .option push
    .option norelax             /* gp cannot be loaded relative to itself */
    la      gp, __global_pointer$
    .option pop
    andi    sp, sp, -16
    call    sc_rv32_start       /* does not return */
