"""Norms whose gains are in a lower memory and come there while matrices are multiplied: the interpreter's integers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import shrinkc
from helpers.tiny_llama import write_tiny_llama
from shrinkc.memory.plan import Plan

from .programs import ENV, need

# 9 norms of 264 inputs have more than 8 KiB of gains; a prompt of 21 tokens takes several passes, of whose last layer
# but the last one none has a norm after attention
PROMPT = tuple(1 + 7 * i % 100 for i in range(21))
# name -> options, and what of the cache is in L1
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "N-EUREKA": ({"context": 64}, "all"),
    "N-EUREKA and remainders of 12 inputs": (
        {"context": 64, "bits": 4, "embedding_bits": 4},
        "all",
    ),
    "cores, a layer's cache": ({"context": 64, "engines": "cores", "l1": 54 << 10}, "layer"),
    "cores, groups": (
        {
            "context": 64,
            "engines": "cores",
            "bits": 4,
            "group_size": 33,
            "asymmetric": True,
            "short_last_group": True,
        },
        "all",
    ),
    "cores, pieces of the cache": ({"context": 64, "engines": "cores", "l1": 34 << 10}, "pieces"),
}


def _compiled(folder: Path, name: str) -> Path:
    write_tiny_llama(
        folder / "model", hidden=264, intermediate=330, layers=4, heads=4, kv_heads=2, head_dim=16
    )
    options, cache = CASES[name]
    shrinkc.compile(folder / "model", folder / "out", target="siracusa", **options)
    plan = Plan.of_json(json.loads((folder / "out" / "plan.json").read_text()))
    assert any(b.name == "gain" and b.bytes == 4 * 264 for b in plan.l1)
    whole = 4 * plan.kv_window_blocks >= plan.context
    kind = "all" if plan.kv_in_l1 else "layer" if whole else "pieces"
    assert kind == cache
    return folder / "out"


def _prove(out: Path, on: str, lookup: int | None = None, **make: str) -> None:
    ran = shrinkc.run(
        out, on=on, prompt_ids=PROMPT, tokens=4, ignore_eos=True, prompt_lookup=lookup, make_options=make,
        env=ENV,
    )  # fmt: skip
    verdict = ran.verdict
    assert verdict is not None and verdict.mismatched == 0 and verdict.compared > 1500


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_on_host_and_qemu(tmp_path: Path, name: str) -> None:
    """Sanitizers of addresses and of threads, transfers that come early and late."""
    need("host")
    out = _compiled(tmp_path, name)
    _prove(out, "host", SAN="1")
    _prove(out, "host", lookup=3, SAN="thread", LAZY="1", CORES="5")
    need("qemu")
    _prove(out, "qemu")


@pytest.mark.gvsoc
@pytest.mark.parametrize("name", ["N-EUREKA and remainders of 12 inputs", "cores, a layer's cache"])
def test_on_the_soc(tmp_path: Path, name: str) -> None:
    need("gvsoc")
    _prove(_compiled(tmp_path, name), "gvsoc")
