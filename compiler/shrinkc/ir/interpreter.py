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
from shrinkc.numerics.attention import CachedHead, QueryHead, SoftmaxScale, attend
from shrinkc.numerics.fixed import (
    I64,
    INT32_MAX,
    bit_length,
    exp2_q20,
    mix32,
    requantize,
    round_shift,
    saturate32,
    sigmoid_q31,
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
    """int64: k and v [context, kv_heads, head_dim], their scales [context, kv_heads]."""

    k: np.ndarray
    k_scale: np.ndarray
    v: np.ndarray
    v_scale: np.ndarray


class Interpreter:
    """One generation's state: the graph and its KV cache."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.position = 0
        scales = (graph.context, graph.kv_heads)
        shapes = ((*scales, graph.head_dim), scales)
        self.caches = [
            _Cache(*(np.zeros(shape, I64) for shape in shapes * 2)) for _ in range(graph.num_layers)
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
        parts = np.split(y.reshape(t, h + 2 * kv, d), (h, h + kv), axis=1)
        if op.q_gain is None or op.k_gain is None or op.pre_shift is None or op.eps is None:
            q = vectors.quantize_heads(parts[0], cos, sin)
            k = vectors.store_heads(parts[1], op.k_unit, cos, sin)
        else:
            norm = (op.pre_shift, op.eps)
            q = vectors.norm_quantize_heads(parts[0], op.q_gain.astype(I64), *norm, cos, sin)
            k = vectors.norm_store_heads(
                parts[1], op.k_gain.astype(I64), *norm, op.k_unit, cos, sin
            )
        v = vectors.store_heads(parts[2], op.v_unit)
        c = self.caches[op.layer]
        c.k[at], c.k_scale[at], c.v[at], c.v_scale[at] = k.q, k.scale, v.q, v.scale
        return q

    def _attention(self, op: Attention, q: vectors.QHeads) -> np.ndarray:
        c = self.caches[op.layer]
        tokens, end = q.q.shape[0], self.position + q.q.shape[0]
        causal = np.arange(end)[None, :] <= (self.position + np.arange(tokens))[:, None]
        out = np.empty((tokens, op.heads, op.head_dim), I64)
        per_kv = op.heads // op.kv_heads
        how = SoftmaxScale(
            op.scale_mantissa, op.scale_exponent, op.dot_shift, op.weight_bits, op.v_unit
        )
        for h in range(op.heads):
            kv = h // per_kv
            out[:, h] = attend(
                how,
                QueryHead(q.q[:, h], q.mantissa[:, h], q.exponent[:, h]),
                CachedHead(c.k[:end, kv], c.k_scale[:end, kv]),
                CachedHead(c.v[:end, kv], c.v_scale[:end, kv]),
                causal,
            )
        return out.reshape(tokens, -1)


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

    gate * sigmoid needs no saturation: ``lower`` chose its shift from a hard bound, and the bound is
    checked here.
    """
    width = y.shape[1] // 2
    gate, up = y[:, :width], y[:, width:]
    sigma = sigmoid_q31(saturate32(round_shift(gate, op.gate_shift)))
    silu = ((gate * sigma) >> 32) << op.shift
    if np.abs(silu).max(initial=0) > INT32_MAX:
        raise ArithmeticError(f"{op.out}: gate * sigmoid beyond int32 although bounded")
    out: np.ndarray = (silu * up) >> 32
    return out


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
