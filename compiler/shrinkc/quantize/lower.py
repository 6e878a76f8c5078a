"""Lower a float LLaMA to the integer IR: fold gains, fuse, choose fixed points, quantise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from shrinkc.core.errors import QuantizeError
from shrinkc.importer.model import FloatLayer, FloatModel, LlamaConfig, LowRankAdapter
from shrinkc.ir.graph import Graph
from shrinkc.ir.linear import LowRank, QLinear
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
from shrinkc.ir.rules import check
from shrinkc.numerics.fixed import QMAX
from shrinkc.numerics.vectors import square_pre_shift
from shrinkc.quantize.rope import rope_tables
from shrinkc.quantize.weights import check_groups, quantize_matrix

ROWS_MAX, INPUTS_MAX = 8 * 65535, 65535  # uint16 counts in sc_model.h
GATE_FRAC_MAX = 40  # a gate of zeros has no bound; its shifts must stay in range all the same
INT_BITS = 30  # a bounded quantity uses at most this many bits of its int32
# The residual stream may grow 2**15 times over the largest embedding entry: SmolLM2-135M reaches
# 2**12.7 (examples/bench/fidelity.py), which leaves it two bits.
RESIDUAL_HEADROOM = 15


@dataclass(frozen=True)
class QuantOptions:
    """Widths of the weights.  ``group`` None = one scale per row; head and embedding 8 or 4 bit."""

    bits: int = 8
    group: int | None = None
    asymmetric: bool = False
    head_bits: int = 8
    short_last_group: bool = False

    def __post_init__(self) -> None:
        for label, bits in (("--bits", self.bits), ("--head-bits", self.head_bits)):
            if bits not in (8, 4):
                raise QuantizeError(f"{label} {bits} is not supported.", "allowed: 8 or 4.")


def frac_for(bound: float) -> int:
    """Fraction bits that let ``bound`` use at most INT_BITS of an int32."""
    return math.floor(INT_BITS - math.log2(max(bound, 1e-12)))


def row_bound(*weights: np.ndarray) -> float:
    """max ||row|| * sqrt(K): a hard bound of W x for ||x|| <= sqrt(K) (Cauchy-Schwarz)."""
    norms = [
        float(np.sqrt((w.astype(np.float64) ** 2).sum(axis=1).max(initial=0.0))) for w in weights
    ]
    k = weights[0].shape[1]
    # rounding moves each input by at most 1/254 of the largest, which is at most sqrt(K)
    return max(norms) * math.sqrt(k) * (1.01 + math.sqrt(k) / 250)


def norm_kappa(k: int) -> float:
    """Unit of a NormQuant result, before / cmax (numerics/vectors.py)."""
    return math.sqrt(k) / (QMAX * 2.0 ** (31 + square_pre_shift(k)))


def norm_exponent_max(k: int) -> int:
    """Largest exponent of a NormQuant result: max |x| / rms is at most sqrt(K), so that
    mantissa * 2**exponent <= 2**(31 + pre_shift), and mantissas are at least 2**14."""
    return 31 + square_pre_shift(k) - 14


def norm_eps(config: LlamaConfig, frac: int) -> int:
    """The norm's epsilon in units of sum_of_squares, at least 1 so that no division by zero is."""
    k = config.hidden_size
    value = config.rms_norm_eps * k * 2.0 ** (2 * frac - 2 * square_pre_shift(k))
    return min(max(1, round(value)), 1 << 61)


class _Lowering:
    def __init__(self, model: FloatModel, options: QuantOptions, context: int) -> None:
        self.model, self.options, self.config = model, options, model.config
        c = self.config
        cos, sin = rope_tables(c, context)
        if c.vocab_size > ROWS_MAX or max(c.hidden_size, c.intermediate_size) > INPUTS_MAX:
            raise QuantizeError(
                f"vocabulary {c.vocab_size}, hidden {c.hidden_size} and intermediate "
                f"{c.intermediate_size} exceed the tables of the generated program.",
                f"allowed: {ROWS_MAX} rows and {INPUTS_MAX} inputs per matrix.",
            )
        check_groups(
            {
                "qkv and gate_up": c.hidden_size,
                "o": c.num_heads * c.head_dim,
                "down": c.intermediate_size,
            },
            options.group,
            options.short_last_group,
        )
        self.graph = Graph(
            name=model.source,
            vocab=c.vocab_size,
            hidden=c.hidden_size,
            num_layers=c.num_layers,
            heads=c.num_heads,
            kv_heads=c.num_kv_heads,
            head_dim=c.head_dim,
            ffn=c.intermediate_size,
            context=context,
            bos_id=-1 if c.bos_id is None else c.bos_id,
            eos_ids=c.eos_ids,
            rope_cos=cos,
            rope_sin=sin,
        )
        largest = float(np.abs(model.embedding).max())
        self.res_frac = frac_for(max(largest, 1e-6) * 2.0**RESIDUAL_HEADROOM)

    def emit(self, op: Op, type_: Type) -> str:
        self.graph.ops.append(op)
        self.graph.types[op.out] = type_
        return op.out

    def matrix(
        self,
        name: str,
        weight: np.ndarray,
        kappa: float,
        frac: int,
        adapters: list[tuple[slice, LowRankAdapter]] | None = None,
        exponent_max: int | None = None,
    ) -> QLinear:
        o = self.options
        bits = o.bits
        common: dict[str, Any] = {"kappa": kappa, "exponent_max": exponent_max}

        def main(limit: int) -> QLinear:
            return quantize_matrix(
                name, weight, bits=bits, group=o.group, asymmetric=o.asymmetric, frac=frac,
                cmax_limit=limit, **common,
            )  # fmt: skip

        w = main(255)
        if not adapters:
            return w
        rank = sum(x.a.shape[0] for _, x in adapters)
        a = np.concatenate([x.a for _, x in adapters])
        b = np.zeros((weight.shape[0], rank), np.float32)
        at = 0
        for rows, x in adapters:
            b[rows, at : at + x.a.shape[0]] = x.b
            at += x.a.shape[0]

        def side_a(limit: int) -> QLinear:
            return quantize_matrix(
                f"{name}.a", a, bits=8, group=None, asymmetric=False,
                frac=frac_for(row_bound(a)), cmax_limit=limit, **common,
            )  # fmt: skip

        # both read the same activations, so they share the smaller cmax
        qa = side_a(w.cmax)
        if qa.cmax < w.cmax:
            w = main(qa.cmax)
            qa = side_a(w.cmax)
        if qa.seg != w.seg or (w.bits == 4 and w.seg % 8 and w.nseg > 1):
            raise QuantizeError(
                f"{name}: its low-rank side path reads the same activations, in groups of {qa.seg} "
                f"inputs; the matrix has {w.bits}-bit weights in groups of {w.seg}.",
                "with an adapter use groups of 64 or none, and 8 bit where the inputs are no multiple "
                "of 8.",
            )
        qb = quantize_matrix(
            f"{name}.b", b, bits=8, group=None, asymmetric=False, kappa=2.0**-qa.frac / QMAX,
            frac=w.frac,
        )  # fmt: skip
        w.low_rank = LowRank(qa, qb)
        return w

    def norm(self, x: str, layer: int, tag: str, weight: QLinear, gain: np.ndarray | None) -> str:
        k = self.config.hidden_size
        return self.emit(
            NormQuant(
                f"{tag}.q",
                (x,),
                layer,
                norm_eps(self.config, self.res_frac),
                square_pre_shift(k),
                gain,
            ),
            Type("q8", k, seg=weight.seg, cmax=weight.cmax),
        )

    def quant(self, x: str, layer: int, tag: str, weight: QLinear) -> str:
        return self.emit(
            Quant(f"{tag}.q", (x,), layer), Type("q8", weight.k, seg=weight.seg, cmax=weight.cmax)
        )

    def linear(self, x: str, layer: int, tag: str, w: QLinear, residual: str | None = None) -> str:
        inputs = (x,) if residual is None else (x, residual)
        return self.emit(Linear(tag, inputs, layer, w), Type("i32", w.n, frac=w.frac))

    def layer(self, index: int, f: FloatLayer, x: str) -> str:
        c, name = self.config, f"layer{index}"
        hd, h, kv, k = c.head_dim, c.num_heads, c.num_kv_heads, c.hidden_size
        nq, nkv = h * hd, kv * hd
        ad = f.adapters

        def side(gain: np.ndarray | None, **rows: slice) -> list[tuple[slice, LowRankAdapter]]:
            picked = [(s, ad[m]) for m, s in rows.items() if m in ad]
            return [
                (s, a if gain is None else LowRankAdapter(a.a * gain[None, :], a.b))
                for s, a in picked
            ]

        qkv = np.concatenate([f.wq, f.wk, f.wv]) * f.attn_norm[None, :]
        qkv_side = side(
            f.attn_norm,
            q_proj=slice(0, nq), k_proj=slice(nq, nq + nkv), v_proj=slice(nq + nkv, nq + 2 * nkv),
        )  # fmt: skip
        w = self.matrix(
            f"{name}.qkv", qkv, norm_kappa(k), frac_for(self._bound(qkv, qkv_side)), qkv_side,
            norm_exponent_max(k),
        )  # fmt: skip
        qkv_frac = w.frac
        q = self.norm(x, index, f"{name}.attn_in", w, None)
        y = self.linear(q, index, f"{name}.qkv", w)
        heads = self.emit(
            RopeCache(f"{name}.q8", (y,), index, h, kv, hd), Type("heads8", nq, frac=qkv_frac)
        )
        kappa = 2.0**16 * math.log2(math.e) / (math.sqrt(hd) * QMAX**2 * 2.0 ** (2 * qkv_frac))
        exponent = math.floor(math.log2(kappa)) - 14
        y = self.emit(
            Attention(
                f"{name}.attn", (heads,), index, h, kv, hd,
                scale_mantissa=round(kappa * 2.0**-exponent),
                scale_exponent=exponent,
                dot_shift=max(0, (hd * QMAX * QMAX).bit_length() - 15),
                weight_bits=min(15, 24 - max(9, (self.graph.context - 1).bit_length())),
            ),
            Type("i32", nq, frac=qkv_frac),
        )  # fmt: skip
        w = self.matrix(
            f"{name}.o", f.wo, 2.0**-qkv_frac * 128 / (QMAX * QMAX), self.res_frac,
            side(None, o_proj=slice(0, k)),
        )  # fmt: skip
        x = self.linear(self.quant(y, index, f"{name}.o_in", w), index, f"{name}.mid", w, x)

        gate, up = f.w_gate * f.mlp_norm[None, :], f.w_up * f.mlp_norm[None, :]
        ffn = c.intermediate_size
        gu_side = side(f.mlp_norm, gate_proj=slice(0, ffn), up_proj=slice(ffn, 2 * ffn))
        gate_up = np.concatenate([gate, up])
        gu_frac = min(frac_for(self._bound(gate_up, gu_side)), GATE_FRAC_MAX)
        w = self.matrix(
            f"{name}.gate_up", gate_up, norm_kappa(k), gu_frac, gu_side, norm_exponent_max(k)
        )
        gu_frac = w.frac
        q = self.norm(x, index, f"{name}.mlp_in", w, None)
        y = self.linear(q, index, f"{name}.gate_up", w)
        # Cauchy-Schwarz bounds gate and up, from the rows as they were quantised: rounding may
        # lengthen a row, and the product of both has no saturation on the device.
        rows = w.dequantized()
        h_frac = frac_for(self._bound(rows[:ffn], gu_side) * self._bound(rows[ffn:], gu_side))
        h_frac = min(h_frac, 2 * gu_frac - 2 - 1)
        y = self.emit(
            SiluMul(f"{name}.h", (y,), index, gu_frac - 16, 2 * gu_frac - 2 - h_frac),
            Type("i32", ffn, frac=h_frac),
        )
        w = self.matrix(
            f"{name}.down",
            f.w_down,
            2.0**-h_frac / QMAX,
            self.res_frac,
            side(None, down_proj=slice(0, k)),
        )
        return self.linear(self.quant(y, index, f"{name}.down_in", w), index, f"{name}.out", w, x)

    @staticmethod
    def _bound(weight: np.ndarray, side: list[tuple[slice, LowRankAdapter]]) -> float:
        total = row_bound(weight)
        for _, x in side:
            total += row_bound(x.a) * float(
                np.sqrt((x.b.astype(np.float64) ** 2).sum(axis=1).max())
            )
        return total

    def run(self, progress: Callable[[int, int], None] | None) -> Graph:
        c, m, o = self.config, self.model, self.options
        k = c.hidden_size
        gain: np.ndarray | None = None
        kappa = norm_kappa(k)
        if m.head is None:
            # The table serves as embedding and head, so the norm's gain cannot be folded into it:
            # it multiplies the activations, in Q15 of its largest entry.
            table = m.embedding
            top = float(np.abs(m.final_norm).max())
            gain = np.rint(m.final_norm.astype(np.float64) / max(top, 1e-12) * 32767).astype(
                np.int16
            )
            kappa *= max(top, 1e-12) * 32768 / 32767
            bound = row_bound(table * m.final_norm[None, :])
        else:
            table = m.head * m.final_norm[None, :]
            bound = row_bound(table)
        head = quantize_matrix(
            "head", table, bits=o.head_bits, group=o.group if o.head_bits == 4 else None,
            asymmetric=False, kappa=kappa, frac=min(20, frac_for(bound)), exponent_max=norm_exponent_max(k),
        )  # fmt: skip
        embed = head
        if m.head is not None:
            embed = quantize_matrix(
                "embedding", m.embedding, bits=o.head_bits, group=o.group if o.head_bits == 4 else None,
                asymmetric=False, kappa=1.0, frac=self.res_frac,
            )  # fmt: skip
        unit = float(embed.row_scale[0]) / float(embed.r[0]) * 2.0**self.res_frac
        shift = math.floor(math.log2((2.0**31 - 1) / unit)) - 32
        x = self.emit(
            Embed("embed", ("token",), -1, embed, round(unit * 2.0 ** (32 + shift)), shift),
            Type("i32", k, frac=self.res_frac),
        )
        for i, f in enumerate(m.layers):
            x = self.layer(i, f, x)
            if progress is not None:
                progress(i + 1, c.num_layers)
        q = self.norm(x, -1, "final", head, gain)
        y = self.emit(
            Linear("logits", (q,), -1, head), Type("logits", c.vocab_size, frac=head.frac)
        )
        self.emit(Sample("next", (y,), -1, head.frac - 16), Type("token", 1))
        check(self.graph)
        return self.graph


def lower(
    model: FloatModel,
    options: QuantOptions,
    context: int,
    progress: Callable[[int, int], None] | None = None,
) -> Graph:
    """Quantise ``model`` for a context of ``context`` tokens; the result passes every IR rule.

    Raises QuantizeError for widths or groups that are not possible.
    """
    return _Lowering(model, options, context).run(progress)
