"""Block formats of GGUF tensors (``ggml-quants.c``): integers in blocks, with one scale per 16 or 32 of them.

A weight is ``scale * (q - zero)``, or ``scale * q + minimum``.  In the formats of llama.cpp's first generation
(Q4_0 … Q8_0, IQ4_NL) each block of 32 has a 16-bit scale.  In K-quants a block has 256 weights: the scale of a
group is a 16-bit number d of the block times a 4-, 6- or 8-bit integer, and so is its minimum.
A QuantizedWeight represents all these weights exactly: such products fit a float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shrinkc.importer.model import QuantizedWeight, Weight, Zero
from shrinkc.importer.safetensors_file import FLOAT_DTYPES, as_floats
from shrinkc.importer.weight_checks import non_finite

if TYPE_CHECKING:
    from shrinkc.importer.gguf_reader import GgufTensor

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


class _Fields(NamedTuple):
    """Fields of blocks.  ``q``: uint8 [rows, blocks, weights].  ``halves``: 16-bit numbers of each block by name,
    as float32.  ``scale``, and ``minimum`` if the format has one: float32 [rows, blocks, groups per block]."""

    q: Bytes
    halves: dict[str, Floats]
    scale: Floats
    minimum: Floats | None = None


def _q8_0(blocks: Bytes) -> _Fields:
    d = _half(blocks, 0)
    return _Fields(blocks[:, :, 2:] + np.uint8(128), {"scales": d}, d)  # int8 -> uint8, modulo 256


def _q4_0(blocks: Bytes) -> _Fields:
    d = _half(blocks, 0)
    return _Fields(_runs(blocks[:, :, 2:], 16, 4), {"scales": d}, d)


def _q4_1(blocks: Bytes) -> _Fields:
    d, m = _half(blocks, 0), _half(blocks, 2)
    return _Fields(_runs(blocks[:, :, 4:], 16, 4), {"scales": d, "minima": m}, d, m)


def _q5_0(blocks: Bytes) -> _Fields:
    d = _half(blocks, 0)
    q = _runs(blocks[:, :, 6:], 16, 4) | _bits(blocks[:, :, 2:6]) << np.uint8(4)
    return _Fields(q, {"scales": d}, d)


def _q5_1(blocks: Bytes) -> _Fields:
    d, m = _half(blocks, 0), _half(blocks, 2)
    q = _runs(blocks[:, :, 8:], 16, 4) | _bits(blocks[:, :, 4:8]) << np.uint8(4)
    return _Fields(q, {"scales": d, "minima": m}, d, m)


def _iq4_nl(blocks: Bytes) -> _Fields:
    d = _half(blocks, 0)
    return _Fields(_IQ4_NL[_runs(blocks[:, :, 2:], 16, 4)], {"scales": d}, d)


def _q2_k(blocks: Bytes) -> _Fields:
    sizes, d, m = blocks[:, :, :16], _half(blocks, 80), _half(blocks, 82)
    halves = {"scales": d, "minima": m}
    return _Fields(_runs(blocks[:, :, 16:80], 32, 2), halves, d * (sizes & 15), -m * (sizes >> 4))


def _q3_k(blocks: Bytes) -> _Fields:
    q = _runs(blocks[:, :, 32:96], 32, 2) | _runs(blocks[:, :, :32], 32, 1) << np.uint8(2)
    low, high, d = blocks[:, :, 96:104], blocks[:, :, 104:108], _half(blocks, 108)
    sizes = _runs(low, 8, 4) | _runs(high, 4, 2) << np.uint8(4)
    return _Fields(q, {"scales": d}, d * (sizes.astype(np.float32) - 32))


def _q4_k(blocks: Bytes) -> _Fields:
    return _Fields(_runs(blocks[:, :, 16:], 32, 4), *_scales_and_minima(blocks))


def _q5_k(blocks: Bytes) -> _Fields:
    q = _runs(blocks[:, :, 48:], 32, 4) | _runs(blocks[:, :, 16:48], 32, 1) << np.uint8(4)
    return _Fields(q, *_scales_and_minima(blocks))


def _q6_k(blocks: Bytes) -> _Fields:
    q = _runs(blocks[:, :, :128], 64, 4) | _runs(blocks[:, :, 128:192], 32, 2) << np.uint8(4)
    d = _half(blocks, 208)
    return _Fields(q, {"scales": d}, d * blocks[:, :, 192:208].view(np.int8))


def _scales_and_minima(blocks: Bytes) -> tuple[dict[str, Floats], Floats, Floats]:
    """Return the 16-bit numbers, scales and minima of Q4_K and Q5_K.

    Bytes 4 … 7 hold the lower 6 bits of scales 0 … 3, bytes 8 … 11 those of minima 0 … 3.  Bytes 12 … 15 hold the
    lower 4 bits of scales 4 … 7, and above them those of minima 4 … 7; their upper 2 bits are in bytes 4 … 11.
    """
    d, m = _half(blocks, 0), _half(blocks, 2)
    first, second, third = blocks[:, :, 4:8], blocks[:, :, 8:12], blocks[:, :, 12:16]
    scales = np.concatenate([first & 63, (third & 15) | (first >> 6) << 4], axis=2)
    minima = np.concatenate([second & 63, (third >> 4) | (second >> 6) << 4], axis=2)
    return {"scales": d, "minima": m}, d * scales, -m * minima


def _runs(packed: Bytes, run: int, bits: int) -> Bytes:
    """Return the integers of ``bits`` bits of [rows, blocks, bytes]: of each ``run`` bytes first their lowest bits,
    then the next."""
    rows, count, _ = packed.shape
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    split = packed.reshape(rows, count, -1, 1, run) >> shifts & np.uint8((1 << bits) - 1)
    return split.reshape(rows, count, -1)


def _bits(packed: Bytes) -> Bytes:
    """Return the single bits of [rows, blocks, bytes], the lowest of each byte first."""
    return np.unpackbits(packed, axis=2, bitorder="little")


# The 16 weights of IQ4_NL, plus 128 (``ggml-common.h``, kvalues_iq4nl)
_IQ4_NL = np.array(
    [1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241], np.uint8
)


@dataclass(frozen=True)
class BlockFormat:
    """Integers of ``bits`` bits with one scale per ``group`` of them.

    ``zero``: the integer of the weight 0; None if groups have minima.  ``mirror``: a negative scale becomes
    positive, and each integer q becomes ``mirror - q``; None: negative scales are refused.
    """

    bits: int
    group: int
    unpack: Callable[[Bytes], _Fields]
    zero: int | None = None
    mirror: int | None = None

    @property
    def kind(self) -> Zero:
        """Kind of zero point.  A mirrored zero may be beside the middle."""
        if self.zero is None:
            return Zero.ANY
        return Zero.MIDDLE if self.mirror in (None, 2 * self.zero) else Zero.NEAR


INTEGER_FORMATS = {
    "Q8_0": BlockFormat(8, 32, _q8_0, zero=128),
    "Q4_0": BlockFormat(4, 32, _q4_0, zero=8, mirror=15),
    "Q4_1": BlockFormat(4, 32, _q4_1),
    "Q5_0": BlockFormat(5, 32, _q5_0, zero=16, mirror=31),
    "Q5_1": BlockFormat(5, 32, _q5_1),
    "Q2_K": BlockFormat(2, 16, _q2_k),
    "Q3_K": BlockFormat(3, 16, _q3_k, zero=4, mirror=7),
    "Q4_K": BlockFormat(4, 32, _q4_k),
    "Q5_K": BlockFormat(5, 32, _q5_k),
    "Q6_K": BlockFormat(6, 16, _q6_k, zero=32, mirror=63),
    # a weight is one of 16 fixed int8 values (a codebook)
    "IQ4_NL": BlockFormat(8, 32, _iq4_nl, zero=128, mirror=256),
}
"""Tensor type -> its format.  A new type needs a line here and its unpacking."""
KINDS = (*FLOAT_DTYPES, *INTEGER_FORMATS)
"""Supported tensor types."""


def read_tensor(name: str, tensor: GgufTensor, blocks: Bytes, faults: list[str]) -> Weight:
    """Return a tensor as float32 of its shape, or as QuantizedWeight if it holds integers.

    ``blocks``: its data, uint8 [rows, blocks per row, bytes per block].
    Invalid values are described in ``faults``; do not use the result then.
    """
    if tensor.kind in INTEGER_FORMATS:
        return _quantized(name, tensor.kind, blocks, faults)
    values = as_floats(blocks, tensor.kind).reshape(tensor.shape)
    fault = non_finite(name, values)
    if fault:
        faults.append(fault)
    return values


def _quantized(name: str, kind: str, blocks: Bytes, faults: list[str]) -> QuantizedWeight:
    form = INTEGER_FORMATS[kind]
    with np.errstate(invalid="ignore"):  # numbers that are NaN or infinite are in ``faults``
        q, halves, scale, minimum = form.unpack(blocks)
    for what, values in halves.items():
        fault = non_finite(f"{name}: {what}", values)
        if fault:
            faults.append(fault)
    rows = len(q)
    q = q.reshape(rows, -1, form.group)
    scale = scale.reshape(rows, -1)
    negative, empty = scale < 0, scale == 0
    if negative.any():
        scale = np.abs(scale)
    zero = np.zeros_like(scale) if form.zero is None else np.full_like(scale, form.zero)
    if form.mirror is not None:
        q[negative] = np.uint8(form.mirror & 255) - q[negative]  # modulo 256
        zero[negative] = form.mirror - zero[negative]
    elif negative.any():
        faults.append(f"{name} holds {int(negative.sum())} negative scales of type {kind}")
    # all weights of such a group are equal: 0, or the minimum
    scale[empty] = 1
    q[empty] = form.zero or 0
    with np.errstate(invalid="ignore"):
        offset = -(scale * zero) if minimum is None else minimum.reshape(rows, -1)
    return QuantizedWeight(form.bits, form.group, q.reshape(rows, -1), scale, offset)


def _half(blocks: Bytes, at: int) -> Floats:
    """Return the 16-bit floats at byte ``at`` of each block as float32 [rows, blocks, 1]."""
    raw = np.ascontiguousarray(blocks[:, :, at : at + 2])
    return raw.view("<f2").astype(np.float32)
