"""The modules of one matrix as they come, fused, with bounds of what it can give."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from shrinkc.importer.model import FloatLayer, LowRankAdapter, QuantizedWeight, Weight, dense
from shrinkc.ir.linear import QLinear
from shrinkc.model import FIELDS, SLOT_MODULES
from shrinkc.numerics.fixed import INT32_MAX
from shrinkc.quantize.bounds import adapter_bound, frac_for, row_bound
from shrinkc.quantize.formats import mixed
from shrinkc.quantize.limits import largest
from shrinkc.quantize.weights import fuse


@dataclass(frozen=True)
class Source:
    """The modules of one matrix [n, k] as they come: floats, or a checkpoint's integers whose
    column j is input ``order[j]``; adapter a [rank, k] and b [n, rank], or None; bias [n] or
    None."""

    name: str
    weight: Weight
    adapter: LowRankAdapter | None
    bias: np.ndarray | None = None

    @property
    def order(self) -> np.ndarray | None:
        """int64 [k]: the input that a stored column is; None: as they come."""
        return self.weight.order if isinstance(self.weight, QuantizedWeight) else None

    def bound(self, gain: np.ndarray) -> float:
        """Largest |result| for inputs gain * x, ||x|| <= sqrt(K)."""
        plain = row_bound(dense(self.weight), gain) + self.adapter_bound(gain)
        return plain + self.bias_bound()

    def stored_bounds(self, w: QLinear, gain: np.ndarray, cuts: tuple[int, ...]) -> list[float]:
        """Largest |result| of the rows between ``cuts``, from the integers ``w`` of this matrix:
        rounding may lengthen a row."""
        parts = np.split(w.dequantized(), cuts)
        stored = gain if self.order is None else gain[self.order]
        extra = self.bias_bound()
        if w.low_rank is not None:
            extra += adapter_bound(w.low_rank.a.dequantized(), w.low_rank.b.dequantized(), stored)
        return [row_bound(part, stored) + extra for part in parts]

    def bias_bound(self) -> float:
        """Largest |bias|."""
        return 0.0 if self.bias is None else float(np.abs(self.bias).max(initial=0.0))

    def fixed_bias(self, frac: int) -> np.ndarray | None:
        """The bias with ``frac`` fraction bits, as saturated int32."""
        if self.bias is None:
            return None
        values = np.rint(self.bias.astype(np.float64) * 2.0**frac)
        return np.clip(values, -INT32_MAX, INT32_MAX).astype(np.int32)

    def adapter_bound(self, gain: np.ndarray | None) -> float:
        """Largest |result| of the adapter, for inputs as in :meth:`bound`."""
        if self.adapter is None:
            return 0.0
        return adapter_bound(self.adapter.a, self.adapter.b, gain)

    def plain_frac(self) -> int:
        """Fraction bits that results would need for inputs of the size that a norm gives: what no
        norm bounds, the residual stream takes no more of."""
        plain = self.weight.shape[1] * largest(self.weight) + self.adapter_bound(None)
        return frac_for(plain + self.bias_bound())

    def with_rows(self, order: np.ndarray) -> Source:
        """Rows in another order."""
        w = self.weight
        if isinstance(w, QuantizedWeight):
            w = replace(w, q=w.q[order], scale=w.scale[order], offset=w.offset[order])
        else:
            w = w[order]
        adapter = (
            None if self.adapter is None else LowRankAdapter(self.adapter.a, self.adapter.b[order])
        )
        return Source(self.name, w, adapter)


def source_of(layer: FloatLayer, index: int, slot: str) -> Source:
    """Fuses what reads the same input.  Raises QuantizeError for what cannot be one matrix."""
    parts: dict[str, Weight] = {m: getattr(layer, FIELDS[m]) for m in SLOT_MODULES[slot]}
    quantised = {m: w for m, w in parts.items() if isinstance(w, QuantizedWeight)}
    weight: Weight
    if not quantised:
        weight = np.concatenate([dense(w) for w in parts.values()])
    elif len(quantised) < len(parts):
        raise mixed(index, quantised, [m for m in parts if m not in quantised])
    else:
        weight = fuse({f"layer {index} {m}": w for m, w in quantised.items()})
    return Source(
        f"layer{index}.{slot}", weight, _fused_adapter(layer, parts), _fused_bias(layer, parts)
    )


def _fused_bias(layer: FloatLayer, parts: dict[str, Weight]) -> np.ndarray | None:
    """Zeros for modules without one; None if none has."""
    if not layer.biases.keys() & parts.keys():
        return None
    return np.concatenate(
        [layer.biases.get(m, np.zeros(w.shape[0], np.float32)) for m, w in parts.items()]
    )


def _fused_adapter(layer: FloatLayer, parts: dict[str, Weight]) -> LowRankAdapter | None:
    """One adapter for all: a on top of each other, b as blocks of a diagonal."""
    found = [(m, layer.adapters[m]) for m in parts if m in layer.adapters]
    if not found:
        return None
    rank = sum(x.a.shape[0] for _, x in found)
    starts = dict(zip(parts, np.cumsum([0, *(w.shape[0] for w in parts.values())]), strict=False))
    b = np.zeros((sum(w.shape[0] for w in parts.values()), rank), np.float32)
    at = 0
    for module, x in found:
        rows = slice(starts[module], starts[module] + x.b.shape[0])
        b[rows, at : at + x.a.shape[0]] = x.b
        at += x.a.shape[0]
    return LowRankAdapter(np.concatenate([x.a for _, x in found]), b)
