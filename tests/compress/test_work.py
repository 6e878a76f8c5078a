"""The declared work of a stage equals the counted operations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shrinkc.compression import fisher, sensitivity
from shrinkc.compression.calibration import Calibration
from shrinkc.compression.facts import ModelFacts, facts_of
from shrinkc.compression.gptq import Weighting, damped, quantize_matrix, work_of_matrix
from shrinkc.compression.rounding import ROUNDING_PASSES, rounded
from shrinkc.compression.stages import awq, gptq
from shrinkc.core.progress import Silent
from shrinkc.importer.model import QuantizedWeight
from shrinkc.model import FAMILIES

torch = pytest.importorskip("torch")
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

NOTHING = Calibration((), 0, 8)


class Counting(TorchDispatchMode):  # type: ignore[misc]
    """Counts ``calls`` and ``numbers`` that operations make outside of matrix products, and the multiplications
    of ``products``; of a sum what it reads counts, of a power 15 passes, and views count nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.numbers, self.products = 0, 0, 0
        self.by = Counter[str]()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        self.calls += 1
        name = function.overloadpacket.__name__
        if name in ("mm", "addmm", "bmm", "matmul"):
            a, b = args[-2:]
            self.products += a.numel() * b.shape[-1]
        elif not getattr(function, "is_view", False):
            tensors = [t for t in (made, *args) if isinstance(t, torch.Tensor)]
            size = max((t.numel() for t in tensors), default=0)
            self.numbers += size * (15 if name.startswith("pow") and args[1] != 2 else 1)
            self.by[name] += size
        return made


def test_awq(stories: Path) -> None:
    from shrinkc.checkpoints import load

    facts, layers = facts_of(stories), 5
    settings = awq.Settings(group_size=32, points=3)
    model = load(stories, dtype="float32").model
    layer = model.model.layers[0]
    counting = Counting()
    with torch.no_grad():
        for site in awq.sites(FAMILIES["llama"], 6, 2):
            inputs = layer.get_submodule(site.readers[0]).in_features
            moment = torch.randn(inputs, inputs).double()
            with counting:
                awq.scale_site(settings, layer, site, moment @ moment.T, torch.float32)
    said = awq.work(settings, facts, NOTHING)
    assert 0.67 < said.numbers / (layers * counting.numbers) < 1.5, counting.by
    assert 0.67 < said.calls / (layers * counting.calls) < 1.5
    tokens = layers * counting.products / gptq.weights_of(facts.config)
    assert 0.67 < said.tokens / tokens < 1.5


def test_quantisation_aware_training() -> None:
    rng = np.random.default_rng(0)
    q, scale = rng.integers(0, 16, (96, 128), np.uint8), np.ones((96, 4), np.float32)
    layer = rounded(QuantizedWeight(4, 32, q, scale, -8 * scale), None, "bfloat16", "cpu")
    x = torch.randn(4, 128)  # few tokens, so that passes over the weights dominate
    counting = Counting()
    with counting:
        layer(x).sum().backward()
    assert 0.67 < ROUNDING_PASSES * q.size / counting.numbers < 1.5, counting.by


def counted_on(stories: Path, measure: Callable[[Any], object]) -> tuple[Counting, ModelFacts]:
    """What ``measure`` does with the model."""
    from shrinkc.checkpoints import load

    model, counting = load(stories, dtype="float32").model, Counting()
    with counting:
        measure(model)
    return counting, facts_of(stories)


def test_estimated_costs(stories: Path) -> None:
    windows = torch.randint(3, 500, (2, 128))
    counting, facts = counted_on(
        stories, lambda model: fisher.estimate_costs(model, windows, 0, Silent())
    )
    said = fisher.work(facts, 2, 128)
    assert 0.67 < said.numbers / counting.numbers < 1.5, counting.by
    assert 0.67 < said.tokens * facts.parameters / counting.products < 1.5


def test_sensitivities(stories: Path, tmp_path: Path) -> None:
    windows, fit = torch.randint(3, 500, (2, 128)), torch.randint(3, 500, (16, 128))
    counting, facts = counted_on(
        stories, lambda model: sensitivity.measure(model, windows, fit, tmp_path / "s", Silent())
    )
    said = sensitivity.work(facts, 2, 128)
    assert 0.67 < said.tokens * facts.parameters / counting.products < 1.5
    assert 0.5 < said.calls / counting.calls < 1.5


@pytest.mark.parametrize(("bits", "points"), [(2, False), (8, False), (4, True)])
def test_a_matrix_with_error_feedback(bits: int, points: bool) -> None:
    n, k, moment = 96, 256, torch.randn(256, 256)
    weighting, counting = Weighting.of(damped(moment @ moment.T, 0.05)), Counting()
    with counting:
        quantize_matrix(torch.randn(n, k), weighting, bits=bits, group_size=32, points=points)
    said = work_of_matrix(n, k, bits, points=points)
    assert 0.67 < said.numbers / counting.numbers < 1.5, counting.by
    assert 0.67 < said.tokens * n * k / counting.products < 1.5
    assert 0.5 < said.calls / counting.calls < 1.5


@pytest.mark.slow
def test_gptq(stories: Path) -> None:
    """One matrix, rounded by GPTQModel."""
    gptaq = pytest.importorskip("gptqmodel.quantization.gptaq")
    from gptqmodel import QuantizeConfig
    from gptqmodel.looper.named_module import NamedModule
    from gptqmodel.quantization import GPTAQConfig

    n, k, settings = 96, 256, gptq.Settings(group_size=32)
    linear = torch.nn.Linear(k, n, bias=False)
    named = NamedModule(linear, "down_proj", "model.layers.0.mlp.down_proj", 0)
    config = QuantizeConfig(
        bits=4, group_size=32, mse=settings.mse, gptaq=GPTAQConfig(alpha=settings.gptaq)
    )
    x = torch.randn(1, 300, k)
    named.state["native_inp"] = [x + 0.1 * torch.randn_like(x)]
    task = gptaq.GPTAQ(named, config)
    task.quantizer.configure(perchannel=True)
    task.process_batch(x)
    counting = Counting()
    with torch.no_grad(), counting:
        task.quantize()
    said = gptq.work_of_matrix(settings, n, k, 32)
    assert 0.67 < 4 * said.numbers / counting.numbers < 1.5, counting.by  # blocks in caches
    assert 0.67 < said.calls / counting.calls < 1.5
    assert 0.67 < said.tokens * n * k / counting.products < 1.5
