"""The structure of the models that shrinkc compiles, stated once: a file per family."""

from shrinkc.model.config import Llama3RopeScaling, LlamaConfig
from shrinkc.model.families import FAMILIES, SUPPORTED
from shrinkc.model.family import ATTENTION, MLP, SLOTS, Family
from shrinkc.model.structure import (
    EMBEDDING,
    FIELDS,
    FINAL_NORM,
    HEAD,
    NAMES,
    SLOT_MODULES,
    bias_shapes,
    check_window,
    dimensions,
    family_of,
    layer_shapes,
    matrix_shapes,
    module_name,
    norm_shapes,
    slot_shapes,
    slots_with_bias,
    window_notes,
)

__all__ = [
    "ATTENTION",
    "EMBEDDING",
    "FAMILIES",
    "FIELDS",
    "FINAL_NORM",
    "HEAD",
    "MLP",
    "NAMES",
    "SLOTS",
    "SLOT_MODULES",
    "SUPPORTED",
    "Family",
    "Llama3RopeScaling",
    "LlamaConfig",
    "bias_shapes",
    "check_window",
    "dimensions",
    "family_of",
    "layer_shapes",
    "matrix_shapes",
    "module_name",
    "norm_shapes",
    "slot_shapes",
    "slots_with_bias",
    "window_notes",
]
