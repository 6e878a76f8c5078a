"""Tables of cycles per feature: one JSON file per target in this folder, written by ``make calibrate``."""

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
"""Targets with a cost table."""


@dataclass(frozen=True)
class Error:
    """Median and 90th percentile of the prediction error on ``samples`` measurements, as fractions of the cycles."""

    samples: int
    median: float
    p90: float


@dataclass(frozen=True)
class Cycles:
    """Cycles of an op from start to end (``whole``), busy cycles of the cores, and of other engines by name."""

    whole: float
    cores: float
    others: Mapping[str, float]


def cycles_of(per: Mapping[str, float], work: Work) -> Cycles:
    """Return the cycles of ``work`` for given cycles ``per`` feature; other engines and the cores overlap."""
    lanes = {"": 0.0}
    for name, count in work.features.items():
        unit = lane(name)
        lanes[unit] = lanes.get(unit, 0.0) + per.get(name, 0.0) * count
    alone, overlapped = lanes.pop(""), lanes.pop(OVERLAPPED, 0.0)
    return Cycles(alone + max(overlapped, sum(lanes.values())), alone + overlapped, lanes)


@dataclass(frozen=True)
class CostTable:
    """Fitted cycles of a target.

    ``ops``: op -> feature -> cycles.  ``dma`` and ``flash``: bytes per cycle of copies on the chip and of fetches from
    flash.  ``probe``: cycles per op that the counters of a profile build add.  ``clock_mhz``: the simulator's default.
    ``errors`` (per op) and ``passes`` (of whole passes without counters): errors on ``held_out`` programs, whose shapes
    are not among the ``fitted`` ones.  ``made``: date, simulator, compiler and revision of shrinkc.
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
        """Return the cycles of one execution without waits; ``unknown`` features count as 0."""
        return cycles_of(self.ops.get(op, {}), work)

    def unknown(self, op: str, work: Work) -> list[str]:
        """Return the features of ``work`` that were never measured."""
        return [name for name in work.features if name not in self.ops.get(op, {})]

    def to_json(self) -> dict[str, Any]:
        return {"version": VERSION, **asdict(self)}


def cost_table(target: str) -> CostTable | None:
    """Return the cost table of a target, or None if it was not calibrated."""
    return _packaged(target) if target in CALIBRATED else None


@cache
def _packaged(target: str) -> CostTable:
    return read_table(resource("costs") / f"{target}.json")


def read_table(path: Path) -> CostTable:
    """Read a cost table.  Raises ShrinkcError if the file is damaged or of another version."""
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
