"""How a stage declares itself, what it is given, and what it hands back."""

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
    """What a stage works with.

    ``source``: directory of the model to change.  ``out``: an empty directory that appears in its
    place once the stage is over.  ``scratch``: kept between interrupted attempts of this very
    stage, for state that lets it go on.  ``log_dir``: for the output of child processes.
    ``teacher``: the model that was given to compress; ``tokens`` the ids of it that ``source`` still
    has, in the order of its own, None where those are all.  ``unquantized``: the last directory before
    ``source`` with float weights (``source`` itself unless it is quantised), for EoRA and ``reconstruct``.
    ``earlier``: the settings of the stages before it.  ``dtype``: of the measurements.
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
    """What a stage computes, in units whose time is measured on the machine.

    ``tokens``: of a forward pass of the whole model; a backward pass counts twice.  ``numbers``: that are read in
    passes over tensors outside of matrix products, each time that one is.  ``calls``: of torch on a few numbers, whose
    time is the call itself.
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
    """Everything that the rest of a run has to know of a kind of stage.

    What a stage does:

    * ``name``: of its table in a recipe.
    * ``settings``: a frozen dataclass, the keys of that table with their defaults and their ranges
      (:mod:`shrinkc.compression.checks`).
    * ``run(settings, step)``: fills ``step.out``.
    * ``predict(settings, facts)``: the model afterwards.

    What it needs:

    * ``quantises``: it makes a quantised model of a float one.  ``on_quantised``: it changes a quantised
      model.  Without either it makes a float model of a float one.
    * ``needs_floats``: it reads the float model that a quantised one was made from.
    * ``changes_tables``: it changes embedding and LM head, so a budget chooses after it.
    * ``adds_adapters``: no stage after it may change the weights that the adapters correct.
    * ``preflight(settings, facts)``: sentences on what cannot work, before any work.
    * ``order(settings, before)``: sentences on what cannot work after the stages ``before``.
    * ``advice(stage, before, after)``: notes on the stages around it.
    * ``settle(settings, facts)``: the settings with one value where several were given to choose from by the
      model's sizes, and a sentence for each that is not the first choice.
    * ``check_data(settings, calibration, tokenizer)``: notes on the texts that it reads; raises what is wrong
      with them.

    What it takes:

    * ``work(settings, facts, calibration)``: what it computes, for the estimate of time.
    * ``child_seconds``: of its child processes beside their work, mostly for importing libraries.
    * ``parameter_bytes``: peak memory per parameter, and ``memory(settings, facts, calibration)``: bytes that the
      texts take beside that.
    * ``kept(settings, facts)``: bytes that it keeps on disk until it is over, to go on from.
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
    changes_tables: bool = False
    adds_adapters: bool = False
    preflight: Callable[[Any, ModelFacts], Sequence[str]] = lambda settings, facts: ()
    order: Callable[[Any, Sequence[Stage]], Iterable[str]] = lambda settings, before: ()
    advice: Callable[[Stage, Sequence[Stage], Sequence[Stage]], Iterable[str]] = (
        lambda stage, before, after: ()
    )
    settle: Callable[[Any, ModelFacts], tuple[Any, Sequence[str]]] = lambda settings, facts: (
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
