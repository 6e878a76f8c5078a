"""Streaming of a run's text."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable

from shrinkc.abi import Line
from shrinkc.core.progress import Update
from shrinkc.importer import Tokenizer

OnText = Callable[[str], None]
"""Called with the prompt (may be empty) in one piece, then with every piece of the answer, and with a newline
at the end; not called for a run without tokens."""


class Story:
    """Parser of a run's output lines (see program.c); passes the text of tokens to ``on_text``.

    ``on_first`` is called before the first text.  Without ``on_text`` tokens are only counted for ``update``.
    Characters split over tokens are passed on when they are complete.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: tuple[int, ...],
        most: int,
        on_text: OnText | None,
        *,
        update: Update,
        on_first: Callable[[], None],
    ) -> None:
        self._table = tokenizer.decode_table()
        self._strip = tokenizer.strip_leading_space
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._prompt, self._most = prompt, most
        self._on_text, self._update, self._on_first = on_text, update, on_first
        self._tokens = 0
        self.started = time.monotonic()
        self.seconds: list[float] = []  # from the start to each token

    def on_line(self, line: str) -> None:
        """Process a line of the program's output."""
        if not line.startswith(f"{Line.TOKEN} "):
            return
        self._tokens += 1
        self.seconds.append(time.monotonic() - self.started)
        if self._on_text is None:
            self._update(self._tokens, self._most)
            return
        if self._tokens == 1:
            self._on_first()
            self._on_text("".join(self._decoded(self._table[token]) for token in self._prompt))
        fields = line.split()
        if len(fields) > 3:
            self._on_text(self._decoded(bytes.fromhex(fields[3])))

    def end(self) -> None:
        """Flush an incomplete character and end the line."""
        if self._tokens and self._on_text is not None:
            self._on_text(self._decoder.decode(b"", final=True) + "\n")

    def _decoded(self, piece: bytes) -> str:
        if piece and self._strip:  # the decoder drops one leading space of the whole text
            piece = piece.removeprefix(b" ")
            self._strip = False
        return self._decoder.decode(piece)
