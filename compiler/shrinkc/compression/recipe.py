"""Recipes: TOML files with the stages of a compression run, in order, and their settings.

The tables ``run``, ``calibration``, ``self_generated``, ``evaluate`` and ``budget`` apply to the whole run.  The table
``fast`` changes keys of other tables for ``--fast``.  Every other table is a stage, named after its kind, or
``kind-label`` if a kind occurs twice.  Paths are relative to the
recipe's folder; in shipped recipes and ``--set``, to the working directory.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from shrinkc.compression.checks import (
    converted_key,
    did_you_mean,
    hints_of,
)
from shrinkc.compression.recipe_settings import (
    BudgetSettings,
    CalibrationSettings,
    EvaluateSettings,
    RunSettings,
)
from shrinkc.compression.self_generated import SelfGeneratedSettings, is_self, tokens_of
from shrinkc.compression.stages.context import Stage
from shrinkc.compression.stages.kinds import KINDS
from shrinkc.compression.texts import is_file
from shrinkc.core.errors import BadRecipe, UsageError
from shrinkc.core.resources import resource
from shrinkc.evaluation import TaskChoice

_STAGE_NAME = re.compile(r"([^-]+)(?:-[a-z0-9]+)?")
FAST = "fast"  # table of changes for a fast run
# keys with paths in any table
PATH_KEYS = ("text",)


@dataclass(frozen=True)
class Recipe:
    """A recipe, checked as far as that is possible without the model.

    Attributes:
        stages: The stages, in order.
        run: The table ``run``.
        calibration: The table ``calibration``.
        self_generated: The table ``self_generated``.
        evaluate: The table ``evaluate``, or None.
        budget: The table ``budget``, or None.
        name: For messages.
    """

    stages: tuple[Stage, ...]
    run: RunSettings = field(default_factory=RunSettings)
    calibration: CalibrationSettings = field(default_factory=CalibrationSettings)
    self_generated: SelfGeneratedSettings = field(default_factory=SelfGeneratedSettings)
    evaluate: EvaluateSettings | None = None
    budget: BudgetSettings | None = None
    name: str = "recipe"

    def __post_init__(self) -> None:
        """Raise BadRecipe for a malformed source of self-generated text."""
        for source in filter(is_self, self.calibration.text):
            tokens_of(source)
        self.self_generated_tokens()

    def with_stages(self, stages: Sequence[Stage]) -> Recipe:
        """Return a recipe with other stages and without a budget."""
        return replace(self, stages=tuple(stages), budget=None)

    @property
    def needs_calibration(self) -> bool:
        return self.budget is not None or any(stage.needs_calibration for stage in self.stages)

    def text_files(self) -> Iterator[tuple[str, Path]]:
        """Yield every text file that the run reads, with its key."""
        named = [
            (f"{stage.name}.text", getattr(stage.settings, "text", ())) for stage in self.stages
        ]
        if self.needs_calibration:
            named.append(("calibration.text", self.calibration.text))
        for key in PATH_KEYS if self.evaluate is not None else ():
            path = getattr(self.evaluate, key)
            named.append((f"evaluate.{key}", () if path is None else (path,)))
        for key, sources in named:
            yield from ((key, Path(source)) for source in sources if is_file(source))

    def task_files(self) -> Iterator[tuple[str, Path]]:
        """Yield every file of data or settings of the tasks, with its key."""
        for choice in () if self.evaluate is None else self.evaluate.choices():
            yield from (("evaluate.tasks", file) for file in choice.files)

    def self_generated_tokens(self) -> int:
        """Return the number of self-generated tokens that this run needs."""
        given = [getattr(stage.settings, "text", ()) for stage in self.stages]
        if self.needs_calibration:
            given.append(self.calibration.text)
        return max((tokens_of(t) for texts in given for t in texts if is_self(t)), default=0)

    def to_toml(self) -> str:
        """Return the effective recipe with all defaults as TOML."""
        tables: dict[str, Any] = {"run": self.run, "calibration": self.calibration}
        tables |= {
            "self_generated": self.self_generated,
            "evaluate": self.evaluate,
            "budget": self.budget,
        }
        tables |= {stage.name: stage.settings for stage in self.stages}
        return "\n".join(
            f"[{name}]\n{_toml_table(asdict(table))}" for name, table in tables.items() if table
        )


_GLOBAL: dict[str, Any] = {
    "run": RunSettings,
    "calibration": CalibrationSettings,
    "self_generated": SelfGeneratedSettings,
    "evaluate": EvaluateSettings,
    "budget": BudgetSettings,
}


RecipeSource = str | os.PathLike[str] | Mapping[str, Mapping[str, Any]] | Recipe


def shipped() -> dict[str, Path]:
    """Return name -> file of the shipped recipes."""
    return {path.stem: path for path in sorted(resource("recipes").glob("*.toml"))}


def load_recipe(
    source: RecipeSource,
    assignments: Sequence[str] = (),
    *,
    text: Sequence[str] = (),
    fast: bool = False,
) -> Recipe:
    """Load a recipe, and apply its table ``fast`` if wanted, then ``text``, then ``table.key=value`` assignments.

    ``text``: texts for calibration and for all stages instead of the recipe's; paths start at the working directory.

    ``source``: a file, the name of a shipped recipe, a mapping of tables as in a file (with paths relative to the
    working directory), or a recipe.

    Raises BadRecipe that names the key, its value and what is allowed.
    """
    tables: Mapping[str, Any]
    base: Path | None
    if isinstance(source, Recipe):
        if not (assignments or text or fast):
            return source
        tables, base, name = tomllib.loads(source.to_toml()), None, source.name
    elif isinstance(source, Mapping):
        tables, base, name = _as_toml(source), Path.cwd(), "recipe"
    else:
        tables, base, name = read_tables(os.fspath(source))
    if fast:
        tables = _made_fast(tables)
    if text:
        tables = _with_text(tables, text)
    return parse_recipe(tables, assignments, base=base, name=name)


def _made_fast(tables: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the tables with the changes of the table ``fast``.  Raises BadRecipe."""
    changes = tables.get(FAST)
    if not isinstance(changes, Mapping):
        raise BadRecipe(
            f"the recipe has no table [{FAST}], so --fast would change nothing.",
            "leave --fast out, or shorten the run with --set, such as --set qat.samples=100.",
        )
    for table, keys in changes.items():
        if table not in tables or not isinstance(keys, Mapping):
            raise BadRecipe(
                f"[{FAST}] {table} = {keys!r}: keys of tables that the recipe has are allowed.",
                "write for instance qat.samples = 100.",
            )
    changed = {name: {**tables[name], **keys} for name, keys in changes.items()}
    return {**tables, **changed}


def _with_text(tables: Mapping[str, Any], text: Sequence[str]) -> Mapping[str, Any]:
    """Return the tables with other texts for calibration and for the stages that have own ones."""
    absolute = _with_paths({"text": list(text)}, Path.cwd())
    named = [
        name
        for name, table in tables.items()
        if isinstance(table, Mapping) and "text" in table and name != "evaluate"
    ]
    changed = {name: {**tables.get(name, {}), **absolute} for name in ["calibration", *named]}
    return {**tables, **changed}


def _as_toml(value: Any) -> Any:
    """Convert Python values to those of a TOML file: dictionaries, lists, and texts for paths."""
    if isinstance(value, Mapping):
        return {key: _as_toml(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_toml(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def read_tables(source: str) -> tuple[dict[str, Any], Path, str]:
    """Return the tables of the recipe ``source``, the folder for its relative paths, and its name.

    ``source``: a file, a pipe (``<(...)`` of a shell), or the name of a shipped recipe.  Raises BadRecipe."""
    path, names = Path(source), shipped()
    if path.is_file():
        base = path.resolve().parent
    elif source in names:
        path, base = names[source], Path.cwd()
    elif path.exists() and not path.is_dir():
        base = Path.cwd()
    else:
        raise BadRecipe(
            f"there is no recipe {source!r}.",
            f"give a TOML file, or one of the shipped recipes: {', '.join(names)}.",
        )
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")), base, path.stem
    except (OSError, ValueError, RecursionError) as error:
        raise BadRecipe(f"{path} is not a readable TOML file: {error}.") from error


def parse_toml(text: str, *, name: str = "recipe") -> Recipe:
    """Parse the text that :meth:`Recipe.to_toml` wrote.  Raises BadRecipe."""
    return parse_recipe(tomllib.loads(text), name=name)


def parse_recipe(
    tables: Mapping[str, Any],
    assignments: Sequence[str] = (),
    *,
    base: Path | None = None,
    name: str = "recipe",
) -> Recipe:
    """Make a recipe from the parsed tables of a TOML file.  Raises BadRecipe with every problem."""
    problems = _Problems()
    merged: dict[str, dict[str, Any]] = {}
    for key, value in tables.items():
        if key == FAST:
            continue
        with problems.noted():
            if not isinstance(value, dict):
                raise BadRecipe(
                    f"{key} = {value!r} lies outside of any table.",
                    f"tables are {', '.join([*_GLOBAL, *KINDS])}.",
                )
            merged[key] = value
            merged[key] = _with_paths(value, base)
    for assignment in assignments:
        with problems.noted():
            _assign(merged, assignment)

    stages: list[Stage] = []
    parts: dict[str, Any] = {}
    for table, content in merged.items():
        match = _STAGE_NAME.fullmatch(table)
        if table in _GLOBAL:
            parts[table] = _read_table(_GLOBAL[table], table, content, problems)
        elif match is not None and match[1] in KINDS:
            settings = _read_table(KINDS[match[1]].settings, table, content, problems)
            stages.append(Stage(table, match[1], settings))
        else:
            problems.found.append(
                BadRecipe(
                    f"[{table}] is no table of a recipe{did_you_mean(table, [*_GLOBAL, *KINDS])}.",
                    f"allowed: {', '.join(_GLOBAL)}; stages {', '.join(KINDS)}, with a label "
                    "such as 'lora-2' where one comes twice.",
                )
            )
    problems.raise_all()
    if not stages and "budget" not in parts:
        raise BadRecipe(
            "the recipe has no stage.", f"add one of the tables {', '.join(KINDS)}, or a [budget]."
        )
    return Recipe(tuple(stages), name=name, **parts)


class _Problems:
    """Problems of a recipe, collected for one error."""

    def __init__(self) -> None:
        self.found: list[BadRecipe] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Store a BadRecipe that is raised within the context instead of passing it on."""
        try:
            yield
        except BadRecipe as error:
            self.found.append(error)

    def raise_all(self) -> None:
        """Raise BadRecipe with all problems, if there are any."""
        if len(self.found) > 1:
            texts = "; ".join(error.message.rstrip(".") for error in self.found)
            hints = dict.fromkeys(error.hint for error in self.found if error.hint)
            raise BadRecipe(f"{len(self.found)} problems: {texts}.", " ".join(hints) or None)
        if self.found:
            raise self.found[0]


def _read_table(cls: Any, table: str, content: Mapping[str, Any], problems: _Problems) -> Any:
    """Make an instance of the dataclass ``cls``, whose keys all have defaults, from a TOML table.

    In case of errors, add them to ``problems`` and return None."""
    hints = hints_of(cls)
    before, values = len(problems.found), {}
    for key, value in content.items():
        with problems.noted():
            values[key] = converted_key(f"[{table}] ", hints, key, value)
    if len(problems.found) == before:  # else the default of a wrong key may cause further problems
        try:
            return cls(**values)
        except BadRecipe as error:
            problems.found.append(BadRecipe(f"[{table}] {error.message}", error.hint))
    return None


def _assign(tables: dict[str, dict[str, Any]], assignment: str) -> None:
    """Apply one ``table.key=value``."""
    path, equals, text = assignment.partition("=")
    table, dot, key = path.strip().partition(".")
    if not equals or not dot or not table or not key:
        raise BadRecipe(
            f"--set {assignment} is no assignment.", "write for instance --set lora.rank=16."
        )
    if table not in tables and table not in _GLOBAL:
        stages = [name for name in tables if name not in _GLOBAL]
        raise BadRecipe(
            f"--set {assignment}: the recipe has no table [{table}]"
            f"{did_you_mean(table, [*tables, *_GLOBAL])}.",
            f"it has the stages {', '.join(stages) or '(none)'}.",
        )
    value: Any
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except ValueError:
        value = text.strip()  # a bare word: a path, a method's name
    target = tables.setdefault(table, {})
    *parents, last = key.split(".")
    for parent in parents:
        target = target.setdefault(parent, {})
        if not isinstance(target, dict):
            raise BadRecipe(f"--set {assignment}: {parent} is a value, not a table.")
    target[last] = value
    tables[table] = _with_paths(tables[table], Path.cwd())


def _with_paths(table: Mapping[str, Any], base: Path | None) -> dict[str, Any]:
    """Return the table with absolute paths; relative ones start at ``base``."""
    if base is None:
        return dict(table)

    def absolute(value: Any) -> Any:
        if isinstance(value, list):
            return [absolute(item) for item in value]
        if not isinstance(value, str) or not value or not is_file(value):
            return value
        try:
            path = base / Path(value).expanduser()
            is_pipe, full = path.is_fifo(), str(path.resolve())
        except (ValueError, RuntimeError, OSError) as error:  # a NUL, ~ of nobody, a link to itself
            raise BadRecipe(f"{value!r} is no name of a file: {error}.", "give a path.") from error
        if is_pipe:
            raise BadRecipe(
                f"{value} is a pipe, which can be read only once; a run reads its texts several times.",
                "give the name of a file.",
            )
        return full

    def absolute_task(value: Any) -> Any:
        try:
            return str(TaskChoice.parse(value).moved(absolute))
        except (AttributeError, UsageError):  # the settings report the problem
            return value

    found = {k: absolute(v) if k in PATH_KEYS else v for k, v in table.items()}
    if isinstance(tasks := table.get("tasks"), list):
        found["tasks"] = [absolute_task(task) for task in tasks]
    return found


def _toml_table(values: Mapping[str, Any]) -> str:
    return "".join(f"{k} = {_toml(v)}\n" for k, v in values.items() if v is not None)


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_toml(str(k))} = {_toml(v)}" for k, v in value.items())
        return f"{{ {inner} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    # texts, numbers and booleans of JSON are valid TOML, except for the character DEL
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
