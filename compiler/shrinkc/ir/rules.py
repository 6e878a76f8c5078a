"""What a legal graph is: a readable list of rules, run after every pass.

A rule takes (graph, op) and returns what is wrong, or None.  ``check`` collects every
violation and raises one IllegalIR.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from shrinkc.core.errors import IllegalIR
from shrinkc.ir.graph import Graph
from shrinkc.ir.linear import (
    ACC_MAX,
    SEGMENT_SUM_MAX,
    WEIGHT_MAX,
    QLinear,
    magnitudes,
    unit_bound,
)
from shrinkc.ir.ops import (
    Attention,
    Embed,
    Linear,
    NormQuant,
    Op,
    Quant,
    RopeCache,
    Sample,
    SiluMul,
    Type,
)
from shrinkc.numerics.fixed import INT32_MAX, QMAX, round_shift
from shrinkc.numerics.vectors import square_pre_shift
from shrinkc.storage import FORMATS

Rule = Callable[[Graph, Op], str | None]

# of the scales in the cache: an int32 is normalised by at most 14 bits, and a norm of heads of up
# to 2**16 inputs gives at most 2**(31 + 8)
UNIT_MIN, UNIT_MAX = -14, 31

PADS = {f.inputs for f in FORMATS.values()}

# op -> (kinds of its inputs, kind of its output)
SIGNATURES: dict[type[Op], tuple[tuple[tuple[str, ...], ...], str]] = {
    Embed: ((("token",),), "i32"),
    NormQuant: ((("i32",),), "q8"),
    Quant: ((("i32",),), "q8"),
    Linear: ((("q8",), ("q8", "i32")), "i32"),
    RopeCache: ((("i32",),), "heads8"),
    Attention: ((("heads8",),), "i32"),
    SiluMul: ((("i32",),), "i32"),
    Sample: ((("logits",),), "token"),
}


def input_types(graph: Graph, op: Op) -> list[Type]:
    return [Type("token", 1) if name == "token" else graph.types[name] for name in op.inputs]


def matrices(op: Op) -> list[QLinear]:
    """Every matrix an op holds, side paths included."""
    w = op.weight if isinstance(op, Linear) else op.table if isinstance(op, Embed) else None
    if w is None:
        return []
    return [w] + ([w.low_rank.a, w.low_rank.b] if w.low_rank else [])


def rule_signature(graph: Graph, op: Op) -> str | None:
    allowed, out = SIGNATURES[type(op)]
    kinds = tuple(t.kind for t in input_types(graph, op))
    got = graph.types[op.out].kind
    if kinds not in allowed:
        return f"takes {' or '.join(map(str, allowed))}, got {kinds}"
    if got != out and not (isinstance(op, Linear) and got == "logits"):
        return f"gives {out}, its output is {got}"
    return None


def rule_matrix(graph: Graph, op: Op) -> str | None:
    for w in matrices(op):
        if w.bits not in FORMATS:
            return f"{w.name}: {w.bits} bits"
        low, high = w.format.low, w.format.high
        if w.q.dtype != np.int8 or int(w.q.min()) < low or int(w.q.max()) > high:
            return f"{w.name}: weights outside {low}..{high}"
        for label, t, dtype in (("d", w.d, np.uint8), ("b", w.b, np.int16)):
            if t is not None and (t.shape != (w.n, w.nseg) or t.dtype != dtype):
                return f"{w.name}: {label} is {t.dtype}{t.shape}, not {(w.n, w.nseg)}"
        if w.d is not None and int(w.d.min()) < 1:
            return f"{w.name}: a group scale of 0"
        if w.b is not None and w.d is None:
            return f"{w.name}: offsets without group scales"
        if w.r.shape != (w.n,) or w.r.dtype != np.uint16:
            return f"{w.name}: row scales are {w.r.dtype}{w.r.shape}"
        if w.group is not None and w.group % w.seg:
            return f"{w.name}: segment {w.seg} and group {w.group} do not nest in {w.k}"
        if w.pad not in PADS or w.pad % w.format.inputs:
            return f"{w.name}: {w.bits}-bit segments padded to {w.pad}"
    return None


def rule_drop(graph: Graph, op: Op) -> str | None:
    """Segments that are not grouped keep all bits; the kernel for groups rounds by at least one,
    which a format that folds has anyway."""
    for w in matrices(op):
        low, high = (0, 0) if w.d is None else (0 if w.format.fold else 1, 24)
        if not low <= w.drop <= high:
            return f"{w.name}: {w.drop} bits dropped, allowed {low}..{high}"
    return None


def rule_accumulator(graph: Graph, op: Op) -> str | None:
    """Every sum fits int32 whatever the activations are, and every weight int16."""
    for w in matrices(op):
        largest, bounds = magnitudes(w.q, w.d, w.b, w.seg)
        if int(largest.max(initial=0)) > WEIGHT_MAX:
            return f"{w.name}: a weight of more than {WEIGHT_MAX} units"
        top = int(bounds.max(initial=0)) << w.format.fold
        if w.d is not None and top > SEGMENT_SUM_MAX:
            return f"{w.name}: a segment's sum up to {top}, more than {SEGMENT_SUM_MAX}"
        acc = unit_bound(bounds, w.drop) * w.cmax
        if isinstance(op, Linear) and acc > ACC_MAX:
            return f"{w.name}: accumulator up to {acc}, more than {ACC_MAX}"
    return None


def rule_linear_types(graph: Graph, op: Op) -> str | None:
    if not isinstance(op, Linear):
        return None
    w, types = op.weight, input_types(graph, op)
    x, y = types[0], graph.types[op.out]
    if (x.width, x.seg, x.cmax) != (w.k, w.seg, w.cmax):
        return f"input {x} does not match {w.name} [{w.n}, {w.k}] seg {w.seg} cmax {w.cmax}"
    if (y.width, y.frac) != (w.n, w.frac):
        return f"output {y} does not match {w.name} [{w.n}, {w.k}] Q{w.frac}"
    if op.bias is not None and (op.bias.shape != (w.n,) or op.bias.dtype != np.int32):
        return f"bias is {op.bias.dtype}{op.bias.shape}, not int32{(w.n,)}"
    if op.bias is not None and int(op.bias.min()) < -INT32_MAX:
        return "a bias of -2**31"
    if len(types) == 2 and (types[1].width, types[1].frac) != (w.n, w.frac):
        return f"residual {types[1]} does not match Q{w.frac}"
    if w.low_rank:
        a, b = w.low_rank.a, w.low_rank.b
        if (a.k, a.seg, a.cmax, a.pad) != (w.k, w.seg, w.cmax, w.pad):
            return f"{a.name} does not share the activations of {w.name}"
        if a.n != b.k or b.n != w.n or b.frac != w.frac:
            return f"side path {a.n}->{b.n} does not fit {w.name}"
    return None


def rule_norm(graph: Graph, op: Op) -> str | None:
    if not isinstance(op, NormQuant):
        return None
    k = input_types(graph, op)[0].width
    if op.pre_shift != square_pre_shift(k):
        return f"pre_shift {op.pre_shift} for width {k}"
    if not 1 <= op.eps <= 1 << 61:
        return f"eps {op.eps} outside 1..2**61"
    if op.gain.shape != (k,) or op.gain.dtype != np.int16:
        return f"gain is {op.gain.dtype}{op.gain.shape}"
    if int(op.gain.min()) < -32767:
        return "a gain of -32768"
    return None


def rule_permutation(graph: Graph, op: Op) -> str | None:
    if not isinstance(op, (NormQuant, Quant)) or op.perm is None:
        return None
    k = input_types(graph, op)[0].width
    if op.perm.dtype != np.uint16 or not np.array_equal(np.sort(op.perm), np.arange(k)):
        return f"perm is no permutation of {k} inputs in uint16"
    return None


def rule_heads(graph: Graph, op: Op) -> str | None:
    if isinstance(op, RopeCache):
        want = (op.heads + 2 * op.kv_heads) * op.head_dim
        got = input_types(graph, op)[0].width
        if want != got:
            return f"needs {want} values per token, gets {got}"
    if isinstance(op, (RopeCache, Attention)):
        if op.heads % op.kv_heads:
            return f"{op.heads} heads over {op.kv_heads} KV heads"
        if op.head_dim % 2:
            return f"odd head_dim {op.head_dim}"
        units = (op.v_unit, op.k_unit) if isinstance(op, RopeCache) else (op.v_unit,)
        for unit in units:
            if not UNIT_MIN <= unit <= UNIT_MAX:
                return f"scales in units of 2**{unit}, allowed {UNIT_MIN}..{UNIT_MAX}"
    if isinstance(op, Attention):
        if (1 << op.weight_bits) * 127 * graph.context > 1 << 31:
            return f"{op.weight_bits}-bit probabilities overflow at context {graph.context}"
        if graph.context > 4094:
            return f"context {graph.context}: more than 4094 probabilities overflow their Q20 sum"
        if not 1 << 14 <= op.scale_mantissa <= 1 << 15:
            return f"scale mantissa {op.scale_mantissa}"
        if round_shift(op.head_dim * QMAX * QMAX, op.dot_shift) > 32767:
            return f"dot products of {op.head_dim} inputs less {op.dot_shift} bits are not 16 bits"
    return None


def rule_head_norm(graph: Graph, op: Op) -> str | None:
    if not isinstance(op, RopeCache):
        return None
    parts = (op.q_gain, op.k_gain, op.eps, op.pre_shift)
    if all(part is None for part in parts):
        return None
    if op.q_gain is None or op.k_gain is None or op.eps is None or op.pre_shift is None:
        return "norms of heads need both gains, eps and pre_shift"
    if op.pre_shift != square_pre_shift(op.head_dim):
        return f"pre_shift {op.pre_shift} for heads of {op.head_dim}"
    if not 1 <= op.eps <= 1 << 61:
        return f"eps {op.eps} outside 1..2**61"
    for gain in (op.q_gain, op.k_gain):
        if gain.shape != (op.head_dim,) or gain.dtype != np.int16:
            return f"gain of a head is {gain.dtype}{gain.shape}"
        if int(gain.min()) < -32767:
            return "a gain of -32768"
    return None


def rule_shifts(graph: Graph, op: Op) -> str | None:
    if isinstance(op, SiluMul) and not (0 <= op.shift <= 15 and -20 <= op.gate_shift <= 31):
        return f"shifts {op.shift} and {op.gate_shift} outside 0..15 and -20..31"
    if isinstance(op, Embed) and not 0 < op.factor < 1 << 31:
        return f"factor {op.factor} outside 1..2**31-1"
    return None


RULES: tuple[Rule, ...] = (
    rule_signature,
    rule_matrix,
    rule_drop,
    rule_accumulator,
    rule_linear_types,
    rule_norm,
    rule_permutation,
    rule_heads,
    rule_head_norm,
    rule_shifts,
)


def check_structure(graph: Graph) -> list[str]:
    """Single assignment, inputs defined before use, and equal bodies for the layer loop."""
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
    shapes = [
        [(op.mnemonic, graph.types[op.out].kind, graph.types[op.out].width) for op in graph.body(i)]
        for i in range(graph.num_layers)
    ]
    faults += [f"layer {i} differs from layer 0" for i, s in enumerate(shapes) if s != shapes[0]]
    return faults


def check(graph: Graph) -> None:
    """Raise IllegalIR naming every violated rule."""
    faults = check_structure(graph)
    if not faults:
        for op in graph.ops:
            for rule in RULES:
                fault = rule(graph, op)
                if fault is not None:
                    faults.append(f"{op.mnemonic} {op.out}: {fault} ({rule.__name__})")
                    break  # later rules may rely on this one
    if faults:
        raise IllegalIR(
            f"{len(faults)} violation(s): " + "; ".join(faults[:20]),
            "this is a defect of shrinkc or a damaged file; please report it with the model's config.",
        )
