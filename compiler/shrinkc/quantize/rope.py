"""RoPE tables in Q15."""

from __future__ import annotations

import numpy as np

from shrinkc.importer.rope import inverse_frequencies
from shrinkc.model import LlamaConfig


def rope_tables(config: LlamaConfig, context: int) -> tuple[np.ndarray, np.ndarray]:
    """(cos, sin) int16 [context, head_dim / 2] in Q15; 1.0 is stored as 32767."""
    angle = np.arange(context, dtype=np.float64)[:, None] * inverse_frequencies(config)[None, :]

    def q15(v: np.ndarray) -> np.ndarray:
        return np.clip(np.rint(v * 32768), -32767, 32767).astype(np.int16)

    return q15(np.cos(angle)), q15(np.sin(angle))
