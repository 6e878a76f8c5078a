"""From files that users have to a FloatModel: checkpoints, adapters, tokenizers."""

from shrinkc.importer.config import load_config, parse_config
from shrinkc.importer.float_reference import forward, greedy, token_losses
from shrinkc.importer.hf import load_hf
from shrinkc.importer.llama2c import convert_llama2c
from shrinkc.importer.model import (
    FloatLayer,
    FloatModel,
    Llama3RopeScaling,
    LlamaConfig,
    LowRankAdapter,
)
from shrinkc.importer.rope import inverse_frequencies
from shrinkc.importer.tokenizer import Tokenizer

__all__ = [
    "FloatLayer",
    "FloatModel",
    "Llama3RopeScaling",
    "LlamaConfig",
    "LowRankAdapter",
    "Tokenizer",
    "convert_llama2c",
    "forward",
    "greedy",
    "inverse_frequencies",
    "load_config",
    "load_hf",
    "parse_config",
    "token_losses",
]
