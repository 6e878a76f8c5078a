"""formats.h: what it lists, and that the hot code of no model is larger than its place."""

from __future__ import annotations

import os
import re
from itertools import combinations
from pathlib import Path

import pytest

from end_to_end.programs import add_adapters, compile_model, need
from helpers.tiny_llama import write_tiny_llama
from shrinkc.build import build_program
from shrinkc.codegen.formats import MOST, formats_header
from shrinkc.importer import load_hf
from shrinkc.storage import WIDTHS

SCALES = ("", " | SC_FMT_GROUPED", " | SC_FMT_GROUPED | SC_FMT_ASYM")
ALL = [f"{bits}{scales}" for bits in WIDTHS for scales in SCALES]


def macro(text: str, name: str) -> list[str]:
    found = re.search(rf"#define {name}\(X\) (.*)", text)
    return [] if found is None else re.findall(r"X\((.*?)\)", found[1])


def test_formats_that_do_not_occur_are_not_in_it() -> None:
    text = formats_header(["4 | SC_FMT_GROUPED", "8", "8"], {8, 4}, "shrinkc compile x")
    assert re.findall(r'#include "(.*)"', text) == ["sc_dot_w8.h", "sc_dot_w4.h"]
    assert macro(text, "SC_EACH_WIDTH") == ["8, 4, 0", "4, 8, 4"]
    assert macro(text, "SC_EACH_FORMAT") == ["4 | SC_FMT_GROUPED", "8"]


def test_so_many_formats_share_their_code() -> None:
    for count, listed in ((MOST, MOST), (MOST + 1, 0), (len(ALL), 0)):
        assert len(macro(formats_header(ALL[:count], WIDTHS, "x"), "SC_EACH_FORMAT")) == listed


@pytest.mark.parametrize("profile", ["", "1"])
def test_hot_code_has_its_place_with_any_formats(tmp_path: Path, profile: str) -> None:
    """All at once, and the few with the largest code, beside a side path; the linker script refuses more."""
    need("gvsoc")
    write_tiny_llama(tmp_path / "model")
    model = load_hf(tmp_path / "model")
    add_adapters(model, {"q_proj": 3})
    program = compile_model(model, tmp_path / "out", context=16)
    largest = [f for f in ALL if "ASYM" in f]
    lists = [ALL, *map(list, combinations(largest, MOST))]
    assert len(lists) > 1
    for formats in lists:
        header = formats_header([*formats], WIDTHS, "x")
        (program.out / "src" / "formats.h").write_text(header)
        build_program(program.out, "siracusa", env=dict(os.environ), options={"PROFILE": profile})
