"""A compiled directory as a report: one object, of which a page of HTML is drawn."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import shrinkc
from shrinkc.core import artifact
from shrinkc.core.errors import BadArtifact, BadData, ShrinkcError, UsageError
from shrinkc.core.output import check_file, write_file
from shrinkc.core.parsing import is_number
from shrinkc.core.progress import Reporter
from shrinkc.core.shell import name_of, printable
from shrinkc.core.words import show_size
from shrinkc.costs import cost_table
from shrinkc.driver.estimating import Speed, check_speed, read_plan, speed_of
from shrinkc.driver.report_cycles import Phase, ceilings, phase_json
from shrinkc.engines import CORES
from shrinkc.evaluation.rows import figures
from shrinkc.importer.jsonfile import read_json_object
from shrinkc.ir.graph import Graph
from shrinkc.ir.serialize import load
from shrinkc.memory.cycles import LABELS, Passes
from shrinkc.memory.parts import stored_in
from shrinkc.memory.plan import Plan
from shrinkc.report.page import page
from shrinkc.schedule.shapes import ModelShape, shapes_of_graph
from shrinkc.targets import MEMORIES, TARGETS, Target

VERSION = 1
MEASURES = {"perplexity", "trivia", "hellaswag", "samples"}  # one of which an evaluation has
EVAL_MOST = 64 << 20  # bytes of a file that is looked at
NEITHER = "give a directory made by 'shrinkc compile' or 'shrinkc compress'."

Data = dict[str, Any]


@dataclass(frozen=True)
class ReportRequest:
    """``run``: what ``shrinkc run --json`` printed (None: what the last ``--profile`` left in the directory,
    if any); ``evals``: what ``shrinkc eval`` wrote, beside those that lie in the directory."""

    position: int | None = None
    clock_mhz: float | None = None
    run: Path | None = None
    evals: tuple[Path, ...] = ()

    def refuse_for_run(self, directory: Path) -> None:
        """UsageError where something was asked for that only a compiled directory has."""
        if self != ReportRequest():
            raise UsageError(
                f"{directory} is a compression run, to which --position, --clock, --run and --eval mean nothing.",
                "leave them out.",
            )


@dataclass(frozen=True)
class Reported:
    """What was written, and ``data``, which both files hold."""

    html: Path
    json: Path
    bytes: int
    data: Data

    def lines(self) -> list[str]:
        """For people."""
        return [
            *(f"note: {note}" for note in self.data["notes"]),
            f"{self.html}: {self.data['name']}, {self.data['kind']}, {show_size(self.bytes)}; "
            f"the same as JSON: {self.json}",
        ]

    def to_json(self) -> Data:
        """For programs."""
        return {
            "html": str(self.html), "json": str(self.json), "bytes": self.bytes,
            "kind": self.data["kind"], "name": self.data["name"],
            "verdict": self.data.get("verdict"), "notes": self.data["notes"],
        }  # fmt: skip


def write_report(data: Data, directory: Path, html: Path | None, reporter: Reporter) -> Reported:
    """Writes the page of ``data`` (of :func:`compiled_report` or of compression.reporting) to ``html`` (None:
    report.html in ``directory``) and the object beside it, each whole or not at all.  OutputError where that is
    not possible."""
    html = directory / artifact.REPORTS[0] if html is None else html
    beside = html.with_suffix(".json")
    if beside == html:
        raise UsageError(f"-o {html} is the name of the page's JSON.", "give a name in .html.")
    check_file(html)
    check_file(beside)
    about = {"format": artifact.REPORT, "version": VERSION, "shrinkc": shrinkc.__version__}
    data = _as_text({**about, **data})
    with reporter.stage("drawing the report"):
        text = page(data)
    write_file(beside, json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_file(html, text)
    return Reported(html, beside, len(text.encode("utf-8")), data)


def _as_text(value: Any) -> Any:
    """Of JSON, with a question mark for what UTF-8 has no form for: half a surrogate pair."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, (list, tuple)):
        return [_as_text(v) for v in value]
    return (
        {_as_text(k): _as_text(v) for k, v in value.items()} if isinstance(value, dict) else value
    )


def compiled_report(directory: Path, request: ReportRequest, reporter: Reporter) -> Data:
    """Everything that is known of a compiled directory.

    Raises BadArtifact where it is none or not as compiled, BadData for a file of a run or an evaluation that
    is none or of another model, UsageError for a position or clock that is not possible.
    """
    check_speed(request.position, request.clock_mhz)
    if not (directory / artifact.MANIFEST).is_file():
        raise BadArtifact(
            f"{directory} is neither a compiled directory nor a compression run.", NEITHER
        )
    manifest = artifact.read_manifest(directory)
    target = TARGETS.get(manifest.target)
    if target is None:
        raise BadArtifact(
            f"{directory / artifact.MANIFEST} names the target '{manifest.target}', which is not one of "
            f"{', '.join(TARGETS)}.",
            "compile the model again.",
        )
    with reporter.stage("reading the program"):
        artifact.check_files(directory, manifest, (artifact.PLAN, artifact.IR))
        plan, graph = read_plan(directory / artifact.PLAN), load(directory / artifact.IR)
        shape = shapes_of_graph(graph, 0)
        if not {m.name for m in shape.matrices} <= {p.name for p in plan.placements}:
            raise BadArtifact(
                f"{directory / artifact.PLAN} has no place for some matrices of the integer model.",
                "compile the model again.",
            )
        changed = artifact.changed_files(directory, manifest)
    run, whence = _run_of(directory, request, manifest)
    speed = speed_of(shape, plan, target, request.position, request.clock_mhz)
    notes: list[str] = []
    if changed:
        notes.append(f"changed since it was compiled: {', '.join(changed)}")
    if run is not None and run.get("lookup"):
        notes.append(
            "the run drafted tokens: its passes took more than one, estimates are of one each"
        )
    if speed is None:
        notes.append(f"cycles are not estimated: {target.name} was not calibrated")
    with reporter.stage("estimating"):
        cycles = _cycles(plan, shape, target, request, run)
    return {
        "kind": "compiled directory",
        "name": manifest.model,
        "directory": name_of(directory),
        "made": {
            "command": manifest.command,
            "shrinkc": manifest.shrinkc,
            "target": manifest.target,
            "options": manifest.options,
            "changed_files": changed,
        },
        "verdict": _verdict(plan, speed, run, whence, cycles["phases"]),
        "model": _model(graph),
        "memory": _memory(plan, shape),
        "steps": plan.steps,
        "weights": _weights(plan, shape),
        "schedule": {
            "chunk": plan.chunk, "tile_bytes": plan.tile_bytes, "kv_in_l1": plan.kv_in_l1,
            "logits_in_l1": plan.logits_in_l1,
        },
        "speed": None if speed is None else speed.to_json(),
        **cycles,
        "accuracy": _accuracy(directory, manifest, request.evals, notes),
        "notes": notes,
    }  # fmt: skip


def _model(g: Graph) -> Data:
    return {
        "layers": g.num_layers, "hidden": g.hidden, "ffn": g.ffn, "heads": g.heads,
        "kv_heads": g.kv_heads, "head_size": g.head_dim, "vocabulary": g.vocab, "context": g.context,
        "operations": len(g.ops),
    }  # fmt: skip


# ---- a run ----


def _run_of(
    directory: Path, request: ReportRequest, manifest: artifact.Manifest
) -> tuple[Data | None, str | None]:
    """A run of this model, and the name of its file; (None, None) where there is none."""
    path = request.run
    if path is None:
        path = directory / artifact.PROFILE
        if not path.is_file():
            return None, None
    run = read_json_object(path, BadData)
    try:
        _check_run(run)
    except (KeyError, TypeError, ValueError) as error:
        raise BadData(
            f"{path} is no run of shrinkc: {error!r}.",
            "give what 'shrinkc run DIR --on gvsoc --profile --json' printed.",
        ) from None
    if run["model"] != manifest.model:
        raise BadData(
            f"{path} is a run of '{run['model']}', and {directory} holds '{manifest.model}'.",
            "give a run of this directory.",
        )
    taken = len(run["prompt_tokens"]) + len(run["new_tokens"])
    if taken > manifest.context:
        raise BadData(
            f"{path} is a run of {taken} tokens, and {directory} was compiled for {manifest.context}.",
            "give a run of this directory.",
        )
    return run, name_of(path)


def _check_run(run: Data) -> None:
    """Raises what an object that is no run's lacks."""
    verdict, profile = run["verdict"], run["profile"]
    if verdict is not None:
        numbers = (verdict["compared"], verdict["mismatched"])
        _numbers(numbers)
    for phase in () if profile is None else (profile["prefill"], profile["decode"]):
        if phase is None:
            continue
        _numbers((phase["steps"], phase["cycles"]))
        keys = ("cycles", "active", "load_stalls", "icache", "transfers", "barrier")
        for row in (*phase["ops"], *phase["layers"]):
            _numbers(row[key] for key in keys)
            if type(row["op"]) is not str:
                raise ValueError("an op without a name")
        _numbers(row["layer"] for row in phase["layers"])
        if phase["steps"] > max(1, len(run["new_tokens"])):
            raise ValueError("more decode steps than tokens")
    if not all(type(run[key]) is list for key in ("prompt_tokens", "new_tokens")):
        raise ValueError("its tokens are no lists")
    if not all(type(run[key]) is str for key in ("target", "model")) or not run["prompt_tokens"]:
        raise ValueError("it names no machine, no model or no prompt")


def _numbers(values: Iterable[Any]) -> None:
    if not all(map(is_number, values)):
        raise ValueError("a figure is no number")


def _cycles(
    plan: Plan, shape: ModelShape, target: Target, request: ReportRequest, run: Data | None
) -> Data:
    """``phases`` and the ``roofline`` ceilings of each; of the run where it has a profile, else of a
    decode step at the position that is asked for and of a prompt of as many tokens."""
    passes, table = Passes(shape, plan, target), cost_table(target.name)
    profile = None if run is None else run["profile"]
    phases: list[Phase] = []
    if run is None or profile is None:
        at = min(64, plan.context - 1) if request.position is None else request.position
        phases = [
            Phase("decode", f"a decode step at position {at}", [passes.steps(1, at)], 1),
            Phase("prefill", f"a prompt of {at} tokens", passes.prompt(at), 1),
        ]
        tokens = min(at, plan.chunk)
    else:
        prompt = len(run["prompt_tokens"])
        tokens = min(prompt, plan.chunk)
        if (decode := profile["decode"]) is not None:
            each = [passes.steps(1, prompt + i) for i in range(decode["steps"])]
            title = f"a decode step, mean of {decode['steps']} after {prompt} tokens"
            phases.append(Phase("decode", title, each, decode["steps"], decode, True))
        title = f"a prompt of {prompt} tokens"
        phases.append(Phase("prefill", title, passes.prompt(prompt), 1, profile["prefill"], True))
    at_once = {"decode": 1, "prefill": tokens}
    return {
        "phases": [phase_json(phase, table) for phase in phases],
        "roofline": {
            phase.name: ceilings(target, plan, passes, table, at_once[phase.name])
            for phase in phases
            if table is not None or phase.measured is not None  # else there is nothing below them
        },
    }


def _verdict(
    plan: Plan, speed: Speed | None, run: Data | None, whence: str | None, phases: list[Data]
) -> Data:
    proof = None if run is None else run["verdict"]
    measured = {phase["phase"]: phase["measured"] for phase in phases if phase["measured"]}
    busy = {} if speed is None else speed.decode.busy
    limit = None if speed is None else speed.decode.limit
    return {
        "fits": all(plan.used[level] <= have for level, have in plan.capacity.items()),
        "tokens_per_second": None if speed is None else round(speed.tokens_per_second(speed.decode), 2),
        "cycles_per_token": None if speed is None else round(speed.decode.cycles, 1),
        "position": None if speed is None else speed.position,
        "clock_mhz": None if speed is None else speed.clock_mhz,
        "clock_said_by": None if speed is None else
                         "--clock" if speed.asked else "the simulator's default",
        "limit": limit and LABELS.get(limit, limit),
        "limit_busy": None if limit is None else round(busy[limit], 4),
        "error_median": None if speed is None or speed.table.passes is None else speed.table.passes.median,
        "error_p90": None if speed is None or speed.table.passes is None else speed.table.passes.p90,
        "run": whence and printable(whence),
        "run_on": None if run is None else run["target"],
        "measured_cycles": measured or None,
        "compared": None if proof is None else proof["compared"],
        "mismatched": None if proof is None else proof["mismatched"],
    }  # fmt: skip


# ---- memory ----


def _memory(plan: Plan, shape: ModelShape) -> list[Data]:
    """Every memory that holds something, or is L1 or L2: its regions by address, with the steps from the
    ``first`` to the ``last`` of which they are kept, and ``read`` in (weights: one step of each layer)."""
    reader = {step.matrix: at for at, step in enumerate(shape.steps) if step.matrix}
    out = []
    for level, have in plan.capacity.items():
        used = plan.used[level]
        if not (have and (used or level in ("l1", "l2"))):
            continue
        out.append(
            {
                "level": level,
                "label": MEMORIES[level].label,
                "used": used,
                "available": have,
                "share": round(used / have, 4),
                "regions": list(_regions(plan, level, reader)),
            }
        )
    return out


def _regions(plan: Plan, level: str, reader: Mapping[str, int]) -> Iterable[Data]:
    last = len(plan.steps) - 1

    def region(
        kind: str, name: str, at: int, size: int, first: int = 0, to: int = last, read: int | None = None
    ) -> Data:  # fmt: skip
        return {
            "kind": kind, "name": name, "offset": at, "bytes": size, "first": first, "last": to, "read": read,
        }  # fmt: skip

    if level == "l1":
        fixed = plan.used["l1"] - plan.arena_bytes
        yield region("system", "stacks, tables", 0, fixed)
        for b in plan.l1:
            for first, to in b.spans:
                yield region("buffer", b.name, fixed + b.offset, b.bytes, first, to)
        return
    end = 0
    for x in (t for t in plan.tables if t.level == level):
        yield region("table", x.name, x.offset, x.bytes)
        end = max(end, x.offset + x.bytes)
    for name, offset, size in stored_in(plan.placements, level):
        step = reader.get(_slot(name), 0 if name == "embedding" else None)
        yield region("weights", name, offset, size, read=step)
        end = max(end, offset + size)
    # the linker places what is not weights; here it is behind them
    for b in (b for b in plan.beside if b.level == level and b.bytes):
        yield region("buffer", b.name, end, b.bytes)
        end += b.bytes


def _slot(name: str) -> str:
    """``qkv`` of ``layer3.qkv`` and of the first half of its side path, ``layer3.qkv.a``."""
    return name.split(".", 1)[-1].removesuffix(".a")


def _weights(plan: Plan, shape: ModelShape) -> list[Data]:
    placed = {p.name: p for p in plan.placements}
    again = dict(shape.shared)
    out = []
    for m in shape.matrices:
        p = placed[m.name]
        tiles = -(-p.blocks // p.tile_blocks) if p.engine == CORES and m.name != "embedding" else 0
        layer, _, slot = m.name.partition(".")
        out.append(
            {
                "name": m.name,
                "layer": int(layer.removeprefix("layer")) if slot else None,
                "slot": slot or m.name,
                "rows": m.rows,
                "inputs": m.k,
                "bits": m.bits,
                "scale_per": m.seg if m.grouped or m.asymmetric else "row",
                "engine": p.engine,
                "memory": " and ".join(MEMORIES[level].label for level, _, _ in p.pieces),
                "offset": p.offset,
                "bytes": 0 if m.name in again else p.bytes,
                "same_as": again.get(m.name),
                "tiles": tiles,
                "tile_bytes": min(p.tile_blocks, p.blocks) * p.block_bytes if tiles else 0,
            }
        )
    return out


# ---- accuracy ----


def _accuracy(
    directory: Path, manifest: artifact.Manifest, given: Sequence[Path], notes: list[str]
) -> list[Data]:
    """What evaluations say: those that were given, and those in the directory."""
    out = [_evaluation(path, read_json_object(path, BadData)) for path in given]
    known = {os.path.realpath(path) for path in given}
    for path in sorted(directory.glob("*.json")):
        if (
            path.name in manifest.files
            or os.path.realpath(path) in known
            or path.name == artifact.MANIFEST
        ):
            continue
        try:
            if path.stat().st_size > EVAL_MOST:
                continue
            found = read_json_object(path, BadData)
            if isinstance(found.get("model"), dict) and MEASURES & found.keys():
                out.append(_evaluation(path, found))
        except (ShrinkcError, OSError) as error:
            notes.append(f"{path.name} was left out: {error}")
    return out


def _evaluation(path: Path, report: Data) -> Data:
    """BadData where it is none."""
    try:
        model = report["model"]
        about = {
            key: str(model[key]) for key in ("name", "kind", "dtype", "engine") if key in model
        }
        rows = [
            dict(zip(("measure", "value", "error", "of"), row, strict=True))
            for row in figures(report)
        ]
        samples = [
            {"prompt": str(text["prompt"]), "text": str(text["text"])}
            for text in report.get("samples", {}).get("texts", [])
        ]
        if not rows and not samples:
            raise KeyError("no figure")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BadData(
            f"{path} is no evaluation of shrinkc: {error!r}.", "give what 'shrinkc eval -o FILE' wrote."
        ) from None  # fmt: skip
    return {"file": name_of(path), "of": about, "rows": rows, "samples": samples}
