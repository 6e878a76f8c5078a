"""The IR file and the text dump: exact, byte-stable, refused when damaged or of another version."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from shrinkc.core.errors import BadArtifact, IllegalIR
from shrinkc.ir.dump import dump
from shrinkc.ir.graph import IR_VERSION, Graph
from shrinkc.ir.interpreter import Interpreter
from shrinkc.ir.ops import Linear
from shrinkc.ir.serialize import FORMAT, load, save

Fresh = Callable[..., Graph]


def same(a: object, b: object, where: str = "graph") -> int:
    """Equal in every field, arrays with their types; the number of leaves compared."""
    assert type(a) is type(b), where
    if isinstance(a, np.ndarray):
        assert isinstance(b, np.ndarray)
        assert a.dtype == b.dtype, where
        np.testing.assert_array_equal(a, b, where)
        return 1
    if dataclasses.is_dataclass(a):
        names = [f.name for f in dataclasses.fields(a)]
        return sum(same(getattr(a, n), getattr(b, n), f"{where}.{n}") for n in names)
    if isinstance(a, dict):
        assert isinstance(b, dict) and a.keys() == b.keys(), where
        return sum(same(a[k], b[k], f"{where}[{k}]") for k in a)
    if isinstance(a, (list, tuple)):
        assert isinstance(b, (list, tuple)) and len(a) == len(b), where
        return sum(same(x, y, f"{where}[{i}]") for i, (x, y) in enumerate(zip(a, b, strict=True)))
    assert a == b, where
    return 1


@pytest.mark.parametrize("sides", [False, True])
def test_round_trip_is_exact(fresh: Fresh, tmp_path: Path, sides: bool) -> None:
    g = fresh(sides)
    save(g, tmp_path / "ir")
    again = load(tmp_path / "ir")
    assert same(g, again) > 100
    ids = [1, 5, 9, 2]
    np.testing.assert_array_equal(Interpreter(g).forward(ids), Interpreter(again).forward(ids))


def test_zero_points_stay_such(fresh: Fresh, tmp_path: Path) -> None:
    g = fresh()
    op = next(op for op in g.ops if isinstance(op, Linear))
    assert op.weight.d is not None and not op.weight.zero_points
    op.weight.b, op.weight.zero_points = 0 * op.weight.d.astype(np.int16), True
    save(g, tmp_path / "ir")
    assert same(g, load(tmp_path / "ir")) > 100


def test_tied_table_is_stored_once_and_stays_shared(fresh: Fresh, tmp_path: Path) -> None:
    save(fresh(), tmp_path / "ir")
    g = load(tmp_path / "ir")
    assert g.ops[0].table is g.ops[-2].weight  # type: ignore[attr-defined]


@pytest.mark.parametrize("sides", [False, True])
def test_bytes_are_stable(fresh: Fresh, tmp_path: Path, sides: bool) -> None:
    save(fresh(sides), tmp_path / "a")
    save(fresh(sides), tmp_path / "b")
    save(load(tmp_path / "a"), tmp_path / "c")
    first = (tmp_path / "a").read_bytes()
    assert first == (tmp_path / "b").read_bytes()
    assert first == (tmp_path / "c").read_bytes()


def test_bytes_do_not_depend_on_the_hash_seed(fresh: Fresh, tmp_path: Path) -> None:
    save(fresh(sides=True), tmp_path / "ir")
    script = (
        "import sys; from pathlib import Path; from shrinkc.ir.serialize import load, save; "
        "from shrinkc.ir.dump import dump; g = load(Path(sys.argv[1])); "
        "save(g, Path(sys.argv[2])); Path(sys.argv[2] + '.txt').write_text(dump(g))"
    )
    results = set()
    for seed in ("0", "1", "4711"):
        out = tmp_path / seed
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "ir"), str(out)],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            check=True,
        )
        results.add((out.read_bytes(), (tmp_path / f"{seed}.txt").read_text()))
    assert results == {((tmp_path / "ir").read_bytes(), dump(fresh(sides=True)))}


# --- dump --------------------------------------------------------------------------------


@pytest.mark.parametrize("sides", [False, True])
def test_dump_has_one_line_per_op_and_is_stable(fresh: Fresh, tmp_path: Path, sides: bool) -> None:
    g = fresh(sides)
    text = dump(g)
    assert sum(line.startswith("%") for line in text.splitlines()) == len(g.ops)
    assert dump(fresh(sides)) == text
    save(g, tmp_path / "ir")
    assert dump(load(tmp_path / "ir")) == text
    assert "0x" not in text  # no addresses


@pytest.mark.parametrize("sides", [False, True])
def test_dump_shows_every_change_of_a_number(fresh: Fresh, sides: bool) -> None:
    """One changed weight, scale, offset, table entry or attribute changes the text."""
    text = dump(fresh(sides))

    def changed(damage: Callable[[Graph], None]) -> bool:
        g = fresh(sides)
        damage(g)
        return dump(g) != text

    def weight(g: Graph) -> None:
        g.ops[2].weight.q[0, 0] ^= 1  # type: ignore[attr-defined]

    def row_scale(g: Graph) -> None:
        g.ops[2].weight.r[0] ^= 1  # type: ignore[attr-defined]

    def epsilon(g: Graph) -> None:
        g.ops[1].eps += 1  # type: ignore[attr-defined]

    def sampling(g: Graph) -> None:
        g.ops[-1].scale_shift += 1  # type: ignore[attr-defined]

    def side(g: Graph) -> None:
        w = g.ops[2].weight  # type: ignore[attr-defined]
        if w.low_rank is None:
            w.b[0, 0] ^= 1
        else:
            w.low_rank.a.q[0, 0] ^= 1

    def rope(g: Graph) -> None:
        g.rope_cos[1, 0] ^= 1

    silent = [
        f.__name__ for f in (weight, row_scale, epsilon, sampling, side, rope) if not changed(f)
    ]
    assert silent == []


# --- refusals ----------------------------------------------------------------------------


def rewrite(path: Path, change: Callable[[dict[str, object], dict[str, np.ndarray]], None]) -> None:
    with safe_open(path, framework="np") as f:
        head = json.loads(f.metadata()[FORMAT])
        tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 - not a dict
    change(head, tensors)
    save_file(tensors, path, metadata={FORMAT: json.dumps(head)})


@pytest.fixture
def ir(fresh: Fresh, tmp_path: Path) -> Path:
    save(fresh(), tmp_path / "ir")
    return tmp_path / "ir"


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(BadArtifact, match="cannot be read"):
        load(tmp_path / "none")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated(ir: Path, keep: int) -> None:
    data = ir.read_bytes()
    ir.write_bytes(data[:keep])
    with pytest.raises(BadArtifact) as refused:
        load(ir)
    assert refused.value.hint


# in version 8 a stored group of inputs was called "seg", and "group" was the group size
@pytest.mark.parametrize("version", [8, IR_VERSION + 1])
def test_another_version(ir: Path, version: int) -> None:
    rewrite(ir, lambda head, _: head.update(version=version))
    with pytest.raises(BadArtifact, match=f"version {version}, this shrinkc reads {IR_VERSION}"):
        load(ir)


def test_another_kind_of_file(tmp_path: Path) -> None:
    save_file({"a": np.zeros(3)}, tmp_path / "x")
    with pytest.raises(BadArtifact, match="not a shrinkc IR file"):
        load(tmp_path / "x")


def test_no_json(tmp_path: Path) -> None:
    save_file({"a": np.zeros(3)}, tmp_path / "x", metadata={FORMAT: "{"})
    with pytest.raises(BadArtifact):
        load(tmp_path / "x")


def test_a_type_that_numpy_lacks(ir: Path) -> None:
    data = ir.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    kinds = [t for name, t in header.items() if t.get("dtype") == "U16"]
    kinds[0]["dtype"] = "BF16"
    text = json.dumps(header).encode()
    ir.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    # or has, once some library has brought ml_dtypes
    with pytest.raises((BadArtifact, IllegalIR), match="cannot be read|bfloat16"):
        load(ir)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda h, t: h.pop("version"), id="no-version"),
        pytest.param(lambda h, t: h.pop("ops"), id="no-ops"),
        pytest.param(lambda h, t: h["ops"][0].update(op="Nothing"), id="unknown-op"),
        pytest.param(lambda h, t: h["ops"][1].pop("eps"), id="no-attribute"),
        pytest.param(lambda h, t: t.pop("graph/rope_cos"), id="no-rope-table"),
        pytest.param(lambda h, t: t.pop("layer0.qkv/q"), id="no-weights"),
        pytest.param(lambda h, t: t.pop("layer0.qkv/r"), id="no-row-scales"),
        pytest.param(lambda h, t: h["linears"].pop("layer0.qkv"), id="no-matrix"),
        pytest.param(lambda h, t: h.pop("vocab"), id="no-vocab"),
        pytest.param(lambda h, t: h["types"].pop("layer0.qkv"), id="no-type"),
        pytest.param(lambda h, t: h["types"]["layer0.qkv"].update(width="8"), id="text-as-width"),
        pytest.param(lambda h, t: h["types"]["layer0.qkv"].update(frac=4.0), id="fraction-as-bits"),
        pytest.param(lambda h, t: h.update(hidden=[[]]), id="list-as-size"),
    ],
)
def test_incomplete(
    ir: Path, change: Callable[[dict[str, object], dict[str, np.ndarray]], None]
) -> None:
    """A well-formed file without something it needs: an error of ours, not a KeyError."""
    rewrite(ir, change)
    with pytest.raises((BadArtifact, IllegalIR)):
        load(ir)


def test_rules_are_checked_again(ir: Path) -> None:
    def damage(_: dict[str, object], tensors: dict[str, np.ndarray]) -> None:
        tensors["layer0.qkv/q"][0, 0] = 99

    rewrite(ir, damage)
    with pytest.raises((BadArtifact, IllegalIR), match="weights outside"):
        load(ir)
