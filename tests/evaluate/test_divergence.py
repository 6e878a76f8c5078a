"""Divergence of a model from its base: against the definition, with fakes, and of a program from its model."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import shrinkc
from helpers.tiny_llama import write_tiny_llama
from shrinkc.build import find_tool
from shrinkc.cli.main import run_cli
from shrinkc.core.errors import BadWeights, RunChanged, UsageError
from shrinkc.core.journal import Journal
from shrinkc.core.progress import Silent
from shrinkc.evaluation import EvalPlan, divergence, evaluate, made_from
from shrinkc.evaluation.rows import figures

from .fake_scorer import FakeScorer

TEXT = (
    "The cat sat. A hen ran to the mat, and so on and so forth; that is what cats and hens do. " * 4
)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def plan(text: Path) -> EvalPlan:
    return EvalPlan(text=text, protocol="wikitext64", windows=3)


def without_seconds(report: dict[str, Any]) -> dict[str, Any]:
    return {
        **report,
        "perplexity": {k: v for k, v in report["perplexity"].items() if k != "seconds"},
    }


# ---- by definition ----


def probabilities(scorer: FakeScorer, before: int) -> list[float]:
    odds = [math.exp(scorer.logit(before, token)) for token in range(scorer.vocab)]
    return [each / math.fsum(odds) for each in odds]


def test_figures_are_those_of_the_definition(plan: EvalPlan) -> None:
    model, base = FakeScorer(sharpness=0.25), FakeScorer(sharpness=-0.5)
    result: Any = evaluate(model, plan, Silent(), base=base)["perplexity"]
    ids = list(TEXT.encode())
    divergences, excess, losses, same = [], [], [], 0
    for at in range(0, 3 * 64, 64):
        window = ids[at : at + 64]
        for before, token in zip(window, window[1:], strict=False):
            q, p = probabilities(model, before), probabilities(base, before)
            divergences.append(math.fsum(b * math.log(b / a) for a, b in zip(q, p, strict=True)))
            losses.append(-math.log(q[token]))
            excess.append(math.log(p[token]) - math.log(q[token]))
            same += q.index(max(q)) == p.index(max(p))
    count = 3 * 63
    about = result["base"]
    assert about["divergence"] == pytest.approx(math.fsum(divergences) / count)
    assert about["ratio"] == pytest.approx(math.exp(math.fsum(excess) / count))
    assert about["same_greedy"] == same / count
    assert result["perplexity"] == pytest.approx(math.exp(math.fsum(losses) / count))
    assert result["perplexity"] / about["perplexity"] == pytest.approx(about["ratio"])
    means = [np.mean(divergences[at : at + 63]) for at in range(0, count, 63)]
    error = np.std(means, ddof=1) / math.sqrt(3)
    assert about["divergence_standard_error"] == pytest.approx(error)
    means = [np.mean(excess[at : at + 63]) for at in range(0, count, 63)]
    error = np.std(means, ddof=1) / math.sqrt(3) * about["ratio"]
    assert about["ratio_standard_error"] == pytest.approx(error)
    assert about["divergence"] > 0.1 and same == 0  # of models that are far apart


def test_a_model_is_no_distance_from_itself(plan: EvalPlan) -> None:
    result: Any = evaluate(FakeScorer(), plan, Silent(), base=FakeScorer())["perplexity"]
    about = result["base"]
    assert (about["divergence"], about["ratio"], about["same_greedy"]) == (0.0, 1.0, 1.0)
    assert about["perplexity"] == result["perplexity"]


class Loud(FakeScorer):
    def logit(self, before: int, token: int) -> float:
        return super().logit(before, token) + 10_000


def test_what_all_logits_have_in_common_does_not_matter(plan: EvalPlan) -> None:
    """exp(10,000) is no number."""
    want, loud = (
        evaluate(model, plan, Silent(), base=FakeScorer())["perplexity"]["base"]  # type: ignore[index]
        for model in (FakeScorer(sharpness=0.25), Loud(sharpness=0.25))
    )
    assert loud["divergence"] == pytest.approx(want["divergence"])
    assert loud["ratio"] == pytest.approx(want["ratio"])


@pytest.mark.parametrize("rows", [1, 7, 63])
def test_slices_do_not_matter(plan: EvalPlan, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    whole, sliced = (FakeScorer(sharpness=0.25) for _ in range(2))
    want = without_seconds(evaluate(whole, plan, Silent(), base=FakeScorer()))
    monkeypatch.setattr(divergence, "ROWS", rows)
    assert without_seconds(evaluate(sliced, plan, Silent(), base=FakeScorer())) == want


def test_one_window_has_no_spread(text: Path) -> None:
    plan = EvalPlan(text=text, protocol="wikitext64", windows=1)
    report: Any = evaluate(FakeScorer(), plan, Silent(), base=FakeScorer(sharpness=0.25))
    about = report["perplexity"]["base"]
    assert about["divergence_standard_error"] is None and about["ratio_standard_error"] is None
    shown = {row[0]: row for row in figures(report)}
    assert shown["divergence"] == (
        "divergence", f"{about['divergence']:.5f}", "", "nats per token, from fake",
    )  # fmt: skip


# ---- what cannot be compared ----


class Shouting(FakeScorer):
    def encode(self, text: str, *, special: bool) -> list[int]:
        return super().encode(text.upper(), special=special)


class Broken(FakeScorer):
    def __init__(self, *, name: str, value: float) -> None:
        super().__init__(name=name)
        self.value = value

    def next_logits(self, sequence: Sequence[int], rows: int) -> Iterator[NDArray]:
        for part in super().next_logits(sequence, rows):
            part[-1, 3] = self.value
            yield part


@pytest.mark.parametrize(
    ("base", "says"),
    [
        (FakeScorer(vocab=300, name="large"), "large has 300 tokens, fake has 257"),
        (Shouting(name="loud"), "loud has other tokens for this text than fake"),
        (FakeScorer(max_length=63, name="short"), "wikitext64 needs 64 positions, short has 63"),
    ],
)
def test_models_that_cannot_be_compared(plan: EvalPlan, base: FakeScorer, says: str) -> None:
    model = FakeScorer()
    with pytest.raises(UsageError, match=says):
        evaluate(model, plan, Silent(), base=base)
    assert model.asked == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_refused(plan: EvalPlan, value: float) -> None:
    broken, whole = Broken(name="broken", value=value), FakeScorer()
    for model, base in ((broken, whole), (whole, broken)):
        with pytest.raises(BadWeights, match="a logit of broken is not a finite number"):
            evaluate(model, plan, Silent(), base=base)


def test_windows_fit_the_shorter_of_both(text: Path) -> None:
    for long, short in ((600, 130), (130, 600)):
        model, base = FakeScorer(max_length=long), FakeScorer(max_length=short)
        plan = EvalPlan(text=text, protocol=None, windows=2)
        report: Any = evaluate(model, plan, Silent(), base=base)
        assert report["perplexity"]["protocol"] == "wikitext128"


# ---- interrupted ----


def test_what_is_kept_is_not_compared_again(plan: EvalPlan, tmp_path: Path) -> None:
    model, base, reports = FakeScorer(sharpness=0.25), FakeScorer(), []
    want = without_seconds(evaluate(FakeScorer(sharpness=0.25), plan, Silent(), base=base))
    for lines, asked in ((None, [1, 1, 1]), (4, [1]), (None, [])):
        journal = Journal(tmp_path / "kept", made_from(model, plan, base))
        model.asked.clear()
        reports.append(without_seconds(evaluate(model, plan, Silent(), journal, base)))
        journal.close()
        assert [len(part) for part in model.asked] == asked
        if lines is None and asked:  # the last window is lost
            kept = (tmp_path / "kept").read_bytes().splitlines(keepends=True)
            (tmp_path / "kept").write_bytes(b"".join(kept[:-1]))
    assert reports == [want] * 3


def test_another_base_is_another_evaluation(plan: EvalPlan, tmp_path: Path) -> None:
    model = FakeScorer()
    journal = Journal(tmp_path / "kept", made_from(model, plan, FakeScorer(name="a")))
    evaluate(model, plan, Silent(), journal, FakeScorer(name="a"))
    journal.close()
    with pytest.raises(RunChanged, match="base.name: a → b"):
        Journal(tmp_path / "kept", made_from(model, plan, FakeScorer(name="b")))


# ---- a program and the model that it was made from ----


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a float model and its compiled program."""
    folder = tmp_path_factory.mktemp("models")
    write_tiny_llama(
        folder / "tiny", hidden=32, intermediate=48, heads=4, kv_heads=2, max_position=128
    )
    options = ["--target", "host", "--context", "96"]
    assert run_cli(["compile", str(folder / "tiny"), "-o", str(folder / "out"), *options]) == 0
    return folder / "tiny", folder / "out"


@pytest.mark.libraries("torch", "transformers")
def test_a_program_and_its_model(models: tuple[Path, Path], text: Path) -> None:
    model, program = models
    options: dict[str, Any] = {"text": text, "windows": 2, "protocol": "wikitext64"}
    report = shrinkc.evaluate(program, base=model, engine="interpreter", threads=1, **options)
    result, about = report["perplexity"], report["perplexity"]["base"]
    alone = shrinkc.evaluate(program, engine="interpreter", **options)["perplexity"]
    assert result["loss"] == pytest.approx(alone["loss"], abs=1e-12)
    assert {
        k: result[k] for k in alone if "loss" not in k and "perp" not in k and k != "seconds"
    } == {k: alone[k] for k in alone if "loss" not in k and "perp" not in k and k != "seconds"}
    other = shrinkc.evaluate(model, threads=1, **options)["perplexity"]
    assert about["perplexity"] == pytest.approx(other["perplexity"], rel=1e-6)
    assert 0 < about["divergence"] < 0.01
    assert about["ratio"] == pytest.approx(1, abs=0.02)
    # the other way round: what is the program's base is a program
    back = shrinkc.evaluate(model, base=program, engine="interpreter", threads=1, **options)
    assert back["perplexity"]["base"]["ratio"] == pytest.approx(1 / about["ratio"])
    assert back["perplexity"]["base"]["model"]["kind"] == "compiled"


@pytest.mark.libraries("torch", "transformers")
def test_two_float_models(tmp_path: Path, text: Path) -> None:
    """Torch uses the larger model's number of threads, and its setting is restored afterwards."""
    import torch

    from shrinkc.checkpoints import suited_threads

    small, large = tmp_path / "small", tmp_path / "large"
    write_tiny_llama(small, hidden=32, heads=2, max_position=128)
    write_tiny_llama(large, hidden=256, heads=2, max_position=128)
    options: dict[str, Any] = {"text": text, "windows": 2, "protocol": "wikitext64"}
    threads, wanted = torch.get_num_threads(), suited_threads(256)
    for model, base in ((small, large), (large, small)):
        report = shrinkc.evaluate(model, base=base, **options)
        assert torch.is_grad_enabled() and torch.get_num_threads() == threads
        about = report["perplexity"]["base"]
        assert report["model"]["threads"] == about["model"]["threads"] == wanted
        assert about["divergence"] > 0
    # keys and values of few bits are the measured model's alone
    rounded = shrinkc.evaluate(large, base=large, kv_bits=2, **options)
    about = rounded["perplexity"]["base"]
    assert rounded["model"]["kv_bits"] == 2 and "kv_bits" not in about["model"]
    assert about["divergence"] > 0


@pytest.mark.libraries("torch", "transformers")
def test_a_base_that_has_changed(models: tuple[Path, Path], text: Path, tmp_path: Path) -> None:
    model, program = models
    base = tmp_path / "base"
    shutil.copytree(model, base)
    options: dict[str, Any] = {
        "text": text, "windows": 1, "engine": "interpreter", "resume": tmp_path / "kept",
    }  # fmt: skip
    shrinkc.evaluate(program, base=base, **options)
    write_tiny_llama(
        base, hidden=32, intermediate=48, heads=4, kv_heads=2, max_position=128, seed=9
    )
    with pytest.raises(RunChanged, match="the base's model.safetensors has other content"):
        shrinkc.evaluate(program, base=base, **options)


def test_both_engines_say_the_same(models: tuple[Path, Path], text: Path) -> None:
    if not all(find_tool(name, dict(os.environ)).usable for name in ("cc", "make")):
        pytest.skip("no C compiler")
    program = models[1]
    options: dict[str, Any] = {"text": text, "windows": 2, "base": program}
    found = [shrinkc.evaluate(program, engine=on, **options) for on in ("host", "interpreter")]
    host, interpreter = (report["perplexity"] for report in found)
    assert host["loss"] == interpreter["loss"]
    assert host["base"]["divergence"] == interpreter["base"]["divergence"] == 0


@pytest.mark.libraries("torch", "transformers")
def test_the_table(
    models: tuple[Path, Path], text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, program = map(str, models)
    command = ["eval", program, "--base", model, "--text", str(text), "--windows", "2"]
    out = tmp_path / "report.json"
    assert run_cli([*command, "--engine", "interpreter", "-o", str(out)]) == 0
    about = json.loads(out.read_text())["perplexity"]["base"]
    shown = capfd.readouterr().out.splitlines()
    assert shown[-3].split() == [
        "divergence", f"{about['divergence']:.5f}", f"{about['divergence_standard_error']:.5f}",
        "nats", "per", "token,", "from", "tiny",
    ]  # fmt: skip
    assert shown[-2].split()[:3] == ["perplexity", "ratio", f"{about['ratio']:.5f}"]
    assert shown[-1].split()[-2:] == ["as", "tiny"]
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("model", "base", "options", "says"),
    [
        ("out", "tiny", ["--sample", "a"], "needs a text on which the models are compared"),
        (
            "out",
            "out",
            ["--text={text}", "--dtype", "float32"],
            "--dtype cannot be used with {out}",
        ),
        ("out", "tiny", ["--text={text}", "--batch", "2"], "--batch cannot be used with {out}"),
        (
            "tiny",
            "tiny",
            ["--text={text}", "--engine", "host"],
            "{tiny} is not a compiled directory",
        ),
    ],
)
def test_refusals(
    models: tuple[Path, Path], text: Path, capfd: pytest.CaptureFixture[str],
    model: str, base: str, options: list[str], says: str,
) -> None:  # fmt: skip
    names: dict[str, Any] = {"tiny": models[0], "out": models[1], "text": text}
    given = [option.format(**names) for option in options]
    assert run_cli(["eval", str(names[model]), "--base", str(names[base]), *given]) == 2
    shown = capfd.readouterr()
    assert shown.out == "" and says.format(**names) in " ".join(shown.err.split())
