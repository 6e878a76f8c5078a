"""ONNX graph of a model: a converter per op of the IR, with the KV cache as inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from shrinkc.core.errors import UnsupportedModel
from shrinkc.export import products
from shrinkc.export.fixed import add_to_residual, saturate32
from shrinkc.export.values import I64, Builder, Value
from shrinkc.export.vectors import (
    Heads,
    StoredHeads,
    Vector,
    norm_quantize_q16,
    norm_values,
    normed,
    quantize_heads,
    quantize_q16,
    quantize_vector,
    store_heads,
)
from shrinkc.ir.graph import Graph
from shrinkc.ir.ops import (
    Attention,
    Embed,
    Linear,
    NormAdd,
    NormQuant,
    Op,
    Quant,
    RopeCache,
    Sample,
    SiluMul,
)
from shrinkc.numerics.attention import SoftmaxScale
from shrinkc.numerics.vectors import GAIN_BITS

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET, IR_VERSION = 18, 8  # of ONNX, since 2022

# name of an input or output -> its type and the names or sizes of its axes
Signature = dict[str, tuple[type, list[str | int]]]


WHOLE_BYTES = 8  # bits of keys and values that the converters have


@dataclass
class _Pass:
    """State shared by the converters of a forward pass."""

    graph: Graph
    builder: Builder
    tokens: Value
    past: Value  # number of cached positions, a scalar
    own: Value  # [T]: positions of the tokens
    positions: Value  # [S]: cached positions, and those of the tokens
    rope: list[tuple[Value, Value]]  # of each RoPE table cos and sin [T, 1, D / 2]
    caches: dict[int, dict[str, StoredHeads]] = field(default_factory=dict)

    def seen(self, window: int | None) -> Value:
        """Return [T, S]: whether a token attends to a position: its own or an earlier one, in the window if any."""
        own, positions = self.own.expand(1), self.positions.expand(0)
        causal = own >= positions
        if window is None:
            return causal
        return self.builder.node("And", causal, positions >= own - (window - 1))


def to_onnx(graph: Graph, version: str) -> ModelProto:
    """Return the model as a graph of standard operators.

    It takes any number of tokens after any number of cached positions, together at most ``graph.context``.

    Inputs: ``tokens`` int64 [T], and per layer ``past.<layer>.key`` and ``.value`` int8 [P, kv_heads, head_dim]
    with ``.key_scale`` and ``.value_scale`` int16 [P, kv_heads].  Outputs: ``logits`` int32 [T, vocab], ``next``
    int64 [1], the likeliest token after the last, and the caches ``present...`` [P + T, ...].
    ``version`` is shrinkc's.  Raises UnsupportedModel for an op that has no converter, and for a KV cache of 4 bits.
    """
    from onnx import helper

    unknown = sorted({type(op).__name__ for op in graph.ops if type(op) not in CONVERTERS})
    if unknown:
        raise UnsupportedModel(
            f"{graph.name} has operations without a converter to ONNX: {', '.join(unknown)}.",
            f"convertible: {', '.join(sorted(kind.__name__ for kind in CONVERTERS))}.",
        )
    if graph.kv_bits != WHOLE_BYTES:
        raise UnsupportedModel(
            f"{graph.name} has a KV cache of {graph.kv_bits} bits, which has no converter to ONNX.",
            f"compile it with --kv-bits {WHOLE_BYTES}.",
        )
    b = Builder()
    here = _begin(graph, b)
    values: dict[str, Any] = {"token": here.tokens}
    for op in graph.ops:
        with b.scope(op.out):
            values[op.out] = CONVERTERS[type(op)](here, op, [values[n] for n in op.inputs])
    logits = graph.ops[-1].inputs[0]
    outputs: Signature = {"logits": (np.int32, ["tokens", graph.vocab]), "next": (I64, [1])}
    _named(b, values[logits].cast(np.int32), "logits")
    _named(b, values[graph.ops[-1].out], "next")
    for layer, caches in here.caches.items():
        for name, kept in caches.items():
            _named(b, kept.q.cast(np.int8), f"present.{layer}.{name}")
            _named(b, kept.scale.cast(np.int16), f"present.{layer}.{name}_scale")
    outputs |= _cache(graph, "present", "positions")
    inputs: Signature = {"tokens": (I64, ["tokens"]), **_cache(graph, "past", "past")}
    made = helper.make_graph(
        b.nodes, graph.name, _infos(inputs), _infos(outputs), initializer=b.constants
    )
    return helper.make_model(
        made, producer_name="shrinkc", producer_version=version, ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )  # fmt: skip


def _cache(graph: Graph, when: str, positions: str) -> Signature:
    heads: list[str | int] = [positions, graph.kv_heads]
    return {
        f"{when}.{layer}.{name}{part}": (kind, axes)
        for layer in range(graph.num_layers)
        for name in ("key", "value")
        for part, kind, axes in (("", np.int8, [*heads, graph.head_dim]), ("_scale", np.int16, heads))
    }  # fmt: skip


def _infos(signature: Signature) -> list[Any]:
    from onnx import helper

    return [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), axes)
        for name, (kind, axes) in signature.items()
    ]


def _named(b: Builder, value: Value, name: str) -> None:
    """Give ``value`` the ``name`` of a graph output."""
    from onnx import helper

    b.nodes.append(helper.make_node("Identity", [value.name], [name], name=f"output/{name}"))


def _begin(graph: Graph, b: Builder) -> _Pass:
    tokens = Value(b, "tokens")
    past = Value(b, "past.0.key").size(0)
    end = past + tokens.size(0)
    own = b.arange(past, end)
    positions = b.arange(b.constant(0), end)
    cos, sin = (
        b.table(table, name).take(own).cast(I64).expand(1)
        for table, name in ((graph.rope_cos, "rope.cos"), (graph.rope_sin, "rope.sin"))
    )
    half = graph.head_dim // 2
    cuts = [(half * i, half * (i + 1)) for i in range(graph.rope_tables)]
    rope = [(cos.part(*cut, 2), sin.part(*cut, 2)) for cut in cuts] if cuts[1:] else [(cos, sin)]
    return _Pass(graph, b, tokens, past, own, positions, rope)


# ---- one function per op ----


def _embed(here: _Pass, op: Embed, args: list[Any]) -> Value:
    return products.embed(op.table, args[0], op.factor, op.shift)


def _permuted(x: Value, perm: np.ndarray | None) -> Value:
    return x if perm is None else x.take(perm.astype(I64), axis=1)


def _quant(here: _Pass, op: Quant, args: list[Any]) -> Vector:
    x, t = _permuted(args[0], op.perm), here.graph.types[op.out]
    if t.kind == "q16":
        return quantize_q16(x, t.bits)
    return quantize_vector(x, t.width, t.group, t.cmax)


def _norm_quant(here: _Pass, op: NormQuant, args: list[Any]) -> Vector:
    x, t = _permuted(args[0], op.perm), here.graph.types[op.out]
    if t.kind == "q16":
        return norm_quantize_q16(x, t.width, t.bits, op.pre_shift, op.eps, op.gain)
    gained = (x * op.gain.astype(I64)) >> GAIN_BITS
    return normed(quantize_vector(gained, t.width, t.group, t.cmax), x, op.pre_shift, op.eps)


def _norm_add(here: _Pass, op: NormAdd, args: list[Any]) -> Value:
    gain = op.gain.astype(I64)
    values = norm_values(args[0], op.pre_shift, op.eps, gain, op.factor, op.exponent)
    return add_to_residual(args[1], values)


def _linear(here: _Pass, op: Linear, args: list[Any]) -> Value:
    y = products.linear(op.weight, args[0])
    if op.bias is not None:
        y = saturate32(y + op.bias.astype(I64))
    return y if len(args) == 1 else add_to_residual(args[1], y)


def _rope_cache(here: _Pass, op: RopeCache, args: list[Any]) -> Heads:
    h, kv, d = op.heads, op.kv_heads, op.head_dim
    y = args[0].reshape(0, h + 2 * kv, d)
    rope = here.rope[op.table or 0]
    q, k, v = y.part(0, h, 1), y.part(h, h + kv, 1), y.part(h + kv, h + 2 * kv, 1)
    new = {
        "key": store_heads(k, d, op.k_unit, rope, op.norm(op.k_gain)),
        "value": store_heads(v, d, op.v_unit, None, None),
    }
    here.caches[op.layer] = {
        name: StoredHeads(*(
            here.builder.concat([Value(here.builder, f"past.{op.layer}.{name}{part}").cast(I64), value], axis=0)
            for part, value in (("", stored.q), ("_scale", stored.scale))
        ))
        for name, stored in new.items()
    }  # fmt: skip
    return quantize_heads(q, d, rope, op.norm(op.q_gain))


def _attention(here: _Pass, op: Attention, args: list[Any]) -> Value:
    how = SoftmaxScale(
        op.scale_mantissa, op.scale_exponent, op.dot_shift, op.weight_bits, op.v_unit, op.extra_bits
    )
    cache = here.caches[op.layer]
    sizes = (op.kv_heads, op.heads // op.kv_heads, op.head_dim)
    seen = here.seen(op.window)
    return products.attend(how, args[0], cache["key"], cache["value"], sizes, seen)


def _silu_mul(here: _Pass, op: SiluMul, args: list[Any]) -> Value:
    width = here.graph.types[op.out].width
    return products.silu_mul(
        args[0], width, op.gate_shift, op.shift, op.up_shift, op.gelu is not None
    )


def _sample(here: _Pass, op: Sample, args: list[Any]) -> Value:
    """Return the likeliest token (ties: the lowest id)."""
    last = args[0].take(here.builder.constant([-1]))
    return here.builder.node("ArgMax", last, axis=1, keepdims=0)


CONVERTERS: dict[type[Op], Callable[[_Pass, Any, list[Any]], Any]] = {
    Attention: _attention,
    Embed: _embed,
    Linear: _linear,
    NormAdd: _norm_add,
    NormQuant: _norm_quant,
    Quant: _quant,
    RopeCache: _rope_cache,
    Sample: _sample,
    SiluMul: _silu_mul,
}
