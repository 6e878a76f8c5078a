"""What a stage is given, and what it hands back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shrinkc.core.progress import Reporter

if TYPE_CHECKING:
    from shrinkc.compression.calibration import Calibration


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
