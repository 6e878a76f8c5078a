"""Makes a compiled directory whose engine is selftest.c."""

from __future__ import annotations

import shutil
from pathlib import Path

import jinja2
import numpy as np

from shrinkc.abi import INPUT_MAGIC, InputWord
from shrinkc.abi import input_words as words_for
from shrinkc.codegen.tokenizer_blob import tokenizer_blob
from shrinkc.importer.encode_table import EncodeTable, Step
from shrinkc.targets import KIB, PROGRAMS, SIRACUSA, Target

ROOT = Path(__file__).resolve().parents[2]
CONTEXT = 24
BOS, FIRST_BYTE = 1, 2
VOCAB = FIRST_BYTE + 256
BYTE_TOKENS = EncodeTable(
    (BOS,), BOS, steps=(Step("BYTES"),), units={b: FIRST_BYTE + b for b in range(256)}
)  # a prompt is BOS and its bytes
KINDS = {"wmem": 1, "l2": 2, "flash": 3}  # of selftest.c
INPUT_WORDS = words_for(CONTEXT)
SIZES = {"wmem": 300_001, "l2": 100_003, "flash": 262_144}


def sizes_for(target: Target) -> dict[str, int]:
    """A blob for each of its memories; the first is the one that large transfers come from."""
    return {
        v.name: SIZES["wmem"] if v is target.stored[0] else SIZES[v.name] for v in target.stored
    }


def pattern(kind: int, size: int) -> bytes:
    """The bytes that selftest.c expects in blob ``kind`` (1 wmem, 2 L2, 3 flash)."""
    i = np.arange(1, size + 1, dtype=np.uint32)
    x = i * np.uint32(2654435761) + np.uint32(kind * 40503)
    return (x >> np.uint32(24) ^ x >> np.uint32(13)).astype(np.uint8).tobytes()


def input_words(end: int = 0) -> list[int]:
    """A full input; ``end`` makes the program fail on purpose, see fail_on_purpose()."""
    words = [(i * 2654435761) % 2**32 for i in range(INPUT_WORDS)]
    # selftest.c takes the seed for how to end
    words[InputWord.MAGIC], words[InputWord.SEED], words[InputWord.MORE] = INPUT_MAGIC, end, 0
    return words


def make_directory(
    out: Path,
    *,
    sizes: dict[str, int] | None = None,
    source: str | None = None,
    target: Target = SIRACUSA,
) -> Path:
    """Writes the directory ``out``; ``source`` replaces selftest.c."""
    sizes = sizes_for(target) if sizes is None else sizes
    shutil.copytree(ROOT / "runtime_c" / "platform", out / "src" / "platform")
    (out / "src/platform/blobs.S").rename(out / "src/blobs.S")
    (out / "src/platform/pulp/port_profile.c").unlink()  # needs the runtime
    shutil.copytree(ROOT / "runtime_c" / "encode", out / "src" / "encode")
    shutil.copytree(ROOT / "toolchain", out / "src" / "toolchain")
    (out / "src/runtime").mkdir()
    for header in ("sc_platform.h", "sc_abi.h", "sc_xpulp.h", "llm.h"):
        shutil.copyfile(ROOT / "runtime_c/include" / header, out / "src/runtime" / header)
    (out / "src/program").mkdir()
    for header in ("program.h", "sc_console.h", "sc_contract.h"):
        shutil.copyfile(ROOT / "runtime_c/program" / header, out / "src/program" / header)
    big = (200 if target.l1 >= 256 * KIB else 40) * KIB
    defines = f"#define SC_TEST_BIG {big}\n"
    defines += "".join(f"#define SC_TEST_{k.upper()} {v}\n" for k, v in sizes.items())
    text = (ROOT / "tests/platform/selftest.c").read_text() if source is None else source
    (out / "src/model.c").write_text(defines + text)
    (out / "blobs").mkdir()
    for name, size in sizes.items():
        (out / "blobs" / f"{name}.bin").write_bytes(pattern(KINDS[name], size))
    (out / "blobs/tokenizer.bin").write_bytes(tokenizer_blob(BYTE_TOKENS, VOCAB))
    (out / "Makefile").write_text(makefile(target))
    return out


def makefile(target: Target) -> str:
    """The template as the code generator fills it in."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOT / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("Makefile.j2").render(
        context=CONTEXT,
        input_words=INPUT_WORDS,
        ram_bytes=100_000,
        memories=[level.name for level in target.stored],
        name="selftest",
        text_bytes=1,
        command="shrinkc compile selftest",
        target=target,
        targets=PROGRAMS | {target.program.name: target},
    )
