"""The next token from logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shrinkc.numerics.fixed import (
    I64,
    bit_length,
    exp2_q20,
    mix32,
    requantize,
    saturate32,
)

LOG2E_Q15 = 47274  # round(log2(e) * 2**15)
TOP_P_ONE = 1 << 16


@dataclass(frozen=True)
class Sampling:
    """inv_temp_q16 = 65536 / temperature, 0 for greedy; top_p_q16 in 1..65536; 32-bit seed."""

    inv_temp_q16: int = 0
    top_p_q16: int = TOP_P_ONE
    seed: int = 0


def sample(logits: np.ndarray, scale_shift: int, how: Sampling, position: int) -> int:
    """The next token id from logits int [vocab], of ``scale_shift`` + 16 fraction bits, at
    ``position`` (of the token they follow).

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
    delta = requantize(saturate32(logits.max() - logits), f31, scale_shift - 1 - shift)
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
