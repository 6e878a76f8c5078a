"""Trainable RMSNorms: gradients compared with autograd, and the effect of a training step."""

from __future__ import annotations

from typing import Any

import pytest

from shrinkc.compression.norms import is_change, norm_weights, train_norms
from shrinkc.model import FAMILIES

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

pytestmark = pytest.mark.slow


class Block(torch.nn.Module):  # type: ignore[misc,name-defined]
    def __init__(self, weights: Any) -> None:
        from transformers.models.llama.modeling_llama import LlamaRMSNorm

        super().__init__()
        self.input_layernorm = LlamaRMSNorm(len(weights), eps=1e-5)
        self.input_layernorm.weight = torch.nn.Parameter(weights.clone())
        self.other = torch.nn.Linear(len(weights), 3)


@pytest.mark.parametrize("shape", [(6, 7), (2, 5, 7), (2, 3, 4, 7)])
def test_it_computes_the_replaced_norm(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weights = torch.rand(7) + 0.1
    x = (torch.randn(shape) * 3).requires_grad_()
    slope = torch.randn(shape)
    plain, trained = Block(weights), Block(weights)
    wanted = plain.input_layernorm(x)
    wanted.backward(slope)
    to_x, x.grad = x.grad, None
    train_norms(trained, FAMILIES["llama"])
    given = trained.input_layernorm(x)
    torch.testing.assert_close(given, wanted)
    given.backward(slope)
    torch.testing.assert_close(x.grad, to_x)
    change = trained.input_layernorm.change
    torch.testing.assert_close(change.grad, plain.input_layernorm.weight.grad * weights)
    assert [n for n, _ in trained.named_parameters() if is_change(n, norm_weights(trained))] == [
        "input_layernorm.change"
    ]


def test_low_precision_stays_low() -> None:
    weights = torch.rand(7) + 0.1
    plain, trained = Block(weights), Block(weights)
    train_norms(trained, FAMILIES["llama"])
    exact = torch.randn(4, 7, requires_grad=True)
    x = exact.detach().bfloat16().requires_grad_()
    slope = torch.randn(4, 7)
    given, wanted = trained.input_layernorm(x), plain.input_layernorm(exact)
    given.backward(slope.bfloat16())
    wanted.backward(slope)
    assert given.dtype == x.grad.dtype == torch.bfloat16
    assert trained.input_layernorm.change.grad.dtype == torch.float32
    near = {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(given.float(), wanted, **near)
    torch.testing.assert_close(x.grad.float(), exact.grad, **near)


def test_a_step_changes_small_weights_by_the_same_factor_as_large_ones() -> None:
    """Relative to their size: after a step with large gradients, a weight of 1e-5 still suppresses its channel."""
    weights = torch.tensor([1e-5, 0.3, 2.0])
    block = Block(weights)
    train_norms(block, FAMILIES["llama"])
    optimizer = torch.optim.AdamW(block.input_layernorm.parameters(), lr=1e-2, weight_decay=0)
    block.input_layernorm(torch.tensor([[900.0, 1.0, -2.0]])).sum().backward()
    optimizer.step()
    ratio = norm_weights(block)["input_layernorm"] / weights
    torch.testing.assert_close((ratio - 1).abs(), torch.full((3,), 1e-2), rtol=1e-2, atol=0)
