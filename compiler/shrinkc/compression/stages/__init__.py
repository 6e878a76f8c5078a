"""The stages: what one is given, what it hands back, and which there are.

A stage is a module ``stages/<kind>.py`` with

* ``Settings``, a frozen dataclass: the keys of its recipe table with their defaults.  What is out of
  range raises BadRecipe in ``__post_init__`` (:mod:`shrinkc.compression.checks` words it).
* ``preflight(settings, facts) -> list[str]``: sentences on what cannot work, before any work.
* ``run(settings, step) -> StepReport``: fills ``step.out``.

and, where it applies,

* ``settle(settings, facts) -> (Settings, list[str])``: the settings with one value where several were
  given to choose from by the model's sizes, and a sentence for each that is not the first choice.
* ``predict(settings, facts) -> ModelFacts``: the model as it will be afterwards.
* ``inputs(settings) -> dict[str, str]``: name -> SHA-256 of further files that decide the result.
* ``check_data(settings, calibration, tokenizer) -> list[str]``: notes on the texts that it reads; raises
  what is wrong with them.
* ``work(settings, facts, calibration) -> float``: about how many tokens of a forward pass of the model it
  computes (a backward pass counts twice), for the estimate of time.
* ``memory(settings, facts, calibration) -> int``: bytes that the texts take beside what the model does, for the
  estimate of memory.
* ``kept(settings, facts) -> int``: bytes that it keeps on disk until it is over, to go on from, for the estimate
  of disk.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Protocol

from shrinkc.compression.stages.context import StepContext, StepReport

if TYPE_CHECKING:
    from shrinkc.compression.facts import ModelFacts

__all__ = [
    "AFTER_GPTQ",
    "KINDS",
    "NEED_FLOATS",
    "ON_INTEGERS",
    "StageModule",
    "StepContext",
    "StepReport",
    "stage_module",
]

AFTER_GPTQ = ("reconstruct", "scales", "qat", "eora")  # stages that take a quantised model
ON_INTEGERS = ("gptq", *AFTER_GPTQ)  # stages that give one
KINDS = ("vocabulary", "depth", "width", "lora", "rotate", "equalize", *ON_INTEGERS)
NEED_FLOATS = ("reconstruct", "eora")  # stages that look at the float model as well


class StageModule(Protocol):
    """See this module's text."""

    Settings: Any

    def preflight(self, settings: Any, facts: ModelFacts) -> list[str]:
        """What cannot work."""
        ...

    def run(self, settings: Any, step: StepContext) -> StepReport:
        """Does it."""
        ...


def stage_module(kind: str) -> Any:
    """The module of a kind; a :class:`StageModule`."""
    return importlib.import_module(f"shrinkc.compression.stages.{kind}")
