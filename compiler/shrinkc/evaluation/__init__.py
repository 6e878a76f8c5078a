"""How well a model predicts and answers: float in torch, integer as compiled, and both compared."""

from shrinkc.evaluation.compiled_scorer import CompiledScorer
from shrinkc.evaluation.models import LogitsOf, integer_logits
from shrinkc.evaluation.perplexity import COMPARED
from shrinkc.evaluation.plan import EvalPlan, evaluate, fitted, made_from, text_measured
from shrinkc.evaluation.protocols import (
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
from shrinkc.evaluation.scorer import Choices, Scorer
from shrinkc.evaluation.torch_scorer import TorchScorer, perplexity_of

__all__ = [
    "COMPARED",
    "PROTOCOLS",
    "Choices",
    "CompiledScorer",
    "EvalPlan",
    "LogitsOf",
    "Protocol",
    "Result",
    "Scorer",
    "TorchScorer",
    "agreement",
    "evaluate",
    "fitted",
    "integer_logits",
    "made_from",
    "measure",
    "perplexity_of",
    "read_text",
    "story_pieces",
    "text_measured",
    "text_windows",
    "token_losses",
]
