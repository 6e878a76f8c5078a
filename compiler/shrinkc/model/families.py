"""The families that shrinkc compiles."""

from __future__ import annotations

from shrinkc.model.family import Family
from shrinkc.model.gemma3 import GEMMA3
from shrinkc.model.llama import LLAMA
from shrinkc.model.mistral import MISTRAL
from shrinkc.model.qwen2 import QWEN2
from shrinkc.model.qwen3 import QWEN3

FAMILIES: dict[str, Family] = {f.name: f for f in (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA3)}
"""``model_type`` -> family."""

SUPPORTED = ", ".join(f"{f.name} ({f.architecture})" for f in FAMILIES.values())
"""Supported families, for messages."""
