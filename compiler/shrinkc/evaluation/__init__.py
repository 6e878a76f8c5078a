"""Measurements of quality: float models in torch, compiled integer models, and comparisons of two models."""

from shrinkc.evaluation.compiled_scorer import CompiledScorer, token_losses
from shrinkc.evaluation.perplexity import COMPARED
from shrinkc.evaluation.plan import EvalPlan, evaluate, fitted, made_from, text_measured
from shrinkc.evaluation.scorer import Choices, Scorer
from shrinkc.evaluation.tasks import TaskChoice
from shrinkc.evaluation.torch_scorer import TorchScorer

__all__ = [
    "COMPARED",
    "Choices",
    "CompiledScorer",
    "EvalPlan",
    "Scorer",
    "TaskChoice",
    "TorchScorer",
    "evaluate",
    "fitted",
    "made_from",
    "text_measured",
    "token_losses",
]
