"""Makes a compiled directory whose engine is selftest.c."""

from __future__ import annotations

from pathlib import Path

import jinja2
import numpy as np
from shrinkc.build.layout import install, platform_files

ROOT = Path(__file__).resolve().parents[2]
CONTEXT = 24
INPUT_WORDS = 16 + CONTEXT
SIZES = {"wmem": 300_001, "l2": 100_003, "flash": 262_144}


def pattern(kind: int, size: int) -> bytes:
    """The bytes that selftest.c expects in blob ``kind`` (1 wmem, 2 L2, 3 flash)."""
    i = np.arange(1, size + 1, dtype=np.uint32)
    x = i * np.uint32(2654435761) + np.uint32(kind * 40503)
    return (x >> np.uint32(24) ^ x >> np.uint32(13)).astype(np.uint8).tobytes()


def make_directory(out: Path, *, flash: bool = True, cl_stack: int = 1040) -> Path:
    """Writes the directory ``out``; without flash the flash blob is an empty file."""
    sizes = SIZES if flash else {**SIZES, "flash": 0}
    install(platform_files(ROOT / "runtime_c", ROOT / "toolchain"), out)
    (out / "src/runtime").mkdir()
    for header in ("sc_platform.h", "sc_input.h"):
        text = (ROOT / "runtime_c/include" / header).read_text()
        (out / "src/runtime" / header).write_text(text)
    defines = "".join(f"#define SC_TEST_{k.upper()} {v}\n" for k, v in sizes.items())
    (out / "src/model.c").write_text(defines + (ROOT / "tests/platform/selftest.c").read_text())
    (out / "blobs").mkdir()
    for kind, (name, size) in enumerate(sizes.items(), start=1):
        (out / "blobs" / f"{name}.bin").write_bytes(pattern(kind, size))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOT / "templates"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    makefile = environment.get_template("Makefile.j2").render(
        context=CONTEXT, input_words=INPUT_WORDS, cl_stack=cl_stack,
        command="shrinkc compile selftest", target="siracusa",
        has_flash=flash, flash_size=sizes["flash"],
    )  # fmt: skip
    (out / "Makefile").write_text(makefile)
    return out
