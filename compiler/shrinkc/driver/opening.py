"""What the name of a model means: a path, or an id of the Hugging Face hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from shrinkc.importer import Checkpoint, open_checkpoint


def open_model(model: Path, adapter: Path | None = None, *, whole: bool = False) -> Checkpoint:
    """:func:`open_checkpoint` of a path, or of what the hub has by this id.

    Of the hub weights are fetched only where the model has to be ``whole``; it is called by its id.
    Raises what :func:`open_checkpoint` does; ModelNotFound also where the hub does not give it, and for
    the directory of a compression run, whose steps are the models.
    """
    from shrinkc.checkpoints import located

    path = located(model, weights=whole)
    checkpoint = open_checkpoint(path, adapter, whole=whole)
    return checkpoint if path == model else replace(checkpoint, name=str(model), hub=str(model))
