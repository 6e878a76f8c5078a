"""Stage lora: loss and attention compared with plain torch, the merge, and continuation after an interrupt."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from helpers.interrupting import Recorder, SignalAt
from shrinkc.checkpoints import load
from shrinkc.compression import training
from shrinkc.compression.attention import use_products
from shrinkc.compression.facts import facts_of
from shrinkc.compression.soft_loss import loss_and_gradient
from shrinkc.compression.stages import depth, finetune_scales, lora, qat, reconstruct
from shrinkc.compression.stages.context import StepContext
from shrinkc.compression.training import DEFAULT_SAMPLES, Windows, windows_of
from shrinkc.core.errors import BadData, RunChanged, TrainingDiverged
from shrinkc.importer import load_model

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

pytestmark = pytest.mark.slow

Step = Callable[..., StepContext]
FAST = {"length": 64, "batch": 4, "micro_batch": 2, "learning_rate": 5e-3}


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_the_loss_and_its_gradient(weight: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shrinkc.compression.soft_loss.BLOCK", 5)
    monkeypatch.setattr("shrinkc.compression.soft_loss.ROWS", 3)
    torch.manual_seed(0)
    hidden = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    head = torch.randn(11, 5, dtype=torch.float64, requires_grad=True)
    known = torch.randn(8, 5, dtype=torch.float64), torch.randn(11, 5, dtype=torch.float64)
    targets = torch.randint(11, (8,))
    student = torch.log_softmax(hidden @ head.T, 1)
    teacher = torch.log_softmax(known[0] @ known[1].T, 1)
    wanted = (1 - weight) * torch.nn.functional.nll_loss(student, targets, reduction="sum")
    wanted = wanted + weight * (teacher.exp() * (teacher - student)).sum()
    wanted.backward()
    side = known if weight else None
    given, to_head = (hidden.detach(), head.detach()), torch.ones(11, 5)
    loss, gradient = loss_and_gradient(*given, targets, side, weight, to_head)
    assert loss == pytest.approx(wanted.item(), rel=1e-5)  # the logits are float32
    torch.testing.assert_close(gradient, hidden.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(to_head - 1, head.grad.float(), rtol=1e-4, atol=1e-5)
    again, same = loss_and_gradient(*given, targets, side, weight)
    assert again == loss and bool((same == gradient).all())


def test_attention_by_products_is_attention(stories: Path) -> None:
    plain, products = load(stories).model, load(stories).model
    use_products(products)
    ids = torch.randint(3, 500, (2, 40), generator=torch.Generator().manual_seed(1))
    for model in (plain, products):
        model.requires_grad_(True)
        model(ids, labels=ids, use_cache=False).loss.backward()
    for (name, a), (_, b) in zip(
        plain.named_parameters(), products.named_parameters(), strict=True
    ):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_learning_rate() -> None:
    settings = lora.Settings(learning_rate=1.0, warmup=0.1)
    rates = [settings.rate(step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[55] == pytest.approx(0.5 * (1 + math.cos(math.pi * 45 / 90)))
    assert rates[-1] < 1e-3 and all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_every_epoch_shuffles_whole_windows() -> None:
    windows = Windows(list(range(1000)), 16, 3, "lora.text")
    assert windows.per_epoch == 61
    samples = [windows.sample(i).tolist() for i in range(2 * 61)]
    first, second = ({s[0] for s in part} for part in (samples[:61], samples[61:]))
    for starts, part in ((first, samples[:61]), (second, samples[61:])):
        assert len(starts) == 61 and len({s % 16 for s in starts}) == 1
        assert [s[0] for s in part] != sorted(starts)
    assert first != second
    assert windows.sample(5).tolist() == samples[5]  # also after other samples
    later = Windows(list(range(1000)), 16, 3, "lora.text")
    later.first = 57
    assert [later.sample(i).tolist() for i in range(65)] == samples[57:]
    with pytest.raises(BadData, match="20 tokens are too few"):
        Windows(list(range(20)), 16, 0, "lora.text")


def test_stages_of_one_text_have_different_windows(step: Step, story_file: Path) -> None:
    """For the same text (named, or the calibration's) and length; a stage with epochs starts at a whole one."""
    first = reconstruct.Settings(samples=30, length=64)
    other = qat.Settings(samples=30, length=64, text=("own.txt",))
    named = lora.Settings(samples=13, length=64, batch=8, text=(str(story_file),))
    whole = finetune_scales.Settings(epochs=2, length=64, batch=4)
    shorter = lora.Settings(samples=5, length=32)
    context = step()
    tokenizer = load(context.source).tokenizer

    def begins(settings: Any, *earlier: Any) -> Windows:
        context.earlier = (depth.Settings(remove=1), *earlier)
        return windows_of(settings, context, "qat", tokenizer)

    alone = begins(first, other, shorter)
    count = alone.per_epoch
    assert alone.first == 0 and count > 60
    found = begins(qat.Settings(length=64), first, other, shorter, named)
    assert found.first == 30 + 16
    assert found.sample(3).tolist() == alone.sample(49).tolist() != alone.sample(3).tolist()
    batches = -(-2 * count // 4) * 4
    assert begins(first, whole).first == batches == whole.windows(count)
    assert begins(whole, first).first == count and begins(whole, whole).first % count == 0
    assert lora.Settings().windows(count) == DEFAULT_SAMPLES


@pytest.fixture(scope="module")
def pruned(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned model with a loss to recover."""
    from shrinkc.checkpoints import save
    from shrinkc.compression.stages.depth import keep_layers

    loaded = load(stories)
    keep_layers(loaded.model, [0, 1, 3, 4])
    out = tmp_path_factory.mktemp("pruned") / "m"
    save(loaded.model, loaded.tokenizer, out)
    return out


def test_it_recovers_and_is_merged(pruned: Path, step: Step, tmp_path: Path) -> None:
    context = step(pruned)
    settings = lora.Settings(samples=80, targets=("q_proj", "down_proj"), dtype="float32", **FAST)
    report = lora.run(settings, context).parameters
    assert report["steps"] == 20 and report["tokens"] == 20 * 4 * 64
    assert report["trainable"] == 4 * 8 * ((96 + 96) + (256 + 96))
    curve = [loss for _, loss in report["loss_curve"]]
    assert np.mean(curve[-5:]) < np.mean(curve[:5]) - 0.3
    before, after = load_model(pruned), load_model(tmp_path / "out")
    for a, b in zip(before.layers, after.layers, strict=True):
        for name, values in vars(a).items():
            if isinstance(values, np.ndarray):
                changed = not np.array_equal(values, getattr(b, name))
                assert changed == (name in ("wq", "w_down"))
    windows = context.calibration.windows(load(pruned).tokenizer)
    with torch.no_grad():
        losses = [
            float(load(path).model(windows, labels=windows).loss)
            for path in (pruned, tmp_path / "out")
        ]
    assert losses[1] < losses[0] - 0.3


def test_the_merged_model_computes_what_the_adapters_did(pruned: Path, step: Step) -> None:
    settings = lora.Settings(samples=8, dtype="float32", train_norms=True, **FAST)
    context = step(pruned)
    training = lora.start(settings, context)
    windows = Windows(list(range(3, 500)) * 3, 64, 0, "lora.text")
    training._all_steps(windows, 2)
    training.model.eval()
    merged = lora._merge(settings, context, training.trained_tensors()).float()
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        a, b = training.model(ids).logits, merged(ids).logits
    # the stored dtype is float16
    torch.testing.assert_close(a, b, rtol=0, atol=2e-2)
    norms = {n: t for n, t in training.trained_tensors().items() if n.endswith("norm.weight")}
    assert len(norms) == 2 * 4 + 1
    base = dict(load(pruned).model.named_parameters())
    assert any(not torch.equal(t, base[n].data) for n, t in norms.items())


def test_a_teacher_changes_what_is_learned(
    pruned: Path, stories: Path, step: Step, tmp_path: Path
) -> None:
    settings = lora.Settings(samples=80, distill=1.0, dropout=0.0, dtype="float32", **FAST)
    context = step(pruned, teacher=stories)
    report = lora.run(settings, context).parameters
    curve = [loss for _, loss in report["loss_curve"]]
    # the loss is the divergence to the teacher, which approaches 0
    assert curve[-1] < 0.7 * curve[0]
    windows = context.calibration.windows(load(stories).tokenizer)

    def divergence(path: Path) -> float:
        with torch.no_grad():
            a = load(stories).model(windows).logits.log_softmax(-1)
            b = load(path).model(windows).logits.log_softmax(-1)
        return float((a.exp() * (a - b)).sum(-1).mean())

    assert divergence(tmp_path / "out") < 0.7 * divergence(pruned)


@pytest.mark.parametrize(
    "extra",
    [
        {"dtype": "bfloat16", "dropout": 0.2},
        {"dtype": "float32", "distill": 0.5, "train_norms": True},
    ],
)
def test_resumed_training_is_the_same_byte_for_byte(
    extra: dict[str, Any], pruned: Path, stories: Path, step: Step, tmp_path: Path
) -> None:
    settings = lora.Settings(samples=32, **FAST, **extra)
    first, second = SignalAt("lora", 5), Recorder()
    with pytest.raises(KeyboardInterrupt):
        lora.run(settings, step(pruned, teacher=stories, reporter=first))
    # the current step was finished, and no other one started
    assert first.heard[-1] == ("lora", 5, 8)
    resumed = lora.run(settings, step(pruned, teacher=stories, reporter=second)).parameters
    assert second.heard == [("lora", done, 8) for done in range(5, 9)]
    (tmp_path / "fresh").mkdir()
    context = step(pruned, teacher=stories, out=tmp_path / "again", scratch=tmp_path / "fresh")
    whole = lora.run(settings, context).parameters
    assert resumed == whole
    for file in (tmp_path / "out").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


def test_a_state_that_is_slow_to_write_is_written_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With steps of 10 s: a state per minute, then one in ten minutes if writing takes 30 s."""
    now, saved = [0.0], []

    class Slow(training.Training):
        def __init__(self) -> None:
            self.kind, self.parameters, self.optimizer = "lora", {}, None
            self.step = SimpleNamespace(scratch=tmp_path, reporter=Recorder())  # type: ignore[assignment]

        def _one_step(self, windows: Any, number: int, steps: int) -> float:
            now[0] += 10
            return 1.0

    def save(file: Path, parameters: Any, optimizer: Any, losses: list[float]) -> None:
        saved.append(len(losses))
        now[0] += 30 if len(saved) > 2 else 1

    monkeypatch.setattr(training, "save_state", save)
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: now[0]))
    Slow()._all_steps(Windows(list(range(99)), 8, 0, "text"), 150)
    assert saved == [6, 12, 18, 78, 138]


def test_a_state_of_other_tensors_is_refused(pruned: Path, step: Step, tmp_path: Path) -> None:
    """Such as the state of another version of shrinkc."""
    settings = lora.Settings(samples=32, dtype="float32", **FAST)
    with pytest.raises(KeyboardInterrupt):
        lora.run(settings, step(pruned, reporter=SignalAt("lora", 1)))
    state = tmp_path / "scratch" / "training.pt"
    saved = torch.load(state, weights_only=True)
    saved["trained"]["model.norm.weight"] = saved["trained"].popitem()[1]
    torch.save(saved, state)
    with pytest.raises(RunChanged, match=r"training\.pt was begun by another version") as caught:
        lora.run(settings, step(pruned))
    assert str(tmp_path / "scratch") in (caught.value.hint or "")


def test_a_loss_that_is_not_finite_stops(pruned: Path, step: Step, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(pruned, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = torch.inf
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    settings = lora.Settings(samples=8, dtype="float32", **FAST)
    with pytest.raises(
        TrainingDiverged, match="loss of step 0 is not finite.*lower lora.learning_rate"
    ):
        lora.run(settings, step(broken))
    assert not (tmp_path / "out").exists()


def test_preflight_and_data(stories: Path, step: Step, tmp_path: Path) -> None:
    facts = facts_of(stories)
    assert "context is 512" in lora.preflight(lora.Settings(length=1024), facts)[0]
    assert "narrowest matrix has 32" in lora.preflight(lora.Settings(rank=64), facts)[0]
    assert lora.preflight(lora.Settings(), facts) == []
    short = tmp_path / "short.txt"
    short.write_text("Once upon a time.")
    tokenizer = load(stories).tokenizer
    with pytest.raises(BadData, match="are too few for training on windows of 512"):
        lora.LORA.check_data(lora.Settings(text=(str(short),)), step().calibration, tokenizer)
