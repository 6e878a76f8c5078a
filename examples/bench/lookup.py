"""Cycles per token with prompt lookup on GVSoC: weights on the chip and in flash, drafts of several lengths.

    python examples/bench/lookup.py [--work DIR] [--output docs/results/lookup.md]

Models: ``examples/stories``, whose greedy text after a prompt that says things three times repeats itself; and 5
million random weights of 4 bit in groups of 32, whose text does too.  In flash: weight memory has no room, and
L2 what the program itself needs.  Every run is verified against the interpreter, and gives the same tokens
with drafts as without; one that differs ends the benchmark.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

import shrinkc
from shrinkc.importer import parse_config
from shrinkc.memory.parts import pieces_in
from shrinkc.model import matrix_shapes, norm_shapes
from shrinkc.targets import KIB, SIRACUSA, TARGETS

ROOT = Path(__file__).resolve().parents[2]
SENTENCES = "The ball was big. The ball was red."
DRAFTS = (None, 1, 3, 7)


@dataclass(frozen=True)
class Row:
    """One model in one place; ``options`` are those of compile, ``tokens`` new ones of a run."""

    label: str
    model: Path
    flash: bool
    tokens: int
    options: dict[str, Any] = field(default_factory=dict)


def write_random(path: Path) -> Path:
    """4.9 million weights and a vocabulary of 512; the tokenizer of examples/stories serves."""
    rng = np.random.default_rng(3)
    path.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 512,
        "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6,
        "num_attention_heads": 8, "num_key_value_heads": 4, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 256, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).write_bytes((ROOT / "examples/stories" / name).read_bytes())
    sizes = parse_config(config)
    tensors = {
        f"{name}.weight": (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
        for name, shape in matrix_shapes(sizes).items()
    }
    for name, shape in norm_shapes(sizes).items():
        tensors[f"{name}.weight"] = np.ones(shape, np.float32)
    save_file(tensors, path / "model.safetensors")
    return path


def in_flash(model: Path, options: dict[str, Any]) -> None:
    """Makes siracusa a chip with the least L2, to 1 KiB, with which the model fits without weight memory."""
    low, high = 0, SIRACUSA.l2
    while high - low > KIB:
        middle = (low + high) // 2
        TARGETS["siracusa"] = SIRACUSA.with_room(wmem=0, l2=middle)
        low, high = (low, middle) if shrinkc.plan(model, **options).fits else (middle, high)
    TARGETS["siracusa"] = SIRACUSA.with_room(wmem=0, l2=high)


def measure(row: Row, out: Path) -> list[str]:
    """A line of the table per kind of figure: cycles per token, tokens per pass, drafted tokens accepted."""
    TARGETS["siracusa"] = SIRACUSA
    if row.flash:
        in_flash(row.model, row.options)
    made = shrinkc.compile(row.model, out, **row.options, force=True)
    flash = sum(size for _, _, size in pieces_in(made.prepared.plan.placements, "flash"))
    assert row.flash == (flash > 0.9 * made.prepared.weight_bytes), flash
    cycles, each, accepted = [], [], []
    plain: list[int] | None = None
    compared = 0
    for lookup in DRAFTS:
        run = shrinkc.run(
            out,
            on="gvsoc",
            prompt=" ".join([SENTENCES] * 3),
            tokens=row.tokens,
            ignore_eos=True,
            lookup=lookup,
        )
        assert run.verdict is not None and run.verdict.ok
        assert plain in (None, run.new_tokens)
        plain = run.new_tokens
        compared += run.verdict.compared
        cycles.append(sum(run.record.decode_times) / (row.tokens - 1))
        drafts = run.drafts
        each.append(f"{drafts.tokens_per_pass:.2f}" if drafts else "1")
        accepted.append(f"{drafts.accepted} of {drafts.drafted}" if drafts else "")
    least = min(cycles)
    shown = [f"**{c:,.0f}**" if c == least else f"{c:,.0f}" for c in cycles]
    return [
        f"| {row.label} | cycles per token | {' | '.join(shown)} | {cycles[0] / least:.2f} | {compared:,} |",
        f"| | tokens per pass | {' | '.join(each)} | | |",
        f"| | drafted tokens accepted | {' | '.join(accepted)} | | |",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, help="where to compile (default: a temporary folder)")
    parser.add_argument("--output", type=Path, help="write the table there as well")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        stories, random = ROOT / "examples/stories", work / "random"
        if not random.exists():
            write_random(random)
        narrow = {"bits": 4, "group": 32, "asymmetric": True, "context": 128}
        rows = [
            Row("examples/stories, 8 bit, in weight memory", stories, False, 100),
            Row("examples/stories, 8 bit, in flash", stories, True, 100),
            Row("5 M random weights, 4 bit, groups of 32, in flash", random, True, 40, narrow),
        ]
        heads = ["off", *(f"N = {n}" for n in DRAFTS[1:])]
        lines = [
            f"| model | | {' | '.join(heads)} | best, times | values compared |",
            "|---|---|" + "---|" * (len(heads) + 2),
        ]
        for i, row in enumerate(rows):
            lines += measure(row, work / f"out-{i}")
            print("\n".join(lines[-3:]), file=sys.stderr, flush=True)
    text = "\n".join(lines) + "\n"
    print(text)
    if args.output:
        head = (
            "# Prompt lookup on GVSoC\n\n"
            f"`python examples/bench/lookup.py --output docs/results/lookup.md`, {date.today().isoformat()}, shrinkc "
            f'on {platform.machine()}, GVSoC target `siracusa`. Greedy text that goes on from "{SENTENCES}", said '
            "three times. Cluster cycles of the decode passes per token that they gave, drafting, head and sampling "
            "included; every integer of every run was compared with the interpreter's plain decoding, 0 "
            "mismatches.\n\n"
        )
        args.output.write_text(head + text)


if __name__ == "__main__":
    main()
