"""What four pinned shapes compile to, byte for byte: a change of generated text shows as a difference.

    python -m pytest tests/golden --update-golden

writes the files of this folder anew, which is their generator; the difference belongs into the
commit that makes it, explained.  The text is kept whole, blobs and the integer model by their hash.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from shrinkc.core import artifact

from .models import compile_pinned

FOLDER = Path(__file__).parent
PINNED = ("rows", "groups", "gptq", "rv32")
TEXTS = ("ir.txt", "plan.json", "src/model.h", "src/model.c", "src/forward.c")
HASHED = ("blobs/wmem.bin", "blobs/l2.bin", "blobs/flash.bin", "ir.safetensors")
"""Those of them that a target has."""


@pytest.mark.parametrize("name", PINNED)
def test_generated_text(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    out = compile_pinned(name, tmp_path)
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
    assert "sc_perms[SC_MATRICES]" in (FOLDER / "gptq/model.c").read_text()
    assert "#define SC_RANK 9\n" not in headers["rows"]
    assert "#define SC_RANK 9\n" in headers["gptq"]
    assert "#define SC_HEAD_DIM 14\n" in headers["rv32"]
