"""Compression runs and shipped recipes."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shrinkc.checkpoints import Savable, on_disk
from shrinkc.compression import run as runs
from shrinkc.compression.recipe import RecipeSource, load_recipe, shipped
from shrinkc.compression.run_directory import is_run
from shrinkc.compression.summary import CompressionResult
from shrinkc.core.errors import BadRecipe, Interrupted
from shrinkc.core.progress import Reporter

_SENTENCE = re.compile(r".*?[a-z0-9)](?=[.:] )")


def compress_model(
    model: str | os.PathLike[str] | Savable,
    out: Path,
    recipe: RecipeSource,
    assignments: Sequence[str],
    tokenizer: Savable | None,
    reporter: Reporter,
    *,
    text: Sequence[str] = (),
    fast: bool = False,
    **options: Any,
) -> CompressionResult:
    """Run or continue a compression.  ``tokenizer``: for a ``model`` in memory.  ``text`` and ``fast`` are those of
    :func:`shrinkc.compression.recipe.load_recipe`, other ``options`` and errors those of
    :func:`shrinkc.compression.run.compress`; also raises BadRecipe and Interrupted."""
    loaded = load_recipe(recipe, assignments, text=text, fast=fast)
    if loaded.name in shipped() and recipe == loaded.name:
        reporter.note(f"recipe {loaded.name}: {_described(loaded.name).about}")
    try:
        with on_disk(model, tokenizer) as source:
            return runs.compress(source, out, loaded, reporter=reporter, **options)
    except KeyboardInterrupt as stop:
        if not is_run(out):
            raise Interrupted("stopped before the first step; nothing was written.") from stop
        raise Interrupted(
            f"stopped; {out} keeps the completed steps.",
            "run the same command again to continue.",
        ) from stop


@dataclass(frozen=True)
class ShippedRecipe:
    """Shipped recipe.  ``about``: first sentence of its ``text``.  ``budget``: whether it has a budget."""

    name: str
    about: str
    stages: list[str]
    budget: bool
    text: str


def shipped_recipes(names: Sequence[str] | None = None) -> list[ShippedRecipe]:
    """Return the recipes called ``names`` (None: all).  Raises BadRecipe for an unknown name."""
    known = shipped()
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise BadRecipe(f"shrinkc has no recipe {unknown[0]!r}.", f"allowed: {', '.join(known)}.")
    return [_described(name) for name in (known if names is None else names)]


def _described(name: str) -> ShippedRecipe:
    content = shipped()[name].read_text(encoding="utf-8")
    comment = []
    for line in content.splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").strip())
    text = " ".join(comment)
    sentence = _SENTENCE.match(text)
    recipe = load_recipe(name)
    return ShippedRecipe(
        name, sentence[0] if sentence else text, [stage.name for stage in recipe.stages],
        recipe.budget is not None, content,
    )  # fmt: skip
