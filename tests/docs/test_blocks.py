"""The blocks of README.md and docs/ do what the pages say; see blocks.py."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from docs.blocks import PAGES, ROOT, BlockError, parse_commands, read_blocks, run_page

EXECUTED = [page for page in PAGES if any(b.executed for b in read_blocks(page))]


def test_lines_of_shrinkc_are_parsed() -> None:
    assert sum(parse_commands(b) for page in PAGES for b in read_blocks(page)) > 40


@pytest.mark.slow
@pytest.mark.parametrize("page", EXECUTED, ids=lambda page: str(page.relative_to(ROOT)))
def test_page(page: Path, tmp_path: Path) -> None:
    for missing in run_page(page, tmp_path):
        warnings.warn(f"not executed: {missing}", stacklevel=1)


def write(tmp_path: Path, *blocks: str) -> Path:
    page = tmp_path / "page.md"
    page.write_text("\n".join(f"Text.\n\n{block}\n```\n" for block in blocks), encoding="utf-8")
    return page


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("```console\n$ false\n$ true", "ended with 1, not 0"),
        ("<!-- exit: 3 -->\n```console\n$ exit 4", "ended with 4, not 3"),
        ("```console\n$ echo b\na", "shows other output"),
        ("```console\n$ echo a; echo b\na", "shows other output"),
        ("```console\n$ echo a; echo b\na\n...\nc", "shows other output"),
        ("```console\n$ echo 5 m\n4 m", "shows other output"),
        ("```python\nassert 1 == 2", "ended with 1"),
        ("<!-- needs: luck -->\n```console\n$ true", "nothing is known of luck"),
    ],
)
def test_a_block_that_does_not_hold(tmp_path: Path, block: str, message: str) -> None:
    with pytest.raises(BlockError, match=message):
        list(run_page(write(tmp_path, block), tmp_path / "place"))


@pytest.mark.parametrize("line", ["shrinkc plan MODEL --nonsense", "shrinkc nonsense"])
@pytest.mark.parametrize("fence", ["```sh\n", "<!-- skip: slow -->\n```console\n$ "])
def test_a_line_that_does_not_parse(tmp_path: Path, fence: str, line: str) -> None:
    (block,) = read_blocks(write(tmp_path, fence + line))
    with pytest.raises(BlockError, match="nonsense"):
        parse_commands(block)


HOLDS = [
    "```console\n$ echo 1.5 s '(1,020 tokens/s)'; echo b\n7 s (3.1 tokens/s)\nb",
    "```console\n$ printf 'a\\nb\\nc\\n'\na\n...\n\n$ echo \\\n  d\nd",
    "<!-- exit: 2 -->\n```console\n$ shrinkc nonsense 2> file; exit 2",
    '```toml title="file.toml"\nx = 1',
    "```console\n$ cat file.toml\nx = 1",
    "```python\nassert open('file.toml').read() == 'x = 1\\n'",
    "<!-- skip: long -->\n```console\n$ false",
    "```text\n$ false",
]


def test_blocks_that_hold(tmp_path: Path) -> None:
    page = write(tmp_path, *HOLDS)
    before = page.read_text()
    assert list(run_page(page, tmp_path / "place", update=True)) == []
    assert page.read_text() == before, "what varies is no reason to write"
    assert [parse_commands(b) for b in read_blocks(page)] == [0] * len(HOLDS)


def test_output_is_written(tmp_path: Path) -> None:
    wide = " ".join(["word"] * 30)
    first = f"```console\n$ echo a; echo b\nold\n\n$ echo '{wide}'\nx\ny"
    page = write(tmp_path, first, "```console\n$ echo c", "```text\nlast")
    list(run_page(page, tmp_path / "place", update=True))
    text = page.read_text()
    assert "```console\n$ echo a; echo b\na\nb\n\n$ echo 'word" in text
    assert "```console\n$ echo c\nc\n```\n\nText.\n\n```text\nlast\n```\n" in text
    list(run_page(page, tmp_path / "again"))


def test_a_missing_tool_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = write(tmp_path, "<!-- needs: qemu -->\n```console\n$ false")
    monkeypatch.setenv("PATH", str(tmp_path))
    (said,) = run_page(page, tmp_path / "place")
    assert "not found on PATH" in said
