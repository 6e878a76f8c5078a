"""A compute engine that exists in these tests alone: the interface's first user beside the cores.

It reads whole matrices where they lie, rows of bytes after each other whatever their width, scales
behind the last row; it sums all rows once the activations are there, and then lets the cores rescale
them.  Its C twin is plain.c.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from end_to_end.programs import Program, compile_graph
from shrinkc.engines import CORES, Engine, MatrixSpec
from shrinkc.importer import FloatModel
from shrinkc.ir.graph import Graph
from shrinkc.quantize import QuantOptions, lower
from shrinkc.schedule.choose import choose_engines, choose_second_layouts, multiplied
from shrinkc.storage import MatrixShape, Store, StoredRows, stored_group
from shrinkc.targets import SIRACUSA, Target

ROWS = 16  # of a block


def block_bytes(m: MatrixShape) -> int:
    return ROWS * m.words * 4


def trailer_bytes(m: MatrixShape) -> int:
    rows = m.blocks * ROWS
    return rows * 2 + rows * m.groups * int(m.grouped)


def pack(w: StoredRows) -> np.ndarray:
    parts = []
    for at in range(0, w.q.shape[1], w.group):
        q = w.q[:, at : at + w.group]
        parts.append(np.pad(q, ((0, 0), (0, -q.shape[1] % w.pad))))
    out = [np.concatenate(parts, axis=1).reshape(-1).view(np.uint8)]
    out.append(w.r.astype("<u2").view(np.uint8))
    if w.d is not None:
        out.append(w.d.reshape(-1))
    return np.concatenate(out)


def legal(spec: MatrixSpec) -> str | None:
    if spec.offsets:
        return "has offsets, for which plain has no sums"
    if spec.rows % 8:
        return f"has {spec.rows} rows, no multiple of 8"
    return None


def cut(k: int, group_size: int | None, bits: int) -> tuple[int, int]:
    """Another padding than the cores have, and for groups of an even size other groups; that of a
    whole row says nothing, because it reads one."""
    if group_size is None:
        return min(24, k), 12
    group = stored_group(k, group_size)
    return (group if group % 2 else group // 2), 12


def cycles(spec: MatrixSpec, tokens: int) -> int:
    """Slow to start: it wins with large matrices only."""
    return 1500 + tokens * spec.rows * spec.k // 10


def scratch(shape: MatrixShape, tokens: int) -> int:
    """The sums of all rows."""
    return 4 * tokens * shape.blocks * ROWS


PLAIN = Engine(
    name="plain",
    unit="plain",
    store=Store("rows of bytes", ROWS, block_bytes, pack, trailer_bytes, align=64),
    levels=("wmem",),
    legal=legal,
    cut=cut,
    cycles=cycles,
    scratch=scratch,
    reads_rows=True,
)
EAGER = replace(PLAIN, cycles=lambda spec, tokens: 1)  # runs whatever it can

WITH_PLAIN = replace(SIRACUSA, engines=(CORES, "plain"))
CORES_ALONE = replace(SIRACUSA, engines=(CORES,))


def lowered(
    model: FloatModel, options: QuantOptions, context: int, target: Target = WITH_PLAIN
) -> Graph:
    """The model quantised for the engines that are chosen on ``target``."""
    ranks: list[dict[str, int]] = []
    for layer in model.layers:
        rank = {m: a.a.shape[0] for m, a in layer.adapters.items()}
        slots = {
            "qkv": ("q_proj", "k_proj", "v_proj"), "o": ("o_proj",),
            "gate_up": ("gate_proj", "up_proj"), "down": ("down_proj",),
        }  # fmt: skip
        ranks.append({s: sum(rank.get(m, 0) for m in ms) for s, ms in slots.items()})
    matrices = multiplied(model.config, options, ranks, None, ())
    choices = choose_engines(matrices, target)
    free = {level.name: level.bytes for level in target.on_chip}
    choices = choose_second_layouts(choices, matrices, target, free)
    return lower(model, options, context, choices=choices)


def compiled(
    graph: Graph, model: FloatModel, out: Path, target: Target = WITH_PLAIN, l1: int | None = None
) -> Program:
    """A program with the engine's source beside the generated ones."""
    program = compile_graph(graph, model, out, target, l1, whole_runtime=True)
    shutil.copy(Path(__file__).with_name("plain.c"), out / "src")
    return program
