"""Self-generated text: the source ``self:200k`` of a recipe's ``text``.

A run stores it as shards (JSON lines, one document each) and a record of model and settings.  A source takes
documents from the first one until it has enough tokens, so that all sources of a run share them and more can be
written later.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from shrinkc.compression.checks import Between, Checked, Dtype
from shrinkc.compression.steps import read_record
from shrinkc.core.artifact import FileRecord, file_record
from shrinkc.core.errors import BadRecipe, BadStep, OutputError
from shrinkc.core.output import new_file, write_file
from shrinkc.core.parsing import parse_json

SELF = "self"
DEFAULT_TOKENS = 200_000
LEAST_TOKENS = 100
FOLDER = "self-generated"  # in a run
RECORD = "record.json"
FORMAT, VERSION = "shrinkc-self-generated", 1

_SOURCE = re.compile(rf"{SELF}(?::(\d{{1,9}}(?:\.\d{{1,9}})?)([kM]?))?")
_UNITS = {"": 1, "k": 1_000, "M": 1_000_000}


@dataclass(frozen=True)
class SelfGeneratedSettings(Checked):
    """Settings of self-generated calibration data."""

    temperature: Annotated[float, Between(0.05, 10)] = 0.8
    """Temperature of the sampling."""
    length: Annotated[int, Between(8)] = 512
    """Largest number of tokens in a document."""
    batch: Annotated[int, Between(1, 4096)] = 32
    """Documents that the model writes at the same time."""
    chat: bool = True
    """Whether half of the documents are conversations, if the model has a chat template."""
    dtype: Dtype = "bfloat16"
    """Precision of the computation."""


def is_self(source: str) -> bool:
    """Return whether a source is self-generated text; ``./self`` is a file of that name."""
    return source == SELF or source.startswith(f"{SELF}:")


def tokens_of(source: str) -> int:
    """Return the number of self-generated tokens that a source asks for.  Raises BadRecipe if it is malformed."""
    match = _SOURCE.fullmatch(source)
    wanted = DEFAULT_TOKENS
    if match and match[1]:
        wanted = round(float(match[1]) * _UNITS[match[2]])
    if match is None or not LEAST_TOKENS <= wanted < 1 << 40:
        raise BadRecipe(
            f"text = {source!r} is no size of self-generated text; at least {LEAST_TOKENS} tokens "
            f"are allowed, such as 'self:{LEAST_TOKENS}', 'self:200k' or 'self:1.5M'.",
            "'self' alone means 'self:200k'; a file of that name is './self'.",
        )
    return wanted


@dataclass(frozen=True)
class Document:
    """A self-generated document.  ``text`` has special tokens; ``tokens`` counts prompt and sampled tokens."""

    text: str
    tokens: int


class SelfGenerated:
    """The folder of a run with the text written so far."""

    def __init__(self, folder: Path, settings: SelfGeneratedSettings) -> None:
        self.folder, self.settings = folder, settings

    # ---- reading ----

    def files(self) -> list[str]:
        shards = [self._shard(number).name for number in range(self.shards())]
        return [RECORD, *shards] if (self.folder / RECORD).exists() else []

    def made_from(self) -> dict[str, Any]:
        """Return model, seed, threads, versions and settings that gave the text; {} before the first shard."""
        return dict(self._record().get("made_from", {}))

    def begin(self) -> Any:
        """Return the start of the documents, as given to :meth:`start`."""
        return self._record().get("begin")

    def shards(self) -> int:
        return len(self._record().get("shards", []))

    def documents(self) -> Iterator[Document]:
        """Yield the written documents without duplicates.  Raises BadStep if a shard is missing or was changed."""
        known: set[str] = set()
        for number, record in enumerate(self._record().get("shards", [])):
            path = self._shard(number)
            if not path.is_file() or file_record(path) != FileRecord(**record):
                raise BadStep(
                    f"{path} is missing or was changed.",
                    f"delete {self.folder} to have the model write the same text again.",
                )
            # not splitlines(): a text may contain other line separators
            for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
                document = Document(**parse_json(line))
                if document.text not in known:
                    known.add(document.text)
                    yield document

    def written(self) -> int:
        """Return the number of tokens of :meth:`documents`."""
        return sum(document.tokens for document in self.documents())

    def content(self, tokens: int) -> str | None:
        """Return the first documents with at least ``tokens`` tokens in total; None if they are not written yet."""
        parts: list[str] = []
        total = 0
        for document in self.documents():
            parts.append(document.text)
            total += document.tokens
            if total >= tokens:
                return "\n\n".join(parts) + "\n"
        return None

    def spec(self, source: str) -> str:
        """Return everything but the model that determines a source's text, for the fingerprint of a stage."""
        said = {"tokens": tokens_of(source), **asdict(self.settings)}
        return ", ".join(f"{key} {value}" for key, value in said.items())

    # ---- writing ----

    def start(self, made_from: dict[str, Any], begin: Any) -> None:
        """Make the folder and its record; ``begin`` is JSON-able."""
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.folder} cannot be made: {error.strerror}.") from error
        self._write({"made_from": made_from, "begin": begin, "shards": []})

    def add(self, documents: list[Document]) -> None:
        """Write the next shard, atomically."""
        record = self._record()
        path = self._shard(len(record["shards"]))
        with new_file(path) as file:
            for document in documents:
                file.write((json.dumps(asdict(document), ensure_ascii=False) + "\n").encode())
        record["shards"].append(asdict(file_record(path)))
        self._write(record)

    def _shard(self, number: int) -> Path:
        return self.folder / f"{number:05d}.jsonl"

    def _write(self, content: dict[str, Any]) -> None:
        said = {"format": FORMAT, "version": VERSION, **content}
        write_file(self.folder / RECORD, json.dumps(said, indent=1, ensure_ascii=False) + "\n")

    def _record(self) -> dict[str, Any]:
        path = self.folder / RECORD
        if not path.exists():
            return {}
        hint = f"delete {self.folder} to have the model write it again."
        return read_record(path, FORMAT, VERSION, hint)
