"""THE integer semantics: one definition of every operation, shared by everything above it.

``runtime_c/include/sc_num.h`` is the same text in C; ``tests/kernels`` holds the two
against each other bit for bit.
"""
