"""Layers whose matrices read 16-bit and int8 vectors in turn, with several tokens at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import shrinkc
from helpers.tiny_gptq import tiny_gptq

# down alone has more inputs than the group, and more than twice those of the others
MODELS: dict[str, dict[str, Any]] = {
    "down in groups": {"bits": 8, "group": 64, "hidden": 64, "intermediate": 192},
    "down in groups, few inputs elsewhere": {
        "bits": 4,
        "group": 32,
        "hidden": 32,
        "intermediate": 160,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("engines", ["cores", None])
@pytest.mark.parametrize("name", MODELS)
def test_tokens_of_a_prompt_do_not_overlap(name: str, engines: str | None, tmp_path: Path) -> None:
    tiny_gptq(tmp_path / "model", sym=True, **MODELS[name])
    shrinkc.compile(tmp_path / "model", tmp_path / "out", target="siracusa", engines=engines)
    ir = (tmp_path / "out" / "ir.txt").read_text()
    assert "q16[" in ir and "q8[" in ir
    ran = shrinkc.run(tmp_path / "out", on="host", prompt_ids=[1, 5, 9, 20, 3, 7], tokens=3)
    assert ran.verdict is not None
    assert ran.verdict.compared > 0 and ran.verdict.mismatched == 0
