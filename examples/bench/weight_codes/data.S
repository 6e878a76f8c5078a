/* SPDX-License-Identifier: Apache-2.0
 * The data of bench.c, from the file WC_DATA. */
    .section .sc_l2_blob, "a"
    .balign 16
    .globl  wc_data
wc_data:
    .incbin WC_DATA
    .balign 4
