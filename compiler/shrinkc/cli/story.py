"""Tells the text of a run on stdout while it comes."""

from __future__ import annotations

import codecs
from collections.abc import Callable

from shrinkc.cli.console import write_text
from shrinkc.core.progress import Update
from shrinkc.importer import Tokenizer


class Story:
    """Takes the lines of a run (see sc_main.c) and prints the pieces of its tokens.

    ``on_first`` is called before anything is printed.  A silent story only counts tokens for
    ``update``.  Characters that are split over tokens are printed when they are complete.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: tuple[int, ...],
        most: int,
        *,
        silent: bool,
        dim_prompt: bool,
        update: Update,
        on_first: Callable[[], None],
    ) -> None:
        self._table = tokenizer.decode_table()
        self._strip = tokenizer.strip_leading_space
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._prompt, self._most = prompt, most
        self._silent, self._dim = silent, dim_prompt
        self._update, self._on_first = update, on_first
        self._tokens = 0

    def on_line(self, line: str) -> None:
        """One line of the program's output."""
        if not line.startswith("@T "):
            return
        fields = line.split()
        if self._silent:
            self._tokens += 1
            self._update(self._tokens, self._most)
            return
        if self._tokens == 0:
            self._on_first()
            self._tell_prompt()
        self._tokens += 1
        self._tell(bytes.fromhex(fields[3]) if len(fields) > 3 else b"")

    def end(self) -> None:
        """Ends the line, and a character of which only the beginning came."""
        if self._tokens and not self._silent:
            write_text(self._decoder.decode(b"", final=True) + "\n")

    def _tell_prompt(self) -> None:
        if self._dim:
            write_text("\x1b[2m")
        for token in self._prompt:
            self._tell(self._table[token])
        if self._dim:
            write_text("\x1b[22m")

    def _tell(self, piece: bytes) -> None:
        if not piece:
            return
        if self._strip:  # the decoder drops one space that leads the whole text
            piece = piece.removeprefix(b" ")
            self._strip = False
        write_text(self._decoder.decode(piece))
