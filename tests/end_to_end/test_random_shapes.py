"""Property: a random LLaMA shape either compiles and gives the interpreter's integers on the
host and under qemu-riscv32, or is refused with a hint.

SHRINKC_RANDOM_SHAPES raises the number of shapes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.layer import MODULES
from helpers.tiny_llama import write_tiny_llama
from shrinkc.abi import LOOKUP_MAX
from shrinkc.core.errors import ShrinkcError
from shrinkc.importer import load_hf
from shrinkc.numerics.sampling import Sampling
from shrinkc.quantize import QuantOptions
from shrinkc.simulate.proof import Request, reference

from .programs import GREEDY, Program, add_adapters, compile_model, missing, need, random_request

COUNT = int(os.environ.get("SHRINKC_RANDOM_SHAPES", "10"))
HOST_BUILDS: tuple[dict[str, str], ...] = (
    {"SAN": "1"},
    {"SAN": "1", "LAZY": "1"},
    {"CORES": "8"},
    {"CORES": "3", "LAZY": "1"},
)
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


@dataclass(frozen=True)
class Case:
    """One drawn shape: arguments of write_tiny_llama, of the quantiser, and the rest."""

    model: dict[str, Any]
    options: QuantOptions
    context: int
    ranks: dict[str, int]


def draw(seed: int) -> Case:
    """A random case.  Every fourth seed has a regular shape, every fifth has side paths."""
    rng = np.random.default_rng(1000 + seed)

    def pick(*values: Any) -> Any:
        return values[int(rng.integers(len(values)))]

    kv_heads = pick(1, 1, 2, 3)
    model = {
        "hidden": int(rng.integers(5, 101)),
        "intermediate": int(rng.integers(3, 151)),
        "layers": pick(1, 1, 2, 3),
        "kv_heads": kv_heads,
        "heads": kv_heads * pick(1, 2, 3, 4),
        "head_dim": pick(4, 6, 8, 10, 14, 32, 64, 66, 128),
        "vocab": int(rng.integers(20, 300)),
        "tied": pick(True, False),
        "rope_theta": pick(500.0, 1e4, 5e5),
        "rope_scaling": pick(None, None, LLAMA3),
        "dtype": pick("float32", "float16", "bfloat16"),
        "eos_ids": pick(2, [2, 5]),
        "seed": seed,
    }
    ranks: dict[str, int] = {}
    group = pick(None, 4, 5, 8, 17, 32, 60, 64, 100, 200)
    if seed % 4 == 3:
        model.update(hidden=64, intermediate=192, heads=4, kv_heads=2, head_dim=16)
        group = pick(8, 16, 32, 64)
    if seed % 5 == 4:
        group = pick(None, 64)
        ranks = {m: int(rng.integers(1, 10)) for m in MODULES if rng.random() < 0.7}
        if group == 64:  # side paths read the activation groups of their matrix
            model.update(hidden=64, intermediate=130, heads=4, kv_heads=2, head_dim=32)
    options = QuantOptions(
        bits=pick(8, 4, 3, 2),
        group=group,
        asymmetric=pick(False, True),
        head_bits=pick(8, 8, 4),
        short_last_group=True,
    )
    return Case(model, options, int(rng.integers(9, 71)), ranks)


def build_case(case: Case, folder: Path) -> Program:
    write_tiny_llama(folder / "model", **case.model)
    model = load_hf(folder / "model")
    add_adapters(model, case.ranks, seed=3)
    return compile_model(model, folder / "out", case.options, case.context)


@pytest.mark.parametrize("seed", range(COUNT))
def test_random_shape_gives_the_interpreters_integers(tmp_path: Path, seed: int) -> None:
    need("host")
    case = draw(seed)
    try:
        program = build_case(case, tmp_path)
    except ShrinkcError as refusal:
        assert refusal.hint, f"{case}: refused without a hint: {refusal}"
        pytest.skip(f"{case} refused: {refusal}")
    rng = np.random.default_rng(seed)
    context = program.graph.context
    prompt = int(rng.integers(1, context))
    hot = Sampling(int(rng.integers(20000, 200000)), int(rng.integers(1, 65537)), seed)
    requests = [
        random_request(program.graph, rng, prompt, min(12, context - prompt)),
        random_request(program.graph, rng, 1, min(context - 1, 20), hot),
    ]
    wanted = [reference(program.graph, r) for r in requests]
    if program.plan.verified > 1:
        requests.append(replace(requests[0], lookup=1 + seed % LOOKUP_MAX))
        wanted.append(wanted[0])
    program.build("host", **HOST_BUILDS[seed % len(HOST_BUILDS)])
    for request, want in zip(requests, wanted, strict=True):
        program.prove("host", request, want)
    if missing("qemu") is None:
        program.build("qemu")
        for request, want in zip(requests, wanted, strict=True):
            program.prove("qemu", request, want)


def test_qemu_is_there_for_the_property_above() -> None:
    """Without it the property was checked on the host only: shown as a skip, not hidden."""
    need("qemu")


def test_most_random_shapes_are_not_refused(tmp_path: Path) -> None:
    """The property above would be empty if everything were refused."""
    compiled = 0
    for seed in range(COUNT):
        try:
            build_case(draw(seed), tmp_path / str(seed))
            compiled += 1
        except ShrinkcError as refusal:
            assert refusal.hint
    assert compiled >= 0.8 * COUNT


def test_whole_context_from_one_token_prompt_under_threads(tmp_path: Path) -> None:
    """8 threads under the thread sanitizer: no race, and the interpreter's integers."""
    need("host")
    write_tiny_llama(
        tmp_path / "model", hidden=33, intermediate=50, heads=3, kv_heads=1, head_dim=4
    )
    program = compile_model(
        load_hf(tmp_path / "model"),
        tmp_path / "out",
        QuantOptions(bits=4, asymmetric=True),
        context=24,
        l1_budget=None,
    ).build("host", CORES="8", SAN="thread", LAZY="1")
    program.prove("host", Request((1,), 23, GREEDY, ignore_eos=True))


def test_end_token_ends_the_run(tmp_path: Path) -> None:
    """The chosen end token is the last one of a run, and a run may ignore it."""
    need("host")
    write_tiny_llama(tmp_path / "probe")
    graph = compile_model(load_hf(tmp_path / "probe"), tmp_path / "a", context=20).graph
    first = reference(graph, Request((1, 40), 6, GREEDY, ignore_eos=True)).tokens
    write_tiny_llama(tmp_path / "model", eos_ids=[first[2], 2])
    program = compile_model(load_hf(tmp_path / "model"), tmp_path / "out", context=20)
    program.build("host", SAN="1")
    stopped, going = (Request((1, 40), 6, GREEDY, ignore_eos=e) for e in (False, True))
    want = reference(program.graph, stopped)
    assert want.tokens == first[: first.index(first[2]) + 1]
    program.prove("host", stopped, want)
    program.prove("host", going)
