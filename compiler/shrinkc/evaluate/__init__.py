"""How well a model predicts real text, and how close the integer model stays to the float one."""

from shrinkc.evaluate.models import LogitsOf, float_logits, integer_logits
from shrinkc.evaluate.protocols import (
    PROTOCOLS,
    Protocol,
    Result,
    agreement,
    measure,
    read_text,
    story_pieces,
    text_windows,
    token_losses,
)

__all__ = [
    "PROTOCOLS",
    "LogitsOf",
    "Protocol",
    "Result",
    "agreement",
    "float_logits",
    "integer_logits",
    "measure",
    "read_text",
    "story_pieces",
    "text_windows",
    "token_losses",
]
