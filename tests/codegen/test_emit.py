"""The generated directory: the same bytes always, and tables that say what the graph says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from end_to_end.programs import Program, add_adapters, compile_graph, compile_model
from golden.models import compile_pinned
from helpers.tiny_llama import write_tiny_llama
from shrinkc.codegen.pack import gate_up_order, pack_matrix
from shrinkc.importer import FloatModel, load_model
from shrinkc.ir.linear import QLinear
from shrinkc.ir.ops import Embed, Linear, SiluMul
from shrinkc.quantize import QuantOptions

SCRIPT = """
import sys
from pathlib import Path
from end_to_end.programs import add_adapters, compile_model
from shrinkc.importer import load_model
from shrinkc.quantize import QuantOptions
model = load_model(Path(sys.argv[1]))
add_adapters(model, {"q_proj": 2, "down_proj": 3})
compile_model(model, Path(sys.argv[2]), QuantOptions(bits=4, asymmetric=True), 24)
"""


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("emit") / "model"
    write_tiny_llama(
        folder, hidden=40, intermediate=56, heads=4, kv_heads=2, head_dim=6, tied=False
    )
    return folder


@pytest.fixture(scope="module")
def model(model_dir: Path) -> FloatModel:
    loaded = load_model(model_dir)
    add_adapters(loaded, {"q_proj": 2, "down_proj": 3})
    return loaded


@pytest.fixture(scope="module")
def program(model: FloatModel, tmp_path_factory: pytest.TempPathFactory) -> Program:
    out = tmp_path_factory.mktemp("emit") / "out"
    return compile_model(model, out, QuantOptions(bits=4, asymmetric=True), 24)


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()
    }


def test_bytes_do_not_depend_on_run_directory_or_hash_seed(
    program: Program, model_dir: Path, tmp_path: Path
) -> None:
    want = content(program.out)
    assert {"src/model.c", "src/model.h", "Makefile", "blobs/wmem.bin"} <= want.keys()
    for seed in ("0", "1", "31337"):
        out = tmp_path / f"seed{seed}" / "some" / "where"
        work = tmp_path / f"work{seed}"
        work.mkdir()
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path),
               "LC_ALL": "C", "TZ": "Pacific/Apia"}  # fmt: skip
        subprocess.run(
            [sys.executable, "-c", SCRIPT, str(model_dir), str(out)], env=env, cwd=work, check=True
        )
        got = content(out)
        assert got.keys() == want.keys()
        assert [name for name in want if got[name] != want[name]] == []


def test_no_paths_dates_or_addresses(program: Program) -> None:
    for name in ("src/model.c", "src/model.h", "Makefile", "CMakeLists.txt"):
        text = (program.out / name).read_text()
        assert "shrinkc compile test" in text.splitlines()[0]
        assert str(program.out) not in text and str(Path.home()) + "/" not in text
        assert not re.search(r"20\d\d-\d\d-\d\d|0x7f[0-9a-f]{10}", text)


def test_blobs_hold_every_matrix_at_its_place(program: Program) -> None:
    """Independent of emit: matrices by name from the graph, offsets from the plan."""
    matrices: dict[str, tuple[QLinear, np.ndarray | None]] = {}
    for op in program.graph.ops:
        if isinstance(op, Embed):
            matrices["embedding"] = (op.table, None)
        elif isinstance(op, Linear):
            w = op.weight
            order = gate_up_order(w.n) if w.name.endswith("gate_up") else None
            matrices["head" if op.layer < 0 else w.name] = (w, order)
            if w.low_rank is not None:
                matrices[w.low_rank.a.name] = (w.low_rank.a, None)
    compared = 0
    blobs = {
        level: (program.out / "blobs" / f"{level}.bin").read_bytes()
        for level in ("wmem", "l2", "flash")
    }
    used = dict.fromkeys(blobs, 0)
    for table in program.plan.tables:
        used[table.level] = max(used[table.level], table.offset + table.bytes)
    for p in program.plan.placements:
        w, order = matrices.pop(p.name)
        packed = pack_matrix(w, order).tobytes()
        assert blobs[p.level][p.offset : p.offset + len(packed)] == packed, p.name
        compared += len(packed)
        used[p.level] = max(used[p.level], p.offset + len(packed))
    assert not matrices and compared > 1000
    assert {level: len(blob) for level, blob in blobs.items()} == used


def numbers(text: str, name: str) -> list[int]:
    body = re.search(rf"\b{name}\[[^\]]*\][^=]*=\s*\{{(.*?)\}}", text, re.DOTALL)
    assert body, name
    return [int(v) for v in re.findall(r"-?\d+", body[1])]


def test_tables(program: Program, model: FloatModel) -> None:
    text = (program.out / "src/model.c").read_text()
    g = program.graph
    assert numbers(text, "sc_end_tokens") == [*g.eos_ids, -1]
    stored = {}
    for table in program.plan.tables:
        blob = (program.out / "blobs" / f"{table.level}.bin").read_bytes()
        stored[table.name] = blob[table.offset : table.offset + table.bytes]
    rope = np.frombuffer(stored["rope"], "<i2")[: g.context * g.head_dim]
    rope = rope.reshape(g.context, g.head_dim // 2, 2)
    np.testing.assert_array_equal(rope[..., 0], g.rope_cos)
    np.testing.assert_array_equal(rope[..., 1], g.rope_sin)
    offsets = np.frombuffer(stored["pieces"], "<u4", g.vocab + 1).tolist()
    piece_bytes = stored["pieces"][4 * (g.vocab + 1) :]
    pieces = [piece_bytes[a:b] for a, b in zip(offsets, offsets[1:], strict=False)]
    assert pieces == list(model.tokenizer.decode_table())
    assert len(pieces) == g.vocab


def test_macros(program: Program, model: FloatModel, tmp_path: Path) -> None:
    """All that model.h can say; a compiled directory keeps what its sources use."""
    whole = compile_graph(program.graph, model, tmp_path / "out", whole_runtime=True)
    text = (whole.out / "src/model.h").read_text()
    used = set(re.findall(r"#define (SC_\w+)", (program.out / "src/model.h").read_text()))
    assert used < set(re.findall(r"#define (SC_\w+)", text))
    macros = dict(re.findall(r"#define (SC_\w+) (-?\d+)", text))
    g, plan = program.graph, program.plan
    for name, value in (
        ("SC_VOCAB", g.vocab), ("SC_HIDDEN", g.hidden), ("SC_FFN", g.ffn), ("SC_LAYERS", g.num_layers),
        ("SC_HEADS", g.heads), ("SC_KV_HEADS", g.kv_heads), ("SC_HEAD_DIM", g.head_dim),
        ("SC_CONTEXT", g.context), ("SC_CHUNK", plan.chunk), ("SC_TILE_BYTES", plan.tile_bytes),
        ("SC_ARENA_BYTES", plan.arena_bytes), ("SC_XSUMS", 1), ("SC_RANK", 3),
    ):  # fmt: skip
        assert int(macros[name]) == value, name
    for b in plan.l1:
        assert int(macros[f"SC_AT_{b.name.upper()}"]) == b.offset
    gates = re.findall(r"#define SC_GATE_SHIFT_(?:LEAST|MOST) \((-?\d+)\)", text)
    shifts = [op.gate_shift for op in g.ops if isinstance(op, SiluMul)]
    assert [int(v) for v in gates] == [min(shifts), max(shifts)]


KERNELS = ("sc_gemv.c", "sc_gemm.c", "sc_vector.c", "sc_q16.c", "sc_epilogue.c")


def included(src: Path, file: Path, seen: dict[str, str]) -> dict[str, str]:
    """Text without comments of the file and of all that it includes, by name."""
    text = re.sub(r"/\*.*?\*/", "", file.read_text(), flags=re.DOTALL)
    seen[str(file.relative_to(src))] = text
    for name in re.findall(r'#include "([^"]+)"', text):
        for header in src.rglob(name):
            if str(header.relative_to(src)) not in seen:
                included(src, header, seen)
    return seen


@pytest.mark.parametrize("pinned", ["rows", "groups", "gptq", "rv32"])
def test_kernels_know_no_model(pinned: str, tmp_path: Path) -> None:
    """Matrices, vectors and norms: their sizes are arguments, and no file with the model's is included."""
    src = compile_pinned(pinned, tmp_path) / "src"
    constants = set(re.findall(r"#define (SC_\w+)", (src / "model.h").read_text()))
    kernels = [src / "runtime" / name for name in KERNELS if (src / "runtime" / name).is_file()]
    assert len(kernels) >= 2 and len(constants) > 50
    for kernel in kernels:
        texts = included(src, kernel, {})
        assert "runtime/sc_kernels.h" in texts and "model.h" not in texts, kernel.name
        for name, text in texts.items():
            assert not constants & set(re.findall(r"\w+", text)), (kernel.name, name)


def test_sources_come_along(program: Program) -> None:
    """The directory builds on its own: runtime, platforms and linker scripts are in it."""
    for name in ("runtime/sc_session.c", "runtime/sc_gemv.c", "program/program.c", "platform/host/port.c", "blobs.S",
                 "encode/tokenizer.S", "encode/llm_encode.c",
                 "toolchain/siracusa/link.ld", "toolchain/rv32/link.ld"):  # fmt: skip
        assert (program.out / "src" / name).is_file(), name
    headers = {file.name for file in (program.out / "src").rglob("*.h")}
    for file in (program.out / "src").rglob("*.[ch]"):
        assert set(re.findall(r'#include "([^"]+)"', file.read_text())) <= headers, file


def test_every_source_names_the_licence(program: Program) -> None:
    files = [p for p in program.out.rglob("*") if p.suffix in (".c", ".h", ".S", ".ld")]
    assert len(files) > 30
    for file in [*files, program.out / "Makefile", program.out / "CMakeLists.txt"]:
        head = file.read_text().splitlines()[:2]
        assert any("SPDX-License-Identifier: Apache-2.0" in line for line in head), file
