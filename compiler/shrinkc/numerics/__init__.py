"""The integer arithmetic: every operation is defined once, here.

``runtime_c/include/sc_num.h`` does the same in C; ``tests/kernels`` verifies both bit for bit.
"""
