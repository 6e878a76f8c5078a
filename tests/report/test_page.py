"""The page of a report in a real browser: it asks for nothing, and hands, eyes and phones can use it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.compressed import write_run
from helpers.report import run_of
from helpers.tiny_llama import write_tiny_llama
from shrinkc.cli.main import run_cli
from shrinkc.report.page import page as page_of
from shrinkc.report.svg import ON_DARK

HOSTILE = '</script></title></style><img src=x onerror="document.title=1"><script>document.title=2</script>'
# strings that decide how a page is made, and are none of a model's
KEPT = {"kind", "phase", "of", "level", "engine", "source", "modules"}
KINDS = ("compiled", "compressed")
PHONE = {"width": 390, "height": 844}

needs_browser = pytest.mark.libraries("playwright")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """By kind; the compiled one with a profiled run and an evaluation."""
    folder = tmp_path_factory.mktemp("reports")
    write_tiny_llama(
        folder / "model", hidden=20, intermediate=36, layers=2, heads=4, kv_heads=2, head_dim=6
    )
    out, run = folder / "out", folder / "run"
    assert run_cli(["compile", str(folder / "model"), "-o", str(out)]) == 0
    assert run_cli(["report", str(out)]) == 0
    plain = json.loads((out / "report.json").read_text())
    (folder / "run.json").write_text(json.dumps(run_of(plain, factor=1.5)))
    samples = {"texts": [{"prompt": "Once", "text": "there was"}]}
    model = {"name": "tiny", "kind": "compiled"}
    (out / "eval.json").write_text(json.dumps({"model": model, "samples": samples}))
    assert run_cli(["report", str(out), "--run", str(folder / "run.json")]) == 0
    write_run(run, "smol", "Once upon a time")
    assert run_cli(["report", str(run)]) == 0
    return {
        kind: json.loads((at / "report.json").read_text())
        for kind, at in zip(KINDS, (out, run), strict=True)
    }


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
    """A page with what it said and asked for."""

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
        """What the note says, None while there is none."""
        tip = self.page.locator("#tip")
        text: str | None = tip.text_content() if tip.is_visible() else None
        return text


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@needs_browser
def test_nothing_is_asked_for_and_nothing_goes_wrong(
    browser: Any, data: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    opened = Opened(browser, page_of(data[kind]), tmp_path / "page.html")
    assert opened.said == []
    assert opened.asked == [(tmp_path / "page.html").as_uri()]
    assert opened.js("document.querySelectorAll('svg').length") > 2
    assert opened.page.title() == f"{data[kind]['name']}: {data[kind]['kind']}"
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
    browser: Any, data: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    def spoiled(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: spoiled(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [spoiled(v, key) for v in value]
        return value + HOSTILE if isinstance(value, str) and key not in KEPT else value

    plain = Opened(browser, page_of(data[kind]), tmp_path / "plain.html")
    opened = Opened(browser, page_of(spoiled(data[kind])), tmp_path / "spoiled.html")
    assert opened.said == [] and opened.js("document.images.length") == 0
    assert opened.js("document.scripts.length") == 1
    assert opened.page.title() == f"{data[kind]['name']}{HOSTILE}: {data[kind]['kind']}"
    assert opened.js("document.body.textContent").count(HOSTILE) > 10
    count = "document.querySelectorAll('*').length"
    assert opened.js(count) <= plain.js(count), (
        "words that no longer fit are left out, nothing is added"
    )


@needs_browser
def test_keys_and_pointer_name_the_parts_of_pictures(
    browser: Any, data: dict[str, Any], tmp_path: Path
) -> None:
    opened = Opened(browser, page_of(data["compiled"]), tmp_path / "page.html")
    for _ in range(30):  # from the top, as one who has no pointer
        opened.page.keyboard.press("Tab")
        if opened.js("document.activeElement.tagName") == "svg":
            break
    regions = data["compiled"]["memory"][0]["regions"]
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
    browser: Any, data: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    opened = Opened(browser, page_of(data[kind]), tmp_path / "page.html", viewport=PHONE)
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
    browser: Any, data: dict[str, Any], kind: str, scheme: str, tmp_path: Path
) -> None:
    """WCAG 2's contrast of 4.5 for every text on its background, that of pictures on all colours."""
    opened = Opened(browser, page_of(data[kind]), tmp_path / "page.html", color_scheme=scheme)
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
