"""Differences between two compiled directories or two JSON outputs of commands."""

from __future__ import annotations

import difflib
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from shrinkc.core import artifact
from shrinkc.core.errors import UsageError
from shrinkc.core.findings import Findings, Row, starred
from shrinkc.core.progress import Reporter, Update
from shrinkc.core.shell import printable
from shrinkc.driver.estimating import read_plan
from shrinkc.importer import Tokenizer
from shrinkc.importer.jsonfile import read_json_object
from shrinkc.ir.dump import attributes
from shrinkc.ir.graph import Graph
from shrinkc.ir.interpreter import Interpreter
from shrinkc.ir.ops import Op
from shrinkc.ir.serialize import load
from shrinkc.memory.parts import Buffer
from shrinkc.memory.plan import Plan
from shrinkc.simulate.proof import last_values

# keys that identify the records of a list; the first sufficient entry is used
_KEYS = (("name",), ("op",), ("layer", "op"), ("step",), ("memory",), ("memory", "part"))
_VOLATILE = {"seconds", "speed"}  # differ in every run
_PART = 1 << 20  # bytes compared at a time

Value = object
Flat = dict[str, Value]


def diff_directories(a: Path, b: Path, prompt: str, positions: int, reporter: Reporter) -> Findings:
    """Compare options, sizes, plan, files, code, operations and integers.

    Both interpreters get equal tokens: a's ids of ``prompt``, then a's likeliest tokens, ``positions`` in all.

    Empty tables are left out.  Raises BadArtifact, also if plan or integer model were changed, and UsageError for
    a prompt without tokens.
    """
    ma, mb = artifact.read_manifest(a), artifact.read_manifest(b)
    for directory, manifest in ((a, ma), (b, mb)):
        artifact.check_files(directory, manifest, (artifact.PLAN, artifact.IR))
    found = _findings(a, b)
    about = ("model", "target", "context", "shrinkc")
    options_a = {**{k: getattr(ma, k) for k in about}, **ma.options}
    options_b = {**{k: getattr(mb, k) for k in about}, **mb.options}
    found.tables["options"] = _rows(options_a, options_b, "option")
    pa, pb = read_plan(a / artifact.PLAN), read_plan(b / artifact.PLAN)
    with reporter.stage("comparing files"):
        files_a, files_b = _files(a), _files(b)
        found.tables["sizes"] = _rows(_sizes(pa, files_a), _sizes(pb, files_b), "bytes_of")
        found.tables["plan"] = _alike(_rows(_decisions(pa), _decisions(pb), "what"))
        names = sorted({*files_a, *files_b})
        changed = [name for name in names if files_a.get(name) != files_b.get(name)]
        found.tables["code"] = [_lines_row(a, b, n) for n in changed if _is_code(n)]
        found.tables["other_files"] = [_bytes_row(a, b, n) for n in changed if not _is_code(n)]
    if files_a.get(artifact.IR) != files_b.get(artifact.IR):
        with reporter.stage("reading the integer models"):
            ga, gb = load(a / artifact.IR), load(b / artifact.IR)
        found.tables["operations"] = _operations(ga, gb)
        ids = Tokenizer.of_program(a, ma).encode(prompt)
        if not ids:
            raise UsageError("the prompt has no tokens.", "give another --prompt.")
        with reporter.stage("comparing integers") as update:
            first, compared = _first_difference(ga, gb, ids, positions, update)
        found.facts["values_compared"] = compared
        found.tables["first_differing_integer"] = [first] if first else []
        if first is None:
            found.notes.append(f"all of {compared} values of both interpreters are the same")
    return _only_differences(found)


def diff_objects(a: Path, b: Path) -> Findings:
    """Compare two JSON objects, such as outputs of ``shrinkc run --json``: all differing values, and for runs the
    first differing token.  Times and speeds are left out.

    Raises UsageError for a file without an object, or if both objects have no values.
    """
    first, second = (read_json_object(path, UsageError) for path in (a, b))
    found = _findings(a, b)
    tokens = [side.get("new_tokens") for side in (first, second)]
    if all(isinstance(side, list) for side in tokens):
        found.tables["first_differing_token"] = _first_token(*tokens)  # type: ignore[arg-type]
        first, second = ({k: v for k, v in s.items() if k != "new_tokens"} for s in (first, second))
    of_a, of_b = flat(first), flat(second)
    found.facts["values_compared"] = len({*of_a, *of_b})
    if not found.facts["values_compared"] and not found.tables:
        raise UsageError(
            f"{printable(str(a))} and {printable(str(b))} contain no values to compare.",
            "give two files with the output of 'shrinkc run --json' or 'shrinkc plan --json'.",
        )
    found.tables["values"] = _rows(of_a, of_b, "what")
    return _only_differences(found)


def flat(value: Value, path: str = "") -> Flat:
    """Return path -> value of every scalar in an object.  Records of a list are named by their keys, or else by
    number."""
    out: Flat = {}
    if isinstance(value, Mapping):
        for key, part in value.items():
            if key not in _VOLATILE:
                out |= flat(part, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for part, name in zip(value, _names(value), strict=True):
            out |= flat(part, f"{path}[{name}]")
    else:
        out[path] = value
    return out


def _names(records: Sequence[Value]) -> list[str]:
    for keys in _KEYS:
        if all(isinstance(r, Mapping) and {*keys} <= r.keys() for r in records):
            names = [" ".join(str(r[key]) for key in keys) for r in records]  # type: ignore[index]
            if len({*names}) == len(names):
                return names
    return [str(index) for index in range(len(records))]


def _decisions(plan: Plan) -> Flat:
    """Return a plan's decisions, without sizes and offsets, which all change if one size changes.

    Consecutive steps in which a buffer is live are one value."""
    found = {k: v for k, v in plan.to_json().items() if k not in ("used", "capacity")}
    for level, buffers in (("l1", plan.l1), ("lower_buffers", plan.lower_buffers)):
        found[level] = [
            {"name": b.name, "bytes": b.bytes, "level": b.level, "live": _runs(b)} for b in buffers
        ]
    said = flat(found)
    left_out = (".offset", ".chip_offset", ".name")
    return {path: value for path, value in said.items() if not path.endswith(left_out)}


def _runs(buffer: Buffer) -> str:
    return ", ".join(f"{first}-{last}" for first, last in buffer.spans)


def _findings(a: Path, b: Path) -> Findings:
    return Findings("differences", f"{printable(str(a))} (a), {printable(str(b))} (b)")


def _only_differences(found: Findings) -> Findings:
    found.tables = {title: rows for title, rows in found.tables.items() if rows}
    found.facts = {"same": not found.tables, **found.facts}
    return found


def _rows(a: Flat, b: Flat, name: str) -> list[Row]:
    """Return a row per difference: both values (None if missing), and the change of numbers."""
    out: list[Row] = []
    for key in dict.fromkeys([*a, *b]):
        va, vb = a.get(key), b.get(key)
        if va == vb and (key in a) == (key in b):
            continue
        row: dict[str, object] = {name: key, "a": va, "b": vb, "change": None}
        numbers = [v for v in (va, vb) if isinstance(v, (int, float)) and not isinstance(v, bool)]
        if len(numbers) == 2 and numbers[0]:
            with suppress(OverflowError):  # integers too large for a float
                row["change"] = f"{100 * (numbers[1] - numbers[0]) / abs(numbers[0]):+.1f} %"
        out.append(row)
    return out


def _alike(rows: Sequence[Row]) -> list[Row]:
    """Merge rows that are equal in several layers."""
    counts = Counter(
        tuple((key, starred(v) if isinstance(v, str) else v) for key, v in row.items())
        for row in rows
    )
    return [{**dict(row), "count": count} for row, count in counts.items()]


# ---- files ----


def _files(directory: Path) -> dict[str, artifact.FileRecord]:
    """Return all files except build results."""
    names = artifact.list_files(directory)
    own = [name for name in names if not name.startswith(f"{artifact.BUILD}/")]
    return {name: artifact.file_record(directory / name) for name in own}


def _is_code(name: str) -> bool:
    return name.startswith(("src/", "zephyr/")) or name in ("Makefile", "CMakeLists.txt")


def _sizes(plan: Plan, files: Mapping[str, artifact.FileRecord]) -> Flat:
    sizes: Flat = {plan.label(level): size for level, size in plan.used.items()}
    sizes["sources"] = sum(record.bytes for name, record in files.items() if _is_code(name))
    return sizes


def _lines_row(a: Path, b: Path, name: str) -> Row:
    """Return the numbers of lines that are only in b or only in a."""
    before, after = (
        file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
        for file in (a / name, b / name)
    )
    kinds = [line[0] for line in difflib.unified_diff(before, after, n=0)][
        2:
    ]  # after the two file names
    return {
        "file": name, "lines_only_in_a": kinds.count("-"), "lines_only_in_b": kinds.count("+"),
    }  # fmt: skip


def _bytes_row(a: Path, b: Path, name: str) -> Row:
    """Return the sizes of a binary file and the first differing byte."""
    sizes = [(d / name).stat().st_size if (d / name).is_file() else None for d in (a, b)]
    at = None if None in sizes else _first_byte(a / name, b / name)
    return {"file": name, "bytes_a": sizes[0], "bytes_b": sizes[1], "first_byte": at}


def _first_byte(a: Path, b: Path) -> int:
    """Return the offset of the first difference of two files, at most the end of the shorter one."""
    at = 0
    with a.open("rb") as fa, b.open("rb") as fb:
        while (pa := fa.read(_PART)) == (pb := fb.read(_PART)):
            at += len(pa)
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(pa, pb, strict=False))
    return at + sum(1 for _ in same)


# ---- integers ----


def _operations(a: Graph, b: Graph) -> list[Row]:
    """Return the ops that differ or exist in only one graph."""
    left, right = ({op.out: _described(graph, op) for op in graph.ops} for graph in (a, b))
    out: list[Row] = []
    for name in dict.fromkeys([*left, *right]):
        if name not in left or name not in right:
            out.append({"op": name, "differs": f"only in {'a' if name in left else 'b'}"})
        elif left[name] != right[name]:
            keys = dict.fromkeys([*left[name], *right[name]])
            changed = [key for key in keys if left[name].get(key) != right[name].get(key)]
            out.append({"op": name, "differs": ", ".join(changed)})
    return _alike(out)


def _described(graph: Graph, op: Op) -> dict[str, str]:
    inputs = ", ".join(op.inputs)
    return {
        "kind": op.mnemonic, "inputs": inputs, "type": str(graph.types[op.out]), **attributes(op),
    }  # fmt: skip


def _first_difference(
    a: Graph, b: Graph, prompt: Sequence[int], positions: int, update: Update
) -> tuple[Row | None, int]:
    """Return the first differing value in order of execution, and the number of values compared.

    If b lacks an op, or its value has another width, the comparison ends there: ``index``, or the missing
    value, is None.
    """
    limit = min(positions, a.context, b.context)
    feed, compared = list(prompt[:limit]), 0
    left, right = Interpreter(a), Interpreter(b)
    for position in range(limit):
        token = feed[position]
        if token >= b.vocab:
            return {"position": position, "token": token, "op": "embed", "index": None}, compared
        values_a, logits = _values(left, token)
        values_b, _ = _values(right, token)
        for name, got in values_a.items():
            row = {"position": position, "token": token, "op": name, "index": None}
            other = values_b.get(name)
            if other is None:
                return row, compared
            size = min(len(got), len(other))
            bad = np.flatnonzero(got[:size] != other[:size])
            if len(bad) or len(got) != len(other):
                at = int(bad[0]) if len(bad) else size
                va, vb = (int(v[at]) if at < len(v) else None for v in (got, other))
                return {**row, "index": at, "a": va, "b": vb}, compared + at
            compared += size
        if position + 1 == len(feed):
            feed.append(int(logits.argmax()))
        update(position + 1, limit)
    return None, compared


def _values(interpreter: Interpreter, token: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return every op's output for the next token, by dump name, and the logits."""
    out: dict[str, np.ndarray] = {}
    types = interpreter.graph.types

    def observe(op: Op, value: object) -> None:
        out.update(last_values(op.out, types[op.out].kind, value))

    logits = interpreter.forward([token], observe=observe)[-1]
    return out, logits


# ---- objects ----


def _first_token(a: Sequence[object], b: Sequence[object]) -> list[Row]:
    for index in range(max(len(a), len(b))):
        ends = [side[index] if index < len(side) else None for side in (a, b)]
        if ends[0] != ends[1]:
            return [{"index": index, "a": ends[0], "b": ends[1]}]
    return []
