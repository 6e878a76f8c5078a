"""Stage reconstruct: the error of a block, its reduction by training, and the output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.compress.quantising import (
    COARSE,
    MIXED,
    RECIPE,
    STORIES,
    context,
    loss,
    quantised,
    run_stage,
    same_formats,
    write_text,
)

from helpers.interrupting import InterruptAt, Recorder, SignalAt
from shrinkc.checkpoints import load
from shrinkc.cli.main import run_cli
from shrinkc.compression.facts import facts_of
from shrinkc.compression.stages import finetune_scales, qat, reconstruct
from shrinkc.compression.stages.rotate import basis, rotate
from shrinkc.core.errors import BadRecipe, TrainingDiverged
from shrinkc.importer.gptq import read_gptq

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.slow

FAST = {"length": 64, "batch": 4, "samples": 64, "dtype": "float32"}


def trained(
    folder: Path, source: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> tuple[Path, dict[str, Any]]:
    """The directory of the finished stage, and the facts of its report."""
    monkeypatch.setattr(
        finetune_scales, "check_checkpoint", lambda *given: None
    )  # it starts a process
    step, report = run_stage(
        folder, "reconstruct", source, {**FAST, **settings}, unquantized=STORIES
    )
    return step.out, report.parameters


def test_the_error_by_hand() -> None:
    """Errors relative to each token's size, with weighted channels."""
    rng = np.random.default_rng(0)
    target, given = rng.normal(size=(2, 3, 4, 8)) * np.array([1.0, 100.0, 1e-3])[:, None, None]
    gains = rng.uniform(0, 2, 8)
    wanted = [
        sum((gains[c] * (given[w, t, c] - target[w, t, c])) ** 2 for c in range(8))
        / sum((gains[c] * target[w, t, c]) ** 2 for c in range(8))
        for w in (2, 0)
        for t in range(4)
    ]
    error = reconstruct.Error(torch.tensor(target), torch.tensor(gains))
    which = torch.tensor([2, 0])
    got = float(error.of(torch.tensor(given)[which], which))
    assert got == pytest.approx(np.mean(wanted), rel=1e-5)
    assert float(error.of(torch.tensor(target)[which], which)) == 0


def test_the_weights_of_channels_by_hand() -> None:
    model = with_gains(silent=5)
    last, squares = model.model.layers[-1], []
    for norm, matrices in (
        (last.input_layernorm, [getattr(last.self_attn, f"{n}_proj") for n in "qkv"]),
        (last.post_attention_layernorm, [last.mlp.gate_proj, last.mlp.up_proj]),
        (model.model.norm, [model.lm_head]),
    ):
        read = torch.cat([m.weight for m in matrices]) * norm.weight
        squares.append(read.square().sum(0) / read.square().sum() * read.shape[1])
    found = reconstruct.reading_weights(model, len(model.model.layers) - 2)
    torch.testing.assert_close(found, (sum(squares) / 3).sqrt())
    torch.testing.assert_close(reconstruct.reading_weights(model, 4), squares[-1].sqrt())
    assert found[5] == 0 < found[4]


def test_folding_norm_weights_does_not_change_the_weights_of_channels() -> None:
    """For the unrotated channels of a rotated stream."""
    model = with_gains(silent=5).requires_grad_(False)
    before = reconstruct.reading_weights(model, 1)
    others = [c for c in range(len(before)) if c not in (5, 7)]
    rotate(model, basis(len(before), 0, [others]))
    after = reconstruct.reading_weights(model.requires_grad_(False), 1)
    torch.testing.assert_close(after[[5, 7]], before[[5, 7]])
    assert float(after[others].std()) < 0.6 * float(before[others].std())


def with_gains(silent: int) -> Any:
    """Return a model with different norm weights, and weight 0 in the channel ``silent``."""
    model = load(STORIES).model
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, norm in model.named_modules():
            if name.endswith("norm"):
                norm.weight.copy_(torch.rand(len(norm.weight), generator=generator) * 2)
                norm.weight[silent] = 0
    return model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_block_has_a_smaller_error(
    dtype: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """With more windows than the text has, and a smaller last batch."""
    source = quantised(tmp_path_factory, "coarse", COARSE)
    out, facts = trained(tmp_path / "a", source, monkeypatch, samples=90, dtype=dtype)
    assert len(facts["blocks"]) == 5
    assert all(0 < b["after"] < b["before"] for b in facts["blocks"]), facts["blocks"]
    text = write_text(tmp_path)
    assert loss(out, text) < loss(source, text) - 0.05
    assert facts_of(out).packed_bytes == facts_of(source).packed_bytes


def test_training_integers_helps_more_than_scales_and_norms(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every block, after blocks that were trained in the same way."""
    source = quantised(tmp_path_factory, "coarse", COARSE)
    _, whole = trained(tmp_path / "a", source, monkeypatch)
    _, still = trained(tmp_path / "b", source, monkeypatch, weight_rate=0.0)
    assert still["integers_changed"] == 0 < whole["integers_changed"]
    pairs = [
        (a["after"], b["after"]) for a, b in zip(whole["blocks"], still["blocks"], strict=True)
    ]
    assert len(pairs) == 5 and all(a < b for a, b in pairs), pairs


@pytest.mark.parametrize(("name", "kind"), [("coarse", COARSE), ("mixed", MIXED)])
def test_only_integers_scales_and_norms_change(
    name: str, kind: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """For 2 bit in groups, and for all widths per-channel with an act-order; the trained values are written."""
    source = quantised(tmp_path_factory, name, kind)
    kept = {}

    class Spy(reconstruct.Streams):
        def __init__(self, given: Any, *rest: Any) -> None:
            super().__init__(given, *rest)
            kept["end"] = given  # replaced in place by each block's output

    monkeypatch.setattr(reconstruct, "Streams", Spy)
    out, facts = trained(tmp_path / "a", source, monkeypatch, samples=16, weight_rate=3e-2)
    before, after = read_gptq(source), read_gptq(out)
    same_formats(before, after)
    layers = [n for n in before if n.startswith("model.layers.")]
    changed = sum(int((after[n].q != before[n].q).sum()) for n in layers)
    assert facts["integers_changed"] == pytest.approx(
        changed / sum(before[n].q.size for n in layers), abs=1e-6
    )
    assert 0.001 < facts["integers_changed"] < 0.2
    for module, new in after.items():
        assert (new.scale != before[module].scale).any() == (module in layers)
    # after the last block, the streams of the loaded and of the trained model are equal
    loaded = load(out)
    step = context(tmp_path / "c", source)
    settings = reconstruct.Settings(**FAST)
    windows = reconstruct.windows_of(settings, step, "reconstruct", loaded.tokenizer)
    loaded.model.model.norm = torch.nn.Identity()
    with torch.no_grad():
        found = loaded.model.model(windows.sample(0)[None]).last_hidden_state
    # scales and norm weights are stored in 16 bit
    torch.testing.assert_close(found[0], kept["end"][0], rtol=2e-2, atol=5e-2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_killed_run_ends_as_an_undisturbed_one(
    dtype: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Ctrl-C in a block, whose steps are not repeated, then a crash in another one."""
    monkeypatch.setattr(
        finetune_scales, "check_checkpoint", lambda *given: None
    )  # it starts a process
    source = quantised(tmp_path_factory, "coarse", COARSE)
    text = write_text(tmp_path)
    settings = reconstruct.Settings(text=(text,), **{**FAST, "dtype": dtype})
    whole = context(tmp_path / "whole", source, unquantized=STORIES)
    reconstruct.run(settings, whole)
    parts = context(tmp_path / "parts", source, unquantized=STORIES)
    parts.reporter = SignalAt("reconstruct", 19)  # 16 steps per block
    with pytest.raises(KeyboardInterrupt):
        reconstruct.run(settings, parts)
    assert not any(parts.out.iterdir())
    assert sorted(f.name for f in parts.scratch.iterdir()) == ["begun1.pt", "block0.pt"]
    parts.reporter = InterruptAt("reconstruct", 20)  # which nothing waits for
    with pytest.raises(KeyboardInterrupt):
        reconstruct.run(settings, parts)
    assert sorted(f.name for f in parts.scratch.iterdir()) == ["block0.pt", "block1.pt"]
    parts.reporter = resumed = Recorder()
    reconstruct.run(settings, parts)
    assert resumed.heard[2] == ("reconstruct", 33, 80)
    for file in whole.out.iterdir():
        assert file.read_bytes() == (parts.out / file.name).read_bytes(), file.name


OWN_RECIPE = (
    RECIPE
    + """[reconstruct]
samples = 16
length = 64
"""
)


def test_a_second_stage_reduces_the_error_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second stage starts where the first one ended, with the same target; here also with the same windows, so that
    errors can be compared."""
    monkeypatch.setattr(
        finetune_scales, "check_checkpoint", lambda *given: None
    )  # it starts a process
    monkeypatch.setattr("shrinkc.compression.training.trained_before", lambda *given: [])
    loaded, plain = [], reconstruct.load_to_train

    def spy(source: Path, *rest: Any) -> Any:
        loaded.append(source.name)
        return plain(source, *rest)

    monkeypatch.setattr(reconstruct, "load_to_train", spy)
    file, out = tmp_path / "r.toml", tmp_path / "run"
    file.write_text(OWN_RECIPE + "[reconstruct-2]\nsamples = 16\nlength = 64\n")
    assert run_cli(["compress", str(STORIES), "--recipe", str(file), "-o", str(out)]) == 0
    assert loaded == ["01-gptq", "stories", "02-reconstruct", "stories"]
    first, second = (
        json.loads((out / f"0{n}" / "step.json").read_text())["parameters"]["blocks"]
        for n in ("2-reconstruct", "3-reconstruct-2")
    )
    assert second[0]["before"] == pytest.approx(first[0]["after"], rel=2e-2)  # stored in 16 bit
    assert first[0]["after"] < first[0]["before"] and second[0]["after"] < second[0]["before"]


def test_what_cannot_come_before_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    file, out = tmp_path / "r.toml", tmp_path / "run"
    command = ["compress", str(STORIES), "--recipe", str(file), "-o", str(out), "--dry-run"]
    file.write_text(OWN_RECIPE)
    assert run_cli(command) == 0 and not out.exists()
    file.write_text(OWN_RECIPE.replace("[reconstruct]", "[eora]\nrank = 4\n[reconstruct]"))
    assert run_cli(command) != 0
    assert "[reconstruct] changes the weights that the adapters of [eora] correct" in " ".join(
        capsys.readouterr().err.split()
    )
    # without the float model there is no target
    file.write_text(OWN_RECIPE.replace("[gptq]\nbits = 2\ngroup_size = 32\nsym = false\n", ""))
    command[1] = str(quantised(tmp_path_factory, "coarse", COARSE))
    assert run_cli(command) != 0
    assert "[reconstruct] needs the float model" in capsys.readouterr().err


def test_it_loads_and_compiles(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    source = quantised(tmp_path_factory, "coarse", COARSE)
    step, _ = run_stage(
        tmp_path / "a", "reconstruct", source, {**FAST, "samples": 8}, unquantized=STORIES
    )
    program = str(tmp_path / "program")
    assert run_cli(["compile", str(step.out), "-o", program]) == 0
    assert run_cli(["run", program, "--on", "host", "--prompt", "Once", "--tokens", "4"]) == 0


def test_a_training_that_diverges(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, calls = reconstruct.Error.of, []

    def broken(self: Any, given: Any, which: Any) -> Any:
        calls.append(1)
        return plain(self, given, which) * (float("nan") if len(calls) == 42 else 1)

    monkeypatch.setattr(reconstruct.Error, "of", broken)
    source = quantised(tmp_path_factory, "coarse", COARSE)
    step = context(tmp_path / "a", source, unquantized=STORIES)
    with pytest.raises(
        TrainingDiverged, match="error after . steps of block 1 is not finite"
    ) as caught:
        reconstruct.run(reconstruct.Settings(**FAST), step)
    assert caught.value.exit_code == 55 and "reconstruct.learning_rate" in str(caught.value)
    assert "delete this step's folder in .scratch" in str(caught.value)
    assert not any(step.out.iterdir())
    assert [f.name for f in step.scratch.iterdir()] == ["block0.pt"]


def test_refusals(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(BadRecipe, match="weight_rate = 2"):
        reconstruct.Settings(weight_rate=2.0)
    with pytest.raises(BadRecipe, match="samples = 0"):
        reconstruct.Settings(samples=0)
    (problem,) = reconstruct.RECONSTRUCT.preflight(reconstruct.Settings(), facts_of(STORIES))
    assert "needs a quantised model" in problem
    source = quantised(tmp_path_factory, "coarse", COARSE)
    facts = facts_of(source)
    assert (
        "context is 512"
        in reconstruct.RECONSTRUCT.preflight(reconstruct.Settings(length=1024), facts)[0]
    )
    assert qat.QAT.preflight(qat.Settings(), facts) == []
