"""The page of a report in a real browser: it asks for nothing, and hands, eyes and phones can use it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

import shrinkc
from helpers.compressed import write_run
from helpers.report import run_of
from helpers.tiny_llama import write_tiny_llama
from shrinkc.cli.main import run_cli
from shrinkc.pictures.heat import heat
from shrinkc.pictures.memory import Memory, Region, memory_picture
from shrinkc.pictures.quality import Measured, quality
from shrinkc.pictures.roofline import Ceiling, Point, roofline
from shrinkc.pictures.svg import ON_DARK
from shrinkc.report.page import Page

HOSTILE = '</script></title></style><img src=x onerror="document.title=1"><script>document.title=2</script>'
# fields of a page that are none of a model's: markup that was escaped, and names of parts
KEPT = {"svg", "key"}
KINDS = ("compiled", "compressed")
PHONE = {"width": 390, "height": 844}

needs_browser = pytest.mark.libraries("playwright")

pytestmark = pytest.mark.slow  # a browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Page]:
    """By kind; the compiled one with a profiled run and an evaluation."""
    folder = tmp_path_factory.mktemp("reports")
    write_tiny_llama(
        folder / "model", hidden=20, intermediate=36, layers=2, heads=4, kv_heads=2, head_dim=6
    )
    out, run = folder / "out", folder / "run"
    assert run_cli(["compile", str(folder / "model"), "-o", str(out)]) == 0
    plain = json.loads(shrinkc.write_report(out).json.read_text())
    (folder / "run.json").write_text(json.dumps(run_of(plain, factor=1.5)))
    samples = {"texts": [{"prompt": "Once", "text": "there was"}]}
    model = {"name": "tiny", "kind": "compiled"}
    (out / "eval.json").write_text(json.dumps({"model": model, "samples": samples}))
    write_run(run, "smol", "Once upon a time")
    made = shrinkc.write_report(out, run=folder / "run.json"), shrinkc.write_report(run)
    return dict(zip(KINDS, (reported.page for reported in made), strict=True))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, without a window."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not installed; sudo apt-get install chromium")
    from playwright.sync_api import sync_playwright

    # a container's root has no sandbox, and little of /dev/shm
    arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=program, args=arguments)
        yield found
        found.close()


class Opened:
    """Page with its messages and requests."""

    def __init__(self, browser: Any, html: str, file: Path, **context: Any) -> None:
        file.write_text(html, encoding="utf-8")
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page = browser.new_context(**context).new_page()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.as_uri())

    def js(self, code: str) -> Any:
        return self.page.evaluate(code)

    def tip(self) -> str | None:
        """Return the text of the note, or None."""
        tip = self.page.locator("#tip")
        text: str | None = tip.text_content() if tip.is_visible() else None
        return text


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@needs_browser
def test_nothing_is_asked_for_and_nothing_goes_wrong(
    browser: Any, pages: dict[str, Page], kind: str, tmp_path: Path
) -> None:
    opened = Opened(browser, pages[kind].to_html(), tmp_path / "page.html")
    assert opened.said == []
    assert opened.asked == [(tmp_path / "page.html").as_uri()]
    assert opened.js("document.querySelectorAll('svg').length") > 2
    assert opened.page.title() == f"{pages[kind].name}: {pages[kind].kind}"
    # and could not: the page's own policy forbids it, so that the two lists can be filled
    assert (
        opened.js("fetch('https://example.org/').then(() => 'there', () => 'refused')") == "refused"
    )
    opened.js(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'window.ran = 1'}))"
    )
    assert opened.js("window.ran === undefined")
    assert len(opened.said) >= 2 and all(
        "Content Security Policy" in said for said in opened.said[:1]
    )


@needs_browser
def test_texts_never_become_markup(
    browser: Any, pages: dict[str, Page], kind: str, tmp_path: Path
) -> None:
    def spoiled(value: Any) -> Any:
        if isinstance(value, str):
            return value + HOSTILE if value else value
        if is_dataclass(value) and not isinstance(value, type):
            names = {f.name for f in fields(value)} - KEPT
            return replace(value, **{name: spoiled(getattr(value, name)) for name in names})
        return [*map(spoiled, value)] if isinstance(value, (list, tuple)) else value

    plain = Opened(browser, pages[kind].to_html(), tmp_path / "plain.html")
    opened = Opened(browser, spoiled(pages[kind]).to_html(), tmp_path / "spoiled.html")
    assert opened.said == [] and opened.js("document.images.length") == 0
    assert opened.js("document.scripts.length") == 1
    assert opened.page.title() == f"{pages[kind].name}{HOSTILE}: {pages[kind].kind}{HOSTILE}"
    assert opened.js("document.body.textContent").count(HOSTILE) > 10
    count = "document.querySelectorAll('*').length"
    assert opened.js(count) == plain.js(count)


def test_names_never_become_markup_in_pictures() -> None:
    region = Region("buffer", HOSTILE, 0, 100, 0, 0)
    point = Point(HOSTILE, HOSTILE, HOSTILE, 1, 0.5, 2.0, None)
    drawn = [
        memory_picture(Memory("l1", HOSTILE, 100, 200, [region]), [HOSTILE]),
        roofline(HOSTILE, [point], [Ceiling(HOSTILE, "products", 32, HOSTILE)]),
        quality([Measured(HOSTILE, 100, 9.0, HOSTILE)], HOSTILE),
        heat({HOSTILE: [1.0]}, HOSTILE),
    ]
    for svg in drawn:
        words = "".join(ET.fromstring(svg or "").itertext())
        assert words.count(HOSTILE) >= 2


@needs_browser
def test_keys_and_pointer_name_the_parts_of_pictures(
    browser: Any, pages: dict[str, Page], tmp_path: Path
) -> None:
    opened = Opened(browser, pages["compiled"].to_html(), tmp_path / "page.html")
    for _ in range(30):  # from the top, as one who has no pointer
        opened.page.keyboard.press("Tab")
        if opened.js("document.activeElement.tagName") == "svg":
            break
    memory = next(s for s in pages["compiled"].sections if s.key == "memory").to_json()
    regions: Any = memory["regions"]
    regions = [r for r in regions if r["memory"] == "L1"]
    notes = []
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft", "End", "Home"):
        opened.page.keyboard.press(key)
        notes.append(opened.tip() or "")
    assert notes[0] == notes[5] == "L1: free"
    assert notes[1].startswith(f"{regions[0]['name']}: {regions[0]['bytes']:,} bytes at 0")
    assert notes[2].startswith(f"{regions[1]['name']}: ") and notes[3] == notes[1]
    assert notes[4].startswith(f"{regions[-1]['name']}: ")
    assert opened.js("document.querySelectorAll('svg .on').length") == 1
    opened.page.keyboard.press("Escape")
    assert opened.tip() is None
    mark = opened.page.locator("#memory svg").first.locator("rect[data-note]").nth(2)
    mark.hover()
    assert opened.tip() == mark.get_attribute("data-note") and (opened.tip() or "").startswith(
        regions[1]["name"]
    )
    opened.page.locator("h1").hover()
    assert opened.tip() is None and opened.said == []


@needs_browser
def test_a_phone_scrolls_tables_but_not_the_page(
    browser: Any, pages: dict[str, Page], kind: str, tmp_path: Path
) -> None:
    opened = Opened(browser, pages[kind].to_html(), tmp_path / "page.html", viewport=PHONE)
    opened.js("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert opened.js("document.documentElement.scrollWidth") == PHONE["width"]
    wide = "[...document.querySelectorAll('.scroll')].filter(part => part.scrollWidth > part.clientWidth + 1)"
    assert opened.js(f"{wide}.length") >= 2
    # what does not fit can be scrolled to by keys too: itself or the picture in it takes the focus
    assert opened.js(
        f"{wide}.every(part => part.tabIndex === 0 || part.querySelector('svg').tabIndex === 0)"
    )


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_can_be_read_in_light_and_in_the_dark(
    browser: Any, pages: dict[str, Page], kind: str, scheme: str, tmp_path: Path
) -> None:
    """WCAG 2's contrast of 4.5 for every text on its background, that of pictures on all colours."""
    opened = Opened(browser, pages[kind].to_html(), tmp_path / "page.html", color_scheme=scheme)
    looks = opened.js(
        """[...document.querySelectorAll('body *')].filter(e => e.closest('svg') === null &&
             [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())).map(e => {
          let behind = e; const of = n => getComputedStyle(n).backgroundColor;
          while (of(behind) === 'rgba(0, 0, 0, 0)' && behind.parentElement) behind = behind.parentElement;
          return [getComputedStyle(e).color, of(behind), e.className];
        })"""
    )
    fills = opened.js(
        """[...document.querySelectorAll('svg rect[data-note]')].filter(e => !e.hasAttribute('fill-opacity'))
           .map(e => getComputedStyle(e).fill)"""
    )
    ink = opened.js("getComputedStyle(document.querySelector('svg text')).fill")
    looks += [[ink, fill, "svg"] for fill in set(fills) - {"none"}]
    assert len(looks) > 50 and any(part == "svg" for *_, part in looks)
    assert [look for look in looks if contrast(look[0], look[1]) < 4.5] == []
    dark = luminance(opened.js("getComputedStyle(document.body).backgroundColor")) < 0.1
    assert dark == (scheme == "dark")


def luminance(colour: str) -> float:
    """Relative luminance of rgb(r, g, b) or #rrggbb, WCAG 2."""
    if colour.startswith("#"):
        values = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    else:
        values = [int(float(v)) for v in colour.partition("(")[2].rstrip(")").split(",")[:3]]
    linear = [v / 3294.6 if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in values]
    return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_every_colour_has_its_own_on_dark() -> None:
    """Without a browser: pictures use no colour that a dark page does not know."""
    assert len(set(ON_DARK.values())) >= len(ON_DARK) - 1
    for light, dark in ON_DARK.items():
        if light.startswith("#") and len(light) == 7:
            assert contrast("#1b1e22", light) > 4.5 and contrast("#e6e8ea", dark) > 4.5, light
