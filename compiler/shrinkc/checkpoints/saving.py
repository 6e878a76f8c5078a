"""Saving of models as plain Hugging Face directories, with a check that they load again."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from shrinkc.checkpoints.libraries import quiet
from shrinkc.checkpoints.loading import load
from shrinkc.core.errors import StageFailed, UsageError
from shrinkc.core.output import new_directory

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SAMPLE = "Once upon a time, in 1984, there was a little girl.\n"


class Savable(Protocol):
    """A model of transformers, or its tokenizer."""

    def save_pretrained(self, save_directory: Any, /) -> Any:
        """Write it into a directory."""


@contextmanager
def on_disk(model: str | os.PathLike[str] | Savable, tokenizer: Savable | None) -> Iterator[str]:
    """Yield the directory, file or id of ``model``.  A model in memory is saved with its ``tokenizer`` in a temporary
    directory, which is removed when the context ends.

    Raises UsageError if ``model`` is no model, if its tokenizer is missing, or if ``tokenizer`` is given for a model
    on disk; and the errors of :func:`save`.
    """
    if isinstance(model, (str, os.PathLike)):
        if tokenizer is not None:
            raise UsageError(
                f"tokenizer= is for a model in memory, and {os.fspath(model)} has its own.",
                "leave it out.",
            )
        yield os.fspath(model)
        return
    if not hasattr(model, "save_pretrained"):
        raise UsageError(
            f"the model is a {type(model).__name__}.",
            "give a directory, a .gguf file, an id of the hub, or a model of transformers.",
        )
    if tokenizer is None:
        raise UsageError(
            "a model in memory needs its tokenizer.",
            "give tokenizer=AutoTokenizer.from_pretrained(...).",
        )
    name = Path(str(getattr(model, "name_or_path", ""))).name or "model"
    with tempfile.TemporaryDirectory(prefix="shrinkc-") as folder:
        directory = Path(folder) / name
        given: Any = model
        words: Any = tokenizer
        save(given, words, directory)
        yield str(directory)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write config, safetensors in the model's own dtype, and tokenizer into ``directory`` (new or empty), atomically.

    Then load it again with ``from_pretrained``, and raise StageFailed unless all tensors and the ids of a sample
    text are equal.
    """
    quiet()
    with new_directory(directory) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        readable = (folder / "config.json").stat().st_mode
        for file in folder.iterdir():
            file.chmod(readable)  # safetensors writes files that only their owner can read
        check_saved(model, tokenizer, folder)


def check_saved(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Raise StageFailed unless ``folder`` loads as exactly this model and tokenizer."""
    import torch

    again = load(folder, dtype=str(model.dtype).removeprefix("torch."))
    wanted, found = model.state_dict(), again.model.state_dict()
    wrong = sorted(set(wanted) ^ set(found))
    wrong += [
        name
        for name in wanted
        if name in found and not torch.equal(wanted[name].cpu(), found[name])
    ]
    if wrong:
        raise StageFailed(
            f"{folder} does not load as it was saved: {len(wrong)} tensors differ, the first is "
            f"{wrong[0]}.",
            "this is a defect; please report it with the versions of torch and transformers.",
        )
    if tokenizer(_SAMPLE)["input_ids"] != again.tokenizer(_SAMPLE)["input_ids"]:
        raise StageFailed(
            f"{folder}: the tokenizer does not load as it was saved.",
            "this is a defect; please report it with the version of transformers.",
        )
