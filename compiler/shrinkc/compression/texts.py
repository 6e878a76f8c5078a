"""Texts for calibration and training: files, NLTK's corpora, data sets of the Hugging Face hub, self-generated text."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from shrinkc.checkpoints import need
from shrinkc.compression.corpora import is_corpora, read_corpora
from shrinkc.compression.self_generated import SelfGenerated, is_self, tokens_of
from shrinkc.core.errors import BadData
from shrinkc.core.parsing import parse_json

HUB = "hub:"  # prefix of a data set
HUB_CHARACTERS = 20_000_000  # most characters of a data set to read: some have terabytes
DUPLICATE_LENGTH = 50  # characters; shorter paragraphs, such as headings, may repeat
MANY_DUPLICATES = 0.1

_BLANK = re.compile(r"\n[ \t]*\n")


@dataclass(frozen=True)
class Text:
    """A text.  ``name``: the file's name without folders, the hub id, or a source such as "self:200k".

    Only for self-generated text, ``spec`` lists everything but the model that determines it.  If it is not written
    yet, ``unwritten`` is its number of tokens and ``content`` is "".
    """

    name: str
    content: str
    spec: str = ""
    unwritten: int = 0

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the UTF-8 content, or of ``spec`` for self-generated text, which may not be written yet."""
        return hashlib.sha256((self.spec or self.content).encode()).hexdigest()


def is_file(source: str) -> bool:
    """Return whether a source is a local file, not a data set, corpora or self-generated text."""
    return not (source.startswith(HUB) or is_corpora(source) or is_self(source))


def read_texts(
    sources: tuple[str, ...], key: str, store: SelfGenerated | None = None
) -> list[Text]:
    """Read the texts that the recipe's ``key`` lists.

    A source is the path of a text file or of a ``.jsonl`` file with a field "text" in each line,
    ``hub:dataset[:config][:split]``, ``nltk:corpus[,corpus…]``, or ``self[:tokens]`` from ``store``.  Line ends become
    LF.
    Raises BadData if ``sources`` is empty or a source cannot be read.
    """
    if not sources:
        raise BadData(
            f"{key} is not given, so there is no text to work with.",
            f"--set {key}=FILE names a text file that is like what the model is for.",
        )
    return [_read(source, key, store) for source in sources]


def _read(source: str, key: str, store: SelfGenerated | None) -> Text:
    if source.startswith(HUB):
        return _hub(source)
    if is_corpora(source):
        return Text(source, read_corpora(source))
    if is_file(source):
        return _file(Path(source), key)
    if store is None:
        raise BadData(
            f"{key} = {source!r}: only 'shrinkc compress' can use self-generated text.",
            "give a text file; one of that name is './self'.",
        )
    content, tokens = store.content(tokens_of(source)), tokens_of(source)
    if content is None:
        return Text(source, "", store.spec(source), unwritten=tokens)
    return Text(source, content, store.spec(source))


def _file(path: Path, key: str) -> Text:
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise BadData(f"{key}: {path} cannot be read: {reason}.") from error
    if path.suffix == ".jsonl":
        content = "\n\n".join(
            _line(path, n, line) for n, line in enumerate(content.splitlines(), 1)
        )
    return Text(path.name, content)


def _line(path: Path, number: int, line: str) -> str:
    try:
        text = parse_json(line)["text"]
    except (ValueError, TypeError, KeyError) as error:
        raise BadData(f'{path}, line {number}: an object with a field "text" is needed.') from error
    return str(text)


def _hub(source: str) -> Text:
    need("datasets")
    from datasets import load_dataset

    name, *rest = source.removeprefix(HUB).split(":")
    config, split = (rest[0] if len(rest) > 1 else None), (rest[-1] if rest else "train")
    parts: list[str] = []
    size = 0
    try:
        for row in load_dataset(name, config, split=split, streaming=True):
            parts.append(str(row["text"]))
            size += len(parts[-1]) + 1
            if size >= HUB_CHARACTERS:
                break
    except Exception as error:  # any error of the network, the hub or the data set
        first = str(error).strip().split("\n")[0]
        raise BadData(
            f"{source} cannot be read from the Hugging Face hub: {first}",
            "give local text instead, for instance --set calibration.text=FILE --set lora.text=FILE.",
        ) from error
    return Text(source, "\n".join(parts))


def duplicated(texts: list[Text]) -> tuple[int, int]:
    """Count paragraphs of at least DUPLICATE_LENGTH characters: (repetitions of an earlier one, all)."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(
            p.strip() for p in _BLANK.split(text.content) if len(p.strip()) >= DUPLICATE_LENGTH
        )
    return counts.total() - len(counts), counts.total()


def check_duplicates(texts: list[Text], key: str) -> list[str]:
    """Return a warning if paragraphs repeat; raise BadData if more than the share MANY_DUPLICATES do.

    Self-generated text is not checked: its documents never repeat."""
    texts = [text for text in texts if not text.spec]
    repeated, total = duplicated(texts)
    names = ", ".join(text.name for text in texts)
    if repeated > MANY_DUPLICATES * total:
        raise BadData(
            f"{key}: {repeated} of {total} paragraphs of {names} repeat an earlier one; at most "
            f"{MANY_DUPLICATES:.0%} may.",
            "remove the duplicates: repeated text stands for less than its length says.",
        )
    return [f"{key}: {repeated} of {total} paragraphs repeat an earlier one"] if repeated else []
