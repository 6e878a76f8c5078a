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
        for name, shape in layer_shapes(config).items():
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


def layer_shapes(config: LlamaConfig) -> dict[str, tuple[int, int]]:
    """Return name within a layer, such as "mlp.up_proj" -> (outputs, inputs)."""
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
    missing = [name for name in wanted if name not in found]
    wrong = [name for name, shape in wanted.items() if found.get(name, shape) != shape]
    unexpected = [n for n in found if n not in wanted and not n.endswith(_IGNORED_SUFFIX)]
    faults = [
        listing([f"{n} {list(wanted[n])}" for n in missing], "tensors are missing", "missing {}"),
        listing(
            [f"{n} is {list(found[n])}, the config says {list(wanted[n])}" for n in wrong],
            "tensors are of other shapes",
        ),
        listing(
            [f"{n} {list(found[n])}" for n in unexpected], "tensors are unexpected", "unexpected {}"
        ),
    ]
    if any(faults):
        hint = "config.json and the weight files have to come from the same model."
        if any("lora_" in name for name in unexpected):
            hint = "this looks like a LoRA adapter; give it beside its base model."
        elif (missing, wrong, unexpected) == ([f"{HEAD}.weight"], [], []):
            hint = "if the model has no own head, set tie_word_embeddings to true in config.json."
        raise ShapeMismatch(f"{path}: {'; '.join(filter(None, faults))}.", hint=hint)


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
