"""Search space over a recipe: the table ``[explore]`` as Optuna's distributions.

Its keys are keys of the recipe's stages.  A list is a choice; ``{from, to}`` is a range that includes both ends, with
an optional ``step``, and sampled by ratio with ``log = true``.  ``STAGE.use = [true, false]`` makes a stage optional.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from shrinkc.checkpoints import need
from shrinkc.core.errors import BadRecipe

TABLE = "explore"
USE = "use"
_RANGE = {"from", "to", "step", "log"}
_FIXED = ("run", "evaluate", "budget")  # trials that differ in these cannot be compared

Values = dict[str, Any]
"""Name of a dimension -> value, without dimensions of omitted stages."""


@dataclass(frozen=True)
class Dimension:
    """One key: its ``path`` in the recipe and the Optuna ``distribution`` of its values."""

    path: tuple[str, ...]
    distribution: Any

    @property
    def name(self) -> str:
        """Name, such as ``gptq.bits``."""
        return ".".join(self.path)

    @property
    def stage(self) -> str:
        return self.path[0]

    @property
    def switch(self) -> bool:
        """Whether the dimension includes or omits a whole stage."""
        return self.path[1:] == (USE,)


@dataclass(frozen=True)
class Space:
    dimensions: tuple[Dimension, ...]

    @property
    def distributions(self) -> dict[str, Any]:
        """Name -> distribution, for ``Study.ask``."""
        return {d.name: d.distribution for d in self.dimensions}

    def values(self, params: Mapping[str, Any]) -> Values:
        """Convert an Optuna trial's ``params`` to values."""
        # choices are JSON texts, because Optuna does not store lists and tables
        found = {k: json.loads(v) if isinstance(v, str) else v for k, v in params.items()}
        off = {d.stage for d in self.dimensions if d.switch and found.get(d.name) is False}
        return {
            d.name: found[d.name]
            for d in self.dimensions
            if d.name in found and (d.switch or d.stage not in off)
        }

    def apply(self, tables: Mapping[str, Any], values: Values) -> dict[str, Any]:
        """Return the recipe's ``tables`` with ``values`` inserted."""
        out = copy.deepcopy(dict(tables))
        for d in self.dimensions:
            if d.switch:
                if not values.get(d.name, True):
                    del out[d.stage]
            elif d.name in values:
                place = out[d.stage]
                for key in d.path[1:-1]:
                    place = place.setdefault(key, {})
                    if not isinstance(place, dict):
                        raise BadRecipe(f"[{TABLE}] {d.name}: {key} = {place!r} is no table.")
                place[d.path[-1]] = values[d.name]
        return out

    def describe(self) -> dict[str, str]:
        """Return name -> allowed values as text; equal for equal spaces."""
        from optuna.distributions import distribution_to_json

        return {d.name: distribution_to_json(d.distribution) for d in self.dimensions}


def parse_space(table: Mapping[str, Any], recipe: Mapping[str, Any]) -> Space:
    """Parse an ``[explore]`` table for the tables of a ``recipe``.

    Raises BadRecipe with the key for a value that is no choice or range, an empty range, a stage that is not in the
    recipe, and a table that must be equal for all trials.
    """
    need("optuna")
    found = [Dimension(path, _distribution(path, value)) for path, value in _leaves((), table)]
    if not found:
        raise BadRecipe(
            f"[{TABLE}] is empty.", "name what may change, for instance gptq.bits = [3, 4, 8]."
        )
    stages = [name for name in recipe if name not in _FIXED]
    for d in found:
        if d.stage not in stages:
            raise BadRecipe(
                f"[{TABLE}] {d.name}: [{d.stage}] is "
                + ("the same for all trials." if d.stage in _FIXED else "no table of the recipe."),
                f"allowed: keys of {', '.join(stages)}; a stage that a trial may leave out has to "
                f"be in the recipe, with STAGE.{USE} = [true, false].",
            )
    return Space(tuple(found))


def _leaves(path: tuple[str, ...], value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every key path with its list or range; dotted keys of TOML are nested tables."""
    if isinstance(value, Mapping) and not (value and set(value) <= _RANGE):
        for key, inner in value.items():
            yield from _leaves((*path, key), inner)
    else:
        yield path, value


def _distribution(path: tuple[str, ...], value: Any) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    name = f"[{TABLE}] {'.'.join(path)}"
    if len(path) < 2:
        raise BadRecipe(
            f"{name} = {value!r} is no key of a stage.", "write for instance gptq.bits = [3, 4, 8]."
        )
    if path[1:] == (USE,) and value not in ([True, False], [False, True]):
        raise BadRecipe(f"{name} = {value!r}; [true, false] is allowed.")
    if isinstance(value, list):
        labels = [json.dumps(choice, sort_keys=True) for choice in value]
        if not value or len(set(labels)) < len(labels):
            raise BadRecipe(f"{name} = {value!r}; a list of different values is allowed.")
        return CategoricalDistribution(labels)
    if not isinstance(value, Mapping) or not {"from", "to"} <= set(value):
        raise BadRecipe(
            f"{name} = {value!r} is neither a choice nor a range.",
            "write a list of values, or { from = 0, to = 8 }, with step or log = true.",
        )
    numbers = [value[key] for key in ("from", "to", "step") if key in value]
    if any(type(n) not in (int, float) for n in numbers) or not numbers[0] < numbers[1]:
        raise BadRecipe(f"{name} = {dict(value)}; numbers are allowed, 'from' the smaller one.")
    whole = all(isinstance(number, int) for number in numbers)
    kind = IntDistribution if whole else FloatDistribution
    step = value.get("step", 1 if whole else None)
    try:
        with warnings.catch_warnings():
            # a step that does not divide the range is refused below
            warnings.simplefilter("ignore")
            made = kind(value["from"], value["to"], log=value.get("log", False), step=step)
    except ValueError as error:  # refused by Optuna
        raise BadRecipe(f"{name} = {dict(value)}: {error}") from error
    if abs(made.high - value["to"]) > 1e-9 * abs(made.high):
        raise BadRecipe(f"{name} = {dict(value)}: the steps do not arrive at 'to'.")
    return made
