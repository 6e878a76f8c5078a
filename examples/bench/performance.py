"""Speed on GVSoC against what was set as a bar and what others publish: docs/results/performance.md.

    python examples/bench/performance.py [--data DIR] [--work DIR] [--output docs/results/performance.md]
    python examples/bench/performance.py --flash [--smollm2 FILE] [--work DIR] [--output docs/results/flash.md]

A row (bars.py) is a figure of one program: its command is printed with it, every integer of every run is verified
against the interpreter, and one that differs ends the benchmark.  Rows about stories260K need DIR/stories260K;
with --flash, those of models in flash, which take minutes each, and some of which need FILE.
"""

from __future__ import annotations

import argparse
import json
import runpy
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from bars import FLASH, LAYERS, LLAMA_LAYER, ROWS, SMOLLM2, Program, Row
from calibrate import SIMULATOR
from changes import write_page
from cycles import ROOT, shrinkc, write_llama, write_micro_llama

from shrinkc import plan
from shrinkc.core.shell import quoted
from shrinkc.costs import cost_table
from shrinkc.memory.cycles import LABELS
from shrinkc.memory.parts import pieces_in
from shrinkc.memory.plan import Plan

PAGE = ROOT / "docs" / "results" / "performance.md"
GAINS = Path(__file__).with_name(
    "gains.md"
)  # a kept text: what made it faster, of the commits that did
LLAMA_1B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256, "hidden_size": 2048,
    "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 64, "rms_norm_eps": 1e-5, "max_position_embeddings": 131072, "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "hidden_act": "silu", "tie_word_embeddings": True, "bos_token_id": 128000, "eos_token_id": 128001,
}  # fmt: skip
"""What config.json of LLaMA-3.2-1B says, of what a plan asks."""
WIDTHS = (4, 3, 2)  # bits of layers and head that it is planned with


@dataclass
class Bench:
    """Models and what was measured of them, each program once."""

    work: Path
    data: Path | None = None
    smollm2: Path | None = None
    done: dict[Program, dict[str, Any]] = field(default_factory=dict)

    def model(self, name: str) -> Path:
        """Its directory, made where it is not there."""
        path = self.work / "models" / name
        if name == "examples/stories":
            return ROOT / name
        if name == SMOLLM2:
            assert self.smollm2 is not None
            return self.smollm2
        if not path.exists():
            if name == "microLlama":
                write_micro_llama(path)
            elif name in LAYERS:
                write_llama(path, **LAYERS[name])
            else:
                assert self.data is not None
                source = self.data / name
                convert = runpy.run_path(str(ROOT / "examples/convert_llama2c.py"))["convert"]
                convert(source / f"{name}.bin", source / "tok512.bin", path)
        return path

    def run(self, program: Program) -> dict[str, Any]:
        """The JSON of its run, every integer of which was as it should be."""
        if program not in self.done:
            out = self.work / "out" / program.name
            compiled, run = program.command(str(self.model(program.model)), str(out))
            shrinkc(*compiled, "--force")
            found = json.loads(shrinkc(*run, "--timeout", "inf"))
            verdict = found["verdict"]
            if verdict["mismatched"] or not verdict["compared"]:
                raise SystemExit(f"{program.name}: {verdict}")
            placed = Plan.of_json(json.loads((out / "plan.json").read_text())).placements
            streamed = [size for p, _, size in pieces_in(placed, "flash") if p.name != "embedding"]
            self.done[program] = found | {"weights_in_flash": sum(streamed)}
        return self.done[program]

    def value(self, row: Row) -> float:
        runs = [self.run(program) for program in row.programs]
        models = [self.model(p.model) for p in row.programs]
        configs = [
            json.loads((m / "config.json").read_text()) if m.is_dir() else {} for m in models
        ]
        return row.measure(runs, configs)

    def values(self, rows: Sequence[Row]) -> Iterator[tuple[Row, float, float | None]]:
        """Every row for which there is what it needs, its figure, and that with code in L2 where it has one."""
        for row in rows:
            if absent := [need for need in row.needs if getattr(self, need) is None]:
                print(f"left out, without --{absent[0]}: {row.what}", file=sys.stderr)
                continue
            found = row, self.value(row), self.value(row.in_l2) if row.twice else None
            print(" | ".join(row.cells(*found[1:])), file=sys.stderr, flush=True)
            yield found


Values = Sequence[tuple[Row, float, float | None]]


def page(values: Values, compared: int) -> str:
    """The document; ``compared``: integers of all runs."""
    return "\n".join([
        "# Speed against the bars", "",
        f"`make bench`, {_measured(compared)} Peers: Deeploy at bf64cfae, published and re-run on the same "
        "simulator; its microLlama has neither embedding nor head. Executing code from weight memory is proven on "
        "the simulator only: *code in L2* is the same program compiled with `--code l2`, for which the bar is 15 % "
        "laxer; *met* says it of both. Models in flash are in [flash.md](flash.md).", "",
        *_table(values), *_of_the_model(), "", *GAINS.read_text(encoding="utf-8").splitlines(), "",
        *_commands(values),
    ]) + "\n"  # fmt: skip


def flash_page(values: Values, compared: int, predicted: Sequence[str]) -> str:
    """The document about models in flash; ``predicted``: the table of what ``plan`` says."""
    return "\n".join([
        "# Speed of models in flash", "",
        f"`make bench-flash`, {_measured(compared)} The HyperBus, which flash is behind, brings a byte per cycle: "
        "its bound is as many cycles as the weights have bytes that are in flash.", "",
        *_table(values), "", "## Predicted", "",
        "What `shrinkc plan MODEL --bits N --head-bits N --context 256 --position N` says of a decode step, of "
        "LLaMA-3.2-1B from its `config.json` alone; at 72 MHz, the simulator's default:", "",
        *predicted, "", *_commands(values),
    ]) + "\n"  # fmt: skip


def _measured(compared: int) -> str:
    return (
        f"{date.today().isoformat()}, {SIMULATOR}, stock riscv64-unknown-elf-gcc. Cycles unless a row says otherwise; "
        f"{compared:,} integers of these runs were compared with the interpreter's, 0 mismatched. The simulator has "
        "no latency of MRAM, L2 without limits for the DMA, and no priorities between memories' users."
    )


def _table(values: Values) -> list[str]:
    return [
        "| what | measured | code in L2 | bar | aim | met | peer, published | peer, re-run |",
        "|---|---:|---:|---:|---:|---|---:|---:|",
        *(f"| {' | '.join(row.cells(value, in_l2))} |" for row, value, in_l2 in values),
    ]


def _commands(values: Values) -> list[str]:
    shown: dict[str, None] = {}
    for row, _, in_l2 in values:
        for program in (*row.programs, *(row.in_l2.programs if in_l2 is not None else ())):
            for words in program.command(program.model, f"out/{program.name}"):
                shown[quoted("shrinkc", *words)] = None
    return ["## Commands", "", "<!-- no-run: needs gvsoc -->", "```console", *shown, "```"]


def predictions(folder: Path) -> list[str]:
    """A table of plans: of LLaMA-3.2-1B and of the layer that is run, whose config.json are made in ``folder``."""
    layer = LLAMA_1B | {
        "num_hidden_layers": 1,
        "vocab_size": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    whole, one = folder / "LLaMA-3.2-1B", folder / LLAMA_LAYER.model
    for path, config in ((whole, LLAMA_1B), (one, layer)):
        path.mkdir()
        (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    at = LLAMA_LAYER.prompt + LLAMA_LAYER.steps - 1
    asked = [(one, 4, 8, at), *((whole, bits, bits, 64) for bits in WIDTHS)]
    out = [
        "| model | bits | of the head | position | bytes in flash | cycles per token | tokens/s | limit |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for model, bits, head, position in asked:
        found = plan(model, bits=bits, head_bits=head, context=256, position=position)
        row = f"| {model.name} | {bits} | {head} | {position} |"
        if not found.fits:
            out.append(
                f"{row} – | – | – | does not fit: {found.lacks[0].need:,} bytes of weights |"
            )
            continue
        assert found.speed is not None
        cost = found.speed.decode
        second = found.speed.tokens_per_second(cost)
        busy = f"{LABELS[cost.limit]}, busy {100 * cost.busy[cost.limit]:.0f} %"
        out.append(
            f"{row} {found.plan.used['flash']:,} | {cost.cycles:,.0f} | {second:.3f} | {busy} |"
        )
    return out


def _of_the_model() -> list[str]:
    """The row of the cost model, which ``make calibrate`` measures."""
    table = cost_table("siracusa")
    if table is None or not table.errors:
        return []
    worst = max(e.median for e in table.errors.values())
    met = "yes" if worst <= 0.15 else "no"
    return [
        f"| cost model, per op on shapes that were not calibrated, median error of the worst op, % | "
        f"**{100 * worst:.1f}** | – | ≤ 15.0 | 8.0 | {met} | – | – |"
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder that holds stories260K/")
    parser.add_argument("--flash", action="store_true", help="the rows of models in flash instead")
    parser.add_argument("--smollm2", type=Path, help=f"{SMOLLM2}, for some of these")
    parser.add_argument("--work", type=Path, help="where to compile (default: a temporary folder)")
    parser.add_argument("--output", type=Path, help=f"e.g. {PAGE.relative_to(ROOT)}")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench((args.work or Path(scratch)).resolve(), args.data, args.smollm2)
        values = list(bench.values(FLASH if args.flash else ROWS))
        compared = sum(run["verdict"]["compared"] for run in bench.done.values())
        text = (
            flash_page(values, compared, predictions(Path(scratch)))
            if args.flash
            else page(values, compared)
        )
    print(text)
    if args.output:
        write_page(args.output, text)


if __name__ == "__main__":
    main()
