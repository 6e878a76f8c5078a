"""The float model as every importer delivers it, and as the quantiser takes it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from shrinkc.importer.tokenizer import Tokenizer


@dataclass(frozen=True)
class LlamaConfig:
    """The mathematics of one LLaMA-family model.

    ``head_dim`` need not be ``hidden_size // num_heads``.  ``rope_scaling`` is None or
    the validated Llama-3 scaling.
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
    rope_scaling: Llama3RopeScaling | None = None


@dataclass(frozen=True)
class Llama3RopeScaling:
    """Llama-3 frequency scaling (``rope_type: llama3``)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass
class LowRankAdapter:
    """A side path ``y += b @ (a @ x)`` next to a weight [out, in].

    ``a`` is float32 [rank, in], ``b`` float32 [out, rank]; any scaling is already in ``b``.
    """

    a: np.ndarray
    b: np.ndarray


@dataclass
class FloatLayer:
    """One transformer block; every matrix is float32 [out, in], every norm gain float32 [in]."""

    attn_norm: np.ndarray
    wq: np.ndarray
    wk: np.ndarray
    wv: np.ndarray
    wo: np.ndarray
    mlp_norm: np.ndarray
    w_gate: np.ndarray
    w_up: np.ndarray
    w_down: np.ndarray
    # module name ("q_proj" … "down_proj") -> side path
    adapters: dict[str, LowRankAdapter] = field(default_factory=dict)


@dataclass
class FloatModel:
    """A whole model.  ``head`` is None when the embedding is tied."""

    config: LlamaConfig
    embedding: np.ndarray  # float32 [vocab, hidden]
    layers: list[FloatLayer]
    final_norm: np.ndarray  # float32 [hidden]
    head: np.ndarray | None  # float32 [vocab, hidden]
    tokenizer: Tokenizer
    source: str = ""
