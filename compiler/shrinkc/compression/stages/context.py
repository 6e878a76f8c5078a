"""The interface of stages: how one is declared, its inputs and its report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shrinkc.compression.calibration import Calibration
from shrinkc.compression.facts import ModelFacts
from shrinkc.core.progress import Reporter


@dataclass
class StepContext:
    """The inputs of a stage.

    ``source``: directory of the model to change.  ``out``: an empty directory for the result.  ``scratch``: state of
    interrupted attempts of this stage, to continue from.  ``log_dir``: for the output of child processes.
    ``teacher``: the uncompressed model.  ``tokens``: its ids that ``source`` still has, in the order of the new ids;
    None if all.  ``unquantized``: the last directory with float weights (``source`` itself unless it is quantised),
    for EoRA and ``reconstruct``.  ``earlier``: the settings of the stages before.  ``dtype``: of the measurements.
    """

    source: Path
    out: Path
    calibration: Calibration
    seed: int
    threads: int
    dtype: str
    device: str
    reporter: Reporter
    log_dir: Path
    scratch: Path
    teacher: Path | None = None
    tokens: tuple[int, ...] | None = None
    unquantized: Path | None = None
    earlier: tuple[Any, ...] = ()


@dataclass
class StepReport:
    """``parameters``: JSON-able facts for step.json.  ``notes``: sentences for the user."""

    parameters: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Work:
    """The work of a stage, in units whose time is measured on the machine.

    ``tokens``: tokens through the whole model; a backward pass counts twice.  ``numbers``: elements read by operations
    other than matrix products, each time they are read.  ``calls``: calls of torch on small tensors.
    """

    tokens: float = 0.0
    numbers: float = 0.0
    calls: float = 0.0


@dataclass(frozen=True)
class Stage:
    """A stage of a recipe: ``name`` is unique there, ``settings`` is of the class that its kind declares."""

    name: str
    kind: str
    settings: Any

    @property
    def needs_calibration(self) -> bool:
        """Whether the stage reads the calibration data; settings without this property do."""
        return bool(getattr(self.settings, "needs_calibration", True))


@dataclass(frozen=True, kw_only=True)
class StageKind:
    """A kind of stage.

    What it does:

    * ``name``: of its table in a recipe.
    * ``settings``: a frozen dataclass, the keys of that table with their defaults and their ranges
      (:mod:`shrinkc.compression.checks`).
    * ``run(settings, step)``: fills ``step.out``.
    * ``predict(settings, facts)``: the sizes of the model afterwards.

    What it needs:

    * ``quantises``: float model in, quantised model out.  ``on_quantised``: it changes a quantised model.
      Neither: float model in, float model out.
    * ``needs_floats``: it reads the float model that a quantised one was made from.
    * ``changes_embeddings``: it changes embedding and LM head, so a budget chooses after it.
    * ``adds_adapters``: no stage after it may change the weights that the adapters correct.
    * ``preflight(settings, facts)``: problems with the settings, before any work.
    * ``order(settings, before)``: problems with the stages ``before`` it.
    * ``advice(stage, before, after)``: notes on the stages around it.
    * ``resolve(settings, facts)``: the settings with lists of alternatives resolved by the model's sizes, and a
      note for each value that is not the first of its list.
    * ``check_data(settings, calibration, tokenizer)``: notes on its texts; raises BadData.

    What it costs:

    * ``work(settings, facts, calibration)``: for the estimate of time.
    * ``child_seconds``: overhead of its child processes, mostly importing libraries.
    * ``parameter_bytes``: peak memory per parameter; ``memory(settings, facts, calibration)``: additional
      bytes for texts.
    * ``kept(settings, facts)``: bytes of its state on disk until it is done.
    """

    name: str
    settings: type[Any]
    run: Callable[[Any, StepContext], StepReport]
    work: Callable[[Any, ModelFacts, Calibration], Work]
    parameter_bytes: int
    predict: Callable[[Any, ModelFacts], ModelFacts] = lambda settings, facts: facts
    quantises: bool = False
    on_quantised: bool = False
    needs_floats: bool = False
    changes_embeddings: bool = False
    adds_adapters: bool = False
    preflight: Callable[[Any, ModelFacts], Sequence[str]] = lambda settings, facts: ()
    order: Callable[[Any, Sequence[Stage]], Iterable[str]] = lambda settings, before: ()
    advice: Callable[[Stage, Sequence[Stage], Sequence[Stage]], Iterable[str]] = (
        lambda stage, before, after: ()
    )
    resolve: Callable[[Any, ModelFacts], tuple[Any, Sequence[str]]] = lambda settings, facts: (
        settings,
        (),
    )
    check_data: Callable[[Any, Calibration, Any], Iterable[str]] = (
        lambda settings, calibration, tokenizer: ()
    )
    child_seconds: float = 0.0
    memory: Callable[[Any, ModelFacts, Calibration], int] = lambda settings, facts, calibration: 0
    kept: Callable[[Any, ModelFacts], int] = lambda settings, facts: 0

    @property
    def gives_integers(self) -> bool:
        return self.quantises or self.on_quantised
