"""docs/troubleshooting.md names messages that there are, under the exit codes that they have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.blocks import ROOT
from docs.messages import VALUE, joined, messages, text_of
from shrinkc.cli.main import DEFECT
from shrinkc.cli.stopping import TERMINATED
from shrinkc.core import errors

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
SECTIONS = re.findall(r"^## (\d+): (.+)\n((?:(?!^## ).*\n?)*)", PAGE, re.MULTILINE)
ROWS = [
    (int(code), joined(row))
    for code, _, body in SECTIONS
    for row in re.findall(r"^\| `([^`]+)` \| [^|]+ \| [^|]+ \|$", body, re.MULTILINE)
]


@pytest.fixture(scope="module")
def said() -> list[tuple[str, int | None]]:
    return [(joined(text), code) for text, code in messages()]


def test_every_exit_code_has_its_section() -> None:
    every = [v for v in vars(errors).values() if isinstance(v, type)]
    want = {e.exit_code: e.title for e in every if issubclass(e, errors.ShrinkcError)}
    want |= {DEFECT: "defect", TERMINATED: "terminated"}
    assert {int(code): title for code, title, _ in SECTIONS} == want
    assert len(SECTIONS) == len(want)
    assert {code for code, _ in ROWS} == set(want) - {DEFECT, TERMINATED}


def test_every_row_was_read() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    assert len(rows) == len(ROWS) > 80


@pytest.mark.parametrize(("code", "words"), ROWS)
def test_a_message_begins_so(code: int, words: str, said: list[tuple[str, int | None]]) -> None:
    begins = re.compile(re.escape(words.removesuffix(VALUE)))
    codes = {c for text, c in said if begins.match(text)}
    assert codes, f"no message begins with '{words}'"
    assert code in codes or codes == {None}, f"'{words}' has exit code {codes}"


def test_what_is_read_of_the_source(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        'raise BadConfig(f"{a} holds " + "no " + f"{b}." if x else "other", "a hint")\n'
        "raise errors.BadWeights(\n    f'{a}{b} is'\n    ' cut'\n)\n"
        'problems.append(f"part {c}")\nraise ValueError("mine")\n'
    )
    found = list(messages(tmp_path))
    assert [m for m in found if m[1]] == [
        ("… holds no ….", 12), ("other", 12), ("…… is cut", 13),
    ]  # fmt: skip
    assert {m[0] for m in found if m[1] is None} >= {"a hint", "part …", "mine"}
    assert joined("……  is\n cut") == "… is cut"
    assert text_of(__import__("ast").parse("f(x)", mode="eval").body) == []
