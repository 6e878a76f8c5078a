"""Every way shrinkc can refuse, with the exit code a script can rely on.

An error is one paragraph: what is wrong (with the offending value), what is
allowed, and a hint that says what to do next.  ``docs/exit-codes.md`` lists the
codes; ``tests/cli/test_console.py`` keeps that page and this file in step.
"""

from __future__ import annotations

from dataclasses import dataclass

from shrinkc.core.words import listed


class ShrinkcError(Exception):
    """Base of all refusals.  ``exit_code`` is stable across releases."""

    exit_code = 1
    title = "error"

    def __init_subclass__(cls, *, exit_code: int, title: str) -> None:
        cls.exit_code, cls.title = exit_code, title

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        if self.hint is None:
            return self.message
        # what a tool said is quoted in lines of its own; a hint at their end would be part of them
        between = "\n" if "\n" in self.message else " "
        return f"{self.message}{between}Hint: {self.hint}"

    def to_json(self) -> dict[str, object]:
        """The same for programs: ``error``, and beside it what a kind of refusal knows in numbers."""
        error = {
            "code": self.exit_code, "title": self.title, "message": self.message, "hint": self.hint,
        }  # fmt: skip
        return {"error": error}


class UsageError(ShrinkcError, exit_code=2, title="usage"):
    """The command line or an option's value is not usable."""


class ModelNotFound(ShrinkcError, exit_code=10, title="model not found"):
    """The model directory or one of its files does not exist."""


class UnsupportedModel(ShrinkcError, exit_code=11, title="unsupported model"):
    """The architecture or a config field changes the mathematics in a way not supported."""


class BadConfig(ShrinkcError, exit_code=12, title="bad config"):
    """``config.json`` is unreadable, incomplete or contradicts itself."""


class BadWeights(ShrinkcError, exit_code=13, title="bad weights"):
    """A weight file is truncated, of a wrong type, or holds values that no model has."""


class ShapeMismatch(ShrinkcError, exit_code=14, title="weights and config disagree"):
    """Weights and config disagree: a missing, extra or wrongly shaped tensor."""


class BadTokenizer(ShrinkcError, exit_code=15, title="bad tokenizer"):
    """The tokenizer is missing, unreadable or of a kind that is not supported."""


class BadRecipe(ShrinkcError, exit_code=16, title="bad recipe"):
    """A compression recipe has an unknown key, a value outside its range, or is not TOML."""


class BadData(ShrinkcError, exit_code=17, title="bad data"):
    """Data of calibration, training or evaluation, or of a run, is too short, duplicated, or not in its
    format."""


class TokenizerNotCut(ShrinkcError, exit_code=18, title="tokenizer cannot be cut"):
    """The tokenizer is of a kind of which no token can be left out."""


class NothingWritten(ShrinkcError, exit_code=19, title="no text written"):
    """The model that was to write its own text for calibration or training writes none."""


class QuantizeError(ShrinkcError, exit_code=20, title="cannot quantise"):
    """The requested widths or groups are not possible for this model."""


class IllegalIR(ShrinkcError, exit_code=21, title="illegal IR"):
    """A legality rule of the integer IR does not hold (a defect in a pass or a file)."""


class BudgetUnreachable(ShrinkcError, exit_code=22, title="budget out of reach"):
    """No choice of layers, widths and bit-widths meets the budget; says the smallest that exists."""


@dataclass(frozen=True)
class Lack:
    """A memory that is too small: ``level`` is its name, or "weights" for all matrices together.

    ``need`` and ``have`` are bytes; ``least``: ``need`` is the least that any schedule takes.  Of weights ``need``
    is all of them, and ``have`` the room that all ``memories`` of the target have for them beside everything
    else, less ends that hold no whole matrix: with ``excess`` bytes more of the last memory they fit.
    ``largest``: what takes most of it, as (name, bytes).
    """

    level: str
    need: int
    have: int
    largest: tuple[tuple[str, int], ...]
    memories: tuple[str, ...] = ()
    least: bool = False

    @property
    def label(self) -> str:
        """Of the level, within a sentence."""
        return self.level if self.level == "weights" else self.level.upper()

    @property
    def excess(self) -> int:
        """Bytes that there are too few."""
        return self.need - self.have

    def to_json(self) -> dict[str, object]:
        """The same for programs."""
        return {
            "level": self.level,
            "memories": list(self.memories),
            "need": self.need,
            "have": self.have,
            "excess": self.excess,
            "largest": [{"name": name, "bytes": size} for name, size in self.largest],
        }

    def __str__(self) -> str:
        label, least = self.label, " at least" if self.least else ""
        where = f" in {listed(self.memories)}" if self.memories else ""
        largest = ", ".join(f"{name} {size}" for name, size in self.largest)
        return (
            f"{label[0].upper()}{label[1:]}: need {self.need} bytes{least}, have {self.have}{where}, excess "
            f"{self.excess}. Largest: {largest}."
        )


class DoesNotFit(ShrinkcError, exit_code=30, title="does not fit"):
    """The model does not fit the target's memories; ``lacks`` has need, have and excess of each,
    ``alternatives`` changes of options that were checked to fit."""

    def __init__(
        self,
        message: str,
        hint: str | None = None,
        lacks: tuple[Lack, ...] = (),
        alternatives: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message, hint)
        self.lacks = lacks
        self.alternatives = alternatives

    def to_json(self) -> dict[str, object]:
        return {
            "fits": False,
            "lacks": [lack.to_json() for lack in self.lacks],
            "alternatives": list(self.alternatives),
            **super().to_json(),
        }

    @classmethod
    def of(cls, lack: Lack) -> DoesNotFit:
        """The refusal of one level."""
        return cls(str(lack), lacks=(lack,))


class PlanInvalid(ShrinkcError, exit_code=31, title="invalid memory plan"):
    """The independent verifier found a fault in a memory plan (a defect in the planner)."""


class OutputError(ShrinkcError, exit_code=40, title="cannot write"):
    """The output cannot be written: permission, full disk, or a path in the way."""


class ToolMissing(ShrinkcError, exit_code=50, title="tool missing"):
    """A compiler, emulator or simulator that is needed is not installed."""


class BuildFailed(ShrinkcError, exit_code=51, title="build failed"):
    """The C compiler refused the generated program."""


class RunFailed(ShrinkcError, exit_code=52, title="run failed"):
    """The program crashed, hung, or ended with an error on its target."""


class ExtraMissing(ShrinkcError, exit_code=53, title="libraries missing"):
    """A command needs libraries that the base installation leaves out."""


class StageFailed(ShrinkcError, exit_code=54, title="stage failed"):
    """A compression stage ended with an error of a library; its log is named."""


class TrainingDiverged(ShrinkcError, exit_code=55, title="training diverged"):
    """The loss of a training is NaN or infinite."""


class Mismatch(ShrinkcError, exit_code=60, title="mismatch"):
    """The target's integers differ from the interpreter's, or nothing was compared."""


class BadArtifact(ShrinkcError, exit_code=61, title="bad artifact"):
    """A compiled directory is incomplete, damaged or of another version."""


class BadStep(ShrinkcError, exit_code=62, title="bad step"):
    """A step directory of a compression run is incomplete, damaged or of another version."""


class RunChanged(ShrinkcError, exit_code=63, title="run changed"):
    """A compression run or an evaluation cannot go on: its inputs differ from those it was started with."""


class Different(ShrinkcError, exit_code=64, title="different"):
    """What was compared is not the same."""


class Interrupted(ShrinkcError, exit_code=130, title="interrupted"):
    """Stopped by the user."""
