"""Blocks of long rows in tiles of few, whose inputs the cores split: the interpreter's integers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.tiers import in_tiers
from helpers.tiny_llama import write_tiny_llama
from shrinkc.engines.cores import split_parts
from shrinkc.importer import load_model
from shrinkc.memory.parts import tile_sizes
from shrinkc.memory.planner import make_plan
from shrinkc.quantize import QuantOptions, lower
from shrinkc.simulate.proof import reference
from shrinkc.targets import SIRACUSA

from .programs import (
    WARM,
    Program,
    add_adapters,
    compile_graph,
    l2_without_weights,
    need,
    random_request,
    shape_of,
    smallest_l1,
)

CONTEXT = 24
# name -> sizes, formats, ranks of adapters, and how many cores split a block in tiles of the L1 that is given
SHAPES: dict[str, tuple[dict[str, Any], QuantOptions, dict[str, int], set[int]]] = {
    "w8": ({"intermediate": 786}, QuantOptions(), {}, {2, 4}),
    "w4-a-block-for-all": (
        {"hidden": 72, "intermediate": 1045},
        QuantOptions(bits=4, embedding_bits=4),
        {"down_proj": 9},
        {8},
    ),
    "w3-groups": (
        {"intermediate": 1041},
        QuantOptions(bits=3, group_size=17, short_last_group=True),
        {},
        {2, 4},
    ),
    "w4-offsets-sides": (
        {"hidden": 64, "head_dim": 16, "intermediate": 800},
        QuantOptions(bits=4, group_size=32, asymmetric=True),
        {"down_proj": 20, "gate_proj": 3},
        {2, 4, 8},
    ),
    "w2": ({"hidden": 64, "intermediate": 2050}, QuantOptions(bits=2, embedding_bits=2), {}, {4}),
}


def _program(folder: Path, name: str, place: str = "") -> Program:
    shape, options, ranks, parts = SHAPES[name]
    write_tiny_llama(
        folder / "model",
        **{"hidden": 48, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 12} | shape,
    )
    model = load_model(folder / "model")
    add_adapters(model, ranks)
    graph, target = lower(model, options, CONTEXT), SIRACUSA
    sizes = shape_of(graph, model)

    def splits(l1: int) -> set[int]:
        tile = make_plan(sizes, SIRACUSA, l1).tile_bytes
        return {split_parts(m, n) for m in sizes.matrices for n in tile_sizes(m, tile)} - {1}

    least = smallest_l1(sizes)
    l1 = next(l1 for l1 in range(least, SIRACUSA.l1, 1 << 10) if splits(l1) == parts)
    if place == "flash":
        target = SIRACUSA.with_room(wmem=0, l2=l2_without_weights(sizes, l1))
    program = compile_graph(graph, model, folder / "out", target, l1)
    assert "sc_split_rows(" in program.sources
    return program


@pytest.mark.parametrize(("name", "sanitizers"), in_tiers(SHAPES, "w8"))
def test_on_host_and_qemu(tmp_path: Path, name: str, sanitizers: dict[str, str]) -> None:
    """Sanitizers of addresses and of threads; 8 cores, 5, of which some split blocks and some idle, and one."""
    need("host")
    program = _program(tmp_path, name)
    request = random_request(program.graph, np.random.default_rng(3), 9, 8, WARM)
    want = reference(program.graph, request)
    if not sanitizers:
        program.build("host", LAZY="1", CORES="8").prove("host", request, want)
        return
    for options in (
        {**sanitizers, "LAZY": "1", "CORES": "8"},
        {"SAN": "thread", "CORES": "8"},
        {"CORES": "5", "LAZY": "1"},
    ):
        program.build("host", **options).prove("host", request, want)
    need("qemu")
    program.build("qemu").prove("qemu", request, want)


@pytest.mark.gvsoc
@pytest.mark.parametrize("name", SHAPES)
def test_on_the_soc(tmp_path: Path, name: str) -> None:
    """Weights in weight memory, and one model's in flash."""
    need("gvsoc")
    program = _program(tmp_path, name, "flash" if name == "w2" else "").build("gvsoc")
    request = random_request(program.graph, np.random.default_rng(4), 5, 4, WARM)
    program.prove("gvsoc", request, timeout_s=200)
