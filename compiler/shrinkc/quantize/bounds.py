"""Upper bounds of a model's intermediate values, the fixed-point formats chosen from them, and RoPE tables."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from shrinkc.importer.rope import inverse_frequencies
from shrinkc.ir.linear import row_slices
from shrinkc.ir.ops.ropecache import UNIT_MIN
from shrinkc.model import LlamaConfig
from shrinkc.numerics.fixed import QMAX
from shrinkc.numerics.vectors import (
    SHARES,
    STORED_MAX,
    places_of_share,
    square_drop,
    square_pre_shift,
)
from shrinkc.storage import KV_BITS

INT_BITS = 30  # a bounded quantity uses at most this many bits of its int32
# The residual stream may grow 2**15 times over the largest embedding entry: SmolLM2-135M reaches
# 2**12.7 (examples/bench/fidelity.py), which leaves it two bits.
RESIDUAL_HEADROOM = 15
NORM_INPUT_FRAC_MAX = 34


def frac_for(bound: float) -> int:
    """Return the fraction bits with which ``bound`` uses at most INT_BITS of an int32."""
    return math.floor(INT_BITS - math.log2(max(bound, 1e-12)))


def residual_frac(largest: float) -> int:
    """Return the residual stream's fraction bits (at most 34), from the embedding's largest magnitude."""
    return frac_for(max(largest, 1e-6) * 2.0**RESIDUAL_HEADROOM)


def row_bound(weight: np.ndarray, gain: np.ndarray | None = None) -> float:
    """Return an upper bound of |W (gain * x)| for ||x|| <= sqrt(K).

    It is max ||row * gain|| * sqrt(K) by Cauchy-Schwarz, plus the rounding error of gain * x."""
    k = weight.shape[1]
    top = 1.0 if gain is None else float(np.abs(gain).max(initial=0.0))
    plain = largest_norm(weight)
    rows = plain if gain is None else largest_norm(weight, gain)
    # rounding changes each input by at most 1/254 of the largest, which is at most sqrt(K) * top
    return math.sqrt(k) * (1.01 * rows + math.sqrt(k) / 250 * top * plain)


def adapter_bound(a: np.ndarray, b: np.ndarray, gain: np.ndarray | None = None) -> float:
    """Return an upper bound of b a (gain * x), where a's result is rounded to 1/254 of its largest value."""
    return 1.01 * float(np.abs(b).sum(axis=1).max(initial=0.0)) * row_bound(a, gain)


def largest_norm(weight: np.ndarray, gain: np.ndarray | None = None) -> float:
    """Return max ||row * gain|| over all rows."""
    out = 0.0
    for rows in row_slices(*weight.shape):
        w = weight[rows].astype(np.float64)
        if gain is not None:
            w *= gain
        out = max(out, float(np.sqrt((w**2).sum(axis=1).max(initial=0.0))))
    return out


@dataclass(frozen=True)
class Gain:
    """RMSNorm weights as fractions of the largest one, in Q31 or Q15; ``unit`` is the value that 1.0 stands for."""

    q: np.ndarray
    unit: float

    @classmethod
    def of(cls, gain: np.ndarray, dtype: type[np.int32] | type[np.int16] = np.int32) -> Gain:
        most = np.iinfo(dtype).max
        top = max(float(np.abs(gain).max()), 1e-12)
        q = np.rint(gain.astype(np.float64) / top * most).astype(dtype)
        return cls(q, top * (most + 1) / most)


def norm_kappa(k: int) -> float:
    """Return the unit of a NormQuant result before the division by cmax (numerics/vectors.py)."""
    return math.sqrt(k) / (QMAX * 2.0 ** (31 + square_pre_shift(k)))


def norm_slack(k: int, eps: int) -> float:
    """Return max ||result|| / sqrt(K) of a norm of k inputs whose squares ``sum_of_squares`` adds.

    It rounds each input down by less than one unit of 2**pre_shift, and (s + sqrt(K)) / sqrt(s**2 + eps) is
    at most sqrt(1 + K / eps).
    """
    lost = 1 - 2.0 ** -square_pre_shift(k)
    return math.sqrt(1 + k * lost * lost / eps)


def norm_slack_of_shares(k: int, eps: int) -> float:
    """Return max ||result|| / sqrt(K) of a norm whose sum of squares is made of shares (``norm_quantize_q16``).

    Rounding ``square_drop`` bits off values of up to 31 bits loses less than one unit per value, and less
    than one unit per share's sum.
    """
    lost = math.sqrt(places_of_share(k)) * 2.0 ** (square_drop(k) - 30)
    return math.sqrt(1 + SHARES / eps) / (1 - lost)


def norm_exponent_max(k: int, slack: float) -> int:
    """Return the largest exponent of a NormQuant result.

    max |x| / rms is at most ``slack`` * sqrt(K), so mantissa * 2**exponent <= slack * 2**(31 + pre_shift);
    mantissas are at least 2**14."""
    return 31 + square_pre_shift(k) - 14 + math.floor(math.log2(slack))


def stored_unit(bound: float, kv_bits: int) -> int:
    """Return the exponent e of the unit 2**e for the scales of cached heads with values up to ``bound``.

    RoPE can make a value sqrt(2) times larger; rounding adds less than 0.1 %.  The scale of 4-bit codes is up to
    127/120 of half their range, rounded up."""
    margin = 1.001 if kv_bits == KV_BITS[0] else 1.061
    largest = max(bound * math.sqrt(2.0) * margin, 1.0)
    return max(UNIT_MIN, math.ceil(math.log2(largest / STORED_MAX)))


def norm_eps(config: LlamaConfig, frac: int, k: int) -> int:
    """Return the epsilon of a norm of k inputs with ``frac`` fraction bits, in units of ``sum_of_squares``.

    It is at least 1, to prevent division by zero, and at most 2**61: importer/config.py allows up to 2**-7,
    and the input of a norm has at most NORM_INPUT_FRAC_MAX fraction bits."""
    value = config.rms_norm_eps * k * 2.0 ** (2 * frac - 2 * square_pre_shift(k))
    return max(1, round(value))


def rope_tables(config: LlamaConfig, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (cos, sin), each int16 [context, head_dim / 2] in Q15; 1.0 is stored as 32767.

    With a RoPE base of local layers, their columns follow: [context, head_dim]."""
    frequencies = inverse_frequencies(config)
    if config.local_rope_theta is not None:
        frequencies = np.concatenate([frequencies, inverse_frequencies(config, local=True)])
    angle = np.arange(context, dtype=np.float64)[:, None] * frequencies[None, :]

    def q15(v: np.ndarray) -> np.ndarray:
        return np.clip(np.rint(v * 32768), -32767, 32767).astype(np.int16)

    return q15(np.cos(angle)), q15(np.sin(angle))
