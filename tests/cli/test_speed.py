"""How fast ``plan`` and ``run --profile`` say that a program is."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

import shrinkc
from helpers.tiny_llama import write_tiny_llama
from shrinkc.costs import cost_table
from shrinkc.errors import UsageError

from .conftest import Cli

Needs = Callable[..., None]

SPEED = {
    "position", "clock_mhz", "decode", "prefill", "error", "not_calibrated", "model",
}  # fmt: skip
PASS = {"tokens", "cycles_per_token", "tokens_per_second", "limit", "busy", "ops"}


LENGTH = 200


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_tiny_llama(
        folder, hidden=64, intermediate=176, layers=2, heads=8, kv_heads=4, max_position=256
    )
    return folder


def test_for_programs(cli: Cli, long: Path) -> None:
    result = cli("plan", long, "--context", 64, "--json")
    assert result.code == 0
    speed = result.json["speed"]
    assert set(speed) == SPEED and set(speed["decode"]) == set(speed["prefill"]) == PASS
    assert speed["position"] == speed["prefill"]["tokens"] == 63  # of 64 positions the last
    assert speed["clock_mhz"] == 72 and speed["not_calibrated"] == []
    for name in ("decode", "prefill"):
        part = speed[name]
        assert sum(part["ops"].values()) == pytest.approx(part["cycles_per_token"], rel=1e-3)
        rate = 72e6 / part["cycles_per_token"]
        assert part["tokens_per_second"] == pytest.approx(rate, rel=1e-3)
        assert part["limit"] in part["busy"] and 0.4 < part["busy"]["cores"] <= 1.1
    assert speed["prefill"]["cycles_per_token"] < speed["decode"]["cycles_per_token"]
    table = cost_table("siracusa")
    assert table is not None and table.passes is not None
    assert speed["error"]["passes"]["median"] == table.passes.median
    assert set(speed["error"]["ops"]) == set(table.errors)
    assert speed["model"] == table.made


def test_for_people(cli: Cli, long: Path) -> None:
    said = cli("plan", long, "--context", LENGTH, "-v").out
    lines: dict[str, str] = {}
    for line in said.splitlines()[2:]:
        name, text = line.split(maxsplit=1)
        lines.setdefault(name, text)
    speed = r"[\d,]+ cycles per token, [\d,.]+ tokens/s at 72 MHz"
    assert re.fullmatch(speed, lines["decode"]) and re.fullmatch(speed, lines["prefill"])
    assert lines["estimates"] == "median error 2.1 %; 72 MHz is GVSoC's default clock"
    assert lines["estimated"].startswith("for  64 cached tokens (decode), 64 prompt tokens")
    assert re.fullmatch(r"by +\w+ \(busy \d+ %\) in decode, .* in prefill", lines["limited"])
    assert lines["error"].endswith("held-out runs)")
    short = cli("plan", long, "--context", LENGTH).out
    assert "held-out" not in short and "N-EUREKA" in short


def test_position_and_clock(cli: Cli, long: Path) -> None:
    def speed(*options: object) -> dict[str, object]:
        result = cli("plan", long, "--context", LENGTH, "--json", *options)
        assert result.code == 0
        found: dict[str, object] = result.json["speed"]
        return found

    early, late = speed("--position", 1), speed("--position", LENGTH - 1)
    assert (early["position"], late["position"]) == (1, LENGTH - 1)
    assert early["decode"]["cycles_per_token"] < late["decode"]["cycles_per_token"]  # type: ignore[index]
    twice = speed("--position", 1, "--clock", 144)
    assert twice["clock_mhz"] == 144
    assert twice["decode"]["tokens_per_second"] == pytest.approx(  # type: ignore[index]
        2 * early["decode"]["tokens_per_second"], rel=1e-4  # type: ignore[index]
    )  # fmt: skip
    text = cli("plan", long, "--context", LENGTH, "--clock", 144).out
    assert " at 144 MHz\n" in text and "simulator's default" not in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--position", 0), "--position 0 is not possible"),
        (("--position", 64), "--position 64 is not possible at context 64. Hint: allowed: 1 to 63"),
        (("--clock", 0), "--clock 0 is not possible"),
        (("--clock", "nan"), "--clock nan is not possible"),
        (("--clock", "-5"), "--clock -5 is not possible"),
    ],
)
def test_what_is_not_possible(
    cli: Cli, long: Path, options: tuple[object, ...], message: str
) -> None:
    result = cli("plan", long, "--context", 64, *options)
    assert (result.code, result.out) == (2, "")
    assert message in result.words


def test_a_target_that_was_not_calibrated(cli: Cli, long: Path) -> None:
    result = cli("plan", long, "--target", "host", "--json")
    assert result.code == 0 and result.json["speed"] is None
    text = cli("plan", long, "--target", "host").out
    assert re.search(r"^  speed +not estimated: there is no cost model for host$", text, re.M)


def test_from_python(long: Path) -> None:
    planned = shrinkc.plan(long, context=64, position=10, clock=100.0)
    assert planned.fits
    speed = planned.speed
    assert speed is not None and (speed.position, speed.clock_mhz) == (10, 100.0)
    assert speed.decode.cycles > 0 and speed.tokens_per_second(speed.decode) == pytest.approx(
        1e8 / speed.decode.cycles
    )
    with pytest.raises(UsageError, match="--position -1"):
        shrinkc.plan(long, position=-1)


def test_no_heavy_library_is_needed(long: Path) -> None:
    """A plan with its speed does not import torch; a moment is all it takes."""
    code = (
        "import sys; from shrinkc.cli.main import run_cli; code = run_cli(['plan', '-q', sys.argv[1]]);"
        "sys.exit(code or ' '.join({'torch', 'transformers', 'scipy'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(long)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_timeline_is_of_a_profile(cli: Cli, compiled: Path, tmp_path: Path) -> None:
    result = cli("run", compiled, "--timeline", tmp_path / "t.svg")
    assert (result.code, result.out) == (2, "")
    assert "--timeline needs a profile" in result.words
    assert not (tmp_path / "t.svg").exists()


@pytest.mark.gvsoc
def test_predicted_beside_measured(cli: Cli, compiled: Path, tmp_path: Path, needs: Needs) -> None:
    needs("make", "riscv64-unknown-elf-gcc", "gvsoc")
    picture = tmp_path / "t.svg"
    options = ["--on", "gvsoc", "--prompt-ids", "1,5,7", "--tokens", 3, "--ignore-eos", "--profile"]
    result = cli("run", compiled, *options, "--json", "--timeline", picture)
    assert result.code == 0 and result.json["verdict"]["mismatched"] == 0
    for name in ("prefill", "decode"):
        phase = result.json["profile"][name]
        rows = {row["op"]: row for row in phase["ops"]}
        assert all(row["predicted"] > 0 for row in rows.values())
        assert sum(row["predicted"] for row in rows.values()) == pytest.approx(
            phase["predicted"], rel=1e-3
        )
        # a model much smaller than what was calibrated: the right size, no more is asked here
        assert phase["predicted"] == pytest.approx(phase["counted"], rel=0.4)
    text = cli("run", compiled, *options).err
    heads = [line.split() for line in text.splitlines() if "load-use" in line]
    assert [head[:4] for head in heads] == 2 * [["cycles", "predicted", "off", "share"]]
    whole = [line for line in text.splitlines() if line.startswith("all ")]
    assert len(whole) == 2 and all("%" in line for line in whole)
    root = ET.fromstring(picture.read_text())
    notes = [e.text or "" for e in root.iter("{http://www.w3.org/2000/svg}title")]
    assert any(note.startswith("layer 1 attn: ") for note in notes)
    assert any(" busy " in note for note in notes)
