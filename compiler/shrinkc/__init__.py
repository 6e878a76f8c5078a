"""Compiles a LLaMA checkpoint to an integer-only C program and proves every integer of its runs.

    import shrinkc

    model = shrinkc.open("model")  # a directory or a .gguf file
    planned = shrinkc.plan(model, bits=4, group_size=32, context=128)
    if planned.fits:
        shrinkc.compile(model, "out", bits=4, group_size=32, context=128)
        print(shrinkc.run("out", prompt="Once upon a time").text)

``open``, ``plan``, ``compile``, ``run``, ``chat``, ``evaluate``, ``compress``, ``load`` and ``write_report`` are what
the commands call; ``errors`` has what they raise.  Nothing is imported before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from shrinkc import errors
    from shrinkc.api import chat, compile, compress, evaluate, load, open, plan, run, write_report  # noqa: A004
    from shrinkc.compression.recipe import Recipe
    from shrinkc.compression.summary import CompressionResult
    from shrinkc.core.progress import Reporter
    from shrinkc.driver.chatting import Conversation
    from shrinkc.driver.compiling import Compiled
    from shrinkc.driver.planned import Planned, Shortfall
    from shrinkc.driver.run_result import RunResult
    from shrinkc.importer import Checkpoint
    from shrinkc.report.page import Reported

__all__ = [
    "Checkpoint", "Compiled", "CompressionResult", "Conversation", "Planned", "Recipe", "Reported", "Reporter",
    "RunResult", "Shortfall",
    "__version__", "chat", "compile", "compress", "errors", "evaluate", "load", "open", "plan", "run",
    "write_report",
]  # fmt: skip

_HOME = {
    **dict.fromkeys(
        ("open", "plan", "compile", "run", "chat", "evaluate", "compress", "load", "write_report"),
        "shrinkc.api",
    ),
    "Checkpoint": "shrinkc.importer",
    "Compiled": "shrinkc.driver.compiling",
    "CompressionResult": "shrinkc.compression.summary",
    "Conversation": "shrinkc.driver.chatting",
    "Planned": "shrinkc.driver.planned",
    "Recipe": "shrinkc.compression.recipe",
    "Reported": "shrinkc.report.page",
    "Reporter": "shrinkc.core.progress",
    "RunResult": "shrinkc.driver.run_result",
    "Shortfall": "shrinkc.driver.planned",
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("shrinkc.errors")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'shrinkc' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
