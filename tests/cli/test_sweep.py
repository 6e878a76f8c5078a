"""``plan --sweep``: many plans as a table, an object and a picture; and what programs are told of refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from helpers.tiny_llama import write_tiny_llama

from .conftest import Cli
from .test_fitting import TINY, sizes
from .test_options import ODD_NUMBERS

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its configuration alone."""
    folder = tmp_path_factory.mktemp("models") / "small"
    write_tiny_llama(
        folder, hidden=64, intermediate=160, layers=2, heads=4, kv_heads=2, max_position=256
    )
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).unlink()
    return folder


def points(cli: Cli, *arguments: object) -> list[dict[str, Any]]:
    result = cli("plan", *arguments, "--json")
    assert result.code == 0, result.err
    found: list[dict[str, Any]] = result.json["points"]
    return found


def test_every_combination_is_what_plan_says_of_it(cli: Cli, small: Path) -> None:
    found = points(cli, small, "--sweep", "bits=2,4", "context=32,64", "--engines", "cores")
    assert [p["values"] for p in found] == [
        {"bits": bits, "context": context} for bits in (2, 4) for context in (32, 64)
    ]
    for point in found:
        values = point.pop("values")
        options = [word for name, value in values.items() for word in (f"--{name}", value)]
        options += ["--position", 31, "--engines", "cores"]  # the last that the shortest has
        assert point == cli("plan", small, *options, "--json").json
    assert found[0]["weight_bytes"] < found[2]["weight_bytes"]
    assert len({p["speed"]["decode"]["cycles_per_token"] for p in found}) > 1


def test_the_option_may_be_repeated(cli: Cli, small: Path) -> None:
    at_once = points(
        cli, small, "--sweep", "embedding-bits=4,8", "group-size=channel,32", "--bits", "4"
    )
    assert at_once == points(
        cli,
        small,
        "--bits",
        "4",
        "--sweep",
        "embedding-bits=4,8",
        "--sweep",
        "group-size=channel,32",
    )
    assert [p["values"] for p in at_once] == [
        {"embedding_bits": bits, "group_size": group} for bits in (4, 8) for group in (None, 32)
    ]


def test_what_does_not_fit_and_what_is_not_possible(cli: Cli, small: Path, tmp_path: Path) -> None:
    picture = tmp_path / "sweep.svg"
    arguments = [small, "--sweep", "l1=10k,128KiB", "context=64,512", "--target", "siracusa"]
    short, refused, fits, _ = points(cli, *arguments, "--picture", picture)
    assert (short["fits"], refused["fits"], fits["fits"]) == (False, None, True)
    (lack,) = short["lacks"]
    assert lack["level"] == "l1" and lack["have"] == 10240
    assert lack["need"] - lack["have"] == lack["excess"] > 0
    assert lack["largest"][0]["bytes"] > 0
    assert refused["error"]["code"] == 2 and "--context 512" in refused["error"]["message"]

    lines = cli("plan", *arguments).out.splitlines()
    heads = lines[1].split()
    assert heads[:4] == ["l1", "context", "fits", "L1"] and heads[-1] == "limit"
    rows = [line.split() for line in lines[2:6]]
    assert rows[0][:5] == ["10", "KiB", "64", "no", "L1"] and rows[0][5:7] == ["short", "of"]
    assert rows[1][3:6] == ["-", "refused:", "--context"]
    cycles = fits["speed"]["decode"]["cycles_per_token"]  # rounded to a tenth
    assert rows[2][3] == "yes"
    assert any(f"{cycles + by:,.0f}" in rows[2] for by in (-0.05, 0.05))
    tail = [" ".join(line.split()) for line in lines[6:]]
    assert tail[0].startswith("note ") and "holds no weights" in tail[0]
    assert "at position 63, at 72 MHz, the simulator's default clock" in tail[-3]
    assert tail[-1].startswith("energy not estimated")

    root = ET.fromstring(picture.read_text())
    said = [e.text or "" for e in root.iter(f"{SVG}text")]
    assert any(text.startswith("L1 short of") for text in said)
    notes = [e.text or "" for e in root.iter(f"{SVG}title")]
    used = fits["memory"]["l1"]["used"]
    assert f"L1: {used} of {128 * 1024} bytes" in notes
    assert cli("plan", *arguments, "--picture", tmp_path / "again.svg").code == 0
    assert (tmp_path / "again.svg").read_bytes() == picture.read_bytes()


def test_targets_that_were_not_calibrated(cli: Cli, small: Path) -> None:
    lines = cli("plan", small, "--sweep", "target=siracusa,host").out.splitlines()
    rows = [line.split() for line in lines[1:4]]
    assert rows[0][:2] == ["target", "fits"]
    assert rows[1][0] == "siracusa" and rows[1][-1] == "%"
    assert rows[2][:2] == ["host", "yes"] and rows[2][-3:] == ["-", "-", "-"]
    assert "  speed    not estimated: host was not calibrated" in lines


def test_where_none_fits(cli: Cli, tmp_path: Path) -> None:
    model = sizes(tmp_path, TINY)
    result = cli("plan", model, "--sweep", "bits=2,8", "--l1", "8KiB", "--json")
    assert result.code == 30 and "none of 2 combinations fits" in result.words
    assert [p["fits"] for p in result.json["points"]] == [False, False]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["bits=2,7"], 2, "'7' is not one of '8', '6', '5', '4', '3', '2'"),
        (["bits"], 2, "--sweep bits does not name an option that can be swept"),
        (
            ["engines=cores"],
            2,
            "allowed: target, bits, embedding-bits, group-size, kv-bits, context, l1, ram, flash, hyperram.",
        ),
        (["bits=2", "bits=4"], 2, "--sweep bits= is given twice"),
        (["l1=lots"], 2, "'lots' is not a size"),
        (["context=64,"], 2, "'' is not a valid integer"),
        (["context=0,257"], 2, "--context 0 is not possible"),
        (["group-size=7,9"], 20, "group sizes that divide all"),
        (["context=64,128", "--position", "200"], 2, "--position 200 is not possible"),
        (["context=64", "--context", "32"], 2, "--context and --sweep context= cannot be used"),
        (["context=64", "--picture", "nowhere/a.svg"], 40, "nowhere"),
    ],
)
def test_what_is_refused(cli: Cli, small: Path, words: list[str], code: int, said: str) -> None:
    result = cli("plan", small, "--sweep", *words)
    assert (result.code, result.out) == (code, "")
    assert said in result.words
    told = cli("plan", small, "--sweep", *words, "--json")
    assert told.code == code and told.json["error"]["code"] == code
    assert said in told.json["error"]["message"] + " " + (told.json["error"]["hint"] or "")


@pytest.mark.parametrize(
    "axis", ["bits", "embedding-bits", "group-size", "context", "l1", "target"]
)
def test_values_that_nobody_means(cli: Cli, small: Path, axis: str) -> None:
    for value in (*ODD_NUMBERS, "", "=", "1=2"):
        result = cli("plan", small, "--sweep", f"{axis}={value}")
        assert result.code in (2, 20), (value, result.err)


def test_the_picture_of_one_plan_is_its_memory_map(cli: Cli, small: Path, tmp_path: Path) -> None:
    assert cli("plan", small, "--picture", tmp_path / "plan.svg").code == 0
    assert "small: memory plan for siracusa" in (tmp_path / "plan.svg").read_text()


def test_a_sweep_imports_no_torch(small: Path) -> None:
    code = (
        "import sys; from shrinkc.cli.main import run_cli;"
        "code = run_cli(['plan', sys.argv[1], '--sweep', 'bits=2,8']);"
        "sys.exit(code or ' '.join({'torch', 'transformers', 'scipy'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(small)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- what programs are told of a refusal ------------------------------------------------------


def test_a_refusal_in_fields(cli: Cli, tmp_path: Path) -> None:
    model = sizes(tmp_path, TINY)
    result = cli("plan", model, "--l1", "1KiB", "--context", 4000, "--json", "-q")
    assert result.code == 30 and result.json["fits"] is False
    for lack in result.json["lacks"]:
        assert lack["need"] - lack["have"] == lack["excess"] > 0 and lack["largest"]
        assert f"need {lack['need']} bytes" in result.words
    change, *others = result.json["alternatives"]
    error = result.json["error"]
    assert change in error["hint"] and others == []
    assert cli("plan", model, *change.split(), "--context", 4000).code == 0
    said = f"shrinkc: {error['title']}: {error['message']} Hint: {error['hint']}"
    assert (error["code"], result.words) == (30, " ".join(said.split()))


def test_errors_of_every_kind_are_objects(
    cli: Cli, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments, code in (
        (["plan", "nowhere", "--json"], 10),
        (["plan", "--nonsense", "--json"], 2),
        (["run", small, "--json"], 61),
        (["nonsense", "--json"], 2),
    ):
        result = cli(*arguments)
        assert (result.code, result.json["error"]["code"]) == (code, code)
        assert result.err.startswith(f"shrinkc: {result.json['error']['title']}: ")
        assert cli(*arguments[:-1]).out == ""

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    def defect(_: object) -> None:
        raise ValueError("no more")

    for function, code, title in ((stop, 130, "interrupted"), (defect, 70, "defect")):
        monkeypatch.setattr("shrinkc.driver.planning.prepare", function)
        result = cli("plan", small, "--json")
        assert (result.code, result.json["error"]["code"]) == (code, code)
        assert result.json["error"]["title"] == title


def test_an_object_that_is_there_stays_the_only_one(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """doctor says what is missing in its own object, and fails."""
    monkeypatch.setenv("PATH", str(tmp_path))
    result = cli("doctor", "--json")
    assert result.code == 50 and json.loads(result.out)["ok"] is False
