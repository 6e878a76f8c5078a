"""Every figure has its command: claims.md lists what the pages state, as they state it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from docs import claims
from docs.claims import PAGE, ROOT, Claim, ClaimError, Text, figures, read_claims, table
from shrinkc.cli.main import cli

CLAIMS, NOT_MEASURED = read_claims()
UPDATE = "'python tests/docs/pages.py --update' writes it"


def shown() -> list[str]:
    text = PAGE.read_text(encoding="utf-8")
    return text.partition(claims.BEGIN + "\n")[2].partition("\n" + claims.END)[0].split("\n")


def without_commits(lines: list[str]) -> list[str]:
    """A commit that is made cannot name itself, and git may not be there."""
    return [re.sub(r"\| [^|]* (\| [^|]* \|)$", r"| \1", line) for line in lines]


def test_the_table_has_the_figures_of_the_pages() -> None:
    assert without_commits(shown()) == without_commits(table(CLAIMS, {})), UPDATE
    for claim in CLAIMS:  # of each of them the row names figures that its page has
        page = (ROOT / claim.page).read_text(encoding="utf-8")
        assert all(figure in page for figure in claim.stated(Text.read(ROOT / claim.page)))
    rows = [line for line in shown() if line.startswith("| ") and "| commit |" not in line]
    assert len(rows) == len(CLAIMS) > 30
    for row in rows:
        assert re.search(rf"\| ([0-9a-f]{{7}}|{claims.UNCOMMITTED}) \| [^|]+ \|$", row), row


def test_every_figure_is_claimed() -> None:
    assert not claims.unclaimed(CLAIMS, NOT_MEASURED), (
        "a claim in tests/docs/claims.toml is missing"
    )


def test_what_the_readme_repeats_is_in_the_page_that_it_repeats() -> None:
    repeated = [claim for claim in CLAIMS if claim.source]
    assert sum(len(c.stated(Text.read(ROOT / c.page))) for c in repeated) > 15
    assert not claims.not_at_source(CLAIMS)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: f"{claim.page}: {claim.what}")
def test_its_command_can_be_given(claim: Claim) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = re.findall(r"`([^`]+)`", claim.command)
    assert commands or re.search(r"\]\([\w/.-]+#[\w-]+\)", claim.command), claim.command
    for command in commands:
        program, *words = shlex.split(command)
        if program == "make":
            assert re.search(rf"^{words[0]}:", makefile, re.MULTILINE), command
        elif program == "python":
            assert (ROOT / words[0]).is_file(), command
        elif program == "pip":
            assert words[0] == "download", command
        else:
            assert program == "shrinkc"
            cli.commands[words[0]].make_context(words[0], words[1:])


# ---- what finds them ----


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page in the README's place, the only one."""
    monkeypatch.setattr(claims, "ROOT", tmp_path)
    path = tmp_path / "README.md"
    monkeypatch.setattr(claims, "pages", lambda: [path])
    path.write_text("# A\n\n## Figures\n\n| a | b |\n|---|---|\n| x 7 | 1,234 |\n\nTook 5 s.\n")
    return path


def claim(*find: str, source: str | None = None, section: str | None = None) -> Claim:
    return Claim("README.md", "w", "`make bench`", "x", find, section, source)


def test_a_figure_without_a_claim_is_found(page: Path) -> None:
    assert claims.unclaimed([], {}) == ["README.md:7: | x 7 | 1,234 |", "README.md:9: Took 5 s."]
    assert claims.unclaimed([claim("| x")], {}) == ["README.md:9: Took 5 s."]
    assert not claims.unclaimed([claim("| x")], {"README.md": ["Took"]})
    assert not claims.unclaimed([claim(section="Figures")], {})


def test_a_claim_that_no_page_states_is_found(page: Path) -> None:
    text = Text.read(page)
    for wrong, message in (
        (claim("gone"), "'gone' is in 0 lines"),
        (claim("|"), "'|' is in 3 lines"),
        (claim("# A"), "no figures"),
        (claim(section="Gone"), "no heading 'Gone'"),
    ):
        with pytest.raises(ClaimError, match=re.escape(message)):
            wrong.stated(text)
    assert claim("| x", "Took").stated(text) == ["1,234", "5"]


def test_a_figure_that_is_another_at_its_source_is_found(page: Path) -> None:
    (page.parent / "source.md").write_text("| x | 1234.4 |\n")
    assert not claims.not_at_source([claim("| x", source="source.md")])
    (page.parent / "source.md").write_text("| x | 1,235 |\n")
    (wrong,) = claims.not_at_source([claim("| x", source="source.md")])
    assert "1,234 (w) is not in source.md" in wrong


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("| SmolLM2-135M, 16 windows | 36.08 | −0.5 % |", ["36.08", "0.5"]),
        ("on 2026-11-26 with `--bits 4`, [a 3](b7.md#c-8): 1,234.5 and 2^9", ["3", "1,234.5"]),
        ("stories260K takes 63,535 cycles, version 0.1.2", ["63,535"]),
    ],
)
def test_numbers_of_a_line(line: str, found: list[str]) -> None:
    assert figures(line) == found
