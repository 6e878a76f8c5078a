"""Second moments of the inputs of a block's matrices, and the weights of tokens."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from shrinkc.checkpoints import load
from shrinkc.compression.blocks import (
    block,
    embed,
    positions,
    second_moments,
    token_weights,
)
from shrinkc.compression.stages import gptq_worker
from shrinkc.core.errors import StageFailed
from shrinkc.model import ATTENTION, FAMILIES, MLP

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.slow

NAMES = (ATTENTION[0], ATTENTION[3], MLP[0], MLP[2])
NORMS, WRITERS = tuple(FAMILIES["llama"].readers), tuple(FAMILIES["llama"].writers)
HUGE = 3000.0  # size relative to the other tokens


def test_token_weights() -> None:
    stream = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0], [3e4, 4e4]])
    got = token_weights(torch.stack([stream, 2 * stream]))
    np.testing.assert_allclose(got[0, [0, 1, 3]].numpy(), [1 / 12.5, 8, 8e-10], rtol=1e-5)
    np.testing.assert_allclose(got[1, :2].numpy(), got[0, :2].numpy() / 4, rtol=1e-5)
    assert torch.isfinite(got).all()
    assert torch.isfinite(token_weights(stream.to(torch.bfloat16))).all()


@pytest.fixture
def states(stories: Path) -> tuple[Any, list[Any], Any]:
    """A block, two windows of its input with a huge first token, and RoPE's tables."""
    model = load(stories, dtype="float32").model
    ids = torch.arange(3, 67).view(2, 32)
    with torch.no_grad():
        hidden = embed(model, ids).clone()
        hidden[:, 0] *= HUGE
    return model.model.layers[1], [hidden[:1], hidden[1:]], positions(model, 32)


def by_hand(layer: Any, hidden: list[Any], tables: Any, *, weighted: bool) -> dict[str, np.ndarray]:
    """Compute second moments token by token, in float64."""
    found: dict[str, Any] = {name: [] for name in NAMES}
    counts: dict[str, Any] = {name: [] for name in NAMES}
    for h in hidden:
        given: dict[str, Any] = {}

        def see(module: Any, inputs: Any, *, name: str, given: dict[str, Any] = given) -> None:
            given[name] = inputs[0]

        handles = [
            layer.get_submodule(name).register_forward_pre_hook(partial(see, name=name))
            for name in (*NAMES, NORMS[1])
        ]
        after = block(layer, h, tables)
        for handle in handles:
            handle.remove()
        behind = {WRITERS[0]: given[NORMS[1]], WRITERS[1]: after}
        for name in NAMES:
            for t in range(h.shape[1]):
                x = given[name][0, t].double().numpy()
                stream = behind.get(name) if weighted else None
                weight = 1.0
                if stream is not None:
                    weight = 1 / float(stream[0, t].double().square().mean())
                found[name].append(weight * np.outer(x, x))
                counts[name].append(weight)
    return {name: sum(found[name]) / sum(counts[name]) for name in NAMES}


@pytest.mark.parametrize("weighted", [True, False])
def test_second_moments_by_hand(states: tuple[Any, list[Any], Any], weighted: bool) -> None:
    layer, hidden, tables = states
    with torch.no_grad():
        wanted = by_hand(layer, hidden, tables, weighted=weighted)
        got, after = second_moments(layer, hidden, tables, NAMES, weighted=weighted)
        for state, h in zip(after, hidden, strict=True):
            assert torch.equal(state, block(layer, h, tables))
    for name in NAMES:
        scale = np.abs(wanted[name]).max()
        np.testing.assert_allclose(got[name].numpy(), wanted[name], atol=1e-5 * scale)
    with torch.no_grad():
        other = second_moments(layer, hidden, tables, NAMES, weighted=not weighted)[0]
    # only matrices that write to the residual stream use token weights
    assert {n for n in NAMES if not torch.allclose(got[n], other[n])} == set(WRITERS)


def test_a_huge_first_token_does_not_outweigh_the_others(
    states: tuple[Any, list[Any], Any],
) -> None:
    """As in SmolLM2, an FFN channel is huge at the start of a text and is added to the residual stream."""
    layer, hidden, tables = states
    channel, direction = 11, 7
    with torch.no_grad():
        for h in hidden:
            h[..., direction] = 0
            h[:, 0] = 0
            h[:, 0, direction] = HUGE
        for module, size in ((layer.mlp.gate_proj, 10.0), (layer.mlp.up_proj, 1000.0)):
            module.weight[channel] = 0
            module.weight[channel, direction] = size
        layer.mlp.down_proj.weight[:, channel] = 1
        found = [
            second_moments(layer, hidden, tables, NAMES, weighted=r)[0][MLP[2]]
            for r in (True, False)
        ]
    weighted, plain = (float(m[channel, channel] / m.trace()) for m in found)
    assert plain > 0.9999 and weighted < 0.5


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """Return name of a matrix -> the inputs, also of the float model, that GPTQModel would add to the Hessian."""
    quantization = pytest.importorskip("gptqmodel.quantization")
    found: dict[str, list[Any]] = {}

    def add_batch(task: Any, inp: Any, out: Any, batch_index: Any = None) -> None:
        floats = task.native_inps.pop(0) if hasattr(task, "native_inps") else None
        found.setdefault(task._named_module.full_name, []).append((inp, floats))

    for kind in (quantization.gptq.GPTQ, quantization.gptaq.GPTAQ):
        monkeypatch.setattr(kind, "add_batch", add_batch)
    return found


@pytest.mark.parametrize("gptaq", [False, True])
def test_gptqmodel_gets_weighted_tokens(
    stories: Path, gathered: dict[str, list[Any]], gptaq: bool
) -> None:
    from gptqmodel.quantization.gptaq import GPTAQ
    from gptqmodel.quantization.gptq import GPTQ

    model = load(stories, dtype="float32").model
    windows = torch.arange(3, 35).view(2, 1, 16)
    inputs: dict[str, list[Any]] = {}
    behind: dict[str, list[Any]] = {}

    def seen(store: dict[str, list[Any]], name: str, made: Any) -> None:
        store.setdefault(name, []).append(made[0] if isinstance(made, tuple) else made)

    def gather(name: str, module: Any, given: Any, made: Any) -> None:
        seen(inputs, name, given)
        task = (GPTAQ if gptaq else GPTQ).__new__(GPTAQ if gptaq else GPTQ)
        task._named_module = SimpleNamespace(full_name=name)
        if gptaq:
            task.native_inps = [torch.ones_like(given[0])]
        task.add_batch(given[0], made)

    with gptq_worker.token_weighted_hessians(model), torch.no_grad():
        for index, layer in enumerate(model.model.layers):
            for matrix in NAMES:
                name = f"model.layers.{index}.{matrix}"
                layer.get_submodule(matrix).register_forward_hook(partial(gather, name))
            attention, mlp = (f"model.layers.{index}.{writer}" for writer in WRITERS)
            layer.get_submodule(NORMS[1]).register_forward_hook(
                lambda module, given, made, name=attention: seen(behind, name, given)
            )
            layer.register_forward_hook(
                lambda module, given, made, name=mlp: seen(behind, name, made)
            )
        for window in windows:
            model(window)
    assert sorted(gathered) == sorted(f"model.layers.{i}.{n}" for i in range(5) for n in NAMES)
    assert sorted(behind) == sorted(n for n in gathered if n.endswith(WRITERS))
    for name, parts in gathered.items():
        assert len(parts) == len(windows)
        for number, (inp, floats) in enumerate(parts):
            root = torch.ones(1, 16, 1)
            if name in behind:
                root = behind[name][number].square().mean(-1, keepdim=True).rsqrt()
            torch.testing.assert_close(inp, inputs[name][number] * root, rtol=1e-4, atol=1e-6)
            if gptaq:
                torch.testing.assert_close(floats, root.expand_as(inp), rtol=1e-4, atol=1e-6)


def test_a_matrix_that_gptqmodel_skips_is_a_defect(
    stories: Path, gathered: dict[str, list[Any]]
) -> None:
    from gptqmodel.quantization.gptq import GPTQ

    model, before = load(stories, dtype="float32").model, GPTQ.add_batch
    said = r"nothing of 10 matrices, the first is model\.layers\.0\.mlp"
    with pytest.raises(StageFailed, match=said), gptq_worker.token_weighted_hessians(model):
        pass
    assert GPTQ.add_batch is before
    norms = [layer.get_submodule(n) for layer in model.model.layers for n in NORMS]
    assert not any(norm._forward_pre_hooks for norm in norms)
