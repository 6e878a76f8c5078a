"""Memory layout of matrices, and their bytes, computed from sizes alone.

A matrix is stored in consecutive blocks of rows.  A trailer after the last block can hold data of the whole matrix,
such as row multipliers for an engine whose blocks have only weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from shrinkc.abi import (
    FLAT_WORDS,
    PRODUCT_WORDS,
    ROW_BLOCK,
    WIDE_WORDS,
    X_BLOCK,
)
from shrinkc.storage.blocks import StoredRows, pack_blocks
from shrinkc.storage.format import WORD, StorageFormat
from shrinkc.storage.formats import format_of
from shrinkc.storage.offsets import Offsets

if TYPE_CHECKING:
    import numpy as np

ALIGN = 16  # bytes: every matrix starts at a multiple of this
GROUP = 64  # inputs per stored group if the weights have no groups of their own
GROUP_MAX = 96
FLAT_BITS = 4  # weights of 4 bits in groups of up to FLAT_WORDS have 16-bit sums
ADAPTER_BITS = 8  # the two matrices of an adapter are 8 bit per-channel


def stored_group(k: int, group_size: int | None) -> int:
    """Return the inputs per stored group, which share an activation scale.

    It is ``group_size`` (None for a per-channel matrix with offsets), or a divisor if that is large.
    """
    if group_size is None:
        return min(GROUP, k)
    if group_size <= GROUP_MAX:
        return group_size
    divisors = [s for s in range(GROUP_MAX, 15, -1) if group_size % s == 0]
    return divisors[0] if divisors else group_size


@dataclass(frozen=True)
class Store:
    """Memory layout of a matrix in blocks of ``rows`` rows.

    ``block_bytes`` (a multiple of 4) and ``trailer_bytes`` return the bytes of a shape's blocks and trailer.  ``pack``
    returns the stored matrix as uint8 [bytes].  ``align``: alignment of the first byte.
    """

    name: str
    rows: int
    block_bytes: Callable[[MatrixShape], int]
    pack: Callable[[StoredRows], np.ndarray]
    trailer_bytes: Callable[[MatrixShape], int] = lambda shape: 0
    align: int = ALIGN

    def __post_init__(self) -> None:
        assert self.rows > 0 and self.rows % 8 == 0, "gate_up interleaves rows in blocks of 8"
        assert self.align % ALIGN == 0


def block_bytes(m: MatrixShape) -> int:
    own = 2 * ROW_BLOCK + m.groups * m.header + m.format.weight_bytes(m.words)
    return own + (block_bytes(m.adapter) if m.adapter else 0)


def _pack(w: StoredRows) -> np.ndarray:
    return pack_blocks(w).reshape(-1)


BLOCKS = Store(name="blocks", rows=ROW_BLOCK, block_bytes=block_bytes, pack=_pack)
"""Memory layout of the matrices that the cores multiply."""


@dataclass(frozen=True)
class MatrixShape:
    """Sizes of one stored matrix, which ``engine`` multiplies and ``store`` lays out.

    ``rank`` > 0: its blocks also hold matrix b of an adapter, [rows, rank].
    """

    name: str
    rows: int
    k: int
    bits: int
    group: int
    grouped: bool
    offsets: Offsets
    rank: int = 0
    pad: int = 0  # QLinear.pad; 0: the unit of the storage format
    engine: str = "cores"
    store: Store = BLOCKS
    grouped_input: bool = False  # matrix a of an adapter: reads the input of a grouped matrix

    @cached_property
    def kind(self) -> MatrixShape:
        """The shape without its name, for comparing matrices."""
        return replace(self, name="")

    @property
    def asymmetric(self) -> bool:
        return self.offsets is not Offsets.NONE

    @property
    def wide(self) -> bool:
        """Whether it reads 16-bit activations."""
        return not (self.grouped or self.asymmetric or self.grouped_input)

    @property
    def format(self) -> StorageFormat:
        return format_of(self.bits)

    @cached_property
    def groups(self) -> int:
        return -(-self.k // self.group)

    @property
    def last(self) -> int:
        return self.k - (self.groups - 1) * self.group

    def group_words(self, elements: int) -> int:
        """Return the int32 words (4 inputs) of a group of ``elements`` inputs, padding included."""
        pad = self.pad or self.format.inputs
        return -(-elements // pad) * pad // WORD

    @cached_property
    def words(self) -> int:
        return (self.groups - 1) * self.group_words(self.group) + self.group_words(self.last)

    @property
    def x_words(self) -> int:
        """int32 words of the input vector; a 16-bit vector has two planes of bytes."""
        return self.words * (2 if self.wide else 1)

    @property
    def x_groups(self) -> int:
        """Group scales of the input vector."""
        return 0 if self.wide else self.groups

    @property
    def header(self) -> int:
        """Bytes of d, and of b or zero points, per group of a block."""
        return ROW_BLOCK * int(self.grouped) + self.offsets.bytes

    @property
    def x_blocks(self) -> int:
        """Pieces in which an int8 input vector is quantised."""
        if self.wide:
            return 0
        return (self.groups - 1) * -(-self.group // X_BLOCK) + -(-self.last // X_BLOCK)

    @property
    def sums(self) -> int:
        """Bytes per token for a block's sums when the cores multiply several tokens: for 16-bit vectors of low and high
        bytes; 0 if 8-bit weights need no buffer."""
        if self.wide:
            return 0 if self.bits == 8 else 8 * ROW_BLOCK
        return 4 * ROW_BLOCK

    @property
    def widened(self) -> int:
        """Bytes of the weights of a block that are widened to 8 bits at a time: one group, or WIDE_WORDS words."""
        if self.bits == 8:
            return 0
        words = (
            min(self.words, WIDE_WORDS) if self.wide else self.group_words(min(self.group, self.k))
        )
        return 4 * ROW_BLOCK * words

    @cached_property
    def product_words(self) -> int:
        """Words per group if another engine can multiply the groups with several tokens, else 0."""
        words = self.group_words(min(self.group, self.k))
        whole = words % PRODUCT_WORDS == 0 and self.group_words(self.last) % PRODUCT_WORDS == 0
        return words if self.grouped and not self.wide and whole else 0

    @property
    def flat(self) -> bool:
        """Whether the sums of q * x of all groups fit 16 bits."""
        return self.bits == FLAT_BITS and 0 < self.product_words <= FLAT_WORDS

    @cached_property
    def blocks(self) -> int:
        return -(-self.rows // self.store.rows)

    @property
    def adapter(self) -> MatrixShape | None:
        if self.rank == 0:
            return None
        return MatrixShape(
            f"{self.name}.b", self.rows, self.rank, ADAPTER_BITS, self.rank, False, Offsets.NONE
        )

    @cached_property
    def block_bytes(self) -> int:
        return self.store.block_bytes(self)

    @cached_property
    def bytes(self) -> int:
        return self.blocks * self.block_bytes + self.store.trailer_bytes(self)
