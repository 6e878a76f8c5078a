"""What a pass costs with a plan: the work of every step made cycles, and the waits for weights."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from shrinkc.costs import Arithmetic, CostTable, Cycles, Work
from shrinkc.costs.stream import Stream, Tile
from shrinkc.engines import CORES, engine_named
from shrinkc.ir.steps import Step, Turn, loop_of, slot_of
from shrinkc.memory.parts import Placement
from shrinkc.memory.plan import Plan, planned_sizes
from shrinkc.schedule.shapes import ModelShape
from shrinkc.storage import MatrixShape
from shrinkc.targets import Target, fetched

DMA, FLASH = "dma", "flash"


def resource_label(name: str) -> str:
    """What people call a resource: the DMA, the HyperBus or an engine."""
    return {DMA: "DMA", FLASH: "HyperBus"}.get(name) or engine_named(name).label


@dataclass(frozen=True)
class StepWork:
    """One step of one layer (None: in none): its op by name, its ``work``, the tiles that it takes, its
    ``arithmetic``."""

    layer: int | None
    name: str
    op: str
    work: Work
    tiles: tuple[Tile, ...] = ()
    arithmetic: Arithmetic = Arithmetic()


@dataclass(frozen=True)
class StepCost:
    """In cycles: ``busy``: of every resource (the cores, another engine, DMA, FLASH); ``waits`` of the
    cores for DMA and FLASH; ``cycles``: from its begin to its end."""

    layer: int | None
    name: str
    cycles: float
    busy: Mapping[str, float]
    waits: Mapping[str, float]


@dataclass(frozen=True)
class PassCost:
    """Of one pass, or of several after each other.  ``unknown``: ops and features that were not calibrated,
    and count nothing."""

    steps: tuple[StepCost, ...]
    unknown: tuple[str, ...] = ()

    @property
    def cycles(self) -> float:
        return sum(s.cycles for s in self.steps)

    @property
    def ops(self) -> dict[str, float]:
        """Cycles by op, summed over layers, in order of execution."""
        out: dict[str, float] = {}
        for step in self.steps:
            out[step.name] = out.get(step.name, 0.0) + step.cycles
        return out

    @property
    def busy(self) -> dict[str, float]:
        """Of every resource, as a fraction of all cycles."""
        out: dict[str, float] = {}
        for step in self.steps:
            for name, cycles in step.busy.items():
                out[name] = out.get(name, 0.0) + cycles
        return {name: cycles / max(self.cycles, 1.0) for name, cycles in out.items()}

    @property
    def limit(self) -> str:
        """The resource that is busy longest."""
        busy = self.busy
        return max(busy, key=lambda name: busy[name])

    def plain(self, table: CostTable) -> PassCost:
        """Without what the counters of a profile build cost each step."""

        def without(s: StepCost) -> StepCost:
            less = min(table.probe, s.cycles - 1.0)
            cores = max(0.0, s.busy[CORES] - less)
            return replace(s, cycles=s.cycles - less, busy={**s.busy, CORES: cores})

        return replace(self, steps=tuple(map(without, self.steps)))


_Cut = tuple[tuple[int, ...], tuple[Tile, ...]]
"""Row blocks of each tile, and the tiles."""


class _Taken(NamedTuple):
    """What a step of a layer takes in every pass: its matrix, row blocks of each of its tiles, all tiles, and a
    number that steps have in common which are alike."""

    matrix: MatrixShape | None
    blocks: tuple[int, ...]
    tiles: tuple[Tile, ...]
    kind: int


class Passes:
    """The passes that a plan makes.  Steps are worked out once for all layers that are alike."""

    def __init__(self, shape: ModelShape, plan: Plan, target: Target) -> None:
        self.shape, self.plan = shape, plan
        self._sizes = planned_sizes(shape, target, plan)
        self._placed = {p.name: p for p in plan.placements}
        self._matrices = [{m.name.split(".", 1)[-1]: m for m in layer} for layer in shape.layers]
        self._slots = {step.name: slot_of(step, self._sizes.steps) for step in self._sizes.steps}
        self._tiles_of: dict[tuple[object, ...], _Cut] = {}
        self._taken: dict[tuple[str, int | None], _Taken] = {}
        self._kinds: dict[tuple[object, ...], int] = {}
        self._pairs: dict[tuple[int, int], tuple[Tile, ...]] = {}

    def steps(self, tokens: int, position: int, logits: int = 1) -> list[StepWork]:
        """Of one pass of at most a chunk of tokens, in order; ``logits`` of so many of them, and the choice
        of a token, but where it is 0.  Once its cache is filled the last layer goes on with these tokens alone."""
        begin, end = loop_of(self._sizes.steps)
        attends, final = self._sizes.attends, self.shape.num_layers - 1
        every = list(enumerate(self._sizes.steps))
        known: dict[tuple[int, int], tuple[Work, Arithmetic]] = {}

        def one(at: int, step: Step, layer: int | None) -> StepWork:
            beyond = at > end or (layer == final and at >= attends)
            count = logits if beyond else tokens
            return self._step(step, layer, count, position + tokens - count, known)

        out = [one(at, step, None) for at, step in every[:begin]]
        for layer in range(self.shape.num_layers):
            last = end if logits or layer < final else attends - 1
            out += [one(at, step, layer) for at, step in every[begin : last + 1]]
        if logits:
            out += [one(at, step, None) for at, step in every[end + 1 :]]
        return out

    def prompt(self, tokens: int) -> list[list[StepWork]]:
        """The passes of a prompt, chunk by chunk."""
        chunk = self.plan.chunk
        return [
            self.steps(min(chunk, tokens - at), at, int(at + chunk >= tokens))
            for at in range(0, tokens, chunk)
        ]

    def _step(
        self,
        step: Step,
        layer: int | None,
        tokens: int,
        position: int,
        known: dict[tuple[int, int], tuple[Work, Arithmetic]],
    ) -> StepWork:
        taken = self._taken.get((step.name, layer))
        if taken is None:
            taken = self._taken[step.name, layer] = self._takes(step, layer)
        matrix, blocks, tiles, kind = taken
        key = (kind, tokens)
        if key not in known:
            table = self.shape.embedding or self.shape.head
            outside = _outside(self._placed[table.name])
            turn = Turn(self._sizes, tokens, position, matrix, blocks, table, outside)
            known[key] = step.op.work(step, turn), step.op.arithmetic(step, turn)
        work, arithmetic = known[key]
        return StepWork(layer, step.name, step.op.__name__.lower(), work, tiles, arithmetic)

    def _takes(self, step: Step, layer: int | None) -> _Taken:
        slot = self._slots[step.name]
        matrix = self.shape.head if slot == "head" else None
        if layer is not None and slot:
            matrix = self._matrices[layer][slot]
        tiles: tuple[Tile, ...] = ()
        blocks: tuple[int, ...] = ()
        if step.matrix is not None and matrix is not None:
            blocks, tiles = self._tiles(matrix.name)
            if matrix.rank:
                tiles = self._together(self._tiles(f"{matrix.name}.a")[1], tiles)
        key = (step.name, None if matrix is None else matrix.kind, blocks)
        return _Taken(matrix, blocks, tiles, self._kinds.setdefault(key, len(self._kinds)))

    def _together(self, first: tuple[Tile, ...], then: tuple[Tile, ...]) -> tuple[Tile, ...]:
        """One after the other; of the same two always the same."""
        key = id(first), id(then)  # both are kept
        if key not in self._pairs:
            self._pairs[key] = (*first, *then)
        return self._pairs[key]

    def _tiles(self, matrix: str) -> _Cut:
        """Row blocks of each tile, and the tiles; none of what another engine reads in place."""
        p = self._placed[matrix]
        alike = p.engine, p.level, p.blocks, p.block_bytes, p.tile_blocks, p.interleave
        if alike not in self._tiles_of:
            self._tiles_of[alike] = _cut(p, self.plan.stages)
        return self._tiles_of[alike]


def _cut(p: Placement, stages: int) -> _Cut:
    if p.engine != CORES:
        return (), ()
    whole, rest = divmod(p.blocks, p.tile_blocks)
    blocks = (p.tile_blocks,) * whole + (rest,) * bool(rest)
    ahead = stages - 1 if _outside(p) else 0  # one more may still be copied
    return blocks, tuple(
        Tile(n * p.block_bytes, 0 if p.tile_on_chip(i) else ahead) for i, n in enumerate(blocks)
    )


def _outside(p: Placement) -> bool:
    return fetched(p.level)


def cost_of(passes: Iterable[list[StepWork]], table: CostTable) -> PassCost:
    """Cycles of passes after each other, as a profile build would measure them."""
    out: list[StepCost] = []
    unknown: dict[str, None] = {}
    for steps in passes:
        out += _pass(steps, table, unknown)
    return PassCost(tuple(out), tuple(unknown))


class _Runs(NamedTuple):
    """Tiles, and how many that are equal follow each other; bytes of all, and of those from flash."""

    runs: list[tuple[Tile, int]]
    bytes: int
    fetched: int

    @classmethod
    def of(cls, tiles: Sequence[Tile]) -> _Runs:
        runs = [(tile, len(list(run))) for tile, run in itertools.groupby(tiles)]
        fetched = sum(tile.bytes * count for tile, count in runs if tile.fetched)
        return cls(runs, sum(tile.bytes * count for tile, count in runs), fetched)


def _pass(steps: list[StepWork], table: CostTable, unknown: dict[str, None]) -> list[StepCost]:
    stream: Stream | None = None
    now, out = 0.0, list[StepCost]()
    # steps that are alike have one work, and matrices that are have the same tiles
    known: dict[tuple[str, int], Cycles] = {}
    cut: dict[int, _Runs] = {}
    for step in steps:
        if stream is None and step.layer is not None:
            stream = Stream([t for s in steps for t in s.tiles], table.dma, table.flash, now)
        alike = step.name, id(step.work)
        if alike not in known:
            known[alike] = table.cycles(step.op, step.work)
            if step.op not in table.ops:
                unknown[step.name] = None
            else:
                lacking = table.unknown(step.op, step.work)
                unknown |= dict.fromkeys(f"{step.name}: {n}" for n in lacking)
        takes = known[alike]
        works = takes.whole
        fetch = step.work.fetched / table.flash
        waits = {DMA: max(0.0, step.work.moved / table.dma - works), FLASH: fetch}
        begin, now = now, now + sum(waits.values())
        if id(step.tiles) not in cut:
            cut[id(step.tiles)] = _Runs.of(step.tiles)
        runs, whole, fetched = cut[id(step.tiles)]
        for tile, count in runs:
            assert stream is not None
            each = works * tile.bytes / whole
            took = stream.take_equal(now, count, each)
            for name, wait in zip((DMA, FLASH), took, strict=True):
                waits[name] += wait
            now += sum(took) + count * each
        if not step.tiles:
            now += works
        busy = {CORES: takes.cores, **takes.others, DMA: (whole + step.work.moved) / table.dma}
        busy[FLASH] = fetch + fetched / table.flash
        out.append(StepCost(step.layer, step.name, now - begin, busy, waits))
    return out
