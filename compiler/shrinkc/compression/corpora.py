"""Text of the corpora that NLTK downloads and keeps: the source ``nltk:brown,abc`` of a recipe's ``text``."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from functools import cache
from typing import Any

from shrinkc.checkpoints import need
from shrinkc.core.errors import BadData

PREFIX = "nltk:"
CHARACTERS = 3_600_000  # most characters of a source: about 800,000 tokens
DOCUMENT = 2_500  # characters after which a document ends at the next paragraph
SPOKEN = "spoken/"  # transcripts of conversations in MASC: fragments of sentences
DOUBLED = {";;": ";", "!!": "!", "??": "?"}  # marks that the Brown corpus writes twice


def is_corpora(source: str) -> bool:
    """Return whether a source names corpora of NLTK; ``./nltk:…`` is a file of that name."""
    return source.startswith(PREFIX)


@cache
def read_corpora(source: str) -> str:
    """Return paragraphs of the corpora that ``source`` names ("nltk:brown,abc"), at most ``CHARACTERS`` characters.

    The text is a random choice of documents with a fixed seed, so that every corpus has a part that is proportional to
    its size.  Missing corpora are downloaded into NLTK's folder of data.  Raises BadData, ExtraMissing.
    """
    need("nltk")
    names = source.removeprefix(PREFIX).split(",")
    documents = [document for name in names for document in _documents(_reader(source, name))]
    random.Random(1).shuffle(documents)
    taken, size = [], 0
    for document in documents:
        if size + len(document) > CHARACTERS:
            break
        taken.append(document)
        size += len(document) + 2
    return "\n\n".join(taken) + "\n"


def _reader(source: str, name: str) -> Any:
    """Return NLTK's reader of a corpus, and download the corpus if it is missing."""
    import nltk
    from nltk.corpus.reader.api import CorpusReader
    from nltk.corpus.util import LazyCorpusLoader

    reader = getattr(nltk.corpus, name, None)
    if not isinstance(reader, LazyCorpusLoader | CorpusReader):
        raise BadData(
            f"{source}: NLTK has no corpus {name!r}.",
            "give names of NLTK's corpora with commas between them, such as "
            "'nltk:brown,masc_tagged,abc,state_union'.",
        )
    try:
        reader.ensure_loaded()
    except LookupError:
        _download(source, name)
        reader.ensure_loaded()
    return reader


def _download(source: str, name: str) -> None:
    import nltk

    try:
        nltk.download(name, quiet=True, raise_on_error=True, print_error_to=io.StringIO())
    except Exception as error:  # of the network or of the disk: NLTK has no class for them
        reason = str(error).strip().split("\n")[0]
        raise BadData(
            f"{source}: NLTK cannot download {name}: {reason}",
            "without a network, give English text of your own, or 'self' for text that the model writes, "
            f"which costs quality: --text FILE. Or copy NLTK's {name}.zip into corpora/ of a folder that "
            "the variable NLTK_DATA names.",
        ) from error


def _documents(reader: Any) -> Iterator[str]:
    """Yield the paragraphs of every file of a corpus, joined to documents of about ``DOCUMENT`` characters."""
    for file in reader.fileids():
        if file.startswith(SPOKEN):
            continue
        parts: list[str] = []
        for paragraph in _paragraphs(reader, file):
            parts.append(paragraph)
            if sum(map(len, parts)) >= DOCUMENT:
                yield "\n\n".join(parts)
                parts = []
        if parts:
            yield "\n\n".join(parts)


def _paragraphs(reader: Any, file: str) -> Iterator[str]:
    """Yield the paragraphs of a file: lines of a plain text; sentences of a tagged one, put together to text."""
    from nltk.corpus.reader import PlaintextCorpusReader
    from nltk.tokenize.treebank import TreebankWordDetokenizer

    if isinstance(reader, PlaintextCorpusReader):
        yield from filter(None, map(str.strip, reader.raw(file).splitlines()))
        return
    join = TreebankWordDetokenizer().detokenize
    for paragraph in reader.paras(file):
        yield " ".join(join([DOUBLED.get(w, w) for w in sentence]) for sentence in paragraph)
