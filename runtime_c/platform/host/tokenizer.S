/* SPDX-License-Identifier: Apache-2.0
 * Tokenizer tables (llm_tokenizer.h), only in the native program. */
    .section .rodata
    .balign 16
    .globl  sc_tokenizer_tables
sc_tokenizer_tables:
    .incbin "blobs/tokenizer.bin"

#ifdef __ELF__
    .section .note.GNU-stack, "", %progbits
#endif
