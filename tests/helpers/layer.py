"""What a layer consists of, as the tests state it: the one table that does not ask shrinkc.model."""

from __future__ import annotations

from typing import NamedTuple


class Part(NamedTuple):
    """A matrix of ``rows`` x ``inputs``, or a norm of as many gains as it has ``inputs``.

    ``name`` is that of Hugging Face within a layer, ``field`` that of FloatLayer, ``gguf`` that of
    llama.cpp; the matrices of one ``slot`` read one input and are fused.
    """

    name: str
    field: str
    gguf: str
    slot: str
    rows: str
    inputs: str


PARTS = (
    Part("input_layernorm", "attn_norm", "attn_norm", "", "", "hidden"),
    Part("self_attn.q_proj", "wq", "attn_q", "qkv", "q", "hidden"),
    Part("self_attn.k_proj", "wk", "attn_k", "qkv", "kv", "hidden"),
    Part("self_attn.v_proj", "wv", "attn_v", "qkv", "kv", "hidden"),
    Part("self_attn.o_proj", "wo", "attn_output", "o", "hidden", "q"),
    Part("post_attention_layernorm", "mlp_norm", "ffn_norm", "", "", "hidden"),
    Part("mlp.gate_proj", "w_gate", "ffn_gate", "gate_up", "ffn", "hidden"),
    Part("mlp.up_proj", "w_up", "ffn_up", "gate_up", "ffn", "hidden"),
    Part("mlp.down_proj", "w_down", "ffn_down", "down", "hidden", "ffn"),
)
MODULES = {p.name.rpartition(".")[2]: p for p in PARTS if p.slot}
"""The matrices by the last part of their names, such as "q_proj"."""
