"""The product of a gated MLP's halves."""

from __future__ import annotations

import numpy as np

from shrinkc.numerics.fixed import INT32_MAX, round_shift, saturate32, sigmoid_q15


def silu_mul(y: np.ndarray, gate_shift: int, shift: int, up_shift: int) -> np.ndarray:
    """silu(gate) * up of [T, 2 * width]: gate first, then up -> int64 [T, width].

    Neither gate * sigmoid times 2**shift nor up times 2**up_shift needs saturation: ``lower`` chose
    the shifts from hard bounds, which are checked here: ArithmeticError where one does not hold.
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
