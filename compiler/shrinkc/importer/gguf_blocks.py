"""Block formats of GGUF tensors: blocks of 32 integers with 16-bit scales.

``Q8_0``: scale d, 32 int8.  ``Q4_0``: d, 16 bytes, byte j with value j in its low and value 16 + j
in its high nibble, weight ``d (q - 8)``.  ``Q4_1``: d, minimum m, nibbles as in Q4_0, weight
``d q + m``  (``ggml-quants.c``).  A QuantizedWeight represents these weights exactly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shrinkc.importer.model import QuantizedWeight, Weight, Zero
from shrinkc.importer.safetensors_file import FLOAT_DTYPES, as_floats
from shrinkc.importer.weight_checks import non_finite

if TYPE_CHECKING:
    from shrinkc.importer.gguf_reader import GgufTensor

GROUP = 32
INTEGER_FORMATS = {
    "Q8_0": (8, GROUP, Zero.MIDDLE),
    "Q4_0": (4, GROUP, Zero.POINT),
    "Q4_1": (4, GROUP, Zero.ANY),
}
"""Type -> (bits, inputs per scale, kind of zero point).

Q4_0 has negative scales in blocks whose largest magnitude is positive.  The importer makes scales positive,
so the zero points of those blocks are 7 instead of 8.
"""
KINDS = (*FLOAT_DTYPES, *INTEGER_FORMATS)
"""Supported tensor types.  A new one needs a line here and its unpacking in ``_quantized``."""


def read_tensor(
    name: str, tensor: GgufTensor, blocks: NDArray[np.uint8], faults: list[str]
) -> Weight:
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


def _quantized(
    name: str, kind: str, blocks: NDArray[np.uint8], faults: list[str]
) -> QuantizedWeight:
    bits = INTEGER_FORMATS[kind][0]
    scale = _half(blocks, 0)
    minimum = _half(blocks, 2) if kind == "Q4_1" else None
    for what, values in (("scales", scale), ("minima", minimum)):
        fault = None if values is None else non_finite(f"{name}: {what}", values)
        if fault:
            faults.append(fault)
    if kind == "Q8_0":
        q = blocks[:, :, 2:] + np.uint8(128)  # int8 -> uint8, modulo 256
    else:
        packed = blocks[:, :, 2 if minimum is None else 4 :]
        q = np.concatenate([packed & 15, packed >> 4], axis=2)
    negative, empty = scale < 0, scale == 0
    if kind == "Q4_0":
        q[negative] = 15 - q[negative]
        zero = np.where(negative, np.float32(7), np.float32(8))
        scale = np.abs(scale)
    else:
        zero = np.full_like(scale, 128)
        if negative.any():
            faults.append(f"{name} holds {int(negative.sum())} negative scales of type {kind}")
            scale = np.abs(scale)
    # all weights of such a block are equal: 0, or the minimum
    scale[empty] = 1
    q[empty] = 0 if minimum is not None else (1 << (bits - 1))
    with np.errstate(invalid="ignore"):  # scales that are NaN are in ``faults``
        offset = -(scale * zero) if minimum is None else minimum
    q = q.reshape(len(q), -1)
    return QuantizedWeight(bits, GROUP, q, scale, offset)


def _half(blocks: NDArray[np.uint8], at: int) -> NDArray[np.float32]:
    raw = np.ascontiguousarray(blocks[:, :, at : at + 2])
    return raw.view("<f2")[:, :, 0].astype(np.float32)
