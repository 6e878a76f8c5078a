"""Float models with their matrices replaced by the integers of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from helpers.layer import MODULES
from shrinkc.importer import FloatModel, Formats, QuantizedWeight
from shrinkc.importer.model import Zero

# what reads one input shares one order of columns, as GPTQ's act-order does
_SLOTS = list(dict.fromkeys(part.slot for part in MODULES.values()))
INPUT = {module: _SLOTS.index(part.slot) for module, part in MODULES.items()}


@dataclass(frozen=True)
class Format:
    """``group`` None: one scale per row.  ``zero``: "middle" (symmetric), "integer" or "float"."""

    bits: int = 4
    group: int | None = 32
    zero: str = "middle"
    act_order: bool = False


def quantise(
    w: np.ndarray, f: Format, rng: np.random.Generator, order: np.ndarray | None = None
) -> QuantizedWeight:
    """Round to nearest, with scales and offsets of 16-bit floats as checkpoints have them."""
    k = w.shape[1]
    group = min(f.group or k, k)
    groups = -(-k // group)
    stored = w if order is None else w[:, order]
    top = (1 << f.bits) - 1
    edges = [(at, min(at + group, k)) for at in range(0, k, group)]
    low = np.stack([stored[:, a:b].min(axis=1) for a, b in edges], axis=1)
    high = np.stack([stored[:, a:b].max(axis=1) for a, b in edges], axis=1)
    widest = (high - low) / top
    if f.zero == "middle":
        widest = np.maximum(np.abs(low), np.abs(high)) / (top // 2)
    scale = np.maximum(widest, 1e-4).astype(np.float16).astype(np.float32)
    if f.zero == "float":
        offset = low.astype(np.float16).astype(np.float32)
    elif f.zero == "integer":
        offset = -scale * np.clip(np.rint(-low / scale), 0, top)
    else:
        offset = -scale * (1 << (f.bits - 1))
    spread = np.repeat(np.arange(groups), group)[:k]
    q = np.clip(np.rint((stored - offset[:, spread]) / scale[:, spread]), 0, top)
    return QuantizedWeight(
        f.bits, group, q.astype(np.uint8), scale, offset.astype(np.float32), order
    )


def quantised_model(
    model: FloatModel, format_of: Callable[[int, str], Format | None], seed: int = 0
) -> FloatModel:
    """``format_of(layer, module)`` for every module, "embedding" and "head" with layer -1; None
    leaves a matrix float."""
    rng = np.random.default_rng(seed)
    layers = []
    for i, layer in enumerate(model.layers):
        orders: dict[int, np.ndarray] = {}
        fields = {}
        for module, part in MODULES.items():
            f, w = format_of(i, module), getattr(layer, part.field)
            if f is None:
                continue
            k = w.shape[1]
            order = orders.setdefault(INPUT[module], rng.permutation(k)) if f.act_order else None
            fields[part.field] = quantise(w, f, rng, order)
        layers.append(replace(layer, **fields))
    tables = {}
    for name in ("embedding", "head"):
        f, w = format_of(-1, name), getattr(model, name)
        if f is not None and w is not None:
            tables[name] = quantise(w, f, rng, rng.permutation(w.shape[1]) if f.act_order else None)
    return replace(model, layers=layers, **tables)


def formats_of(model: FloatModel) -> Formats:
    """What importer.formats() says of such a checkpoint."""

    def entry(w: QuantizedWeight) -> tuple[int, int, Zero]:
        points = w.offset / w.scale + (1 << (w.bits - 1))
        zero = Zero.MIDDLE if np.abs(points).max() < 1e-3 else Zero.POINT
        if np.abs(points - np.rint(points)).max() > 1e-3:
            zero = Zero.ANY
        return w.bits, w.group, zero

    out = {}
    for i, layer in enumerate(model.layers):
        for part in MODULES.values():
            w = getattr(layer, part.field)
            if isinstance(w, QuantizedWeight):
                out[f"model.layers.{i}.{part.name}"] = entry(w)
    for name, w in (("model.embed_tokens", model.embedding), ("lm_head", model.head)):
        if isinstance(w, QuantizedWeight):
            out[name] = entry(w)
    return out
