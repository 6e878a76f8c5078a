/* SPDX-License-Identifier: Apache-2.0
 * The weight blobs as the linker sees them.  Every blob is followed by a few zero bytes: an empty
 * file still gives a section that links and loads, and in weight memory N-EUREKA reads one 32-byte
 * word beyond the last weight.
 *
 * SC_BLOB_FLASH is defined where the flash image is part of the program (host, rv32); on the SoC it
 * is the content of the flash chip. */
#ifdef SC_BLOB_SECTIONS
    .section .sc_wmem, "a"
#else
    .section .rodata
#endif
    .balign 64
    .globl  sc_blob_wmem
sc_blob_wmem:
    .incbin "blobs/wmem.bin"
    .skip   32

#ifdef SC_BLOB_SECTIONS
    .section .sc_l2_blob, "a"
#endif
    .balign 64
    .globl  sc_blob_l2
sc_blob_l2:
    .incbin "blobs/l2.bin"
    .skip   4

#ifdef SC_BLOB_FLASH
    .balign 64
    .globl  sc_blob_flash
    .globl  sc_blob_flash_end
sc_blob_flash:
    .incbin "blobs/flash.bin"
sc_blob_flash_end:
    .skip   4
#endif

#ifdef __ELF__
    .section .note.GNU-stack, "", %progbits
#endif
