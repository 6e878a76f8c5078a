"""RoPE of queries and keys, and the KV cache."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from shrinkc.abi import kv_block_bytes, query_bytes, wide_channels
from shrinkc.costs import Arithmetic, Work
from shrinkc.costs.work import share
from shrinkc.ir.graph import Graph, Op, State
from shrinkc.ir.ops.normquant import norm_weight_uses
from shrinkc.ir.steps import Access, Call, PassSizes, Step, Use
from shrinkc.numerics import vectors
from shrinkc.numerics.fixed import I64
from shrinkc.storage import KV_BITS


@dataclass
class Cache:
    """KV cache of a layer in the interpreter: parts of the keys, and the values.

    A part is int64 [context, kv_heads, channels], with scales [context, kv_heads]."""

    k: list[vectors.StoredHeads]
    v: vectors.StoredHeads

    @classmethod
    def of(cls, state: State, layer: int) -> Cache:
        """Return the layer's cache, which is created at its first use."""
        key = (cls, layer)
        if key not in state.kept:
            g = state.graph
            scales = (g.context, g.kv_heads)

            def zeros(channels: int) -> vectors.StoredHeads:
                return vectors.StoredHeads(
                    np.zeros((*scales, channels), I64), np.zeros(scales, I64)
                )

            parts = [zeros(channels) for _, channels in key_parts(g.head_dim, g.kv_bits)]
            state.kept[key] = cls(parts, zeros(g.head_dim))
        found: Cache = state.kept[key]
        return found


def key_parts(head_dim: int, kv_bits: int) -> list[tuple[vectors.Coding, int]]:
    """Return the coding and the number of channels of each part of a key in the cache."""
    if kv_bits == KV_BITS[0]:
        return [(vectors.Coding.BYTES, head_dim)]
    wide = wide_channels(head_dim)
    parts = [(vectors.Coding.BYTES, wide), (vectors.Coding.NIBBLES, head_dim - wide)]
    return [part for part in parts if part[1]]


class Heads(Protocol):
    """An op that works on attention heads."""

    heads: int
    kv_heads: int
    head_dim: int


def rule_heads(graph: Graph, op: Heads) -> str | None:
    if op.heads % op.kv_heads:
        return f"{op.heads} heads over {op.kv_heads} KV heads"
    if op.head_dim % 2:
        return f"odd head_dim {op.head_dim}"
    return None


# Exponents of the unit of scales in the cache: an int32 is normalised by at most 14 bits, and a norm of
# heads of up to 2**16 inputs gives at most 2**(31 + 8).
UNIT_MIN, UNIT_MAX = -14, 31
KEY_CHANNELS_MAX = 256  # whose numbers are bytes
# work of ordering and packing a channel, times that of rounding it to a byte
CODES_PER_CHANNEL = 6.0


def unit_fault(unit: int) -> str | None:
    """Return the fault of an exponent of the unit of scales, or None."""
    if UNIT_MIN <= unit <= UNIT_MAX:
        return None
    return f"scales in units of 2**{unit}, allowed {UNIT_MIN}..{UNIT_MAX}"


def rule_units(graph: Graph, op: RopeCache) -> str | None:
    return unit_fault(op.k_unit) or unit_fault(op.v_unit)


def rule_qkv(graph: Graph, op: RopeCache) -> str | None:
    want = (op.heads + 2 * op.kv_heads) * op.head_dim
    got = graph.input_types(op.inputs)[0].width
    return None if want == got else f"needs {want} values per token, gets {got}"


def rule_rope(graph: Graph, op: RopeCache) -> str | None:
    tables = 2 * graph.rope_cos.shape[-1] // graph.head_dim
    if (op.table is None) == (tables == 1) and 0 <= (op.table or 0) < tables:
        return None
    return f"RoPE table {op.table} of {tables}"


def rule_key_order(graph: Graph, op: RopeCache) -> str | None:
    if op.cache_bits() != graph.kv_bits:
        return f"a cache of {op.cache_bits()} bits, others have {graph.kv_bits}"
    if op.key_order is None:
        return None
    if op.head_dim > KEY_CHANNELS_MAX:
        return f"a cache of 4 bits with heads of {op.head_dim}, at most {KEY_CHANNELS_MAX}"
    if op.key_order.dtype != np.uint8 or op.key_order.shape != (op.kv_heads, op.head_dim):
        return f"key order is {op.key_order.dtype}{op.key_order.shape}"
    if (np.sort(op.key_order, axis=1) != np.arange(op.head_dim)).any():
        return "a key order that is no permutation"
    return None


def rule_head_norm(graph: Graph, op: RopeCache) -> str | None:
    parts = (op.q_gain, op.k_gain, op.eps, op.pre_shift)
    if all(part is None for part in parts):
        return None
    if op.q_gain is None or op.k_gain is None or op.eps is None or op.pre_shift is None:
        return "norms of heads need both gains, eps and pre_shift"
    if op.pre_shift != vectors.square_pre_shift(op.head_dim):
        return f"pre_shift {op.pre_shift} for heads of {op.head_dim}"
    if not 1 <= op.eps <= 1 << 61:
        return f"eps {op.eps} outside 1..2**61"
    for gain in (op.q_gain, op.k_gain):
        if gain.shape != (op.head_dim,) or gain.dtype != np.int16:
            return f"gain of a head is {gain.dtype}{gain.shape}"
        if int(gain.min()) < -32767:
            return "a gain of -32768"
    return None


class CacheSizes(Protocol):
    """The sizes of one position of a KV cache."""

    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def kv_bits(self) -> int: ...


@dataclass(frozen=True)
class KvShape:
    """Bytes of the KV cache's blocks of 4 positions, and their number; the C twin is sc_attention.h."""

    k_block: int
    v_block: int
    blocks: int

    @classmethod
    def of(cls, context: int, sizes: CacheSizes) -> KvShape:
        """Return the shape of a cache of ``context`` positions."""
        blocks = kv_block_bytes(sizes.kv_heads, sizes.head_dim, sizes.kv_bits)
        return cls(*blocks, -(-context // 4))


def cache_uses(sizes: PassSizes) -> Iterable[Use]:
    """Return the uses of the KV cache in L1: of all layers, or of the current one."""
    if sizes.kv_in_l1:
        kv = KvShape.of(sizes.most_cached, sizes)
        blocks = sum(-(-positions // 4) for positions in sizes.cached)
        yield Use("k_cache", Access.KEEP, blocks * kv.k_block)
        yield Use("v_cache", Access.KEEP, blocks * kv.v_block)
    yield from layer_cache_uses(sizes)


def scales_use(sizes: PassSizes) -> Use:
    """Return the use of the bitwise OR of all value scales so far, which has as many bits as the largest scale."""
    return Use("value_scales", Access.KEEP, 2 * sizes.num_layers * sizes.kv_heads)


def layer_cache_uses(sizes: PassSizes) -> Iterable[Use]:
    """Return the use of the buffer for the current layer's KV cache.

    It is filled during the previous layer (KEEP), or in an in-place plan during the layer itself (UPDATE)."""
    if sizes.kv_window:
        yield layer_cache_use(sizes, Access.UPDATE if sizes.in_place else Access.KEEP)


def layer_cache_use(sizes: PassSizes, access: Access) -> Use:
    kv = KvShape.of(sizes.most_cached, sizes)
    return Use("kv_layer", access, sizes.kv_window * (kv.k_block + kv.v_block))


def layer_cache_bytes(call: Call) -> float:
    """Return the bytes of a layer's KV cache that are copied into L1: all positions before the pass."""
    sizes = call.sizes
    if not sizes.cache_in_l1(call.position + call.tokens, call.window):
        return 0.0
    kv = KvShape.of(min(call.position, call.cached), sizes)
    return float(kv.blocks * (kv.k_block + kv.v_block))


@dataclass
class RopeCache(Op):
    """i32 qkv -> heads8 q; k and v are appended to the layer's KV cache.

    Scales in the cache are in units of 2**k_unit and 2**v_unit.  ``q_gain`` and ``k_gain``, int16 [head_dim] in Q15,
    are the weights of an RMSNorm of every head of q and k, with ``eps`` and ``pre_shift`` as in NormQuant; all four
    are None without such norms.  ``table``: which of the graph's RoPE tables, None if there is only one.
    ``key_order`` uint8 [kv_heads, head_dim]: channels of queries and keys in a cache of 4 bits; the first
    ``wide_channels`` of them have 8 bits.  Values are stored after a Hadamard rotation.  None: keys and values have
    8 bits.
    """

    OPTIONAL = frozenset({"q_gain", "k_gain", "eps", "pre_shift", "table", "key_order"})
    GIVES = ("heads8",)
    RULES = (rule_qkv, rule_heads, rule_units, rule_head_norm, rule_rope, rule_key_order)
    KERNEL = "sc_step_heads"
    BUFFER = "q8"
    NUMBERS = MappingProxyType({"k_unit": "int8_t", "v_unit": "int8_t"})

    heads: int
    kv_heads: int
    head_dim: int
    k_unit: int
    v_unit: int
    q_gain: np.ndarray | None = None
    k_gain: np.ndarray | None = None
    eps: int | None = None
    pre_shift: int | None = None
    table: int | None = None
    key_order: np.ndarray | None = None

    def cache_bits(self) -> int:
        return KV_BITS[0] if self.key_order is None else KV_BITS[1]

    def run(self, state: State, args: Sequence[Any]) -> vectors.QHeads:
        y = np.asarray(args[0])
        t, h, kv, d = len(y), self.heads, self.kv_heads, self.head_dim
        at = slice(state.position, state.position + t)
        pairs = slice((self.table or 0) * d // 2, ((self.table or 0) + 1) * d // 2)
        cos = state.graph.rope_cos[at, pairs].astype(I64)
        sin = state.graph.rope_sin[at, pairs].astype(I64)
        parts = np.split(y.reshape(t, h + 2 * kv, d), (h, h + kv), axis=1)
        q = vectors.quantize_heads(parts[0], cos, sin, self.norm(self.q_gain))
        cache = Cache.of(state, self.layer)
        k_norm = self.norm(self.k_gain)
        if self.key_order is None:
            k = [vectors.store_heads(parts[1], self.k_unit, cos, sin, k_norm)]
            v = vectors.store_heads(parts[2], self.v_unit)
        else:
            order = self.key_order.astype(I64)
            q.q = np.take_along_axis(q.q, np.repeat(order, h // kv, axis=0)[None], axis=2)
            codings = key_parts(d, self.cache_bits())
            cuts = np.split(order, np.cumsum([n for _, n in codings])[:-1], axis=1)
            each = [(coding, cut) for (coding, _), cut in zip(codings, cuts, strict=True)]
            k = vectors.store_parts(parts[1], self.k_unit, each, cos, sin, k_norm)
            v = vectors.store_rotated(parts[2], self.v_unit)
        for kept, new in zip([*cache.k, cache.v], [*k, v], strict=True):
            kept.q[at], kept.scale[at] = new.q, new.scale
        return q

    def norm(self, gain: np.ndarray | None) -> vectors.HeadNorm | None:
        """Return the norm of heads with the given weights, or None."""
        if gain is None or self.pre_shift is None or self.eps is None:
            return None
        return vectors.HeadNorm(gain.astype(I64), self.pre_shift, self.eps)

    def numbers(self) -> tuple[int, ...]:
        return self.k_unit, self.v_unit

    def macros(self) -> dict[str, int | str]:
        if self.pre_shift is None:
            return {}
        return {"HAS_HEAD_NORM": 1, "HEAD_NORM_SHIFT": self.pre_shift}

    @classmethod
    def width(cls, step: Step, sizes: PassSizes) -> int:
        return sizes.heads * query_bytes(sizes.head_dim, sizes.kv_bits)

    @classmethod
    def uses(cls, step: Step, sizes: PassSizes) -> Iterable[Use]:
        yield Use(sizes.buffer(step.inputs[0]), Access.READ)
        row = 2 * sizes.head_dim * sizes.rope_tables
        yield Use("rope", Access.PREFETCHED, sizes.chunk * row)
        yield Use("head_work", Access.SCRATCH, 4 * sizes.head_cores * sizes.head_dim)
        yield Use("q8", Access.WRITE, sizes.chunk * cls.width(step, sizes))
        yield Use("q_scale", Access.WRITE, sizes.words(sizes.heads))
        yield scales_use(sizes)
        yield from cache_uses(sizes)
        yield from norm_weight_uses(sizes)  # prefetches those of the norm after attention

    @classmethod
    def work(cls, step: Step, call: Call) -> Work:
        """Return the heads of q, k and v that the busiest core has."""
        sizes = call.sizes
        heads = share(
            call.tokens * (sizes.heads + 2 * sizes.kv_heads), sizes.head_cores_for(call.tokens)
        )
        channels = float(heads * sizes.head_dim)
        if sizes.kv_bits != KV_BITS[0]:  # estimated
            channels *= CODES_PER_CHANNEL
        return Work({"calls": 1, "heads": heads, "channels": channels})

    @classmethod
    def arithmetic(cls, step: Step, call: Call) -> Arithmetic:
        """Return two products per channel for the rotation of queries and keys, and one for every scaling."""
        s = call.sizes
        channels = (s.heads + 2 * s.kv_heads) * s.head_dim
        rotated = (s.heads + s.kv_heads) * s.head_dim
        kv = KvShape.of(4, s)
        written = s.heads * query_bytes(s.head_dim, s.kv_bits) + (kv.k_block + kv.v_block) / 4
        return Arithmetic(
            call.tokens * (channels + 2 * rotated), call.tokens * (4.0 * channels + written)
        )
