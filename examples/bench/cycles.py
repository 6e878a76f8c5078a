"""Cycle counts on GVSoC: decode at some positions, and prefill.

    python examples/bench/cycles.py [--data DIR] [--work DIR] [--output docs/results/cycles.md]

Models: ``examples/stories``; stories260K, converted from DIR/stories260K, where DIR is given; and
"microLlama", the shape of the published peer benchmark (8 layers, width 64, 16 heads of 4, gated
FFN of 256, random weights) with an embedding and a head of 512 tokens that the peer does not have,
compiled for 64 positions and for 256.
A step is measured behind a prompt of its position's length, because the simulator takes a second for about
10,000 cycles of N-EUREKA.  Every run is verified against the interpreter; one that differs ends the benchmark.
"""

from __future__ import annotations

import argparse
import json
import platform
import runpy
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from changes import write_page
from safetensors.numpy import save_file

from shrinkc.importer import parse_config
from shrinkc.model import matrix_shapes, norm_shapes

ROOT = Path(__file__).resolve().parents[2]
FIRST, LAST = 1, 62  # positions of decode steps
PREFILL = LAST - 1  # tokens of the prompt before the last one
LONG, AT = 256, (1, 64, 128, 248)
WIDTHS: dict[str, list[str]] = {
    "8 bit": [],
    "8 bit, cores alone": ["--engines", "cores"],
    "4 bit, groups of 32": ["--bits", "4", "--group", "32", "--short-last-group"],
    "4 bit": ["--bits", "4"],
    "2 bit": ["--bits", "2"],
}


def shrinkc(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "shrinkc", *words], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"shrinkc {' '.join(words)}\n{done.stderr}")
    return done.stdout


def write_micro_llama(path: Path) -> Path:
    """The peer's shape with seeded random weights."""
    return write_llama(path, hidden=64, ffn=256, heads=16, kv_heads=16, head_dim=4, layers=8)


def write_llama(
    path: Path, *, hidden: int, ffn: int, heads: int, kv_heads: int, head_dim: int, layers: int,
    vocab: int = 512,
) -> Path:  # fmt: skip
    """A model with seeded random weights; the tokenizer of examples/stories serves."""
    rng = np.random.default_rng(1)
    path.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab,
        "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 1024, "rope_theta": 10000.0,
        "hidden_act": "silu", "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).write_bytes((ROOT / "examples/stories" / name).read_bytes())

    def weight(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    sizes = parse_config(config)
    tensors = {f"{name}.weight": weight(*shape) for name, shape in matrix_shapes(sizes).items()}
    for name, shape in norm_shapes(sizes).items():
        tensors[f"{name}.weight"] = np.ones(shape, np.float32)
    save_file(tensors, path / "model.safetensors")
    return path


def measure(model: Path, out: Path, context: int, options: list[str]) -> dict[str, float]:
    """Cycles of one model at one context; every integer verified."""
    shrinkc(
        "compile",
        str(model),
        "--target",
        "siracusa",
        "-o",
        str(out),
        "--context",
        str(context),
        *options,
    )
    first, last = step_at(out, FIRST), step_at(out, LAST)
    return {
        "first": first["cycles"]["decode"][-1],
        "last": last["cycles"]["decode"][-1],
        "prefill": last["cycles"]["prefill"] / PREFILL,
        "compared": sum(r["verdict"]["compared"] for r in (first, last)),
    }


def run(out: Path, prompt: int, tokens: int) -> dict[str, Any]:
    """The JSON of a verified run behind a prompt of that many tokens."""
    ids = ",".join(map(str, [1, *(259 + i % 200 for i in range(prompt - 1))]))
    found: dict[str, Any] = json.loads(
        shrinkc(
            "run", str(out), "--on", "gvsoc", "--ignore-eos", "--json", "--prompt-ids", ids,
            "--tokens", str(tokens),
        )
    )  # fmt: skip
    verdict = found["verdict"]
    assert verdict["mismatched"] == 0 and verdict["compared"] > 0, verdict
    return found


def step_at(out: Path, position: int) -> dict[str, Any]:
    """A run whose last decode step is that of ``position``, counted from 0: the second one where there can be
    two, because the first makes what the engine's jobs have in common."""
    return run(out, max(1, position - 1), 3 if position > 1 else 2)


def measure_long(model: Path, out: Path) -> list[str]:
    """A table: decode steps in a long context, 8 bit; every integer verified."""
    shrinkc(
        "compile", str(model), "--target", "siracusa", "-o", str(out), "--context", str(LONG), "--force",
    )  # fmt: skip
    runs = [step_at(out, at) for at in AT]
    steps = [r["cycles"]["decode"][-1] for r in runs]
    compared = sum(r["verdict"]["compared"] for r in runs)
    each = (steps[-1] - steps[1]) / (AT[-1] - AT[1])
    head = " | ".join(f"position {at}" for at in AT)
    row = " | ".join(f"{step:,.0f}" for step in steps)
    return [
        f"| microLlama shape, random, 8 bit, compiled for {LONG} | {head} | each cached token | values compared |",
        "|---|" + "---|" * (len(AT) + 2),
        f"| decode | {row} | {each:,.0f} | {compared:,} |",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder that holds stories260K/")
    parser.add_argument("--work", type=Path, help="where to compile (default: a temporary folder)")
    parser.add_argument("--output", type=Path, help="write the table there as well")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        models: list[tuple[str, Path]] = [("examples/stories", ROOT / "examples/stories")]
        if args.data:
            source, converted = args.data / "stories260K", work / "stories260K"
            if not converted.exists():
                convert = runpy.run_path(str(ROOT / "examples/convert_llama2c.py"))["convert"]
                convert(source / "stories260K.bin", source / "tok512.bin", converted)
            models.append(("stories260K", converted))
        micro = work / "microllama"
        models.append(
            ("microLlama shape, random", micro if micro.exists() else write_micro_llama(micro))
        )
        lines = [
            f"| model | weights | context | decode, position {FIRST} | decode, position {LAST} | "
            f"prefill of {PREFILL}, per token | values compared |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, path in models:
            for label, options in WIDTHS.items():
                out = work / f"out-{path.name}-{list(WIDTHS).index(label)}"
                m = measure(path, out, 64, [*options, "--force"])
                lines.append(
                    f"| {name} | {label} | 64 | {m['first']:,.0f} | {m['last']:,.0f} | "
                    f"{m['prefill']:,.0f} | {m['compared']:,} |"
                )
                print(lines[-1], file=sys.stderr, flush=True)
        lines += ["", *measure_long(micro, work / "out-long")]
    text = "\n".join(lines) + "\n"
    print(text)
    if args.output:
        head = (
            "# Cycles on GVSoC\n\n"
            f"`make bench`, {date.today().isoformat()}, shrinkc on {platform.machine()}, GVSoC target `siracusa` "
            "(gvsoc edfcd83, core ac27d00, pulp 9968c4e), stock riscv64-unknown-elf-gcc, -O2. Cluster cycles per "
            "token, head and greedy sampling included, tracing excluded; every integer of every run was compared "
            "with the interpreter, 0 mismatches.\n\n"
        )
        write_page(args.output, head + text)


if __name__ == "__main__":
    main()
