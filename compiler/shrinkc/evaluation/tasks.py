"""Tasks of lm-evaluation-harness, by name or from a YAML file, with their own data set or a local file."""

from __future__ import annotations

import bz2
import difflib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from importlib import metadata
from io import StringIO
from pathlib import Path
from typing import Any

from shrinkc.checkpoints import need
from shrinkc.core.errors import BadData, UsageError
from shrinkc.core.fingerprint import FILE, Fingerprint
from shrinkc.core.progress import Update
from shrinkc.core.resources import resource
from shrinkc.evaluation.items import decoded, evenly_spaced, file_facts, json_lines, read_bytes
from shrinkc.evaluation.scorer import Scorer

BOOTSTRAPS = 1000  # resamplings, for standard errors of metrics that are not a mean
FEWSHOT_SEED = 1234  # default of the harness
_LOCAL = "local"  # name of the split with a local file's rows
_BLOCK = 6  # lines per HellaSwag question in llama.cpp's format
_FORMATS = (
    "JSON lines with the fields of the task's data set; of HellaSwag also llama.cpp's text (six lines per task: "
    "context, index of the right ending, four endings), of TriviaQA also FlashRAG's JSON lines "
    '("question", "golden_answers", "contexts"); plain or .bz2.'
)


@dataclass(frozen=True)
class TaskChoice:
    """Choice of a task.  ``name``: a task or group of the harness, or the path of a YAML file in its format.

    ``data``: a local file that replaces the task's data set.
    """

    name: str
    data: Path | None = None

    @classmethod
    def parse(cls, text: str) -> TaskChoice:
        """Parse ``NAME`` or ``NAME=FILE``.  Raises UsageError if either is empty."""
        name, separator, data = text.partition("=")
        if not name or (separator and not data):
            raise UsageError(
                f"{text!r} is no task.", "give NAME, FILE.yaml, or NAME=FILE with a file of data."
            )
        return cls(name, Path(data) if data else None)

    def __str__(self) -> str:
        return self.name if self.data is None else f"{self.name}={self.data}"

    @property
    def yaml(self) -> Path | None:
        """Return the path of the task's YAML file, or None for a task of the harness."""
        return Path(self.name) if self.name.endswith((".yaml", ".yml")) else None

    @property
    def files(self) -> tuple[Path, ...]:
        """Return all local files that the choice names."""
        return tuple(file for file in (self.yaml, self.data) if file is not None)

    def moved(self, absolute: Callable[[str], str]) -> TaskChoice:
        """Return a copy with ``absolute(path)`` in place of each path."""
        name = self.name if self.yaml is None else absolute(self.name)
        return replace(self, name=name, data=self.data and Path(absolute(str(self.data))))


@dataclass(frozen=True)
class Metric:
    """Metric of a task, in the task's unit.  ``standard_error`` is None if the harness gives none."""

    value: float
    standard_error: float | None


@dataclass(frozen=True)
class TaskResult:
    """Result of a task or group: ``items`` questions, each after ``shots`` examples."""

    items: int
    shots: int
    version: str
    metrics: Mapping[str, Metric]


class Task:
    """Task with its data in memory.  Raises BadData, UsageError, ExtraMissing.

    ``items``: number of questions, evenly spaced over the data; None: all.
    """

    def __init__(self, choice: TaskChoice, items: int | None) -> None:
        need("lm_eval")
        for library in ("lm_eval", "huggingface_hub"):
            logging.getLogger(library).setLevel(logging.ERROR)
        with _quiet():
            self._loaded = _load(choice)
            self._samples = {
                name: evenly_spaced(range(len(task.eval_docs)), items, f"the task {name}")
                for name, task in self._loaded["tasks"].items()
            }

    def run(self, scorer: Scorer, update: Update) -> dict[str, TaskResult]:
        """Return results by name: of the task, or of the group and all its tasks."""
        import lm_eval

        from shrinkc.evaluation.lm_eval import ScorerLM

        for task in self._loaded["tasks"].values():  # like the command lm_eval
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=FEWSHOT_SEED)
        with _quiet():
            found = lm_eval.evaluate(
                ScorerLM(scorer, update=update), self._loaded, samples=self._samples,
                bootstrap_iters=BOOTSTRAPS, log_samples=False,
            )  # fmt: skip
        return {name: _result(name, found) for name in found["results"]}


def harness_version() -> dict[str, str]:
    """Return the version of the harness, which defines prompts and metrics."""
    need("lm_eval")
    return {"lm_eval": metadata.version("lm_eval")}


def tasks_made_from(choices: Sequence[TaskChoice]) -> Fingerprint:
    """Return the fingerprint of ``choices``: names, hashes of files, and the harness' version.  Raises BadData."""
    found: Fingerprint = {}
    if choices:
        found["tasks"] = [choice.name for choice in choices]
        found["version of lm_eval"] = harness_version()["lm_eval"]
    for choice in choices:
        for file in choice.files:
            found[f"{FILE}{choice.name} {file.name}"] = file_facts(file)["sha256"]
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the harness' progress bars and messages: shrinkc reports progress itself."""
    from tqdm import tqdm

    before = tqdm.__init__

    def silent(self: Any, *given: Any, **options: Any) -> None:
        before(self, *given, **{**options, "disable": True})

    tqdm.__init__ = silent
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        tqdm.__init__ = before


def _load(choice: TaskChoice) -> Any:
    manager = _manager(choice)
    known = manager.task_index
    if choice.yaml is None and choice.name not in known:
        close = difflib.get_close_matches(choice.name, known, n=3)
        raise UsageError(
            f"lm-evaluation-harness has no task {choice.name!r}.",
            (f"similar ones: {', '.join(close)}; " if close else "")
            + "'lm_eval ls tasks' lists all of them; FILE.yaml is a task of your own.",
        )
    if choice.yaml is not None:
        read_bytes(choice.yaml)
    spec: Any = choice.name
    if choice.data is not None:
        spec = _on_rows(manager, choice, read_rows(choice.data))
    try:
        return manager.load(spec)
    except Exception as error:  # network, hub and user-defined tasks raise many types
        import datasets

        first = (str(error).strip() or type(error).__name__).split("\n")[0]
        if choice.data is not None:
            raise BadData(
                f"{choice.data}, for the task {choice.name}: {first}", _FORMATS
            ) from error
        raise BadData(
            f"the data set of the task {choice.name} cannot be loaded: {first}",
            f"it was looked for on the Hugging Face hub and in {datasets.config.HF_DATASETS_CACHE}; a local "
            f"file takes its place with {choice.name}=FILE.",
        ) from error


def _manager(choice: TaskChoice) -> Any:
    """Return the harness' task index.  Reading all of it takes seconds, so folders named like the task come first.

    A task of shrinkc replaces the harness' task of that name."""
    from lm_eval import tasks

    own, (root, *_) = resource("lm_eval_tasks"), tasks.__path__
    near = [f for f in Path(root).iterdir() if f.is_dir() and choice.name.startswith(f.name)]
    quick = tasks.TaskManager(include_defaults=False, include_path=[*near, own])
    if choice.yaml is not None or choice.name in quick.all_subtasks:
        return quick
    return tasks.TaskManager(include_path=own)


def _on_rows(manager: Any, choice: TaskChoice, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the task's configuration with ``rows`` as its only split."""
    import datasets
    from lm_eval.tasks._yaml_loader import load_yaml

    file = choice.yaml or manager.task_index[choice.name].yaml_path
    config = load_yaml(file) if file else {}
    if not isinstance(config.get("task"), str) or "class" in config:
        raise UsageError(
            f"{choice} is no single task that its YAML file describes: no file of data can be given for it.",
            "give one of the group's tasks.",
        )
    taken = {"training_split": None, "validation_split": None, "fewshot_split": None}
    return {
        **config, **taken, "test_split": _LOCAL, "dataset_path": str(choice.data), "dataset_name": None,
        "custom_dataset": lambda **_: {_LOCAL: datasets.Dataset.from_list(rows)},
    }  # fmt: skip


def _result(name: str, found: Mapping[str, Any]) -> TaskResult:
    """Convert the harness' result, whose keys are ``metric,filter`` and ``metric_stderr,filter``."""
    values = {
        key: value
        for key, value in found["results"][name].items()
        if "," in key and isinstance(value, int | float)
    }
    names = [key.partition(",")[0] for key in values if "_stderr," not in key]
    metrics = {}
    for key, value in values.items():
        metric, _, kept_by = key.partition(",")
        if "_stderr," not in key:
            label = metric if names.count(metric) == 1 else key
            metrics[label] = Metric(float(value), values.get(f"{metric}_stderr,{kept_by}"))
    counts = found["n-samples"]
    items = counts[name]["effective"] if name in counts else 0
    if name in found.get("group_subtasks", {}):
        items = sum(
            counts[part]["effective"] for part in found["group_subtasks"][name] if part in counts
        )
    shots = found["n-shot"].get(name, 0)
    return TaskResult(items, shots, str(found["versions"].get(name)), metrics)


# ---- files of data ----


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file in a supported format, with the fields of the hub's data sets.

    Raises BadData, which names the wrong line.
    """
    content = read_bytes(path)
    if path.suffix == ".bz2":
        try:
            content = bz2.decompress(content)
        except (OSError, ValueError) as error:
            raise BadData(f"{path} is no whole bz2 file: {error}.") from error
    text = decoded(content, path)
    if text.lstrip().startswith("{"):
        rows = [_with_answer(row) for _, row in json_lines(text, path)]
    else:
        rows = list(_from_llama_cpp(text, path))
    if not rows:
        raise BadData(f"{path} holds no question.", _FORMATS)
    return rows


def _with_answer(row: dict[str, Any]) -> dict[str, Any]:
    """Convert a row of FlashRAG to the fields of the hub's ``trivia_qa``; return other rows unchanged."""
    if "golden_answers" not in row:
        return row
    contexts = {"search_context": row.get("contexts", [])}
    answer = {"aliases": row["golden_answers"]}
    return {"question": row["question"], "answer": answer, "search_results": contexts}


def _from_llama_cpp(text: str, path: Path) -> Iterator[dict[str, Any]]:
    """Yield HellaSwag rows from llama.cpp's format, which does not mark ``ctx_b``: it is not capitalised."""
    lines = text.strip("\n").split("\n") if text.strip() else []
    for at in range(0, len(lines), _BLOCK):
        context, gold, *endings = lines[at : at + _BLOCK] if at + _BLOCK <= len(lines) else ("", "")
        activity, colon, rest = context.partition(": ")
        if not colon or gold.strip() not in ("0", "1", "2", "3"):
            raise BadData(f"{path}, lines {at + 1} to {at + _BLOCK} are no task.", _FORMATS)
        yield {
            "activity_label": activity, "ctx_a": rest, "ctx_b": "", "endings": endings, "label": gold.strip(),
        }  # fmt: skip


def with_context(dataset: Any) -> Any:
    """Return TriviaQA's rows with a context, each with its shortest as ``context``, for the task triviaqa_open."""
    return dataset.map(lambda row: {"context": _shortest(row)}).filter(lambda row: row["context"])


def _shortest(row: dict[str, Any]) -> str:
    pages = (row.get("entity_pages") or {}).get("wiki_context") or []
    found = (row.get("search_results") or {}).get("search_context") or []
    return min((text for text in (*pages, *found) if text.strip()), key=len, default="")
