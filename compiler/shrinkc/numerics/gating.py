"""Gating of an MLP."""

from __future__ import annotations

import numpy as np

from shrinkc.numerics.fixed import INT32_MAX, round_shift, saturate32, sigmoid_q15


def silu_mul(y: np.ndarray, gate_shift: int, shift: int, up_shift: int) -> np.ndarray:
    """Return silu(gate) * up, int64 [T, width], from [gate, up] [T, 2 * width].

    gate * sigmoid * 2**shift and up * 2**up_shift do not saturate, because ``lower`` chose the shifts from upper
    bounds.  Raises ArithmeticError if a value exceeds its bound.
    """
    width = y.shape[1] // 2
    gate, up = y[:, :width], y[:, width:]
    sigma = sigmoid_q15(saturate32(round_shift(gate, gate_shift)))
    silu = round_shift(gate * sigma, 16) << shift
    up = up << up_shift
    if max(np.abs(silu).max(initial=0), np.abs(up).max(initial=0)) > INT32_MAX:
        raise ArithmeticError("gate * sigmoid or up beyond int32 although bounded")
    out: np.ndarray = (silu * up) >> 32
    return out
