"""Estimated costs of fewer bits, compared with the divergence of predictions that rounding really causes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.compress.quantising import STORIES, Recorder, write_text

from shrinkc.checkpoints import load
from shrinkc.compression.calibration import Calibration
from shrinkc.compression.fisher import Estimated, _rounded, estimate_costs
from shrinkc.compression.sensitivity import MODULES, WIDTHS

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stories() -> Any:
    return load(STORIES)


@pytest.fixture(scope="module")
def windows(stories: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    text = write_text(tmp_path_factory.mktemp("text"))
    return Calibration((text,), 16, 64).windows(stories.tokenizer)


@pytest.fixture(scope="module")
def found(stories: Any, windows: Any) -> Estimated:
    before = {name: value.clone() for name, value in stories.model.state_dict().items()}
    wanted = [p.requires_grad for p in stories.model.parameters()]
    found = estimate_costs(stories.model, windows, 0, Recorder())
    after = stories.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [p.requires_grad for p in stories.model.parameters()] == wanted
    assert all(p.grad is None for p in stories.model.parameters())
    return found


def log_p(model: Any, windows: Any) -> Any:
    with torch.no_grad():
        return torch.log_softmax(model(windows).logits[:, :-1].float(), -1)


def divergence(model: Any, windows: Any, weight: Any, changed: Any) -> float:
    """Return KL(original ‖ with the weights ``changed``) in nats per token."""
    p, kept = log_p(model, windows), weight.data
    try:
        weight.data = changed.to(kept)
        q = log_p(model, windows)
    finally:
        weight.data = kept
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("module", MODULES)
def test_the_estimate_is_near_the_divergence(
    stories: Any, windows: Any, found: Estimated, module: str
) -> None:
    """Within a factor of three for each matrix, and of two in total: the estimate is of second order, and takes
    positions as independent."""
    totals = [0.0, 0.0]
    for i, layer in enumerate(stories.model.model.layers):
        weight = layer.get_submodule(module).weight
        importance = torch.ones(weight.shape[1])
        real = divergence(
            stories.model, windows, weight, _rounded(weight.data.float(), importance, 4)
        )
        estimated = found.kl.layers[i].modules[module][4]
        assert real / 3 < estimated < 3 * real, (i, module)
        totals[0] += real
        totals[1] += estimated
    assert totals[0] / 2 < totals[1] < 2 * totals[0]


def test_the_embedding_counts_as_input_and_as_lm_head(
    stories: Any, windows: Any, found: Estimated
) -> None:
    weight = stories.model.get_input_embeddings().weight
    rounded = _rounded(weight.data.float(), torch.ones(weight.shape[1]), 4, points=True)
    real = divergence(stories.model, windows, weight, rounded)
    assert real / 2 < found.kl.embedding[4] < 2 * real


def test_fewer_bits_cost_more(found: Estimated, stories: Any, windows: Any) -> None:
    for layer in found.kl.layers:
        for costs in (*layer.modules.values(), found.kl.embedding):
            assert [costs[bits] for bits in WIDTHS] == sorted(costs.values())
            assert 0 < costs[8] < costs[4] / 20
    p = log_p(stories.model, windows)
    loss = -p.gather(2, windows[:, 1:, None]).mean()
    assert found.baseline == pytest.approx(float(loss), rel=1e-3)
    assert found.tokens == windows.shape[0] * (windows.shape[1] - 1)
    assert found.to_json()["modules"][0][MODULES[0]][4] == found.kl.layers[0].modules[MODULES[0]][4]


def test_a_separate_lm_head_has_its_own_part(windows: Any, tmp_path: Path) -> None:
    from tests.helpers.tiny_llama import write_tiny_llama

    write_tiny_llama(tmp_path, hidden=64, intermediate=64, layers=2, seed=3, tied=False)
    model = load(tmp_path).model
    ids = torch.randint(3, 90, (4, 32), generator=torch.Generator().manual_seed(0))
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert embedding is not head
    ones = torch.ones(64)
    real = sum(
        divergence(model, ids, w, _rounded(w.data.float(), ones, 4, points=True))
        for w in (embedding, head)
    )
    estimated = estimate_costs(model, ids, 0, Recorder()).kl.embedding[4]
    assert real / 2 < estimated < 2 * real
