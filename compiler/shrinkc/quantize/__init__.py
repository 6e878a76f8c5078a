"""Float or quantised model to integer IR."""

from shrinkc.model import EMBEDDING, HEAD
from shrinkc.model import SLOT_MODULES as MODULES
from shrinkc.quantize.formats import (
    QuantOptions,
    check_sizes,
    float_inputs,
    grouped_inputs,
    inputs_of,
    matrix_formats,
)
from shrinkc.quantize.lower import PASS, lower
from shrinkc.quantize.weights import MatrixFormat

__all__ = [
    "EMBEDDING",
    "HEAD",
    "MODULES",
    "PASS",
    "MatrixFormat",
    "QuantOptions",
    "check_sizes",
    "float_inputs",
    "grouped_inputs",
    "inputs_of",
    "lower",
    "matrix_formats",
]
