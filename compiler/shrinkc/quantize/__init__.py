"""Conversion of a float or quantised model to the integer IR."""

from shrinkc.model import EMBEDDING as EMBEDDING
from shrinkc.model import HEAD as HEAD
from shrinkc.quantize.formats import QuantOptions as QuantOptions
from shrinkc.quantize.formats import check_sizes as check_sizes
from shrinkc.quantize.formats import float_inputs as float_inputs
from shrinkc.quantize.formats import grouped_inputs as grouped_inputs
from shrinkc.quantize.formats import inputs_of as inputs_of
from shrinkc.quantize.formats import matrix_formats as matrix_formats
from shrinkc.quantize.lower import PASS as PASS
from shrinkc.quantize.lower import lower as lower
from shrinkc.quantize.lower import pass_of as pass_of
from shrinkc.quantize.weights import MatrixFormat as MatrixFormat
