"""Float or checkpoint weights of one fused matrix, with bounds of its results."""

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
    """Fused modules of one matrix [n, k], before quantisation for the device.

    ``weight`` is float, or a checkpoint's integers whose column j is input ``order[j]``.  ``adapter`` has
    a [rank, k] and b [n, rank]; ``bias`` is [n]."""

    name: str
    weight: Weight
    adapter: LowRankAdapter | None
    bias: np.ndarray | None = None

    @property
    def order(self) -> np.ndarray | None:
        """Input index of each stored column, int64 [k]; None if the columns are in the order of the inputs."""
        return self.weight.order if isinstance(self.weight, QuantizedWeight) else None

    def bound(self, gain: np.ndarray) -> float:
        """Return an upper bound of |result| for inputs gain * x with ||x|| <= sqrt(K)."""
        plain = row_bound(dense(self.weight), gain) + self.adapter_bound(gain)
        return plain + self.bias_bound()

    def stored_bounds(self, w: QLinear, gain: np.ndarray, cuts: tuple[int, ...]) -> list[float]:
        """Return upper bounds of |result| for the row ranges between ``cuts``.

        They are computed from ``w``, the quantised matrix, because rounding can increase a row's norm."""
        parts = np.split(w.dequantized(), cuts)
        stored = gain if self.order is None else gain[self.order]
        extra = self.bias_bound()
        if w.low_rank is not None:
            extra += adapter_bound(w.low_rank.a.dequantized(), w.low_rank.b.dequantized(), stored)
        return [row_bound(part, stored) + extra for part in parts]

    def bias_bound(self) -> float:
        """Return the largest |bias|, 0 without one."""
        return 0.0 if self.bias is None else float(np.abs(self.bias).max(initial=0.0))

    def fixed_bias(self, frac: int) -> np.ndarray | None:
        """Return the bias with ``frac`` fraction bits as saturated int32 [n], or None."""
        if self.bias is None:
            return None
        values = np.rint(self.bias.astype(np.float64) * 2.0**frac)
        return np.clip(values, -INT32_MAX, INT32_MAX).astype(np.int32)

    def adapter_bound(self, gain: np.ndarray | None) -> float:
        """Return an upper bound of the adapter's |result|, for inputs as in :meth:`bound`."""
        if self.adapter is None:
            return 0.0
        return adapter_bound(self.adapter.a, self.adapter.b, gain)

    def plain_frac(self) -> int:
        """Return the fraction bits that results would need for inputs with ||x|| <= sqrt(K).

        It limits the weights of o and down, whose inputs no norm bounds; the residual stream saturates."""
        plain = self.weight.shape[1] * largest(self.weight) + self.adapter_bound(None)
        return frac_for(plain + self.bias_bound())

    def with_rows(self, order: np.ndarray) -> Source:
        """Return the matrix with its rows in another order, without bias (gate and up have none)."""
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
    """Fuse the modules of a slot, which read the same input.  Raises QuantizeError if they cannot be one matrix."""
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
    """Concatenate the biases, with zeros for modules without one; None if no module has one."""
    if not layer.biases.keys() & parts.keys():
        return None
    return np.concatenate(
        [layer.biases.get(m, np.zeros(w.shape[0], np.float32)) for m, w in parts.items()]
    )


def _fused_adapter(layer: FloatLayer, parts: dict[str, Weight]) -> LowRankAdapter | None:
    """Combine the modules' adapters into one: a stacked, b block-diagonal."""
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
