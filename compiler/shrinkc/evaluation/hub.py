"""Download of WikiText-2's test split from the Hugging Face hub."""

from __future__ import annotations

import shutil
from pathlib import Path

from shrinkc.checkpoints import need
from shrinkc.core.errors import BadData

PREFIX = "hub"
DATASET, CONFIG, SPLIT = "Salesforce/wikitext", "wikitext-2-raw-v1", "test"


def is_hub(value: str) -> bool:
    """Return whether ``value`` is "hub" or "hub:CONFIG" and no file has that name."""
    return value.partition(":")[0] == PREFIX and not Path(value).exists()


def text_file(value: str, folder: Path) -> Path:
    """Return the path of a local file with the text that ``value`` names.

    For "hub" or "hub:CONFIG" the data set is downloaded (or read from the cache of the ``datasets``
    library) and written to ``folder``.  A pipe can be read only once, so its content is copied to ``folder``.
    Any other value is the path itself.  Raises BadData, ExtraMissing.
    """
    config = value.partition(":")[2]
    given = Path(value)
    if given.is_fifo():
        return _copy_pipe(given, folder / given.name)
    if not is_hub(value):
        return given
    path = folder / f"{DATASET.replace('/', '-')}-{config or CONFIG}-{SPLIT}.raw"
    with path.open("w", encoding="utf-8") as file:
        # the library returns a blank line of the raw file as an empty row
        file.writelines(text or " \n" for text in _rows(config or CONFIG))
    return path


def _copy_pipe(pipe: Path, file: Path) -> Path:
    try:
        with pipe.open("rb") as source, file.open("wb") as target:
            shutil.copyfileobj(source, target)
    except OSError as error:
        raise BadData(f"{pipe} cannot be read: {error.strerror}.") from error
    return file


def _rows(config: str) -> list[str]:
    need("datasets")
    import datasets

    datasets.disable_progress_bars()
    try:
        return [row["text"] for row in datasets.load_dataset(DATASET, config, split=SPLIT)]
    except Exception as error:  # network and hub raise many types
        first = str(error).strip().split("\n")[0]
        raise BadData(
            f"{DATASET} ({config}, {SPLIT}) cannot be fetched from the hub: {first}",
            "give a local file instead.",
        ) from error
