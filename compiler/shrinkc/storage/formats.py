"""List of all storage formats."""

from __future__ import annotations

from shrinkc.storage.format import StorageFormat
from shrinkc.storage.w2 import W2
from shrinkc.storage.w3 import W3
from shrinkc.storage.w4 import W4
from shrinkc.storage.w5 import W5
from shrinkc.storage.w6 import W6
from shrinkc.storage.w8 import W8

FORMATS = {f.bits: f for f in (W8, W6, W5, W4, W3, W2)}
WIDTHS = tuple(sorted(FORMATS, reverse=True))  # bits per weight, widest first
WIDEST = WIDTHS[0]  # the default


def format_of(bits: int) -> StorageFormat:
    """Return the format of weights of ``bits`` bits.  Raises KeyError if there is none."""
    return FORMATS[bits]
