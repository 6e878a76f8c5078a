"""Cycles per feature of a target: one JSON file per target in this folder, written by ``make calibrate``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from shrinkc.core.errors import ShrinkcError
from shrinkc.core.resources import resource
from shrinkc.costs.work import OVERLAPPED, Work, lane

VERSION = 1

CALIBRATED = ("siracusa",)
"""The targets that have a file."""


@dataclass(frozen=True)
class Error:
    """How far predictions are from measurements: of ``samples`` the median, and what 9 of 10 are
    within, as fractions of the measured cycles."""

    samples: int
    median: float
    p90: float


@dataclass(frozen=True)
class Cycles:
    """``whole``: from begin to end.  ``cores``: what they do of that.  ``others``: what every other engine
    does, by name."""

    whole: float
    cores: float
    others: Mapping[str, float]


def cycles_of(per: Mapping[str, float], work: Work) -> Cycles:
    """Cycles of ``work``, given cycles ``per`` feature.  Other engines and the cores overlap."""
    lanes = {"": 0.0}
    for name, count in work.features.items():
        who = lane(name)
        lanes[who] = lanes.get(who, 0.0) + per.get(name, 0.0) * count
    alone, overlapped = lanes.pop(""), lanes.pop(OVERLAPPED, 0.0)
    return Cycles(alone + max(overlapped, sum(lanes.values())), alone + overlapped, lanes)


@dataclass(frozen=True)
class CostTable:
    """What a target's cycles were fitted to be.

    ``ops``: op -> feature -> cycles.  ``dma`` and ``flash``: bytes per cycle of copies on the chip and of
    what is fetched from outside.  ``probe``: cycles by which the counters of a profile build lengthen an
    op, which plain programs do not take.  ``clock_mhz``: the simulator's default.  ``errors`` per op,
    and of whole passes of plain programs, are those on ``held_out`` programs, of shapes that none of the
    ``fitted`` ones has.  ``made``: date, simulator, compiler, shrinkc's revision.
    """

    target: str
    ops: Mapping[str, Mapping[str, float]]
    dma: float
    flash: float
    probe: float
    clock_mhz: float
    errors: Mapping[str, Error] = field(default_factory=dict)
    passes: Error | None = None
    fitted: int = 0
    held_out: int = 0
    made: Mapping[str, str] = field(default_factory=dict)

    def cycles(self, op: str, work: Work) -> Cycles:
        """Of one execution, without waits.

        A feature that was never seen costs nothing here; ``unknown`` says which those are.
        """
        return cycles_of(self.ops.get(op, {}), work)

    def unknown(self, op: str, work: Work) -> list[str]:
        """The features of ``work`` that no measurement was there for."""
        return [name for name in work.features if name not in self.ops.get(op, {})]

    def to_json(self) -> dict[str, Any]:
        return {"version": VERSION, **asdict(self)}


def cost_table(target: str) -> CostTable | None:
    """The table of that target, or None where it was not calibrated."""
    return _packaged(target) if target in CALIBRATED else None


@cache
def _packaged(target: str) -> CostTable:
    return read_table(resource("costs") / f"{target}.json")


def read_table(path: Path) -> CostTable:
    """Raises ShrinkcError for a file that is not one of this version."""
    hint = "write it anew with 'make calibrate'."
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version = found["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ShrinkcError(f"{path} is no table of costs: {error!r}.", hint) from None
    if version != VERSION:
        raise ShrinkcError(
            f"{path} is version {version} of the table of costs; this shrinkc reads {VERSION}.",
            hint,
        )
    try:
        return CostTable(
            **{name: found[name] for name in ("target", "fitted", "held_out", "made")},
            dma=float(found["dma"]), flash=float(found["flash"]), probe=float(found["probe"]),
            clock_mhz=float(found["clock_mhz"]),
            ops={op: {n: float(v) for n, v in per.items()} for op, per in found["ops"].items()},
            errors={op: Error(**e) for op, e in found["errors"].items()},
            passes=None if found["passes"] is None else Error(**found["passes"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ShrinkcError(f"{path} lacks something: {error!r}.", hint) from None
