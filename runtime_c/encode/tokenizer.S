/* SPDX-License-Identifier: Apache-2.0
 * Tokenizer tables (llm_tokenizer.h) in read-only memory that a program can address. */
    .section .rodata.tokenizer, "a"
    .balign 16
    .globl  SC_TOKENIZER
SC_TOKENIZER:
    .incbin "blobs/tokenizer.bin"

#ifdef __ELF__
    .section .note.GNU-stack, "", %progbits
#endif
