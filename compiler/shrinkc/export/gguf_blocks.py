"""Blocks of GGUF tensors from the integers of a checkpoint; :mod:`shrinkc.importer.gguf_blocks` reads them.

A block has 32 weights of a row and a float16 scale d.  Types that end in 0 hold signed integers, ``d * q``, so they
take any integer ``q - zero`` that is in their range.  Types that end in 1 hold ``d * q + m`` with a float16 minimum m.
K-quants are not written: their scales are integers times a common factor, which a checkpoint's scales are not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shrinkc.importer.model import QuantizedWeight

BLOCK = 32
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class BlockType:
    """``bits`` of an integer; ``signed``: without a minimum; ``nbytes`` of a block."""

    bits: int
    signed: bool
    nbytes: int

    @property
    def bits_per_weight(self) -> float:
        return self.nbytes * 8 / BLOCK


TYPES = {
    "Q4_0": BlockType(4, True, 18),
    "Q4_1": BlockType(4, False, 20),
    "Q5_0": BlockType(5, True, 22),
    "Q5_1": BlockType(5, False, 24),
    "Q8_0": BlockType(8, True, 34),
}
"""Types that :func:`to_blocks` writes, the smallest first."""


def type_for(weight: QuantizedWeight, *, compact: bool = False) -> str | None:
    """Return the smallest type that holds ``weight`` exactly, or else all its integers; None if there is none.

    ``compact``: the smallest type that holds all integers, even if it rounds minima to float16."""
    if misfit(weight) is not None:
        return None
    fitting = [name for name in TYPES if _holds(TYPES[name], weight)]
    exact = [name for name in fitting if TYPES[name].signed]
    return next(iter(fitting if compact or not exact else exact), None)


def _holds(kind: BlockType, weight: QuantizedWeight) -> bool:
    if not kind.signed:
        return weight.bits <= kind.bits
    points, half = weight.zero_points, 1 << (kind.bits - 1)
    if points is None:
        return False
    return bool(points.max() <= half and (1 << weight.bits) - 1 - points.min() < half)


def misfit(weight: QuantizedWeight) -> str | None:
    """Return why no type can hold ``weight``, or None."""
    inputs = weight.shape[1]
    if weight.order is not None:
        return "its inputs are stored in another order (desc_act)"
    if inputs % BLOCK:
        return f"its {inputs} inputs are no multiple of {BLOCK}"
    if weight.group % BLOCK and weight.group != inputs:
        return f"its group size {weight.group} is no multiple of {BLOCK}"
    if weight.bits == 8 and (
        weight.zero_points is None or (weight.offset != -128 * weight.scale).any()
    ):
        return "8 bit with zero points"
    return None


def to_blocks(weight: QuantizedWeight, name: str) -> Bytes:
    """Return uint8 [rows, bytes] of type ``name``, which :func:`type_for` chose."""
    kind = TYPES[name]
    rows, inputs = weight.shape
    group_of = np.arange(0, inputs, BLOCK) // weight.group
    with np.errstate(over="ignore"):
        halves = [weight.scale[:, group_of].astype("<f2")]
        if not kind.signed:
            halves.append(weight.offset[:, group_of].astype("<f2"))
    if not all(np.isfinite(half).all() for half in halves):
        raise ValueError("scales or minima beyond float16")
    q: Bytes = weight.q.reshape(rows, -1, BLOCK)
    if kind.signed:
        points = weight.zero_points
        assert points is not None  # checked by type_for
        zero = points[:, group_of, None].astype(np.int16)
        # two's complement in 8 bits, otherwise counted from the lowest value
        lowest = 0 if kind.bits == 8 else 1 << (kind.bits - 1)
        q = (q.astype(np.int16) - zero + lowest).astype(np.uint8)
    parts = [half[:, :, None].view(np.uint8) for half in halves]
    if kind.bits == 8:
        parts.append(q)
    else:
        if kind.bits == 5:
            parts.append(np.packbits(q >> 4, axis=2, bitorder="little"))
        low = q & np.uint8(15)
        parts.append(low[:, :, : BLOCK // 2] | low[:, :, BLOCK // 2 :] << np.uint8(4))
    return np.concatenate(parts, axis=2).reshape(rows, -1)
