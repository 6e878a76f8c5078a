"""From files that users have to a FloatModel: checkpoints, adapters, tokenizers."""

from shrinkc.importer.chat_template import ChatTemplate, Message
from shrinkc.importer.config import parse_config
from shrinkc.importer.loading import (
    Checkpoint,
    load_config,
    load_model,
    open_checkpoint,
)
from shrinkc.importer.lora import adapter_ranks, load_adapter
from shrinkc.importer.model import (
    FloatLayer,
    FloatModel,
    Formats,
    Llama3RopeScaling,
    LlamaConfig,
    LowRankAdapter,
    QuantizedWeight,
    Weight,
    dense,
)
from shrinkc.importer.rope import inverse_frequencies
from shrinkc.importer.tokenizer import Tokenizer

__all__ = [
    "ChatTemplate",
    "Checkpoint",
    "FloatLayer",
    "FloatModel",
    "Formats",
    "Llama3RopeScaling",
    "LlamaConfig",
    "LowRankAdapter",
    "Message",
    "QuantizedWeight",
    "Tokenizer",
    "Weight",
    "adapter_ranks",
    "dense",
    "inverse_frequencies",
    "load_adapter",
    "load_config",
    "load_model",
    "open_checkpoint",
    "parse_config",
]
