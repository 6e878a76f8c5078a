"""What compiler and program say to each other, stated once: input words, lines, exit codes, sizes.

``contract.py`` is the statement, ``header.py`` makes ``runtime_c/include/sc_abi.h`` of it.
"""

from shrinkc.abi.contract import (
    EXP2_STEPS_BYTES,
    HASH_MULTIPLIER,
    INPUT_MAGIC,
    LOOKUP_MAX,
    MATRIX_BYTES,
    PART_BYTES,
    QVEC_BYTES,
    ROW_BLOCK,
    TABLE_BYTES,
    TOP_BYTES,
    X_BLOCK,
    Exit,
    InputWord,
    Line,
    Time,
    Trace,
    head_scratch_bytes,
    head_state_bytes,
    input_block,
    input_words,
    kv_block_bytes,
)

__all__ = [
    "EXP2_STEPS_BYTES",
    "HASH_MULTIPLIER",
    "INPUT_MAGIC",
    "LOOKUP_MAX",
    "MATRIX_BYTES",
    "PART_BYTES",
    "QVEC_BYTES",
    "ROW_BLOCK",
    "TABLE_BYTES",
    "TOP_BYTES",
    "X_BLOCK",
    "Exit",
    "InputWord",
    "Line",
    "Time",
    "Trace",
    "head_scratch_bytes",
    "head_state_bytes",
    "input_block",
    "input_words",
    "kv_block_bytes",
]
