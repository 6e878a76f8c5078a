"""Float model to integer IR."""

from shrinkc.quantize.lower import QuantOptions, lower

__all__ = ["QuantOptions", "lower"]
