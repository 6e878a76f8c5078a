"""Files of the integer IR: safetensors with the graph as JSON in the metadata.

Equal graphs give equal bytes.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from shrinkc.core.errors import BadArtifact
from shrinkc.core.parsing import parse_json
from shrinkc.engines import CORES
from shrinkc.ir.graph import IR_VERSION, Graph
from shrinkc.ir.linear import LowRank, QLinear
from shrinkc.ir.ops import OPS, Op, Type
from shrinkc.ir.rules import check

FORMAT = "shrinkc-ir"
DEFAULTS = (("engine", CORES), ("x_bits", 0))  # fields of a matrix that are not written


class _Writer:
    def __init__(self) -> None:
        self.tensors: dict[str, np.ndarray] = {}
        self.records: dict[str, dict[str, Any]] = {}

    def linear(self, w: QLinear) -> str:
        if w.name not in self.records:
            record = self.records[w.name] = {}
            for f in dataclasses.fields(w):
                v = getattr(w, f.name)
                if isinstance(v, np.ndarray):
                    self.tensors[f"{w.name}/{f.name}"] = np.ascontiguousarray(v)
                elif isinstance(v, LowRank):
                    record["low_rank"] = [self.linear(v.a), self.linear(v.b)]
                elif (f.name, v) not in DEFAULTS:
                    record[f.name] = v
        return w.name

    def op(self, op: Op) -> dict[str, Any]:
        record: dict[str, Any] = {"op": type(op).__name__}
        for key, v in op.stated().items():
            if isinstance(v, QLinear):
                record[key] = {"linear": self.linear(v)}
            elif isinstance(v, np.ndarray):
                self.tensors[f"{op.out}/{key}"] = np.ascontiguousarray(v)
                record[key] = {"tensor": f"{op.out}/{key}"}
            else:
                record[key] = v
        return record


def save(graph: Graph, path: Path) -> None:
    """Write the graph to a file."""
    w = _Writer()
    head: dict[str, Any] = {"version": IR_VERSION, "ops": [w.op(op) for op in graph.ops]}
    head["types"] = {k: dataclasses.asdict(t) for k, t in graph.types.items()}
    for f in dataclasses.fields(graph):
        v = getattr(graph, f.name)
        if isinstance(v, np.ndarray):
            w.tensors[f"graph/{f.name}"] = np.ascontiguousarray(v)
        elif f.name not in ("ops", "types"):
            head[f.name] = v
    head["linears"] = w.records
    save_file(w.tensors, path, metadata={FORMAT: json.dumps(head, sort_keys=True)})


def load(path: Path) -> Graph:
    """Read a graph and check its rules.

    Raises BadArtifact if the file is missing, damaged or of another version, and IllegalIR for violated rules."""
    try:
        with safe_open(path, framework="np") as f:
            text = (f.metadata() or {}).get(FORMAT)
            if text is None:
                raise BadArtifact(f"{path} is not a shrinkc IR file.", "compile the model again.")
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError, TypeError, AttributeError) as e:  # numpy lacks some types
        raise BadArtifact(f"{path} cannot be read: {e}.", "compile the model again.") from e
    try:
        return _rebuild(path, parse_json(text, integers=True), tensors)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as e:
        raise BadArtifact(
            f"{path} is damaged ({type(e).__name__}: {e}).", "compile the model again."
        ) from e


def _rebuild(path: Path, head: dict[str, Any], tensors: dict[str, np.ndarray]) -> Graph:
    """Make the graph of a parsed file; raises KeyError, TypeError or similar if something is missing or wrong."""
    if head["version"] != IR_VERSION:
        raise BadArtifact(
            f"{path} is IR version {head['version']}, this shrinkc reads {IR_VERSION}.",
            "compile the model again with this version.",
        )
    linears: dict[str, QLinear] = {}

    def linear(name: str) -> QLinear:
        if name not in linears:
            record = dict(head["linears"][name])
            adapter = record.pop("low_rank", None)
            arrays = {f: tensors[f"{name}/{f}"] for f in ("q", "r", "row_scale")}
            arrays |= {f: tensors.get(f"{name}/{f}") for f in ("d", "b")}  # type: ignore[misc]
            linears[name] = QLinear(**{**record, **arrays})
            if adapter is not None:
                linears[name].low_rank = LowRank(linear(adapter[0]), linear(adapter[1]))
        return linears[name]

    def value(v: Any) -> Any:
        if isinstance(v, dict) and "linear" in v:
            return linear(v["linear"])
        if isinstance(v, dict) and "tensor" in v:
            return tensors[v["tensor"]]
        return tuple(v) if isinstance(v, list) else v

    ops = [OPS[r["op"]](**{k: value(v) for k, v in r.items() if k != "op"}) for r in head["ops"]]
    fields = {f.name: value(head[f.name]) for f in dataclasses.fields(Graph) if f.name in head} | {
        "rope_cos": tensors["graph/rope_cos"],
        "rope_sin": tensors["graph/rope_sin"],
    }
    for f in dataclasses.fields(Graph):
        if f.type == "int" and type(fields.get(f.name, 0)) is not int:
            raise TypeError(f"{f.name} is no integer")
    fields |= {"ops": ops, "types": {k: _type(t) for k, t in head["types"].items()}}
    graph = Graph(**fields)
    check(graph)
    return graph


def _type(record: dict[str, Any]) -> Type:
    found = Type(**record)
    if any(type(v) is not int for key, v in dataclasses.asdict(found).items() if key != "kind"):
        raise TypeError(f"{record} is no type of a value")
    return found
