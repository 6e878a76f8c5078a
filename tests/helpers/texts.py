"""Texts of all kinds for tokenizers, and a tokenizer that was trained on some."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import tokenizers

ROOT = Path(__file__).resolve().parents[2]
TEXTS = 3000

WORDS = (
    "'s 'S 'ſ 'T 're 'RE 'Ve 'm 'll 'LL 'lL 'd ' a b the hello upon ing ! ?! ... # _ - 0 12 1234567"
)
ATOMS = [
    *WORDS.split(),
    *(" ", "  ", "   ", " the", " Once", "\n", "\r\n", "\r", "\n \n", "\t", "\v", "\f", "\x1c", "\x85"),
    *("\xa0", "\u1680", "\u2003", "\u2028", "\u3000", "\u200b", "▁", "Ġ", "Ċ", "<0x41>", "<s>", "</s>"),
    *("é", "e\u0301", "ß", "ñ", "İ", "ﬁ", "Ǆ", "K", "中文", "日本", "한국", "𠀀", "ـ", "ª", "\u30fc"),
    *("😀", "👩‍👩‍👧", "🇩🇪", "\u0301", "\u20dd", "١٢", "Ⅷ", "½", "²", "𝟘", "\u0e01\u0e33", "नि"),
    *("\x01", "\x1f", "\x7f", "\ufeff", "\ufffd", "\U0010ffff", "\ue000", "\u0378"),
    *("\U00011de0", "\u3250", "\U0001ecac", "\u1c89"),  # not the same in all versions of Unicode
]  # fmt: skip


def texts(seed: int, special: list[str], count: int = TEXTS) -> list[str]:
    """Random texts of all kinds, the same for the same ``seed``."""
    rng = random.Random(seed)
    atoms = ATOMS + 3 * special
    out = ["", " ", "  ", "\n", "'", *special, *(text + text for text in special)]
    while len(out) < count:
        n = rng.randrange(1, 14)
        match rng.randrange(4):
            case 0:
                out.append("".join(rng.choice(atoms) for _ in range(n)))
            case 1:
                out.append("".join(_character(rng) for _ in range(n)))
            case 2:
                out.append("".join(rng.choice("aehinot  '1") for _ in range(3 * n)))
            case 3:
                out.append("".join(chr(rng.randrange(1, 128)) for _ in range(3 * n)))
    return out


def _character(rng: random.Random) -> str:
    while True:
        point = rng.randrange(1, rng.choice([0x80, 0x250, 0x3000, 0x20000, 0x110000]))
        if not 0xD800 <= point < 0xE000:
            return chr(point)


def trained_bytelevel() -> dict[str, Any]:
    """A byte-level BPE with hundreds of merges, which the documentation has taught it."""
    engine: Any = tokenizers.Tokenizer(tokenizers.models.BPE())
    engine.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=800,
        show_progress=False,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    engine.train([str(p) for p in sorted((ROOT / "docs").glob("*.md"))], trainer)
    return dict(json.loads(engine.to_str()))
