"""Scorer of a compiled directory: both engines, and tokens equal to the float model's."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from fidelity import integer_logits

from helpers.tiny_llama import write_tiny_llama
from shrinkc.build import find_tool
from shrinkc.checkpoints import load
from shrinkc.cli.main import run_cli
from shrinkc.core import artifact
from shrinkc.core.errors import BadArtifact, UsageError
from shrinkc.core.progress import Silent
from shrinkc.evaluation import (
    Choices,
    CompiledScorer,
    EvalPlan,
    TorchScorer,
    evaluate,
    token_losses,
)
from shrinkc.evaluation.compiled_scorer import ENGINES, Engine
from shrinkc.ir.serialize import load as load_ir

CONTEXT = 96
ENV = dict(os.environ)


def ignore(done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def float_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("float") / "tiny"
    write_tiny_llama(path, hidden=32, intermediate=48, heads=4, kv_heads=2, max_position=128)
    return path


@pytest.fixture(scope="module")
def directory(float_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compiled") / "tiny"
    options = ["--target", "host", "--context", str(CONTEXT)]
    assert run_cli(["compile", str(float_model), "-o", str(out), *options]) == 0
    return out


@pytest.fixture(params=ENGINES)
def scorer(directory: Path, request: pytest.FixtureRequest) -> CompiledScorer:
    on: Engine = request.param
    if on == "host" and not all(find_tool(name, ENV).usable for name in ("cc", "make")):
        pytest.skip("no C compiler")
    return CompiledScorer(directory, ENV, on=on)


def some_ids(*lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, 100, length).tolist() for length in lengths]


def test_losses_are_those_of_the_integer_model(scorer: CompiledScorer, directory: Path) -> None:
    logits_of = integer_logits(load_ir(directory / artifact.IR))
    sequences = some_ids(5, CONTEXT, 2)
    for got, ids in zip(scorer.losses(sequences, ignore), sequences, strict=True):
        want = token_losses(logits_of(np.array(ids[:-1])), ids[1:])
        np.testing.assert_array_equal(got, want)


def test_choices(scorer: CompiledScorer) -> None:
    (context, first, second) = some_ids(7, 3, 5)
    (got,) = scorer.predicted([Choices(context, [first, second])], ignore)
    whole = scorer.losses([context + first, context + second], ignore)
    np.testing.assert_array_equal(got[0].losses, whole[0][-3:])
    np.testing.assert_array_equal(got[1].losses, whole[1][-5:])


def test_text_is_greedy(scorer: CompiledScorer, directory: Path) -> None:
    graph = load_ir(directory / artifact.IR)
    logits_of = integer_logits(graph)
    prompts = some_ids(4, 9)
    for got, prompt in zip(scorer.generate(prompts, 12, ignore), prompts, strict=True):
        ids = list(prompt)
        for _ in range(12):
            token = int(np.argmax(logits_of(np.array(ids))[-1]))
            if token in graph.eos_ids:
                break
            ids.append(token)
        assert got == ids[len(prompt) :]


@pytest.mark.libraries("torch", "transformers")
def test_float_and_compiled_model_get_the_same_ids(directory: Path, float_model: Path) -> None:
    compiled = CompiledScorer(directory, ENV, on="interpreter")
    floating = TorchScorer(load(float_model))
    for text in ("the cat and the hen", " two  spaces", "line\nfeed", ""):
        for special in (False, True):
            assert compiled.encode(text, special=special) == floating.encode(text, special=special)
    ids = compiled.encode("the cat and the hen", special=True)
    assert compiled.decode(ids) == floating.decode(ids) == "the cat and the hen"


@pytest.mark.libraries("torch", "transformers")
def test_the_integer_model_is_close_to_the_float_one(directory: Path, float_model: Path) -> None:
    sequences = some_ids(40, 40)
    integer = CompiledScorer(directory, ENV, on="interpreter").losses(sequences, ignore)
    floating = TorchScorer(load(float_model)).losses(sequences, ignore)
    assert np.mean(integer) == pytest.approx(np.mean(floating), rel=0.02)


def test_a_context_that_is_too_short_says_what_to_compile(directory: Path, tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("the cat and the hen " * 200)
    scorer = CompiledScorer(directory, ENV, on="interpreter")
    with pytest.raises(
        UsageError, match="512 positions, tiny has 96.*--context 512.*--protocol wikitext64"
    ):
        evaluate(scorer, EvalPlan(text=text, windows=1), Silent())


def test_refusals(directory: Path, tmp_path: Path) -> None:
    scorer = CompiledScorer(directory, ENV, on="interpreter")
    with pytest.raises(UsageError, match="no chat template"):
        scorer.encode_chat("Hello")
    with pytest.raises(UsageError, match="no tokens"):
        scorer.generate([[]], 3, ignore)
    with pytest.raises(UsageError, match="no engine called 'qemu'"):
        CompiledScorer(directory, ENV, on="qemu")  # type: ignore[arg-type]
    with pytest.raises(BadArtifact, match=r"no manifest\.json"):
        CompiledScorer(tmp_path, ENV)
    damaged = tmp_path / "damaged"
    shutil.copytree(directory, damaged)
    (damaged / artifact.TOKENIZER).write_text("{}")
    with pytest.raises(BadArtifact, match=r"tokenizer\.json missing or changed since compiling"):
        CompiledScorer(damaged, ENV)


@pytest.mark.libraries("lm_eval")
def test_command(directory: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tasks = tmp_path / "tasks.txt"
    tasks.write_text("Play: Tom has a ball. He\n2\ngrew.\nbit the sky.\nplays with it.\nof.\n")
    arguments = ["eval", str(directory), f"--task=hellaswag={tasks}", "--sample", "the cat"]
    assert run_cli([*arguments, "--engine", "interpreter"]) == 0
    out = capfd.readouterr().out
    assert out.startswith("tiny (compiled, integer, on interpreter)\n")
    assert "hellaswag acc_norm" in out
    assert run_cli([*arguments, "--dtype", "bfloat16", "--batch", "2"]) == 2
    assert "--dtype and --batch cannot be used" in capfd.readouterr().err


def test_description(scorer: CompiledScorer) -> None:
    about = scorer.describe()
    assert (about["kind"], about["dtype"], about["layers"]) == ("compiled", "integer", 2)
    assert about["engine"] in ENGINES
    assert about["max_length"] == CONTEXT
