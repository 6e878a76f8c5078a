"""Which figures the project states, with command, commit and machine: the table of docs/claims.md.

claims.toml says of each where it stands and how it was measured; the figures themselves are read from
the pages, so that a page which was measured anew needs ``python tests/docs/pages.py --update`` alone.
"""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CLAIMS = Path(__file__).with_name("claims.toml")
PAGE = ROOT / "docs" / "claims.md"
BEGIN, END = "<!-- table -->", "<!-- end of table -->"
UNCOMMITTED = "this one"
INLINE = 16  # more figures than these are shown when asked for

NUMBER = re.compile(r"(?<![\w.,^-])\d(?:[\d,]*\d)?(?:\.\d+)?(?![\w^]|\.\d)")
# what was measured has one of these behind it; widths, defaults and addresses have not
MEASURED = re.compile(
    r"(?<![\w.])\d[\d,.]*[ -]?(?:[kM] )?(?:cycles|%|tokens/s|tokens per second|[GM]B\b|GiB|minutes|hours?\b"
    r"|seconds|ms\b|s\b|instructions|bytes per cycle|points|of a percent)"
)
_CODE = re.compile(r"`[^`]*`|\]\([^)]*\)|\d{4}-\d{2}-\d{2}|https?:\S+")
_FENCE = re.compile(r" *```")


class ClaimError(Exception):
    """claims.toml says something that the pages do not, or leaves out what they say."""


def pages() -> list[Path]:
    """All that state figures; claims.md repeats them."""
    docs = sorted(p for p in (ROOT / "docs").rglob("*.md") if p != PAGE)
    return [ROOT / "README.md", ROOT / "examples" / "stories" / "README.md", *docs]


@dataclass(frozen=True)
class Text:
    """A page's lines outside of code and comments, by their numbers from 0."""

    path: Path
    lines: dict[int, str]

    @classmethod
    def read(cls, path: Path) -> Text:
        lines, fenced = {}, False
        for at, line in enumerate(path.read_text(encoding="utf-8").split("\n")):
            fence = bool(_FENCE.match(line))
            fenced ^= fence
            if not (fenced or fence or line.startswith("<!--")):
                lines[at] = line
        return cls(path, lines)

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    def find(self, words: str) -> int:
        """The one line with ``words``."""
        found = [at for at, line in self.lines.items() if words in line]
        if len(found) != 1:
            raise ClaimError(f"{self.name}: '{words}' is in {len(found)} lines, not in one")
        return found[0]

    def sections(self) -> dict[str, list[int]]:
        """Heading -> its lines, up to the next heading."""
        out: dict[str, list[int]] = {"": []}
        heading = ""
        for at, line in self.lines.items():
            if line.startswith("#"):
                heading = line.lstrip("# ")
                out[heading] = []
            out[heading].append(at)
        return out


def figures(line: str, whole: bool = False) -> list[str]:
    """Numbers of ``line``, of a table's row those behind its first cell (unless ``whole``)."""
    if line.startswith("|") and not whole:
        line = line.split("|", 2)[2]
    return NUMBER.findall(_CODE.sub(" ", line))


@dataclass(frozen=True)
class Claim:
    """A row of claims.md: lines of a page that state figures, and how these were measured."""

    page: str
    what: str
    command: str
    on: str
    find: tuple[str, ...] = ()
    section: str | None = None
    source: str | None = None

    def lines(self, text: Text) -> list[int]:
        """Those that it is about; ClaimError where they are not there."""
        if self.section is None:
            return [text.find(words) for words in self.find]
        sections = text.sections()
        if self.section not in sections:
            raise ClaimError(f"{self.page}: there is no heading '{self.section}'")
        return sections[self.section]

    def stated(self, text: Text) -> list[str]:
        """Its figures; ClaimError where there are none."""
        out = [f for at in self.lines(text) for f in figures(text.lines[at])]
        if not out:
            raise ClaimError(f"{self.page}: no figures in '{self.section or self.find[0]}'")
        return out


def read_claims(path: Path = CLAIMS) -> tuple[list[Claim], dict[str, list[str]]]:
    """The claims, and page -> words of its lines whose numbers were not measured."""
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    defaults: dict[str, dict[str, Any]] = content["page"]
    out = []
    for entry in content["claim"]:
        one = {**defaults.get(entry["page"], {}), **entry}
        one["find"] = tuple(one.get("find", ()))
        if bool(one["find"]) == ("section" in one):
            raise ClaimError(f"{one['what']}: either find or section says where it stands")
        out.append(Claim(**one))
    return out, content["not_measured"]


def unclaimed(claims: Iterable[Claim], not_measured: dict[str, list[str]]) -> list[str]:
    """Lines with measured figures that no claim is about: in docs/results all that have figures, in the
    README's section Figures every row, elsewhere those with a unit of measurement."""
    by_page: dict[str, set[int]] = {}
    texts = {text.name: text for text in map(Text.read, pages())}
    for claim in claims:
        text = texts[claim.page]
        by_page.setdefault(claim.page, set()).update(claim.lines(text))
    for page, finds in not_measured.items():
        by_page.setdefault(page, set()).update(map(texts[page].find, finds))
    out = []
    for name, text in texts.items():
        every = set(text.lines) if name.startswith("docs/results/") else set()
        if name == "README.md":
            every = {
                at for at in text.sections()["Figures"]
                if text.lines[at].startswith("|") and not text.lines.get(at + 1, "").startswith("|--")
            }  # fmt: skip
        for at, line in text.lines.items():
            states = (at in every and figures(line)) or MEASURED.search(_CODE.sub(" ", line))
            if states and at not in by_page.get(name, set()):
                out.append(f"{name}:{at + 1}: {line.strip()}")
    return out


def not_at_source(claims: Iterable[Claim]) -> list[str]:
    """Figures that a page repeats from another one, which has no such number, rounded or not."""
    out = []
    for claim in claims:
        if claim.source is None:
            continue
        text = Text.read(ROOT / claim.source)
        there = [n.replace(",", "") for line in text.lines.values() for n in figures(line, True)]
        for figure in claim.stated(Text.read(ROOT / claim.page)):
            digits = len(figure.partition(".")[2])
            plain = figure.replace(",", "")
            if not any(plain == n or plain == f"{float(n):.{digits}f}" for n in there):
                out.append(f"{claim.page}: {figure} ({claim.what}) is not in {claim.source}")
    return out


Commits = dict[str, dict[int, tuple[int, str]]]
"""Page -> line -> time and name of the commit that brought it."""


def table(claims: list[Claim], commits: Commits) -> list[str]:
    """Lines of claims.md: a table per page."""
    out: list[str] = []
    for page in dict.fromkeys(claim.page for claim in claims):
        text = Text.read(ROOT / page)
        link = page.removeprefix("docs/")
        out += ["", f"### [{link}]({link})" if page != link else f"### {page}", ""]
        out += ["| what | figures | command | commit | on |", "|---|---|---|---|---|"]
        for claim in (c for c in claims if c.page == page):
            found = claim.stated(text)
            shown = " · ".join(found)
            if len(found) > INLINE:
                shown = f"<details><summary>{len(found)} figures</summary>{shown}</details>"
            known = [commits.get(page, {}).get(at, (1 << 60, UNCOMMITTED)) for at in claim.lines(text)
                     if figures(text.lines[at])]  # fmt: skip
            out.append(
                f"| {claim.what} | {shown} | {claim.command} | {max(known)[1]} | {claim.on} |"
            )
    return [*out, ""]


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )  # fmt: skip
    return done.stdout


def blame(page: str) -> Iterator[tuple[int, tuple[int, str]]]:
    """(line, time and name of the commit that last changed it) of committed lines."""
    if not _git("ls-files", page):
        return  # a page that is not committed yet
    text = _git("blame", "--line-porcelain", "--", page)
    heads = re.findall(
        r"^([0-9a-f]{40}) \d+ (\d+).*?^committer-time (\d+)$", text, re.MULTILINE | re.DOTALL
    )
    for commit, number, time in heads:
        if int(commit, 16):
            yield int(number) - 1, (int(time), commit[:7])


def update() -> None:
    """Writes the table of claims.md as the pages are now."""
    claims, _ = read_claims()
    commits = {page: dict(blame(page)) for page in {claim.page for claim in claims}}
    before = PAGE.read_text(encoding="utf-8")
    head, _, rest = before.partition(BEGIN)
    _, _, tail = rest.partition(END)
    after = "\n".join([head + BEGIN, *table(claims, commits), END + tail])
    if after != before:
        PAGE.write_text(after, encoding="utf-8")
        print(f"{PAGE.name}: written")
