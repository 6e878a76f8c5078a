/* SPDX-License-Identifier: Apache-2.0
 * Weight blobs for the linker. A few zero bytes follow each: an empty file still gives a section that links
 * and loads, and N-EUREKA reads 32 bytes beyond the last weight in weight memory.
 *
 * SC_HAS_<MEMORY>: the target has that memory and a blob for it. SC_BLOB_SECTIONS: on chips, each blob has
 * its own section. Elsewhere blobs are constants, also the image of the flash chip. */
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

#ifdef SC_HAS_L2
#ifdef SC_BLOB_SECTIONS
    .section .sc_l2_blob, "a"
#endif
    .balign 64
    .globl  sc_blob_l2
sc_blob_l2:
    .incbin "blobs/l2.bin"
    .skip   4
#endif

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
