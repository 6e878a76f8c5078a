"""Attention over the KV cache."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from shrinkc.abi import EXP2_STEPS_BYTES, head_scratch_bytes, head_state_bytes, query_bytes
from shrinkc.costs import Arithmetic, Work
from shrinkc.costs.work import share
from shrinkc.ir.graph import Graph, Op, State
from shrinkc.ir.ops.ropecache import (
    Cache,
    KvShape,
    cache_uses,
    key_parts,
    rule_heads,
    scales_use,
    unit_fault,
)
from shrinkc.ir.steps import Access, Call, PassSizes, Step, Use
from shrinkc.numerics.attention import SoftmaxScale, attend
from shrinkc.numerics.fixed import I64, QMAX, round_shift
from shrinkc.numerics.vectors import Coding, QHeads, StoredHeads, rotate_heads, rotation_bits
from shrinkc.storage import KV_BITS

EXTRA_BITS_MAX = 15


def value_max(kv_bits: int) -> int:
    """Return the largest magnitude of a value in the cache."""
    return (Coding.BYTES if kv_bits == KV_BITS[0] else Coding.NIBBLES).largest


def dot_max(head_dim: int, kv_bits: int) -> int:
    """Return the largest sum of the magnitudes of the dot products of a query and the parts of a key."""
    return sum(QMAX * coding.largest * n for coding, n in key_parts(head_dim, kv_bits))


def weight_bits(context: int, kv_bits: int) -> int:
    """Return the most bits of a probability with which a sum of values over ``context`` positions has 32 bits."""
    bits = 24 - max(9, (context - 1).bit_length())
    return min(15, bits) if kv_bits == KV_BITS[0] else bits - 1


def rule_probabilities(graph: Graph, op: Attention) -> str | None:
    if (1 << op.weight_bits) * value_max(graph.kv_bits) * graph.context > 1 << 31:
        return f"{op.weight_bits}-bit probabilities overflow at context {graph.context}"
    if graph.context > 4096:
        return (
            f"context {graph.context}: more than 4096 positions leave probabilities below 12 bits"
        )
    if not 1 << 14 <= op.scale_mantissa <= 1 << 15:
        return f"scale mantissa {op.scale_mantissa}"
    if round_shift(dot_max(op.head_dim, graph.kv_bits), op.dot_shift) > 32767:
        return f"dot products of {op.head_dim} inputs less {op.dot_shift} bits are not 16 bits"
    least = 0 if graph.kv_bits == KV_BITS[0] else -rotation_bits(op.head_dim) - 2
    if not least <= op.extra_bits <= EXTRA_BITS_MAX:
        return f"{op.extra_bits} fraction bits more than values have, allowed {least}..{EXTRA_BITS_MAX}"
    return unit_fault(op.v_unit) or unit_fault(op.v_unit + op.extra_bits)


def rule_window(graph: Graph, op: Attention) -> str | None:
    if op.window is None or 0 < op.window < graph.context:
        return None
    return f"a window of {op.window} positions at context {graph.context}"


STEPS_FROM = 128
"""Smallest context for a table of all exp2 values: 9 KiB of L1 that save two instructions per probability."""

SHARES_MAX = 3

CODES_PER_CHANNEL = 1.16
CODES_PER_POSITION = 3.5
ROTATION_STAGE = 1 / 6
"""Work with a cache of 4 bits: times that with 8 bits per channel of a position and per position, and of a stage of the
rotation times that of finishing a channel."""


def shared_from(sizes: PassSizes) -> int:
    """Return the number of positions from which cores share heads (SC_SHARED_FROM in C).

    Sharing costs each core about 1000 cycles, and one position of a head takes about 18 + 2 * head_dim cycles."""
    cores = sizes.head_cores_for(1)
    left = sizes.heads % cores
    return 1000 * cores // ((18 + 2 * sizes.head_dim) * (cores - left)) + 1


def states_per_core(sizes: PassSizes) -> int:
    """Return the attention states that each core needs: one if the KV cache comes in pieces at some position, or one
    per part of a head if cores share heads; 0 if the cache streams from HyperRAM, where each head has one.

    Heads left over after an equal distribution are divided among the cores by ranges of positions (sc_shares.h), if
    the cache is in L1, each core gets at most SHARES_MAX parts, and the context is long enough."""
    if sizes.kv_streamed:
        return 0
    least = 0 if sizes.kv_in_l1 or sizes.kv_layer_in_l1 else 1
    cores = sizes.head_cores_for(1)
    left = sizes.heads % cores
    in_l1 = sizes.kv_in_l1 or sizes.kv_window > 0
    if left == 0 or not in_l1 or sizes.context < shared_from(sizes):
        return least
    shares = left // math.gcd(left, cores)
    return shares if shares <= SHARES_MAX else least


def heads_shared(sizes: PassSizes, position: int, window: int = 0) -> tuple[int, int]:
    """Return (parts of heads per core, parts of each head) at a position; (0, 1) if no heads are shared, as in layers
    with a window.

    The C twin is heads_shared() in sc_shares.h."""
    cores = sizes.head_cores_for(1)
    left = sizes.heads % cores
    if left == 0 or window or not sizes.cache_in_l1(position + 1):
        return 0, 1
    ranges = cores // math.gcd(left, cores)
    shares, blocks = left * ranges // cores, position // 4 + 1
    fits = shares * -(-blocks // ranges) <= -(-sizes.context // 4) and blocks >= ranges
    if shares > SHARES_MAX or position + 1 < shared_from(sizes) or not fits:
        return 0, 1
    return shares, ranges


SCORES_AGAIN = {8: 1.5, 4: 2.2}
"""Work with a cache of that many bits that streams, times that with one in L1: scores are computed twice."""

HYPERRAM_BEGIN, HYPERRAM_WRITE = 400, 20 / 11
"""Bytes of HyperRAM that could be read while the next transfer begins, and while a byte is written."""


@dataclass
class Attention(Op):
    """Attention: heads8 q and the layer's KV cache -> i32 [heads * head_dim], 127/128 of the value.

    ``dot_shift`` makes a head's dot product fit 16 bits.  ``scale_mantissa`` (15 bits) and ``scale_exponent`` convert
    its product with both scales to log2 units.  Probabilities have ``weight_bits`` bits; ``v_unit`` as in RopeCache.
    A mean of values of both signs is small, so the result has ``extra_bits`` more fraction bits than the values
    (numerics/attention.py).  With a cache of 4 bits the values are rotated; the result is rotated back, which adds
    as many fraction bits as the two rotations multiply by.  A token attends to its own and the ``window`` - 1
    positions before it; None: to all.
    """

    OPTIONAL = frozenset({"window"})
    TAKES = (("heads8",),)
    RULES = (rule_heads, rule_probabilities, rule_window)
    KERNEL = "sc_step_attention"
    READS_CACHE = True
    NUMBERS = MappingProxyType(
        {"score_mantissa": "uint16_t", "score_exponent": "int16_t", "mean_unit": "int8_t"}
    )

    heads: int
    kv_heads: int
    head_dim: int
    scale_mantissa: int
    scale_exponent: int
    dot_shift: int
    weight_bits: int
    v_unit: int
    extra_bits: int
    window: int | None = None

    def run(self, state: State, args: Sequence[Any]) -> np.ndarray:
        q, cache = args[0], Cache.of(state, self.layer)
        tokens, end = q.q.shape[0], state.position + q.q.shape[0]
        past, own = np.arange(end)[None, :], (state.position + np.arange(tokens))[:, None]
        seen = past <= own
        if self.window is not None:
            seen &= past > own - self.window
        out = np.empty((tokens, self.heads, self.head_dim), I64)
        per_kv = self.heads // self.kv_heads
        softmax = SoftmaxScale(
            self.scale_mantissa,
            self.scale_exponent,
            self.dot_shift,
            self.weight_bits,
            self.v_unit,
            self.extra_bits,
        )
        for h in range(self.heads):
            *keys, values = (
                StoredHeads(t.q[:end, h // per_kv], t.scale[:end, h // per_kv])
                for t in (*cache.k, cache.v)
            )
            query = QHeads(q.q[:, h], q.mantissa[:, h], q.exponent[:, h])
            out[:, h] = attend(softmax, query, keys, values, seen)
        if state.graph.kv_bits != KV_BITS[0]:
            out = rotate_heads(out)  # values are rotated in the cache
        return out.reshape(tokens, -1)

    def positions(self) -> int:
        return self.window or 0

    def macros(self) -> dict[str, int | str]:
        return {"DOT_SHIFT": self.dot_shift, "ATTENTION_WEIGHT_BITS": self.weight_bits}

    def numbers(self) -> tuple[int, ...]:
        return self.scale_mantissa, self.scale_exponent, self.v_unit + self.extra_bits

    @classmethod
    def width(cls, step: Step, sizes: PassSizes) -> int:
        return sizes.heads * sizes.head_dim

    @classmethod
    def uses(cls, step: Step, sizes: PassSizes) -> Iterable[Use]:
        yield from (Use(name, Access.READ) for name in ("q8", "q_scale"))
        yield scales_use(sizes)
        yield Use("pass_scales", Access.SCRATCH, 2 * sizes.chunk * sizes.kv_heads)
        positions = 4 * sizes.kv_tile if sizes.kv_streamed else sizes.context
        scratch = sizes.head_cores * head_scratch_bytes(positions)
        yield Use("head_scratch", Access.SCRATCH, scratch)
        of_cores = sizes.head_cores_for(1) * states_per_core(sizes)
        if states := of_cores or sizes.turn * sizes.heads:
            yield Use("head_state", Access.SCRATCH, states * head_state_bytes(sizes.head_dim))
        yield from cache_uses(sizes)
        in_l1 = sizes.kv_in_l1 or sizes.kv_window > 0
        if in_l1 and sizes.context >= STEPS_FROM:
            yield Use("exp2", Access.KEEP, EXP2_STEPS_BYTES)
        if not in_l1:
            kv = KvShape.of(sizes.most_cached, sizes)
            both = kv.k_block + kv.v_block
            block = both if sizes.kv_streamed else max(kv.k_block, kv.v_block)
            piece = -(-sizes.kv_tile * block // 16) * 16
            yield Use("kv_tile", Access.SCRATCH, 2 * piece)
        yield Use("y", Access.WRITE, sizes.words(cls.width(step, sizes)))

    @classmethod
    def work(cls, step: Step, call: Call) -> Work:
        """Return the work of the busiest core: whole query heads over the positions up to their token, and in decoding
        its parts of shared heads."""
        sizes = call.sizes
        whole = sizes.cache_in_l1(call.position + call.tokens, call.window)
        cores = sizes.head_cores_for(call.tokens) if whole else sizes.cores
        shares, ranges = (
            heads_shared(sizes, call.position, call.window) if call.tokens == 1 else (0, 1)
        )
        alone = sizes.heads - shares * cores // ranges
        lives = (
            [
                [
                    call.seen(call.position + item // alone)
                    for item in range(core, call.tokens * alone, cores)
                ]
                for core in range(cores)
            ]
            if alone
            else [[]]
        )
        most = max(lives, key=sum) + shares * [4 * -(-(call.position // 4 + 1) // ranges)]
        fours = sum(-(-live // 4) for live in most)
        d = sizes.head_dim
        features: dict[str, float] = {
            "calls": 1, "heads": len(most), "channels": len(most) * d, "positions": sum(most),
            "position_channels": 4 * fours * d, "shared": int(shares > 0),
        }  # fmt: skip
        if sizes.kv_bits != KV_BITS[0]:  # estimated from the instructions of the loops
            features["position_channels"] *= CODES_PER_CHANNEL
            features["positions"] *= CODES_PER_POSITION
            features["channels"] *= 1 + rotation_bits(d) * ROTATION_STAGE
        if not sizes.kv_streamed:
            return Work(features, moved=cls._moved(call))
        for name in ("positions", "position_channels"):
            features[name] *= SCORES_AGAIN[sizes.kv_bits]
        moved, swapped = cls._streamed(call)
        return Work(features, moved, swapped=swapped)

    @classmethod
    def _streamed(cls, call: Call) -> tuple[float, float]:
        """Return the bytes that stream through L1 in all turns, and those that the HyperBus moves in the time that it
        needs for them: with begins of transfers, and the pass's blocks, which are written first."""
        sizes, kv = call.sizes, KvShape.of(call.cached, call.sizes)
        turns = share(call.tokens, sizes.turn)
        streamed = turns * kv.blocks * (2.0 * kv.k_block + kv.v_block)
        transfers = turns * 3 * -(-kv.blocks // sizes.kv_tile)
        new = KvShape.of(call.position % 4 + call.tokens, sizes)
        written = new.blocks * (kv.k_block + kv.v_block) * HYPERRAM_WRITE
        first = turns * min(sizes.kv_tile, kv.blocks) * kv.k_block
        return streamed, streamed + first + written + transfers * HYPERRAM_BEGIN

    @classmethod
    def _moved(cls, call: Call) -> float:
        """Return the bytes of the KV cache that are copied through L1 in pieces, once per round of heads."""
        sizes = call.sizes
        if sizes.cache_in_l1(call.position + call.tokens, call.window):
            return 0.0
        kv = KvShape.of(call.cached, sizes)
        rounds = share(call.tokens * sizes.heads, sizes.cores)
        return rounds * kv.blocks * (2.0 * kv.k_block + kv.v_block)

    @classmethod
    def arithmetic(cls, step: Step, call: Call) -> Arithmetic:
        """Return scores and sums of values of every query head; the KV cache counts once for all tokens."""
        s = call.sizes
        positions = sum(call.seen(call.position + i) for i in range(call.tokens))
        kv = KvShape.of(call.cached, s)
        vectors = call.tokens * s.heads * (query_bytes(s.head_dim, s.kv_bits) + 4.0 * s.head_dim)
        cache = kv.blocks * (kv.k_block + kv.v_block)
        return Arithmetic(2 * positions * s.heads * s.head_dim, cache + vectors)
