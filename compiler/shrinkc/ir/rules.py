"""Validity rules of a graph: its structure, and rules of all ops.

A rule takes (graph, op) and returns a description of the fault, or None.  Rules of a single op are in its file.
"""

from __future__ import annotations

import numpy as np

from shrinkc.core.errors import IllegalIR
from shrinkc.engines import CORES, ENGINES
from shrinkc.ir.graph import Graph, Op, Rule
from shrinkc.ir.linear import (
    ACC_MAX,
    GROUP_SUM_MAX,
    WEIGHT_MAX,
    QLinear,
    magnitudes,
)
from shrinkc.ir.ops import Linear
from shrinkc.numerics.matrices import R_MAX
from shrinkc.numerics.vectors import WIDE_BITS
from shrinkc.storage import FORMATS, WORD, ZERO_MAX, ZERO_MIN


def rule_signature(graph: Graph, op: Op) -> str | None:
    kinds = tuple(t.kind for t in graph.input_types(op.inputs))
    got = graph.types[op.out].kind
    if kinds not in op.TAKES:
        return f"takes {' or '.join(map(str, op.TAKES))}, got {kinds}"
    if got not in op.GIVES:
        return f"gives {' or '.join(op.GIVES)}, its output is {got}"
    return None


def rule_matrix(graph: Graph, op: Op) -> str | None:
    for w in op.matrices():
        if w.bits not in FORMATS:
            return f"{w.name}: {w.bits} bits"
        low, high = w.format.low, w.format.high
        if w.q.dtype != np.int8 or int(w.q.min()) < low or int(w.q.max()) > high:
            return f"{w.name}: weights outside {low}..{high}"
        for label, t, dtype in (("d", w.d, np.uint8), ("b", w.b, np.int16)):
            if t is not None and (t.shape != (w.n, w.groups) or t.dtype != dtype):
                return f"{w.name}: {label} is {t.dtype}{t.shape}, not {(w.n, w.groups)}"
        if w.d is not None and int(w.d.min()) < 1:
            return f"{w.name}: a group scale of 0"
        if w.b is not None and w.d is None:
            return f"{w.name}: offsets without group scales"
        if w.zero_points and not _are_zero_points(w):
            return f"{w.name}: offsets that are no zero points"
        if w.r.shape != (w.n,) or w.r.dtype != np.uint16:
            return f"{w.name}: row scales are {w.r.dtype}{w.r.shape}"
        if int(w.r.max()) > R_MAX:
            return f"{w.name}: a row scale of {int(w.r.max())}"
        if w.group_size is not None and w.group_size % w.group:
            return f"{w.name}: group {w.group} and group size {w.group_size} do not nest in {w.k}"
        unit = w.format.inputs if w.engine == CORES else WORD  # the others have stores of their own
        if w.pad % unit:
            return f"{w.name}: {w.bits}-bit groups padded to {w.pad}"
    return None


def _are_zero_points(w: QLinear) -> bool:
    if w.b is None or w.d is None:
        return False
    zeros, rest = np.divmod(w.b.astype(np.int32), w.d)
    return not rest.any() and ZERO_MIN <= int(zeros.min()) and int(zeros.max()) <= ZERO_MAX


def rule_drop(graph: Graph, op: Op) -> str | None:
    """Sums without group scales keep all bits.  The kernel for groups shifts right by at least one bit, except for
    formats with folded sums, which already have it."""
    for w in op.matrices():
        low, high = (0, 0) if w.d is None else (0 if w.format.fold else 1, 24)
        if not low <= w.drop <= high:
            return f"{w.name}: {w.drop} bits dropped, allowed {low}..{high}"
    return None


def rule_accumulator(graph: Graph, op: Op) -> str | None:
    """Every sum fits int32 for all possible activations, and every effective weight fits int16."""
    for w in op.matrices():
        largest, bounds = magnitudes(w.q, w.d, w.b, w.group)
        if int(largest.max(initial=0)) > WEIGHT_MAX:
            return f"{w.name}: a weight of more than {WEIGHT_MAX} units"
        top = int(bounds.max(initial=0)) << w.format.fold
        if w.d is not None and top > GROUP_SUM_MAX:
            return f"{w.name}: a group's sum up to {top}, more than {GROUP_SUM_MAX}"
        acc = w.acc_bound()
        if isinstance(op, Linear) and acc > ACC_MAX:
            return f"{w.name}: accumulator up to {acc}, more than {ACC_MAX}"
    return None


def rule_engine(graph: Graph, op: Op) -> str | None:
    """Every matrix has its engine's groups and padding; a of an adapter has its matrix's (rule_linear_types)."""
    found = op.matrices()
    for place, w in enumerate(found):
        if w.engine not in ENGINES:
            return f"{w.name}: engine '{w.engine}'; there are {', '.join(ENGINES)}"
        if place > 0 and w.engine != CORES:
            return f"{w.name}: an adapter on {w.engine}, not on the cores"
        cut = ENGINES[w.engine].cut_of(w.k, w.group_size, w.d is not None, w.bits)
        if place != 1 and (w.group, w.pad) != cut:
            got = f"groups of {w.group} padded to {w.pad}"
            return f"{w.name}: {got}; {w.engine} asks for {cut[0]} and {cut[1]}"
    return None


def rule_activations(graph: Graph, op: Op) -> str | None:
    """Matrices that read 16-bit activations have no group scales, one group, and 1 to 14 bits per activation."""
    for w in op.matrices():
        if w.x_bits and (w.d is not None or w.group != w.k or not 1 <= w.x_bits <= WIDE_BITS):
            scales = "group scales, " if w.d is not None else ""
            return f"{w.name}: {scales}groups of {w.group} and {w.x_bits}-bit activations"
    return None


COMMON: tuple[Rule, ...] = (
    rule_signature,
    rule_matrix,
    rule_activations,
    rule_drop,
    rule_accumulator,
)


def check_structure(graph: Graph) -> list[str]:
    """Return faults: values must be assigned once and before their use, and all layers must have equal ops.

    Activations may have 16 bits in one layer and 8 in another, because the formats of matrices may differ."""
    faults: list[str] = []
    seen = {"token"}
    for op in graph.ops:
        faults += [
            f"{op.out}: input {i} is not defined before it" for i in op.inputs if i not in seen
        ]
        if op.out in seen:
            faults.append(f"{op.out}: defined twice")
        if op.out not in graph.types:
            faults.append(f"{op.out}: no type")
        seen.add(op.out)
    if faults:
        return faults
    if not graph.ops or graph.types[graph.ops[-1].out].kind != "token":
        return ["the last op makes no token"]
    same = {"q8": "q16"}

    def shape(op: Op) -> tuple[str, str, str, int]:
        t = graph.types[op.out]
        return op.name, op.mnemonic, same.get(t.kind, t.kind), t.width

    shapes = [[shape(op) for op in graph.body(i)] for i in range(graph.num_layers)]
    faults += [f"layer {i} differs from layer 0" for i, s in enumerate(shapes) if s != shapes[0]]
    return faults


def check_tables(graph: Graph) -> list[str]:
    """Return faults of the RoPE tables, which need one row per position."""
    rows = (graph.context, graph.head_dim // 2)
    two = (graph.context, graph.head_dim)
    return [
        f"rope {label} is {rope.dtype}{rope.shape}, not int16{rows}"
        for label, rope in (("cos", graph.rope_cos), ("sin", graph.rope_sin))
        if rope.shape not in (rows, two)
        or rope.shape != graph.rope_cos.shape
        or rope.dtype != np.int16
    ]


def check(graph: Graph) -> None:
    """Raise one IllegalIR that lists all violations."""
    faults = check_structure(graph)
    if not faults:
        for op in graph.ops:
            for rule in (*COMMON, *op.RULES, rule_engine):
                fault = rule(graph, op)
                if fault is not None:
                    faults.append(f"{op.mnemonic} {op.out}: {fault} ({rule.__name__})")
                    break  # later rules may rely on this one
        faults += check_tables(graph)
    if faults:
        raise IllegalIR(
            f"{len(faults)} violation(s): " + "; ".join(faults[:20]),
            "this is a defect of shrinkc or a damaged file; please report it with the model's config.",
        )
