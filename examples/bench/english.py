"""English of many kinds, for training: one text file from four corpora of NLTK's data.

    python examples/bench/english.py CORPORA -o english.txt [--characters N]

CORPORA is the folder ``packages/corpora`` of nltk_data with ``brown``, ``masc_tagged``, ``abc`` and ``state_union``
unpacked: prose of 1961, written American English since 1990, science and rural news, speeches.  The first two are
tagged words, which are put together to text again, near enough.  Documents are shuffled with a fixed seed, and as
many taken as have N characters.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Iterator
from pathlib import Path

SHORTEST = 400  # characters of a document
NEWS = 12  # paragraphs of news that make a document
SENTENCES = 5  # of the Brown corpus, which has no paragraphs, that make one

# pattern -> what it becomes, in this order: from words with spaces between them to text
TO_TEXT = (
    (r"`` ", '"'), (r" ''", '"'), (r"``|''", '"'),
    (r" ([,.;:?!%)\]])", r"\1"), (r"([(\[$]) ", r"\1"),
    (r" (n't|'s|'re|'ve|'ll|'d|'m)\b", r"\1"),
    (r" ?;;", ";"), (r"!!", "!"), (r"\?\?", "?"),
)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description="English text from four corpora.")
    parser.add_argument("corpora", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--characters", type=int, default=3_600_000)
    args = parser.parse_args(argv)
    missing = [
        n for n in ("brown", "masc_tagged", "abc", "state_union") if not (args.corpora / n).is_dir()
    ]
    if missing:
        parser.error(
            f"{args.corpora} lacks {', '.join(missing)}: unpack packages/corpora/*.zip of nltk_data there"
        )
    found = [(kind, text) for kind, text in documents(args.corpora) if len(text) > SHORTEST]
    random.Random(1).shuffle(found)
    text = "\n\n".join(text for kind, text in found if kind != "spoken")[: args.characters]
    text = (text.rpartition("\n\n")[0] or text) + "\n"
    args.output.write_text(text, encoding="utf-8")
    print(f"{args.output}: {len(text)} characters")
    return 0


def documents(corpora: Path) -> Iterator[tuple[str, str]]:
    """Kind and text, of all four corpora."""
    for file in sorted((corpora / "brown").glob("c[a-r][0-9][0-9]")):
        blocks = re.split(r"\n\s*\n", file.read_text(encoding="ascii"))
        sentences = [_words(block, "/") for block in blocks if block.strip()]
        parts = (sentences[i : i + SENTENCES] for i in range(0, len(sentences), SENTENCES))
        yield "brown", _tidy("\n\n".join(" ".join(part) for part in parts))
    for file in sorted((corpora / "masc_tagged").glob("*/**/*.txt")):
        lines = file.read_text(encoding="utf-8", errors="ignore").split("\n")
        kind = file.relative_to(corpora).parts[1]
        yield kind, _tidy(" ".join(_words(line, "_") for line in lines if line.strip()))
    for name in ("science.txt", "rural.txt"):
        text = (corpora / "abc" / name).read_text(encoding="latin1")
        paragraphs = [p for p in text.replace("\r\n", "\n").split("\n") if p.strip()]
        for i in range(0, len(paragraphs), NEWS):
            yield "abc", _tidy("\n\n".join(paragraphs[i : i + NEWS]))
    for file in sorted((corpora / "state_union").glob("*.txt")):
        yield "state_union", _tidy(file.read_text(encoding="latin1"))


def _words(tagged: str, tag: str) -> str:
    """The text of words that each end with ``tag`` and a part of speech."""
    text = " ".join(word.rsplit(tag, 1)[0] for word in tagged.split())
    for pattern, becomes in TO_TEXT:
        text = re.sub(pattern, becomes, text)
    return text


def _tidy(text: str) -> str:
    return re.sub(r"[ \t]+\n", "\n", text).strip()


if __name__ == "__main__":
    raise SystemExit(main())
