"""The fenced blocks of README.md and docs, executed as they stand there.

Every block has a marker on the line before it, a comment that is not seen when the page is shown:

    <!-- run -->                    a script, or commands with their output ("$ command"): executed
    <!-- run: needs qemu, torch --> the same where these are installed (see NEEDS), else skipped
    <!-- run: exit 30 -->           the last command ends with 30; also "needs qemu; exit 30"
    <!-- parse: REASON -->          not executed for this reason; its shrinkc lines are parsed
    <!-- keys: COMMAND -->          JSON with the keys of what COMMAND prints, where that is not null
    <!-- source: FILE [NAME …] -->  the text of a file of the checkout, or of these definitions of a Python file
    <!-- recipe: NAME -->           a recipe that can be read; written to NAME for later blocks
    <!-- no-run: REASON -->         nothing to execute, for this reason

The blocks of a page are executed in order in one directory, in which there are ``examples``, MODEL (a
copy of examples/stories with a chat template) and wiki.test.raw (any text).

Output is compared exactly, but for seconds and tokens/s, and with lines of more than 110 columns
folded at blanks.  A line ``...`` stands for any lines.  ``python tests/docs/pages.py --update`` writes
the output that there is now into the pages, and what else is made (pictures, the table of claims.md); what
it cannot get here (a tool is missing) it names.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

if __name__ == "__main__":  # a script finds the modules of the tests, as pytest does
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from docs import claims, pictures
from shrinkc.build import find_tool
from shrinkc.cli.main import cli
from shrinkc.compression.recipe import parse_recipe, read_tables
from shrinkc.compression.space import TABLE, parse_space
from shrinkc.core.errors import BadRecipe

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "examples" / "stories" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
FOLD = 110
TIMEOUT_SECONDS = 300

# what a marker may name -> outside programs, libraries
NEEDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "host": (("cc", "make"), ()),
    "qemu": (("make", "riscv64-unknown-elf-gcc", "qemu-riscv32"), ()),
    "gvsoc": (("make", "riscv64-unknown-elf-gcc", "gvsoc"), ()),
    "torch": ((), ("torch", "transformers")),
    "onnx": ((), ("onnx", "onnxruntime")),
}

_FENCE = re.compile(r"( *)(`{3,})([\w-]*)\s*")
_MARKER = re.compile(r"<!-- (run|parse|keys|source|recipe|no-run)(?:: (.+))? -->")
_VARIES = re.compile(r"\d+(?:\.\d+)?(?= s\b| tokens/s\b)")
_ANY = "..."


class PageError(Exception):
    """A block is not marked, or does not do what the page says."""


@dataclass(frozen=True)
class Block:
    """A fenced block: where its first line is in the page (from 0), its text, and its marker."""

    page: Path
    first: int
    language: str
    lines: tuple[str, ...]
    kind: str | None
    argument: str

    @property
    def name(self) -> str:
        page = self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page.name
        return f"{page}:{self.first}"

    @property
    def conditions(self) -> list[str]:
        """The parts of a run's marker."""
        return [part.strip() for part in self.argument.split(";") if part.strip()]

    @property
    def exit_code(self) -> int:
        codes = [c.removeprefix("exit ") for c in self.conditions if c.startswith("exit ")]
        return int(codes[0]) if codes else 0

    @property
    def is_console(self) -> bool:
        return bool(self.lines) and self.lines[0].startswith("$ ")

    def check_marker(self) -> None:
        """PageError unless there is a marker that says all it has to."""
        if self.kind is None:
            raise PageError(
                f"{self.name}: no marker before this block; tests/docs/pages.py says which there are"
            )
        if self.kind == "run":
            for part in self.conditions:
                known = all(need in NEEDS for need in _needs(part)) if _needs(part) else False
                if not known and not re.fullmatch(r"exit \d+", part):
                    raise PageError(f"{self.name}: '{part}' is no condition of a run")
        elif not self.argument:
            raise PageError(f"{self.name}: the marker {self.kind} lacks its text")

    def missing(self) -> str | None:
        """What the block needs and is not installed; None when all is there."""
        for need in (n for part in self.conditions for n in _needs(part)):
            tools, modules = NEEDS[need]
            for tool in (find_tool(name, dict(os.environ)) for name in tools):
                if not tool.usable:
                    return f"{tool.name}: {tool.problem}; {tool.fix}"
            for module in modules:
                if find_spec(module) is None:
                    return f"{module} is not installed (pip install '.[dev]')"
        return None


def _needs(condition: str) -> list[str]:
    head, _, names = condition.partition(" ")
    return [name.strip() for name in names.split(",")] if head == "needs" else []


def read_blocks(page: Path) -> list[Block]:
    """All fenced blocks of ``page``, in order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    out: list[Block] = []
    at = 0
    while at < len(lines):
        fence = _FENCE.fullmatch(lines[at])
        at += 1
        if fence is None:
            continue
        indent, ticks, language = fence.groups()
        end = at
        while end < len(lines) and lines[end].strip() != ticks:
            end += 1
        marker = _MARKER.fullmatch(lines[at - 2].strip()) if at >= 2 else None
        kind, argument = marker.groups() if marker else (None, None)
        inside = tuple(line.removeprefix(indent) for line in lines[at:end])
        out.append(Block(page, at, language, inside, kind, argument or ""))
        at = end + 1
    return out


@dataclass
class Command:
    """A command of a block, and the output that the page shows after it."""

    text: str
    shown: list[str] = field(default_factory=list)


def commands_of(block: Block) -> list[Command]:
    """The commands of a console block; a script is one command without output."""
    if not block.is_console:
        return [Command("\n".join(block.lines))]
    out: list[Command] = []
    going_on = False
    for line in block.lines:
        if going_on:
            out[-1].text += "\n" + line
        elif line.startswith("$ "):
            out.append(Command(line[2:]))
        else:
            out[-1].shown.append(line)
            continue
        going_on = line.endswith("\\")
    for command in out:
        while command.shown and not command.shown[-1]:
            command.shown.pop()
    return out


def fold(line: str) -> list[str]:
    """``line``, or what becomes of one that is too long for a page."""
    if len(line) <= FOLD:
        return [line]
    return textwrap.wrap(
        line, FOLD, break_long_words=False, break_on_hyphens=False, replace_whitespace=False
    )


def same(shown: list[str], got: list[str]) -> bool:
    """Whether a page shows ``got``, but for what varies."""
    parts = [_ANY_LINES if s == _ANY else re.escape(_VARIES.sub("0", s)) + "\n" for s in shown]
    return (
        re.fullmatch("".join(parts), "".join(_VARIES.sub("0", g) + "\n" for g in got)) is not None
    )


_ANY_LINES = r"(?:.*\n)*"


class Place:
    """The directory in which the blocks of one page are executed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "page"
        make_place(self.folder)
        tools = folder / "bin"
        tools.mkdir()
        # this checkout's shrinkc; how long work takes is nothing that a page can show
        (tools / "shrinkc").write_text(
            f"#!{sys.executable}\n"
            "from shrinkc.cli import console, main\n"
            "console.QUIET_SECONDS = 1e6\n"
            "main.main()\n"
        )
        (tools / "shrinkc").chmod(0o755)
        (tools / "python").symlink_to(sys.executable)
        self.env = {
            **os.environ,
            "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT / "compiler"),
            "COLUMNS": "100",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }

    def execute(self, command: str, python: bool = False) -> tuple[int, list[str]]:
        """Exit code, and the lines of both streams as a terminal shows them."""
        interpreter = [sys.executable] if python else ["bash", "-euo", "pipefail"]
        done = subprocess.run(
            [*interpreter, "-c", command], cwd=self.folder, env=self.env, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=TIMEOUT_SECONDS, check=False,
        )  # fmt: skip
        lines = [line.rstrip() for line in done.stdout.decode(errors="replace").split("\n")]
        while lines and not lines[-1]:
            lines.pop()
        return done.returncode, [part for line in lines for part in fold(line)]

    def run(self, block: Block, update: bool = False) -> list[str]:
        """Does what the marker of ``block`` asks for; returns its lines as they should be.

        PageError for a marker that is missing, a command that fails, and, without ``update``, for
        output that the page does not show.
        """
        block.check_marker()
        if block.kind == "recipe":
            self._read_recipe(block)
        elif block.kind == "parse":
            _parse(block)
        elif block.kind == "keys":
            self._check_keys(block)
        elif block.kind == "source":
            return _source(block, update)
        elif block.kind == "run":
            return self._run(block, update)
        return list(block.lines)

    def _run(self, block: Block, update: bool) -> list[str]:
        commands = commands_of(block)
        lines: list[str] = []
        for command in commands:
            code, got = self.execute(command.text, block.language == "python")
            wanted = block.exit_code if command is commands[-1] else 0
            if code != wanted:
                text = "\n".join([command.text, *got])
                raise PageError(f"{block.name}: ended with {code} instead of {wanted}:\n{text}")
            if not block.is_console:
                return list(block.lines)
            if same(command.shown, got):
                got = command.shown
            elif not update:
                raise PageError(
                    "\n".join([
                        f"{block.name}: the page shows other output than there is now; "
                        "'python tests/docs/pages.py --update' writes it:",
                        f"$ {command.text}", *got,
                    ])
                )  # fmt: skip
            first, *rest = command.text.split("\n")
            lines += [*([""] if lines else []), f"$ {first}", *rest, *got]
        return lines

    def _read_recipe(self, block: Block) -> None:
        path = self.folder / block.argument
        path.write_text("\n".join(block.lines) + "\n", encoding="utf-8")
        try:
            tables, base, _ = read_tables(str(path))
            if TABLE in tables:
                parse_space(tables.pop(TABLE), tables)
            parse_recipe(tables, base=base)
        except BadRecipe as error:
            raise PageError(f"{block.name}: {error}") from error

    def _check_keys(self, block: Block) -> None:
        code, got = self.execute(f"{{ {block.argument}; }} 2> /dev/null")
        if code:
            raise PageError(f"{block.name}: '{block.argument}' ended with {code}")
        _compare_keys(block.name, json.loads("\n".join(block.lines)), json.loads("\n".join(got)))


def _compare_keys(where: str, shown: Any, got: Any) -> None:
    if not isinstance(shown, dict) or got is None:
        return
    if not isinstance(got, dict) or list(shown) != list(got):
        raise PageError(f"{where}: the page shows the keys {list(shown)}, there are {list(got)}")
    for key in shown:
        _compare_keys(f"{where}, {key}", shown[key], got[key])


def _parse(block: Block) -> None:
    """PageError for a line of shrinkc that its command would refuse."""
    joined = "\n".join(c.text for c in commands_of(block)).replace("\\\n", " ")
    lines = [line for line in joined.split("\n") if line.startswith("shrinkc ")]
    if not lines:
        raise PageError(f"{block.name}: no line of shrinkc to parse; mark it no-run")
    for line in lines:
        _, name, *arguments = shlex.split(line, comments=True)
        try:
            cli.commands[name].make_context(name, arguments)
        except (KeyError, click.ClickException) as error:
            raise PageError(f"{block.name}: {line}: {error}") from error


def _source(block: Block, update: bool) -> list[str]:
    """The lines that the marker of ``block`` names; PageError where there are none or, without
    ``update``, where the page shows others."""
    file, *names = block.argument.split()
    if not (ROOT / file).is_file():
        raise PageError(f"{block.name}: there is no file {file}")
    text = (ROOT / file).read_text(encoding="utf-8")
    lines = _definitions(block, text, names) if names else text.rstrip("\n").split("\n")
    if lines != list(block.lines) and not update:
        raise PageError(
            f"{block.name}: the page shows something else than {block.argument}; "
            "'python tests/docs/pages.py --update' writes it"
        )
    return lines


def _definitions(block: Block, text: str, names: list[str]) -> list[str]:
    """Functions, classes and assigned values of a Python file, two blank lines between them."""
    spans: dict[str, tuple[int, int]] = {}
    for node in ast.parse(text).body:
        first, last = node.lineno - 1, node.end_lineno or node.lineno
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            spans[node.name] = (min([first, *(d.lineno - 1 for d in node.decorator_list)]), last)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            spans[node.targets[0].id] = (first, last)
    if unknown := [name for name in names if name not in spans]:
        raise PageError(f"{block.name}: {', '.join(unknown)} is not defined there")
    lines, out = text.split("\n"), list[str]()
    for name in names:
        out += ["", ""] * bool(out) + lines[slice(*spans[name])]
    return out


def make_place(folder: Path) -> None:
    """What the pages' commands are about, small: a model, texts and questions by these names."""
    folder.mkdir()
    (folder / "examples").symlink_to(ROOT / "examples")
    model = folder / "MODEL"
    shutil.copytree(ROOT / "examples" / "stories", model)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    draw = random.Random(0)
    names = ["Lily", "Tom", "Ben", "Mia", "Anna", "Max", "Sam", "Sue"]
    things = ["ball", "dog", "cat", "tree", "park", "boat", "bird", "cake", "book", "toy"]
    doings = ["saw", "found", "took", "liked", "lost", "drew", "made", "hid"]

    def sentence() -> str:
        name, doing, thing, other = map(draw.choice, (names, doings, things, names))
        return f"{name} {doing} a {thing} with {other}, {draw.randrange(1000)} times."

    (folder / "wiki.test.raw").write_text("\n".join(sentence() for _ in range(700)) + "\n")


def update(page: Path) -> list[str]:
    """Writes the output that there is now into ``page``; returns what could not be had."""
    lines = page.read_text(encoding="utf-8").splitlines()
    skipped, moved = [], 0
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        for block in read_blocks(page):
            if block.kind == "run" and (missing := block.missing()):
                skipped.append(f"{block.name}: not run: {missing}")
                continue
            try:
                now = place.run(block, update=True)
            except PageError as error:
                skipped.append(str(error))
                continue
            if now != list(block.lines):
                first = block.first + moved
                lines[first : first + len(block.lines)] = now
                moved += len(now) - len(block.lines)
    text = "\n".join(lines) + "\n"
    if text != page.read_text(encoding="utf-8"):
        page.write_text(text, encoding="utf-8")
        print(f"{page.name}: written")
    return skipped


def main() -> None:
    """``python tests/docs/pages.py --update [PAGE …]``; ends with 1 when something was not written."""
    parser = argparse.ArgumentParser(description="Writes the output of console blocks anew.")
    parser.add_argument("--update", action="store_true", required=True)
    parser.add_argument("pages", nargs="*", type=Path, default=PAGES)
    pictures.write()
    skipped = [line for page in parser.parse_args().pages for line in update(page.resolve())]
    claims.update()
    sys.exit("\n".join(skipped) or 0)


if __name__ == "__main__":
    main()
