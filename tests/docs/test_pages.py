"""README.md and docs say nothing that does not hold: their blocks are executed, see pages.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from docs import pictures
from docs.pages import PAGES, Block, PageError, Place, fold, read_blocks, same, update

BLOCKS = [block for page in PAGES for block in read_blocks(page)]
EXECUTED = ("run", "keys")
CASES = [
    pytest.param(
        block,
        id=f"{block.name}-{block.kind}",
        marks=[pytest.mark.slow] if block.kind in EXECUTED else [],
    )
    for block in BLOCKS
]


@pytest.fixture(scope="module")
def place_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Block], Place]:
    """A page's place, in which the blocks before the given one were executed."""
    places: dict[Path, Place] = {}
    done: set[str] = set()

    def place_of(block: Block) -> Place:
        if block.page not in places:
            places[block.page] = Place(tmp_path_factory.mktemp("place"))
        place = places[block.page]
        for other in BLOCKS if block.kind in EXECUTED else []:
            if other.page != block.page or other.name in done:
                continue
            if other is block:
                break
            done.add(other.name)
            if other.kind in ("run", "recipe") and not other.missing():
                place.run(other)
        done.add(block.name)
        return place

    return place_of


def test_no_figure_is_left_open() -> None:
    """A word like SOME_TIME or SOME_SIZE stands for a figure that nobody filled in."""
    pages = sorted({block.page for block in BLOCKS})
    assert len(pages) > 5
    for page in pages:
        assert not re.findall(r"\b[A-Z]+_(?:TIME|SIZE)\b", page.read_text(encoding="utf-8")), page


@pytest.mark.parametrize("block", CASES)
def test_a_block_of_a_page(block: Block, place_of: Callable[[Block], Place]) -> None:
    block.check_marker()
    if block.kind == "run" and (missing := block.missing()):
        pytest.skip(missing)
    place_of(block).run(block)


# ---- what executes them: a page that does not hold is found ----


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., list[Block]]:
    """check(text): executes a page of this text; returns its blocks."""

    def check(text: str) -> list[Block]:
        page = tmp_path / "page.md"
        page.write_text(text, encoding="utf-8")
        place = Place(tmp_path / "place")
        blocks = read_blocks(page)
        for block in blocks:
            place.run(block)
        return blocks

    (tmp_path / "place").mkdir()
    return check


def block(marker: str, *lines: str, language: str = "") -> str:
    return "\n".join(["Text.", "", marker, f"```{language}", *lines, "```", "", "More.", ""])


@pytest.mark.parametrize(
    ("marker", "lines", "message"),
    [
        ("", ["true"], "no marker before this block"),
        ("<!-- some comment -->", ["true"], "no marker before this block"),
        ("<!-- no-run -->", ["x"], "the marker no-run lacks its text"),
        ("<!-- run: needs luck -->", ["true"], "'needs luck' is no condition of a run"),
        ("<!-- run: quickly -->", ["true"], "'quickly' is no condition of a run"),
        ("<!-- run -->", ["false", "true"], "ended with 1 instead of 0"),
        ("<!-- run: exit 3 -->", ["$ exit 4"], "ended with 4 instead of 3"),
        ("<!-- run -->", ["$ echo b", "a"], "the page shows other output"),
        ("<!-- run -->", ["$ echo a; echo b", "a"], "the page shows other output"),
        ("<!-- run -->", ["$ echo a; echo b", "a", "...", "c"], "the page shows other output"),
        ("<!-- run -->", ["$ echo 5 m", "4 m"], "the page shows other output"),
        ("<!-- parse: long -->", ["shrinkc plan MODEL --nonsense"], "No such option"),
        ("<!-- parse: long -->", ["shrinkc nonsense"], "nonsense"),
        ("<!-- parse: long -->", ["true"], "no line of shrinkc to parse"),
        ("<!-- keys: echo '{}' -->", ['{"a": 1}'], r"shows the keys \['a'\], there are \[\]"),
        ("<!-- source: nowhere.py -->", ["x"], "there is no file nowhere.py"),
        (
            "<!-- source: tests/docs/pages.py FOLD -->",
            ["FOLD = 1"],
            "something else than tests/docs/",
        ),
        (
            "<!-- source: tests/docs/pages.py fold -->",
            ["def fold():"],
            "something else than tests/docs/",
        ),
        ("<!-- source: tests/docs/pages.py gone -->", ["x"], "gone is not defined there"),
        ("<!-- source: LICENSE -->", ["x"], "something else than LICENSE"),
        ("<!-- recipe: r.toml -->", ["[lora]", "nonsense = 3"], "there is no such key"),
        ("<!-- recipe: r.toml -->", ["[lora]", "[explore]", "gptq.bits = [3]"], "gptq"),
    ],
)
def test_what_does_not_hold(
    check: Callable[..., list[Block]], marker: str, lines: list[str], message: str
) -> None:
    with pytest.raises(PageError, match=message):
        check(block(marker, *lines))


def test_what_holds(check: Callable[..., list[Block]]) -> None:
    page = [
        block("<!-- run -->", "$ echo 1.5 s '(20 tokens/s)'; echo b", "7 s (3.1 tokens/s)", "b"),
        block("<!-- run -->", "$ printf 'a\\nb\\nc\\n'", "a", "...", "$ echo \\", "  d", "d"),
        block("<!-- run: exit 2 -->", "$ shrinkc nonsense 2> file; exit 2"),
        block("<!-- run -->", "grep -q nonsense file", "cd examples/stories"),
        block("<!-- run -->", "assert 1 + 1 == 2", language="python"),
        block("<!-- parse: long -->", "true", "shrinkc plan MODEL \\", "  --l1 1k  # small"),
        block('<!-- keys: echo \'{"a": {"b": 1}, "c": null}\' -->', '{"a": {"b": 2}, "c": {}}'),
        block(
            "<!-- source: tests/docs/pages.py FOLD _ANY -->", "FOLD = 110", "", "", '_ANY = "..."'
        ),
        block("<!-- no-run: a list -->", "x"),
    ]
    assert len(check("\n".join(page))) == len(page)


def test_output_is_written_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    wide = " ".join(["word"] * 30)
    kept = block("<!-- run -->", "$ echo 3 s", "5 s")
    page.write_text(
        block("<!-- run -->", "$ echo a; echo b", "old", "", f"$ echo '  {wide}'", "x")
        + kept
        + block("<!-- run -->", "$ false", "as it was")
    )
    (left,) = update(page)
    assert "ended with 1 instead of 0" in left
    text = page.read_text()
    assert "$ echo a; echo b\na\nb\n\n$ echo" in text
    first, second = fold(f"  {wide}")
    assert f"\n{first}\n{second}\n```" in text and len(first) <= 110
    assert kept in text, "what varies is no reason to write"
    assert "$ false\nas it was\n" in text
    assert same([first, second], fold(f"  {wide}"))


def test_a_missing_tool_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(block("<!-- run: needs qemu -->", "true"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "not found on PATH" in (read_blocks(page)[0].missing() or "")


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_pictures_are_as_they_are_drawn(name: str) -> None:
    """`python tests/docs/pages.py --update` writes them."""
    assert (pictures.FOLDER / f"{name}.svg").read_text("utf-8") == pictures.PICTURES[name]()


def test_every_page_is_read() -> None:
    assert {b.page.name for b in BLOCKS} >= {"README.md", "cli.md", "evaluation.md", "explore.md"}
    assert {b.kind for b in BLOCKS} >= {"run", "parse", "keys", "recipe", "no-run"}
