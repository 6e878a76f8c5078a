"""Compares the encoder's ids with those of the tokenizers library on many texts.

    PYTHONPATH=compiler:tests:examples/bench python -m codegen.encode_texts --texts 40000 --gvsoc 100

``--tokenizer NAME=FILE`` compares with the tokenizer of a ``tokenizer.json`` or GGUF file, ``--only NAME`` with one of
the tests; both can be repeated, and then no figures are written.  Ends with 1 if an id differs.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import figures

from end_to_end.programs import missing
from helpers.encoder import CHIPS, ROOT, Encoder, build_encoder
from helpers.shared_data import find_shared_data
from helpers.texts import texts
from helpers.tokenizer_specs import SPECS, VOCAB
from shrinkc.importer import Tokenizer
from shrinkc.importer.gguf_file import GgufFile
from shrinkc.importer.gguf_tokenizer import load_tokenizer

LABELS = {
    "host": "host", "qemu": "RV32 in QEMU", "siracusa": "Siracusa in GVSoC", "pulp-open": "PULP-open in GVSoC",
}  # fmt: skip
_BATCH = 4000
_LARGEST = 1 << 18  # ids of a vocabulary are below


@dataclass
class Row:
    """What was found for one tokenizer; by machine: texts, texts whose ids differ, bytes of stack."""

    texts: dict[str, int] = field(default_factory=dict)
    different: dict[str, int] = field(default_factory=dict)
    stack: dict[str, int] = field(default_factory=dict)


def corpora() -> list[str]:
    """Return long texts: this documentation, and the shared data where it is present."""
    found = [
        (ROOT / "README.md").read_text(),
        *(p.read_text() for p in sorted((ROOT / "docs").glob("*/*.md"))),
    ]
    data = find_shared_data()
    if data is not None:
        files = (
            "tinystories/tinystories_val.txt",
            "wikitext2/wiki.test.raw",
            "triviaqa/triviaqa_1000.jsonl",
        )
        found += [(data / name).read_text() for name in files]
    return found


def batches(count: int, special: list[str], sources: list[str]) -> Iterator[list[str]]:
    """Yield ``count`` texts: half random ones, half cut out of ``sources``, of up to 400 characters."""
    rng = random.Random(count)
    for seed, start in enumerate(range(0, count, _BATCH)):
        here = min(_BATCH, count - start)
        batch = texts(seed, special, here - here // 2)[: here - here // 2]
        while len(batch) < here:
            source = rng.choice(sources)
            at = rng.randrange(len(source))
            batch.append(source[at : at + rng.randrange(1, 400)])
        yield batch


def compare(
    tokenizer: Tokenizer, count: int, encoders: Mapping[str, Encoder], row: Row, sources: list[str]
) -> None:
    """Encode ``count`` texts on each machine; prints the first text whose ids differ."""
    special = [added.text.decode() for added in tokenizer.encode_table().added]
    for batch in batches(count, special, sources):
        expected = [" ".join(map(str, tokenizer.encode(text))) for text in batch]
        for machine, encoder in encoders.items():
            found = encoder.run(tokenizer, list(batch))
            differ = [
                text for text, a, b in zip(batch, expected, found.lines, strict=True) if a != b
            ]
            if differ and not row.different.get(machine):
                print(f"{machine}: {differ[0]!r}", file=sys.stderr)
            row.texts[machine] = row.texts.get(machine, 0) + len(batch)
            row.different[machine] = row.different.get(machine, 0) + len(differ)
            row.stack[machine] = max(row.stack.get(machine, 0), found.stack)


def load(path: Path) -> Tokenizer:
    """Return the tokenizer of a ``tokenizer.json`` or of a GGUF file."""
    if path.suffix == ".gguf":
        return load_tokenizer(GgufFile(path), _LARGEST)
    return Tokenizer.from_file(path, _LARGEST)


def of_the_tests(names: Sequence[str]) -> dict[str, Tokenizer]:
    """Return tokenizers of the tests by name."""
    return {name: Tokenizer(json.dumps(SPECS[name]), Path(name), VOCAB, 1) for name in names}


def show(name: str, row: Row) -> None:
    """Print one tokenizer's line."""
    found = [
        f"{machine} {row.different[machine]} of {texts:,} differ"
        for machine, texts in row.texts.items()
    ]
    print(f"{name}: {', '.join(found)}; {max(row.stack.values())} bytes of stack", flush=True)


def figures_of(rows: Mapping[str, Row]) -> list[dict[str, Any]]:
    """Return the rows of docs/results/data/robustness_texts.json, by machine."""
    out = []
    for machine, label in LABELS.items():
        of = [row for row in rows.values() if machine in row.texts]
        stack = max((row.stack[machine] for row in of), default=0)
        out.append({
            "id": machine.replace("-", "_"), "machine": label, "tokenizers": len(of),
            "texts": sum(row.texts[machine] for row in of),
            "differ": sum(row.different[machine] for row in of), "stack": stack or None,
        })  # fmt: skip
    return out


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--texts", type=int, default=40_000, help="Texts per tokenizer on host and QEMU."
    )
    parser.add_argument(
        "--gvsoc", type=int, default=100, help="Texts per tokenizer on each chip of GVSoC."
    )
    parser.add_argument("--tokenizer", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", choices=SPECS)
    options = parser.parse_args()
    needed = ("host", "qemu", "gvsoc") if options.gvsoc else ("host", "qemu")
    if lacking := [text for on in needed if (text := missing(on))]:
        sys.exit("\n".join(lacking))
    files = dict(text.split("=", 1) for text in options.tokenizer)
    chosen = bool(files or options.only)
    tokenizers = of_the_tests(options.only if chosen else [*SPECS])
    tokenizers |= {name: load(Path(file)) for name, file in files.items()}
    sources = corpora()
    began = time.monotonic()
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        large = {
            "host": build_encoder(folder, sanitize=False),
            "qemu": build_encoder(folder, "qemu"),
        }
        small = {name: build_encoder(folder, name) for name in CHIPS}
        for name, tokenizer in tokenizers.items():
            row = rows[name] = Row()
            compare(tokenizer, options.texts, large, row, sources)
            if name not in files:  # their tables may be larger than L2
                compare(tokenizer, options.gvsoc, small, row, sources)
            show(name, row)
    different = sum(sum(row.different.values()) for row in rows.values())
    print(f"{different} texts differ, {time.monotonic() - began:.0f} s", file=sys.stderr)
    if not chosen:
        figures.write(
            "robustness_texts",
            title="Texts encoded by the C program: ids compared with the tokenizers library.",
            command=f"make texts N={options.texts} GVSOC={options.gvsoc}",
            columns={
                "machine": "Machine", "tokenizers": "Tokenizers", "texts": "Texts", "differ": "Texts that differ",
                "stack": "Most stack, bytes",
            },
            rows=figures_of(rows),
        )  # fmt: skip
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
