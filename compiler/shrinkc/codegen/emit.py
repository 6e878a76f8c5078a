"""Writes the generated program: model.h, model.c, blobs, Makefile and the runtime beside them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import jinja2
import numpy as np

from shrinkc.codegen.pack import gate_up_order, pack_matrix
from shrinkc.codegen.tokenizer_blob import tokenizer_blob
from shrinkc.core.resources import resource
from shrinkc.importer.tokenizer import Tokenizer
from shrinkc.ir.graph import Graph
from shrinkc.ir.linear import QLinear
from shrinkc.ir.ops import (
    Attention,
    Embed,
    Linear,
    NormQuant,
    Op,
    Quant,
    RopeCache,
    Sample,
    SiluMul,
)
from shrinkc.memory.plan import (
    LEVELS,
    MATRIX_BYTES,
    QVEC_BYTES,
    TABLE_BYTES,
    Plan,
    gains_in_l1,
    head_scratch_bytes,
    head_state_bytes,
    layer_bytes,
    y_words,
)
from shrinkc.schedule.shapes import ModelShape
from shrinkc.storage import FORMATS, X_BLOCK, MatrixShape
from shrinkc.targets import Target

# Formats whose kernels are compiled only where the model has them: code that is never run would
# still crowd the instruction cache.
RARE = {f.c_flag for f in FORMATS.values() if f.bits not in (8, 4)}

T = TypeVar("T", bound=Op)
V = TypeVar("V")


@dataclass(frozen=True)
class CMatrix:
    """One row of the C tables."""

    offset: int
    block_bytes: int
    rows: int
    blocks: int
    tile_blocks: int
    cut: tuple[int, ...]  # sc_cut
    level: str
    format: str
    drop: int
    shift: int
    b: str = "0"


def _format(w: QLinear) -> str:
    flags = [
        name
        for name, on in (
            (w.format.c_flag, bool(w.format.c_flag)),
            ("SC_FMT_GROUPED", w.d is not None),
            ("SC_FMT_ASYM", w.b is not None),
        )
        if on
    ]
    return " | ".join(flags) or "0"


def _c_matrix(
    w: QLinear, shape: MatrixShape, plan: Plan, b: str = "0", *, rides_along: bool = False
) -> CMatrix:
    """``b``: the C expression of its side path.  The B matrix of one rides in the blocks of its matrix
    and is placed nowhere; every other matrix is."""
    p = next((p for p in plan.placements if p.name == shape.name), None)
    if p is None and not rides_along:
        raise AssertionError(f"{shape.name} has no place in the plan")
    return CMatrix(
        offset=p.offset if p else 0,
        block_bytes=shape.block_bytes,
        rows=w.n,
        blocks=shape.blocks,
        tile_blocks=p.tile_blocks if p else 1,
        cut=(
            w.k,
            w.nseg,
            w.seg,
            shape.last,
            -(-w.seg // X_BLOCK),
            shape.x_blocks,
            shape.seg_words(w.seg),
            shape.seg_words(shape.last),
            shape.words,
            w.cmax,
        ),
        level=f"SC_IN_{p.level.upper()}" if p else "SC_IN_WMEM",
        format=_format(w),
        drop=w.drop + w.format.fold,
        shift=w.shift,
        b=b,
    )


def _of_type(graph: Graph, kind: type[T], layer: int | None = None) -> list[T]:
    return [op for op in graph.ops if isinstance(op, kind) and (layer is None or op.layer == layer)]


def _same(values: list[V]) -> V:
    assert all(v == values[0] for v in values), "layers must agree"
    return values[0]


def _text_tables(tokenizer: Tokenizer) -> tuple[list[int], bytes]:
    pieces = tokenizer.decode_table()
    offsets = np.concatenate([[0], np.cumsum([len(p) for p in pieces])])
    return [int(v) for v in offsets], b"".join(pieces)


def emit(
    graph: Graph,
    shape: ModelShape,
    plan: Plan,
    target: Target,
    tokenizer: Tokenizer,
    out: Path,
    command: str,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write everything the C compiler needs below ``out`` (which exists).

    The same inputs give the same bytes; ``command`` heads every generated file.
    """
    shapes = {m.name: m for m in shape.matrices}
    embed = _of_type(graph, Embed)[0]
    head = _of_type(graph, Linear, -1)[0].weight
    sample = _of_type(graph, Sample)[0]
    layers: list[dict[str, object]] = []
    sides: list[tuple[str, CMatrix]] = []
    stored: list[tuple[str, QLinear, np.ndarray | None]] = []
    perms: list[tuple[str, list[int]]] = []
    biases: list[tuple[str, list[int]]] = []
    matrices: list[tuple[str, CMatrix]] = []  # in stream order
    for i in range(graph.num_layers):
        slots: list[int] = []
        added: list[str] = []
        for op in _of_type(graph, Linear, i):
            w, slot = op.weight, op.weight.name.rsplit(".", 1)[-1]
            order = gate_up_order(w.n) if slot == "gate_up" else None
            b = "0"
            if w.low_rank is not None:
                a, ident = w.low_rank.a, f"side_{i}_{slot}"
                matrices.append((a.name, _c_matrix(a, shapes[a.name], plan)))
                stored.append((a.name, a, None))
                side = shapes[w.name].side
                assert side is not None, f"{w.name}: a side path that was not planned"
                sides.append((ident, _c_matrix(w.low_rank.b, side, plan, rides_along=True)))
                b = f"&{ident}"
            added.append("0" if op.bias is None else f"bias_{i}_{slot}")
            if op.bias is not None:
                biases.append((added[-1], op.bias.tolist()))
            slots.append(len(matrices))
            matrices.append((w.name, _c_matrix(w, shapes[w.name], plan, b)))
            stored.append((w.name, w, order))
        inputs = [op for op in graph.body(i) if isinstance(op, (NormQuant, Quant))]
        perms += [
            (f"perm_{i}_{n}", op.perm.tolist())
            for n, op in enumerate(inputs)
            if op.perm is not None
        ]
        att, silu = _of_type(graph, Attention, i)[0], _of_type(graph, SiluMul, i)[0]
        gathers = [f"perm_{i}_{n}" if op.perm is not None else "0" for n, op in enumerate(inputs)]
        layers.append(
            {
                "slots": slots,
                "gathers": gathers,
                "attention": att,
                "silu": silu,
                "biases": added,
                "heads": _of_type(graph, RopeCache, i)[0],
            }
        )
    final = _of_type(graph, NormQuant, -1)[0]
    if final.perm is not None:
        perms.append(("perm_head", final.perm.tolist()))
    matrices.append(("head", _c_matrix(head, shapes["head"], plan)))
    stored.append(("head", head, None))
    if embed.table is not head:
        stored.append(("embedding", embed.table, None))

    _write_blobs(stored, dict(shape.shared), plan, out / "blobs", progress)
    tables = tokenizer_blob(tokenizer.encode_table(), tokenizer.vocab_size)
    (out / "blobs" / "tokenizer.bin").write_bytes(tables)
    offsets, pieces = _text_tables(tokenizer)
    norms = _of_type(graph, NormQuant)
    readers = [m for m in shape.matrices if m.name != "embedding"]
    side_shapes = [m.side for m in readers if m.side]
    x_blocks = max([m.x_blocks for m in readers] + [m.x_blocks for m in side_shapes])
    embed_shape = shapes["embedding" if embed.table is not head else "head"]
    formats = {_format(w) for _, w, _ in stored}
    values = {
        "command": command,
        "g": graph,
        "ops": graph.device_ops(),
        "plan": plan,
        "target": target,
        "layers": layers,
        "sides": sides,
        "matrices": matrices,
        "embedding": _c_matrix(embed.table, embed_shape, plan),
        "embed": embed,
        "gains": [n.gain.tolist() for n in norms],
        "gains_in_l1": gains_in_l1(shape),
        "perms": perms,
        "biases": biases,
        "head_norm": _of_type(graph, RopeCache)[0],
        "norm_eps": _same([n.eps for n in norms]),
        "norm_shift": _same([n.pre_shift for n in norms]),
        "attention": layers[0]["attention"],
        "sample": sample,
        "rope": np.stack([graph.rope_cos, graph.rope_sin], axis=2)
        .reshape(graph.context, -1)
        .tolist(),
        "offsets": offsets,
        "piece_values": list(pieces),
        "strip_space": int(tokenizer.strip_leading_space),
        "y_words": y_words(shape),
        "xq_words": max(m.words for m in readers),
        "xsegs": max(m.nseg for m in readers),
        "xblocks": x_blocks,
        "xsums": int(any(m.asymmetric for m in readers)),
        "rank": max(m.rank for m in readers),
        "head_perm": "perm_head" if final.perm is not None else "0",
        "sq_words": max([m.words for m in side_shapes], default=0),
        "ssegs": max([m.nseg for m in side_shapes], default=0),
        "one_format": next(iter(formats)) if len(formats) == 1 else None,
        "rare": sorted({w.format.c_flag for _, w, _ in stored} & RARE),
        "head_scratch": head_scratch_bytes(graph.context),
        "head_state": head_state_bytes(graph.head_dim),
        "qvec": QVEC_BYTES,
        "matrix_bytes": MATRIX_BYTES,
        "layer_bytes": layer_bytes(shape),
        "table_bytes": TABLE_BYTES,
        "kv_tile_bytes": next((b.bytes // 2 for b in plan.l1 if b.name == "kv_tile"), 0),
        "input_words": 16 + graph.context,
        "context": graph.context,
        "cl_stack": target.cl_stack,
    }
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(str(resource("templates"))),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    env.filters["rows"] = _rows_of_numbers
    (out / "src").mkdir(parents=True)
    for template, file in (
        ("model.h.j2", "src/model.h"),
        ("model.c.j2", "src/model.c"),
        ("Makefile.j2", "Makefile"),
    ):
        (out / file).write_text(env.get_template(template).render(values), encoding="utf-8")
    _copy_runtime(out / "src")


def _rows_of_numbers(values: list[int], per_line: int = 20) -> str:
    lines = [
        "    " + ", ".join(str(v) for v in values[i : i + per_line]) + ","
        for i in range(0, len(values), per_line)
    ]
    return "\n".join(lines)


def _write_blobs(
    stored: list[tuple[str, QLinear, np.ndarray | None]],
    owners: dict[str, str],
    plan: Plan,
    folder: Path,
    progress: Callable[[int, int], None] | None,
) -> None:
    """One file per memory level, matrices at their planned offsets, equal ones once (``owners``)."""
    folder.mkdir(parents=True)
    by_name = {name: (w, order) for name, w, order in stored}
    done = 0
    for level in LEVELS:
        with (folder / f"{level}.bin").open("wb") as f:
            for p in (p for p in plan.placements if p.level == level):
                w, order = by_name[p.name]
                packed = pack_matrix(w, order)
                if packed.shape != (p.blocks, p.block_bytes):
                    raise AssertionError(
                        f"{p.name}: packed {packed.shape}, planned {(p.blocks, p.block_bytes)}"
                    )
                if p.name in owners:
                    owner, its_order = by_name[owners[p.name]]
                    if not np.array_equal(packed, pack_matrix(owner, its_order)):
                        raise AssertionError(f"{p.name} is not equal to {owners[p.name]}")
                else:
                    f.write(bytes(p.offset - f.tell()))
                    f.write(packed.tobytes())
                done += 1
                if progress is not None:
                    progress(done, len(plan.placements))


def _copy_runtime(src: Path) -> None:
    """The C sources beside the generated ones, so that the directory builds on its own."""
    runtime = resource("runtime_c")
    (src / "runtime").mkdir()
    for folder in ("include", "src"):
        for file in sorted((runtime / folder).iterdir()):
            if file.suffix in (".c", ".h"):
                shutil.copyfile(file, src / "runtime" / file.name)
    shutil.copytree(runtime / "platform", src / "platform")
    (src / "platform" / "blobs.S").rename(src / "blobs.S")
    shutil.copytree(resource("toolchain"), src / "toolchain")
