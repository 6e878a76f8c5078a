"""The engine of every matrix of a model, chosen from sizes alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

from shrinkc.engines import CORES, ON_CORES, Choices, Engine, MatrixSpec, choose, engine_named
from shrinkc.importer import Formats, LlamaConfig
from shrinkc.quantize import QuantOptions
from shrinkc.schedule.shapes import equal_matrices, matrix_specs
from shrinkc.targets import Target


def choose_engines(
    config: LlamaConfig,
    options: QuantOptions,
    ranks: Sequence[dict[str, int]] | dict[str, int],
    formats: Formats | None,
    repeats: Sequence[int],
    target: Target,
    barred: Mapping[str, str] | None = None,
) -> Choices:
    """Which of the target's engines runs which matrix; arguments as of ``shapes_of_config``.

    ``barred``: engines that shall run none, with the reason.
    An embedding that is a matrix of its own is multiplied with nothing and stays with the cores.
    What L2 has left for weights is known once there is a plan, so nothing is counted on there.
    """
    if target.engines == (CORES,):
        return ON_CORES
    layers, head, _ = matrix_specs(config, options, ranks, formats)
    return choose(
        [spec for specs in layers for spec in specs] + [head],
        [_asked_once(engine_named(name)) for name in target.engines],
        {v.name: v.bytes for v in target.on_chip if v.name != "l2"},
        dict(equal_matrices(layers, repeats)),
        barred,
    )


def _asked_once(engine: Engine) -> Engine:
    """The same, which works out cycles once for matrices of one slot that are alike in all layers."""
    known = cache(engine.cycles)

    def cycles(spec: MatrixSpec, tokens: int) -> int:
        return known(replace(spec, name=spec.name.rsplit(".", 1)[-1]), tokens)

    return replace(engine, cycles=cycles)
