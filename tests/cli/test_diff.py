"""``diff``: in what two compiled directories, or two objects, differ."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.tiny_llama import write_tiny_llama
from shrinkc.cli.main import run_cli
from shrinkc.core.errors import Different

from .conftest import Cli

SIZES: dict[str, Any] = {
    "hidden": 20, "intermediate": 36, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 6,
}  # fmt: skip
O_PROJ = "model.layers.1.self_attn.o_proj.weight"


@pytest.fixture(scope="module")
def narrow(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of ``compiled`` with weights of 4 bits and a shorter context."""
    out = tmp_path_factory.mktemp("narrow") / "tiny"
    options = ["--bits", "4", "--context", "32", "--engines", "cores"]
    assert run_cli(["compile", str(model), "-o", str(out), *options]) == 0
    return out


def differences(cli: Cli, a: Path, b: Path, *options: object) -> dict[str, Any]:
    """The object; people are told the same titles, and the exit code says that there are some."""
    result = cli("diff", a, b, *options, "--json")
    assert result.code == Different.exit_code == 64
    found: dict[str, Any] = result.json
    assert found["same"] is False
    text = cli("diff", a, b, *options)
    assert text.code == 64 and "shrinkc: different: " in text.words
    for title, rows in found.items():
        if isinstance(rows, list) and rows and isinstance(rows[0], dict):
            assert title.replace("_", " ") in text.out.splitlines()
            assert title.replace("_", " ") in text.words
    return found


def test_a_directory_and_its_copy(cli: Cli, compiled: Path, tmp_path: Path) -> None:
    shutil.copytree(compiled, tmp_path / "copy")
    (tmp_path / "copy/build/host").mkdir(parents=True, exist_ok=True)
    (tmp_path / "copy/build/host/model").write_text("built")
    result = cli("diff", compiled, tmp_path / "copy", "--json")
    assert (result.code, result.json["same"], result.err) == (0, True, "")
    assert {*result.json} == {"kind", "name", "same", "notes"}


def test_other_options(cli: Cli, compiled: Path, narrow: Path) -> None:
    found = differences(cli, compiled, narrow)
    options = {row["option"]: (row["a"], row["b"]) for row in found["options"]}
    assert options["bits"] == (8, 4) and options["context"] == (64, 32)
    assert options["engines"][1] == "cores" and "target" not in options
    plans = [json.loads((d / "plan.json").read_text()) for d in (compiled, narrow)]
    sizes = {row["bytes_of"]: (row["a"], row["b"]) for row in found["sizes"]}
    assert sizes["L1"] == tuple(plan["used"]["l1"] for plan in plans)
    plan = {row["what"]: row for row in found["plan"]}
    assert (plan["context"]["a"], plan["context"]["b"]) == (64, 32)
    assert plan["context"]["change"] == "-50.0 %"
    assert plan["placements[layer*.qkv].engine"]["count"] == 2
    assert not any(".offset" in what for what in plan)
    lives = [
        what for what in plan if ".live" in what
    ]  # of a buffer one row, however many steps it lives
    assert lives and all(what.endswith(".live") for what in lives)
    code = {row["file"]: row for row in found["code"]}
    header = [(d / "src/model.h").read_text().splitlines() for d in (compiled, narrow)]
    gone = [line for line in header[0] if line not in header[1]]
    assert code["src/model.h"]["lines_only_in_a"] >= len(gone) > 0
    files = {row["file"]: row for row in found["other_files"]}
    blobs = [(d / "blobs/wmem.bin").read_bytes() for d in (compiled, narrow)]
    at = files["blobs/wmem.bin"]["first_byte"]
    assert blobs[0][:at] == blobs[1][:at] and blobs[0][at : at + 1] != blobs[1][at : at + 1]
    ops = {row["op"]: row for row in found["operations"]}
    assert "weight" in ops["layer*.qkv"]["differs"] and ops["layer*.qkv"]["count"] == 2
    assert found["first_differing_integer"][0]["op"] == "layer0.qkv"


def test_the_first_integer_is_that_of_the_weight_that_changed(
    cli: Cli, model: Path, compiled: Path, tmp_path: Path
) -> None:
    weights = write_tiny_llama(tmp_path / "tiny", **SIZES)
    changed = weights[O_PROJ].copy()
    changed[7] *= np.float32(1.5)
    write_tiny_llama(tmp_path / "tiny", **SIZES, overrides={O_PROJ: changed})
    assert cli("compile", tmp_path / "tiny", "-o", tmp_path / "out").code == 0
    found = differences(cli, compiled, tmp_path / "out", "--prompt", "a b", "--positions", 3)
    assert "options" not in found and "plan" not in found and "sizes" not in found
    (first,) = found["first_differing_integer"]
    assert (first["position"], first["op"], first["index"]) == (0, "layer1.mid", 7)
    assert first["a"] != first["b"]
    assert [row["op"] for row in found["operations"]] == ["layer*.mid"]
    assert found["operations"][0] == {"op": "layer*.mid", "differs": "weight", "count": 1}


def test_where_the_integers_are_the_same(
    cli: Cli, model: Path, compiled: Path, tmp_path: Path
) -> None:
    """What runs a matrix changes no number."""
    assert cli("compile", model, "-o", tmp_path / "out", "--engines", "cores").code == 0
    found = differences(cli, compiled, tmp_path / "out", "--positions", 2)
    assert "first_differing_integer" not in found and found["values_compared"] > 1000
    assert found["notes"] == [
        f"all of {found['values_compared']} values of both interpreters are the same"
    ]


def test_objects_of_runs(cli: Cli, tmp_path: Path) -> None:
    ops = [{"op": "qkv", "cycles": 100}, {"op": "attn", "cycles": 50}]
    run = {"target": "gvsoc", "new_tokens": [5, 6, 7], "seconds": 1.5, "profile": {"ops": ops}}
    a, b, c = (tmp_path / name for name in ("a.json", "b.json", "c.json"))
    a.write_text(json.dumps(run))
    c.write_text(json.dumps({**run, "seconds": 2.5}))
    slower = [{"op": "attn", "cycles": 75}, {"op": "qkv", "cycles": 100}]
    b.write_text(json.dumps({**run, "new_tokens": [5, 8], "profile": {"ops": slower}}))
    assert cli("diff", a, c).code == 0, "seconds are other ones in every run"
    found = differences(cli, a, b)
    assert found["first_differing_token"] == [{"index": 1, "a": 6, "b": 8}]
    assert found["values"] == [
        {"what": "profile.ops[attn].cycles", "a": 50, "b": 75, "change": "+50.0 %"}
    ]
    assert found["values_compared"] == 5, "target, and of each operation its name and cycles"


def test_what_is_refused(cli: Cli, compiled: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "empty.json").write_text("{}")
    for arguments, code, said in (
        ([compiled, model], 61, "has no manifest.json"),
        ([compiled, tmp_path / "list.json"], 2, "list.json is not. Hint: give two directories"),
        ([tmp_path / "bad.json", tmp_path / "bad.json"], 2, "bad.json is not valid JSON"),
        ([tmp_path / "list.json", tmp_path / "list.json"], 2, "holds a JSON list"),
        ([tmp_path / "none.json", tmp_path / "none.json"], 2, "none.json cannot be read"),
        ([tmp_path / "empty.json", tmp_path / "empty.json"], 2, "contain no values to compare"),
        ([compiled, compiled, "--positions", 0], 2, "--positions 0 is not possible"),
    ):
        result = cli("diff", *arguments)
        assert (result.code, result.out) == (code, "") and said in result.words
