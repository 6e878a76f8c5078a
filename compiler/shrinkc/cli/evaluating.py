"""``shrinkc eval``: measure a model, float or compiled, and print one table."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

import shrinkc
from shrinkc.cli.console import Console, print_json
from shrinkc.cli.options import FILE, PATH, TASK_HELP, Device, command
from shrinkc.core.errors import UsageError
from shrinkc.core.output import check_file, write_file


@command(
    "eval",
    "Measure a model's quality: perplexity and tasks.",
    "shrinkc eval out --text wiki.test.raw --windows 4",
    "shrinkc eval out --base model --text wiki.test.raw --windows 16",
    "shrinkc eval model --task hellaswag --task arc_easy --items 200",
)
@click.argument("model", type=FILE)
@click.option(
    "--text",
    type=FILE,
    metavar="FILE|hub",
    help="WikiText file to measure perplexity on; hub downloads it.",
)
@click.option(
    "--protocol",
    type=click.Choice([f"wikitext{n}" for n in (64, 128, 256, 512, 2048)]),
    help="Tokens per window of the text. [default: wikitext512, or the longest that fits]",
)
@click.option(
    "--windows", default="all", show_default=True, help="Number of windows to measure, or all."
)
@click.option(
    "--base",
    type=FILE,
    metavar="MODEL",
    help="Compare the predictions with those of this model, e.g. the original.",
)
@click.option("--task", multiple=True, metavar="NAME[=FILE]", help=TASK_HELP)
@click.option("--items", type=int, help="Number of questions of each task. [default: all]")
@click.option(
    "--sample",
    multiple=True,
    metavar="TEXT",
    help="Text for the model to continue. May be repeated.",
)
@click.option("--chat", is_flag=True, help="Wrap every --sample in the model's chat template.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    help="Precision of the computation; not for compiled models. [default: float32]",
)
@click.option(
    "--kv-bits",
    type=int,
    help="Quantise the KV cache to 2 to 8 bits; not for compiled models. [default: no]",
)
@click.option("--batch", type=int, help="Number of sequences computed together. [default: 8]")
@click.option(
    "--threads",
    type=int,
    help="Threads for torch; the number may change last digits. [default: by the model's size]",
)
@click.option("--device", type=Device(), help="Device for torch, e.g. cuda. [default: cpu]")
@click.option(
    "--engine",
    type=click.Choice(["host", "interpreter"]),
    help="Run a compiled model as a program on this computer or in the interpreter. [default: host]",
)
@click.option("-o", "--output", type=PATH, help="Also write the results as JSON to this file.")
@click.option(
    "--resume",
    type=PATH,
    metavar="FILE",
    help="File with finished results, from which the command continues. [default: OUTPUT.resume]",
)
def eval_command(
    model: str,
    windows: str,
    sample: tuple[str, ...],
    task: tuple[str, ...],
    output: Path | None,
    resume: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure the quality of MODEL: perplexity of a text, accuracy in tasks, sample texts.

    MODEL is a directory with a Hugging Face or GPTQ checkpoint or a compiled model, a GGUF file, or a
    model's id on the Hugging Face hub.
    """
    console, count = Console(), _windows(windows)
    if output is not None:
        file = check_file(output)
        resume = resume or _beside(output, file)
    try:
        report = shrinkc.evaluate(
            model, windows=count, samples=sample, tasks=task, resume=resume, reporter=console, **options
        )  # fmt: skip
    except (KeyboardInterrupt, SystemExit):
        console.note(_how_to_go_on(resume))
        raise
    try:
        if output is not None:
            write_file(output, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    finally:
        if as_json:
            print_json(report)
        else:
            for line in lines(report):
                click.echo(line)
    if resume is not None:  # scores are stored until the report has been written
        resume.unlink(missing_ok=True)


def _beside(output: Path, file: Path | None) -> Path | None:
    """Return the path of the stored scores next to ``output``; None for a pipe or a device."""
    if file is None:
        return None
    if not output.is_symlink():
        file = output  # the user's spelling of the path
    return file.with_name(f"{file.name}.resume")


def _how_to_go_on(resume: Path | None) -> str:
    if resume is None:
        return "note: with -o FILE or --resume FILE the same command would go on from here"
    if not resume.exists():
        return "note: nothing was scored yet"
    return f"note: the same command goes on from here, with {resume}"


def lines(report: Mapping[str, Any]) -> list[str]:
    """Return the table of a report, then the sampled texts."""
    from shrinkc.evaluation.rows import figures

    model = report["model"]
    about = [model["kind"], model["dtype"]]
    if "kv_bits" in model:
        about.append(f"keys and values of {model['kv_bits']} bit")
    if "threads" in model:
        about.append(f"{model['threads']} thread{'s' * (model['threads'] != 1)}")
    if "engine" in model:
        about.append(f"on {model['engine']}")
    rows = figures(report)
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


def _windows(text: str) -> int | None:
    if text == "all":
        return None
    if re.fullmatch(r"0*[1-9][0-9]{0,8}", text) is None:
        raise UsageError(f"--windows {text} is not possible.", "allowed: 1 and more, or all.")
    return int(text)
