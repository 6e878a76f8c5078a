"""The speed benchmark: how figures are computed from runs, and that its commands are valid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import speed
import speed_rows

from shrinkc.cli.main import cli


def run(decode: int, prompt: int, prefill: int = 0) -> dict[str, Any]:
    return {
        "prompt_tokens": list(range(prompt)), "cycles": {"decode": [1, decode], "prefill": prefill}
    }  # fmt: skip


def test_figures_of_runs() -> None:
    """The last decode step counts: jobs are prepared in the first."""
    one, other = run(700, 7, 640), run(1500, 15)
    assert speed_rows.decode([one], []) == 700
    assert speed_rows.each_cached([one, other], []) == 100
    assert speed_rows.prefill([one], []) == 640
    assert speed_rows.ratio([other, one], []) == 1500 / 700
    assert speed_rows.least([other, one], []) == 700
    assert speed_rows.prefill_to_decode([one], []) == 640 / 700
    assert speed_rows.bus_share([one | {"weights_in_flash": 665}], []) == 95


def test_figures_of_drafts() -> None:
    """Per new token after the first one; another text is refused."""
    plain = {"new_tokens": [5, 6, 7, 8, 9], "cycles": {"decode": [100, 100, 100, 100]}}
    drafted = plain | {
        "cycles": {"decode": [110, 130]}, "prompt_lookup": {"drafted": 6, "accepted": 2},
    }  # fmt: skip
    assert (speed_rows.each_token([plain], []), speed_rows.each_token([drafted], [])) == (100, 60)
    assert speed_rows.times_as_fast([plain, drafted], []) == 100 / 60
    assert speed_rows.accepted([drafted], []) == 100 / 3
    assert speed_rows.times_as_fast([plain | {"new_tokens": [5, 6]}, drafted], []) == 400 / 60
    with pytest.raises(ValueError, match=r"drafts changed the text: .*9\], .*1\]"):
        speed_rows.times_as_fast([plain, drafted | {"new_tokens": [5, 6, 7, 8, 1]}], [])


def test_products_of_a_layer() -> None:
    """Two layers of width 64: weights, and attention of 8 heads of 8; in prefill only the first layer."""
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
    assert (
        speed_rows.layer_macs("prefill")([found], [config]) == (3 * weights / 2 + 2 * 64 * 6) / 500
    )
    assert speed_rows.layer_macs("decode")([found], [config]) == (weights + 2 * 2 * 64 * 4.5) / 1000


def test_a_row_says_whether_its_target_is_met() -> None:
    at_most = speed_rows.Row(
        "w", "what", "cycles", (), speed_rows.prefill, target=100_000, twice=True
    )
    found = at_most.figures(99_999.6, 114_999)
    assert (found["met"], found["met_code_in_l2"]) == (True, True)
    assert found["formats"]["target"].format(100_000) == "≤ 100,000"
    assert at_most.figures(100_001, 115_001)["met_code_in_l2"] is False
    assert at_most.figures(100_001)["met"] is False and at_most.figures(1)["code_in_l2"] is None
    at_least = speed_rows.Row(
        "w", "what", "MAC", (), speed_rows.prefill, target=35, least=True, digits=1
    )
    assert at_least.figures(35.04, 30.5)["met_code_in_l2"] is True
    assert at_least.figures(34.9, 30.4)["met"] is at_least.in_l2.met(30.4) is False
    assert speed_rows.Row("w", "what", "MAC", (), speed_rows.prefill).figures(7)["met"] is None


PROGRAMS = {
    program
    for row in (*speed_rows.ROWS, *(r.in_l2 for r in speed_rows.ROWS if r.twice), *speed_rows.FLASH)
    for program in row.programs
}


def test_programs_can_be_compiled_and_run() -> None:
    assert len(PROGRAMS) > 20
    assert all(p.prompt < p.context for p in PROGRAMS)
    assert len({p.name for p in PROGRAMS}) == len(
        {(p.model, p.context, p.options) for p in PROGRAMS}
    )
    for program in PROGRAMS:
        for name, *words in program.commands("MODEL", "OUT"):
            cli.commands[name].make_context(name, words)


def test_a_row_without_what_it_needs_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def row(name: str, **words: Any) -> speed_rows.Row:
        return speed_rows.Row(name, name, "cycles", (), lambda runs, configs: 3.0, **words)

    bench = speed.Bench(tmp_path)
    found = list(bench.rows([row("here", twice=True), row("a file's", needs=("smollm2",))]))
    assert [(r["id"], r["measured"], r["code_in_l2"]) for r in found] == [("here", 3.0, 3.0)]
    assert "left out, without --smollm2: a file's\n" in capsys.readouterr().err
    bench.given["smollm2"] = tmp_path / "file"
    assert len(list(bench.rows([row("a file's", needs=("smollm2",))]))) == 1


def test_every_row_of_the_benchmark_has_its_figure() -> None:
    for name, rows in (("speed", speed_rows.ROWS), ("flash", speed_rows.FLASH)):
        known = speed.figures.read(name)["rows"]
        assert [(r["id"], r["what"], r["unit"], r["target"]) for r in known] == [
            (r.id, r.what, r.unit, r.target) for r in rows
        ]
    ids = [f"{m}_{f}" for m in speed_rows.MODELS for f in speed_rows.FORMATS]
    assert [r["id"] for r in speed.figures.read("cycles")["rows"]] == ids


@pytest.mark.slow
def test_what_is_predicted(tmp_path: Path) -> None:
    """Of a model that does not fit, what it needs; of the others cycles and what limits them."""
    layer, *whole = speed.predictions(tmp_path)
    assert layer["id"] == "llama1b_layer_4bit" and layer["flash_bytes"] > 24 << 20
    assert [row["bits"] for row in whole] == list(speed.BITS)
    assert whole[0]["need_bytes"] == 618_883_584 and "does not fit" in whole[0]["limit"]
    for row in (layer, *whole[1:]):
        assert row["tokens_per_second"] == pytest.approx(72e6 / row["cycles"], abs=1e-3)
        assert ", busy " in row["limit"]
    assert whole[1]["cycles"] > whole[2]["cycles"] > 8 * layer["cycles"]
