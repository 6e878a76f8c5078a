/* SPDX-License-Identifier: Apache-2.0
 * RV32IMC under a Linux user-mode emulator (qemu-riscv32): one worker, no C library. */
#ifndef SC_TARGET_H
#define SC_TARGET_H

#define SC_CORES 1
#define SC_XPULP 0

#define SC_L1 __attribute__((aligned(16)))
#define SC_L1_LARGE SC_L1
#define SC_L1_ARENA(name, bytes) SC_L1 uint8_t name[bytes]
#define SC_L2 __attribute__((aligned(16)))
#define SC_WMEM __attribute__((aligned(16)))
#define SC_L1_DATA __attribute__((aligned(16)))
#define SC_HOT __attribute__((noinline))

#endif
