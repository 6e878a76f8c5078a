/* SPDX-License-Identifier: Apache-2.0
 * Start-up in machine mode, from flash: stack, traps, .data and .bss. Names with two underscores: link.ld. */
    .section .text.start, "ax"
    .globl _start
_start:
    csrci   mstatus, 8                  /* no interrupts */
    .option push
    .option norelax                     /* gp cannot be loaded relative to itself */
    la      gp, __global_pointer$
    .option pop
    la      sp, __stack_end
    la      t0, trap
    csrw    mtvec, t0

    /* No access to the 4 KiB below the stack, which is at the start of RAM: what lies there in the emulator
     * would take an overflow without a trap. A locked NAPOT region without rights. */
    la      t0, __stack_guard + (4096 / 2 - 4)
    srli    t0, t0, 2
    csrw    pmpaddr0, t0
    li      t0, 0x80 | 0x18
    csrw    pmpcfg0, t0

    la      a0, __data_start
    la      a1, __data_end
    la      a2, __data_in_flash
1:  bgeu    a0, a1, 2f
    lw      t0, 0(a2)
    sw      t0, 0(a0)
    addi    a0, a0, 4
    addi    a2, a2, 4
    j       1b
2:  la      a0, __bss_start
    la      a1, __bss_end
3:  bgeu    a0, a1, 4f
    sw      zero, 0(a0)
    addi    a0, a0, 4
    j       3b
4:  call    main
    call    sc_exit                     /* does not return */

    /* Traps are errors, so nothing is saved, and the stack begins anew: it may be what overflowed. */
    .balign 4
trap:
    la      sp, __stack_end
    csrr    a0, mcause
    csrr    a1, mepc
    csrr    a2, mtval
    call    sc_trap_report              /* does not return */
