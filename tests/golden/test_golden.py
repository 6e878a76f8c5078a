"""What four pinned shapes compile to, byte for byte: a change of generated text shows as a difference.

    python -m pytest tests/golden --update-golden

writes the files of this folder anew, which is their generator; the difference belongs into the
commit that makes it, explained.  The text is kept whole, blobs and the integer model by their hash.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny_gptq import tiny_gptq
from helpers.tiny_llama import write_tiny_llama
from shrinkc.core import artifact
from shrinkc.core.progress import Silent
from shrinkc.driver.compiling import compile_model
from shrinkc.driver.plan_request import PlanRequest

FOLDER = Path(__file__).parent
TEXTS = ("ir.txt", "plan.json", "src/model.h", "src/model.c", "src/formats.h")
HASHED = ("blobs/wmem.bin", "blobs/l2.bin", "blobs/flash.bin", "ir.safetensors")
"""Those of them that a target has."""


@dataclass(frozen=True)
class Pinned:
    """A model and the options of its compilation."""

    write: Callable[[Path], object]
    options: dict[str, Any]


def mixed_gptq(path: Path) -> object:
    """Act-order, an 8-bit and a float module, a side path: every table that model.c can have."""
    return tiny_gptq(
        path, group=16, sym=False, desc_act="shared", eora_rank=3, embedding_bits=8, layers=2,
        module_bits={"model.layers.1.mlp.up_proj": 8}, skip=("model.layers.0.self_attn.o_proj",),
        seed=3,
    )  # fmt: skip


PINNED = {
    # everything in L1 and weight memory, one scale per row
    "rows": Pinned(write_tiny_llama, {"context": 24}),
    # groups that do not divide, zero points, a 4-bit head of its own; cache and logits out of L1
    "groups": Pinned(
        lambda path: write_tiny_llama(
            path, hidden=60, intermediate=130, layers=3, heads=6, kv_heads=3, head_dim=10,
            vocab=2600, tied=False, tokenizer="bytelevel", seed=5,
        ),
        {"bits": "4", "group": 16, "short_last_group": True, "asymmetric": True,
         "head_bits": "4", "context": 40, "l1": 21572},
    ),
    "gptq": Pinned(mixed_gptq, {"context": 16}),
    # another target; a head dimension that is not hidden / heads
    "rv32": Pinned(
        lambda path: write_tiny_llama(path, hidden=24, heads=3, kv_heads=1, head_dim=14, seed=9),
        {"target": "rv32", "context": 12},
    ),
}  # fmt: skip

DEFAULTS: dict[str, Any] = {
    "target": "siracusa", "bits": None, "group": None, "short_last_group": False,
    "asymmetric": False, "head_bits": None, "context": None, "l1": None, "adapter": None,
    "engines": None,
}  # fmt: skip


@pytest.mark.parametrize("name", PINNED)
def test_generated_text(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    pinned, model, out = PINNED[name], tmp_path / name, tmp_path / "out"
    pinned.write(model)
    options = {**DEFAULTS, "model": model, **pinned.options}
    compile_model(PlanRequest.from_options(**options), out, force=False, reporter=Silent())
    got = {file: (out / file).read_text(encoding="utf-8") for file in TEXTS}
    there = [file for file in HASHED if (out / file).is_file()]
    hashes = [f"{artifact.file_record(out / file).sha256}  {file}\n" for file in there]
    got["hashes"] = "".join(hashes)
    golden = FOLDER / name
    if request.config.getoption("--update-golden"):
        golden.mkdir(exist_ok=True)
        for file, text in got.items():
            (golden / Path(file).name).write_text(text, encoding="utf-8")
    for file, text in got.items():
        want = (golden / Path(file).name).read_text(encoding="utf-8")
        assert text.splitlines() == want.splitlines(), f"{name}/{file} is not what it was"


def test_the_shapes_differ_in_what_they_exercise() -> None:
    """Each pinned shape is there for something; it stays there."""
    plans = {name: (FOLDER / name / "plan.json").read_text() for name in PINNED}
    headers = {name: (FOLDER / name / "model.h").read_text() for name in PINNED}
    assert '"kv_in_l1": true' in plans["rows"]
    assert '"kv_in_l1": false' in plans["groups"]
    assert '"logits_in_l1": false' in plans["groups"]
    assert "#define SC_PERMS 1" in headers["gptq"]
    assert "#define SC_RANK 0\n" in headers["rows"]
    assert "#define SC_RANK 0\n" not in headers["gptq"]
    assert "#define SC_HEAD_DIM 14\n" in headers["rv32"]
