"""Compress a model by the reference work's recipe and by pruning with training, trained on the same text.

    python examples/bench/compression.py MODEL --data DATA --runs RUNS [--only NAME]...

DATA holds wikitext2/, triviaqa/ and hellaswag/.  Every configuration below becomes a run of ``shrinkc compress`` in
RUNS/NAME; complete runs are only checked, interrupted ones resume.  Some steps of a run become rows of
docs/results/data/compression_reference.json, which is written when all configurations are complete.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import figures

COMMON = """\
[run]
seed = 0
threads = 1

[calibration]
text = ["{data}/wikitext2/wiki.valid.tokens"]
samples = {samples}
length = 512

[evaluate]
text = "{data}/wikitext2/wiki.test.raw"
windows = 64
tasks = [
    "triviaqa={data}/triviaqa/triviaqa_1000.jsonl", "hellaswag={data}/hellaswag/hellaswag_val_full.txt.bz2",
]
items = 100
dtype = "bfloat16"

"""
# The reference work's stages.  Its group size of 128 does not divide the 576 inputs of SmolLM2, and its 8,192 samples
# of LoRA take days on a CPU.
DEPTH = """\
[depth]
method = "perplexity"
remove = 4
protect_first = 4
protect_last = 2

"""
ZEROS = """\
[width]
method = "n:m"
n = 1
m = 8

"""
LORA = """\
[lora]
rank = 8
alpha = 16.0
dropout = 0.1
targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
samples = 128
batch = 4
learning_rate = 5e-4

"""
# as much text as ``small``, so that only the methods differ
LORA_LONG = LORA.replace("samples = 128", "epochs = 1")
GPTQ_EORA = """\
[gptq]
bits = 4
group_size = 64
sym = true
mse = 0
gptaq = 0

[eora]
rank = 32

"""
# Fewer FFN channels, LoRA, 4 bits with GPTQ as first published, and scale fine-tuning, trained on
# WikiText-2.
SMALL = """\
[width]
method = "structured"
ffn_keep = 1280

[lora]
rank = 32
alpha = 32.0
dropout = 0.0
targets = ["all"]
epochs = 1
batch = 4
learning_rate = 8e-4
train_norms = true

[gptq]
bits = 4
group_size = 64
sym = false
mse = 0
gptaq = 0
embeddings = { bits = 4, group_size = 64 }

[finetune_scales]
samples = 256
batch = 4
learning_rate = 2e-3
"""
CONFIGURATIONS = {
    "depth-4": DEPTH + LORA + GPTQ_EORA,
    "zeros-1-8": ZEROS + LORA + GPTQ_EORA,
    "zeros-1-8-long": ZEROS + LORA_LONG + GPTQ_EORA,
    "small": SMALL,
}
QUANTISED = "LoRA, 4 bit group size 64, embedding 16 bit"
# id, configuration, stage after which it is measured, recipe, training text, label in the picture
ROWS = (
    ("original", "zeros-1-8", "source", "original", None, "original"),
    ("reference", "zeros-1-8", "gptq", f"reference: 1:8 zeros, {QUANTISED}", "128 windows", "1:8 zeros"),
    ("reference_eora", "zeros-1-8", "eora", f"reference: 1:8 zeros, {QUANTISED}, EoRA", "128 windows",
     "1:8 zeros, EoRA"),
    ("reference_long", "zeros-1-8-long", "gptq", f"reference: 1:8 zeros, {QUANTISED}", "whole text",
     "1:8 zeros, whole text"),
    ("reference_long_eora", "zeros-1-8-long", "eora", f"reference: 1:8 zeros, {QUANTISED}, EoRA", "whole text",
     "1:8 zeros, whole text, EoRA"),
    ("reference_depth4", "depth-4", "gptq", f"reference: 4 of 30 layers removed, {QUANTISED}", "128 windows",
     "4 layers removed"),
    ("small", "small", "finetune_scales",
     "pruned and trained: FFN 1280, LoRA, 4 bit asymmetric group size 64, embedding 4 bit, scale fine-tuning",
     "whole text", "small"),
)  # fmt: skip
COLUMNS = {
    "recipe": "Recipe", "training": "LoRA training text", "megabytes": "Packed size, MB", "share": "of bf16",
    "perplexity": "Perplexity, WikiText-2", "ratio": "Ratio to original", "hellaswag": "HellaSwag, acc_norm",
    "triviaqa": "TriviaQA, closed book",
}  # fmt: skip


def compress(model: str, data: Path, runs: Path, name: str) -> None:
    """One configuration, in RUNS/NAME; an existing run is checked and resumed."""
    recipe = runs / f"{name}.toml"
    recipe.parent.mkdir(parents=True, exist_ok=True)
    common = COMMON.format(data=data.resolve(), samples=32 if name == "small" else 16)
    recipe.write_text(common + CONFIGURATIONS[name], encoding="utf-8")
    print(f"---- {name} ----", flush=True)
    # the shrinkc of this environment, whose libraries decide the figures
    program = Path(sys.executable).with_name("shrinkc")
    command = [str(program), "compress", model, "-o", str(runs / name), "--recipe", str(recipe)]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def step_of(run: Path, stage: str) -> dict[str, Any]:
    """Bytes and metrics of the step of that stage."""
    records = sorted(run.glob("[0-9][0-9]-*/step.json"))
    steps = json.loads((run / "run.json").read_text())["steps"]
    for step, record in zip(steps, records, strict=True):
        if json.loads(record.read_text())["stage"] == stage:
            return dict(step)
    raise SystemExit(f"{run} has no step {stage}")


def rows(runs: Path) -> list[figures.Row]:
    """The rows of the data file."""
    out: list[figures.Row] = []
    for name, configuration, stage, recipe, training, label in ROWS:
        step = step_of(runs / configuration, stage)
        out.append({
            "id": name, "label": label, "recipe": recipe, "training": training,
            "megabytes": round(step["packed_bytes"] / 1e6, 3), "share": round(100 * step["share"], 2),
            "perplexity": round(step["perplexity"], 4),
            "hellaswag": round(100 * step["tasks"]["hellaswag acc_norm"], 1),
            "triviaqa": round(100 * step["tasks"]["triviaqa contains"], 1),
        })  # fmt: skip
    for row in out:
        row["ratio"] = round(row["perplexity"] / out[0]["perplexity"], 4)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True, help="where the runs are kept")
    parser.add_argument(
        "--only",
        action="append",
        choices=list(CONFIGURATIONS),
        help="run no others, write no figures",
    )
    arguments = parser.parse_args()
    for name in arguments.only or CONFIGURATIONS:
        compress(arguments.model, arguments.data, arguments.runs, name)
    if not arguments.only:
        figures.write(
            "compression_reference",
            title="The reference work's recipe and pruning with training, all trained on the WikiText-2 "
            "validation text; 64 windows of 512 tokens.",
            command="python examples/bench/compression.py", columns=COLUMNS, rows=rows(arguments.runs),
            formats={
                "megabytes": "{:.1f}", "share": "{:.1f} %", "perplexity": "{:.2f}", "ratio": "{:.2f}",
                "hellaswag": "{:.0f} %", "triviaqa": "{:.0f} %",
            },
        )  # fmt: skip


if __name__ == "__main__":
    main()
