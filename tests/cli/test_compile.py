"""What ``shrinkc compile`` writes, and that it is the same every time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.tiny_gguf import tiny_gguf
from helpers.tiny_llama import write_tiny_llama
from shrinkc.cli.main import run_cli
from shrinkc.core import artifact
from shrinkc.ir.serialize import load
from shrinkc.targets import SIRACUSA

from .conftest import Cli


def content(folder: Path) -> dict[str, bytes]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def compiled(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As all have it, but of these tests alone: others build programs in theirs."""
    out = tmp_path_factory.mktemp("compiled") / "tiny"
    assert run_cli(["compile", str(model), "-o", str(out)]) == 0
    return out


def test_the_directory_is_complete(compiled: Path) -> None:
    names = set(content(compiled))
    assert names >= {
        "CMakeLists.txt", "Makefile", "manifest.json", "plan.json", "memory.svg", "ir.safetensors", "ir.txt",
        "tokenizer.json", "src/model.c", "src/model.h", "src/blobs.S", "blobs/wmem.bin",
    }  # fmt: skip
    manifest = artifact.read_manifest(compiled)
    assert set(manifest.files) == names - {"manifest.json"}
    assert artifact.changed_files(compiled, manifest) == []
    assert (manifest.model, manifest.target, manifest.context) == ("tiny", "siracusa", 64)
    assert load(compiled / "ir.safetensors").context == 64
    assert json.loads((compiled / "plan.json").read_text())["target"] == "siracusa"


def test_everybody_may_read_what_the_user_lets_them(compiled: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    assert {p.stat().st_mode & 0o777 for p in compiled.rglob("*") if p.is_file()} == {0o666 & ~mask}
    assert compiled.stat().st_mode & 0o777 == 0o777 & ~mask


def test_the_memory_map_is_a_picture(compiled: Path) -> None:
    tree = ET.parse(compiled / "memory.svg")
    titles = [t.text or "" for t in tree.iter("{http://www.w3.org/2000/svg}title")]
    for region in ("layer0.qkv:", "engine:", "k_cache:", "rope:", "pieces:"):
        assert any(t.startswith(region) for t in titles), region


def test_generated_files_begin_with_the_command(compiled: Path) -> None:
    command = artifact.read_manifest(compiled).command
    assert command.startswith("shrinkc compile tiny --target siracusa --bits 8")
    for name in ("src/model.c", "src/model.h", "Makefile", "CMakeLists.txt"):
        assert command in (compiled / name).read_text().splitlines()[0]


def test_same_bytes_from_other_directories_and_hash_seeds(model: Path, tmp_path: Path) -> None:
    results = []
    for index, (seed, locale) in enumerate((("1", "C"), ("77", "C.UTF-8"))):
        place = tmp_path / f"place{index}" / ("x" * (index + 1))
        place.mkdir(parents=True)
        shutil.copytree(model, place / "tiny")
        command = [sys.executable, "-m", "shrinkc", "compile", "tiny", "-o", "out", "--bits", "4"]
        env = {**os.environ, "PYTHONHASHSEED": seed, "LC_ALL": locale, "TZ": f"UTC{index}"}
        paths = [str(Path(p).resolve()) for p in sys.path if p]
        env["PYTHONPATH"] = os.pathsep.join(paths)
        subprocess.run(command, cwd=place, env=env, check=True, capture_output=True)
        results.append(content(place / "out"))
    assert results[0].keys() == results[1].keys()
    assert [k for k in results[0] if results[0][k] != results[1][k]] == []
    everything = b"".join(results[0].values())
    assert str(tmp_path).encode() not in everything


def test_the_summary_says_what_is_used(cli: Cli, model: Path, tmp_path: Path) -> None:
    result = cli("compile", model, "-o", tmp_path / "out")
    assert (result.code, result.out) == (0, "")
    for part in (
        "fits siracusa",
        "context 64 by default",
        "L1",
        "weights",
        "N-EUREKA",
        "next: shrinkc run ",
    ):
        assert part in result.err
    assert "prefill chunk" not in result.err
    more = cli("compile", model, "-o", tmp_path / "out", "--force", "-v")
    assert "prefill chunk  36 tokens" in more.err and "weight tiles" in more.err


def test_json_is_one_object(cli: Cli, model: Path, tmp_path: Path) -> None:
    result = cli("compile", model, "-o", tmp_path / "out", "--context", 32, "--json")
    assert result.code == 0
    assert result.json["options"]["context"] == 32
    assert 0 < result.json["memory"]["l1"]["used"] <= result.json["memory"]["l1"]["available"]


def test_plan_says_the_same_and_writes_nothing(cli: Cli, model: Path, tmp_path: Path) -> None:
    compiled = cli("compile", model, "-o", tmp_path / "out", "--l1", "64KiB", "--json").json
    planned = cli("plan", model, "--l1", "64KiB", "--json").json
    assert planned.pop("speed")
    assert planned == {k: v for k, v in compiled.items() if k not in ("output", "files")}
    assert cli("plan", model, "--l1", "64KiB").out.startswith("tiny fits siracusa")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_every_option_reaches_the_program(cli: Cli, model: Path, tmp_path: Path) -> None:
    options = [
        "--bits",
        4,
        "--group-size",
        4,
        "--embedding-bits",
        4,
        "--asymmetric",
        "--context",
        24,
    ]
    result = cli(
        "compile",
        model,
        "-o",
        tmp_path / "o",
        *options,
        "--l1",
        "100k",
        "--engines",
        "cores",
        "--code",
        "l2",
        "--flash",
        "64MiB",
        "--hyperram",
        "8MiB",
        "--json",
    )
    assert result.code == 0
    assert result.json["options"] == {
        "target": "siracusa", "bits": 4, "group_size": 4, "short_last_group": False, "asymmetric": True,
        "embedding_bits": 4, "kv_bits": 8, "context": 24, "l1": 102400, "adapter": None, "engines": "cores",
        "code": "l2", "flash": 64 << 20, "hyperram": 8 << 20, "fit": False, "sensitivity": None,
    }  # fmt: skip
    text = (tmp_path / "o/ir.txt").read_text()
    assert "int4" in text and "asymmetric" in text and "group 4" in text and "int8" not in text


def test_where_code_lies(cli: Cli, model: Path) -> None:
    """Its room is taken there; said in the command that makes the same, where there is a choice."""
    usual, moved = (cli("plan", model, "--code", code, "--json").json for code in ("wmem", "l2"))
    assert usual == cli("plan", model, "--json").json
    assert " --code wmem " in usual["command"] and " --code l2 " in moved["command"]
    room = {code: {k: v["available"] for k, v in told["memory"].items()}
            for code, told in (("wmem", usual), ("l2", moved))}  # fmt: skip
    assert room["l2"]["wmem"] - room["wmem"]["wmem"] == SIRACUSA.code_bytes
    assert room["wmem"]["l2"] - room["l2"]["l2"] == SIRACUSA.code_bytes
    host = cli("plan", model, "--target", "host", "--json").json
    assert host["options"]["code"] is None and "--code" not in host["command"]


def test_engines_that_may_run_matrices(cli: Cli, model: Path) -> None:
    """The cores always may; in the target's order, and said in the command that makes the same."""
    every = cli("plan", model, "--json").json
    assert every["options"]["engines"] == "cores,neureka_1x1,neureka_3x3,neureka_both"
    assert every["command"].endswith(" --engines cores,neureka_1x1,neureka_3x3,neureka_both")
    for asked in ("neureka_1x1", "neureka_1x1, cores", "cores,neureka_1x1,neureka_1x1"):
        told = cli("plan", model, "--engines", asked, "--json").json
        assert told["options"]["engines"] == "cores,neureka_1x1"
        assert {m["engine"] for m in told["engines"].values()} <= {"cores", "neureka_1x1"}
        assert all("neureka_3x3" not in m["refused"] for m in told["engines"].values())
    alone = cli("plan", model, "--engines", "cores", "--json").json
    assert alone["options"]["engines"] == "cores" and "engines" not in alone
    assert "neureka_1x1" not in cli("plan", model, "--engines", "cores").out
    assert cli("plan", model, "--target", "host", "--json").json["options"]["engines"] == "cores"


def test_groups_are_multiplied_by_an_engine_in_a_prompt(cli: Cli, tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "m", hidden=64, intermediate=128, heads=4, kv_heads=2, layers=2)
    grouped = ("plan", tmp_path / "m", "--bits", 4, "--group-size", 32)
    told = cli(*grouped, "--json").json["prompt_products"]
    assert len(told) == 8 and {name.split(".")[0] for name in told} == {"layer0", "layer1"}
    said = "the cores run the others; helps with 8 of those in prefill"
    assert said in cli(*grouped).out
    assert said not in cli(*grouped, "--engines", "cores").out
    assert cli("plan", tmp_path / "m", "--json").json["prompt_products"] == []
    # its head has groups too, and multiplies one token of a prompt
    tiny_gguf(tmp_path / "m.gguf", intermediate=128)
    assert cli("plan", tmp_path / "m.gguf", "--json").json["prompt_products"] == told


@pytest.mark.parametrize("target", ["host", "rv32"])
def test_other_targets(cli: Cli, model: Path, tmp_path: Path, target: str) -> None:
    assert cli("compile", model, "--target", target, "-o", tmp_path / "out").code == 0
    assert artifact.read_manifest(tmp_path / "out").target == target


# --- what is in the way ---------------------------------------------------------------------


def test_an_empty_directory_is_filled(cli: Cli, model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert cli("compile", model, "-o", tmp_path / "out").code == 0
    assert (tmp_path / "out/manifest.json").is_file()


def test_existing_output_needs_force(cli: Cli, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert cli("compile", model, "-o", out).code == 0
    (out / "build").mkdir()
    before = content(out)
    result = cli("compile", model, "-o", out, "--bits", 4)
    assert result.code == 40
    assert "--force" in result.err
    assert content(out) == before
    assert cli("compile", model, "-o", out, "--bits", 4, "--force").code == 0
    assert not (out / "build").exists()
    assert artifact.read_manifest(out).options["bits"] == 4
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_foreign_directories_are_never_replaced(cli: Cli, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    result = cli("compile", model, "-o", out, "--force")
    assert result.code == 40
    assert "was not created by shrinkc" in result.words
    assert (out / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda out: (out / "notes.md").write_text("years of work"), "notes.md"),
        (lambda out: (out / "src" / "mine").mkdir() or (out / "src/mine/a.c").touch(), "src/mine/a.c"),
        (lambda out: (out / "src" / "link").symlink_to(out.parent), "src/link"),
        (lambda out: (out / "Makefile").write_text("all:\n"), "Makefile"),
        (lambda out: (out / "manifest.json").write_text('{"format": "shrinkc-program"}'), "Makefile"),
    ],
    ids=["added", "deep", "link", "edited", "manifest"],
)  # fmt: skip
def test_force_keeps_what_the_user_added_or_edited(
    cli: Cli, model: Path, compiled: Path, tmp_path: Path, change: Callable[[Path], object],
    named: str,
) -> None:  # fmt: skip
    out = shutil.copytree(compiled, tmp_path / "out")
    change(out)
    before = content(out)
    result = cli("compile", model, "-o", out, "--force")
    assert result.code == 40
    assert "contains files that shrinkc did not create" in result.words and named in result.words
    assert "move them away" in result.words
    assert content(out) == before


def test_force_replaces_build_results_and_a_damaged_directory(
    cli: Cli, model: Path, compiled: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(compiled, tmp_path / "out")
    (out / "build" / "host").mkdir(parents=True)
    (out / "build" / "host" / "model").write_text("a program")
    (out / "ir.txt").unlink()
    assert cli("compile", model, "-o", out, "--force").code == 0
    assert not (out / "build").exists() and (out / "ir.txt").is_file()


def test_the_place_is_tried_before_the_work(
    cli: Cli, model: Path, tmp_path: Path, small_disk: Callable[[int], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    disk = small_disk(4)
    (disk / "much").write_bytes(bytes(4096))
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr("shrinkc.driver.compiling.prepare", lambda _: pytest.fail("worked"))
    for out, said in (
        (disk / "out", "No space left"),
        (disk, "mount point"),
        (tmp_path / "file" / "out", "a part of the path is a file"),
        (tmp_path / ("n" * 300), "choose a shorter name"),
        (Path("/proc/shrinkc"), "/proc/shrinkc cannot be written"),
    ):
        if out == disk:
            (disk / "much").unlink()
        result = cli("compile", model, "-o", out)
        assert (result.code, result.out) == (40, "") and said in result.words
    assert list(disk.iterdir()) == []


def test_a_file_in_the_way(cli: Cli, model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    assert cli("compile", model, "-o", tmp_path / "out", "--force").code == 40
    assert cli("compile", model, "-o", tmp_path / "out" / "below").code == 40
    assert (tmp_path / "out").read_text() == "x"


def test_a_failed_replacement_keeps_the_old_one(
    cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert cli("compile", model, "-o", out).code == 0
    before = content(out)
    rename = Path.rename

    def refuse_second(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_second)
    assert cli("compile", model, "-o", out, "--force").code == 40
    assert content(out) == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


# --- interrupts -----------------------------------------------------------------------------


def test_ctrl_c_leaves_nothing(
    cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shrinkc.driver.compiling.save", interrupt)
    result = cli("compile", model, "-o", tmp_path / "new" / "out")
    assert result.code == 130
    assert "stopped" in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_while_it_writes_leaves_nothing(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    write_tiny_llama(tmp_path / "model", hidden=320, intermediate=900, layers=24, heads=8)
    place = tmp_path / "place"
    place.mkdir()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-m", "shrinkc", "compile", str(tmp_path / "model"), "-o", "out"]
    process = subprocess.Popen(
        command, cwd=place, env=env, stderr=subprocess.PIPE,
        # a background job of a shell inherits a SIGINT that is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(place.glob(".out.*.partial")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    assert list(place.iterdir()) == []
