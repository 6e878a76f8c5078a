"""The fenced blocks of README.md and docs/, executed as a reader would.

* ``console``: lines with ``$ `` are commands, the lines after a command are its output.
* ``python``: executed.  Any language with ``title="NAME"``: written to the file NAME.
* ``sh``: shown only.  The command line parses its lines of shrinkc, and those of skipped blocks.
* All other languages are shown only.

A comment on the line before a block may say ``<!-- skip: REASON -->``, ``<!-- needs: qemu, torch -->``
(see NEEDS) or ``<!-- exit: 30 -->`` (the exit code of the block's last command); ``;`` combines them.

The blocks of a page share one directory with ``examples``, ``MODEL`` (examples/stories with a chat
template) and ``wiki.test.raw`` (any text).  Output is compared without seconds and tokens/s; lines are
folded at 110 columns; a line ``...`` stands for any lines.

``python tests/docs/blocks.py --update PAGE ...`` writes the output of now into the pages.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import click
from markdown_it import MarkdownIt

from shrinkc.build import find_tool
from shrinkc.cli.main import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted({ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")})  # fmt: skip
COLUMNS = 110
TIMEOUT_SECONDS = 300

# what a comment may name -> outside programs, Python libraries
NEEDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "host": (("cc", "make"), ()),
    "qemu": (("make", "riscv64-unknown-elf-gcc", "qemu-riscv32"), ()),
    "gvsoc": (("make", "riscv64-unknown-elf-gcc", "gvsoc"), ()),
    "torch": ((), ("torch", "transformers")),
    "scipy": ((), ("scipy",)),
    "onnx": ((), ("onnx", "onnxruntime")),
}
_COMMENT = re.compile(r"<!-- ((?:skip|needs|exit): .*) -->")
_VARIES = re.compile(r"\d[\d,]*(?:\.\d+)?(?= s\b| tokens/s\b)")


class BlockError(Exception):
    """A block does not do what its page says."""


@dataclass(frozen=True)
class Block:
    """A fenced block; ``first`` is the number (from 0) of its first line of text in the page."""

    page: Path
    first: int
    language: str
    title: str
    text: str
    conditions: dict[str, str]

    @property
    def name(self) -> str:
        page = self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page.name
        return f"{page}:{self.first}"

    @property
    def executed(self) -> bool:
        return "skip" not in self.conditions and (
            bool(self.title) or self.language in ("console", "python")
        )

    def missing(self) -> str | None:
        """What the block needs and is not installed."""
        for need in filter(None, re.split(r",\s*", self.conditions.get("needs", ""))):
            tools, modules = NEEDS[need]
            for tool in (find_tool(name, dict(os.environ)) for name in tools):
                if not tool.usable:
                    return f"{tool.name}: {tool.problem}; {tool.fix}"
            for module in modules:
                if find_spec(module) is None:
                    return f"{module} is not installed (pip install '.[dev]')"
        return None

    def commands(self) -> list[tuple[str, list[str]]]:
        """(command, its output in the page) of a console block."""
        out: list[tuple[str, list[str]]] = []
        for part in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]:
            command, *shown = re.split(r"(?<!\\)\n", part, maxsplit=1)
            out.append((command, shown[0].rstrip().split("\n") if shown and shown[0].strip() else []))  # fmt: skip
        return out


def read_blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order.  BlockError for a comment that says nothing known."""
    text = page.read_text(encoding="utf-8")
    lines = text.splitlines()
    blocks = []
    for token in MarkdownIt().parse(text):
        if token.type != "fence" or token.map is None:
            continue
        first = token.map[0]
        comment = _COMMENT.fullmatch(lines[first - 1].strip()) if first else None
        conditions = dict(part.split(": ", 1) for part in comment[1].split("; ")) if comment else {}
        needs = set(filter(None, re.split(r",\s*", conditions.get("needs", ""))))
        if unknown := (conditions.keys() - {"skip", "needs", "exit"}) | (needs - NEEDS.keys()):
            raise BlockError(f"{page.name}:{first}: nothing is known of {', '.join(unknown)}")
        language, _, rest = token.info.strip().partition(" ")
        title = re.search(r'title="([^"]+)"', rest)
        blocks.append(
            Block(page, first + 1, language, title[1] if title else "", token.content, conditions)
        )
    return blocks


def parse_commands(block: Block) -> int:
    """Parses the lines of shrinkc in a block that is not executed; returns how many.  BlockError for
    one that is refused."""
    if block.executed or block.language not in ("console", "sh"):
        return 0
    text = "\n".join(c for c, _ in block.commands()) if block.language == "console" else block.text
    lines = [x for x in text.replace("\\\n", " ").split("\n") if x.startswith("shrinkc ")]
    for line in lines:
        _, name, *arguments = shlex.split(re.split(r" (?:[|>]|&&|2>) ", line)[0], comments=True)
        if name.startswith("-"):
            continue
        try:
            cli.commands[name].make_context(name, arguments)
        except (KeyError, click.ClickException) as error:
            raise BlockError(f"{block.name}: {line}: {error}") from error
        except click.exceptions.Exit:
            pass  # --help
    return len(lines)


def fold(text: str) -> list[str]:
    """The lines of a command's output as a page shows them."""
    lines = [line.rstrip() for line in text.rstrip().split("\n")] if text.strip() else []
    return [
        part
        for line in lines
        for part in (
            textwrap.wrap(line, COLUMNS, break_long_words=False, break_on_hyphens=False)
            if len(line) > COLUMNS
            else [line]
        )
    ]


def same(shown: list[str], got: list[str]) -> bool:
    """Whether a page shows ``got``, but for what varies."""
    parts = [r"(?:.*\n)*" if s == "..." else re.escape(_VARIES.sub("0", s)) + "\n" for s in shown]
    return bool(re.fullmatch("".join(parts), "".join(_VARIES.sub("0", g) + "\n" for g in got)))


class Place:
    """The directory in which the blocks of one page are executed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "page"
        self.folder.mkdir(parents=True)
        (self.folder / "examples").symlink_to(ROOT / "examples")
        model = self.folder / "MODEL"
        shutil.copytree(ROOT / "examples" / "stories", model)
        settings = json.loads((model / "tokenizer_config.json").read_text())
        settings["chat_template"] = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
        (model / "tokenizer_config.json").write_text(json.dumps(settings))
        stories = [
            f"Lily saw {n} dogs in the park. Tom had {n * 7 % 11} cakes." for n in range(900)
        ]
        (self.folder / "wiki.test.raw").write_text("\n".join(stories) + "\n")
        tools = folder / "bin"
        tools.mkdir()
        # This checkout's shrinkc.  It never shows progress: a page cannot say how long work takes.
        (tools / "shrinkc").write_text(
            f"#!{sys.executable}\nfrom shrinkc.cli import console, main\n"
            "console.QUIET_SECONDS = 1e6\nmain.main()\n"
        )
        (tools / "shrinkc").chmod(0o755)
        (tools / "python").symlink_to(sys.executable)
        self.env = {
            **os.environ, "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT / "compiler"), "COLUMNS": "100", "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
        }  # fmt: skip

    def execute(self, command: str, language: str, exit_code: int, where: str) -> list[str]:
        """The folded lines of both streams.  BlockError for another exit code."""
        shell = [sys.executable] if language == "python" else ["bash", "-euo", "pipefail"]
        done = subprocess.run(
            [*shell, "-c", command], cwd=self.folder, env=self.env, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=TIMEOUT_SECONDS, check=False,
        )  # fmt: skip
        output = done.stdout.decode(errors="replace")
        if done.returncode != exit_code:
            raise BlockError(
                f"{where}: ended with {done.returncode}, not {exit_code}:\n{command}\n{output}"
            )
        return fold(output)

    def run(self, block: Block, update: bool = False) -> str:
        """Executes a block; returns its text as it should be.  Without ``update``, BlockError for
        output that the page does not show."""
        if block.title:
            (self.folder / block.title).write_text(block.text, encoding="utf-8")
            return block.text
        last = int(block.conditions.get("exit", "0"))
        if block.language == "python":
            self.execute(block.text, "python", last, block.name)
            return block.text
        commands, parts = block.commands(), []
        for at, (command, shown) in enumerate(commands):
            code = last if at == len(commands) - 1 else 0
            got = self.execute(command, "sh", code, block.name)
            if same(shown, got):
                got = shown
            elif not update:
                raise BlockError(
                    f"{block.name}: the page shows other output than\n$ {command}\n"
                    + "\n".join(got)
                    + "\n'python tests/docs/blocks.py --update' writes it."
                )
            parts.append("\n".join([f"$ {command}", *got]) + "\n")
        return "\n".join(parts)


def run_page(page: Path, folder: Path, update: bool = False) -> Iterator[str]:
    """Executes a page's blocks in order; yields what was skipped for want of a tool."""
    blocks = [b for b in read_blocks(page) if b.executed]
    place = Place(folder)
    lines = page.read_text(encoding="utf-8").splitlines(keepends=True)
    for block in blocks:
        if missing := block.missing():
            yield f"{block.name}: {missing}"
            continue
        text = place.run(block, update)
        if text != block.text:
            lines[block.first] = text
            for at in range(block.first + 1, block.first + block.text.count("\n")):
                lines[at] = ""
    if update:
        page.write_text("".join(lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes the output of console blocks into pages.")
    parser.add_argument("--update", action="store_true", required=True)
    parser.add_argument("pages", nargs="+", type=Path)
    for page in parser.parse_args().pages:
        with tempfile.TemporaryDirectory() as folder:
            for line in run_page(page.resolve(), Path(folder), update=True):
                print(f"not run: {line}", file=sys.stderr)


if __name__ == "__main__":
    main()
