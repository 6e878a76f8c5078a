"""What is to be planned or compiled, for what, and how: a model and options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shrinkc.core.errors import UsageError
from shrinkc.driver.estimating import check_speed
from shrinkc.driver.opening import open_model
from shrinkc.importer import Checkpoint
from shrinkc.quantize import QuantOptions
from shrinkc.storage import WIDEST


@dataclass(frozen=True)
class PlanRequest:
    """What to compile, for what, and how.  ``given`` are the options of ``quant`` that were given,
    ``engines`` the target's that may run matrices beside the cores (None: all), ``code`` the memory that
    the decode path's code lies in (None: the target's first), ``position`` and ``clock_mhz`` those that a
    speed is stated for.

    ``model`` is a path, to which an ``adapter`` may be given, or was opened already with its own.
    """

    model: Path | Checkpoint
    target: str
    quant: QuantOptions
    context: int | None = None
    l1: int | None = None
    adapter: Path | None = None
    given: frozenset[str] = frozenset()
    engines: tuple[str, ...] | None = None
    code: str | None = None
    position: int | None = None
    clock_mhz: float | None = None

    @classmethod
    def from_options(
        cls,
        *,
        model: Path | Checkpoint,
        target: str,
        bits: int | str | None,
        group: int | None,
        short_last_group: bool,
        asymmetric: bool,
        head_bits: int | str | None,
        context: int | None,
        l1: int | None,
        adapter: Path | None,
        engines: str | Sequence[str] | None,
        code: str | None = None,
        position: int | None = None,
        clock: float | None = None,
    ) -> PlanRequest:
        """From the values of options (``engines``: names, or a text with commas between them);
        QuantizeError for a width that is not possible, UsageError for a position or clock."""
        check_speed(position, clock)
        if isinstance(model, Checkpoint) and adapter is not None:
            raise UsageError(
                f"--adapter {adapter}: {model.name} was opened already.",
                "give the adapter to 'open'.",
            )
        quant = QuantOptions(
            bits=WIDEST if bits is None else int(bits), group=group, asymmetric=asymmetric,
            head_bits=WIDEST if head_bits is None else int(head_bits),
            short_last_group=short_last_group,
        )  # fmt: skip
        given = {
            "--bits": bits, "--group": group, "--short-last-group": short_last_group,
            "--asymmetric": asymmetric, "--head-bits": head_bits,
        }  # fmt: skip
        names = frozenset(name for name, value in given.items() if value not in (None, False))
        if isinstance(engines, str):
            engines = [name.strip() for name in engines.split(",")]
        chosen = None if engines is None else tuple(engines)
        return cls(model, target, quant, context, l1, adapter, names, chosen, code, position, clock)

    def opened(self, *, whole: bool) -> Checkpoint:
        """The checkpoint, with its weights if it has to be ``whole``."""
        if not isinstance(self.model, Checkpoint):
            return open_model(self.model, self.adapter, whole=whole)
        if not whole or self.model.whole:
            return self.model
        adapter = self.model.adapter if self.model.adapter_given else None
        return open_model(Path(self.model.hub or self.model.path), adapter, whole=True)
