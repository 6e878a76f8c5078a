"""Stage finetune_scales: it trains scales, and no integer changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.compress.quantising import (
    COARSE,
    STORIES,
    context,
    loss,
    quantised,
    run_stage,
    write_text,
)

from helpers.interrupting import Recorder, SignalAt
from shrinkc.checkpoints import load
from shrinkc.compression.facts import facts_of
from shrinkc.compression.rounding import rounded
from shrinkc.compression.stages import finetune_scales
from shrinkc.core.errors import BadRecipe, UnsupportedModel
from shrinkc.importer.gptq import read_gptq
from shrinkc.importer.model import QuantizedWeight

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.slow

FAST = {"length": 64, "batch": 4, "micro_batch": 2, "learning_rate": 1e-2, "dtype": "float32"}


def weight(bits: int, group: int, inputs: int, ordered: bool) -> QuantizedWeight:
    rng = np.random.default_rng(bits)
    groups = -(-inputs // group)
    scale = rng.uniform(0.01, 0.1, (6, groups)).astype(np.float16).astype(np.float32)
    zero = rng.integers(1, 2**bits, (6, groups)).astype(np.float32)
    order = rng.permutation(inputs).astype(np.int32) if ordered else None
    q = rng.integers(0, 2**bits, (6, inputs)).astype(np.uint8)
    return QuantizedWeight(bits, group, q, scale, -scale * zero, order)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(("bits", "group", "inputs"), [(4, 32, 96), (2, 16, 40), (8, 40, 40)])
def test_the_trained_layer_is_the_dequantised_one(
    bits: int, group: int, inputs: int, ordered: bool
) -> None:
    given = weight(bits, group, inputs, ordered)
    layer = rounded(given, None, "float32", "cpu", integers=False)
    x = torch.randn(3, inputs, generator=torch.Generator().manual_seed(0))
    wanted = x @ torch.from_numpy(given.dequantized()).T
    torch.testing.assert_close(layer(x), wanted, rtol=1e-5, atol=1e-5)
    layer.change.data.fill_(0.5)
    torch.testing.assert_close(layer(x), 1.5 * wanted, rtol=1e-5, atol=1e-5)
    layer(x).sum().backward()
    assert layer.change.grad is not None and bool((layer.change.grad != 0).any())
    assert layer.latent.grad is None


def test_it_recovers_without_touching_integers(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    source = quantised(tmp_path_factory, "coarse", COARSE)
    settings = {"samples": 120, **FAST}
    step, report = run_stage(
        tmp_path / "a", "finetune_scales", source, settings, unquantized=STORIES
    )
    text = write_text(tmp_path)
    assert report.parameters["steps"] == 30
    before, after = read_gptq(source), read_gptq(step.out)
    assert before.keys() == after.keys()
    for name, old in before.items():
        new = after[name]
        np.testing.assert_array_equal(new.q, old.q)
        np.testing.assert_allclose(new.offset / new.scale, old.offset / old.scale, atol=1e-3)
        assert (new.scale > 0).all()
        if name.startswith("model.layers"):
            assert not np.array_equal(new.scale, old.scale)
    assert facts_of(step.out).packed_bytes == facts_of(source).packed_bytes
    assert loss(step.out, text) < loss(source, text) - 0.05
    # the trained values were written
    curve = [value for _, value in report.parameters["loss_curve"]]
    assert np.mean(curve[-5:]) < np.mean(curve[:5])


def test_resumed_training_is_the_same_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # starts a child process
    monkeypatch.setattr(finetune_scales, "check_checkpoint", lambda *given: None)
    source = quantised(tmp_path_factory, "coarse", COARSE)
    settings = finetune_scales.Settings(
        samples=24, text=(write_text(tmp_path),), distill=0.5, **FAST
    )
    whole = context(tmp_path / "whole", source, unquantized=STORIES)
    finetune_scales.run(settings, whole)
    parts = context(tmp_path / "parts", source, unquantized=STORIES)
    parts.reporter = SignalAt("finetune_scales", 2)
    with pytest.raises(KeyboardInterrupt):
        finetune_scales.run(settings, parts)
    assert not any(parts.out.iterdir())
    parts.reporter = resumed = Recorder()
    finetune_scales.run(settings, parts)
    assert resumed.heard[0] == ("finetune_scales", 2, 6)
    for file in whole.out.iterdir():
        assert file.read_bytes() == (parts.out / file.name).read_bytes(), file.name


def test_refusals(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match="learning_rate = 0.9"):
        finetune_scales.Settings(learning_rate=0.9)
    (problem,) = finetune_scales.FINETUNE_SCALES.preflight(
        finetune_scales.Settings(), facts_of(STORIES)
    )
    assert "needs a quantised model" in problem
    source = quantised(tmp_path_factory, "coarse", COARSE)
    assert (
        "context is 512"
        in finetune_scales.FINETUNE_SCALES.preflight(
            finetune_scales.Settings(length=1024), facts_of(source)
        )[0]
    )
    step = context(tmp_path / "a", source, unquantized=STORIES)
    with_adapter = tmp_path / "with-adapter"
    (with_adapter / "eora").mkdir(parents=True)
    (with_adapter / "eora" / "adapter_config.json").write_text("{}")
    step.source = with_adapter
    with pytest.raises(
        UnsupportedModel, match="put the stage eora after reconstruct, finetune_scales"
    ):
        finetune_scales.run(finetune_scales.Settings(), step)


def test_the_source_does_not_change(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of the step are hard links, except the one that is written again."""
    monkeypatch.setattr(finetune_scales, "check_checkpoint", lambda *given: None)
    source = quantised(tmp_path_factory, "coarse", COARSE)
    before = (source / "model.safetensors").read_bytes()
    step = context(tmp_path / "a", source, unquantized=STORIES)
    finetune_scales.run(
        finetune_scales.Settings(samples=8, text=(write_text(tmp_path),), **FAST), step
    )
    assert (source / "model.safetensors").read_bytes() == before
    assert (step.out / "model.safetensors").read_bytes() != before
    assert load(step.out).kind == "gptq"
