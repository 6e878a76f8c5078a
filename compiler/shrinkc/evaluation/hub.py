"""WikiText-2's test split as the Hugging Face hub has it, for those without a local file."""

from __future__ import annotations

import shutil
from pathlib import Path

from shrinkc.checkpoints import need
from shrinkc.core.errors import BadData

PREFIX = "hub"
DATASET, CONFIG, SPLIT = "Salesforce/wikitext", "wikitext-2-raw-v1", "test"


def is_hub(value: str) -> bool:
    """Whether ``value`` is "hub" or "hub:CONFIG", and no file of that name."""
    return value.partition(":")[0] == PREFIX and not Path(value).exists()


def text_file(value: str, folder: Path) -> Path:
    """The local file that ``value`` means.

    "hub" or "hub:CONFIG" fetches the data set (or takes it from the cache of the ``datasets``
    library) and writes it to a file in ``folder``; anything else is a path.  What comes through a
    pipe, which can be read only once, is put into such a file as well.  Raises BadData,
    ExtraMissing.
    """
    config = value.partition(":")[2]
    given = Path(value)
    if given.is_fifo():
        return _drained(given, folder / given.name)
    if not is_hub(value):
        return given
    path = folder / f"{DATASET.replace('/', '-')}-{config or CONFIG}-{SPLIT}.raw"
    with path.open("w", encoding="utf-8") as file:
        # a blank line of the raw file is an empty row
        file.writelines(text or " \n" for text in _rows(config or CONFIG))
    return path


def _drained(pipe: Path, file: Path) -> Path:
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
    except Exception as error:  # whatever the network or the hub says
        first = str(error).strip().split("\n")[0]
        raise BadData(
            f"{DATASET} ({config}, {SPLIT}) cannot be fetched from the hub: {first}",
            "give a local file instead.",
        ) from error
