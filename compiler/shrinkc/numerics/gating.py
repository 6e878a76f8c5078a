"""Gating of an MLP."""

from __future__ import annotations

import numpy as np

from shrinkc.numerics.fixed import I64, INT32_MAX, round_shift, saturate32, sigmoid_q15

# GELU by tanh is x * sigmoid(a x + b x**3), a = 2 sqrt(2 / pi) in Q14 and b = 0.044715 a in Q18.
GELU_LINEAR, GELU_CUBIC = 26145, 18705
GELU_MOST = 360440  # of |x| in Q16: 5.5, where the sigmoid's argument is 20.7


def gelu_argument(x16: np.ndarray) -> np.ndarray:
    """Return in Q16 the number whose sigmoid GELU (by tanh) multiplies x16 / 2**16 with."""
    s = (np.clip(np.asarray(x16, I64), -GELU_MOST, GELU_MOST) + 8) >> 4
    slope = GELU_LINEAR + ((GELU_CUBIC * ((s * s) >> 12)) >> 16)
    return (s * slope) >> 10


def silu_mul(
    y: np.ndarray, gate_shift: int, shift: int, up_shift: int, gelu: bool = False
) -> np.ndarray:
    """Return silu(gate) * up, or gelu(gate) * up, int64 [T, width], from [gate, up] [T, 2 * width].

    gate * sigmoid * 2**shift and up * 2**up_shift do not saturate, because ``lower`` chose the shifts from upper
    bounds.  Raises ArithmeticError if a value exceeds its bound.
    """
    width = y.shape[1] // 2
    gate, up = y[:, :width], y[:, width:]
    argument = saturate32(round_shift(gate, gate_shift))
    sigma = sigmoid_q15(gelu_argument(argument) if gelu else argument)
    silu = round_shift(gate * sigma, 16) << shift
    up = up << up_shift
    if max(np.abs(silu).max(initial=0), np.abs(up).max(initial=0)) > INT32_MAX:
        raise ArithmeticError("gate * sigmoid or up beyond int32 although bounded")
    out: np.ndarray = (silu * up) >> 32
    return out
