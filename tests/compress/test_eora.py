"""Stage eora on a small trained model at 2 bit."""

from __future__ import annotations

import filecmp
import os
from dataclasses import replace
from pathlib import Path

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

from shrinkc.compression.calibration import Calibration
from shrinkc.compression.facts import facts_of
from shrinkc.compression.stages import eora
from shrinkc.core.errors import BadData, BadRecipe, UnsupportedModel

RANK = 8


def test_settings_and_preflight() -> None:
    with pytest.raises(BadRecipe, match="rank = 0"):
        eora.Settings(rank=0)
    with pytest.raises(BadRecipe, match="samples = 1"):
        eora.Settings(samples=1)
    facts = facts_of(STORIES)
    (problem,) = eora.preflight(eora.Settings(), facts)
    assert "needs a quantised model" in problem
    small = replace(facts, quantized=True)
    (problem,) = eora.preflight(eora.Settings(rank=32), small)  # k_proj has 32 outputs
    assert "rank = 32" in problem
    assert eora.preflight(eora.Settings(rank=31), small) == []


def test_more_samples_than_there_are() -> None:
    calibration = Calibration((), 8, 64)
    with pytest.raises(BadData, match="eora.samples = 9"):
        eora.check_data(eora.Settings(samples=9), calibration, None)
    assert list(eora.check_data(eora.Settings(samples=8), calibration, None)) == []


@pytest.mark.slow
@pytest.mark.libraries("gptqmodel", "torch")
def test_without_the_float_model(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    source = quantised(tmp_path_factory, "coarse", COARSE)
    for number, other in enumerate((None, source)):
        step = context(tmp_path / str(number), source, unquantized=other)
        with pytest.raises(UnsupportedModel, match="needs the float model"):
            eora.run(eora.Settings(rank=RANK), step)


@pytest.mark.slow
@pytest.mark.libraries("gptqmodel", "torch")
def test_the_adapter_reduces_the_loss(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """Without MSE clipping and GPTAQ, after which an adapter recovers less."""
    source = quantised(tmp_path_factory, "coarse plain", COARSE | {"mse": 0, "gptaq": 0})
    settings = {"rank": RANK, "samples": 12}
    step, report = run_stage(tmp_path / "first", "eora", source, settings, unquantized=STORIES)
    assert report.parameters["calibration"] == {"samples": 12, "length": 64}
    text = write_text(tmp_path)
    whole, before, after = (loss(d, text) for d in (STORIES, source, step.out))
    assert whole < after < before
    assert before - after > 0.2 * (before - whole)

    # the packed weights are those of the source, the adapter's size is as predicted
    for file in source.iterdir():
        assert os.path.samefile(file, step.out / file.name) or filecmp.cmp(
            file, step.out / file.name, shallow=False
        )
    predicted = eora.predict(eora.Settings(**settings), facts_of(source))
    found = facts_of(step.out)
    assert (found.packed_bytes, found.parameters) == (predicted.packed_bytes, predicted.parameters)

    again, _ = run_stage(tmp_path / "again", "eora", source, settings, unquantized=STORIES)
    names = ["adapter_config.json", "adapter_model.safetensors"]
    # in the folder of the weights, where peft looks for them
    assert {p.name for p in again.out.iterdir()} == {*names, *(p.name for p in source.iterdir())}
    assert filecmp.cmpfiles(step.out, again.out, names, shallow=False) == (names, [], [])
    assert str(tmp_path) not in (again.out / names[0]).read_text()
