"""Cycles on GVSoC, into docs/results/data: speed, cycles and context, or with --flash flash and flash_plan.

    python examples/bench/speed.py [--data DIR] [--work DIR]
    python examples/bench/speed.py --flash [--smollm2 FILE] [--work DIR]

speed_rows.py says what is measured.  All values of all runs are verified against the interpreter; one that differs
ends the benchmark.  Rows about stories260K need DIR/stories260K.  With --flash models in flash are measured: minutes
each, and some need FILE.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import figures
from models import LLAMA_1B, SMOLLM2, model_of
from speed_rows import FLASH, FORMATS, LLAMA_LAYER, LONG, MODELS, ROWS, Program, Row

from shrinkc import plan
from shrinkc.memory.cycles import resource_label
from shrinkc.memory.parts import pieces_in
from shrinkc.memory.plan import Plan

BITS = (4, 3, 2)  # LLaMA-3.2-1B is planned with these widths
COLUMNS = {
    "what": "What", "unit": "Unit", "measured": "Measured", "target": "Target", "met": "Met",
    "code_in_l2": "With code in L2", "peer_published": "Deeploy, published", "peer_rerun": "Deeploy, run again",
}  # fmt: skip
CYCLE_COLUMNS = {
    "model": "Model", "weights": "Weights", "engines": "Engines", "decode_1": "Decode at position 1",
    "decode_62": "Decode at position 62", "prefill": "Prefill of 61 tokens, per token", "compared": "Values checked",
}  # fmt: skip
PLAN_COLUMNS = {
    "model": "Model", "bits": "Bits of layers", "embedding_bits": "Bits of embedding and LM head",
    "position": "Position", "flash_bytes": "Bytes in flash", "cycles": "Cycles per token",
    "tokens_per_second": "Tokens/s at 72 MHz", "limit": "Limit",
}  # fmt: skip


def shrinkc(*words: str) -> str:
    """The output of a command; SystemExit where it fails."""
    command = [sys.executable, "-m", "shrinkc", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"shrinkc {' '.join(words)}\n{done.stderr}")
    return done.stdout


@dataclass
class Bench:
    """Runs each program once.  ``given``: paths of what has to be given, by :attr:`Row.needs`."""

    work: Path
    given: dict[str, Path | None] = field(default_factory=dict)
    done: dict[Program, dict[str, Any]] = field(default_factory=dict)

    def model(self, name: str) -> Path:
        return model_of(name, self.work / "models", self.given)

    def run(self, program: Program) -> dict[str, Any]:
        """The JSON of its run, all values verified, and the bytes of its weights in flash."""
        if program not in self.done:
            out = self.work / "out" / program.name
            compiled, run = program.commands(str(self.model(program.model)), str(out))
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
        models = [self.model(p.model) for p in row.programs]
        configs = [
            json.loads((m / "config.json").read_text()) if m.is_dir() else {} for m in models
        ]
        return row.measure([self.run(p) for p in row.programs], configs)

    def rows(self, rows: Sequence[Row]) -> Iterator[figures.Row]:
        """Every row for which there is what it needs, with its figures."""
        for row in rows:
            if absent := [need for need in row.needs if self.given.get(need) is None]:
                print(f"left out, without --{absent[0]}: {row.what}", file=sys.stderr)
                continue
            found = row.figures(self.value(row), self.value(row.in_l2) if row.twice else None)
            print(f"{row.what}: {found['measured']:,}", file=sys.stderr, flush=True)
            yield found

    def cycles(self) -> Iterator[figures.Row]:
        """Models that fit on the chip in every format."""
        for name, (model, label) in MODELS.items():
            if model == "stories260K" and self.given.get("data") is None:
                continue
            for format_name, (options, weights, engines) in FORMATS.items():
                first, last = (
                    self.run(Program(model, 64, options, prompt=p, steps=1 + (p > 1)))
                    for p in (1, 61)
                )
                yield {
                    "id": f"{name}_{format_name}", "model": label, "weights": weights, "engines": engines,
                    "decode_1": first["cycles"]["decode"][-1], "decode_62": last["cycles"]["decode"][-1],
                    "prefill": round(last["cycles"]["prefill"] / 61),
                    "compared": first["verdict"]["compared"] + last["verdict"]["compared"],
                }  # fmt: skip

    def context(self) -> Iterator[figures.Row]:
        """The decode step at growing positions."""
        for position, program in LONG.items():
            cycles = self.run(program)["cycles"]["decode"][-1]
            yield {"id": f"position_{position}", "position": position, "decode": cycles}


def predictions(folder: Path) -> Iterator[figures.Row]:
    """Plans of LLaMA-3.2-1B, and of the one layer that is run; their config.json are made in ``folder``."""
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
    asked = [(one, "one layer of LLaMA-3.2-1B", 4, 8, at)]
    asked += [(whole, "LLaMA-3.2-1B", bits, bits, 64) for bits in BITS]
    for path, name, bits, embedding_bits, position in asked:
        found = plan(path, bits=bits, embedding_bits=embedding_bits, context=256, position=position)
        row = {
            "id": f"{'llama1b' if path is whole else 'llama1b_layer'}_{bits}bit", "model": name, "bits": bits,
            "embedding_bits": embedding_bits, "position": position,
        }  # fmt: skip
        if not found.fits:
            need = found.lacks[0].need
            yield row | {
                "need_bytes": need,
                "limit": f"does not fit: {need / 1e6:,.0f} MB of weights",
            }
            continue
        assert found.speed is not None
        cost = found.speed.decode
        yield row | {
            "flash_bytes": found.plan.used["flash"], "cycles": round(cost.cycles),
            "tokens_per_second": round(found.speed.tokens_per_second(cost), 4),
            "limit": f"{resource_label(cost.limit)}, busy {100 * cost.busy[cost.limit]:.0f} %",
        }  # fmt: skip


def write_flash(bench: Bench, scratch: Path) -> None:
    command = "make bench-flash"
    columns = {key: COLUMNS[key] for key in ("what", "unit", "measured", "target", "met")}
    figures.write(
        "flash", title="Speed of models whose weights lie in flash.", command=command, machine=figures.GVSOC,
        columns=columns, rows=list(bench.rows(FLASH)),
    )  # fmt: skip
    figures.write(
        "flash_plan", title="What shrinkc plan estimates for LLaMA-3.2-1B, context 256.", command=command,
        machine="estimate of shrinkc plan, target siracusa at 72 MHz", columns=PLAN_COLUMNS,
        formats={"flash_bytes": 3, "cycles": 3, "tokens_per_second": 2}, rows=list(predictions(scratch)),
    )  # fmt: skip


def write_speed(bench: Bench) -> None:
    command, whole = "make bench", "{:,.0f}"
    figures.write(
        "speed", title="Speed against the project's targets and the published peer.", command=command,
        machine=figures.GVSOC, columns=COLUMNS, formats={"peer_published": whole, "peer_rerun": whole},
        rows=list(bench.rows(ROWS)),
    )  # fmt: skip
    figures.write(
        "cycles", title="Cycles per token of three models that fit on the chip, compiled for a context of 64.",
        command=command, machine=figures.GVSOC, columns=CYCLE_COLUMNS, rows=list(bench.cycles()),
        formats=dict.fromkeys(("decode_1", "decode_62", "prefill", "compared"), whole),
    )  # fmt: skip
    figures.write(
        "context", title="Decode cycles of the microLlama shape, 8 bit, compiled for a context of 256.",
        command=command, machine=figures.GVSOC, columns={"position": "Position", "decode": "Decode, cycles per token"},
        formats={"decode": whole}, rows=list(bench.context()),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder that holds stories260K/")
    parser.add_argument("--flash", action="store_true", help="measure models in flash instead")
    parser.add_argument("--smollm2", type=Path, help=f"{SMOLLM2}, for some of these")
    parser.add_argument("--work", type=Path, help="where to compile (default: a temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        given = {"data": args.data, "smollm2": args.smollm2}
        bench = Bench((args.work or Path(scratch)).resolve(), given)
        if args.flash:
            write_flash(bench, Path(scratch))
        else:
            write_speed(bench)


if __name__ == "__main__":
    main()
