"""What a search may change in a recipe: the table ``[explore]``.

Its keys are those of the recipe's stages.  A list is a choice; ``{from, to}`` is a range, both ends
included, with ``step`` for a coarser one and ``log = true`` for one in which ratios count.
``STAGE.use = [true, false]`` leaves the whole stage out, or not.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from shrinkc.core.errors import BadRecipe

TABLE = "explore"
USE = "use"
_RANGE = {"from", "to", "step", "log"}
_FIXED = ("run", "evaluate", "budget")  # trials that differ in these cannot be compared

Values = dict[str, Any]
"""Dimension's name -> value, without those of stages that are left out."""


class Trial(Protocol):
    """What is used of an Optuna trial."""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """One of ``choices``."""
        ...

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        """low <= value <= high."""
        ...

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """low <= value <= high."""
        ...


@dataclass(frozen=True)
class Dimension:
    """One key.  ``choices`` or, if empty, the numbers from ``low`` to ``high``."""

    path: tuple[str, ...]
    choices: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    step: float | None = None
    log: bool = False

    @property
    def name(self) -> str:
        """Such as ``gptq.bits``."""
        return ".".join(self.path)

    @property
    def stage(self) -> str:
        """The recipe's table."""
        return self.path[0]

    @property
    def switch(self) -> bool:
        """Whether it is about the whole stage."""
        return self.path[1:] == (USE,)

    def suggest(self, trial: Trial) -> Any:
        """The value that the trial's sampler chooses."""
        if self.choices:
            # as JSON: a choice may be a list or a table, which Optuna does not store
            return json.loads(trial.suggest_categorical(self.name, [*map(_label, self.choices)]))
        if isinstance(self.low, int) and isinstance(self.high, int):
            step = int(self.step or 1)
            return trial.suggest_int(self.name, self.low, self.high, step=step, log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)


@dataclass(frozen=True)
class Space:
    """All dimensions, switches first."""

    dimensions: tuple[Dimension, ...]

    def suggest(self, trial: Trial) -> Values:
        """A value for every dimension, except those of a stage that is switched off."""
        values: Values = {}
        off: set[str] = set()
        for d in self.dimensions:
            if d.stage in off:
                continue
            values[d.name] = d.suggest(trial)
            if d.switch and not values[d.name]:
                off.add(d.stage)
        return values

    def apply(self, tables: Mapping[str, Any], values: Values) -> dict[str, Any]:
        """The recipe's ``tables`` with ``values`` in their places."""
        out = copy.deepcopy(dict(tables))
        for d in self.dimensions:
            if d.name not in values:
                continue
            if d.switch:
                if not values[d.name]:
                    del out[d.stage]
                continue
            place = out[d.stage]
            for key in d.path[1:-1]:
                place = place.setdefault(key, {})
                if not isinstance(place, dict):
                    raise BadRecipe(f"[{TABLE}] {d.name}: {key} = {place!r} is no table.")
            place[d.path[-1]] = values[d.name]
        return out

    def describe(self) -> dict[str, Any]:
        """Name -> what is allowed, for JSON; equal for equal spaces."""
        return {
            d.name: list(d.choices)
            if d.choices
            else {"from": d.low, "to": d.high, "step": d.step, "log": d.log}
            for d in self.dimensions
        }


def parse_space(table: Mapping[str, Any], recipe: Mapping[str, Any]) -> Space:
    """The space of an ``[explore]`` table around the tables of a recipe.

    Raises BadRecipe that names the key: no choice, an empty range, a stage that the recipe does
    not have, a table that has to stay as it is.
    """
    found = [_dimension(path, value) for path, value in _leaves((), table)]
    if not found:
        raise BadRecipe(
            f"[{TABLE}] is empty.", "name what may change, for instance gptq.bits = [3, 4, 8]."
        )
    stages = [name for name in recipe if name not in _FIXED]
    for d in found:
        if d.stage in _FIXED:
            raise BadRecipe(
                f"[{TABLE}] {d.name}: [{d.stage}] is the same for all trials.",
                f"allowed: keys of {', '.join(stages)}.",
            )
        if d.stage not in recipe:
            raise BadRecipe(
                f"[{TABLE}] {d.name}: the recipe has no table [{d.stage}].",
                f"allowed: keys of {', '.join(stages)}; a stage that a trial may leave out has to "
                f"be in the recipe, with {d.stage}.{USE} = [true, false].",
            )
        if d.switch and not all(isinstance(c, bool) for c in d.choices):
            raise BadRecipe(f"[{TABLE}] {d.name} = {list(d.choices)}; [true, false] is allowed.")
    return Space(tuple(sorted(found, key=lambda d: not d.switch)))


def _leaves(path: tuple[str, ...], value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every key with its list or range; TOML's dotted keys are tables in tables."""
    if isinstance(value, Mapping) and not (value and set(value) <= _RANGE):
        for key, inner in value.items():
            yield from _leaves((*path, key), inner)
    else:
        yield path, value


def _dimension(path: tuple[str, ...], value: Any) -> Dimension:
    name = f"[{TABLE}] {'.'.join(path)}"
    if len(path) < 2:
        raise BadRecipe(
            f"{name} = {value!r} is no key of a stage.", "write for instance gptq.bits = [3, 4, 8]."
        )
    if isinstance(value, list):
        labels = [*map(_label, value)]
        if not value or len(set(labels)) < len(labels):
            raise BadRecipe(f"{name} = {value!r}; a list of different values is allowed.")
        return Dimension(path, tuple(value))
    if not isinstance(value, Mapping):
        raise BadRecipe(
            f"{name} = {value!r} is neither a choice nor a range.",
            "write a list of values, or { from = 0, to = 8 }.",
        )
    log = value.get("log", False)
    numbers: dict[str, Any] = {k: value[k] for k in ("from", "to", "step") if k in value}
    if not {"from", "to"} <= set(value) or not isinstance(log, bool):
        raise BadRecipe(f"{name}: a range is {{ from = …, to = … }}, with step or log = true.")
    for key, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise BadRecipe(f"{name}.{key} = {number!r}; a number is allowed.")
    low, high, step = numbers["from"], numbers["to"], numbers.get("step")
    if not low < high:
        raise BadRecipe(f"{name} goes from {low} to {high}; 'from' has to be the smaller one.")
    if step is not None and (step <= 0 or log):
        raise BadRecipe(f"{name}.step = {step}; a step is larger than 0, and log has none.")
    if log and low <= 0:
        raise BadRecipe(f"{name}.from = {low}; with log it has to be larger than 0.")
    steps = 1.0 if step is None else (high - low) / step
    if abs(steps - round(steps)) > 1e-9:
        raise BadRecipe(f"{name}: steps of {step} from {low} do not arrive at {high}.")
    if isinstance(step, float):
        low, high = float(low), float(high)
    return Dimension(path, low=low, high=high, step=step, log=log)


def _label(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
