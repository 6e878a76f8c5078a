"""Plans that share L1 more closely: vectors made in place, a cache that comes with its own layer's matrix."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from end_to_end.programs import Program, compile_graph, missing, need, shape_of
from helpers.tiny_llama import write_tiny_llama
from shrinkc.core.errors import DoesNotFit
from shrinkc.importer import load_hf
from shrinkc.memory.plan import Plan
from shrinkc.memory.planner import make_plan
from shrinkc.quantize import QuantOptions
from shrinkc.targets import KIB, SIRACUSA

from .plain import lowered
from .test_neureka import prove

CONTEXT = 60
# vectors of o and of down in place: the first of 80 inputs, no whole vectors of 32, beside 44 of a norm; of 102
# and 1,000 inputs the last ones are no four, and what is set aside ends within them
CASES: dict[str, dict[str, Any]] = {
    "down": {"hidden": 64, "intermediate": 302, "heads": 4, "kv_heads": 2, "head_dim": 10},
    "o and down": {"hidden": 44, "intermediate": 102, "heads": 4, "kv_heads": 2, "head_dim": 20},
    "o, longer than down": {"hidden": 24, "intermediate": 62, "heads": 6, "kv_heads": 3, "head_dim": 14},
    "nine heads, a wide down": {"hidden": 36, "intermediate": 1000, "heads": 9, "kv_heads": 3, "head_dim": 4},
}  # fmt: skip


def program(case: str, folder: Path) -> Program:
    """With the first L1 of which a frugal plan has chunks that no one job takes, or else of the longest ones; of these
    one whose cache comes a layer at a time."""
    write_tiny_llama(folder / "model", **CASES[case], vocab=83, layers=3, seed=4)
    model = load_hf(folder / "model")
    graph = lowered(model, QuantOptions(), CONTEXT, SIRACUSA)
    shape = shape_of(graph, model)

    def plans() -> Iterator[tuple[Plan, int]]:
        for budget in range(24 * KIB, 160 * KIB, 2 * KIB):
            try:
                yield make_plan(shape, SIRACUSA, budget), budget
            except DoesNotFit:
                continue

    found = [(p.chunk, -b) for p, b in plans() if p.frugal and p.kv_window_blocks]
    return compile_graph(graph, model, folder / "out", SIRACUSA, -max(found)[1])


@pytest.mark.parametrize("case", CASES)
def test_every_integer_is_the_interpreters(case: str, tmp_path: Path) -> None:
    need("host")
    found = program(case, tmp_path)
    assert found.plan.frugal and found.plan.chunk >= 12
    assert prove(found, "host", 1, 2, 3, 18, 37, SAN="1", LAZY="1", CORES="3") > 1000
    if case == "o and down" and missing("qemu") is None:
        assert prove(found, "qemu", 19) > 0


def test_no_two_threads_meet(tmp_path: Path) -> None:
    need("host")
    assert prove(program("o and down", tmp_path), "host", 19, 2, SAN="thread", CORES="8") > 1000


@pytest.mark.gvsoc
@pytest.mark.parametrize("case", ["o and down", "nine heads, a wide down"])
def test_on_the_chips_simulator(case: str, tmp_path: Path) -> None:
    need("gvsoc")
    assert prove(program(case, tmp_path), "gvsoc", 37, 19, 3) > 500
