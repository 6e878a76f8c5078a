"""Readers of checkpoints, adapters and tokenizers.  Their result is a FloatModel."""

from shrinkc.importer.chat_template import ChatTemplate as ChatTemplate
from shrinkc.importer.chat_template import Message as Message
from shrinkc.importer.chat_template import Tool as Tool
from shrinkc.importer.config import parse_config as parse_config
from shrinkc.importer.loading import Checkpoint as Checkpoint
from shrinkc.importer.loading import load_config as load_config
from shrinkc.importer.loading import load_model as load_model
from shrinkc.importer.loading import open_checkpoint as open_checkpoint
from shrinkc.importer.loading import stated_license as stated_license
from shrinkc.importer.model import FloatModel as FloatModel
from shrinkc.importer.model import Formats as Formats
from shrinkc.importer.model import QuantizedWeight as QuantizedWeight
from shrinkc.importer.model import dense as dense
from shrinkc.importer.rope import inverse_frequencies as inverse_frequencies
from shrinkc.importer.tokenizer import Tokenizer as Tokenizer
from shrinkc.model import Llama3RopeScaling as Llama3RopeScaling
from shrinkc.model import LlamaConfig as LlamaConfig
