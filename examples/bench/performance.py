"""Speed on GVSoC against what was set as a bar and what others publish: docs/results/performance.md.

    python examples/bench/performance.py [--data DIR] [--work DIR] [--output docs/results/performance.md]

A row is a figure of one program: its command is printed with it, every integer of every run is verified
against the interpreter, and one that differs ends the benchmark.  Rows about stories260K need DIR/stories260K.
Peers' figures are those of Deeploy at bf64cfae, in its documents ("published") and of its generated code rebuilt
with stock GCC 14.2 on the same simulator ("re-run").
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from calibrate import SIMULATOR
from changes import write_page
from cycles import ROOT, shrinkc, write_llama, write_micro_llama

from shrinkc.core.shell import quoted
from shrinkc.costs import cost_table
from shrinkc.importer import parse_config
from shrinkc.model import matrix_shapes

PAGE = ROOT / "docs" / "results" / "performance.md"
GAINS = Path(__file__).with_name(
    "gains.md"
)  # a kept text: what made it faster, of the commits that did
SMOLLM2 = {"hidden": 576, "ffn": 1536, "heads": 9, "kv_heads": 3, "head_dim": 64, "layers": 1}


@dataclass(frozen=True)
class Program:
    """A model, how it is compiled, and its run: ``prompt`` tokens and ``steps`` of decode behind them, the last
    of which is that of position ``prompt + steps - 1``.  ``profile``: operations are timed too."""

    model: str
    context: int
    options: tuple[str, ...] = ()
    prompt: int = 1
    steps: int = 2  # the first makes what the engine's jobs have in common
    profile: bool = False

    @property
    def name(self) -> str:
        return "-".join([self.model, str(self.context), *self.options]).replace("--", "")

    def command(self, model: str, out: str) -> tuple[list[str], list[str]]:
        """(of the compilation, of the run), without ``shrinkc``."""
        compiled = ["compile", model, "--target", "siracusa", "--context", str(self.context)]
        compiled += [*self.options, "-o", out]
        ids = [1, *(259 + i % 200 for i in range(self.prompt - 1))]
        run = ["run", out, "--on", "gvsoc", "--prompt-ids", ",".join(map(str, ids))]
        run += [
            "--tokens",
            str(self.steps + 1),
            "--ignore-eos",
            "--json",
            *(["--profile"] * self.profile),
        ]
        return compiled, run


Measure = Callable[[list[dict[str, Any]], list[dict[str, Any]]], float]
"""Of the runs of a row's programs, and their models' configurations, the figure."""


@dataclass(frozen=True)
class Row:
    """One figure.  ``least``: more is better, of the figure and of ``bar`` and ``aim``."""

    what: str
    programs: tuple[Program, ...]
    measure: Measure
    bar: float
    aim: float
    published: str = ""
    again: str = ""
    least: bool = False
    digits: int = 0
    needs: tuple[str, ...] = field(default=())

    def cells(self, value: float) -> list[str]:
        """Of the table, the command left out."""

        def shown(v: float) -> str:
            return f"{v:,.{self.digits}f}"

        sign = "≥" if self.least else "≤"
        met = value >= self.bar if self.least else value <= self.bar
        limits = [f"{sign} {shown(self.bar)}", shown(self.aim)]
        return [self.what, f"**{shown(value)}**", *limits, "yes" if met else "no", self.published or "–",
                self.again or "–"]  # fmt: skip


def decode(runs: list[dict[str, Any]], configs: list[dict[str, Any]]) -> float:
    return float(runs[0]["cycles"]["decode"][-1])


def each_cached(runs: list[dict[str, Any]], configs: list[dict[str, Any]]) -> float:
    """Of two runs, the second behind more tokens."""
    first, last = (run["cycles"]["decode"][-1] for run in runs)
    return float(last - first) / (len(runs[1]["prompt_tokens"]) - len(runs[0]["prompt_tokens"]))


def prefill(runs: list[dict[str, Any]], configs: list[dict[str, Any]]) -> float:
    return float(runs[0]["cycles"]["prefill"])


def ratio(runs: list[dict[str, Any]], configs: list[dict[str, Any]]) -> float:
    """The first program's decode step against the second's."""
    first, second = (float(run["cycles"]["decode"][-1]) for run in runs)
    return first / second


def least(runs: list[dict[str, Any]], configs: list[dict[str, Any]]) -> float:
    """The fastest program's decode step."""
    return min(float(r["cycles"]["decode"][-1]) for r in runs)


def layer_macs(phase: str) -> Measure:
    """Products of weights and of attention in all layers, per cycle that these take, of a profile."""

    def measure(runs: list[dict[str, Any]], configs: list[dict[str, Any]]) -> float:
        run, config = runs[0], parse_config(configs[0])
        first, new = len(run["prompt_tokens"]), len(run["new_tokens"])
        positions = range(first) if phase == "prefill" else range(first, first + new - 1)
        steps = 1 if phase == "prefill" else len(positions)
        inner = {n: s for n, s in matrix_shapes(config).items() if ".layers." in n}
        weights = sum(rows * inputs for rows, inputs in inner.values()) * len(positions)
        heads = config.num_layers * config.num_heads * config.head_dim
        attention = 2 * heads * sum(at + 1 for at in positions)
        cycles = sum(row["cycles"] for row in run["profile"][phase]["layers"])
        return (weights + attention) / steps / cycles

    return measure


LONG = {at: Program("microLlama", 256, prompt=at - 1) for at in (64, 248)}
STORIES = {
    bits: Program("examples/stories", 64, () if bits == 8 else ("--bits", str(bits)), 61)
    for bits in (8, 4, 2)
}
BEST = tuple(
    Program("stories260K", 64, options, 61)
    for options in (
        (),
        ("--bits", "4"),
        ("--bits", "2"),
        ("--bits", "4", "--group", "32", "--short-last-group"),
    )
)
ROWS = (
    Row("microLlama and a head of 512 tokens, 8 bit, compiled for 256: decode at position 64", (LONG[64],),
        decode, 100_000, 71_000, "780,000", "918,000"),
    Row("same, at position 248", (LONG[248],), decode, 180_000, 120_000, "", "1,990,000"),
    Row("same, each cached token", (LONG[64], LONG[248]), each_cached, 450, 300, "", "5,700"),
    Row("same, prefill of 64 tokens", (Program("microLlama", 256, prompt=64, steps=0),), prefill, 2_500_000,
        1_400_000, "28,300,000", "28,500,000"),
    Row("stories260K, decode at position 62, best of its formats", BEST, least, 50_000, 35_000,
        needs=("stories260K",)),
    Row("examples/stories, 8 bit, decode at position 62", (STORIES[8],), decode, 70_000, 50_000),
    Row("same, 4 bit against 8 bit", (STORIES[4], STORIES[8]), ratio, 1.0, 0.5, digits=2),
    Row("same, 2 bit against 4 bit", (STORIES[2], STORIES[4]), ratio, 1.0, 0.5, digits=2),
    Row("a layer of SmolLM2-135M's shape, 4 bit per row, decode at position 16: MAC per cycle",
        (Program("smollm2-layer", 128, ("--bits", "4"), 15, profile=True),), layer_macs("decode"), 35, 50,
        least=True, digits=1),
    Row("same layer, 8 bit, prefill of 36: MAC per cycle",
        (Program("smollm2-layer", 128, prompt=36, steps=0, profile=True),), layer_macs("prefill"), 150, 250,
        least=True, digits=1),
)  # fmt: skip


@dataclass
class Bench:
    """Models and what was measured of them, each program once."""

    work: Path
    data: Path | None
    done: dict[Program, dict[str, Any]] = field(default_factory=dict)

    def model(self, name: str) -> Path:
        """Its directory, made where it is not there."""
        path = self.work / "models" / name
        if name == "examples/stories":
            return ROOT / name
        if not path.exists():
            if name == "microLlama":
                write_micro_llama(path)
            elif name == "smollm2-layer":
                write_llama(path, **SMOLLM2)
            else:
                assert self.data is not None
                source = self.data / name
                shrinkc(
                    "convert",
                    str(source / f"{name}.bin"),
                    str(source / "tok512.bin"),
                    "-o",
                    str(path),
                )
        return path

    def run(self, program: Program) -> dict[str, Any]:
        """The JSON of its run, every integer of which was as it should be."""
        if program not in self.done:
            out = self.work / "out" / program.name
            compiled, run = program.command(str(self.model(program.model)), str(out))
            shrinkc(*compiled, "--force")
            found = json.loads(shrinkc(*run))
            verdict = found["verdict"]
            if verdict["mismatched"] or not verdict["compared"]:
                raise SystemExit(f"{program.name}: {verdict}")
            self.done[program] = found
        return self.done[program]

    def value(self, row: Row) -> float:
        runs = [self.run(program) for program in row.programs]
        configs = [
            json.loads((self.model(p.model) / "config.json").read_text()) for p in row.programs
        ]
        return row.measure(runs, configs)


def page(values: Sequence[tuple[Row, float]], compared: int) -> str:
    """The document; ``compared``: integers of all runs."""
    out = [
        "# Speed against the bars", "",
        f"`make bench`, {date.today().isoformat()}, {SIMULATOR}, stock riscv64-unknown-elf-gcc. Cycles unless a "
        f"row says otherwise; {compared:,} integers of these runs were compared with the interpreter's, 0 "
        "mismatched. Peers: Deeploy at bf64cfae, published and re-run on the same simulator; its microLlama has "
        "neither embedding nor head. The simulator has no latency of MRAM, L2 without limits for the DMA, and no "
        "priorities between memories' users.", "",
        "| what | measured | bar | aim | met | peer, published | peer, re-run |",
        "|---|---:|---:|---:|---|---:|---:|",
        *(f"| {' | '.join(row.cells(value))} |" for row, value in values),
        *_of_the_model(), "", *GAINS.read_text(encoding="utf-8").splitlines(), "", "## Commands", "",
    ]  # fmt: skip
    shown: dict[str, None] = {}
    for row, _ in values:
        for program in row.programs:
            for words in program.command(program.model, f"out/{program.name}"):
                shown[quoted("shrinkc", *words)] = None
    return "\n".join([*out, "<!-- no-run: needs gvsoc -->", "```console", *shown, "```"]) + "\n"


def _of_the_model() -> list[str]:
    """The row of the cost model, which ``make calibrate`` measures."""
    table = cost_table("siracusa")
    if table is None or not table.errors:
        return []
    worst = max(e.median for e in table.errors.values())
    met = "yes" if worst <= 0.15 else "no"
    return [
        f"| cost model, per op on shapes that were not calibrated, median error of the worst op, % | "
        f"**{100 * worst:.1f}** | ≤ 15.0 | 8.0 | {met} | – | – |"
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder that holds stories260K/")
    parser.add_argument("--work", type=Path, help="where to compile (default: a temporary folder)")
    parser.add_argument("--output", type=Path, help=f"e.g. {PAGE.relative_to(ROOT)}")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench((args.work or Path(scratch)).resolve(), args.data)
        values: list[tuple[Row, float]] = []
        for row in ROWS:
            if row.needs and args.data is None:
                print(f"left out, without --data: {row.what}", file=sys.stderr)
                continue
            values.append((row, bench.value(row)))
            print(" | ".join(row.cells(values[-1][1])), file=sys.stderr, flush=True)
        compared = sum(run["verdict"]["compared"] for run in bench.done.values())
        text = page(values, compared)
    print(text)
    if args.output:
        write_page(args.output, text)


if __name__ == "__main__":
    main()
