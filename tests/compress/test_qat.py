"""Stage qat: its rounding and gradients, its recovery, and its output."""

from __future__ import annotations

import math
from dataclasses import replace
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
from shrinkc.compression import rounding
from shrinkc.compression.facts import facts_of
from shrinkc.compression.recipe import load_recipe
from shrinkc.compression.stages import finetune_scales, qat
from shrinkc.core.errors import BadRecipe, TrainingDiverged
from shrinkc.importer.gptq import read_gptq
from shrinkc.importer.model import QuantizedWeight
from shrinkc.importer.packed_words import pack, unpack

from .test_finetune_scales import weight

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.slow

FAST = {"length": 64, "batch": 4, "micro_batch": 2, "learning_rate": 2e-3, "dtype": "float32"}


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(("bits", "group", "inputs"), [(4, 32, 96), (3, 16, 40), (2, 40, 40)])
def test_the_layer_starts_as_the_quantised_matrix(
    bits: int, group: int, inputs: int, ordered: bool
) -> None:
    given = weight(bits, group, inputs, ordered)
    floats = np.random.default_rng(1).normal(size=(6, inputs)).astype(np.float32)
    x = torch.randn(2, 3, inputs, generator=torch.Generator().manual_seed(0))
    wanted = x @ torch.from_numpy(given.dequantized()).T
    for begin in (None, floats):  # even if the integers are far from the float weights
        layer = rounding.rounded(given, begin, "float32", "cpu")
        torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-4)
    assert bool((layer.latent != layer.latent.round()).any())


@pytest.mark.parametrize("ordered", [False, True])
def test_its_gradients_are_those_of_the_straight_through_estimator(ordered: bool) -> None:
    """Compared with torch's autograd, where rounding is a constant shift."""
    given = weight(3, 16, 40, ordered)
    layer = rounding.rounded(given, None, "float32", "cpu")
    with torch.no_grad():
        layer.latent += torch.randn(layer.latent.shape, generator=torch.Generator().manual_seed(2))
        layer.change += 0.1
        layer.change[0, 0] = -2.0  # below the least factor: no gradient
    latent, change = (p.detach().clone().requires_grad_() for p in (layer.latent, layer.change))
    q = latent.clamp(0, 7)
    q = q + (q.round() - q).detach()
    scale = torch.from_numpy(given.scale) * (1 + change).clamp_min(rounding.FACTOR_MIN)
    zero = torch.from_numpy(-given.offset / given.scale).round()
    wide, shift = (t.repeat_interleave(16, 1)[:, :40] for t in (scale, zero))
    matrix = (q - shift) * wide
    if given.order is not None:
        matrix = matrix[:, np.argsort(given.order)]
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(3), requires_grad=True)
    slope = torch.randn(5, 6, generator=torch.Generator().manual_seed(4))
    (x @ matrix.T * slope).sum().backward()
    mine = x.detach().clone().requires_grad_()
    (layer(mine) * slope).sum().backward()
    torch.testing.assert_close(mine.grad, x.grad)
    torch.testing.assert_close(layer.latent.grad, latent.grad)
    torch.testing.assert_close(layer.change.grad, change.grad)
    assert bool((latent.grad == 0).any()) and bool((latent.grad != 0).any())


@pytest.mark.parametrize("tied", [False, True])
def test_the_gradients_of_an_embedding(tied: bool) -> None:
    """Gradients of the embedding and of the LM head, in one tensor if they are tied."""
    given = weight(4, 16, 40, False)
    own = np.random.default_rng(3).random(given.offset.shape, dtype=np.float32)
    # zero points that are not integers
    given = replace(given, offset=given.offset + given.scale * own)
    table = rounding.rounded_embedding(given, None, "float32", "cpu")
    torch.testing.assert_close(table.weight, torch.from_numpy(given.dequantized()))
    with torch.no_grad():
        table.latent += torch.randn(table.latent.shape, generator=torch.Generator().manual_seed(2))
        table.change += 0.1
    latent, change = (p.detach().clone().requires_grad_() for p in (table.latent, table.change))
    q = latent.clamp(0, 15)
    q = q + (q.round() - q).detach()
    scale, zero = (
        part.repeat_interleave(16, 1)[:, :40]
        for part in (
            torch.from_numpy(given.scale) * (1 + change),
            torch.from_numpy(-given.offset / given.scale),
        )
    )
    matrix = (q - zero) * scale
    ids = torch.tensor([[3, 0, 3], [5, 1, 3]])  # one id occurs three times, two never
    x = torch.randn(4, 40, generator=torch.Generator().manual_seed(3))
    loss = torch.nn.functional.embedding(ids, matrix).square().sum()
    loss = loss + (x @ matrix.T).square().sum() if tied else loss
    loss.backward()
    mine = table(ids).square().sum()
    mine = mine + (x @ table.weight.T).square().sum() if tied else mine
    mine.backward()
    torch.testing.assert_close(table.latent.grad, latent.grad)
    torch.testing.assert_close(table.change.grad, change.grad)
    assert tied or not table.latent.grad[[2, 4]].any()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_packing_and_unpacking_are_inverse(bits: int) -> None:
    values = np.random.default_rng(bits).integers(0, 2**bits, (1500, 96)).astype(np.uint8)
    np.testing.assert_array_equal(unpack(pack(values, bits), bits, 96), values)
    with pytest.raises(ValueError, match="do not fill"):
        pack(values[:, :5], bits)


def trained(
    folder: Path, source: Path, monkeypatch: pytest.MonkeyPatch, kind: str = "qat", **settings: Any
) -> tuple[Path, dict[str, Any]]:
    """The directory of a finished stage, and the facts of its report."""
    monkeypatch.setattr(
        finetune_scales, "check_checkpoint", lambda *given: None
    )  # it starts a process
    teacher = {"unquantized": STORIES, "teacher": STORIES}
    step, report = run_stage(folder, kind, source, {"distill": 1.0, **FAST, **settings}, **teacher)
    return step.out, report.parameters


def test_it_recovers_more_than_scales(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = quantised(tmp_path_factory, "coarse", COARSE)
    out, facts = trained(tmp_path / "a", source, monkeypatch, samples=160, weight_rate=8e-3)
    _, other = trained(tmp_path / "b", source, monkeypatch, "finetune_scales", samples=160)
    own, scaled = ([loss for _, loss in f["loss_curve"]] for f in (facts, other))
    assert own[0] == pytest.approx(scaled[0], rel=1e-4)  # it starts as the quantised model
    assert np.mean(own[-10:]) < np.mean(scaled[-10:]) < 0.8 * np.mean(own[:5])
    text = write_text(tmp_path)
    assert loss(out, text) < loss(source, text) - 0.1
    assert facts_of(out).packed_bytes == facts_of(source).packed_bytes


@pytest.mark.parametrize(("name", "kind"), [("coarse", COARSE), ("mixed", MIXED)])
def test_only_integers_and_scales_change(
    name: str, kind: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """For 2 bit in groups, and for all widths per-channel with an act-order."""
    source = quantised(tmp_path_factory, name, kind)
    out, facts = trained(tmp_path / "a", source, monkeypatch, samples=24, weight_rate=3e-2)
    before, after = read_gptq(source), read_gptq(out)
    tables = [n for n in before if not n.startswith("model.layers.")]
    assert tables == (["model.embed_tokens"] if name == "mixed" else [])
    changed = sum(int((after[n].q != before[n].q).sum()) for n in before)
    count = sum(before[n].q.size for n in before)
    assert all((after[n].q != before[n].q).any() for n in tables)
    assert facts["integers_changed"] == pytest.approx(changed / count, abs=1e-6)
    assert 0.001 < changed / count < 0.2
    same_formats(before, after)


@pytest.mark.parametrize(("name", "kind"), [("coarse", COARSE), ("mixed", MIXED)])
def test_trained_values_are_written(
    name: str, kind: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The loaded model computes the same as the trained one."""
    source = quantised(tmp_path_factory, name, kind)
    kept = {}

    class Spy(qat.Training):
        def trained_tensors(self) -> dict[str, torch.Tensor]:
            ids = torch.arange(3, 40)[None]
            with torch.no_grad():
                kept["logits"] = self.model(ids).logits
            return super().trained_tensors()

    monkeypatch.setattr(qat, "Training", Spy)
    out, _ = trained(tmp_path / "a", source, monkeypatch, samples=16)
    with torch.no_grad():
        found = load(out).model(torch.arange(3, 40)[None]).logits
    # scales and norm weights are stored in 16 bit
    torch.testing.assert_close(found, kept["logits"], rtol=2e-2, atol=5e-2)


def test_embeddings_keep_their_format() -> None:
    """A symmetric embedding stays symmetric, and a tiny scale stays representable in float16."""
    rng = np.random.default_rng(4)
    q = rng.integers(0, 256, (40, 64)).astype(np.uint8)
    scale = rng.uniform(2.0**-15, 2.0**-3, (40, 2)).astype(np.float16).astype(np.float32)
    scale[3] = 2.0**-24
    table = QuantizedWeight(8, 32, q, scale, -128 * scale)
    change = torch.from_numpy(rng.uniform(-1.2, 0.5, (40, 2)).astype(np.float32))
    found = qat.changed_embedding(table, q[::-1], change)
    np.testing.assert_array_equal(found.offset, -128 * found.scale)
    np.testing.assert_array_equal(found.scale, found.scale.astype(np.float16))
    assert (found.scale > 0).all() and (found.q == q[::-1]).all()
    usual = (found.scale > 2.0**-13) & (change.numpy() > rounding.FACTOR_MIN - 1)
    wanted = scale * (1 + change.numpy())
    np.testing.assert_allclose(found.scale[usual], wanted[usual], rtol=1e-3)


def test_zero_points_of_an_embedding_do_not_change() -> None:
    rng = np.random.default_rng(5)
    q, zero = rng.integers(0, 16, (40, 64)).astype(np.uint8), rng.integers(0, 16, (40, 2))
    scale = rng.uniform(2.0**-9, 2.0**-3, (40, 2)).astype(np.float16).astype(np.float32)
    table = QuantizedWeight(4, 32, q, scale, -scale * zero.astype(np.float32))
    change = torch.from_numpy(rng.uniform(-0.5, 0.5, (40, 2)).astype(np.float32))
    found = qat.changed_embedding(table, q, change)
    assert found.zero_points is not None and (found.scale != scale).mean() > 0.9
    np.testing.assert_array_equal(found.zero_points, zero)


def test_embeddings_may_stay_untrained(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = quantised(tmp_path_factory, "mixed", MIXED)
    out, _ = trained(tmp_path / "a", source, monkeypatch, samples=8, embeddings=False)
    file = "embedding.safetensors"
    assert (out / file).read_bytes() == (source / file).read_bytes()


OWN_RECIPE = (
    RECIPE
    + """[qat]
samples = 80
weight_rate = 1e-2
batch = 4
length = 64
dtype = "float32"
"""
)


def test_a_killed_run_ends_as_an_undisturbed_one(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in training, then a crash; the steps since the saved state are repeated."""
    monkeypatch.setattr(
        finetune_scales, "check_checkpoint", lambda *given: None
    )  # it starts a process
    source = quantised(tmp_path_factory, "coarse", COARSE)
    text = write_text(tmp_path)
    settings = qat.Settings(samples=32, text=(text,), **FAST)
    whole = context(tmp_path / "whole", source, unquantized=STORIES, teacher=STORIES)
    qat.run(settings, whole)
    parts = context(tmp_path / "parts", source, unquantized=STORIES, teacher=STORIES)
    parts.reporter = SignalAt("qat", 3)
    with pytest.raises(KeyboardInterrupt):
        qat.run(settings, parts)
    assert not any(parts.out.iterdir())
    parts.reporter = InterruptAt("qat", 4)
    with pytest.raises(KeyboardInterrupt):
        qat.run(settings, parts)
    parts.reporter = resumed = Recorder()
    qat.run(settings, parts)
    assert resumed.heard[0] == ("qat", 3, 8)
    for file in whole.out.iterdir():
        assert file.read_bytes() == (parts.out / file.name).read_bytes(), file.name


def test_a_recipe_with_self_generated_text(tmp_path: Path) -> None:
    file, out = tmp_path / "r.toml", tmp_path / "run"
    file.write_text(OWN_RECIPE)
    command = ["compress", str(STORIES), "--recipe", str(file), "-o", str(out)]
    assert run_cli([*command, "--dry-run"]) == 0 and not out.exists()
    settings = load_recipe(str(file)).stages[1].settings
    assert settings.distill == 1.0 and settings.train_norms  # the teacher is MODEL by default


def test_it_loads_and_compiles(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    source = quantised(tmp_path_factory, "coarse", COARSE)
    settings = {"samples": 8, "weight_rate": 0.1, **FAST}
    step, _ = run_stage(tmp_path / "a", "qat", source, settings, unquantized=STORIES)
    program = str(tmp_path / "program")
    assert run_cli(["compile", str(step.out), "-o", program]) == 0
    assert run_cli(["run", program, "--on", "host", "--prompt", "Once", "--tokens", "4"]) == 0


def test_a_training_that_diverges(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shrinkc.compression import training

    plain, calls = training.loss_and_gradient, []

    def broken(*given: Any) -> tuple[float, Any]:
        calls.append(1)
        loss, gradient = plain(*given)
        return (math.nan if len(calls) == 5 else loss), gradient

    monkeypatch.setattr(training, "loss_and_gradient", broken)
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    source = quantised(tmp_path_factory, "coarse", COARSE)
    step = context(tmp_path / "a", source, unquantized=STORIES, teacher=STORIES)
    with pytest.raises(TrainingDiverged, match="the loss of step 2 is not finite") as caught:
        qat.run(qat.Settings(samples=80, text=(write_text(tmp_path),), **FAST), step)
    assert caught.value.exit_code == 55 and "qat.learning_rate" in str(caught.value)
    assert not any(step.out.iterdir())
    # the saved state does not change
    state = torch.load(step.scratch / "training.pt", weights_only=True)
    assert len(state["figures"]) == 2 and all(map(math.isfinite, state["figures"]))


def test_refusals(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(BadRecipe, match="weight_rate = 2"):
        qat.Settings(weight_rate=2.0)
    (problem,) = qat.QAT.preflight(qat.Settings(), facts_of(STORIES))
    assert "needs a quantised model" in problem
    source = quantised(tmp_path_factory, "coarse", COARSE)
    assert "context is 512" in qat.QAT.preflight(qat.Settings(length=1024), facts_of(source))[0]
