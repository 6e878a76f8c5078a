"""The line of Python that loads a step of a run, which the step's model card has."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from shrinkc.checkpoints.packed import is_packed
from shrinkc.importer.gptq import ADAPTER, find_adapter
from shrinkc.importer.gptq_config import is_quantized, load_gptq_config

README = "README.md"
_PLAIN = "from transformers import AutoModelForCausalLM; model = AutoModelForCausalLM.from_pretrained({path})"
_PACKED = "import shrinkc; model = shrinkc.load({path})"
_MIXED = (
    "from gptqmodel import GPTQModel; model = GPTQModel.load({path}, backend='gptq_torch').model"
)
_MIXED_ADAPTER = (
    "from gptqmodel import GPTQModel; from gptqmodel.adapter.adapter import Lora; model = GPTQModel.load("
    "{path}, adapter=Lora(path={path}, rank={rank}), backend='gptq_torch').model"
)


@dataclass(frozen=True)
class Loading:
    """A way to load a model directory.

    ``plain``: from_pretrained of transformers suffices.  ``libraries``: packages that have to be installed.
    ``reason``: explanation if it is not the usual line, else empty.
    """

    plain: bool
    libraries: tuple[str, ...]
    template: str
    reason: str = ""
    rank: int = 0

    @classmethod
    def of(cls, directory: Path) -> Loading:
        """Read the configurations of ``directory``; raises the importer's errors."""
        if not is_quantized(directory):
            return cls(True, ("transformers",), _PLAIN)
        if is_packed(directory):
            reason = (
                "Embedding and LM head are stored as integers, which only shrinkc reads: `shrinkc.load` returns "
                "a model of transformers. `shrinkc export . --gptq DIRECTORY` makes a GPTQ checkpoint for other "
                "libraries, `--gguf FILE` a file for llama.cpp."
            )
            return cls(False, ("shrinkc", "torch", "transformers"), _PACKED, reason)
        mixed = bool(load_gptq_config(directory).rules)
        adapter = find_adapter(directory)
        rank = 0 if adapter is None else json.loads((adapter / ADAPTER).read_text())["r"]
        if mixed:
            reason = (
                "Its matrices differ in bits or group size: from_pretrained of transformers knows one "
                "format per model, and refuses it."
            )
            template = _MIXED_ADAPTER if rank else _MIXED
            return cls(False, ("gptqmodel",), template, reason, rank)
        if rank:
            reason = (
                "peft adds the low-rank adapter. It is imported so that Python stops where it is missing: "
                "transformers alone would leave the adapter out."
            )
            libraries = ("transformers", "gptqmodel", "optimum", "peft")
            return cls(True, libraries, f"import peft; {_PLAIN}", reason, rank)
        return cls(True, ("transformers", "gptqmodel", "optimum"), _PLAIN)

    def line(self, path: str) -> str:
        """Return Python statements that load the directory ``path`` into a variable ``model``."""
        return self.template.format(path=repr(path), rank=self.rank)

    def section(self) -> str:
        """Return the Markdown that says how to load the directory; it contains no path of this machine."""
        return (
            f"In this folder, with {', '.join(self.libraries)}:\n\n```python\n{self.line('.')}\n```\n"
            + (f"\n{self.reason}\n" if self.reason else "")
        )
