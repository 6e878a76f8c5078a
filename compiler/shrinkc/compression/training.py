"""Training on text, shared by ``lora``, ``finetune_scales``, ``qat`` and partly ``reconstruct``."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Annotated, Any

from shrinkc.checkpoints import Loaded, load, torch_dtype
from shrinkc.compression.attention import use_products
from shrinkc.compression.calibration import Calibration, encode_texts
from shrinkc.compression.checks import Between, Checked, Dtype, Share
from shrinkc.compression.facts import ModelFacts
from shrinkc.compression.norms import is_change, norm_weights
from shrinkc.compression.soft_loss import loss_and_gradient
from shrinkc.compression.stages.context import StepContext
from shrinkc.compression.stages.vocabulary import keep_rows
from shrinkc.compression.texts import check_duplicates, read_texts
from shrinkc.core.errors import BadData, BadRecipe, RunChanged, TrainingDiverged
from shrinkc.core.interruption import deferred
from shrinkc.core.memory import freed_memory_kept
from shrinkc.core.output import new_file

DEFAULT_SAMPLES = 8192
# Seconds between two saved states.  If writing one takes longer than SAVE_TAKES, the interval grows in proportion, so
# that a slow disk does not take most of the time.
SAVE_SECONDS, SAVE_TAKES = 60.0, 3.0
CURVE_POINTS = 200
CLIP = 1.0  # largest norm of the gradient
ADAM_PASSES = 12  # passes over the trained values in an optimiser step
STATE_BYTES = 12  # per trained value: itself and AdamW's two moments, in float32


@dataclass(frozen=True, kw_only=True)
class StepSettings(Checked):
    """Text to train on, and the steps.  Trained values and AdamW's state are float32."""

    text: tuple[str, ...] = ()
    """Texts to train on.  Default: those of ``calibration``."""
    samples: Annotated[int, Between(1)] | None = None
    """Windows to train on.  Default: 8192, unless ``epochs`` is given."""
    batch: Annotated[int, Between(1)] = 8
    """Windows in one optimiser step."""
    length: Annotated[int, Between(8)] = 512
    """Tokens in a window."""
    learning_rate: Annotated[float, Between(1e-8, 1)] = 2e-4
    """Highest learning rate of AdamW.  The rate first rises linearly, then falls like a cosine."""
    warmup: Share = 0.03
    """Share of all steps during which the learning rate rises."""
    dtype: Dtype = "bfloat16"
    """Precision of the computation.  Trained values stay float32."""

    @property
    def needs_calibration(self) -> bool:
        """Whether to train on the calibration's text."""
        return not self.text

    def windows(self, per_epoch: int) -> int:
        """Return the number of windows to train on; ``per_epoch``: windows of the text."""
        return DEFAULT_SAMPLES if self.samples is None else self.samples

    def rate_factor(self, step: int, steps: int) -> float:
        """Return the factor of the learning rate, 0 to 1, in a step counted from 0."""
        warm = max(1, round(self.warmup * steps))
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        return self.learning_rate * self.rate_factor(step, steps)

    def length_problems(self, facts: ModelFacts) -> list[str]:
        """Return the problem that windows are longer than the model's context, if they are."""
        if self.length > facts.config.max_position:
            return [f"length = {self.length}: the model's context is {facts.config.max_position}"]
        return []


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(StepSettings):
    """Training of a whole model."""

    epochs: Annotated[float, Between(1e-3)] | None = None
    """How many times to train on the whole text.  Give this or ``samples``."""
    micro_batch: Annotated[int, Between(1)] = 1
    """Windows that are computed at the same time; a divisor of ``batch``.  Fewer need less memory."""
    weight_decay: Share = 0.0
    """Weight decay of AdamW."""
    distill: Share = 0.0
    """Weight of the KL divergence from the uncompressed model; the rest of the loss is on the
    text."""
    train_norms: bool = False
    """Train RMSNorm weights too.  Their learning rate is a fraction of each weight."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples is not None and self.epochs is not None:
            raise BadRecipe("one of samples and epochs is allowed; both are given.")
        if self.batch % self.micro_batch:
            raise BadRecipe(
                f"micro_batch = {self.micro_batch}; a divisor of batch = {self.batch} is allowed."
            )

    def windows(self, per_epoch: int) -> int:
        """Return the number of windows to train on, a multiple of ``batch``."""
        epochs = self.epochs
        count = super().windows(per_epoch) if epochs is None else round(epochs * per_epoch)
        return -(-count // self.batch) * self.batch


def check_texts(
    settings: StepSettings, calibration: Calibration, tokenizer: Any, *, kind: str
) -> list[str]:
    """Return notes on the text; raise BadData if it is too short or has too many duplicates."""
    key = f"{kind}.text"
    texts = read_texts(settings.text or calibration.text, key, calibration.self_generated)
    notes = check_duplicates(texts, key)
    Windows(encode_texts(texts, tokenizer), settings.length, 0, key)
    return notes


def samples_to_train(settings: TrainingSettings, kind: str, calibration: Calibration) -> int:
    """Estimate the number of windows to train on from the text's length in characters."""
    if settings.epochs is None:
        return settings.samples or DEFAULT_SAMPLES
    texts = read_texts(
        settings.text or calibration.text, f"{kind}.text", calibration.self_generated
    )
    characters = sum(len(t.content) for t in texts)
    tokens = characters / calibration.characters_per_token + sum(t.unwritten for t in texts)
    return round(settings.epochs * tokens / settings.length)


def state_bytes(values: int) -> int:
    """Return the peak disk space of the training state: a new state is written before the old one is deleted."""
    return 2 * STATE_BYTES * values


class Windows:
    """Windows of token ids in the order of training, starting with number ``first``.  Each epoch has another offset and
    order, which depend on the seed only."""

    def __init__(self, ids: list[int], length: int, seed: int, key: str) -> None:
        import torch

        self.ids = torch.tensor(ids)
        self.length, self.seed, self.first = length, seed, 0
        # one window less than would fit, so that every epoch can have another offset
        self.per_epoch = (len(ids) - length) // length
        self._order: tuple[int, Any] = (-1, None)
        if self.per_epoch < 2:
            raise BadData(
                f"{key}: {len(ids)} tokens are too few for training on windows of {length}.",
                f"give at least {3 * length} tokens, and better some 100000, or lower the length.",
            )

    def sample(self, index: int) -> Any:
        """Return the ids of a window, int64 [length]."""
        import torch

        epoch, place = divmod(self.first + index, self.per_epoch)
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            offset = torch.randint(self.length, (), generator=generator)
            starts = torch.randperm(self.per_epoch, generator=generator) * self.length + offset
            self._order = (epoch, starts)
        start = int(self._order[1][place])
        return self.ids[start : start + self.length]

    def batch(self, step: int, batch: int, micro: int) -> Iterator[Any]:
        """Yield the micro-batches of a step, int64 [micro, length]."""
        import torch

        for first in range(step * batch, (step + 1) * batch, micro):
            yield torch.stack([self.sample(first + i) for i in range(micro)])


def windows_of(settings: StepSettings, step: StepContext, kind: str, tokenizer: Any) -> Windows:
    """Return the windows for a stage, starting after those that earlier stages trained on: new text teaches more.

    A stage with ``epochs`` starts at the begin of an epoch."""
    key, calibration = f"{kind}.text", step.calibration
    texts = read_texts(settings.text or calibration.text, key, calibration.self_generated)
    windows = Windows(encode_texts(texts, tokenizer), settings.length, step.seed, key)
    before = trained_before(settings, calibration, step.earlier)
    windows.first = sum(one.windows(windows.per_epoch) for one in before)
    if getattr(settings, "epochs", None) is not None:
        windows.first = -(-windows.first // windows.per_epoch) * windows.per_epoch
    return windows


def trained_before(
    settings: StepSettings, calibration: Calibration, earlier: Iterable[Any]
) -> list[StepSettings]:
    """Return the settings in ``earlier`` that train on the same windows: equal names of texts and equal length."""

    def text(one: StepSettings) -> tuple[tuple[str, ...], int]:
        return tuple(one.text or calibration.text), one.length

    trained = (one for one in earlier if isinstance(one, StepSettings))
    return [one for one in trained if text(one) == text(settings)]


def load_to_train(source: Path, settings: StepSettings, device: str) -> Loaded:
    """Load a model for training, frozen, in the dtype of the computation."""
    loaded = load(source, dtype=settings.dtype, device=device)
    if device == "cpu" and settings.dtype == "bfloat16":
        use_products(loaded.model)
    return loaded


def autocast(settings: StepSettings, device: str) -> Any:
    """Return the autocast context for forward passes with these settings."""
    import torch

    low = torch_dtype(settings.dtype) != torch.float32
    return torch.autocast(device.split(":")[0], dtype=torch.bfloat16, enabled=low)


class Training:
    """Training of some tensors of a model, with an optimiser and an optional teacher.

    ``prepare(model)`` changes the frozen model of ``step.source`` in place, so that exactly the tensors to train
    require a gradient; they are float32.  ``rates``: last part of a tensor's name -> factor of its learning rate.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        step: StepContext,
        kind: str,
        prepare: Callable[[Any], None],
        teacher: Path | None,
        rates: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        import torch

        torch.manual_seed(step.seed)
        self.settings, self.step, self.kind = settings, step, kind
        loaded = load_to_train(step.source, settings, step.device)
        self.tokenizer = loaded.tokenizer
        prepare(loaded.model)
        self.model = loaded.model.train()
        self.parameters = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        groups: dict[float, list[Any]] = defaultdict(list)
        for name, parameter in self.parameters.items():
            groups[rates.get(name.rpartition(".")[2], 1.0)].append(parameter)
        self.optimizer: Any = torch.optim.AdamW(
            [{"params": groups[share], "share": share} for share in sorted(groups)],
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
        )
        self.teacher: Any = None
        if settings.distill:
            source = teacher or step.source
            self.teacher = load_to_train(source, settings, step.device).model
            if step.tokens is not None and source == step.teacher:
                keep_rows(self.teacher, step.tokens)
        self.losses: list[float] = []

    def train(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Train, continuing from a saved state if there is one.  On Ctrl-C the current step is finished and its state
        saved.

        Returns facts for step.json (steps, tokens, epochs, number of trained values, and the loss curve in nats per
        token), and :meth:`trained_tensors`.  Afterwards the model is released.
        """
        settings = self.settings
        windows = windows_of(settings, self.step, self.kind, self.tokenizer)
        samples = settings.windows(windows.per_epoch)
        steps = samples // settings.batch
        with freed_memory_kept():
            self._all_steps(windows, steps)
            trained = self.trained_tensors()
            count = sum(p.numel() for p in self.parameters.values())
            # frees their memory now
            self.optimizer = self.teacher = self.model = None
            self.parameters = {}
        facts = {
            "steps": steps,
            "tokens": samples * settings.length,
            "epochs": round(samples / windows.per_epoch, 3),
            "first_window": windows.first,
            "trainable": count,
            "loss_curve": _thinned(self.losses),
        }
        return facts, trained

    def _all_steps(self, windows: Windows, steps: int) -> None:
        state = self.step.scratch / "training.pt"
        self.losses = restore_state(state, self.parameters, self.optimizer)
        saved, interval = time.monotonic(), SAVE_SECONDS
        reporter = self.step.reporter
        with reporter.stage(self.kind) as update, deferred(reporter) as stop:
            update(len(self.losses), steps)
            for number in range(len(self.losses), steps):
                self.losses.append(self._one_step(windows, number, steps))
                update(number + 1, steps, f"loss {fmean(self.losses[-20:]):.3f}")
                began = time.monotonic()
                if stop.came or began - saved >= interval:
                    save_state(state, self.parameters, self.optimizer, self.losses)
                    saved = time.monotonic()
                    interval = SAVE_SECONDS * max(1.0, (saved - began) / SAVE_TAKES)
                    stop.act()

    def trained_tensors(self) -> dict[str, Any]:
        """Return name -> float32 tensor of all trained values, RMSNorm weights included."""
        found = norm_weights(self.model)
        trained = {n: p.detach() for n, p in self.parameters.items() if not is_change(n, found)}
        trained |= {f"{norm}.weight": weight for norm, weight in found.items()}
        return {name: tensor.float().cpu() for name, tensor in trained.items()}

    def _one_step(self, windows: Windows, number: int, steps: int) -> float:
        import torch

        settings = self.settings
        tokens = settings.batch * (settings.length - 1)
        total = 0.0
        for ids in windows.batch(number, settings.batch, settings.micro_batch):
            total += self._backward(ids.to(self.step.device), tokens)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), CLIP))
        if not math.isfinite(total) or not math.isfinite(norm):
            what = "gradient" if math.isfinite(total) else "loss"
            raise TrainingDiverged(
                f"{self.kind}: the {what} of step {number} is not finite.",
                f"lower {self.kind}.learning_rate, and delete this step's folder in .scratch of the run to "
                "begin it again; the steps before it stay.",
            )
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate(number, steps) * group["share"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def _backward(self, ids: Any, tokens: int) -> float:
        """Add the gradients of ``ids`` [micro, length], and return their loss divided by ``tokens``."""
        import torch

        dtype = torch_dtype(self.settings.dtype)
        with autocast(self.settings, self.step.device):
            # the last token is not needed, but sizes that are powers of two are faster
            hidden = self.model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        hidden = hidden.flatten(0, 1).to(dtype)
        teacher_output = None
        if self.teacher is not None:
            with torch.no_grad():
                known = self.teacher.model(input_ids=ids, use_cache=False).last_hidden_state
            teacher_output = (known[:, :-1].flatten(0, 1), self.teacher.lm_head.weight)
        head = self.model.lm_head.weight
        head_gradient = torch.zeros_like(head, dtype=torch.float32) if head.requires_grad else None
        loss, gradient = loss_and_gradient(
            hidden,
            head.detach(),
            ids[:, 1:].flatten(),
            teacher_output,
            self.settings.distill,
            head_gradient,
        )
        if head_gradient is None:
            hidden.backward(gradient / tokens)
        else:
            slopes = [gradient / tokens, head_gradient.div_(tokens).to(head.dtype)]
            torch.autograd.backward([hidden, head], slopes)
        return loss / tokens


def save_state(
    file: Path, parameters: Mapping[str, Any], optimizer: Any, figures: list[float]
) -> None:
    """Write the state of training atomically: trained tensors by name, states of optimiser and random generator, and
    the ``figures`` so far."""
    import torch

    content = {
        "figures": figures,
        "trained": {name: p.detach() for name, p in parameters.items()},
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
    }
    with new_file(file) as state:
        torch.save(content, state)


def restore_state(file: Path, parameters: Mapping[str, Any], optimizer: Any) -> list[float]:
    """Load a state of :func:`save_state` and return its figures; without ``file``, change nothing and return [].

    Raises RunChanged if the file has other tensors."""
    import torch

    if not file.exists():
        return []
    content = torch.load(file, weights_only=True)
    if content["trained"].keys() != parameters.keys():
        raise RunChanged(
            f"{file} was begun by another version of shrinkc, which trained other tensors.",
            f"delete {file.parent} to begin that step again.",
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(content["trained"][name])
    optimizer.load_state_dict(content["optimizer"])
    torch.set_rng_state(content["random"])
    return list(content["figures"])


def _thinned(curve: list[float]) -> list[list[float]]:
    """Return at most CURVE_POINTS pairs (last step, mean loss) of equally many steps each."""
    length = math.ceil(len(curve) / CURVE_POINTS)
    parts = [curve[at : at + length] for at in range(0, len(curve), length)]
    ends = [min((i + 1) * length, len(curve)) for i in range(len(parts))]
    return [[end, round(sum(part) / len(part), 5)] for end, part in zip(ends, parts, strict=True)]
