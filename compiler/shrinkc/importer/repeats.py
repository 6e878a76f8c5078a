"""Detection of layers that are stored more than once in a checkpoint."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from shrinkc.core.errors import ShrinkcError
from shrinkc.importer.safetensors_file import Tensor, open_weights

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_LOOK = 256  # bytes of every tensor compared first; different layers nearly always differ there


def repeated_layers(path: Path) -> tuple[int, ...]:
    """Return for each layer of a directory the first layer with equal bytes, usually itself.

    Empty if no layer repeats another, or if ``path`` is not a directory of safetensors files, which the importer
    reports.  Reads little more than headers unless layers repeat.
    """
    try:
        weights = open_weights(path)
    except (ShrinkcError, OSError):
        return ()
    layers: dict[int, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        if match := _LAYER.fullmatch(name):
            layers.setdefault(int(match[1]), {})[match[2]] = tensor
    out: list[int] = []
    alike: dict[tuple[object, ...], list[int]] = {}
    for index in sorted(layers):
        firsts = alike.setdefault(_glance(layers[index]), [])
        same = next((i for i in firsts if _equal(layers[i], layers[index])), None)
        if same is None:
            firsts.append(index)
        out.append(index if same is None else same)
    whole = sorted(layers) == list(range(len(layers)))
    return tuple(out) if whole and out != sorted(layers) else ()


def _glance(tensors: dict[str, Tensor]) -> tuple[object, ...]:
    """Return a key that equal layers share; different layers may share it too."""
    return tuple(
        (suffix, t.dtype, t.shape, t.raw[:_LOOK].tobytes()) for suffix, t in sorted(tensors.items())
    )


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(np.array_equal(one[suffix].raw, other[suffix].raw) for suffix in one)
