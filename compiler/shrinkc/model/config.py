"""Sizes and constants of one model of any family."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LlamaConfig:
    """Architecture of one LLaMA-like model.

    ``head_dim`` need not be ``hidden_size // num_heads``.  ``rope_scaling`` is None or
    the validated scaling; it does not apply to layers with ``local_rope_theta``.
    ``family`` is a key of ``FAMILIES``.  ``biased`` names the
    modules of each layer that add a bias ("self_attn.q_proj" ...).  ``sliding_window`` is the number of
    positions that a token attends to, its own included, or None for all; the layers in ``global_layers``
    attend to all in any case.  ``local_rope_theta``: RoPE base of the layers with a window, None for ``rope_theta``.
    ``query_scalar``: attention scores are divided by its square root; None for ``head_dim``.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    rms_norm_eps: float
    rope_theta: float
    tie_embeddings: bool
    bos_id: int | None
    eos_ids: tuple[int, ...]
    rope_scaling: RopeScaling | None = None
    family: str = "llama"
    biased: tuple[str, ...] = ()
    sliding_window: int | None = None
    global_layers: tuple[int, ...] = ()
    local_rope_theta: float | None = None
    query_scalar: float | None = None


@dataclass(frozen=True)
class Llama3RopeScaling:
    """Llama-3 frequency scaling (``rope_type: llama3``)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True)
class LinearRopeScaling:
    """Linear scaling (``rope_type: linear``): positions are divided by ``factor``."""

    factor: float


RopeScaling = Llama3RopeScaling | LinearRopeScaling
"""Scaling of the frequencies of RoPE."""
