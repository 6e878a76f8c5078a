"""``examples/convert_llama2c.py``, which is a script and no package, and the real model that it converts."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "convert_llama2c.py"
_names: dict[str, Any] = runpy.run_path(str(EXAMPLE))
convert, read_pieces, bpe = _names["convert"], _names["read_pieces"], _names["bpe"]


def write_stories260k(data: Path, out: Path) -> None:
    """Write stories260K of the shared data as a Hugging Face directory, which must not exist."""
    convert(data / "stories260K/stories260K.bin", data / "stories260K/tok512.bin", out)
