"""Float or quantised model to integer IR."""

from shrinkc.quantize.lower import (
    EMBEDDING,
    HEAD,
    MODULES,
    QuantOptions,
    check_sizes,
    float_inputs,
    grouped_inputs,
    inputs_of,
    lower,
    matrix_formats,
)
from shrinkc.quantize.weights import MatrixFormat

__all__ = [
    "EMBEDDING",
    "HEAD",
    "MODULES",
    "MatrixFormat",
    "QuantOptions",
    "check_sizes",
    "float_inputs",
    "grouped_inputs",
    "inputs_of",
    "lower",
    "matrix_formats",
]
