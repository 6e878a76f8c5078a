"""The golden model: executes the IR on numpy, token by token or many tokens at once.

Results do not depend on how tokens are grouped into calls; ``observe`` sees every op's output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from shrinkc.ir.graph import Graph
from shrinkc.ir.linear import QLinear, effective
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
)
from shrinkc.numerics import vectors
from shrinkc.numerics.fixed import (
    I64,
    INT32_MAX,
    bit_length,
    exp2_mantissa,
    exp2_q20,
    mix32,
    requantize,
    round_shift,
    saturate32,
    sigmoid_q16,
)

Observer = Callable[[Op, "np.ndarray | vectors.QVector | vectors.QHeads"], None]
LOG2E_Q15 = 47274  # round(log2(e) * 2**15)
TOP_P_ONE = 1 << 16


@dataclass(frozen=True)
class Sampling:
    """inv_temp_q16 = 65536 / temperature, 0 for greedy; top_p_q16 in 1..65536; 32-bit seed."""

    inv_temp_q16: int = 0
    top_p_q16: int = TOP_P_ONE
    seed: int = 0


@dataclass
class _Cache:
    k: np.ndarray  # int64 [context, kv_heads, head_dim]
    k_mantissa: np.ndarray  # [context, kv_heads]
    k_exponent: np.ndarray
    v: np.ndarray
    v_mantissa: np.ndarray
    v_exponent: np.ndarray


class Interpreter:
    """One generation's state: the graph and its KV cache."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.position = 0
        shape = (graph.context, graph.kv_heads)
        self.caches = [
            _Cache(
                *(
                    np.zeros(s, I64)
                    for s in (
                        (*shape, graph.head_dim),
                        shape,
                        shape,
                        (*shape, graph.head_dim),
                        shape,
                        shape,
                    )
                )
            )
            for _ in range(graph.num_layers)
        ]

    def forward(
        self,
        tokens: np.ndarray | list[int],
        *,
        all_logits: bool = False,
        logits: bool = True,
        observe: Observer | None = None,
    ) -> np.ndarray:
        """Feed tokens at the next positions; logits int64 [T or 1, vocab] of all or the last.

        ``logits=False`` skips final norm and head and returns an empty array.  Raises ValueError
        past the compiled context or for ids outside the vocabulary.
        """
        ids = np.asarray(tokens, I64)
        g = self.graph
        if self.position + len(ids) > g.context:
            raise ValueError(f"position {self.position + len(ids)} past the context of {g.context}")
        if len(ids) and not (0 <= ids.min() and ids.max() < g.vocab):
            raise ValueError(f"token ids must be in 0..{g.vocab - 1}")
        values: dict[str, object] = {"token": ids}
        result: np.ndarray = np.zeros((0, g.vocab), I64)
        for op in g.ops:
            if isinstance(op, Sample):
                continue
            if op.layer < 0 and not isinstance(op, Embed):
                if not logits:
                    break
                if isinstance(op, NormQuant) and not all_logits:
                    values[op.inputs[0]] = np.asarray(values[op.inputs[0]])[-1:]
            args = [values[i] for i in op.inputs]
            out = self._run(op, args)
            values[op.out] = out
            if observe is not None:
                observe(op, out)  # type: ignore[arg-type]
            if isinstance(op, Linear) and op.layer < 0:
                result = np.asarray(out)
        self.position += len(ids)
        return result

    def _run(self, op: Op, args: list[object]) -> object:
        g = self.graph
        match op:
            case Embed():
                return embed(op, np.asarray(args[0]))
            case NormQuant():
                t = g.types[op.out]
                return vectors.norm_quantize_vector(
                    _permuted(np.asarray(args[0]), op.perm), t.seg, t.cmax, op.pre_shift, op.eps,
                    op.gain.astype(I64),
                )  # fmt: skip
            case Quant():
                t = g.types[op.out]
                return vectors.quantize_vector(
                    _permuted(np.asarray(args[0]), op.perm), t.seg, t.cmax
                )
            case Linear():
                assert isinstance(args[0], vectors.QVector)
                y = linear(op.weight, args[0])
                if op.bias is not None:
                    y = saturate32(y + op.bias)
                return y if len(args) == 1 else saturate32(np.asarray(args[1]) + y)
            case RopeCache():
                return self._rope_cache(op, np.asarray(args[0]))
            case Attention():
                assert isinstance(args[0], vectors.QHeads)
                return self._attention(op, args[0])
            case SiluMul():
                return silu_mul(op, np.asarray(args[0]))
        raise TypeError(f"no semantics for {op.mnemonic}")

    def _rope_cache(self, op: RopeCache, y: np.ndarray) -> vectors.QHeads:
        t, h, kv, d = len(y), op.heads, op.kv_heads, op.head_dim
        at = slice(self.position, self.position + t)
        cos = self.graph.rope_cos[at].astype(I64)
        sin = self.graph.rope_sin[at].astype(I64)
        x = y.reshape(t, h + 2 * kv, d)

        def head(part: np.ndarray, gain: np.ndarray | None) -> vectors.QHeads:
            if gain is None or op.pre_shift is None or op.eps is None:
                return vectors.quantize_heads(part, cos, sin)
            return vectors.norm_quantize_heads(
                part, gain.astype(I64), op.pre_shift, op.eps, cos, sin
            )

        q, k = head(x[:, :h], op.q_gain), head(x[:, h : h + kv], op.k_gain)
        v = vectors.quantize_heads(x[:, h + kv :])
        c = self.caches[op.layer]
        c.k[at], c.k_mantissa[at], c.k_exponent[at] = k.q, k.mantissa, k.exponent
        c.v[at], c.v_mantissa[at], c.v_exponent[at] = v.q, v.mantissa, v.exponent
        return q

    def _attention(self, op: Attention, q: vectors.QHeads) -> np.ndarray:
        c = self.caches[op.layer]
        tokens, end = q.q.shape[0], self.position + q.q.shape[0]
        causal = np.arange(end)[None, :] <= (self.position + np.arange(tokens))[:, None]
        out = np.empty((tokens, op.heads, op.head_dim), I64)
        per_kv = op.heads // op.kv_heads
        for h in range(op.heads):
            kv = h // per_kv
            out[:, h] = attend(
                op,
                QHead(q.q[:, h], q.mantissa[:, h], q.exponent[:, h]),
                QHead(c.k[:end, kv], c.k_mantissa[:end, kv], c.k_exponent[:end, kv]),
                QHead(c.v[:end, kv], c.v_mantissa[:end, kv], c.v_exponent[:end, kv]),
                causal,
            )
        return out.reshape(tokens, -1)


@dataclass
class QHead:
    """One head over tokens: q [T, D], mantissa [T], exponent [T]."""

    q: np.ndarray
    mantissa: np.ndarray
    exponent: np.ndarray


def _permuted(x: np.ndarray, perm: np.ndarray | None) -> np.ndarray:
    return x if perm is None else x[:, perm]


def embed(op: Embed, ids: np.ndarray) -> np.ndarray:
    """Rows ``ids`` of the table in the residual's fixed point, int64 [T, hidden]."""
    w = op.table
    d = None if w.d is None else w.d[ids]
    b = None if w.b is None else w.b[ids]
    rows = effective(w.q[ids], d, b, w.seg)
    return requantize(rows * w.r[ids].astype(I64)[:, None], op.factor, op.shift)


def linear(w: QLinear, x: vectors.QVector) -> np.ndarray:
    """The integer matrix product with its side path, int64 [T, n] in int32 range."""
    y = _rescale(w, w.accumulate(x), x)
    if w.low_rank is not None:
        a, b = w.low_rank.a, w.low_rank.b
        t = vectors.quantize_vector(_rescale(a, a.accumulate(x), x), b.seg, b.cmax)
        y = saturate32(y + _rescale(b, b.accumulate(t), t))
    return y


def _rescale(w: QLinear, acc: np.ndarray, x: vectors.QVector) -> np.ndarray:
    factor = w.r.astype(I64)[None, :] * x.mantissa[:, None]
    return requantize(acc, factor, w.shift - x.exponent[:, None])


def silu_mul(op: SiluMul, y: np.ndarray) -> np.ndarray:
    """silu(gate) * up of [T, 2 * width]: gate first, then up.

    The product needs no saturation: ``lower`` chose its fraction bits from a hard bound, and
    the bound is checked here.
    """
    width = y.shape[1] // 2
    gate, up = y[:, :width], y[:, width:]
    sigma = sigmoid_q16(saturate32(round_shift(gate, op.gate_shift)))
    out = round_shift(((gate * (sigma << 14)) >> 32) * up, op.shift)
    if np.abs(out).max(initial=0) > INT32_MAX:
        raise ArithmeticError(f"{op.out}: silu product beyond int32 although bounded")
    return out


def attend(op: Attention, q: QHead, k: QHead, v: QHead, mask: np.ndarray) -> np.ndarray:
    """One head: q over T tokens against S cached ones under mask [T, S] -> int64 [T, D].

    Scores are log2 units in Q16 up to 2**13; larger ones would be compressed by the shift's limit.
    The result is 127/128 of the value in its own fixed point.
    """
    product = q.mantissa * op.scale_mantissa
    extra = bit_length(product) - 15
    c = product >> extra
    base = -(15 + op.dot_shift + extra + q.exponent + op.scale_exponent)
    dot = np.rint(q.q.astype(np.float64) @ k.q.T.astype(np.float64)).astype(I64)
    factor = round_shift(c[:, None] * k.mantissa[None, :], 15)
    shift = np.clip(base[:, None] - k.exponent[None, :], 1, 30)
    score = round_shift(round_shift(dot, op.dot_shift) * factor, shift)
    top = np.where(mask, score, -(1 << 30)).max(axis=1)
    delta = np.where(mask, top[:, None] - score, 0)
    z = np.where(mask, exp2_q20(delta), 0).sum(axis=1)
    e = np.where(mask, v.exponent[None, :] - np.minimum(delta >> 16, 31), -(1 << 20))
    e_max = e.max(axis=1)
    drop = 30 - op.weight_bits
    weight = exp2_mantissa(delta & 0xFFFF) * v.mantissa[None, :]
    a = round_shift(weight, np.minimum(e_max[:, None] - e + drop, 31))
    a = np.where(mask, np.minimum(a, (1 << op.weight_bits) - 1), 0)
    acc = np.rint(a.astype(np.float64) @ v.q.astype(np.float64)).astype(I64)
    z_shift = bit_length(z) - 16
    reciprocal = (np.int64(1) << 31) // (z >> z_shift)
    return requantize(acc, (reciprocal << 14)[:, None], (15 + z_shift - e_max - drop)[:, None])


def sample(op: Sample, logits: np.ndarray, how: Sampling, position: int) -> int:
    """The next token id from logits int [vocab] at ``position`` (of the token they follow).

    Greedy takes the lowest index among equals.  Otherwise probabilities are Q20 relative to the
    largest; top-p keeps every token at least as probable as the threshold at which the kept mass
    first reaches top_p; the draw is ``mix32(seed + position * 0x9E3779B9)``.
    """
    logits = np.asarray(logits, I64)
    if how.inv_temp_q16 == 0:
        return int(logits.argmax())
    factor = how.inv_temp_q16 * LOG2E_Q15
    bits = int(bit_length(factor))
    # delta [Q16, log2 units] = (top - logit) * 2**-frac * inv_temp * log2(e) * 2**16
    shift = bits - 31
    f31 = factor >> shift if shift > 0 else factor << -shift
    delta = requantize(saturate32(logits.max() - logits), f31, op.scale_shift - 1 - shift)
    p = exp2_q20(delta)
    mass = int(p.sum())
    threshold = 0
    if how.top_p_q16 < TOP_P_ONE:
        need = -(-mass * how.top_p_q16 // TOP_P_ONE)
        for bit in range(20, -1, -1):
            trial = threshold | (1 << bit)
            if int(p[p >= trial].sum()) >= need:
                threshold = trial
        p = np.where(p >= threshold, p, 0)
        mass = int(p.sum())
    draw = int(mix32((how.seed + position * 0x9E3779B9) & 0xFFFFFFFF))
    target = (draw * mass) >> 32
    return int(np.searchsorted(np.cumsum(p), target, side="right"))
