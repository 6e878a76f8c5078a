"""Every way shrinkc can refuse, with the exit code a script can rely on.

An error is one paragraph: what is wrong (with the offending value), what is
allowed, and a hint that says what to do next.  ``docs/reference/exit-codes.md``
is generated from the docstrings: the first paragraph says what is wrong, the last one what to do.
"""

from __future__ import annotations

from dataclasses import dataclass

from shrinkc.core.words import listed


class ShrinkcError(Exception):
    """The installation is incomplete, or the program that reads the output (such as ``head``) ended
    early. This is also the base class of all other errors.

    Attributes:
        message: The problem with its value, and the allowed values.
        hint: The next step for the user, or None.
        exit_code: The exit code of the command line, the same in every release.
        title: A short name of the kind of error.

    Install shrinkc again. If only a pipe was closed, do nothing.
    """

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
        # quoted output of a tool has its own lines; the hint must not be joined to the last one
        between = "\n" if "\n" in self.message else " "
        return f"{self.message}{between}Hint: {self.hint}"

    def to_json(self) -> dict[str, object]:
        """Return ``error`` as a JSON object; some kinds of errors add figures."""
        error = {
            "code": self.exit_code, "title": self.title, "message": self.message, "hint": self.hint,
        }  # fmt: skip
        return {"error": error}


class UsageError(ShrinkcError, exit_code=2, title="usage"):
    """The command line is wrong, or an option has a value that is not possible.

    Read the hint, or ``shrinkc COMMAND --help``.
    """


class ModelNotFound(ShrinkcError, exit_code=10, title="model not found"):
    """The model, or one of its files, does not exist.

    Check the path, or download the files that are named.
    """


class UnsupportedModel(ShrinkcError, exit_code=11, title="unsupported model"):
    """The model has an architecture or a setting that shrinkc does not support.

    See what is supported: ``shrinkc inspect --supported``.
    """


class BadConfig(ShrinkcError, exit_code=12, title="bad config"):
    """``config.json`` is unreadable, incomplete or contradicts itself.

    Compare it with the published file.
    """


class BadWeights(ShrinkcError, exit_code=13, title="bad weights"):
    """A weight file is truncated, has a wrong type, or holds NaN, infinity or values too large for the
    integer model.

    Download the file again; if the values themselves are wrong, train or convert the model again.
    """


class ShapeMismatch(ShrinkcError, exit_code=14, title="weights and config disagree"):
    """Weights and ``config.json`` disagree: a tensor is missing, unknown or has a wrong shape.

    Take both from the same model.
    """


class BadTokenizer(ShrinkcError, exit_code=15, title="bad tokenizer"):
    """The tokenizer is missing, unreadable or of a kind that is not supported.

    Save it with the current transformers as ``tokenizer.json``.
    """


class BadRecipe(ShrinkcError, exit_code=16, title="bad recipe"):
    """A recipe has an unknown key, a value that is not allowed, or is not TOML.

    Correct the keys that are named.
    """


class BadData(ShrinkcError, exit_code=17, title="bad data"):
    """Text for calibration, training or evaluation is too short, repeats itself or is not in its
    format; or a file for ``report`` belongs to something else.

    Give other data, or fewer samples or windows.
    """


class TokenizerNotCut(ShrinkcError, exit_code=18, title="tokenizer cannot be cut"):
    """Stage ``vocabulary`` cannot remove tokens from a tokenizer of this kind.

    Leave the stage out.
    """


class NothingWritten(ShrinkcError, exit_code=19, title="no text written"):
    """The model ends each text at once, so it cannot generate calibration data.

    Give text files instead of ``self``.
    """


class QuantizeError(ShrinkcError, exit_code=20, title="cannot quantise"):
    """The requested bits or group size are not possible for this model.

    Take one of the values that are named.
    """


class IllegalIR(ShrinkcError, exit_code=21, title="illegal IR"):
    """The integer model breaks one of its rules: its file `ir.safetensors` is damaged, or shrinkc has a defect.

    Compile again; if it stays, report it.
    """


class BudgetUnreachable(ShrinkcError, exit_code=22, title="budget out of reach"):
    """No choice of layers, widths and bits meets the budget.

    Take at least the budget that is named.
    """


@dataclass(frozen=True)
class Lack:
    """A memory that is too small.

    Attributes:
        level: Name of the memory, or ``"weights"`` for all matrices together.
        need: Bytes that are needed.
        have: Bytes that there are.  For weights: in all ``memories``, besides everything else.
        largest: (name, bytes) of what takes most.
        memories: For weights: the memories that hold them.
        least: Whether ``need`` is the least that any schedule takes.
        name: Name of the memory for people, if it differs from ``level``.
    """

    level: str
    need: int
    have: int
    largest: tuple[tuple[str, int], ...]
    memories: tuple[str, ...] = ()
    least: bool = False
    name: str = ""

    @property
    def label(self) -> str:
        """Return the name of the level for use in a sentence."""
        return self.name or (self.level if self.level == "weights" else self.level.upper())

    @property
    def excess(self) -> int:
        """Missing bytes: ``need`` minus ``have``."""
        return self.need - self.have

    def to_json(self) -> dict[str, object]:
        """Return the fields as a JSON object."""
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
    """The model does not fit the memories of the target.

    Attributes:
        lacks: The memories that are too small.
        alternatives: Changes of options, as the command line writes them, that were checked to fit.

    Take one of the alternatives that are named; they were checked to fit.
    """

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
        """Return the error for one memory."""
        return cls(str(lack), lacks=(lack,))


class PlanInvalid(ShrinkcError, exit_code=31, title="invalid memory plan"):
    """The independent verifier found a fault in a memory plan: a defect of shrinkc.

    Report it.
    """


class OutputError(ShrinkcError, exit_code=40, title="cannot write"):
    """The output cannot be written: missing permission, a full disk, something else in its place, or
    another process that works on it.

    Choose another place, make room, or wait.
    """


class ToolMissing(ShrinkcError, exit_code=50, title="tool missing"):
    """A compiler, emulator or simulator is not installed.

    ``shrinkc doctor`` shows the command that installs it.
    """


class BuildFailed(ShrinkcError, exit_code=51, title="build failed"):
    """The C compiler refused the generated program.

    Read its message; check ``--make`` options and edited files.
    """


class RunFailed(ShrinkcError, exit_code=52, title="run failed"):
    """The program crashed, did not end, or reported an error.

    Raise ``--timeout`` if it was slow; otherwise report it.
    """


class ExtraMissing(ShrinkcError, exit_code=53, title="libraries missing"):
    """A command needs libraries that the base installation leaves out.

    Install the extra that is named.
    """


class StageFailed(ShrinkcError, exit_code=54, title="stage failed"):
    """A library failed in a stage of a compression run.

    Read the log that is named.
    """


class TrainingDiverged(ShrinkcError, exit_code=55, title="training diverged"):
    """The loss of a training became NaN or infinite.

    Lower the rate that is named; earlier steps stay.
    """


class Mismatch(ShrinkcError, exit_code=60, title="mismatch"):
    """Integers of a run differ from the interpreter's, or nothing was compared.

    If no file of the directory was edited, report it.
    """


class BadArtifact(ShrinkcError, exit_code=61, title="bad artifact"):
    """A compiled directory is incomplete, damaged or was made by another version.

    Compile the model again.
    """


class BadStep(ShrinkcError, exit_code=62, title="bad step"):
    """A step of a compression run is incomplete, damaged or was made by another version.

    Delete that step and the later ones, and give the same command again.
    """


class RunChanged(ShrinkcError, exit_code=63, title="run changed"):
    """The inputs of a compression run, an evaluation or a search (``explore``) differ from those it was
    started with.

    Restore the inputs that are named, or start over: with ``--force``, in another directory, with
    another ``--resume`` file (``eval``) or another ``--study`` (``explore``).
    """


class Different(ShrinkcError, exit_code=64, title="different"):
    """``shrinkc diff`` found differences; they are on stdout.

    Nothing, if you expected them.
    """


class Interrupted(ShrinkcError, exit_code=130, title="interrupted"):
    """Stopped by the user (Ctrl-C); nothing was left half-written.

    Give the same command again to continue.
    """
