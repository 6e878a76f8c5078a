/* SPDX-License-Identifier: Apache-2.0
 * The weight blobs as the linker sees them.  Every blob is followed by a few zero bytes: an empty
 * file still gives a section that links and loads, and in weight memory N-EUREKA reads one 32-byte
 * word beyond the last weight.
 *
 * SC_HAS_<MEMORY>: the target of the model has it, and there is a blob for it.  SC_BLOB_SECTIONS is
 * defined on the SoCs, where every blob has its place; elsewhere they are constants, and the flash
 * image, on a SoC the content of the flash chip, is one of them. */
    .section .rodata
#ifdef SC_HAS_WMEM
#ifdef SC_BLOB_SECTIONS
    .section .sc_wmem, "a"
#endif
    .balign 64
    .globl  sc_blob_wmem
sc_blob_wmem:
    .incbin "blobs/wmem.bin"
    .skip   32
#endif

#ifdef SC_BLOB_SECTIONS
    .section .sc_l2_blob, "a"
#endif
    .balign 64
    .globl  sc_blob_l2
sc_blob_l2:
    .incbin "blobs/l2.bin"
    .skip   4

#ifndef SC_BLOB_SECTIONS
    .balign 64
    .globl  sc_blob_flash
    .globl  sc_blob_flash_end
sc_blob_flash:
#ifdef SC_HAS_FLASH
    .incbin "blobs/flash.bin"
#endif
sc_blob_flash_end:
    .skip   4
#endif

#ifdef __ELF__
    .section .note.GNU-stack, "", %progbits
#endif
