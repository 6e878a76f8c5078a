"""Storage formats, and the bytes of a matrix in them: for planning, packing and budgets alike.

A format is a file here and its C twin ``runtime_c/include/sc_dot_w<bits>.h``; FORMATS is the list.
"""

from shrinkc.storage.blocks import StoredRows, pack_blocks
from shrinkc.storage.format import WORD, StorageFormat
from shrinkc.storage.formats import FORMATS, WIDEST, WIDTHS, format_of
from shrinkc.storage.matrix import (
    ALIGN,
    BLOCKS,
    SEGMENT,
    SEGMENT_MAX,
    SIDE_BITS,
    MatrixShape,
    Store,
    segment_size,
)
from shrinkc.storage.offsets import ZERO_BITS, ZERO_MAX, ZERO_MIN, Offsets

__all__ = [
    "ALIGN",
    "BLOCKS",
    "FORMATS",
    "SEGMENT",
    "SEGMENT_MAX",
    "SIDE_BITS",
    "WIDEST",
    "WIDTHS",
    "WORD",
    "ZERO_BITS",
    "ZERO_MAX",
    "ZERO_MIN",
    "MatrixShape",
    "Offsets",
    "StorageFormat",
    "Store",
    "StoredRows",
    "format_of",
    "pack_blocks",
    "segment_size",
]
