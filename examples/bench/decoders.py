"""Weight codes decoded on GVSoC: bits and cycles per weight of each, into docs/results/data/weight_codes.json.

    python examples/bench/decoders.py --smollm2 FILE [--work DIR] [--only ID ...]

The matrix is gate of layer 15 of SmolLM2-135M-Instruct; the codes are made for the matrices of layers 2, 15 and 27.
The program (weight_codes/bench.c) multiplies it by a vector: a tile in L1, all tiles from L2 by DMA, all from flash.
Every sum is compared with NumPy's; one that differs ends the benchmark.  The formats of shrinkc are measured by the
profile of a compiled layer of that shape, in the operation that multiplies gate and up.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import figures
import models
import numpy as np
import prefix_codes as codes
from prefix_codes import CODEBOOK, KERNELS, QUADS, ROW_FOUR, ROW_PAIRS, ROW_THREE, Ints, JointCode

from shrinkc.build.tools import gvsoc_environment, require_tool
from shrinkc.importer import load_model
from shrinkc.importer.model import QuantizedWeight

HERE = Path(__file__).resolve().parent / "weight_codes"
RUNTIME = figures.ROOT / "runtime_c"
LAYERS, MEASURED = (2, 15, 27), 15
MATRICES = ("wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down")
STEP = 1.8  # standard deviation of a matrix in steps: 2.9 bits of entropy
COARSE = 1.1
CORES = 8
TILE_BLOCKS = 16
SAMPLES, ROUNDS = 1 << 17, 8  # of the codebook's k-means
COLUMNS = {
    "what": "Weights are stored as", "table_bytes": "Table in L1, bytes", "bits": "Bits per weight",
    "equal": "Bits at equal squared error", "l1": "Cycles, from L1", "l2": "Cycles, from L2 or weight memory",
    "flash": "Cycles, from flash", "instructions": "Instructions", "icache": "Waits for instructions",
    "corrected": "Weights with a correction", "compared": "Values checked",
}  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """A way to store weights.  ``deviation``: standard deviation of a matrix in steps."""

    id: str
    what: str
    method: int
    size: int
    bits: int
    deviation: float = STEP


CANDIDATES = (
    Candidate("single_12", "prefix code of one, index of 12 bits, 2 per load", ROW_PAIRS, 1, 12),
    Candidate("single_8", "prefix code of one, index of 8 bits, 3 per load", ROW_THREE, 1, 8),
    Candidate("single_7", "prefix code of one, index of 7 bits, 4 per load", ROW_FOUR, 1, 7),
    Candidate("pair_10", "joint code of two, index of 10 bits, 2 per load", ROW_PAIRS, 2, 10),
    Candidate("pair_9", "joint code of two, index of 9 bits, 3 per load", ROW_THREE, 2, 9),
    Candidate("triple_12", "joint code of three, index of 12 bits, 2 per load", ROW_PAIRS, 3, 12),
    Candidate("triple_11", "joint code of three, index of 11 bits, 2 per load", ROW_PAIRS, 3, 11),
    Candidate("triple_10", "joint code of three, index of 10 bits, 2 per load", ROW_PAIRS, 3, 10),
    Candidate("quad_12", "joint code of four, index of 12 bits, 2 per load", QUADS, 4, 12),
    Candidate("codebook", "codebook of four, fixed index of 12 bits", CODEBOOK, 4, 12, 16),
    Candidate("triple_12_coarse", "joint code of three, coarse steps", ROW_PAIRS, 3, 12, COARSE),
    Candidate("quad_12_coarse", "joint code of four, coarse steps", QUADS, 4, 12, COARSE),
)
GROUPED = ((4, 64), (4, 32), (3, 64), (3, 32), (2, 32))  # bits and group size
REFERENCE = "w3_g32"  # whose squared error the others are compared at
OPTIONS = (
    "-march=rv32imc_zicsr", "-mabi=ilp32", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding",
    "-fno-pic", "-falign-loops=4", "-fno-tree-loop-distribute-patterns", "-nostdlib", "-static",
    "-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections", "-Wl,--no-warn-rwx-segments",
    "-Wl,--build-id=none", "-Wl,--defsym=SC_CL_STACK=1040", "-Wl,--defsym=SC_CODE=16384",
    "-Wl,--defsym=SC_CODE_IN_WMEM=1", "-Wl,--defsym=SC_CODE_IN_L2=0", "-DSC_RAM_BYTES=0",
    "-DSC_HAS_WMEM=1", "-DSC_HAS_FLASH=1",
)  # fmt: skip
HEADERS = ("include", "program", "platform/pulp", "platform/siracusa")


@cache
def matrices(file: Path) -> dict[tuple[int, str], Ints]:
    """float32 matrices of :data:`LAYERS`, by layer and name."""
    model = load_model(file)
    return {(at, n): floats(getattr(model.layers[at], n)) for at in LAYERS for n in MATRICES}


def floats(w: Ints | QuantizedWeight) -> Ints:
    if not isinstance(w, QuantizedWeight):
        return np.asarray(w, np.float32)
    n, k = w.q.shape
    parts = w.q.reshape(n, -1, w.group).astype(np.float32)
    return (parts * w.scale[..., None] + w.offset[..., None]).reshape(n, k)


def entropy(q: Ints) -> float:
    """Bits per integer, if each is coded alone and perfectly."""
    counts = np.unique(q, return_counts=True)[1] / q.size
    return float(-(counts * np.log2(counts)).sum())


def samples(every: Sequence[Ints], size: int, seed: int = 0) -> Ints:
    """Tuples of ``size`` weights [n, size], from all matrices, each divided by its standard deviation."""
    t = np.concatenate([codes.tuples(w / w.std(), size).reshape(-1, size) for w in every])
    return t[np.random.default_rng(seed).choice(len(t), SAMPLES, replace=False)]


def codebook(t: Ints) -> JointCode:
    """4,096 centres of ``t`` [n, 4] by k-means, as int8."""
    t = t.astype(np.float32)
    centres = t[:4096].copy()
    for _ in range(ROUNDS):
        nearest = assigned(t, centres)
        counts = np.bincount(nearest, minlength=len(centres))
        for j in range(4):
            sums = np.bincount(nearest, t[:, j], len(centres))
            centres[:, j] = np.where(counts > 0, sums / np.maximum(counts, 1), centres[:, j])
    error = float(((t - centres[assigned(t, centres)]) ** 2).mean())
    values = np.unique(codes.keys(np.rint(centres).clip(-127, 127).astype(np.int64)))
    return JointCode(
        CODEBOOK, 12, codes.of_keys(values, 4), np.full(len(values), 12), 2 * np.log(2) * error
    )


def assigned(t: Ints, centres: Ints) -> Ints:
    """Index of the nearest centre for each of ``t`` [n, 4]."""
    norms = (centres**2).sum(1) / 2
    parts = np.array_split(t, max(1, len(t) // 4096))
    return np.concatenate([(part @ centres.T - norms).argmax(1) for part in parts])


@dataclass(frozen=True)
class Prepared:
    """A coded matrix with its input and the sums to expect."""

    code: JointCode
    coded: codes.Coded
    error: float  # mean square, relative to the variance of the weights
    x: Ints
    sums: Ints
    file: bytes


def prepare(c: Candidate, file: Path) -> Prepared:
    every = matrices(file)
    w = every[MEASURED, "w_gate"]
    t = c.deviation * samples(list(every.values()), c.size)
    code = codebook(t) if c.method == CODEBOOK else JointCode.of(t, c.method, c.bits)
    coded = codes.encode(w * (c.deviation / w.std()), code, TILE_BLOCKS)
    x = np.random.default_rng(1).integers(-127, 128, w.shape[1])
    written = codes.file_of(coded, code, len(w), x, TILE_BLOCKS)
    error = float(((coded.q * (w.std() / c.deviation) - w) ** 2).mean() / w.var())
    return Prepared(code, coded, error, x, coded.q @ x, written)


def build(method: int, data: Path, out: Path, *, flash: bool) -> None:
    """The program of one kernel for Siracusa."""
    defines = [
        f"-DWC_METHOD={KERNELS[method]}",
        f"-DWC_FROM_FLASH={int(flash)}",
        f'-DWC_DATA="{data}"',
    ]
    platform = RUNTIME / "platform"
    sources = [
        HERE / "bench.c", HERE / "data.S", *(platform / "pulp" / name for name in ("crt0.S", "start.c", "port.c")),
        *sorted((platform / "freestanding").glob("*.c")),
    ]  # fmt: skip
    script = figures.ROOT / "toolchain" / "siracusa" / "link.ld"
    command = [
        "riscv64-unknown-elf-gcc",
        *OPTIONS,
        *defines,
        *(f"-I{RUNTIME / name}" for name in HEADERS),
    ]
    subprocess.run(
        [*command, "-T", str(script), *map(str, sources), "-lgcc", "-o", str(out)], check=True
    )


def run(program: Path, work: Path, flash: Path | None) -> dict[str, list[int]]:
    """Printed values of a run on GVSoC by name."""
    launcher = require_tool("gvsoc", os.environ, "siracusa")
    with tempfile.TemporaryDirectory(dir=work) as folder:
        options = ["--target=siracusa", f"--work-dir={folder}", f"--binary={program}"]
        if flash is not None:
            options.append(f"--config-opt=**/hyperflash/content/image={flash}")
        done = subprocess.run(
            [str(launcher), *options, "run"],
            env=gvsoc_environment(launcher, os.environ), capture_output=True, text=True, check=False,
        )  # fmt: skip
    found: dict[str, list[int]] = {}
    for line in done.stdout.splitlines():
        name, _, value = line.partition(" ")
        if value.removeprefix("-").isdigit():
            found.setdefault(name, []).append(int(value))
    if done.returncode or found.get("error") != [0]:
        raise SystemExit(
            f"{program.name}: status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        )
    return found


def measure(c: Candidate, file: Path, work: Path) -> figures.Row:
    """The row of a candidate: bits, error and cycles per weight of a core."""
    p = prepare(c, file)
    data, image = (work / f"{c.id}.{kind}" for kind in ("bin", "flash"))
    data.write_bytes(p.file)
    image.write_bytes(b"".join(p.coded.tiles) + bytes(64))
    row: figures.Row = {
        "id": c.id, "what": c.what, "table_bytes": p.code.table_bytes, "bits": p.coded.bits_per_weight,
        "error": p.error, "entropy": entropy(p.coded.q), "corrected": 100 * p.coded.corrected,
        "words": len(p.code.lengths), "compared": 0,
    }  # fmt: skip
    tile = codes.ROWS * TILE_BLOCKS * len(p.x)  # weights
    counted = {"l1": tile, "l2": p.coded.q.size, "flash": p.coded.q.size - tile}
    counted |= dict.fromkeys(("active", "instructions", "load_stalls", "icache"), tile)
    for flash in (True, False):
        program = work / f"{c.id}.elf"
        build(c.method, data, program, flash=flash)
        found = run(program, work, image if flash else None)
        sums = np.array(found["y"])
        if len(sums) != len(p.sums) or not (sums == p.sums).all():
            raise SystemExit(f"{c.id}: {(sums != p.sums).sum()} of {len(p.sums)} sums differ")
        row["compared"] += len(sums)
        row |= {
            name: CORES * found[name][0] / weights
            for name, weights in counted.items()
            if name in found
        }
    return row


def shrinkc(*words: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "shrinkc", *words], capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout))


def measure_groups(bits: int, group: int, file: Path, work: Path) -> figures.Row:
    """The row of a format of shrinkc: integers of ``bits`` bits, with a scale and a zero point for each group."""
    import torch

    from shrinkc.compression.gptq import Weighting, quantize_matrix

    w = matrices(file)[MEASURED, "w_gate"]
    weighting = Weighting.of(torch.eye(w.shape[1]))
    q = quantize_matrix(torch.from_numpy(w), weighting, bits=bits, group_size=group, points=True)
    model = models.model_of("smollm2-layer", work / "models", {})
    out = str(work / f"w{bits}_g{group}")
    shape = (
        "--bits",
        str(bits),
        "--group-size",
        str(group),
        "--context",
        "64",
        "--engines",
        "cores",
    )
    shrinkc("compile", str(model), "-o", out, "--force", "--json", *shape)
    found = shrinkc(
        "run",
        out,
        "--on",
        "gvsoc",
        "--prompt-ids",
        "1,5",
        "--ignore-eos",
        "--tokens",
        "4",
        "--profile",
        "--json",
    )
    if found["verdict"]["mismatched"]:
        raise SystemExit(f"{out}: {found['verdict']}")
    (cycles,) = (
        each["cycles"] for each in found["profile"]["decode"]["layers"] if each["op"] == "h"
    )
    return {
        "id": f"w{bits}_g{group}", "what": f"{bits} bits, group size {group}", "table_bytes": 0,
        "bits": bits + 12 / group, "error": float(((floats(q) - w) ** 2).mean() / w.var()),
        "l2": CORES * cycles / (2 * w.size), "compared": found["verdict"]["compared"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--smollm2", type=Path, required=True, metavar="FILE", help="SmolLM2-135M-Instruct as GGUF"
    )
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep data and programs there")
    parser.add_argument("--only", nargs="+", metavar="ID", help="measure these, and write nothing")
    args = parser.parse_args()
    rows: list[figures.Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        for c in CANDIDATES:
            if not args.only or c.id in args.only:
                rows.append(measure(c, args.smollm2, work))
                print(rows[-1], file=sys.stderr, flush=True)
        if args.only:
            return
        rows += [measure_groups(bits, group, args.smollm2, work) for bits, group in GROUPED]
    (reference,) = (row["error"] for row in rows if row["id"] == REFERENCE)
    for row in rows:
        row["equal"] = row["bits"] + float(np.log2(row["error"] / reference)) / 2
    two = dict.fromkeys(("bits", "equal", "l1", "l2", "flash", "instructions", "icache"), "{:.2f}")
    figures.write(
        "weight_codes", title="Weight codes", command="python examples/bench/decoders.py --smollm2 FILE",
        columns=COLUMNS, rows=rows, machine=figures.GVSOC, formats={**two, "corrected": "{:.2f} %"},
    )  # fmt: skip


if __name__ == "__main__":
    main()
