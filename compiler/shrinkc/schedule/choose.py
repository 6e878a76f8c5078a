"""The engine of every matrix of a model, chosen from sizes alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from shrinkc.engines import (
    ON_CORES,
    Choice,
    Choices,
    Engine,
    MatrixSpec,
    choose,
    engine_named,
    with_second_layouts,
)
from shrinkc.importer import Formats, LlamaConfig
from shrinkc.quantize import QuantOptions
from shrinkc.schedule.shapes import Ranks, equal_matrices, matrix_specs
from shrinkc.targets import L2, Target


@dataclass(frozen=True)
class Multiplied:
    """What a pass multiplies with: an embedding that is a matrix of its own is not among it, and stays with the cores.

    ``owners``: matrix -> the earlier equal one.
    """

    specs: tuple[MatrixSpec, ...]
    owners: Mapping[str, str]


def multiplied(
    config: LlamaConfig,
    options: QuantOptions,
    ranks: Ranks,
    formats: Formats | None,
    repeats: Sequence[int],
) -> Multiplied:
    """The matrices of a model; arguments as of ``shapes_of_config``."""
    layers, head, _ = matrix_specs(config, options, ranks, formats)
    specs = (*(spec for specs in layers for spec in specs), head)
    return Multiplied(specs, dict(equal_matrices(layers, repeats)))


def choose_engines(
    of: Multiplied, target: Target, barred: Mapping[str, str] | None = None
) -> Choices:
    """Which of the target's engines runs which matrix.

    ``barred``: engines that shall run none, with the reason.
    Engines with a second layout are not among them: see ``choose_second_layouts``.
    What L2 has left for weights is known once there is a plan, so nothing is counted on there.
    """
    engines = [e for e in map(engine_named, target.engines) if not e.second_layout]
    if len(engines) == 1:
        return ON_CORES
    room = {v.name: v.bytes for v in target.on_chip if v.name != L2}
    return choose(of.specs, [_asked_once(e) for e in engines], room, of.owners, barred)


def choose_second_layouts(
    choices: Choices,
    of: Multiplied,
    target: Target,
    free: Mapping[str, int],
    widest: int | None = None,
) -> Choices:
    """The same with second layouts of matrices, as far as a plan leaves ``free`` bytes for them, and no vector
    takes more words than ``widest``."""
    engines = [engine_named(name) for name in target.engines]
    if not any(engine.second_layout for engine in engines):
        return choices
    room = {level: left for level, left in free.items() if level != L2}
    return with_second_layouts(
        choices, of.specs, [_asked_once(e) for e in engines], room, of.owners, widest
    )


def without_second_layouts(choices: Choices, refused: Choices) -> Choices:
    """The same, where those of ``refused`` would take what something else has."""

    def of(choice: Choice, had: Choice) -> Choice:
        if had.engine == choice.engine:
            return had
        reason = (had.engine, "would leave less memory for what else there is")
        return replace(choice, refused=(*choice.refused, reason))

    return Choices({name: of(c, refused.by_name[name]) for name, c in choices.by_name.items()})


def _asked_once(engine: Engine) -> Engine:
    """The same, which works out cycles once for matrices of one slot that are alike in all layers."""
    known = cache(engine.cycles)

    def cycles(spec: MatrixSpec, tokens: int) -> int:
        return known(replace(spec, name=spec.name.rsplit(".", 1)[-1]), tokens)

    return replace(engine, cycles=cycles)
