"""Choice of an engine for every matrix of a model, from sizes alone."""

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
    """Matrices that a pass multiplies with: all but an untied embedding, which stays with the cores.

    ``owners``: matrix -> an earlier equal one.
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
    """Return the matrices that a model multiplies with; arguments as in ``shapes_of_config``."""
    layers, head, _ = matrix_specs(config, options, ranks, formats)
    specs = (*(spec for specs in layers for spec in specs), head)
    return Multiplied(specs, dict(equal_matrices(layers, repeats)))


def choose_engines(
    of: Multiplied, target: Target, barred: Mapping[str, str] | None = None
) -> Choices:
    """Choose one of the target's engines for every matrix.

    ``barred``: engine -> the reason why it must not be used.  ``choose_second_layouts`` chooses engines with a second
    layout.  L2 is not used, because its free bytes are known only after planning.
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
    """Return ``choices`` with second layouts of matrices that fit into ``free`` bytes per memory of a plan.

    ``widest``: the most words that a vector may have."""
    engines = [engine_named(name) for name in target.engines]
    if not any(engine.second_layout for engine in engines):
        return choices
    room = {level: left for level, left in free.items() if level != L2}
    return with_second_layouts(
        choices, of.specs, [_asked_once(e) for e in engines], room, of.owners, widest
    )


def without_second_layouts(choices: Choices, refused: Choices) -> Choices:
    """Return ``choices`` and note as a reason that the second layouts of ``refused`` leave too little memory."""

    def of(choice: Choice, had: Choice) -> Choice:
        if had.engine == choice.engine:
            return had
        reason = (had.engine, "would leave less memory for what else there is")
        return replace(choice, refused=(*choice.refused, reason))

    return Choices({name: of(c, refused.by_name[name]) for name, c in choices.by_name.items()})


def _asked_once(engine: Engine) -> Engine:
    """Return the engine with cached cycles, so that equal matrices of all layers are estimated once."""
    known = cache(engine.cycles)

    def cycles(spec: MatrixSpec, tokens: int) -> int:
        return known(replace(spec, name=spec.name.rsplit(".", 1)[-1]), tokens)

    return replace(engine, cycles=cycles)
