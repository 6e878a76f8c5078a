"""The C tables of a model: its matrices and layers, as model.c prints them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from shrinkc.abi import X_BLOCK
from shrinkc.codegen.formats import c_format
from shrinkc.codegen.pack import gate_up_order
from shrinkc.engines import CORES, Remainders, engine_named
from shrinkc.ir.graph import Graph
from shrinkc.ir.linear import QLinear
from shrinkc.ir.ops import Embed, Linear, NormQuant, Op, Quant, RopeCache
from shrinkc.ir.steps import numbers_of
from shrinkc.memory.plan import Plan
from shrinkc.schedule.shapes import ModelShape
from shrinkc.storage import WORD, MatrixShape

T = TypeVar("T", bound=Op)


@dataclass(frozen=True)
class CMatrix:
    """One row of the C tables."""

    about: str  # for the reader of model.c
    offset: int
    block_bytes: int
    rows: int
    blocks: int
    tile_blocks: int
    cut: dict[str, int]  # sc_vector_layout
    level: str
    format: str
    drop: int
    shift: int
    b: str = "0"
    engine: str = CORES
    remainders: int = 0
    taps: int = 0


def c_matrix(
    w: QLinear, shape: MatrixShape, plan: Plan, b: str = "0", *, rides_in: str | None = None
) -> CMatrix:
    """``b``: the C expression of its adapter.  The B matrix of one rides in the blocks of the matrix
    ``rides_in`` and has no place of its own; every other matrix has."""
    name = rides_in or shape.name
    p = next((p for p in plan.placements if p.name == name), None)
    if p is None:
        raise AssertionError(f"{name} has no place in the plan")
    engine = engine_named(w.engine)
    last, remainders, taps = (
        shape.group_words(shape.last), engine.remainders(w.k, w.bits), engine.taps(w.k, w.bits)
    )  # fmt: skip
    if remainders is Remainders.ALL or taps:
        last = -(-w.k // WORD)  # up to where zeros have to be; its high bytes are further away
    scales = f"groups of {w.group}" if w.x_bits == 0 and w.groups > 1 else "per channel"
    return CMatrix(
        about=f"{w.k} -> {w.n}, {w.bits} bit, {scales}, {shape.blocks * shape.block_bytes} bytes",
        offset=0 if rides_in else p.offset,
        block_bytes=shape.block_bytes,
        rows=w.n,
        blocks=shape.blocks,
        tile_blocks=1 if rides_in else p.tile_blocks,
        cut={
            "k": w.k,
            "groups": w.groups,
            "group_elems": w.group,
            "last_elems": shape.last,
            "group_blocks": -(-w.group // X_BLOCK),
            "x_blocks": -(-w.k // X_BLOCK) if w.x_bits else shape.x_blocks,
            "group_words": shape.group_words(w.group),
            "last_words": last,
            "words": shape.words,
            "range": w.x_bits or w.cmax,
        },
        level="SC_IN_TWO" if p.interleave else f"SC_IN_{p.level.upper()}",
        format=c_format(w),
        drop=w.drop + (w.format.fold if w.engine == CORES else 0),
        shift=w.shift,
        b=b,
        engine=w.engine,
        remainders=remainders,
        taps=taps,
    )


def ops_of_type(graph: Graph, kind: type[T], layer: int | None = None) -> list[T]:
    """The ops of a class, of one layer (-1: outside the layers) or of all."""
    return [op for op in graph.ops if isinstance(op, kind) and (layer is None or op.layer == layer)]


@dataclass(frozen=True)
class CLayer:
    """One row of sc_layers.  ``slots``: C names of its matrices; ``gathers`` and ``biases``: C names of their
    permutations and biases, or "0"; ``numbers``: constants of its ops by name."""

    slots: list[str]
    gathers: list[str]
    numbers: dict[str, int]
    biases: list[str]
    heads: RopeCache


@dataclass
class Tables:
    """All tables.  ``matrices``: by name, in the order of a pass; ``adapters``, ``perms`` and ``biases``: by C name;
    ``stored``: name, matrix and order of its rows of all that is in the blobs."""

    matrices: list[tuple[str, CMatrix]] = field(default_factory=list)
    adapters: list[tuple[str, CMatrix]] = field(default_factory=list)
    layers: list[CLayer] = field(default_factory=list)
    perms: list[tuple[str, list[int]]] = field(default_factory=list)
    biases: list[tuple[str, list[int]]] = field(default_factory=list)
    stored: list[tuple[str, QLinear, np.ndarray | None]] = field(default_factory=list)


def tables_of(graph: Graph, shape: ModelShape, plan: Plan) -> Tables:
    """The tables of a model with its memory plan."""
    shapes = {m.name: m for m in shape.matrices}
    tables = Tables()
    for i in range(graph.num_layers):
        tables.layers.append(_add_layer(tables, graph, shape, plan, shapes, i))
    embed, final = ops_of_type(graph, Embed)[0], ops_of_type(graph, NormQuant, -1)[0]
    linear = ops_of_type(graph, Linear, -1)[0]
    if final.perm is not None:
        tables.perms.append(("perm_head", final.perm.tolist()))
    tables.matrices.append(("head", c_matrix(linear.weight, shapes["head"], plan)))
    tables.stored.append(("head", linear.weight, None))
    if embed.table is not linear.weight:
        tables.stored.append(("embedding", embed.table, None))
    return tables


def _add_layer(
    tables: Tables,
    graph: Graph,
    shape: ModelShape,
    plan: Plan,
    shapes: dict[str, MatrixShape],
    layer: int,
) -> CLayer:
    """Adds the matrices, permutations and biases of a layer to ``tables``."""
    slots: list[str] = []
    biases: list[str] = []
    for op in ops_of_type(graph, Linear, layer):
        w, slot = op.weight, op.weight.name.rsplit(".", 1)[-1]
        adapter_name = "0"
        if w.low_rank is not None:
            a, ident = w.low_rank.a, f"adapter_{layer}_{slot}"
            tables.matrices.append((a.name, c_matrix(a, shapes[a.name], plan)))
            tables.stored.append((a.name, a, None))
            adapter = shapes[w.name].adapter
            assert adapter is not None, f"{w.name}: an adapter that was not planned"
            b = c_matrix(w.low_rank.b, adapter, plan, rides_in=w.name)
            tables.adapters.append((ident, b))
            adapter_name = f"&{ident}"
        biases.append("0" if op.bias is None else f"bias_{layer}_{slot}")
        if op.bias is not None:
            tables.biases.append((biases[-1], op.bias.tolist()))
        slots.append(constant(w.name))
        tables.matrices.append((w.name, c_matrix(w, shapes[w.name], plan, adapter_name)))
        order = gate_up_order(w.n) if slot == "gate_up" else None
        tables.stored.append((w.name, w, order))
    gathers: list[str] = []
    inputs = [op for op in graph.body(layer) if isinstance(op, (NormQuant, Quant))]
    for n, each in enumerate(inputs):
        gathers.append("0" if each.perm is None else f"perm_{layer}_{n}")
        if each.perm is not None:
            tables.perms.append((gathers[-1], each.perm.tolist()))
    numbers = [number for op in graph.body(layer) for number in op.numbers()]
    heads = ops_of_type(graph, RopeCache, layer)[0]
    return CLayer(
        slots, gathers, dict(zip(numbers_of(shape.steps), numbers, strict=True)), biases, heads
    )


def constant(name: str) -> str:
    """The name of a matrix in C: ``layer0.qkv`` is LAYER0_QKV."""
    return re.sub(r"[^A-Z0-9]+", "_", name.upper())
