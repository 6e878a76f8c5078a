"""Stage ``lora``: recovery by low-rank adapters (PEFT), merged into the weights afterwards."""

from __future__ import annotations

import importlib
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shrinkc.checkpoints import load, need, save, stored_dtype, torch_dtype
from shrinkc.compress.attention import use_products
from shrinkc.compress.calibration import Calibration, encode_texts
from shrinkc.compress.checks import between, one_of
from shrinkc.compress.facts import ModelFacts
from shrinkc.compress.soft_loss import loss_and_gradient
from shrinkc.compress.stages.context import StepContext, StepReport
from shrinkc.compress.texts import check_duplicates, read_texts
from shrinkc.core.errors import BadData, BadRecipe, StageFailed

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MODULES = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
ALL = "all"
KEY = "lora.text"
DEFAULT_SAMPLES = 8192
SAVE_SECONDS = 60.0  # between two saved states: what an interrupt loses at most
CURVE_POINTS = 200
CLIP = 1.0  # of the gradient's norm
_ASKS = "is_gptqmodel_available"


@dataclass(frozen=True)
class Settings:
    """Adapters of ``rank`` and scale alpha / rank beside ``targets`` (module names, or "all").

    Text comes from ``text`` (else from the calibration's), cut into windows of ``length`` tokens;
    every epoch cuts at another place and shuffles.  ``samples`` windows in all, or ``epochs`` over
    the text.  A step is ``batch`` windows, ``micro_batch`` at a time.  AdamW; ``learning_rate``
    rises over the first ``warmup`` of all steps and falls like a cosine.  ``dtype`` is that of the
    computation; adapters, their optimiser and the merge are float32.

    ``distill``: weight of the Kullback-Leibler divergence to the uncompressed model; the rest is on
    the text's tokens.  ``train_norms``: norm gains are trained as well.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.1
    targets: tuple[str, ...] = ATTENTION
    text: tuple[str, ...] = ()
    samples: int | None = None
    epochs: float | None = None
    batch: int = 8
    micro_batch: int = 1
    length: int = 512
    learning_rate: float = 2e-4
    warmup: float = 0.03
    weight_decay: float = 0.0
    dtype: str = "bfloat16"
    distill: float = 0.0
    train_norms: bool = False

    def __post_init__(self) -> None:
        between("rank", self.rank, 1, 4096)
        between("alpha", self.alpha, 1e-6)
        between("dropout", self.dropout, 0, 0.9)
        if not self.targets:
            raise BadRecipe("targets = []; at least one module is needed.")
        for target in self.targets:
            one_of("targets", target, (*MODULES, ALL))
        if self.samples is not None and self.epochs is not None:
            raise BadRecipe("one of samples and epochs is allowed; both are given.")
        between("samples", self.samples or 1, 1)
        between("epochs", 1.0 if self.epochs is None else self.epochs, 1e-3)
        between("batch", self.batch, 1)
        between("micro_batch", self.micro_batch, 1)
        if self.batch % self.micro_batch:
            raise BadRecipe(
                f"micro_batch = {self.micro_batch}; a divisor of batch = {self.batch} is allowed."
            )
        between("length", self.length, 8)
        between("learning_rate", self.learning_rate, 1e-8, 1.0)
        between("warmup", self.warmup, 0, 1)
        between("weight_decay", self.weight_decay, 0, 1)
        one_of("dtype", self.dtype, ("bfloat16", "float32"))
        between("distill", self.distill, 0, 1)

    @property
    def needs_calibration(self) -> bool:
        """Whether the calibration's text is trained on."""
        return not self.text

    @property
    def modules(self) -> list[str]:
        """Names of the modules that get an adapter."""
        return [m for m in MODULES if ALL in self.targets or m in self.targets]

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 0."""
        warm = max(1, round(self.warmup * steps))
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


def preflight(settings: Settings, facts: ModelFacts) -> list[str]:
    """Windows that are longer than the model's context; an adapter as large as a matrix."""
    c, problems = facts.config, []
    if settings.length > c.max_position:
        problems.append(f"length = {settings.length}: the model's context is {c.max_position}")
    narrowest = min(c.hidden_size, c.num_kv_heads * c.head_dim)
    if settings.rank > narrowest:
        problems.append(
            f"rank = {settings.rank}: the narrowest matrix has {narrowest} rows or columns"
        )
    return problems


def inputs(settings: Settings) -> dict[str, str]:
    """Hashes of the texts.  Raises BadData when one cannot be read."""
    if not settings.text:
        return {}
    return {t.name: t.sha256 for t in read_texts(settings.text, KEY)}


def check_data(settings: Settings, calibration: Calibration, tokenizer: Any) -> list[str]:
    """Notes on the text; BadData when it is too short or repeats itself."""
    texts = read_texts(settings.text or calibration.text, KEY)
    notes = check_duplicates(texts, KEY)
    _Windows(encode_texts(texts, tokenizer), settings.length, 0)
    return notes


def work(settings: Settings, facts: ModelFacts, calibration: Calibration) -> float:
    """Tokens through the model: forward, backward without weight gradients, and the teacher."""
    samples = settings.samples or DEFAULT_SAMPLES
    if settings.epochs is not None:
        texts = read_texts(settings.text or calibration.text, KEY)
        characters = sum(len(t.content) for t in texts)
        samples = round(settings.epochs * characters / 4 / settings.length)  # a guess, as it says
    return samples * settings.length * (3.0 if settings.distill else 2.0)


def run(settings: Settings, step: StepContext) -> StepReport:
    """Trains and merges; ``parameters`` has the loss curve in nats per token."""
    need("peft")
    import torch

    torch.manual_seed(step.seed)
    texts = read_texts(settings.text or step.calibration.text, KEY)
    training = _Training(settings, step)
    windows = _Windows(encode_texts(texts, training.tokenizer), settings.length, step.seed)
    samples = settings.samples or DEFAULT_SAMPLES
    if settings.epochs is not None:
        samples = round(settings.epochs * windows.per_epoch)
    steps = math.ceil(samples / settings.batch)
    curve = training.train(windows, steps)
    trained = training.trained_tensors()
    count = sum(value.numel() for value in trained.values())
    tokenizer = training.tokenizer
    del training

    merged = _merge(settings, step, trained)
    save(merged, tokenizer, step.out)
    return StepReport(
        {
            "steps": steps,
            "tokens": steps * settings.batch * settings.length,
            "epochs": round(steps * settings.batch / windows.per_epoch, 3),
            "trainable": count,
            "loss_curve": _thinned(curve),
        }
    )


class _Windows:
    """Windows of token ids in the order of training: sample i is the same whenever it is asked for."""

    def __init__(self, ids: list[int], length: int, seed: int) -> None:
        import torch

        self.ids = torch.tensor(ids)
        self.length, self.seed = length, seed
        # a window less than would fit, so that every epoch can start at another place
        self.per_epoch = (len(ids) - length) // length
        self._order: tuple[int, Any] = (-1, None)
        if self.per_epoch < 2:
            raise BadData(
                f"{KEY}: {len(ids)} tokens are too few for training on windows of {length}.",
                f"give at least {3 * length} tokens, and better some 100000, or lower the length.",
            )

    def sample(self, index: int) -> Any:
        """int64 [length]."""
        import torch

        epoch, place = divmod(index, self.per_epoch)
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            offset = torch.randint(self.length, (), generator=generator)
            starts = torch.randperm(self.per_epoch, generator=generator) * self.length + offset
            self._order = (epoch, starts)
        start = int(self._order[1][place])
        return self.ids[start : start + self.length]

    def batch(self, step: int, batch: int, micro: int) -> Iterator[Any]:
        """The micro-batches, int64 [micro, length], of a step."""
        import torch

        for first in range(step * batch, (step + 1) * batch, micro):
            yield torch.stack([self.sample(first + i) for i in range(micro)])


class _Training:
    """The model with its adapters, the optimiser, and the teacher if there is one."""

    def __init__(self, settings: Settings, step: StepContext) -> None:
        import torch

        self.settings, self.step = settings, step
        loaded = load(step.source, dtype=settings.dtype, device=step.device)
        self.tokenizer = loaded.tokenizer
        if step.device == "cpu" and settings.dtype == "bfloat16":
            use_products(loaded.model)
        self.model = _with_adapters(settings, loaded.model)
        self.model.train()
        self.parameters = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.teacher = None
        if settings.distill:
            source = step.teacher or step.source
            self.teacher = load(source, dtype=settings.dtype, device=step.device).model
        self.losses: list[float] = []

    def train(self, windows: _Windows, steps: int) -> list[float]:
        """Trains on, from the saved state if there is one; the loss of every step."""
        state = self.step.scratch / "training.pt"
        self._restore(state)
        saved = time.monotonic()
        with self.step.reporter.stage("lora") as update:
            for number in range(len(self.losses), steps):
                self.losses.append(self._one_step(windows, number, steps))
                update(number + 1, steps, f"loss {self._recent():.3f}")
                if time.monotonic() - saved >= SAVE_SECONDS:
                    self._save(state)
                    saved = time.monotonic()
        return self.losses

    def trained_tensors(self) -> dict[str, Any]:
        """Name -> float32 tensor of everything that was trained."""
        return {name: p.detach().float().cpu() for name, p in self.parameters.items()}

    def _one_step(self, windows: _Windows, number: int, steps: int) -> float:
        import torch

        settings = self.settings
        tokens = settings.batch * (settings.length - 1)
        total = 0.0
        for ids in windows.batch(number, settings.batch, settings.micro_batch):
            total += self._backward(ids.to(self.step.device), tokens)
        if not math.isfinite(total):
            raise StageFailed(
                f"lora: the loss of step {number} is not finite.", "lower lora.learning_rate."
            )
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), CLIP)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate(number, steps)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def _backward(self, ids: Any, tokens: int) -> float:
        """Adds the gradients of ``ids`` [micro, length]; its share of the mean loss of ``tokens``."""
        import torch

        dtype = torch_dtype(self.settings.dtype)
        low = dtype != torch.float32
        inner = self.model.get_base_model()
        with torch.autocast(self.step.device.split(":")[0], dtype=torch.bfloat16, enabled=low):
            # the last token predicts nothing, but sizes that are powers of two are faster
            hidden = inner.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        hidden = hidden.flatten(0, 1).to(dtype)
        side = None
        if self.teacher is not None:
            with torch.no_grad():
                known = self.teacher.model(input_ids=ids, use_cache=False).last_hidden_state
            side = (known[:, :-1].flatten(0, 1), self.teacher.lm_head.weight)
        loss, gradient = loss_and_gradient(
            hidden, inner.lm_head.weight, ids[:, 1:].flatten(), side, self.settings.distill
        )
        hidden.backward(gradient / tokens)
        return loss / tokens

    def _recent(self) -> float:
        last = self.losses[-20:]
        return sum(last) / len(last)

    def _save(self, file: Path) -> None:
        import torch

        partial = file.with_name(file.name + ".partial")
        content = {
            "losses": self.losses,
            "trained": {name: p.detach() for name, p in self.parameters.items()},
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
        }
        torch.save(content, partial)
        os.replace(partial, file)

    def _restore(self, file: Path) -> None:
        import torch

        if not file.exists():
            return
        content = torch.load(file, weights_only=True)
        self.losses = content["losses"]
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(content["trained"][name])
        self.optimizer.load_state_dict(content["optimizer"])
        torch.set_rng_state(content["random"])


def _with_adapters(settings: Settings, model: Any) -> Any:
    """A PEFT model whose trainable tensors, all float32, are the adapters and perhaps norm gains."""
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.modules,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with _float_layers_only():
        wrapped = get_peft_model(model, config)
    if settings.train_norms:
        for name, module in wrapped.named_modules():
            if name.endswith("norm"):
                module.weight = torch.nn.Parameter(module.weight.detach().float())
    return wrapped


@contextmanager
def _float_layers_only() -> Iterator[None]:
    """PEFT does not look for GPTQModel's layers within: that would import it, which takes 15 s and prints
    a banner on stdout."""
    importlib.import_module("peft")
    asking = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("peft.") and hasattr(module, _ASKS)
    ]
    before = [getattr(module, _ASKS) for module in asking]
    for module in asking:
        setattr(module, _ASKS, lambda: False)
    try:
        yield
    finally:
        for module, function in zip(asking, before, strict=True):
            setattr(module, _ASKS, function)


def _merge(settings: Settings, step: StepContext, trained: dict[str, Any]) -> Any:
    """The source's weights, in float32, plus scale · B · A; then in the dtype they are stored in."""
    wrapped = _with_adapters(settings, load(step.source, dtype="float32").model)
    missing = set(trained) - set(wrapped.state_dict())
    if missing:
        raise StageFailed(f"lora: {len(missing)} trained tensors have no place in the model.")
    wrapped.load_state_dict(trained, strict=False)
    with _float_layers_only():
        model = wrapped.merge_and_unload()
    return model.to(torch_dtype(stored_dtype(step.source)))


def _thinned(curve: list[float]) -> list[list[float]]:
    """At most CURVE_POINTS pairs (last step, mean loss) of equally long stretches of steps."""
    length = math.ceil(len(curve) / CURVE_POINTS)
    parts = [curve[at : at + length] for at in range(0, len(curve), length)]
    ends = [min((i + 1) * length, len(curve)) for i in range(len(parts))]
    return [[end, round(sum(part) / len(part), 5)] for end, part in zip(ends, parts, strict=True)]
