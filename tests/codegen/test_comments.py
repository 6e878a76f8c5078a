"""Comments of a compiled directory name nothing that it does not have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import shrinkc
from end_to_end.shapes import build, draw
from shrinkc.codegen.comments import without_missing_names

STORIES = Path(__file__).parents[2] / "examples/stories"


def left(comment: str) -> str:
    texts = {"src/a.c": comment, "src/sc_there.h": "int sc_there, SC_ON_CORES;\nint there(void);\n"}
    return without_missing_names(texts, ["-DSC_OPTION"])["src/a.c"]


@pytest.mark.parametrize(
    ("comment", "expected"),
    [
        ("/* Calls there() of sc_there.h with SC_OPTION. */\n", None),
        ("/* SC_ON_*: bit-identical to quantize_heads() in numerics. */\n", None),
        ("/* Rows of a.c. Like sc_gone(). 1 .. 2 more. */\n", "/* Rows of a.c. 1 .. 2 more. */\n"),
        ("/* Rows (SC_GONE: in flash), all. */\n", "/* Rows, all. */\n"),
        ("/* Rows; gone.h says which. Last. */\n", "/* Rows. Last. */\n"),
        ("int x; /* [SC_GONE] */\nint y;\n", "int x;\nint y;\n"),
        ("/* as sc_gone() does */\nint y;\n", "int y;\n"),
        (
            "/* SPDX-License-Identifier: X\n * One. Sees sc_gone.h.\n * Two. */\n",
            "/* SPDX-License-Identifier: X\n * One. Two. */\n",
        ),
        ('const char *s = "/* sc_gone() */";\n', None),
    ],
)
def test_what_a_comment_says_of_missing_names(comment: str, expected: str | None) -> None:
    assert left(comment) == (comment if expected is None else expected)


COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)


def missing(out: Path) -> list[str]:
    """Macros, functions of the runtime and files that a comment names and the directory does not have."""
    files = {path: path.read_text() for path in sorted((out / "src").rglob("*.[chS]"))}
    code = "\n".join(COMMENT.sub(" ", text) for text in files.values())
    words = set(re.findall(r"\w+", code + (out / "Makefile").read_text()))
    words |= {path.name for path in files}
    found = []
    for path, text in files.items():
        for comment in COMMENT.findall(text):
            named = re.findall(r"\b(?:SC|sc|LLM|llm)_\w+\b(?![*<./])", comment)
            named += re.findall(r"(?<![/<\w])\w+\.[ch]\b", comment)
            found += [f"{path.name}: {name}" for name in named if name not in words]
    return found


def test_comments_of_the_example(tmp_path: Path) -> None:
    shrinkc.compile(STORIES, tmp_path / "out")
    assert missing(tmp_path / "out") == []
    assert len(list((tmp_path / "out/src").rglob("*.[ch]"))) > 20


@pytest.mark.parametrize("seed", [3, 5, 9])
def test_comments_of_other_models(seed: int, tmp_path: Path) -> None:
    assert missing(build(draw(seed), tmp_path).out) == []


def test_the_example_is_short(tmp_path: Path) -> None:
    """Model, runtime and encoder of examples/stories; the platforms aside."""
    shrinkc.compile(STORIES, tmp_path / "out")
    src = tmp_path / "out/src"
    files = [src / name for name in ("model.c", "model.h", "forward.c")]
    files += [*(src / "runtime").iterdir(), *(src / "encode").glob("*.[ch]")]
    texts = [file.read_text() for file in files]
    guards = sum(file.suffix == ".h" for file in files)
    conditionals = sum(len(re.findall(r"(?m)^[ \t]*#[ \t]*if", text)) for text in texts)
    assert 20 < len(files) <= 25
    assert 4000 < sum(text.count("\n") for text in texts) <= 5000
    assert 20 < conditionals - guards <= 40
