"""Files with the quantised embedding (or head) of a GPTQ checkpoint, whose format covers Linear modules only.

``embedding.safetensors`` holds ``q`` uint8 [vocab, hidden · bits / 8] (packed from the lowest bit on: at 4 bit the
first of two inputs is in the low nibble), ``scale`` and ``offset`` float16 [vocab, groups]:
``weight = scale * q + offset``.  Its metadata hold format, version, bits, group and two flags.  ``symmetric``: all
offsets are ``-2**(bits - 1) * scale``.  ``points``: offsets are ``-scale`` times integer zero points; then the
zero points are exact, and the stored offsets are their products rounded to float16.  The version is 2 if that
rounding changed any offset.

``model.safetensors`` holds the embedding as floats too, for readers that do not know this file.
"""

from __future__ import annotations

import json
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
_FORMAT, _VERSIONS = "shrinkc-embedding", ("1", "2")
# largest relative rounding error of a type: half a unit in the last place
_ROUNDING = {"F16": 2.0**-11, "F32": 2.0**-11, "BF16": 2.0**-8}
_SMALLEST_HALF = 2.0**-24


def write_embedding(path: Path, weight: QuantizedWeight) -> None:
    """Write ``weight`` [vocab, hidden] to the file ``path``, completely or not at all.

    Raises OutputError.  Raises ValueError unless rows are whole bytes, inputs are in order, scales are exact
    in float16, and offsets are exact in float16 or products of integer zero points.
    """
    hidden = weight.shape[1]
    with np.errstate(over="ignore"):  # an overflow to infinity is refused as inexact
        scale, offset = weight.scale.astype("<f2"), weight.offset.astype("<f2")
    if hidden * weight.bits % 8 or weight.order is not None:
        raise ValueError(f"{weight.bits} bit, {hidden} inputs, order {weight.order}")
    points = weight.zero_points is not None and bool(np.isfinite(offset).all())
    exact = bool((offset == weight.offset).all())
    if (scale != weight.scale).any() or not (points or exact):
        raise ValueError("scale and offset have to be float16 values")
    q = pack_bytes(weight.q, weight.bits)
    symmetric = bool((weight.offset == -float(1 << (weight.bits - 1)) * weight.scale).all())
    metadata = {
        "format": _FORMAT,
        "version": _VERSIONS[not exact],
        "bits": str(weight.bits),
        "group": str(weight.group),
        "symmetric": "true" if symmetric else "false",
        "points": "true" if points else "false",
    }
    # not with the library: its order of metadata differs from run to run
    header: dict[str, object] = {"__metadata__": metadata}
    position = 0
    for name, dtype, array in (("offset", "F16", offset), ("q", "U8", q), ("scale", "F16", scale)):
        span = [position, position + array.nbytes]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": span}
        position = span[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with new_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in (offset, q, scale):
            file.write(np.ascontiguousarray(array).tobytes())


def read_embedding(path: Path) -> QuantizedWeight:
    """Read a file written by :func:`write_embedding`.

    Raises BadWeights if the file is damaged, of another version, or its parts do not fit.
    """
    file, bits, group = _open(path)
    hidden = file.tensors["q"].shape[1] * 8 // bits
    q = unpack(file.tensors["q"].read_integers(), bits, hidden)
    scale, offset = file.tensors["scale"].read(), file.tensors["offset"].read()
    if not (np.isfinite(scale).all() and np.isfinite(offset).all() and (scale > 0).all()):
        raise BadWeights(
            f"{path}: scales have to be positive and finite, offsets finite.",
            hint="write the file again.",
        )
    if file.metadata.get("points") == "true":
        offset = -scale * np.rint(-offset / scale)
    return QuantizedWeight(bits, group, q, scale, offset)


def embedding_format(path: Path, shape: tuple[int, int]) -> tuple[int, int, Zero]:
    """Return (bits, inputs per scale, kind of zero point) from the header.

    Raises BadWeights, or ShapeMismatch unless the embedding has ``shape`` (vocab, hidden).
    """
    file, bits, group = _open(path)
    vocab, width = file.tensors["q"].shape
    _check_shape(path, (vocab, width * 8 // bits), shape)
    stated = (("symmetric", Zero.MIDDLE), ("points", Zero.POINT))
    found = (zero for key, zero in stated if file.metadata.get(key) == "true")
    return bits, group, next(found, Zero.ANY)


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


def _open(path: Path) -> tuple[SafetensorsFile, int, int]:
    """Check the whole header and return the file, its bits and its group."""
    file = SafetensorsFile(path)
    stated = file.metadata
    if stated.get("format") != _FORMAT or stated.get("version") not in _VERSIONS:
        raise BadWeights(
            f"{path}: format {stated.get('format')!r}, version {stated.get('version')!r}; "
            f"{_FORMAT!r}, versions {' and '.join(_VERSIONS)} are supported."
        )
    faults = []
    bits, group = stated.get("bits", ""), stated.get("group", "")
    if bits not in map(str, WIDTHS):
        faults.append(f"bits = {bits!r}; {', '.join(map(str, WIDTHS))} are allowed")
    if not group.isascii() or not group.isdigit() or int(group) == 0:
        faults.append(f"group = {group!r}; a positive number is needed")
    for name, dtype in (("q", "U8"), ("scale", "F16"), ("offset", "F16")):
        entry = file.tensors.get(name)
        if entry is None or entry.dtype != dtype or len(entry.shape) != 2:
            faults.append(f"{name} has to be {dtype} with two dimensions")
    faults += [f"unexpected {n}" for n in file.tensors if n not in ("q", "scale", "offset")]
    if not faults:
        vocab, width = file.tensors["q"].shape
        hidden, rest = divmod(width * 8, int(bits))
        if rest:
            faults.append(f"q has {width} bytes per row, which {bits} bit do not fill")
        shape = (vocab, -(-hidden // int(group)))
        if int(group) > hidden:
            faults.append(f"group = {group} with {hidden} inputs")
        faults += [
            f"{name} is {list(file.tensors[name].shape)}, not {list(shape)}"
            for name in ("scale", "offset")
            if file.tensors[name].shape != shape
        ]
    if faults:
        raise BadWeights(f"{path}: {'; '.join(faults)}.", hint="write the file again.")
    return file, int(bits), int(group)
