"""Stage depth: every importance compared with its definition, and the remaining model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.interrupting import InterruptAt
from shrinkc.checkpoints import load
from shrinkc.compression.facts import facts_of
from shrinkc.compression.stages import depth
from shrinkc.compression.stages.context import StepContext
from shrinkc.core.progress import Silent
from shrinkc.importer import load_model

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.slow

Step = Callable[..., StepContext]
PLACES = [0, 1, 2, 3, 4]


@pytest.fixture
def update() -> Any:
    with Silent().stage("x") as function:
        yield function


def without(model: Any, layer: int) -> Any:
    """Return a copy of the model without the layer."""
    other = copy.deepcopy(model)
    del other.model.layers[layer]
    other.config.num_hidden_layers -= 1
    return other


def loss_of(model: Any, windows: Any) -> float:
    with torch.no_grad():
        return float(model(windows, labels=windows, use_cache=False).loss)


def test_removal_loss_is_that_of_the_model_without_the_layer(
    stories: Path, step: Step, tmp_path: Path, update: Any
) -> None:
    loaded = load(stories)
    windows = step().calibration.windows(loaded.tokenizer)
    values = depth.removal_losses(loaded.model, windows, PLACES, tmp_path / "state", update)
    for place in PLACES:
        assert values[place] == pytest.approx(
            loss_of(without(loaded.model, place), windows), abs=2e-5
        )


def test_taylor_is_the_sum_of_weight_times_gradient(
    stories: Path, step: Step, tmp_path: Path, update: Any
) -> None:
    loaded = load(stories)
    windows = step().calibration.windows(loaded.tokenizer)
    values = depth.taylor(loaded.model, windows, [1, 3], tmp_path / "s", update)
    model = load(stories).model.requires_grad_(True)
    model(windows, labels=windows, use_cache=False).loss.backward()
    for place in (1, 3):
        total = sum(
            float((p.detach().double() * p.grad.double()).abs().sum())
            for p in model.model.layers[place].parameters()
        )
        assert values[place] == pytest.approx(total, rel=1e-4)
    assert not any(p.requires_grad for p in loaded.model.parameters())


def test_magnitude_and_cosine(stories: Path, step: Step, tmp_path: Path, update: Any) -> None:
    loaded = load(stories)
    windows = step().calibration.windows(loaded.tokenizer)
    sizes = depth.magnitude(loaded.model, windows, PLACES, tmp_path / "s", update)
    for place, layer in enumerate(load_model(stories).layers):
        arrays = [a for a in vars(layer).values() if isinstance(a, np.ndarray)]
        assert sizes[place] == pytest.approx(
            sum(np.abs(a).sum(dtype=float) for a in arrays), rel=1e-6
        )

    values = depth.cosine(loaded.model, windows, PLACES, tmp_path / "s", update)
    seen: list[tuple[Any, Any]] = []
    hooks = [
        layer.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
        for layer in loaded.model.model.layers
    ]
    with torch.no_grad():
        loaded.model(windows, use_cache=False)
    for hook in hooks:
        hook.remove()
    for place, (before, after) in enumerate(seen):
        a, b = before.double(), (after[0] if isinstance(after, tuple) else after).double()
        mean = ((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))).mean()
        assert values[place] == pytest.approx(float(1 - mean), abs=1e-5)


def test_kept_layers_do_not_change(stories: Path, step: Step, tmp_path: Path) -> None:
    settings = depth.Settings(remove=2, protect_first=1, protect_last=1)
    report = depth.run(settings, step()).parameters
    before, after = load_model(stories), load_model(tmp_path / "out")
    assert len(report["removed"]) == 2 and sorted(report["removed"] + report["kept"]) == PLACES
    assert {0, 4} <= set(report["kept"])
    assert after.config.num_layers == 3
    for new, old in enumerate(report["kept"]):
        for name, values in vars(before.layers[old]).items():
            if isinstance(values, np.ndarray):
                np.testing.assert_array_equal(getattr(after.layers[new], name), values)
    table = report["rounds"][0]
    assert table["importance"][0] is None and table["importance"][4] is None
    middle = {layer: table["importance"][layer] for layer in (1, 2, 3)}
    assert set(report["removed"]) == set(sorted(middle, key=lambda i: middle[i])[:2])
    predicted = depth.predict(settings, facts_of(stories))
    assert predicted.parameters == facts_of(tmp_path / "out").parameters


def test_the_result_generates_with_its_cache(stories: Path, step: Step, tmp_path: Path) -> None:
    depth.run(depth.Settings(layers=(2,)), step())
    loaded = load(tmp_path / "out")
    ids = torch.tensor([[1, 403, 407]])
    text = loaded.model.generate(ids, max_new_tokens=8, do_sample=False)
    step_by_step = ids
    for _ in range(8):
        best = loaded.model(step_by_step, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
        step_by_step = torch.cat([step_by_step, best], 1)
    assert text.tolist() == step_by_step.tolist()


def test_iterative_measures_the_remaining_layers(stories: Path, step: Step) -> None:
    settings = depth.Settings(remove=2, protect_first=0, protect_last=0, iterative=True)
    context = step()
    report = depth.run(settings, context).parameters
    first, second = report["rounds"]
    loaded = load(stories)
    windows = context.calibration.windows(loaded.tokenizer)
    (gone,) = first["removed"]
    model = without(loaded.model, gone)
    assert second["layers"] == [i for i in PLACES if i != gone]
    for place in range(4):
        wanted = loss_of(without(model, place), windows)
        assert second["importance"][place] == pytest.approx(wanted, abs=2e-5)


def test_an_interrupted_search_keeps_its_measurements(step: Step, tmp_path: Path) -> None:
    settings = depth.Settings(remove=1, protect_first=0, protect_last=0)
    with_more = step().calibration
    with_more.samples, with_more.length = 48, 64  # three batches
    with pytest.raises(KeyboardInterrupt):
        depth.run(settings, step(calibration=with_more, reporter=InterruptAt("depth", 8)))
    assert not (tmp_path / "out").exists()
    state = (tmp_path / "scratch" / "round0.json").read_text()
    resumed = depth.run(settings, step(calibration=with_more)).parameters
    assert (tmp_path / "scratch" / "round0.json").read_text().startswith(state[:-1])
    (tmp_path / "scratch" / "round0.json").unlink()
    whole = depth.run(settings, step(calibration=with_more, out=tmp_path / "again")).parameters
    assert resumed == whole


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (depth.Settings(remove=2), "2 of 5 layers are to go"),
        (depth.Settings(keep=5), "keep = 5: the model has 5 layers"),
        (depth.Settings(layers=(1, 7)), "layers = [7]: the model has the layers 0 to 4"),
        (depth.Settings(layers=(0, 1, 2, 3, 4)), "at least one has to stay"),
        (depth.Settings(remove=5, protect_first=0, protect_last=0), "5 of 5 layers"),
    ],
)
def test_preflight(stories: Path, settings: depth.Settings, words: str) -> None:
    (problem,) = depth.preflight(settings, facts_of(stories))
    assert words in problem
    assert depth.preflight(depth.Settings(layers=(1,)), facts_of(stories)) == []
