"""Table of the bytes that each token adds to the text.

The ``decoder`` of a ``tokenizer.json`` is a chain of steps over a list of token strings.
For tokenizers of LLaMA models every step works on one token at a time, except that at
most one leading space of the whole text is dropped.  So a table of bytes per token and one
flag are equivalent to the chain, and simple enough for a microcontroller.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shrinkc.core.errors import BadTokenizer

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")
SUPPORTED = "ByteLevel, Replace, ByteFallback, Fuse, Strip (leading space), Metaspace"


@dataclass(frozen=True)
class Decoder:
    """Decoder of single tokens.  ``piece_bytes`` maps the string of a token to its bytes.

    ``strip_leading_space``: drop one leading space of the whole text, if there is one.
    """

    piece_bytes: Callable[[str], bytes]
    strip_leading_space: bool


def build_decoder(spec: Mapping[str, Any] | None) -> Decoder:
    """Translate the ``decoder`` section of a ``tokenizer.json``.

    Raises BadTokenizer if a step is unknown or cannot be done token by token.
    """
    replacing: list[tuple[str, str]] = []
    to_bytes: Callable[[str], bytes] = _utf8
    strip = fused = False
    for step in _steps(spec):
        kind = step.get("type")
        if kind == "ByteLevel":
            to_bytes = _byte_level
        elif kind == "ByteFallback":
            to_bytes = _byte_fallback
        elif kind == "Replace":
            replacing.append(_replace(step))
        elif kind == "Metaspace":
            replacing.append((str(step.get("replacement", "▁")), " "))
            strip = strip or _metaspace_prepends(step)
        elif kind == "Fuse":
            fused = True
        elif kind == "Strip":
            strip = _strip(step, fused) or strip
        else:
            raise BadTokenizer(
                f"the decoder step {kind!r} is not supported; supported are {SUPPORTED}."
            )

    def piece_bytes(piece: str) -> bytes:
        for old, new in replacing:
            piece = piece.replace(old, new)
        return to_bytes(piece)

    return Decoder(piece_bytes, strip)


def flatten(spec: Mapping[str, Any] | None, inner: str) -> list[Mapping[str, Any]]:
    """Return the parts of a section of ``tokenizer.json``.  ``inner``: the field with a Sequence's parts."""
    if spec is None:
        return []
    if spec.get("type") != "Sequence":
        return [spec]
    return [part for each in spec.get(inner, []) for part in flatten(each, inner)]


def _steps(spec: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if spec is None:
        raise BadTokenizer(
            "tokenizer.json has no decoder, so tokens would be joined by spaces.",
            hint="save the tokenizer again with transformers (AutoTokenizer … save_pretrained).",
        )
    if not isinstance(spec, Mapping):
        raise BadTokenizer(f"the decoder of tokenizer.json is not an object but {spec!r}.")
    return flatten(spec, "decoders")


def _replace(step: Mapping[str, Any]) -> tuple[str, str]:
    pattern, content = step.get("pattern"), step.get("content")
    if not isinstance(pattern, dict) or not isinstance(pattern.get("String"), str):
        raise BadTokenizer(f"the decoder replaces {pattern!r}; only plain strings are supported.")
    return pattern["String"], str(content)


def _metaspace_prepends(step: Mapping[str, Any]) -> bool:
    # tokenizers before 0.15 wrote add_prefix_space instead of prepend_scheme
    scheme = step.get("prepend_scheme")
    if scheme is None:
        return bool(step.get("add_prefix_space", True))
    return bool(scheme != "never")


def _strip(step: Mapping[str, Any], fused: bool) -> bool:
    content, start, stop = step.get("content"), step.get("start", 0), step.get("stop", 0)
    if start == 0 and stop == 0:
        return False
    if content != " " or start != 1 or stop != 0 or not fused:
        raise BadTokenizer(
            f"the decoder strips {start} leading and {stop} trailing {content!r} "
            f"{'of the text' if fused else 'of every token'}; only one leading space of the "
            "text is supported."
        )
    return True


def _utf8(piece: str) -> bytes:
    return piece.encode("utf-8", errors="surrogatepass")


def _byte_fallback(piece: str) -> bytes:
    match = _BYTE_PIECE.match(piece)
    return bytes([int(match[1], 16)]) if match else _utf8(piece)


def _byte_level(piece: str) -> bytes:
    try:
        return bytes(UNICODE_TO_BYTE[char] for char in piece)
    except KeyError:
        # like the tokenizers library: a token with characters outside the alphabet is plain text
        return _utf8(piece)


def _unicode_to_byte() -> dict[str, int]:
    """Return GPT-2's alphabet: printable Latin-1 bytes map to themselves, the others to U+0100 and up."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    table.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return table


UNICODE_TO_BYTE = _unicode_to_byte()


def join_pieces(pieces: Sequence[bytes], strip_leading_space: bool) -> str:
    """Return the text of ``pieces``; bytes that are not UTF-8 become U+FFFD."""
    text = b"".join(pieces)
    if strip_leading_space and text.startswith(b" "):
        text = text[1:]
    return text.decode("utf-8", errors="replace")
