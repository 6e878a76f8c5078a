"""examples/bench/performance.py: figures from runs, and a page that says how they were got."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from shrinkc.cli.main import cli

BENCH = Path(__file__).resolve().parents[2] / "examples" / "bench"


@pytest.fixture(scope="module")
def script() -> Any:
    """The module of examples/bench/performance.py."""
    sys.path.insert(0, str(BENCH))
    try:
        spec = importlib.util.spec_from_file_location("performance", BENCH / "performance.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["performance"] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(BENCH))


@pytest.fixture(scope="module")
def bars(script: Any) -> Any:
    """The module of examples/bench/bars.py."""
    return sys.modules["bars"]


def run(decode: int, prompt: int, prefill: int = 0) -> dict[str, Any]:
    return {
        "prompt_tokens": list(range(prompt)), "cycles": {"decode": [1, decode], "prefill": prefill}
    }  # fmt: skip


def test_figures_of_runs(bars: Any) -> None:
    """The last decode step: what is made once is made by then."""
    one, other = run(700, 7, 640), run(1500, 15)
    assert bars.decode([one], []) == 700
    assert bars.each_cached([one, other], []) == 100
    assert bars.prefill([one], []) == 640
    assert bars.ratio([other, one], []) == 1500 / 700
    assert bars.least([other, one], []) == 700
    assert bars.prefill_to_decode([one], []) == 640 / 700
    assert bars.bus_share([one | {"weights_in_flash": 665}], []) == 95


def test_figures_of_drafts(bars: Any) -> None:
    """Per token that came after the first, whatever the passes; of another text there is none."""
    plain = {"new_tokens": [5, 6, 7, 8, 9], "cycles": {"decode": [100, 100, 100, 100]}}
    drafted = plain | {
        "cycles": {"decode": [110, 130]}, "lookup": {"drafted": 6, "accepted": 2},
    }  # fmt: skip
    assert (bars.each_token([plain], []), bars.each_token([drafted], [])) == (100, 60)
    assert bars.times_as_fast([plain, drafted], []) == 100 / 60
    assert bars.accepted([drafted], []) == 100 / 3
    assert bars.times_as_fast([plain | {"new_tokens": [5, 6]}, drafted], []) == 400 / 60
    with pytest.raises(ValueError, match=r"drafts changed the text: .*9\], .*1\]"):
        bars.times_as_fast([plain, drafted | {"new_tokens": [5, 6, 7, 8, 1]}], [])


def test_products_of_a_layer(bars: Any) -> None:
    """Two layers of 64: weights, and scores and values of 8 heads of 8 at every position; of a prompt the first."""
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 512, "hidden_size": 64,
        "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 64, "rope_theta": 1e4, "hidden_act": "silu",
        "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    weights = 2 * (64 * 64 * 2 + 2 * 64 * 32 + 3 * 64 * 160)
    layers = [{"layer": at, "op": "qkv", "cycles": 500.0} for at in range(2)]
    found = {
        "prompt_tokens": [1, 5, 7], "new_tokens": [2, 3, 4],
        "profile": {"prefill": {"layers": layers}, "decode": {"layers": layers}},
    }  # fmt: skip
    # 3 tokens see 1 + 2 + 3 positions; 2 decode steps 4 and 5
    assert bars.layer_macs("prefill")([found], [config]) == (3 * weights / 2 + 2 * 64 * 6) / 500
    assert bars.layer_macs("decode")([found], [config]) == (weights + 2 * 2 * 64 * 4.5) / 1000


def test_a_row_says_whether_the_bar_is_met(bars: Any) -> None:
    at_most = bars.Row(
        "w", (), bars.prefill, bar=100_000, aim=71_000, published="780,000", twice=True
    )
    assert at_most.cells(99_999.6) == [
        "w", "**100,000**", "–", "≤ 100,000", "71,000", "yes", "780,000", "–",
    ]  # fmt: skip
    assert at_most.cells(100_001)[5] == "no"
    assert at_most.cells(100_001, 114_999)[2:6] == ["**114,999**", "≤ 100,000", "71,000", "no, yes"]
    assert at_most.cells(99_000, 115_001)[5] == "yes, no"
    at_least = bars.Row("w", (), bars.prefill, bar=35, aim=50, least=True, digits=1)
    assert at_least.cells(35.04)[1:6] == ["**35.0**", "–", "≥ 35.0", "50.0", "yes"]
    assert at_least.cells(34.9)[5] == "no"
    assert at_least.cells(34.9, 30.5)[5] == "no, yes" and at_least.cells(35, 30.4)[5] == "yes, no"
    assert bars.Row("w", (), bars.prefill).cells(7)[1:6] == ["**7**", "–", "–", "–", "–"]


def test_the_page(script: Any) -> None:
    values = [(row, 1.0, 2.0 if row.twice else None) for row in script.ROWS]
    text = script.page(values, 1234)
    for row in script.ROWS:
        assert f"| {row.what} | **" in text
    assert "1,234 integers" in text and script.SIMULATOR in text and "780,000" in text
    assert "| cost model, per op" in text
    commands = commands_of(text)
    assert len(commands) >= 28
    moved = [line for line in commands if line.endswith("-code-l2") and " --code l2 " in line]
    assert len(moved) == 8  # a compilation each


def test_the_page_of_models_in_flash(script: Any) -> None:
    values = [(row, 1.0, None) for row in script.FLASH]
    text = script.flash_page(values, 1234, ["| a plan |"])
    for row in script.FLASH:
        assert f"| {row.what} | **" in text
    assert "1,234 integers" in text and script.SIMULATOR in text and "\n| a plan |\n" in text
    assert len(commands_of(text)) == 5


def commands_of(text: str) -> list[str]:
    """Those of a page, each of which the command line knows."""
    commands = [line for line in text.splitlines() if line.startswith("shrinkc ")]
    assert len(commands) == len(set(commands))
    for line in commands:
        words = shlex.split(line)[1:]
        command = cli.commands[words[0]]
        command.make_context(words[0], words[1:], resilient_parsing=False)
    return commands


def test_rows_without_what_they_need_are_left_out(
    script: Any, bars: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bench = script.Bench(tmp_path)
    rows = [bars.Row("here", (), lambda runs, configs: 3.0, twice=True),
            bars.Row("a file's", (), lambda runs, configs: 4.0, needs=("smollm2",))]  # fmt: skip
    assert list(bench.values(rows)) == [(rows[0], 3.0, 3.0)]
    assert "left out, without --smollm2: a file's\n" in capsys.readouterr().err
    bench.smollm2 = tmp_path / "file"
    assert list(bench.values(rows[1:])) == [(rows[1], 4.0, None)]


@pytest.mark.slow
def test_what_is_predicted(script: Any, tmp_path: Path) -> None:
    """Of a model that does not fit, what it lacks; of the others cycles and what limits them."""
    layer, *whole = [line.strip("| ").split(" | ") for line in script.predictions(tmp_path)[2:]]
    assert layer[0] == "llama-3.2-1b-layer" and int(layer[4].replace(",", "")) > 24 << 20
    assert [row[1] for row in whole] == [str(bits) for bits in script.WIDTHS]
    assert whole[0][7] == "does not fit: 618,883,584 bytes of weights"
    cycles = [float(row[5].replace(",", "")) for row in (layer, *whole[1:])]
    for row, each in zip((layer, *whole[1:]), cycles, strict=True):
        assert row[6] == f"{72e6 / each:.3f}" and ", busy " in row[7]
    assert cycles[1] > cycles[2] > 8 * cycles[0]


def test_gains_are_kept(script: Any) -> None:
    """symptom, cause, fix, before, after, of, commit: on the page as in the text that is kept."""
    kept = script.GAINS.read_text(encoding="utf-8")
    assert f"\n\n{kept}\n## Commands\n" in script.page([], 0)
    assert f"\n\n{kept}\n## Commands\n" in script.PAGE.read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in kept.splitlines() if line.startswith("| ")]
    assert rows[0] == ["symptom", "cause", "fix", "before", "after", "of", "commit"]
    for row in rows[1:]:
        before, after = (float(cell.split()[0].replace(",", "")) for cell in row[3:5])
        unit, other = (cell.partition(" ")[2] for cell in row[3:5])
        thousands = {"k": 1000.0}
        assert after * thousands.get(other, 1) < before * thousands.get(unit, 1), row
        assert re.fullmatch(r"[0-9a-f]{7}", row[6]), row
    assert len(rows) > 12


def test_programs_fit_their_contexts(script: Any) -> None:
    rows = [*script.ROWS, *(row.in_l2 for row in script.ROWS if row.twice), *script.FLASH]
    names = {program.name for row in rows for program in row.programs}
    programs = {program for row in rows for program in row.programs}
    assert len(names) == len({(p.model, p.context, p.options) for p in programs})
    assert all((p.prompt or 1) < p.context for p in programs)


def test_a_page_is_compared_with_the_one_before(script: Any) -> None:
    """Every figure of both pages; slower ones first, of cycles the larger, per cycle the smaller."""
    changes = sys.modules["changes"]
    before = (
        "# Page\n\n| what | measured | bar | met |\n|---|---:|---:|---|\n"
        "| decode | **1,000** | ≤ 900 | no |\n| same, at 8 | **2,000** | ≤ 900 | no |\n"
        "| layer: MAC per cycle | **29.2** | ≥ 35.0 | no |\n\n"
        "| model | weights | context | position 1 | values compared |\n|---|---|---|---|---|\n"
        "| stories | 8 bit | 64 | 83,325 | 33,770 |\n"
    )
    assert changes.figures(before) == {
        "decode": {"measured": 1000}, "decode: same, at 8": {"measured": 2000},
        "layer: MAC per cycle": {"measured": 29.2}, "stories, 8 bit": {"position 1": 83325},
    }  # fmt: skip
    assert changes.changes(before, before) == []
    after = before.replace("2,000", "2,100").replace("29.2", "28.0").replace("83,325", "80,000")
    assert changes.changes(before, after) == [
        "slower: decode: same, at 8.measured: 2,000 -> 2,100 (+5.0 %)",
        "slower: layer: MAC per cycle.measured: 29.2 -> 28 (-4.1 %)",
        "faster: stories, 8 bit.position 1: 83,325 -> 80,000 (-4.0 %)",
    ]
    renamed = changes.changes(before, before.replace("| stories |", "| tales |"))
    assert renamed == ["gone: stories, 8 bit.position 1", "new: tales, 8 bit.position 1"]


def test_every_figure_of_the_pages_is_compared(script: Any) -> None:
    results = BENCH.parents[1] / "docs" / "results"
    for name in ("performance.md", "cycles.md", "flash.md"):
        page = (results / name).read_text(encoding="utf-8")
        found = sys.modules["changes"].figures(page)
        assert len(found) >= 10
        assert all(v > 0 for row in found.values() for v in row.values())
