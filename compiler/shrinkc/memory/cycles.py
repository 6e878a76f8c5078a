"""Estimated cycles of a forward pass with a memory plan: the work of every step, and waits for weights."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from shrinkc.costs import Arithmetic, CostTable, Cycles, Work
from shrinkc.costs.stream import Stream, Tile
from shrinkc.engines import CORES, engine_named
from shrinkc.ir.steps import Call, Step, loop_of, slot_of
from shrinkc.memory.parts import Placement
from shrinkc.memory.plan import Plan, planned_sizes
from shrinkc.schedule.shapes import ModelShape
from shrinkc.storage import MatrixShape
from shrinkc.targets import Target, fetched

DMA, FLASH = "dma", "flash"


def resource_label(name: str) -> str:
    """Return the name of a resource in messages: the DMA, the HyperBus or an engine."""
    return {DMA: "DMA", FLASH: "HyperBus"}.get(name) or engine_named(name).label


@dataclass(frozen=True)
class StepWork:
    """Work of one step of one layer (``layer`` None: outside the layers), and the weight tiles that it uses."""

    layer: int | None
    name: str
    op: str
    work: Work
    tiles: tuple[Tile, ...] = ()
    arithmetic: Arithmetic = Arithmetic()


@dataclass(frozen=True)
class StepCost:
    """Cycles of one step: from start to end, ``busy`` per resource (cores, other engines, DMA, FLASH), and ``waits``
    of the cores for DMA and FLASH."""

    layer: int | None
    name: str
    cycles: float
    busy: Mapping[str, float]
    waits: Mapping[str, float]


@dataclass(frozen=True)
class PassCost:
    """Cycles of one or more passes.  ``unknown``: ops and features without calibration, which count as 0."""

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
        """Resource -> fraction of all cycles in which it is busy."""
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

    def without_probes(self, table: CostTable) -> PassCost:
        """Return the cost without the cycles that the counters of a profile build take in each step."""

        def without(s: StepCost) -> StepCost:
            less = min(table.probe, s.cycles - 1.0)
            cores = max(0.0, s.busy[CORES] - less)
            return replace(s, cycles=s.cycles - less, busy={**s.busy, CORES: cores})

        return replace(self, steps=tuple(map(without, self.steps)))


_Tiling = tuple[tuple[int, ...], tuple[Tile, ...]]
"""Row blocks per tile, and the tiles."""


class _StepTiles(NamedTuple):
    """Matrix and tiles of a step of a layer.

    ``blocks``: row blocks per tile of the matrix.  ``tiles``: with those of the adapter.  ``kind``: equal for steps
    whose work is equal."""

    matrix: MatrixShape | None
    blocks: tuple[int, ...]
    tiles: tuple[Tile, ...]
    kind: int


class Passes:
    """Generator of the steps of a plan's passes.  Equal layers are computed once."""

    def __init__(self, shape: ModelShape, plan: Plan, target: Target) -> None:
        self.shape, self.plan = shape, plan
        self._sizes = planned_sizes(shape, target, plan)
        self._placed = {p.name: p for p in plan.placements}
        self._matrices = [{m.name.split(".", 1)[-1]: m for m in layer} for layer in shape.layers]
        self._slots = {step.name: slot_of(step, self._sizes.steps) for step in self._sizes.steps}
        self._tilings: dict[tuple[object, ...], _Tiling] = {}
        self._step_tiles: dict[tuple[str, int | None], _StepTiles] = {}
        self._kinds: dict[tuple[object, ...], int] = {}
        self._tiles_with_adapter: dict[tuple[int, int], tuple[Tile, ...]] = {}

    def steps(self, tokens: int, position: int, logits: int = 1) -> list[StepWork]:
        """Return the steps of a pass of ``tokens`` tokens (at most a chunk) from ``position`` on, in order.

        Logits are computed for the last ``logits`` tokens.  The last layer drops the other tokens after it has
        filled its KV cache.  With ``logits`` 0 no token is chosen."""
        begin, end = loop_of(self._sizes.steps)
        attention, final = self._sizes.attention_step, self.shape.num_layers - 1
        every = list(enumerate(self._sizes.steps))
        known: dict[tuple[int, int], tuple[Work, Arithmetic]] = {}

        def one(at: int, step: Step, layer: int | None) -> StepWork:
            for_logits = at > end or (layer == final and at >= attention)
            count = logits if for_logits else tokens
            return self._step(step, layer, count, position + tokens - count, known)

        out = [one(at, step, None) for at, step in every[:begin]]
        for layer in range(self.shape.num_layers):
            last = end if logits or layer < final else attention - 1
            out += [one(at, step, layer) for at, step in every[begin : last + 1]]
        if logits:
            out += [one(at, step, None) for at, step in every[end + 1 :]]
        return out

    def prompt(self, tokens: int) -> list[list[StepWork]]:
        """Return the passes of a prompt, one per chunk."""
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
        taken = self._step_tiles.get((step.name, layer))
        if taken is None:
            taken = self._step_tiles[step.name, layer] = self._tiles_of_step(step, layer)
        matrix, blocks, tiles, kind = taken
        key = (kind, tokens)
        if key not in known:
            embedding = self.shape.embedding or self.shape.head
            in_flash = _in_flash(self._placed[embedding.name])
            window = self.shape.windows[layer] if layer is not None and self.shape.windows else 0
            call = Call(self._sizes, tokens, position, matrix, blocks, embedding, in_flash, window)
            known[key] = step.op.work(step, call), step.op.arithmetic(step, call)
        work, arithmetic = known[key]
        return StepWork(layer, step.name, step.op.__name__.lower(), work, tiles, arithmetic)

    def _tiles_of_step(self, step: Step, layer: int | None) -> _StepTiles:
        slot = self._slots[step.name]
        matrix = self.shape.head if slot == "head" else None
        if layer is not None and slot:
            matrix = self._matrices[layer][slot]
        tiles: tuple[Tile, ...] = ()
        blocks: tuple[int, ...] = ()
        if step.matrix is not None and matrix is not None:
            blocks, tiles = self._tiles(matrix.name)
            if matrix.rank:
                tiles = self._concatenated(self._tiles(f"{matrix.name}.a")[1], tiles)
        window = self.shape.windows[layer] if layer is not None and self.shape.windows else 0
        key = (step.name, None if matrix is None else matrix.kind, blocks, window)
        return _StepTiles(matrix, blocks, tiles, self._kinds.setdefault(key, len(self._kinds)))

    def _concatenated(self, first: tuple[Tile, ...], then: tuple[Tile, ...]) -> tuple[Tile, ...]:
        """Return (*first, *then), as the same object for the same arguments: ``_pass`` looks tiles up by id."""
        key = id(first), id(then)  # ids stay valid: self._tilings holds both
        if key not in self._tiles_with_adapter:
            self._tiles_with_adapter[key] = (*first, *then)
        return self._tiles_with_adapter[key]

    def _tiles(self, matrix: str) -> _Tiling:
        """Return the tiling of a matrix; empty if another engine reads it in place."""
        p = self._placed[matrix]
        alike = p.engine, p.level, p.blocks, p.block_bytes, p.tile_blocks, p.interleave
        if alike not in self._tilings:
            self._tilings[alike] = _tiling(p, self.plan.stages)
        return self._tilings[alike]


def _tiling(p: Placement, stages: int) -> _Tiling:
    if p.engine != CORES:
        return (), ()
    whole, rest = divmod(p.blocks, p.tile_blocks)
    blocks = (p.tile_blocks,) * whole + (rest,) * bool(rest)
    prefetched = stages - 1 if _in_flash(p) else 0  # one stage is being copied into L1
    return blocks, tuple(
        Tile(n * p.block_bytes, 0 if p.tile_on_chip(i) else prefetched)
        for i, n in enumerate(blocks)
    )


def _in_flash(p: Placement) -> bool:
    return fetched(p.level)


def cost_of(passes: Iterable[list[StepWork]], table: CostTable) -> PassCost:
    """Return the cycles of consecutive passes, as a profile build would measure them."""
    out: list[StepCost] = []
    unknown: dict[str, None] = {}
    for steps in passes:
        out += _pass(steps, table, unknown)
    return PassCost(tuple(out), tuple(unknown))


class _Runs(NamedTuple):
    """Run-length encoding of equal tiles; bytes of all tiles, and of tiles from flash."""

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
    # equal steps share one Work object, and equal matrices one tuple of tiles
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
                features = table.unknown(step.op, step.work)
                unknown |= dict.fromkeys(f"{step.name}: {n}" for n in features)
        takes = known[alike]
        works = takes.whole
        fetch = step.work.fetched / table.flash
        swapped = step.work.swapped / table.flash
        copied = max(0.0, step.work.moved / table.dma - max(works, swapped))
        waits = {DMA: copied, FLASH: fetch + max(0.0, swapped - works)}
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
        busy[FLASH] = fetch + swapped + fetched / table.flash
        out.append(StepCost(step.layer, step.name, now - begin, busy, waits))
    return out
