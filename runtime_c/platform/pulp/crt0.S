/* SPDX-License-Identifier: Apache-2.0
 * Start-up of both kinds of core, and the trap handler.
 *
 *   _start            fabric controller, entered by the loader; stack and constants in L2
 *   sc_cluster_start  cluster cores, entered through their boot-address registers
 *
 * Every stack is painted with SC_PAINT before use: sc_exit() looks at its lowest word, and the
 * depth that was used can be read off later.
 */
#define SC_PAINT 0x57AC57AC

    .section .text.start, "ax"
    .globl  _start
_start:
    la      t0, sc_trap
    csrw    mtvec, t0           /* the reset value would restart the program at a trap, for ever */
    .option push
    .option norelax             /* gp cannot be loaded relative to itself */
    la      gp, __global_pointer$
    .option pop
    la      sp, __sc_fc_stack_end

    la      a0, __sc_bss_start  /* memory is filled with 0x57 at reset */
    la      a1, __sc_bss_end
    li      a2, 0
    call    sc_fill
    la      a0, __sc_fc_stack_start
    mv      a1, sp
    li      a2, SC_PAINT
    call    sc_fill

    call    sc_fc_main
1:  wfi                         /* the simulator does not simulate a sleeping core */
    j       1b

    .globl  sc_cluster_start
sc_cluster_start:
    la      t0, sc_trap
    csrw    mtvec, t0
    .option push
    .option norelax
    la      gp, __global_pointer$
    .option pop
    csrr    s0, mhartid         /* core number */
    la      a0, __sc_cluster_stacks
    lui     t1, %hi(SC_CL_STACK)
    addi    t1, t1, %lo(SC_CL_STACK)
    mul     t0, s0, t1
    add     a0, a0, t0
    add     sp, a0, t1
    mv      a1, sp
    li      a2, SC_PAINT
    call    sc_fill
    mv      a0, s0
    call    sc_cluster_main     /* does not return */

/* void sc_fill(uint32_t *from, uint32_t *to, uint32_t word): uses no stack */
    .globl  sc_fill
sc_fill:
    bgeu    a0, a1, 2f
1:  sw      a2, 0(a0)
    addi    a0, a0, 4
    bltu    a0, a1, 1b
2:  ret

/* A trap is a defect: report it and end the simulation. */
    .balign 256
sc_trap:
    csrr    a0, mcause
    csrr    a1, mepc
    la      sp, __sc_fc_stack_end   /* this core's stack may be corrupt */
    call    sc_trap_report          /* does not return */
