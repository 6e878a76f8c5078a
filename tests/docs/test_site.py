"""docs/ as a site: it builds strictly, a page that does not hold together ends the build, and what was built
asks nothing of a network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlparse

import pytest

from docs.blocks import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.libraries("mkdocs", "material")]

FETCHING = {
    "link": "href",
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "use": "href",
}
FOR_MACHINES = {"canonical", "alternate", "next", "prev"}  # links that no browser follows by itself


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    # not --quiet, with which warnings are not counted and nothing is strict
    command = [sys.executable, "-m", "mkdocs", "build", "-f", str(config), "-d", str(site)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", out)
    assert done.returncode == 0, done.stderr
    return out


class Fetched(HTMLParser):
    """What a browser fetches while it shows a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag in FETCHING and values.get("rel") not in FOR_MACHINES:
            self.addresses += filter(None, [values.get(FETCHING[tag])])
        self.addresses += re.findall(r"url\(['\"]?([^'\")]+)", values.get("style", ""))


def test_every_page_is_built(site: Path) -> None:
    pages = {p.relative_to(ROOT / "docs").with_suffix("") for p in (ROOT / "docs").rglob("*.md")}
    built = {p.relative_to(site).with_suffix("") for p in site.rglob("*.html")}
    assert len(pages) > 14 and built - pages == {Path("404")} and pages <= built
    assert not list(site.rglob("*.py"))


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    seen = 0
    for page in site.rglob("*.html"):
        found = Fetched()
        text = page.read_text(encoding="utf-8")
        found.feed(text)
        for address in found.addresses:
            where = urlparse(address)
            assert not where.netloc and where.scheme in ("", "data"), f"{page.name}: {address}"
            if where.path and page.name != "404.html":  # of which paths begin at the server's root
                assert (page.parent / where.path).is_file(), f"{page.name}: {address}"
            seen += 1
        assert 'class="mermaid"' not in text, "the theme would fetch its library"
    for sheet in site.rglob("*.css"):
        for address in re.findall(r"(?:url\(|@import )['\"]?([^'\")]+)", sheet.read_text("utf-8")):
            assert not urlparse(address).netloc, f"{sheet.name}: {address}"
            seen += 1
    assert seen > 100


@pytest.mark.parametrize(
    ("text", "pages", "message"),
    [
        ("[x](gone.md)", {}, "contains a link 'gone.md'"),
        ("[x](#gone)", {}, "no such anchor"),
        ("# A\n\n[x](#a)", {"alone.md": "text"}, 'not included in the "nav"'),
        ("[x](../secret.md)", {}, "not found among documentation files"),
        ("# A\n\n[x](#a)", {}, None),
    ],
)
def test_what_ends_the_build(
    tmp_path: Path, text: str, pages: dict[str, str], message: str | None
) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    for name, words in {"index.md": text, **pages}.items():
        (folder / name).write_text(words + "\n")
    config = tmp_path / "mkdocs.yml"
    config.write_text(
        f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: docs\nhooks: []\nextra_css: []\nnav: [index.md]\n"
    )
    done = build(config, tmp_path / "site")
    if message is None:
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode == 1 and message in done.stderr
