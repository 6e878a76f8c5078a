"""Tables of a recipe that apply to the whole run: ``run``, ``calibration``, ``evaluate``, ``budget``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from shrinkc.checkpoints.libraries import THREADS_MAX
from shrinkc.compression.checks import Between, Checked, Dtype, OneOf, exactly_one
from shrinkc.compression.texts import is_file
from shrinkc.core.errors import BadRecipe, UsageError
from shrinkc.evaluation import EvalPlan, TaskChoice
from shrinkc.targets import CHIPS, MOST

_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*(KiB|MiB|GiB)?")
_UNITS = {None: 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
CUTS = ("layers", "ffn", "kv_heads")  # what a budget may remove


@dataclass(frozen=True)
class RunSettings(Checked):
    """Settings of the whole run."""

    seed: Annotated[int, Between(0, 2**31 - 1)] = 0
    """Seed of all random numbers."""
    threads: Annotated[int, Between(1, THREADS_MAX)] = 1
    """Threads of torch.  Results depend on it."""
    dtype: Dtype = "float32"
    """Precision of measurements in ``depth`` and of AutoRound; bfloat16 is faster."""


@dataclass(frozen=True)
class CalibrationSettings(Checked):
    """Calibration data of the stages."""

    text: tuple[str, ...] = ()
    """Texts: files, data sets of the hub, or self-generated text."""
    # one sample passes here and is refused as BadData when the texts are read
    samples: Annotated[int, Between(1)] = 64
    """Number of windows, taken evenly from the whole text.  At least 2 are needed."""
    length: Annotated[int, Between(8)] = 512
    """Tokens in a window."""


@dataclass(frozen=True)
class EvaluateSettings(Checked):
    """The measurements after every step, see ``shrinkc eval``."""

    text: str | None = None
    """Text file for perplexity.  One of ``text``, ``tasks`` and ``samples`` is needed."""
    protocol: Annotated[str, OneOf("wikitext512", "wikitext2048")] = "wikitext512"
    """How the text is cut."""
    windows: Annotated[int, Between(1)] | None = None
    """Windows to measure.  Default: all."""
    tasks: tuple[str, ...] = ()
    """Tasks of lm-evaluation-harness, each ``NAME``, ``NAME=FILE`` or ``FILE.yaml``."""
    items: Annotated[int, Between(1)] = 100
    """Questions of each task."""
    samples: tuple[str, ...] = ()
    """Prompts to continue."""
    dtype: Dtype = "float32"
    """Precision of the computation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.choices()
        if not (self.text or self.tasks or self.samples):
            raise BadRecipe("names nothing to measure: text, tasks, samples.")
        if self.text is not None and not is_file(self.text):
            raise BadRecipe(
                f"text = {self.text!r}: only a text file can measure quality.",
                f"one of that name is './{self.text}'.",
            )

    def plan(self) -> EvalPlan:
        text = None if self.text is None else Path(self.text)
        return EvalPlan(text, self.protocol, self.windows, self.choices(), self.items, self.samples)

    def choices(self) -> tuple[TaskChoice, ...]:
        """Parse ``tasks``.  Raises BadRecipe."""
        try:
            return tuple(map(TaskChoice.parse, self.tasks))
        except UsageError as error:
            raise BadRecipe(f"tasks: {error.message}", error.hint) from error


@dataclass(frozen=True)
class BudgetSettings(Checked):
    """The limit of the compressed model: ``share``, ``target_bytes`` or ``fit``."""

    share: Annotated[float, Between(0.01, 1)] | None = None
    """Bytes of the weights as compiled, scales included, in relation to the model's size in bf16: 0.25 is a quarter."""
    target_bytes: int | str | None = None
    """Packed size: a number of bytes, or a text such as ``"64MiB"``."""
    fit: Annotated[str, OneOf(*CHIPS)] | None = None
    """Target whose memories have to hold the program with the default context.  One of ``share``,
    ``target_bytes`` and ``fit`` is needed."""
    flash_bytes: int | str | None = None
    """With ``fit``: size of the off-chip flash, such as ``"8MiB"``.  With 0, everything has to fit on the
    chip.  By default the target's, ``"512MiB"``."""
    cut: tuple[Annotated[str, OneOf(*CUTS)], ...] = CUTS
    """Parts that the choice may remove. With an empty list it changes only bits."""

    def __post_init__(self) -> None:
        super().__post_init__()
        exactly_one(share=self.share, target_bytes=self.target_bytes, fit=self.fit)
        if self.target_bytes is not None:
            Between(1)("target_bytes", self.bytes or 0)
        if self.flash_bytes is not None:
            if self.fit is None:
                raise BadRecipe(
                    "flash_bytes needs fit: share and target_bytes count the weights alone."
                )
            Between(0, MOST)("flash_bytes", self.flash_room or 0)

    @property
    def bytes(self) -> int | None:
        """``target_bytes`` as a number."""
        return _bytes("target_bytes", self.target_bytes)

    @property
    def flash_room(self) -> int | None:
        """``flash_bytes`` as a number."""
        return _bytes("flash_bytes", self.flash_bytes)


def _bytes(key: str, size: int | str | None) -> int | None:
    """Return a size as a number.  Raises BadRecipe."""
    if size is None or isinstance(size, int):
        return size
    match = _SIZE.fullmatch(size.strip())
    if match is None:
        raise BadRecipe(
            f"{key} = {size!r} is no size; a number of bytes, or for instance '64MiB' is allowed."
        )
    return int(float(match[1]) * _UNITS[match[2]])
