"""Integer arithmetic: the definition of every operation.

``runtime_c/include/sc_num.h`` does the same in C; ``tests/kernels`` verifies both bit for bit.
"""
