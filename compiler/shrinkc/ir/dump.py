"""Text form of the IR, one line per op, for reading and comparing."""

from __future__ import annotations

import hashlib

import numpy as np

from shrinkc.engines import CORES
from shrinkc.ir.graph import Graph
from shrinkc.ir.linear import QLinear
from shrinkc.ir.ops import Op


def _matrix(w: QLinear) -> str:
    digest = hashlib.sha256()
    for t in (w.q, w.d, w.b, w.r):
        digest.update(b"-" if t is None else np.ascontiguousarray(t).tobytes())
    scales = f"group size {w.group_size}" if w.group_size else "per channel"
    kind = "asymmetric" if w.b is not None else "symmetric"
    if w.zero_points:
        kind += " (zero points)"
    reads = f"x {w.x_bits} bits" if w.x_bits else f"group {w.group} cmax {w.cmax}"
    text = (
        f"int{w.bits}[{w.n}, {w.k}] {kind} {scales} {reads} "
        f"drop {w.drop} shift {w.shift} Q{w.frac} sha256 {digest.hexdigest()[:16]}"
    )
    if w.engine != CORES:
        text += f" on {w.engine}"
    if w.low_rank:
        text += f" + adapter a {_matrix(w.low_rank.a)} b {_matrix(w.low_rank.b)}"
    return text


def _value(v: object) -> str:
    if isinstance(v, QLinear):
        return _matrix(v)
    if isinstance(v, np.ndarray):
        return f"{v.dtype}{list(v.shape)} sha256 {hashlib.sha256(v.tobytes()).hexdigest()[:16]}"
    return str(v)


def attributes(op: Op) -> dict[str, str]:
    """Return every attribute of an op that affects results, as text."""
    return {name: _value(value) for name, value in op.attributes().items()}


def dump(graph: Graph) -> str:
    """Return all ops in order, with types and every attribute that affects results."""
    lines = [
        f"model {graph.name}: vocab {graph.vocab}, hidden {graph.hidden}, layers {graph.num_layers}, "
        f"heads {graph.heads}/{graph.kv_heads} of {graph.head_dim}, ffn {graph.ffn}, "
        f"context {graph.context}, bos {graph.bos_id}, end {list(graph.eos_ids)}, "
        f"rope cos {_value(graph.rope_cos)}, sin {_value(graph.rope_sin)}"
    ]
    for op in graph.ops:
        listed = ", ".join(f"{name} = {text}" for name, text in attributes(op).items())
        inputs = ", ".join(op.inputs)
        lines.append(f"%{op.out}: {graph.types[op.out]} = {op.mnemonic}({inputs}) {{{listed}}}")
    return "\n".join(lines) + "\n"
