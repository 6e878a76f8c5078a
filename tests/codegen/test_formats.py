"""formats.h: what it lists, and that the hot code of no model is larger than its place."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from end_to_end.programs import Program, add_adapters, compile_graph, compile_model, need
from end_to_end.shapes import build, draw, float_model
from helpers.layer import MODULES
from helpers.tiny_llama import write_tiny_llama
from shrinkc.build import build_program
from shrinkc.codegen.formats import MOST, c_format, flat_format, formats_header
from shrinkc.core.errors import DoesNotFit
from shrinkc.importer import load_model
from shrinkc.ir.linear import QLinear
from shrinkc.memory.parts import kv_shape
from shrinkc.memory.planner import make_plan
from shrinkc.quantize import QuantOptions
from shrinkc.storage import WIDTHS, ZERO_BITS
from shrinkc.targets import KIB, SIRACUSA

ASYM = " | SC_FMT_GROUPED | SC_FMT_ASYM"
SCALES = ("", " | SC_FMT_GROUPED", ASYM, f"{ASYM} | SC_FMT_ZEROS")
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


def grouped(name: str, rows: int, drop: int, b: int | None = None) -> QLinear:
    """A 4-bit matrix of one group of 32 inputs."""
    return QLinear(
        name, bits=4, group_size=32, group=32, q=np.ones((rows, 32), np.int8), d=np.ones((rows, 1), np.uint8),
        b=None if b is None else np.full((rows, 1), b, np.int16), r=np.ones(rows, np.uint16),
        drop=drop, shift=0, cmax=255, frac=0, pad=0, row_scale=np.ones(rows),
    )  # fmt: skip


def test_flat_sums_have_one_format() -> None:
    """That of the most weights that can: rounded, with offsets whose negatives have 16 bits, beside few formats."""
    plain, some = grouped("plain", 8, 3), grouped("some", 24, 3, -32767)
    exact, least = grouped("exact", 99, 0), grouped("least", 8, 3, -32768)
    formats = {c_format(w) for w in (plain, some)}
    assert formats == {"4 | SC_FMT_GROUPED", "4 | SC_FMT_GROUPED | SC_FMT_ASYM"}
    assert flat_format([plain, some, exact], formats) == (c_format(some), [some])
    assert flat_format([plain, exact], formats) == (c_format(plain), [plain])
    for candidates, among in (
        ([exact], formats),
        ([], formats),
        ([some, least], formats),
        ([plain], ALL),
    ):
        assert flat_format(candidates, among) == ("", [])


def of_adapters(program: Program) -> str:
    """The format of the second matrices of the program's adapters."""
    text = (program.out / "src" / "formats.h").read_text()
    (found,) = re.findall(r"#define SC_ADAPTER_FORMAT \((.*)\)", text)
    return str(found)


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["", "1"])
def test_hot_code_has_its_place_with_any_formats(tmp_path: Path, profile: str) -> None:
    """All at once, and the few with the largest code, beside an adapter; the linker script refuses more."""
    need("qemu")  # its compiler
    write_tiny_llama(tmp_path / "model", hidden=64, intermediate=96)
    model = load_model(tmp_path / "model")
    add_adapters(model, {"q_proj": 3})
    program = compile_model(
        model, tmp_path / "out", QuantOptions(bits=4, group_size=32), context=16, whole_runtime=True
    )
    points = [f"{ASYM} | SC_FMT_ZEROS" if bits <= ZERO_BITS else ASYM for bits in WIDTHS]
    kinds = ([ASYM] * len(WIDTHS), points)
    largest = [[f"{b}{kind}" for b, kind in zip(WIDTHS, each, strict=True)] for each in kinds]
    lists = [ALL, *(list(some) for each in largest for some in combinations(each, MOST))]
    assert len(lists) > 2
    model_h = program.out / "src" / "model.h"
    some = model_h.read_text().replace("#define SC_FLAT_ALL 1", "#define SC_FLAT_ALL 0")
    assert "#define SC_SEVERAL_ON_NEUREKA 1" in some and "#define SC_FLAT_ALL 0" in some
    adapter = of_adapters(program)
    for formats in lists:
        header = formats_header([*formats], WIDTHS, "x", adapter)
        (program.out / "src" / "formats.h").write_text(header)
        flat = [name for name in formats if name.startswith("4 |") and len(formats) <= MOST]
        define = f"#define SC_FLAT_FORMAT ({flat[0]})" if flat else ""
        model_h.write_text(re.sub("#define SC_FLAT_FORMAT .*", define, some))
        build_program(program.out, "siracusa", env=dict(os.environ), options={"PROFILE": profile})


@pytest.mark.slow
def test_hot_code_has_its_place_with_all_that_there_is(tmp_path: Path) -> None:
    """Every width, scales per group and per row, adapters, norms of heads, permutations, an engine and its copies,
    products of several tokens on N-EUREKA, and a layer's cache that is in L1 while it is short and then comes in
    pieces."""
    need("qemu")
    case = draw(275)
    case = replace(
        case, family="qwen3", ranks=dict.fromkeys(MODULES, 3), target=SIRACUSA,
        engines=SIRACUSA.engines, place="usual", context=160, model={**case.model, "max_position": 160},
    )  # fmt: skip
    usual = build(case, tmp_path / "usual")
    shape, blocks = usual.shape, kv_shape(usual.shape, usual.plan.chunk).blocks

    def both(l1: int) -> bool:
        try:
            plan = make_plan(shape, SIRACUSA, l1)
        except DoesNotFit:
            return False
        return plan.chunk > 1 and 0 < plan.kv_window_blocks < blocks

    l1 = next(filter(both, range(32 * KIB, 256 * KIB, 2 * KIB)))
    model = float_model(case, tmp_path / "again")
    program = compile_graph(usual.graph, model, tmp_path / "out", SIRACUSA, l1, whole_runtime=True)
    macros = (program.out / "src" / "model.h").read_text()
    for name in (
        "SC_SEVERAL_ON_NEUREKA",
        "SC_HAS_HEAD_NORM",
        "SC_HAS_ENGINES",
        "SC_ENGINE_SECOND_LAYOUT",
    ):
        assert f"#define {name} 1" in macros
    assert shape.perms
    header = formats_header(ALL, WIDTHS, "x", of_adapters(program))
    (program.out / "src" / "formats.h").write_text(header)
    build_program(program.out, "siracusa", env=dict(os.environ), options={"PROFILE": "1"})
