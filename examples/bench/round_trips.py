"""Strings through a tokenizer and through the one that the stage ``vocabulary`` cut from it.

    python examples/bench/round_trips.py MODEL CUT --text FILE [--count N] [--seed N]

MODEL and CUT are directories with a ``tokenizer.json``; CUT has ``kept_tokens.json`` too.  Half of the
strings are pieces of FILE, the others random: characters of all of Unicode, of Latin alone, white
space, digits, punctuation, special tokens.  Each has to come back from CUT's ids as it comes back from
MODEL's, by the library and by the table of bytes that a compiled program prints with; and where CUT
has all of MODEL's ids, they have to be the same tokens.  Ends with 1 when one does not.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

from shrinkc.compression.stages.vocabulary import TOKENS
from shrinkc.importer import Tokenizer, load_config

RANGES = ((0x20, 0x7F), (0x20, 0x250), (0x1, 0x3000), (0x1, 0x20000), (0x1, 0x110000))
PIECES = [
    *(" ", "  ", "\n", "\t", "\r\n", "0", "12", "345", "'s", "'ll", ".", ",", "...", "--", "(", "{}"),
    *("<0x41>", "é", "e\u0301", "ß", "中文", "😀", "👩\u200d👧", "\u200b", "\ufeff", "▁", "Ġ", "the", " a"),
]  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description="Strings through a tokenizer and a cut one.")
    parser.add_argument("model", type=Path)
    parser.add_argument("cut", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    old, new = (_tokenizer(directory) for directory in (args.model, args.cut))
    kept = json.loads((args.cut / TOKENS).read_text(encoding="utf-8"))
    special = [t["content"] for t in json.loads(old.to_json())["added_tokens"]]
    text = args.text.read_text(encoding="utf-8")
    rng = random.Random(args.seed)
    exact = same = lost = 0
    for number in range(args.count):
        string = _real(rng, text) if number % 2 else _random(rng, special)
        before, after = (t.encode(string, add_bos=False) for t in (old, new))
        back = [t.decode(ids) for t, ids in ((old, before), (new, after))]
        equal = set(before) <= set(kept)
        if back[0] != back[1] or (equal and [kept[i] for i in after] != before):
            lost += 1
            print(f"{string!r}: {back[0]!r} from {before}, {back[1]!r} from {after}")
        exact += back[1] == string
        same += equal
    print(
        f"{args.count} strings: {args.count - lost} come back as before, {lost} do not; {exact} are "
        f"the string itself, {same} keep all their tokens"
    )
    return int(lost > 0)


def _tokenizer(directory: Path) -> Tokenizer:
    return Tokenizer.from_dir(directory, load_config(directory).vocab_size)


def _real(rng: random.Random, text: str) -> str:
    at = rng.randrange(len(text))
    return text[at : at + rng.randrange(1, 200)]


def _random(rng: random.Random, special: list[str]) -> str:
    kind, length = rng.randrange(4), rng.randrange(1, 40)
    if kind == 0:
        return "".join(rng.choice(PIECES + special) for _ in range(length))
    low, high = rng.choice(RANGES)
    points = (rng.randrange(low, high) for _ in range(length))
    return "".join(chr(p) for p in points if not 0xD800 <= p < 0xE000)


if __name__ == "__main__":
    sys.exit(main())
