"""Names and shapes of a model's matrices, norms and biases, computed from its config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from shrinkc.model.config import LlamaConfig
from shrinkc.model.families import FAMILIES
from shrinkc.model.family import MODULES, SLOTS, Family

T = TypeVar("T")

EMBEDDING, HEAD, FINAL_NORM = "model.embed_tokens", "lm_head", "model.norm"

SLOT_MODULES: dict[str, tuple[str, ...]] = {
    slot: tuple(m.short for m in MODULES if m.slot == slot) for slot in SLOTS
}
"""Slot -> last names of its modules, in the order in which their rows are fused."""

FIELDS: dict[str, str] = {m.short: m.field for m in MODULES}
"""A module's last name -> its field of FloatLayer."""

NAMES: dict[str, str] = {m.short: m.name for m in MODULES}
"""A module's last name -> its name within a layer, such as "mlp.up_proj"."""


def family_of(config: LlamaConfig) -> Family:
    """Return the family of ``config``."""
    return FAMILIES[config.family]


def dimensions(config: LlamaConfig) -> dict[str, int]:
    """Return the values of ``family.DIMENSIONS``."""
    return {
        "hidden": config.hidden_size,
        "ffn": config.intermediate_size,
        "q": config.num_heads * config.head_dim,
        "kv": config.num_kv_heads * config.head_dim,
        "head": config.head_dim,
    }


def layer_shapes(config: LlamaConfig) -> dict[str, tuple[int, int]]:
    """Map the name of a module within a layer, such as "mlp.up_proj", to (outputs, inputs)."""
    sizes = dimensions(config)
    return {m.name: (sizes[m.rows], sizes[m.inputs]) for m in family_of(config).modules}


def slot_shapes(config: LlamaConfig) -> dict[str, tuple[int, int]]:
    """Map each slot, in the order of SLOTS, to (outputs, inputs) of its fused modules."""
    shapes = layer_shapes(config)
    found: dict[str, tuple[int, int]] = {}
    for module in family_of(config).modules:
        rows, inputs = shapes[module.name]
        found[module.slot] = (found.get(module.slot, (0, 0))[0] + rows, inputs)
    return found


def matrix_shapes(config: LlamaConfig) -> dict[str, tuple[int, int]]:
    """Map the module name of every matrix to (outputs, inputs)."""
    embedding = (config.vocab_size, config.hidden_size)
    shapes = {EMBEDDING: embedding, **_per_layer(config, layer_shapes(config))}
    if not config.tie_embeddings:
        shapes[HEAD] = embedding
    return shapes


def norm_shapes(config: LlamaConfig) -> dict[str, tuple[int]]:
    """Map the module name of every RMSNorm to (weights,)."""
    sizes = dimensions(config)
    shapes = {n.name: (sizes[n.size],) for n in family_of(config).norms}
    return {**_per_layer(config, shapes), FINAL_NORM: (config.hidden_size,)}


def bias_shapes(config: LlamaConfig) -> dict[str, tuple[int]]:
    """Map the module name of every matrix with a bias to (outputs,)."""
    shapes = layer_shapes(config)
    return _per_layer(config, {name: shapes[name][:1] for name in config.biased})


def slots_with_bias(config: LlamaConfig) -> tuple[str, ...]:
    """Return the slots with at least one module that adds a bias."""
    return tuple(dict.fromkeys(m.slot for m in MODULES if m.name in config.biased))


def module_name(layer: int, short: str) -> str:
    """Return a module's name in a checkpoint, such as "model.layers.0.self_attn.q_proj" for ``q_proj``."""
    return f"model.layers.{layer}.{NAMES[short]}"


def layer_windows(config: LlamaConfig, context: int) -> tuple[int, ...]:
    """Return for each layer the number of positions that a token attends to, 0 for all of ``context``.

    The result is empty if all layers attend to all positions."""
    window = config.sliding_window
    if window is None or window >= context:
        return ()
    whole = set(config.global_layers)
    windows = tuple(0 if i in whole else window for i in range(config.num_layers))
    return windows if any(windows) else ()


def local_rope_layers(config: LlamaConfig) -> tuple[bool, ...]:
    """Return for each layer whether its RoPE base is ``local_rope_theta``; empty if no layer's is."""
    if config.local_rope_theta is None:
        return ()
    return tuple(i not in config.global_layers for i in range(config.num_layers))


def window_notes(config: LlamaConfig, context: int) -> tuple[str, ...]:
    """Return a note if the model has a sliding window that holds the whole context."""
    if config.sliding_window is None or config.sliding_window < context:
        return ()
    return (
        f"the sliding window of {config.sliding_window} positions holds all {context} of the "
        "program, so it is left out",
    )


def _per_layer(config: LlamaConfig, parts: Mapping[str, T]) -> dict[str, T]:
    return {
        f"model.layers.{layer}.{name}": part
        for layer in range(config.num_layers)
        for name, part in parts.items()
    }
