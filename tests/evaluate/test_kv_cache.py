"""Keys and values of few bits: the grid is the device's, and models attend to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shrinkc.checkpoints import load
from shrinkc.core.errors import UsageError
from shrinkc.driver.evaluating import EvalRequest, evaluate_model
from shrinkc.evaluation import Choices, TorchScorer
from shrinkc.evaluation.kv_cache import _rotated, key_orders, stored_keys, stored_values
from shrinkc.importer import load_model
from shrinkc.ir.ops import RopeCache
from shrinkc.numerics.vectors import (
    Coding,
    StoredHeads,
    rotation_bits,
    store_heads,
    store_parts,
    store_rotated,
)
from shrinkc.quantize import QuantOptions, lower

pytestmark = pytest.mark.slow

torch = pytest.importorskip("torch")

STORIES = Path(__file__).resolve().parents[2] / "examples" / "stories"


def ignore(done: int, total: int) -> None:
    pass


UNIT = 8
FIXED = 1 << 20


def integers(rng: np.random.Generator, head_dim: int) -> np.ndarray:
    """Heads [T, KV heads, head_dim] of different sizes, some with outlier channels."""
    x = rng.standard_normal((40, 3, head_dim)) * 2.0 ** rng.integers(14, 18, (40, 3, 1))
    x[:, 1, :3] *= 8
    x[::5] = np.abs(x[::5])
    return np.rint(x).astype(np.int64)


def same_grid(got: Any, stored: StoredHeads, x: np.ndarray, scale: float = 1.0) -> None:
    """Equal but for the rounding of the device's scales, and values in the middle of two codes."""
    want = stored.q * stored.scale[..., None] * 2.0**UNIT / 127 * scale
    size = np.abs(x).max(axis=-1, keepdims=True)
    off = np.abs(got.numpy() * FIXED - want) / size
    assert off.max() < 0.5 and (off < 8e-3).mean() > 0.6
    errors = (np.square(found - x).sum(axis=-1).mean() for found in (got.numpy() * FIXED, want))
    assert next(errors) == pytest.approx(next(errors), rel=0.05)


@pytest.mark.parametrize("head_dim", [6, 16, 64, 80])
def test_the_grid_is_that_of_the_device(head_dim: int) -> None:
    """Keys and values of 4 and of 8 bits, against the integers of a compiled model's cache."""
    rng = np.random.default_rng(head_dim)
    x = integers(rng, head_dim)
    given = torch.tensor(x / FIXED, dtype=torch.float32)
    heads = given.transpose(0, 1)[None]  # [batch, KV heads, T, head_dim]
    order = np.stack([rng.permutation(head_dim) for _ in range(3)])
    values = stored_values(given, 4)
    bits = rotation_bits(head_dim)
    growth = bits - bits // 2
    rotated = store_rotated(x, UNIT + growth)
    factor = 2.0 ** (bits / 2 - bits // 2)  # of the integers' rotation
    same_grid(
        _rotated(values) * factor, rotated, _rotated(given).numpy() * factor * FIXED, 2.0**growth
    )
    same_grid(stored_values(given, 8), store_heads(x, UNIT), x)
    same_grid(stored_keys(heads, 8, None)[0].transpose(0, 1), store_heads(x, UNIT), x)
    wide = head_dim // 16 * 4
    parts = [(Coding.BYTES, order[:, :wide])] if wide else []
    stored = store_parts(x, UNIT, [*parts, (Coding.NIBBLES, order[:, wide:])])
    found = stored_keys(heads, 4, torch.tensor(order))[0].transpose(0, 1)
    ordered = found.gather(2, torch.tensor(order)[None].expand(40, -1, -1))
    at = 0
    for part in stored:
        channels = slice(at, at := at + part.q.shape[2])
        same_grid(
            ordered[..., channels], part, np.take_along_axis(x, order[None], 2)[..., channels]
        )


@pytest.mark.parametrize("bits", range(2, 9))
def test_more_bits_than_that_are_not_used(bits: int) -> None:
    x = torch.tensor(np.random.default_rng(bits).standard_normal((50, 64)), dtype=torch.float32)
    x[3] = 0
    got = stored_values(x, bits)
    assert (got[3] == 0).all()
    order = torch.arange(64)[None]
    keys = stored_keys(x[None, None], bits, None if bits == 8 else order)[0, 0]
    for head in keys[:, 16:].numpy():
        assert len(np.unique(head)) <= 2**bits
    assert float((keys[:, :16] - x[:, :16]).abs().max()) < 0.02
    worst = {2: 2.5, 3: 1.2, 4: 0.5, 5: 0.3, 6: 0.15, 7: 0.08, 8: 0.03}[bits]
    assert float((got - x).abs().max()) < worst


def test_orders_of_a_model_are_about_those_of_the_compiled_one() -> None:
    graph = lower(load_model(STORIES), QuantOptions(kv_bits=4), 64)
    want = [op.key_order for op in graph.ops if isinstance(op, RopeCache)]
    found = key_orders(load(STORIES).model)
    same = [
        len({*a[:4].tolist()} & {*b[:4].tolist()})
        for layer, orders in enumerate(want)
        for a, b in zip(orders, found[layer], strict=True)
    ]
    assert np.mean(same) > 3


@pytest.fixture
def ids() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, 512, length).tolist() for length in (40, 3, 25)]


def test_losses_are_those_of_attention_written_out(
    ids: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against transformers' eager attention with rounded keys and values."""
    from transformers.models.llama import modeling_llama

    plain = modeling_llama.eager_attention_forward

    def eager(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        key = stored_keys(key, 4, orders[module.layer_idx])
        return plain(module, query, key, stored_values(value, 4), mask, **options)

    orders = key_orders(load(STORIES).model)
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
