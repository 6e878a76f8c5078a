"""Keys and values of few bits: the grid, and models that attend to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shrinkc.checkpoints import load
from shrinkc.core.errors import UsageError
from shrinkc.driver.evaluating import EvalRequest, evaluate_model
from shrinkc.evaluation import Choices, TorchScorer
from shrinkc.evaluation.kv_cache import rounded

pytestmark = pytest.mark.slow

torch = pytest.importorskip("torch")

STORIES = Path(__file__).resolve().parents[2] / "examples" / "stories"


def ignore(done: int, total: int) -> None:
    pass


def on_grid(x: np.ndarray, bits: int) -> np.ndarray:
    """Round in float64, head by head."""
    out = np.empty(x.shape)
    for at in np.ndindex(x.shape[:-1]):
        head = x[at].astype(np.float64)
        step = (head.max() - head.min()) / (2**bits - 1)
        out[at] = head if step == 0 else head.min() + step * np.rint((head - head.min()) / step)
    return out


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_grid_for_each_head_of_each_position(bits: int) -> None:
    rng = np.random.default_rng(bits)
    x = rng.standard_normal((2, 3, 17, 64)).astype(np.float32) * 10.0 ** rng.integers(
        -3, 3, (2, 3, 17, 1)
    )
    x[1, 2, 3] = 0.25  # equal values
    x = x.astype(np.float32)
    got = rounded(torch.tensor(x), bits).numpy()
    np.testing.assert_allclose(got, on_grid(x, bits), rtol=1e-5, atol=1e-6 * np.abs(x).max())
    half = (x.max(-1) - x.min(-1)) / (2**bits - 1) / 2
    assert (np.abs(got - x).max(-1) <= half * 1.001 + 1e-6).all()
    assert max(len(np.unique(head)) for head in got.reshape(-1, 64)) <= 2**bits
    assert (got[1, 2, 3] == 0.25).all()


@pytest.fixture
def ids() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, 512, length).tolist() for length in (40, 3, 25)]


def test_losses_are_those_of_attention_written_out(
    ids: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against transformers' eager attention with keys and values rounded in numpy."""
    from transformers.models.llama import modeling_llama

    plain = modeling_llama.eager_attention_forward

    def eager(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        key, value = (torch.tensor(on_grid(x.numpy(), 4), dtype=x.dtype) for x in (key, value))
        return plain(module, query, key, value, mask, **options)

    got = TorchScorer(load(STORIES), kv_bits=4).losses(ids, ignore)
    monkeypatch.setattr(modeling_llama, "eager_attention_forward", eager)
    other = load(STORIES)
    other.model.set_attn_implementation("eager")
    want = TorchScorer(other).losses(ids, ignore)
    as_it_is = TorchScorer(load(STORIES)).losses(ids, ignore)
    for a, b, c in zip(got, want, as_it_is, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)
        assert np.abs(a - c).max() > 1e-2 or len(a) < 3


def test_more_bits_are_nearer(ids: list[list[int]]) -> None:
    want = np.concatenate(TorchScorer(load(STORIES)).losses(ids, ignore))
    off = []
    for bits in (2, 4, 8):
        got = np.concatenate(TorchScorer(load(STORIES), kv_bits=bits).losses(ids, ignore))
        off.append(float(np.abs(got - want).mean()))
    assert off[0] > 2 * off[1] > 8 * off[2] > 0


def test_batches_do_not_change_the_result() -> None:
    """Choices that share a context, batches that are padded, and text with a cache."""
    rng = np.random.default_rng(1)
    questions = [
        Choices(
            rng.integers(3, 512, n).tolist(), [rng.integers(3, 512, m).tolist() for m in (4, 1, 9)]
        )
        for n in (20, 5)
    ]
    scorer = TorchScorer(load(STORIES), kv_bits=4, batch=2)
    for question, endings in zip(questions, scorer.predicted(questions, ignore), strict=True):
        for ending, found in zip(question.endings, endings, strict=True):
            ((alone,),) = scorer.predicted([Choices(question.context, [ending])], ignore)
            np.testing.assert_allclose(found.losses, alone.losses, atol=1e-3)
    prompts = [scorer.encode(text, special=True) for text in ("Once upon a time", "Tom")]
    together = scorer.generate(prompts, 16, ignore)
    assert together == [scorer.generate([p], 16, ignore)[0] for p in prompts]


def test_the_report_says_so_and_other_widths_are_refused(tmp_path: Path) -> None:
    asked = EvalRequest(str(STORIES), samples=("Once",), threads=1, kv_bits=4)
    from shrinkc.core.progress import Silent

    report = evaluate_model(asked, env={}, reporter=Silent())
    assert report["model"]["kv_bits"] == report["samples"]["kv_bits"] == 4
    for bits in (0, 1, 9, -4):
        with pytest.raises(UsageError, match=f"a cache of {bits} bits is not possible"):
            TorchScorer(load(STORIES), kv_bits=bits)
