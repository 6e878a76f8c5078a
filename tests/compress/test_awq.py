"""Stage awq: the model computes the same, and rounding loses less."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.interrupting import InterruptAt
from shrinkc.checkpoints import load, save
from shrinkc.compression.facts import facts_of
from shrinkc.compression.stages import awq
from shrinkc.compression.stages.awq import Settings, Site
from shrinkc.compression.stages.context import StepContext
from shrinkc.core.errors import BadRecipe
from shrinkc.model import ATTENTION, FAMILIES, MLP

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.slow

Step = Callable[..., StepContext]
READ = (ATTENTION[0], ATTENTION[3], MLP[0], MLP[2])  # the first reader of every site


def by_hand(weight: np.ndarray, bits: int, group: int, sym: bool) -> np.ndarray:
    """Round every group to the nearest of 2^bits values over its range, which includes 0."""
    out = np.zeros_like(weight)
    size = weight.shape[1] if group == -1 else group
    top = 2**bits - 1
    for row in range(weight.shape[0]):
        for at in range(0, weight.shape[1], size):
            w = weight[row, at : at + size]
            low, high = min(w.min(), 0.0), max(w.max(), 0.0)
            if sym:
                high = max(high, -low)
                low = -high
            step = (high - low) / top
            zero = 2 ** (bits - 1) if sym else round(-low / step)
            values = (np.arange(2**bits) - zero) * step
            out[row, at : at + size] = values[np.abs(w[:, None] - values).argmin(1)]
    return out


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize(("bits", "group"), [(4, -1), (3, 8), (2, -1), (8, 4)])
def test_rounding_is_to_the_nearest_value_of_the_grid(bits: int, group: int, sym: bool) -> None:
    rng = np.random.default_rng(bits + group)
    weight = rng.normal(size=(5, 24)) + 0.5
    got = awq.nearest(torch.tensor(weight), bits, group, sym).numpy()
    np.testing.assert_allclose(got, by_hand(weight, bits, group, sym), atol=1e-12)


def test_the_loss_of_rounding_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    x, scale = rng.normal(size=(60, 12)), rng.uniform(0.5, 2, 12)
    weights = [rng.normal(size=(n, 12)) for n in (4, 7)]
    wanted = 0.0
    for w in weights:
        rounded = by_hand(w * scale, 3, -1, True) / scale
        wanted += ((x @ (rounded - w).T) ** 2).sum() / ((x @ w.T) ** 2).sum()
    tensors, gram = [torch.tensor(w) for w in weights], torch.tensor(x.T @ x / 60)
    powers = awq.output_powers(tensors, gram)
    got = awq.rounding_loss(Settings(bits=3), tensors, powers, gram, torch.tensor(scale))  # fmt: skip
    assert got == pytest.approx(wanted, rel=1e-9)


def test_scales_are_awqs_with_a_mean_of_one() -> None:
    rng = np.random.default_rng(1)
    x, w = rng.uniform(0.1, 5, 20), rng.uniform(0.1, 5, 20)
    x[3] = w[7] = 0  # an input that is always 0, and one that is never read
    got = awq.scales(torch.tensor(x), torch.tensor(w), 0.5, 0.25).numpy()
    used = [i for i in range(20) if i not in (3, 7)]
    wanted = x[used] ** 0.5 / w[used] ** 0.25
    np.testing.assert_allclose(got[used], wanted / np.exp(np.log(wanted).mean()))
    top = (w[used] * got[used]).max()
    assert got[3] == pytest.approx(min(1, top / w[3])) and got[7] == 1
    wild = awq.scales(torch.tensor([1e-30, 1.0, 1e30]), torch.ones(3), 1.0, 0.0)
    assert wild.tolist() == [1 / awq.LIMIT, 1, awq.LIMIT]


def test_a_value_head_has_one_scale_for_all_heads_that_read_it() -> None:
    site = Site("v", ("o",), heads=2, shared=3)
    values = torch.arange(2 * 3 * 4, dtype=torch.float64)
    wanted = values.numpy().reshape(2, 3, 4)
    np.testing.assert_array_equal(awq._shared(values, site, "mean"), wanted.mean(1).reshape(-1))
    np.testing.assert_array_equal(awq._shared(values, site, "max"), wanted.max(1).reshape(-1))
    rows = torch.arange(8)
    got = awq._repeated(rows, site).tolist()
    assert got == [head * 4 + i for head in range(2) for _ in range(3) for i in range(4)]


@pytest.mark.parametrize("settings", [Settings(), Settings(bits=2, group_size=32, sym=False)])
def test_scaling_does_not_change_the_model(
    stories: Path, step: Step, tmp_path: Path, settings: Settings
) -> None:
    report = awq.run(settings, step()).parameters["layers"]
    before, after = load(stories), load(tmp_path / "out")
    windows = step().calibration.windows(before.tokenizer)
    with torch.no_grad():
        a, b = before.model(windows).logits, after.model(windows).logits
    # the weight and the norm weight that undoes its scale are stored in float16
    assert float((a - b).abs().mean()) < 2e-3 * float(a.abs().mean())
    assert [sorted(layer) for layer in report] == [sorted(READ)] * 5
    losses = [site["loss"] for layer in report for site in layer.values()]
    assert max(losses) <= 1 and np.median(losses) < 0.95
    old, new = facts_of(stories), facts_of(tmp_path / "out")
    assert (old.parameters, old.packed_bytes) == (new.parameters, new.packed_bytes)
    for name, weight in before.model.named_parameters():
        touched = any(part in name for part in (*MLP, *ATTENTION, "layernorm"))
        same = torch.equal(weight, after.model.get_parameter(name))
        assert touched or same, name


def rounding_divergence(source: Path, context: StepContext) -> float:
    """Return the divergence in nats per token of the model after per-channel rounding to nearest at 3 bit."""
    loaded = load(source)
    windows = context.calibration.windows(loaded.tokenizer)
    with torch.no_grad():
        whole = loaded.model(windows).logits.log_softmax(-1)
        for layer in loaded.model.model.layers:
            for name in (*ATTENTION, *MLP):
                weight = layer.get_submodule(name).weight
                weight.copy_(awq.nearest(weight, 3, -1, True))
        changed = loaded.model(windows).logits.log_softmax(-1)
    return float((whole.exp() * (whole - changed)).sum(-1).mean())


def test_outlier_inputs_lose_less(stories: Path, step: Step, tmp_path: Path) -> None:
    """A model whose inputs were scaled to very different sizes, as outliers do in larger models, is better after stage
    and rounding than the unscaled model."""
    loaded = load(stories, dtype="float32")
    config = loaded.model.config
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in loaded.model.model.layers:
            for site in awq.sites(
                FAMILIES["llama"], config.num_attention_heads, config.num_key_value_heads
            ):
                maker = layer.get_submodule(site.maker).weight
                scale = torch.empty(len(maker)).normal_(generator=random).exp()
                maker.div_(scale.view(-1, *[1] * (maker.dim() - 1)))
                for name in site.readers:
                    layer.get_submodule(name).weight.mul_(awq._repeated(scale, site))
    hard = tmp_path / "hard"
    hard.mkdir()
    save(loaded.model, loaded.tokenizer, hard)
    awq.run(Settings(bits=3), step(source=hard))
    plain, worse, better = (
        rounding_divergence(source, step()) for source in (stories, hard, tmp_path / "out")
    )
    assert worse > 2 * plain
    assert better < 0.97 * plain, (plain, worse, better)


def test_a_small_input_with_large_weights_is_scaled() -> None:
    """Without scales, its weights determine the quantisation steps of all other inputs."""
    rng = np.random.default_rng(5)
    layer = torch.nn.ModuleDict(
        {
            "norm": torch.nn.LayerNorm(16, bias=False),
            "reader": torch.nn.Linear(16, 8, bias=False),
        }
    )
    weight = torch.tensor(rng.normal(size=(8, 16)), dtype=torch.float32)
    weight[:, 5] *= 40
    layer["reader"].weight = torch.nn.Parameter(weight.clone())
    layer.requires_grad_(False)
    magnitudes = torch.ones(16)
    magnitudes[5] = 1 / 40
    moment = torch.diag(magnitudes**2)
    found = awq.scale_site(Settings(), layer, Site("norm", ("reader",)), moment, torch.float16)
    assert found["loss"] < 0.05
    gain = layer["norm"].weight
    assert gain[5] / gain[4] > 10  # error of the weight
    torch.testing.assert_close(layer["reader"].weight * gain, weight)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_stored_weights_stay_finite(stored: Any) -> None:
    """The best scale of a tiny input with a large norm weight would overflow float16."""
    layer = torch.nn.ModuleDict(
        {
            "norm": torch.nn.LayerNorm(16, bias=False),
            "reader": torch.nn.Linear(16, 8, bias=False),
        }
    )
    layer.requires_grad_(False)
    layer["norm"].weight[5] = 1e4
    layer["reader"].weight[:, 5] *= 1e3
    magnitudes = torch.ones(16)
    magnitudes[5] = 1e-3
    before = layer["reader"].weight * layer["norm"].weight
    found = awq.scale_site(
        Settings(), layer, Site("norm", ("reader",)), torch.diag(magnitudes**2), stored
    )
    layer.to(stored)
    assert all(bool(p.isfinite().all()) for p in layer.parameters())
    after = layer["reader"].weight.float() * layer["norm"].weight.float()
    torch.testing.assert_close(after, before, rtol=2e-2, atol=0)
    assert (found["scales"] != "none") == (stored == torch.bfloat16)


@pytest.mark.parametrize("how", ["learned", "AWQ's"])
def test_an_input_that_is_always_zero_costs_nothing(how: str) -> None:
    """Its weights are thirty times as large as the others and would determine the quantisation steps of whole rows."""
    rng = np.random.default_rng(6)
    weight = torch.tensor(rng.normal(size=(8, 16)), dtype=torch.float32)
    weight[:, 3] *= 30
    x = torch.tensor(rng.uniform(0.1, 3, 16), dtype=torch.float32) ** 2
    x[3] = 0
    settings, site, gram = Settings(), Site("norm", ("reader",)), torch.diag(x)
    powers = awq.output_powers([weight], gram)
    if how == "learned":
        got = awq.learned(settings, [weight], powers, gram, site, torch.ones(16))
    else:
        got = awq.scales(x.sqrt(), weight.abs().amax(0), 0.2, 0.0)
    plain, scaled = (
        awq.rounding_loss(settings, [weight], powers, gram, s) for s in (torch.ones(16), got)
    )
    assert scaled < plain / 20
    assert got[3] < 0.2


def test_an_interrupt_loses_one_layer(step: Step, tmp_path: Path) -> None:
    settings = Settings(points=3)
    with pytest.raises(KeyboardInterrupt):
        awq.run(settings, step(reporter=InterruptAt("awq", 4)))
    assert not (tmp_path / "out").exists()
    done = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "scratch").glob("layer*.pt")}
    assert len(done) == 3
    resumed = awq.run(settings, step()).parameters
    for name, when in done.items():
        assert (tmp_path / "scratch" / name).stat().st_mtime_ns == when
    (tmp_path / "fresh").mkdir()
    other = step(out=tmp_path / "again", scratch=tmp_path / "fresh")
    assert resumed == awq.run(settings, other).parameters
    for file in (tmp_path / "out").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"bits": 5}, "bits = 5; 2, 3, 4, 8 are allowed"),
        ({"group_size": 0}, "group_size = 0; -1, 16, 32"),
        ({"group_size": (64, 5)}, "group_size = 5; -1, 16, 32"),
        ({"group_size": ()}, "group_size is empty"),
        ({"sym": 3}, "sym = 3; true or false is allowed"),
        ({"learn": "yes"}, "learn = 'yes'; true or false is allowed"),
        ({"points": 1}, "points = 1; 2 to 101 is allowed"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRecipe, match=said):
        Settings(**settings)


def test_preflight(stories: Path) -> None:
    facts = facts_of(stories)
    assert awq.preflight(Settings(group_size=32), facts) == []
    (said,) = awq.preflight(Settings(group_size=64), facts)
    assert said == "group_size = 64 does not divide 96 inputs; give the group_size of [gptq]"
    assert awq.preflight(Settings(group_size=(64, 32)), facts) == []
    resolved, (note,) = awq.resolve(Settings(group_size=(64, 32, 16)), facts)
    assert resolved.group_size == 32
    assert note == "group_size = 32, of 64, 32, 16 the first that divides 96 and 256 inputs"
