"""``shrinkc eval``: measure a model, float or compiled, and print one table."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import click

from shrinkc.cli.console import Console, print_json
from shrinkc.core import artifact
from shrinkc.core.errors import UsageError
from shrinkc.core.output import check_file, write_file
from shrinkc.evaluation import CompiledScorer, EvalPlan, Scorer, TorchScorer, evaluate
from shrinkc.evaluation.compiled_scorer import Engine
from shrinkc.evaluation.hub import SOURCES, data_file


@dataclass(frozen=True)
class EvalRequest:
    """The command line of an evaluation; what is None is left to whoever runs the model."""

    model: str
    plan: EvalPlan
    dtype: str | None
    device: str | None
    batch: int | None
    threads: int | None
    engine: Engine | None

    @classmethod
    def from_options(
        cls,
        *,
        model: str,
        text: str | None,
        protocol: str,
        windows: str,
        trivia: str | None,
        trivia_items: int | None,
        hellaswag: str | None,
        hellaswag_items: int | None,
        sample: tuple[str, ...],
        chat: bool,
        dtype: str | None,
        device: str | None,
        batch: int | None,
        threads: int | None,
        engine: str | None,
    ) -> EvalRequest:
        """From the command line's values; UsageError when one is not possible."""
        plan = EvalPlan(
            text=data_path(text), protocol=cast(Any, protocol), windows=_windows(windows),
            trivia=data_path(trivia), trivia_items=trivia_items, hellaswag=data_path(hellaswag),
            hellaswag_items=hellaswag_items, samples=sample, chat=chat,
        )  # fmt: skip
        if plan.empty:
            raise UsageError(
                "nothing to measure was asked for.",
                "give at least one of --text FILE, --trivia FILE, --hellaswag FILE (or hub), --sample TEXT.",
            )
        if chat and not sample:
            raise UsageError("--chat is about samples.", "give a message with --sample TEXT.")
        for name, value in (
            ("--batch", batch), ("--threads", threads), ("--trivia-items", trivia_items),
            ("--hellaswag-items", hellaswag_items),
        ):  # fmt: skip
            if value is not None and value < 1:
                raise UsageError(f"{name} {value} is not possible.", "allowed: 1 and more.")
        return cls(model, plan, dtype, device, batch, threads, cast(Engine | None, engine))


def run(
    request: EvalRequest,
    *,
    output: Path | None,
    env: Mapping[str, str],
    console: Console,
    as_json: bool,
) -> None:
    """Measures, writes ``output`` whole, and prints a table (or with ``as_json`` the report), also
    when ``output`` cannot be written after all."""
    if output is not None:
        check_file(output)
    with TemporaryDirectory(prefix="shrinkc-") as folder:
        plan = with_files(request.plan, Path(folder), console)
        report = evaluate(_scorer(request, env, console), plan, console)
    try:
        if output is not None:
            write_file(output, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    finally:
        if as_json:
            print_json(report)
        else:
            for line in lines(report):
                click.echo(line)


def with_files(plan: EvalPlan, folder: Path, console: Console) -> EvalPlan:
    """The plan with what is on the hub fetched to files in ``folder``."""
    with console.stage("fetching data"):
        files = {
            kind: data_file(str(value), kind, folder)
            for kind in SOURCES
            if (value := getattr(plan, kind)) is not None
        }
    return replace(plan, **files)  # type: ignore[arg-type]


def data_path(value: str | None) -> Path | None:
    """A file's name, or ``hub``, as a plan has it until :func:`with_files`."""
    return None if value is None else Path(value)


def _scorer(request: EvalRequest, env: Mapping[str, str], console: Console) -> Scorer:
    path = Path(request.model)
    if artifact.is_artifact(path):
        options = ("dtype", "device", "threads", "batch")
        wrong = [f"--{name}" for name in options if getattr(request, name) is not None]
        if wrong:
            raise UsageError(
                f"{' and '.join(wrong)}: {path} is a compiled program, which runs as it was "
                "compiled.",
                "leave that out.",
            )
        with console.stage("building the program"):
            return CompiledScorer(path, env, request.engine or "host")
    if (path / artifact.MANIFEST).is_file() and not (path / "config.json").is_file():
        artifact.read_manifest(path)  # says what is wrong with it
    if request.engine is not None:
        raise UsageError(
            f"--engine {request.engine}: {path} is not a compiled directory.",
            "leave --engine out, or give a directory made by 'shrinkc compile'.",
        )
    from shrinkc.checkpoints import load, need, use_threads

    need("torch", "transformers")
    if request.threads is not None:
        use_threads(request.threads)
    with console.stage("loading the model"):
        loaded = load(
            request.model, dtype=request.dtype or "float32", device=request.device or "cpu"
        )
    if request.batch is None:
        return TorchScorer(loaded)
    return TorchScorer(loaded, batch=request.batch)


def lines(report: Mapping[str, Any]) -> list[str]:
    """The table of a report for people, then the sampled texts."""
    model = report["model"]
    about = [model["kind"], model["dtype"]]
    if "threads" in model:
        about.append(f"{model['threads']} thread{'s' * (model['threads'] != 1)}")
    if "engine" in model:
        about.append(f"on {model['engine']}")
    rows = [row for name in _ROWS if name in report for row in _ROWS[name](report[name])]
    out = [f"{model['name']} ({', '.join(about)})"]
    if rows:
        rows = [("measure", "value", "+-", "of"), *rows]
        width = [max(len(row[i]) for row in rows) for i in range(4)]
        out += [
            f"  {name:{width[0]}}  {value:>{width[1]}}  {error:>{width[2]}}  {of}"
            for name, value, error, of in rows
        ]
    for sample in report.get("samples", {}).get("texts", []):
        out += ["", f"> {sample['prompt']}", sample["text"].strip("\n")]
    return out


Row = tuple[str, str, str, str]


def _perplexity_rows(result: Mapping[str, Any]) -> list[Row]:
    of = f"{result['windows']} windows, {result['tokens']} tokens"
    error = result["perplexity_standard_error"]
    shown = "" if error is None else f"{error:.2f}"
    return [(f"{result['protocol']} perplexity", f"{result['perplexity']:.3f}", shown, of)]


def _trivia_rows(result: Mapping[str, Any]) -> list[Row]:
    rows = []
    for book in ("closed", "open"):
        part = result[book]
        if part is None:
            rows.append((f"TriviaQA {book} book", "-", "", result["open_reason"]))
            continue
        of = (
            f"{part['items']} questions: {part['exact']} exact, {part['contained']} contained, "
            f"{part['words']} by words"
        )
        share, error = part["accuracy"], part["standard_error"]
        rows.append((f"TriviaQA {book} book", *_percent(share, error), of))
    return rows


def _hellaswag_rows(result: Mapping[str, Any]) -> list[Row]:
    of = f"{result['items']} tasks"
    return [
        (f"HellaSwag {name}", *_percent(result[name], result[f"{name}_standard_error"]), of)
        for name in ("acc", "acc_norm")
    ]


_ROWS = {"perplexity": _perplexity_rows, "trivia": _trivia_rows, "hellaswag": _hellaswag_rows}


def _percent(share: float, error: float | None) -> tuple[str, str]:
    return f"{100 * share:.2f} %", "" if error is None else f"{100 * error:.2f}"


def _windows(text: str) -> int | None:
    if text == "all":
        return None
    if re.fullmatch(r"0*[1-9][0-9]{0,8}", text) is None:
        raise UsageError(f"--windows {text} is not possible.", "allowed: 1 and more, or all.")
    return int(text)
