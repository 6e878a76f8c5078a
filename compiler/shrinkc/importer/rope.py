"""Rotary position embedding (RoPE): inverse frequencies with their scaling, and order of rows."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from shrinkc.model import LinearRopeScaling, LlamaConfig


def inverse_frequencies(config: LlamaConfig, *, local: bool = False) -> NDArray[np.float64]:
    """Return float64 [head_dim / 2], radians per position for the pair (i, i + head_dim / 2).

    ``theta ** (-2 i / head_dim)``, divided by ``factor`` with linear scaling; with Llama-3 scaling,
    wavelengths longer than ``original / low_freq_factor`` are divided by ``factor``, those shorter than
    ``original / high_freq_factor`` are kept, and the band between is interpolated
    (Meta's llama-models, ``apply_scaling``; transformers, ``_compute_llama3_parameters``).
    ``local``: of the layers with a RoPE base of their own, which nothing scales.
    """
    exponent = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    if local and config.local_rope_theta is not None:
        return config.local_rope_theta**-exponent
    inverse = config.rope_theta**-exponent
    scaling = config.rope_scaling
    if scaling is None:
        return inverse
    if isinstance(scaling, LinearRopeScaling):
        return inverse / scaling.factor
    wavelength = 2 * math.pi / inverse
    # 0 at the low-frequency edge of the band, 1 at the high-frequency edge; clipping covers the
    # frequencies outside the band
    smooth = (scaling.original_max_position / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    smooth = np.clip(smooth, 0.0, 1.0)
    scaled: NDArray[np.float64] = (1 - smooth) * inverse / scaling.factor + smooth * inverse
    return scaled


def half_order(rows: int, head_dim: int) -> NDArray[np.int64]:
    """Return int64 [rows]: indices that restore q or k of llama.cpp to the row order of Hugging Face.

    llama.cpp stores row i next to row i + head_dim / 2 of each head (``convert_hf_to_gguf.py``,
    LlamaModel.permute); this undoes it.
    """
    return np.arange(rows).reshape(-1, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)
