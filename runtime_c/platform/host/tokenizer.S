/* SPDX-License-Identifier: Apache-2.0
 * What prompts are encoded with, see sc_encode.h: part of the native program alone. */
    .section .rodata
    .balign 16
    .globl  sc_tokenizer_tables
sc_tokenizer_tables:
    .incbin "blobs/tokenizer.bin"

#ifdef __ELF__
    .section .note.GNU-stack, "", %progbits
#endif
