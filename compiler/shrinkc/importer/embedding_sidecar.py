"""Files with the quantised embedding or LM head of a packed step, next to the matrices of its layers.

``embedding.safetensors`` and ``head.safetensors`` hold ``q`` uint8 [vocab, hidden · bits / 8], packed from the lowest
bit on (at 4 bit the first of two inputs is in the low nibble), and ``scale`` float16 [vocab, groups].  The metadata
hold format, version, bits, group and the kind of ``zero`` points:

* "middle": ``weight = scale * (q - 2**(bits - 1))``
* "points": ``weight = scale * (q - zero)``; ``zero`` uint8 holds vocab · groups integers of ``bits`` bits, packed like
  q as one row, of which the last byte may be filled up
* "offsets": ``weight = scale * q + offset``, ``offset`` float16 [vocab, groups]

Versions 1 and 2 always have ``offset``, and two flags.  ``symmetric``: the zero points are "middle".  ``points``: the
offsets are ``-scale`` times integers, rounded to float16.  Beside them the model has the same matrix as floats.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shrinkc.core.errors import BadWeights, ShapeMismatch
from shrinkc.core.output import new_file
from shrinkc.importer.gptq_config import WIDTHS
from shrinkc.importer.model import QuantizedWeight, Zero
from shrinkc.importer.packed_words import pack_bytes, unpack
from shrinkc.importer.safetensors_file import SafetensorsFile
from shrinkc.model import EMBEDDING, HEAD

SIDECAR = "embedding.safetensors"
HEAD_SIDECAR = "head.safetensors"  # for an untied head
EMBEDDING_FILES = {EMBEDDING: SIDECAR, HEAD: HEAD_SIDECAR}
_FORMAT, _VERSION, _VERSIONS = "shrinkc-embedding", "3", ("1", "2", "3")
_ZEROS = {"middle": Zero.MIDDLE, "points": Zero.POINT, "offsets": Zero.ANY}
# largest relative rounding error of a type: half a unit in the last place
_ROUNDING = {"F16": 2.0**-11, "F32": 2.0**-11, "BF16": 2.0**-8}
_SMALLEST_HALF = 2.0**-24


def write_embedding(path: Path, weight: QuantizedWeight) -> None:
    """Write ``weight`` [vocab, hidden] to the file ``path``, completely or not at all.

    Raises OutputError.  Raises ValueError unless rows are whole bytes, inputs are in order, scales are exact
    in float16, and offsets are exact in float16 or products of integer zero points.
    """
    hidden, bits = weight.shape[1], weight.bits
    if hidden * bits % 8 or weight.order is not None:
        raise ValueError(f"{bits} bit, {hidden} inputs, order {weight.order}")
    kind = _kind_of_zero(weight)
    with np.errstate(over="ignore"):  # an overflow to infinity is refused as inexact
        scale, offset = weight.scale.astype("<f2"), weight.offset.astype("<f2")
    if (scale != weight.scale).any() or (kind is Zero.ANY and (offset != weight.offset).any()):
        raise ValueError("scale and offset have to be float16 values")
    parts = {"q": ("U8", pack_bytes(weight.q, bits)), "scale": ("F16", scale)}
    if kind is Zero.ANY:
        parts["offset"] = ("F16", offset)
    elif kind is Zero.POINT:
        assert weight.zero_points is not None
        points = weight.zero_points.astype(np.uint8).reshape(1, -1)
        filled = np.pad(points, ((0, 0), (0, -points.size % 8)))
        size = -(-points.size * bits // 8)
        parts["zero"] = ("U8", pack_bytes(filled, bits)[0, :size])
    metadata = {
        "format": _FORMAT,
        "version": _VERSION,
        "bits": str(bits),
        "group": str(weight.group),
        "zero": next(name for name, zero in _ZEROS.items() if zero is kind),
    }
    # not with the library: its order of metadata differs from run to run
    header: dict[str, object] = {"__metadata__": metadata}
    position = 0
    for name, (dtype, array) in sorted(parts.items()):
        span = [position, position + array.nbytes]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": span}
        position = span[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with new_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, (_, array) in sorted(parts.items()):
            file.write(np.ascontiguousarray(array).tobytes())


def _kind_of_zero(weight: QuantizedWeight) -> Zero:
    if (weight.offset == -float(1 << (weight.bits - 1)) * weight.scale).all():
        return Zero.MIDDLE
    return Zero.ANY if weight.zero_points is None else Zero.POINT


def read_embedding(path: Path) -> QuantizedWeight:
    """Read a file written by :func:`write_embedding`.

    Raises BadWeights if the file is damaged, of another version, or its parts do not fit.
    """
    file, bits, group, kind = _open(path)
    hidden = file.tensors["q"].shape[1] * 8 // bits
    q = unpack(file.tensors["q"].read_integers(), bits, hidden)
    scale = file.tensors["scale"].read()
    if "zero" in file.tensors:
        packed = file.tensors["zero"].read_integers()
        offset = -scale * unpack(packed[None], bits, scale.size).reshape(scale.shape)
    elif "offset" in file.tensors:
        offset = file.tensors["offset"].read()
        if kind is Zero.POINT:
            with np.errstate(all="ignore"):  # checked below
                offset = -scale * np.rint(-offset / scale)
    else:
        offset = -float(1 << (bits - 1)) * scale
    if not (np.isfinite(scale).all() and np.isfinite(offset).all() and (scale > 0).all()):
        raise BadWeights(
            f"{path}: scales have to be positive and finite, offsets finite.",
            hint="write the file again.",
        )
    return QuantizedWeight(bits, group, q, scale, offset.astype(np.float32))


def embedding_format(path: Path, shape: tuple[int, int]) -> tuple[int, int, Zero]:
    """Return (bits, inputs per scale, kind of zero point) from the header.

    Raises BadWeights, or ShapeMismatch unless the embedding has ``shape`` (vocab, hidden).
    """
    file, bits, group, kind = _open(path)
    vocab, width = file.tensors["q"].shape
    _check_shape(path, (vocab, width * 8 // bits), shape)
    return bits, group, kind


def check_agreement(
    path: Path, table: QuantizedWeight, floats: NDArray[np.float32], dtype: str
) -> None:
    """Raise ShapeMismatch unless ``floats`` are ``table`` rounded to ``dtype``."""
    _check_shape(path, table.shape, floats.shape)
    exact = table.dequantized()
    allowed = np.abs(exact) * np.float32(_ROUNDING[dtype]) + np.float32(_SMALLEST_HALF)
    differing = int((np.abs(exact - floats) > allowed).sum())
    if differing:
        raise ShapeMismatch(
            f"{path} and the float table of the model differ in {differing} of {exact.size} values, "
            f"by up to {float(np.abs(exact - floats).max()):.3g}.",
            hint="they have to come from the same quantisation; remove the file if the float "
            "table is the right one.",
        )


def _check_shape(path: Path, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if found != wanted:
        raise ShapeMismatch(
            f"{path} holds {list(found)}, the table of the model is {list(wanted)}.",
            hint="they have to come from the same quantisation.",
        )


def _open(path: Path) -> tuple[SafetensorsFile, int, int, Zero]:
    """Check the whole header and return the file, its bits, its group and its kind of zero points."""
    file = SafetensorsFile(path)
    stated = file.metadata
    if stated.get("format") != _FORMAT or stated.get("version") not in _VERSIONS:
        raise BadWeights(
            f"{path}: format {stated.get('format')!r}, version {stated.get('version')!r}; "
            f"{_FORMAT!r}, versions {', '.join(_VERSIONS)} are supported."
        )
    faults = []
    bits, group, kind = stated.get("bits", ""), stated.get("group", ""), _stated_zero(stated)
    if bits not in map(str, WIDTHS):
        faults.append(f"bits = {bits!r}; {', '.join(map(str, WIDTHS))} are allowed")
    if not group.isascii() or not group.isdigit() or int(group) == 0:
        faults.append(f"group = {group!r}; a positive number is needed")
    if kind is None:
        faults.append(f"zero = {stated.get('zero')!r}; {', '.join(_ZEROS)} are allowed")
    parts = {"q": ("U8", 2), "scale": ("F16", 2)}
    if stated["version"] != _VERSION or kind is Zero.ANY:
        parts["offset"] = ("F16", 2)
    elif kind is Zero.POINT:
        parts["zero"] = ("U8", 1)
    for name, (dtype, dimensions) in parts.items():
        entry = file.tensors.get(name)
        if entry is None or entry.dtype != dtype or len(entry.shape) != dimensions:
            faults.append(f"{name} has to be {dtype} with {dimensions} dimensions")
    faults += [f"unexpected {name}" for name in file.tensors if name not in parts]
    if not faults:
        faults = _wrong_shapes(file, int(bits), int(group), parts)
    if faults or kind is None:
        raise BadWeights(f"{path}: {'; '.join(faults)}.", hint="write the file again.")
    return file, int(bits), int(group), kind


def _stated_zero(metadata: Mapping[str, str]) -> Zero | None:
    if metadata["version"] == _VERSION:
        return _ZEROS.get(metadata.get("zero", ""))
    flags = {"symmetric": Zero.MIDDLE, "points": Zero.POINT}
    return next((zero for key, zero in flags.items() if metadata.get(key) == "true"), Zero.ANY)


def _wrong_shapes(file: SafetensorsFile, bits: int, group: int, parts: Iterable[str]) -> list[str]:
    vocab, width = file.tensors["q"].shape
    hidden, rest = divmod(width * 8, bits)
    if rest:
        return [f"q has {width} bytes per row, which {bits} bit do not fill"]
    if group > hidden:
        return [f"group = {group} with {hidden} inputs"]
    groups = -(-hidden // group)
    wanted: dict[str, tuple[int, ...]] = dict.fromkeys(("scale", "offset"), (vocab, groups))
    wanted["zero"] = (-(-vocab * groups * bits // 8),)
    return [
        f"{name} is {list(file.tensors[name].shape)}, not {list(wanted[name])}"
        for name in parts
        if name != "q" and file.tensors[name].shape != wanted[name]
    ]
