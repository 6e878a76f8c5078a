"""Estimated increase in loss of every matrix in every format, for a choice without a run of the model.

By the linearity theorem of HIGGS (Malinovskii et al., 2024, arXiv:2411.17525), the increase in loss of rounded weights
is nearly the sum over all matrices of a constant times the relative squared rounding error, ||Q(W) - W||^2 / ||W||^2.

* The error of a format is that of normally distributed weights, rounded by the quantiser of ``compile``.  A grouped or
  asymmetric matrix reads int8 activations, whose rounding error is added.
* The constants come from a file of ``shrinkc sensitivity``, or from ``SHARES`` if there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from shrinkc.compression.choices import monotonic
from shrinkc.compression.sensitivity import Sensitivity, read_sensitivity
from shrinkc.importer import LlamaConfig
from shrinkc.model import NAMES, SLOT_MODULES, slot_shapes
from shrinkc.quantize import MatrixFormat
from shrinkc.quantize.weights import Output, quantize_matrix

SAMPLE = 1 << 14  # weights that are rounded to find the error of a format
ACTIVATION_GROUP = 64  # int8 activations that share a scale, at most

# Divergence of the predictions per relative squared rounding error of all matrices of a kind, relative to the sum over
# the four kinds of a layer's matrices.  Geometric means of examples/stories, SmolLM2-135M and Qwen2.5-Coder-0.5B (5, 30
# and 24 layers) at 3 bit, group size 64:
#   qkv 0.31 0.26 0.34, o 0.15 0.08 0.11, gate_up 0.33 0.35 0.41, down 0.22 0.31 0.14,
#   embedding 0.15 0.05, LM head 0.14 0.27 (without Qwen).
SHARES = {"qkv": 0.31, "o": 0.11, "gate_up": 0.36, "down": 0.22, "embedding": 0.09, "head": 0.19}
# The share of gate_up and down in the first layer is 3.7, 3.2 and 8.8 times, in the last layer 1.8, 7.9 and 3.0 times
# that of a layer between.  Of qkv and o it is 2.0, 3.5 and 0.7, and 1.8, 0.5 and 0.5 times: no consistent difference.
ENDS = {"gate_up": 4.0, "down": 4.0}


@dataclass(frozen=True)
class WidthCosts:
    """Estimated costs of all matrices.

    ``points``: stored matrix -> (error, cost) pairs, ascending; costs between them are interpolated.
    ``unit``: of the costs.  ``source``: where they come from.
    """

    config: LlamaConfig
    points: Mapping[str, Sequence[tuple[float, float]]]
    unit: str
    source: str

    def of(self, name: str, form: MatrixFormat) -> float:
        """Return the cost of a stored matrix in a format.  Raises QuantizeError if it cannot have that format."""
        error = format_error(form, inputs_of(self.config, name))
        errors, costs = zip((0.0, 0.0), *self.points[name], strict=True)
        if error > errors[-1]:
            return float(costs[-1] * error / errors[-1])
        return float(np.interp(error, errors, costs))


def inputs_of(config: LlamaConfig, name: str) -> int:
    """Return the number of inputs of a stored matrix, such as "layer3.qkv" or "head"."""
    slot = name.rpartition(".")[2]
    return slot_shapes(config)[slot][1] if slot in SLOT_MODULES else config.hidden_size


def costs_by_kind(config: LlamaConfig) -> WidthCosts:
    """Return costs from the kinds of the matrices alone (``SHARES``, ``ENDS``): weighted means of errors."""
    last = config.num_layers - 1
    shares: dict[str, float] = {}
    for slot in SLOT_MODULES:
        weights = [ENDS.get(slot, 1.0) if i in (0, last) else 1.0 for i in range(last + 1)]
        for i, weight in enumerate(weights):
            shares[f"layer{i}.{slot}"] = SHARES[slot] * weight / sum(weights)
    if config.tie_embeddings:
        shares["head"] = SHARES["embedding"] + SHARES["head"]
    else:
        shares |= {name: SHARES[name] for name in ("embedding", "head")}
    return WidthCosts(
        config, {name: [(1.0, share)] for name, share in shares.items()},
        "weighted relative rounding error", "the kinds of the matrices",
    )  # fmt: skip


def measured_costs(config: LlamaConfig, file: Path) -> WidthCosts:
    """Return costs in nats per token from a result of ``shrinkc sensitivity``.

    It has the divergence of every matrix at four widths.  The costs of the modules of a stored matrix are added; an
    untied embedding and the LM head were measured together and take half each.  Raises BadData.
    """
    found = read_sensitivity(file, config.num_layers)
    points: dict[str, list[tuple[float, float]]] = {}
    for i, layer in enumerate(found.kl.layers):
        for slot, modules in SLOT_MODULES.items():
            each = [monotonic(layer.modules[NAMES[module]]) for module in modules]
            costs = {bits: sum(one[bits] for one in each) for bits in each[0]}
            points[f"layer{i}.{slot}"] = _by_error(costs, found, slot_shapes(config)[slot][1])
    both = monotonic(found.kl.embedding)
    names = ["head"] if config.tie_embeddings else ["head", "embedding"]
    share = {bits: cost / len(names) for bits, cost in both.items()}
    points |= {
        name: _by_error(share, found, config.hidden_size, asymmetric=False) for name in names
    }
    return WidthCosts(config, points, "nats per token", f"measurements in {file.name}")


def _by_error(
    costs: Mapping[int, float], found: Sensitivity, k: int, *, asymmetric: bool = True
) -> list[tuple[float, float]]:
    """Return (error, cost) for the measured widths, whose format is that of the measurement."""
    return sorted(
        (weight_error(bits, found.group_size, asymmetric, k), cost) for bits, cost in costs.items()
    )


def format_error(form: MatrixFormat, k: int) -> float:
    """Return the relative squared error of a product of k inputs with a matrix in this format."""
    error = weight_error(form.bits, form.group, form.asymmetric, k)
    if form.grouped:
        error += weight_error(8, min(form.group or k, ACTIVATION_GROUP), False, k)
    return error


@cache
def weight_error(bits: int, group: int | None, asymmetric: bool, k: int) -> float:
    """Return ||Q(W) - W||^2 / ||W||^2 of normally distributed W [rows, k], with three significant digits, because the
    last bits of a sum differ between machines.

    Raises QuantizeError if ``compile`` does not support the format for k inputs."""
    w = np.random.default_rng(0).standard_normal((-(-SAMPLE // k), k))
    made = quantize_matrix(
        "matrix", w, Output(1.0, 10), bits=bits, group=group, asymmetric=asymmetric
    )
    error = np.square(made.dequantized() - w).sum() / np.square(w).sum()
    return float(f"{error:.3g}")
