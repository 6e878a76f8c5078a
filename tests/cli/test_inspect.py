"""``inspect``: what something is, and where its bytes go."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from helpers.compressed import step
from helpers.tiny_gguf import tiny_gguf
from helpers.tiny_gptq import tiny_gptq
from helpers.tiny_llama import write_tiny_llama
from shrinkc.compression.run_directory import FORMAT as RUN_FORMAT
from shrinkc.compression.run_directory import RUN
from shrinkc.compression.run_directory import VERSION as RUN_VERSION
from shrinkc.compression.steps import write_json
from shrinkc.core.artifact import file_record
from shrinkc.importer.config import neutral_fields
from shrinkc.ir.ops import OPS
from shrinkc.ir.serialize import load
from shrinkc.model import FAMILIES
from shrinkc.storage import WIDTHS
from shrinkc.targets import MEMORIES, TARGETS

from .conftest import Cli


def inspected(cli: Cli, path: Path) -> dict[str, Any]:
    """The object, of which people are told the same."""
    result = cli("inspect", path, "--json")
    assert result.code == 0, result.err
    found: dict[str, Any] = result.json
    lines = cli("inspect", path).out.splitlines()
    assert lines[0] == f"{found['name']}: {found['kind']}"
    told = {" ".join(line.split()) for line in lines}
    for key, value in found.items():
        label = key.replace("_", " ")
        if isinstance(value, list) and value and isinstance(value[0], dict):
            assert label in told, "a table"
            at = lines.index(label)
            assert lines[at + 1].split()[0] == next(iter(value[0])).split("_")[0]
            assert len(lines[at + 2 :]) >= len(value)
    return found


def test_a_checkpoint(cli: Cli, model: Path) -> None:
    found = inspected(cli, model)
    config = json.loads((model / "config.json").read_text())
    assert found["kind"] == "Hugging Face checkpoint" and found["compiles"] is True
    for key, field in (("layers", "num_hidden_layers"), ("ffn", "intermediate_size"),
                       ("vocabulary", "vocab_size"), ("head_size", "head_dim")):  # fmt: skip
        assert found[key] == config[field]
    assert found["bytes"] == sum(row["bytes"] for row in found["tensors"]) > 0
    assert found["parameters"] * 4 == found["bytes"], "float32, every parameter stored once"
    down = next(row for row in found["tensors"] if "down_proj" in row["tensor"])
    assert down["tensor"] == "model.layers.*.mlp.down_proj.weight"
    assert (down["shape"], down["type"], down["count"]) == ("20x36", "F32", 2)
    assert down["bytes"] == 2 * 20 * 36 * 4
    assert sum(row["share"] for row in found["tensors"]) == pytest.approx(1, abs=1e-3)


def test_a_configuration_alone(cli: Cli, model: Path, tmp_path: Path) -> None:
    shutil.copy(model / "config.json", tmp_path)
    for path in (tmp_path, tmp_path / "config.json"):
        found = inspected(cli, path)
        assert found["kind"] == "configuration without weights" and found["compiles"] is False
        assert found["layers"] == 2 and found["tokenizer"] is None and len(found["notes"]) == 2


def test_a_quantised_checkpoint(cli: Cli, tmp_path: Path) -> None:
    tiny_gptq(tmp_path / "q", group=16, module_bits={"model.layers.1.mlp.down_proj": 8})
    found = inspected(cli, tmp_path / "q")
    assert found["kind"] == "GPTQ checkpoint"
    counts = {(row["bits"], row["group_size"]): row["matrices"] for row in found["integers"]}
    assert counts == {(4, 16): 13, (8, 16): 1}


def test_a_gguf_file(cli: Cli, tmp_path: Path) -> None:
    tiny_gguf(tmp_path / "g.gguf")
    found = inspected(cli, tmp_path / "g.gguf")
    assert found["kind"] == "GGUF file" and found["compiles"] is True
    metadata = {row["key"]: row["value"] for row in found["metadata"]}
    assert metadata["general.architecture"] == "llama"
    assert metadata["llama.block_count"] == str(found["layers"])
    assert metadata["tokenizer.ggml.tokens"].endswith(" values")
    assert any(row["tensor"] == "blk.*.ffn_up.weight" for row in found["tensors"])
    assert found["bytes"] < (tmp_path / "g.gguf").stat().st_size


def test_what_cannot_be_compiled_is_looked_at_all_the_same(cli: Cli, tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "m", config={"hidden_act": "gelu"})
    found = inspected(cli, tmp_path / "m")
    assert found["compiles"] is False and "only the silu activation" in found["notes"][0]
    assert found["bytes"] > 0 and len(found["tensors"]) > 5


def test_a_compiled_directory(cli: Cli, compiled: Path, tmp_path: Path) -> None:
    found = inspected(cli, compiled)
    assert found["kind"] == "compiled directory" and found["target"] == "siracusa"
    assert found["changed_files"] == []
    plan = json.loads((compiled / "plan.json").read_text())
    parts: dict[str, int] = {}
    for row in found["where_bytes_go"]:
        parts[row["memory"]] = parts.get(row["memory"], 0) + row["bytes"]
    for level, used in plan["used"].items():
        assert parts.get(MEMORIES[level].label, 0) == used, level
    files = {row["file"]: row["bytes"] for row in found["files"]}
    assert files["blobs/wmem.bin"] == plan["used"]["wmem"], "what is planned is what is stored"
    manifest = json.loads((compiled / "manifest.json").read_text())
    assert sum(files.values()) == sum(record["bytes"] for record in manifest["files"].values())

    graph = load(compiled / "ir.safetensors")
    ops = found["operations_of_a_pass"]
    assert len(ops) + sum(row["op"].startswith("layer*.") for row in ops) == len(graph.ops)
    stored = {row["matrix"]: row for row in found["matrices_on_the_device"]}
    assert stored["layer*.down"]["count"] == 2 and stored["layer*.down"]["bits"] == 8
    assert sum(row["bytes"] for row in stored.values()) == plan["used"]["wmem"]

    alone = inspected(cli, compiled / "ir.safetensors")
    assert alone["kind"] == "integer model" and alone["matrices_on_the_device"] == list(
        stored.values()
    )

    other = tmp_path / "other"
    shutil.copytree(compiled, other)
    (other / "plan.json").write_text("{}")
    changed = inspected(cli, other)
    assert changed["changed_files"] == ["plan.json"]
    assert "plan.json missing or changed since compiling" in changed["notes"][0]
    assert "memory" not in changed and len(changed["files"]) == len(files)


def test_a_compression_run(cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    step(run / "00-source", "00-source", "source", 2000, 30.5)
    step(run / "01-gptq", "01-gptq", "gptq", 500, None)
    write_json(run / RUN, {"format": RUN_FORMAT, "version": RUN_VERSION, "model": "smol"})
    found = inspected(cli, run)
    assert (found["kind"], found["model"], found["steps"]) == ("compression run", "smol", 2)
    assert found["took"] == "60 s" and found["protocol"] == "wikitext512"
    source, last = found["steps_of_the_run"]
    assert (source["step"], source["bytes"], source["perplexity"]) == ("00-source", 2000, 30.5)
    assert (last["stage"], last["bytes"], last["share"]) == ("gptq", 500, 0.25)
    assert last["perplexity"] is None
    (run / "01-gptq/config.json").write_text("{ }")
    damaged = inspected(cli, run)
    assert damaged["steps"] == 1 and "config.json is not as it was written" in damaged["notes"][0]


def test_a_step_of_a_run_says_so(cli: Cli, model: Path, tmp_path: Path) -> None:
    step(tmp_path / "01-depth", "01-depth", "depth", 500, None)
    shutil.copytree(model, tmp_path / "01-depth", dirs_exist_ok=True)
    found = inspected(cli, tmp_path / "01-depth")
    assert (found["step"], found["stage"], found["layers"]) == ("01-depth", "depth", 2)


def test_supported_is_what_the_tables_say(cli: Cli) -> None:
    result = cli("inspect", "--supported", "--json")
    assert result.code == 0
    found = result.json
    assert {row["family"] for row in found["families"]} == {*FAMILIES}
    assert [row["bits"] for row in found["weights"]] == [*WIDTHS]
    assert {row["op"] for row in found["operations"]} >= {name.lower() for name in OPS}
    assert {row["target"] for row in found["targets"]} == {*TARGETS}
    for family in FAMILIES.values():
        said = {
            row["field"]: row["allowed"]
            for row in found["configuration_fields"]
            if family.name in row["families"]
        }
        for name, (values, _) in neutral_fields(family).items():
            if name != "quantization_config":
                assert said.pop(name) == [json.dumps(value) for value in values]
        assert said == {}
    engines = {row["engine"]: row for row in found["engines"]}
    assert engines["cores"]["bits_in_groups"] == [*WIDTHS] and engines["cores"]["adapters"]
    assert (
        engines["neureka_1x1"]["targets"] == ["siracusa"] and not engines["neureka_1x1"]["adapters"]
    )
    text = cli("inspect", "--supported").out
    assert "Qwen3ForCausalLM" in text and "mixtures of experts are not supported" in text


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "needs a PATH or --supported"),
        (["x", "--supported"], 2, "needs a PATH or --supported"),
        (["nowhere"], 10, "nowhere"),
    ],
)
def test_what_is_refused(cli: Cli, arguments: list[str], code: int, said: str) -> None:
    result = cli("inspect", *arguments)
    assert (result.code, result.out) == (code, "") and said in result.words


def test_damaged_files(cli: Cli, model: Path, compiled: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "m")
    for source, place, code in (
        (model / "model.safetensors", tmp_path / "m/model.safetensors", 13),
        (compiled / "ir.safetensors", tmp_path / "ir.safetensors", 61),
    ):
        place.write_bytes(source.read_bytes()[:-100])
        result = cli("inspect", place if code == 61 else place.parent)
        assert (result.code, result.out) == (code, "")
    (tmp_path / "empty").mkdir()
    assert cli("inspect", tmp_path / "empty").code == 10


def damaged(value: Any, rng: random.Random) -> None:
    """Something in an object is another thing than it was, or gone."""
    while True:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = rng.choice(list(keys))
        if not (isinstance(value[key], (dict, list)) and value[key]) or rng.random() < 0.3:
            break
        value = value[key]
    if rng.random() < 0.2:
        del value[key]
    else:
        value[key] = rng.choice([None, -1, 1e300, "x", [], {}, True, 10**40, [{}]])


@pytest.mark.parametrize("name", ["manifest.json", "plan.json"])
def test_damage_is_told_or_refused_by_name(
    cli: Cli, compiled: Path, tmp_path: Path, name: str
) -> None:
    """Also where the hash says that the file is as it was."""
    rng = random.Random(name)
    shutil.copytree(compiled, tmp_path / "d")
    manifest = (compiled / "manifest.json").read_text()
    codes = set()
    for _ in range(40):
        content = json.loads((compiled / name).read_text())
        damaged(content, rng)
        file = tmp_path / "d" / name
        file.write_text(json.dumps(content))
        if name != "manifest.json":
            record = asdict(file_record(file))
            files = {**json.loads(manifest)["files"], name: record}
            (tmp_path / "d/manifest.json").write_text(
                json.dumps({**json.loads(manifest), "files": files})
            )
        codes |= {cli("inspect", tmp_path / "d").code}
        codes |= {cli("diff", compiled, tmp_path / "d", "--positions", 1).code}
        codes |= {cli("report", tmp_path / "d").code}
    assert {0, 61, 64} <= codes <= {0, 10, 61, 64}


def test_names_that_no_file_can_have(cli: Cli, compiled: Path, tmp_path: Path) -> None:
    """In the manifest of a compiled directory, and in the record of a step."""
    shutil.copytree(compiled, tmp_path / "d")
    step(tmp_path / "run" / "00-source", "00-source", "source", 2000, 30.5)
    write_json(tmp_path / "run" / RUN, {"format": RUN_FORMAT, "version": RUN_VERSION, "model": "m"})
    for record in (tmp_path / "d/manifest.json", tmp_path / "run/00-source/step.json"):
        content = json.loads(record.read_text())
        content["files"]["x" * 5000] = {"bytes": 1, "sha256": ""}
        record.write_text(json.dumps(content))
    assert "x" * 5000 in inspected(cli, tmp_path / "d")["changed_files"]
    assert "File name too long" in inspected(cli, tmp_path / "run")["notes"][0]


def test_json_nested_too_deeply(cli: Cli, compiled: Path, tmp_path: Path) -> None:
    """In a compiled directory and in a step of a run: refused, or noted."""
    shutil.copytree(compiled, tmp_path / "d")
    (tmp_path / "d/manifest.json").write_text('{"format":' + "[" * 100_000)
    assert cli("inspect", tmp_path / "d").code == 10
    assert cli("run", tmp_path / "d").code == 61
    step(tmp_path / "run" / "00-source", "00-source", "source", 2000, 30.5)
    write_json(tmp_path / "run" / RUN, {"format": RUN_FORMAT, "version": RUN_VERSION, "model": "m"})
    (tmp_path / "run/00-source/step.json").write_text("[" * 100_000)
    found = inspected(cli, tmp_path / "run")
    assert found["steps"] == 0 and "nested too deeply" in found["notes"][0]


def test_no_heavy_library_is_needed(model: Path) -> None:
    code = (
        "import sys; from shrinkc.cli.main import run_cli; code = run_cli(['inspect', sys.argv[1]]);"
        "sys.exit(code or ' '.join({'torch', 'transformers', 'matplotlib'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(model)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
