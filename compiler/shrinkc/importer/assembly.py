"""Tensors under their names in a checkpoint, and the FloatModel made of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from shrinkc.core.errors import ShapeMismatch
from shrinkc.core.shell import name_of
from shrinkc.importer.model import (
    FloatLayer,
    FloatModel,
    LlamaConfig,
    Weight,
    dense,
)
from shrinkc.importer.tokenizer import Tokenizer
from shrinkc.importer.weight_checks import listing

EMBEDDING = "model.embed_tokens"
HEAD = "lm_head"
FINAL_NORM = "model.norm"
# buffers that old versions of transformers saved; they follow from the config
_IGNORED_SUFFIX = "rotary_emb.inv_freq"


def matrix_shapes(config: LlamaConfig) -> dict[str, tuple[int, int]]:
    """Return module name -> (outputs, inputs) of every matrix that ``config`` asks for."""
    table = (config.vocab_size, config.hidden_size)
    shapes = {EMBEDDING: table}
    for layer in range(config.num_layers):
        for name, shape in _layer_shapes(config).items():
            shapes[f"model.layers.{layer}.{name}"] = shape
    if not config.tie_embeddings:
        shapes[HEAD] = table
    return shapes


def norm_names(config: LlamaConfig) -> list[str]:
    """Return the module names of all norms; each has one gain per hidden unit."""
    names = [
        f"model.layers.{layer}.{name}"
        for layer in range(config.num_layers)
        for name in ("input_layernorm", "post_attention_layernorm")
    ]
    return [*names, FINAL_NORM]


def _layer_shapes(config: LlamaConfig) -> dict[str, tuple[int, int]]:
    hidden, inner = config.hidden_size, config.intermediate_size
    q_rows = config.num_heads * config.head_dim
    kv_rows = config.num_kv_heads * config.head_dim
    return {
        "self_attn.q_proj": (q_rows, hidden),
        "self_attn.k_proj": (kv_rows, hidden),
        "self_attn.v_proj": (kv_rows, hidden),
        "self_attn.o_proj": (hidden, q_rows),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }


def check_names_and_shapes(
    path: Path, found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise ShapeMismatch with every tensor whose shape in the file is not as ``wanted``."""
    faults: list[str] = []
    for name, shape in wanted.items():
        if name not in found:
            faults.append(f"missing {name} {list(shape)}")
        elif found[name] != shape:
            faults.append(f"{name} is {list(found[name])}, the config says {list(shape)}")
    faults += [
        f"unexpected {name} {list(found[name])}"
        for name in found
        if name not in wanted and not name.endswith(_IGNORED_SUFFIX)
    ]
    if faults:
        hint = "config.json and the weight files have to come from the same model."
        if any("lora_" in fault for fault in faults):
            hint = "this looks like a LoRA adapter; give it beside its base model."
        elif len(faults) == 1 and faults[0].startswith(f"missing {HEAD}.weight "):
            hint = "if the model has no own head, set tie_word_embeddings to true in config.json."
        raise ShapeMismatch(f"{path}: {listing(faults)}.", hint=hint)


def assemble(
    path: Path,
    config: LlamaConfig,
    norms: Mapping[str, np.ndarray],
    matrices: Mapping[str, Weight],
    tokenizer: Tokenizer,
) -> FloatModel:
    """Put the pieces together; both maps have module names as keys.

    Raises ShapeMismatch if the embedding is tied and there is a head that differs from it.
    """
    embedding, head = matrices[EMBEDDING], matrices.get(HEAD)
    if config.tie_embeddings and head is not None:
        differing = int(np.count_nonzero(dense(head) != dense(embedding)))
        if differing:
            raise ShapeMismatch(
                f"{path}: tie_word_embeddings is true, but {HEAD}.weight and {EMBEDDING}.weight "
                f"differ in {differing} of {config.vocab_size * config.hidden_size} values.",
                hint="set tie_word_embeddings to false in config.json if the model was trained "
                f"with its own head, or remove {HEAD}.weight.",
            )
        head = None

    def layer(index: int) -> FloatLayer:
        prefix = f"model.layers.{index}."
        return FloatLayer(
            attn_norm=norms[prefix + "input_layernorm"],
            wq=matrices[prefix + "self_attn.q_proj"],
            wk=matrices[prefix + "self_attn.k_proj"],
            wv=matrices[prefix + "self_attn.v_proj"],
            wo=matrices[prefix + "self_attn.o_proj"],
            mlp_norm=norms[prefix + "post_attention_layernorm"],
            w_gate=matrices[prefix + "mlp.gate_proj"],
            w_up=matrices[prefix + "mlp.up_proj"],
            w_down=matrices[prefix + "mlp.down_proj"],
        )

    return FloatModel(
        config=config,
        embedding=embedding,
        layers=[layer(index) for index in range(config.num_layers)],
        final_norm=norms[FINAL_NORM],
        head=head,
        tokenizer=tokenizer,
        # the name only: it ends up in generated files, which hold no absolute paths
        source=name_of(path),
    )
