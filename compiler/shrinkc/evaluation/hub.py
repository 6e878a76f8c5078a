"""The evaluation data as the Hugging Face hub has it, for those without local files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shrinkc.checkpoints import need
from shrinkc.core.errors import BadData

PREFIX = "hub"


@dataclass(frozen=True)
class _Source:
    """A dataset's id, default configuration and split; ``write`` makes a row a piece of a file."""

    dataset: str
    config: str | None
    split: str
    ending: str
    write: Callable[[Mapping[str, Any]], str]


def _text_row(row: Mapping[str, Any]) -> str:
    return row["text"] or " \n"  # a blank line of the raw file is an empty row


def _json_row(row: Mapping[str, Any]) -> str:
    return json.dumps(dict(row), ensure_ascii=False) + "\n"


SOURCES = {
    "text": _Source("Salesforce/wikitext", "wikitext-2-raw-v1", "test", "raw", _text_row),
    "trivia": _Source("mandarjoshi/trivia_qa", "rc.nocontext", "validation", "jsonl", _json_row),
    "hellaswag": _Source("Rowan/hellaswag", None, "validation", "jsonl", _json_row),
}


def is_hub(value: str) -> bool:
    """Whether ``value`` is "hub" or "hub:CONFIG", and no file of that name."""
    return value.partition(":")[0] == PREFIX and not Path(value).exists()


def data_file(value: str, kind: str, folder: Path) -> Path:
    """The local file that ``value`` means, for one ``kind`` of SOURCES.

    "hub" or "hub:CONFIG" fetches the dataset (or takes it from the cache of the ``datasets``
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
    source = SOURCES[kind]
    chosen = config or source.config
    name = "-".join(filter(None, (source.dataset.replace("/", "-"), chosen, source.split)))
    path = folder / f"{name}.{source.ending}"
    with path.open("w", encoding="utf-8") as file:
        file.writelines(map(source.write, _rows(source, chosen)))
    return path


def _drained(pipe: Path, file: Path) -> Path:
    try:
        with pipe.open("rb") as source, file.open("wb") as target:
            shutil.copyfileobj(source, target)
    except OSError as error:
        raise BadData(f"{pipe} cannot be read: {error.strerror}.") from error
    return file


def _rows(source: _Source, config: str | None) -> Iterable[Mapping[str, Any]]:
    need("datasets")
    import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(source.dataset, config, split=source.split)
    except Exception as error:  # whatever the network or the hub says
        first = str(error).strip().split("\n")[0]
        raise BadData(
            f"{source.dataset} ({config or 'default'}, {source.split}) cannot be fetched from the "
            f"hub: {first}",
            "give a local file instead.",
        ) from error
