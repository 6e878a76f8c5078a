"""Programs for boards give the interpreter's integers, with the least RAM and flash that they can have."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from helpers.tiers import slow_but
from helpers.tiny_llama import write_tiny_llama
from shrinkc.core.errors import DoesNotFit
from shrinkc.importer import load_model
from shrinkc.memory.planner import check_fits
from shrinkc.quantize import QuantOptions, lower
from shrinkc.schedule.shapes import ModelShape
from shrinkc.targets import BOARD, KIB, MIB, board_of

from .programs import WARM, Program, compile_graph, need, random_request, shape_of
from .shapes import draw, float_model, prove, requests

HIGH = 64 * MIB


def least_sizes(shape: ModelShape) -> tuple[int, int]:
    """The fewest bytes of RAM and of flash."""
    found = []
    for ram, flash in ((1, HIGH), (HIGH, 1)):
        with pytest.raises(DoesNotFit) as refused:
            check_fits(shape, board_of(ram, flash))
        found.append(refused.value.lacks[0].need)
    return found[0], found[1]


def build(seed: int, folder: Path, *, whole_runtime: bool = False) -> Program:
    """A random model: for a board with the least memory, or for every other seed with room for longer chunks."""
    case = draw(seed)
    model = float_model(case, folder / "model")
    graph = lower(model, case.options, case.context)
    ram, flash = least_sizes(shape_of(graph, model))
    more = seed % 2 * 48 * KIB
    board = board_of(ram + more, flash)
    return compile_graph(graph, model, folder / "out", board, whole_runtime=whole_runtime)


SEEDS = (3, 4, 5, 9, 12, 13, 17, 28, 34)
FEATURES = {
    "permutations": r"SC_PERMS 1\b", "biases": r"SC_HAS_BIAS 1\b", "adapters": r"SC_RANK [1-9]",
    "offsets": r"SC_XSUMS 1\b", "groups": r"SC_XGROUPS [2-9]", "per channel": r"SC_Q16 1\b",
    "single tokens": r"SC_CHUNK 1\b", "chunks": r"SC_CHUNK 16\b",
}  # fmt: skip


@pytest.mark.parametrize("seed", slow_but(SEEDS, 12))
def test_random_shape_gives_the_interpreters_integers(tmp_path: Path, seed: int) -> None:
    need("qemu", BOARD)
    program = build(seed, tmp_path)
    runs = requests(program, seed)
    assert prove(program, "qemu", seed, runs) > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_random_shape_with_sanitizers(tmp_path: Path, seed: int) -> None:
    """No access outside of a buffer, although nothing is larger than it has to be."""
    need("host")
    program = build(seed, tmp_path).build("host", SAN="1")
    asked, wanted = requests(program, seed)
    program.prove("host", asked[0], wanted[0])


@pytest.mark.slow
def test_the_shapes_above_are_of_all_kinds(tmp_path: Path) -> None:
    built = [build(n, tmp_path / str(n), whole_runtime=True) for n in SEEDS]
    headers = [(program.out / "src/model.h").read_text() for program in built]
    assert all("#define SC_TILE_BYTES 0\n" in text for text in headers)
    for name, pattern in FEATURES.items():
        assert any(re.search(pattern, text) for text in headers), name


@pytest.mark.slow
def test_a_long_context_and_large_norms(tmp_path: Path) -> None:
    """Norms of more than 8 KiB are read in flash, too; and the exponential has a table in RAM."""
    need("qemu", BOARD)
    write_tiny_llama(tmp_path / "model", hidden=512, intermediate=64, max_position=160)
    model = load_model(tmp_path / "model")
    graph = lower(model, QuantOptions(bits=4), 160)
    target = board_of(*least_sizes(shape_of(graph, model)))
    program = compile_graph(graph, model, tmp_path / "out", target)
    assert {"gain", "exp2"} & {b.name for b in program.plan.l1} == {"exp2"}
    request = random_request(graph, np.random.default_rng(1), 140, 8, WARM)
    for machine in ("host", "qemu"):
        program.build(machine).prove(machine, request)
