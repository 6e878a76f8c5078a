"""Writes the generated program: model.h, model.c, forward.c, blobs, Makefile and a copy of the runtime."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import jinja2
import numpy as np

from shrinkc.abi import (
    SAMPLED_WORDS,
    X_BLOCK,
    head_scratch_bytes,
    head_state_bytes,
    input_words,
    kv_block_bytes,
)
from shrinkc.codegen.formats import c_format, flat_format, formats_header
from shrinkc.codegen.forward import CALLS, printed_steps
from shrinkc.codegen.pack import gate_up_order, pack_stored
from shrinkc.codegen.runtime import specialised
from shrinkc.codegen.tokenizer_blob import tokenizer_blob
from shrinkc.core.resources import resource
from shrinkc.engines import CORES, Remainders, engine_named
from shrinkc.importer.tokenizer import Tokenizer
from shrinkc.ir.graph import Graph
from shrinkc.ir.linear import QLinear
from shrinkc.ir.ops import Embed, Linear, NormQuant, Op, Quant, RopeCache, SiluMul
from shrinkc.ir.ops.quant import spilled_words
from shrinkc.ir.steps import PassSizes, numbers_of, slot_of
from shrinkc.memory.lower import PIECE_WINDOW
from shrinkc.memory.parts import (
    Placement,
    align,
    kv_layer_bytes,
    kv_shape,
    layer_bytes,
    norm_weights_in_l1,
    pieces_in,
)
from shrinkc.memory.plan import Plan, buffer_bytes, planned_sizes
from shrinkc.numerics.fixed import hash_words
from shrinkc.schedule.shapes import ModelShape
from shrinkc.storage import WORD, MatrixShape
from shrinkc.targets import MEMORIES, OUTSIDE, PROGRAMS, Target

T = TypeVar("T", bound=Op)

ZEPHYR = ("module.yml", "Kconfig")
"""Files that make the directory for a board an external module of Zephyr."""


@dataclass(frozen=True)
class CMatrix:
    """One row of the C tables."""

    about: str  # for the reader of model.c
    offset: int
    block_bytes: int
    rows: int
    blocks: int
    tile_blocks: int
    cut: dict[str, int]  # sc_cut
    level: str
    format: str
    drop: int
    shift: int
    b: str = "0"
    engine: str = CORES
    remainders: int = 0
    taps: int = 0


def _c_matrix(
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
            "blocks": -(-w.k // X_BLOCK) if w.x_bits else shape.x_blocks,
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


def _in_products(shape: MatrixShape) -> bool:
    """Whether another engine can multiply it for the cores with several tokens, group by group."""
    return shape.engine == CORES and shape.product_words > 0 and shape.name != "embedding"


def _of_type(graph: Graph, kind: type[T], layer: int | None = None) -> list[T]:
    return [op for op in graph.ops if isinstance(op, kind) and (layer is None or op.layer == layer)]


def _in_place(sizes: PassSizes, held: dict[str, int]) -> dict[str, tuple[str, int]]:
    """Of o and down the buffer that its vectors are made from, and words of a token there, 0 where vectors have a place
    of their own; none of plans without vectors in place."""
    found = {"O": ("XQ", 0), "DOWN": ("XQ", 0)} if sizes.in_place else {}
    for step in (s for s in sizes.steps if sizes.made_in_place(s.name)):
        source = sizes.source(step.name)
        room = held[source] // (4 * sizes.chunk)
        found[slot_of(step, sizes.steps).upper()] = (source.upper(), room)
    return found


def _macros(graph: Graph) -> dict[str, int | str]:
    """What the ops want to have in model.h, which is the same in every layer."""
    found: dict[str, int | str] = {}
    for op in graph.ops:
        for name, value in op.macros().items():
            if found.setdefault(name, value) != value:
                raise AssertionError(f"{op.out}: SC_{name} is {value}, and {found[name]} elsewhere")
    return found


def _tables(graph: Graph, tokenizer: Tokenizer) -> dict[str, bytes]:
    """The tables as they are stored: of RoPE int16 [context][head_dim / 2][cos, sin] in Q15; of the tokens'
    text uint32 [vocab + 1] offsets into the bytes that follow."""
    pieces = tokenizer.decode_table()
    offsets = np.concatenate([[0], np.cumsum([len(p) for p in pieces])])
    rope = np.stack([graph.rope_cos, graph.rope_sin], axis=2)
    return {
        "rope": rope.astype("<i2").tobytes(),
        "pieces": offsets.astype("<u4").tobytes() + b"".join(pieces),
    }


def emit(
    graph: Graph,
    shape: ModelShape,
    plan: Plan,
    target: Target,
    tokenizer: Tokenizer,
    out: Path,
    command: str,
    progress: Callable[[int, int], None] | None = None,
    *,
    name: str = "model",
    license_name: str = "",
) -> None:
    """Write everything the C compiler needs below ``out`` (which exists), with the code that this model uses.

    The same inputs give the same bytes; ``command`` heads every generated file.  ``name``: of the model;
    ``license_name``: of its weights, empty if its files state none.
    """
    emit_with_whole_runtime(
        graph, shape, plan, target, tokenizer, out, command, progress, name=name,
        license_name=license_name,
    )  # fmt: skip
    _keep_what_is_used(out, target)


def emit_with_whole_runtime(
    graph: Graph,
    shape: ModelShape,
    plan: Plan,
    target: Target,
    tokenizer: Tokenizer,
    out: Path,
    command: str,
    progress: Callable[[int, int], None] | None = None,
    *,
    name: str = "model",
    license_name: str = "",
) -> None:
    """emit(), with all kernels, whether this model uses them or not; the kernels' tests need the others too."""
    shapes = {m.name: m for m in shape.matrices}
    embed = _of_type(graph, Embed)[0]
    head = _of_type(graph, Linear, -1)[0].weight
    layers: list[dict[str, object]] = []
    adapters: list[tuple[str, CMatrix]] = []
    stored: list[tuple[str, QLinear, np.ndarray | None]] = []
    perms: list[tuple[str, list[int]]] = []
    biases: list[tuple[str, list[int]]] = []
    matrices: list[tuple[str, CMatrix]] = []  # in stream order
    for i in range(graph.num_layers):
        slots: list[str] = []
        added: list[str] = []
        for op in _of_type(graph, Linear, i):
            w, slot = op.weight, op.weight.name.rsplit(".", 1)[-1]
            order = gate_up_order(w.n) if slot == "gate_up" else None
            b = "0"
            if w.low_rank is not None:
                a, ident = w.low_rank.a, f"adapter_{i}_{slot}"
                matrices.append((a.name, _c_matrix(a, shapes[a.name], plan)))
                stored.append((a.name, a, None))
                adapter = shapes[w.name].adapter
                assert adapter is not None, f"{w.name}: an adapter that was not planned"
                adapters.append((ident, _c_matrix(w.low_rank.b, adapter, plan, rides_in=w.name)))
                b = f"&{ident}"
            added.append("0" if op.bias is None else f"bias_{i}_{slot}")
            if op.bias is not None:
                biases.append((added[-1], op.bias.tolist()))
            slots.append(_constant(w.name))
            matrices.append((w.name, _c_matrix(w, shapes[w.name], plan, b)))
            stored.append((w.name, w, order))
        inputs = [op for op in graph.body(i) if isinstance(op, (NormQuant, Quant))]
        perms += [
            (f"perm_{i}_{n}", op.perm.tolist())
            for n, op in enumerate(inputs)
            if op.perm is not None
        ]
        gathers = [f"perm_{i}_{n}" if op.perm is not None else "0" for n, op in enumerate(inputs)]
        layers.append(
            {
                "slots": slots,
                "gathers": gathers,
                "numbers": dict(
                    zip(
                        numbers_of(shape.steps),
                        (number for op in graph.body(i) for number in op.numbers()),
                        strict=True,
                    )
                ),
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

    small = _tables(graph, tokenizer)
    _write_blobs(stored, dict(shape.shared), small, plan, target, out / "blobs", progress)
    tables = tokenizer_blob(tokenizer.encode_table(), tokenizer.vocab_size)
    (out / "blobs" / "tokenizer.bin").write_bytes(tables)
    norms = _of_type(graph, NormQuant)
    readers = [m for m in shape.matrices if m.name != "embedding"]
    adapter_shapes = [m.adapter for m in readers if m.adapter]
    embed_shape = shapes["embedding" if embed.table is not head else "head"]
    engines = sorted({w.engine for _, w, _ in stored} - {CORES})
    on_cores = [w for _, w, _ in stored if w.engine == CORES]
    dotted = on_cores or [w for _, w, _ in stored]  # the kernels are compiled for some format
    formats = {c_format(w) for w in dotted}
    widths = {w.bits for w in dotted} | {m.bits for m in adapter_shapes}
    products = [w for name, w, _ in stored if _in_products(shapes[name])]
    flat, flat_ones = flat_format([w for w in products if shapes[w.name].flat], formats)
    sizes, kv = planned_sizes(shape, target, plan), kv_shape(shape)
    held = buffer_bytes(sizes)
    values = {
        "command": command,
        "name": c_identifier(name),
        "title": json.dumps(name),
        "license": json.dumps(license_name or "not stated"),
        "text_bytes": max(len(text) for text in tokenizer.decode_table()),
        "stored_weights": [
            (level.name, *_sampled_hash(out / "blobs" / f"{level.name}.bin"))
            for level in target.stored
        ],
        "g": graph,
        "ops": graph.device_ops(),
        "cached_op": sizes.steps[sizes.attention_step].name,
        "layer_ops": [step.name for step in shape.steps if step.in_layer],
        "steps": printed_steps(graph, sizes, held, shapes),
        "known": tuple(CALLS),
        "macros": _macros(graph),
        "gate_shifts": sorted({op.gate_shift for op in _of_type(graph, SiluMul)}),
        "per_layer": numbers_of(shape.steps),
        "plan": plan,
        "target": target,
        "targets": PROGRAMS | {target.program.name: target},
        "layers": layers,
        "adapters": adapters,
        "matrices": matrices,
        "embedding": _c_matrix(embed.table, embed_shape, plan),
        "gains": [n.gain.tolist() for n in norms],
        "gains_in_l1": norm_weights_in_l1(shape),
        "perms": perms,
        "biases": biases,
        "head_norm": _of_type(graph, RopeCache)[0],
        "strip_space": int(tokenizer.strip_leading_space),
        "y_words": held["y"] // (4 * plan.chunk),
        "xq_words": max(engine_named(m.engine).several_words(m) for m in readers),
        "spill_words": max(
            (
                spilled_words(sizes.width(s.inputs[0]))
                for s in shape.steps
                if sizes.made_in_place(s.name)
            ),
            default=0,
        ),
        "in_place": _in_place(sizes, held),
        "xgroups": max(m.x_groups for m in readers),
        "xblocks": max(m.x_blocks for m in readers),
        "q16": int(any(m.wide for m in [*readers, *adapter_shapes])),
        "xsums": int(any(m.asymmetric for m in readers)),
        "rank": max(m.rank for m in readers),
        "head_perm": "perm_head" if final.perm is not None else "0",
        "sq_words": max([m.x_words for m in adapter_shapes], default=0),
        "adapter_format": adapters[0][1].format if adapters else None,
        "engines": engines,
        "remainders": any(engine_named(m.engine).remainders(m.k, m.bits) for m in shape.matrices),
        "second_layout": any(engine_named(m.engine).taps(m.k, m.bits) for m in shape.matrices),
        "engine_table": max((engine_named(name).table for name in engines), default=0),
        "head_scratch": head_scratch_bytes(graph.context),
        "head_state": head_state_bytes(graph.head_dim),
        "layer_bytes": layer_bytes(shape),
        "ram_bytes": sum(plan.used.get(level, 0) for level in OUTSIDE),
        "piece_window": PIECE_WINDOW,
        "kv_layer_stride": kv_layer_bytes(shape),
        "kv_block": kv_block_bytes(graph.kv_heads, graph.head_dim),
        "kv_tile_bytes": align(plan.kv_tile_blocks * max(kv.k_block, kv.v_block)),
        "sizes": sizes,
        "shared_products": sizes.shared_products and "products" in held,
        "flat": flat,
        "flat_all": len(flat_ones) == len(products),
        "interleaved": next((p for p in plan.placements if p.interleave), None),
        "input_words": input_words(graph.context),
    }
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(str(resource("templates"))),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    env.filters["rows"] = _rows_of_numbers
    env.filters["constant"] = _constant
    env.filters["assigned"] = _assigned
    (out / "src").mkdir(parents=True)
    for template, file in (
        ("model.h.j2", "src/model.h"),
        ("model.c.j2", "src/model.c"),
        ("forward.c.j2", "src/forward.c"),
        ("Makefile.j2", "Makefile"),
        ("CMakeLists.txt.j2", "CMakeLists.txt"),
        *((f"zephyr/{file}.j2", f"zephyr/{file}") for file in ZEPHYR if target.board),
    ):
        (out / file).parent.mkdir(exist_ok=True)
        (out / file).write_text(env.get_template(template).render(values), encoding="utf-8")
    (out / "src/formats.h").write_text(formats_header(formats, widths, command), encoding="utf-8")
    _copy_runtime(out / "src", [PROGRAMS[name] for name in target.programs.values()])


def _constant(name: str) -> str:
    """The name of a matrix in C: ``layer0.qkv`` is LAYER0_QKV."""
    return re.sub(r"[^A-Z0-9]+", "_", name.upper())


def _assigned(fields: dict[str, int]) -> str:
    """Initialisers of a struct by the names of its fields."""
    return ", ".join(f".{name} = {value}" for name, value in fields.items())


def c_identifier(name: str) -> str:
    """``name`` as the beginning of C names: other characters become underscores."""
    ident = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return ident if ident[:1].isalpha() else f"model_{ident}".rstrip("_")


def _sampled_hash(blob: Path) -> tuple[int, int]:
    """Words of a blob, and the hash of up to 127 of them, evenly spread: what sc_weights_match() computes."""
    count = blob.stat().st_size // 4
    if count == 0:
        return 0, 0
    words = np.memmap(blob, "<u4", "r", shape=count)
    return count, hash_words(words[:: max(1, count // SAMPLED_WORDS)])


def _rows_of_numbers(values: list[int], per_line: int = 20) -> str:
    lines = [
        "    " + ", ".join(str(v) for v in values[i : i + per_line]) + ","
        for i in range(0, len(values), per_line)
    ]
    return "\n".join(lines)


def _write_blobs(
    stored: list[tuple[str, QLinear, np.ndarray | None]],
    owners: dict[str, str],
    tables: dict[str, bytes],
    plan: Plan,
    target: Target,
    folder: Path,
    progress: Callable[[int, int], None] | None,
) -> None:
    """One file per memory level, tables and matrices at their planned offsets, equal ones once (``owners``)."""
    folder.mkdir(parents=True)
    by_name = {name: (w, order) for name, w, order in stored}
    done, pieces = 0, sum(len(p.pieces) for p in plan.placements)
    for level in target.stored:
        with (folder / f"{level.name}.bin").open("wb") as f:
            for table in (x for x in plan.tables if x.level == level.name):
                f.write(bytes(table.offset - f.tell()))
                f.write(tables[table.name].ljust(table.bytes, b"\0"))
            here = pieces_in(plan.placements, level.name)
            for p, offset, size in sorted(here, key=lambda piece: piece[1]):
                w, order = by_name[p.name]
                packed = pack_stored(w, order)
                if packed.shape != (p.bytes,):
                    raise AssertionError(f"{p.name}: packed {packed.shape}, planned {p.bytes}")
                if p.name in owners:
                    owner, its_order = by_name[owners[p.name]]
                    if not np.array_equal(packed, pack_stored(owner, its_order)):
                        raise AssertionError(f"{p.name} is not equal to {owners[p.name]}")
                else:
                    f.write(bytes(offset - f.tell()))
                    piece = _piece(packed, p, on_chip=level.name == p.chip_level)
                    if piece.shape != (size,):
                        raise AssertionError(f"{p.name}: {piece.shape} in {level.name}, not {size}")
                    f.write(piece.tobytes())
                done += 1
                if progress is not None:
                    progress(done, pieces)


def _piece(packed: np.ndarray, p: Placement, *, on_chip: bool) -> np.ndarray:
    """Of a matrix's bytes those of its tiles in one of two memories, or all of them."""
    if not p.interleave:
        return packed
    tile = p.tile_blocks * p.block_bytes
    count = -(-len(packed) // tile)
    return np.concatenate(
        [packed[i * tile : (i + 1) * tile] for i in range(count) if p.tile_on_chip(i) == on_chip]
    )


def _copy_runtime(src: Path, programs: list[Target]) -> None:
    """Copies the C sources of ``programs`` next to the generated ones, so that the directory builds on its own."""
    runtime = resource("runtime_c")
    for folder, to in (("include", "runtime"), ("src", "runtime"), ("program", "program")):
        (src / to).mkdir(exist_ok=True)
        for file in sorted((runtime / folder).iterdir()):
            if file.suffix in (".c", ".h"):
                shutil.copyfile(file, src / to / file.name)
    shutil.copytree(runtime / "encode", src / "encode")
    shutil.copyfile(runtime / "platform" / "blobs.S", src / "blobs.S")
    bare = [t for t in programs if t.program.isa is not None]
    folders = {folder for t in programs for folder in t.program.folders}
    for folder in sorted(folders | ({"freestanding"} if bare else set())):
        shutil.copytree(runtime / "platform" / folder, src / "platform" / folder)
    for t in bare:
        shutil.copytree(resource("toolchain") / t.program.name, src / "toolchain" / t.program.name)


def _keep_what_is_used(out: Path, target: Target) -> None:
    """Cuts the library's sources down to what this model's programs use."""
    src = out / "src"
    stored = {level.name for level in target.stored}
    generated = {file.name: file for file in src.glob("*.[ch]")}
    runtime = {
        file.name: file
        for folder in ("runtime", "encode")
        for file in (src / folder).glob("*.[ch]")
    }
    others = [
        file.read_text(encoding="utf-8")
        for folder in ("platform", "program")
        for file in (src / folder).rglob("*.[chS]")
    ]
    options = set(re.findall(r"-D(\w+)", (out / "Makefile").read_text(encoding="utf-8")))
    texts = specialised(
        {name: file.read_text(encoding="utf-8") for name, file in runtime.items()},
        {name: file.read_text(encoding="utf-8") for name, file in generated.items()},
        others,
        options,
        {f"SC_HAS_{name.upper()}": name in stored for name in MEMORIES},
    )
    for name, file in {**runtime, **generated}.items():
        if name in texts:
            file.write_text(texts[name], encoding="utf-8")
        else:
            file.unlink()
