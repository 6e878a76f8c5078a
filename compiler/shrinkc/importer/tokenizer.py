"""Tokenizer of a model: the tokenizers library encodes on the host, a byte table decodes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from shrinkc.core import artifact
from shrinkc.core.errors import BadTokenizer, UsageError
from shrinkc.importer.chat_template import ChatTemplate, Message, Tool
from shrinkc.importer.decode_table import build_decoder, join_pieces
from shrinkc.importer.encode_table import EncodeTable, build_encode_table
from shrinkc.importer.jsonfile import parse_json_object, read_json_object, read_text

_FILE = "tokenizer.json"
_SETTINGS = "tokenizer_config.json"
MODELS = ("BPE", "Unigram")


def has_tokenizer(directory: Path) -> bool:
    """Return whether ``directory`` has a file that :meth:`Tokenizer.from_dir` can read."""
    return (directory / _FILE).is_file()


class Tokenizer:
    """Tokenizer that encodes like Hugging Face and decodes like the device.

    ``bos_id``: the id that a prompt starts with, or None if nothing is prepended.
    ``vocab_size``: the model's, which may exceed the number of pieces.
    ``strip_leading_space``: decoding drops one leading space of a whole text.
    ``chat``: the model's chat template, if it has one.
    """

    def __init__(
        self,
        source: str,
        origin: Path,
        vocab_size: int,
        bos_id: int | None,
        chat: ChatTemplate | None = None,
    ) -> None:
        """``source`` is the text of a ``tokenizer.json``, ``origin`` its name in messages.

        Raises BadTokenizer if the tokenizer is unusable or has ids of ``vocab_size`` or more.
        """
        spec = parse_json_object(source, origin, BadTokenizer)
        _check_model(spec, origin)
        _check_templates(spec.get("post_processor"), origin)
        try:
            self._engine: Any = tokenizers.Tokenizer.from_str(source)
            self._engine.encode("")  # fails if a post-processor names missing tokens
        except BaseException as exc:  # Exception, or a Rust panic, which is not an Exception
            if not isinstance(exc, Exception) and type(exc).__name__ != "PanicException":
                raise
            raise BadTokenizer(
                f"{origin} is not accepted by tokenizers {tokenizers.__version__}: {exc}.",
                hint="save it again with the current transformers.",
            ) from exc
        # a file may have settings for batches; a prompt is never truncated or padded
        self._engine.no_truncation()
        self._engine.no_padding()
        self._source = source
        self.vocab_size = vocab_size
        self.bos_id = bos_id
        self.chat = chat
        self._check_size(origin)
        try:
            decoder = build_decoder(spec.get("decoder"))
        except BadTokenizer as exc:
            raise BadTokenizer(f"{origin}: {exc.message}", exc.hint) from exc
        self.strip_leading_space: bool = decoder.strip_leading_space
        self._table = [b""] * vocab_size
        added = {int(t["id"]): t for t in spec.get("added_tokens") or []}
        for index in range(vocab_size):
            piece = self._engine.id_to_token(index)
            if piece is None or index == bos_id:
                continue
            if index in added:
                # added tokens are literal text, outside the byte-level alphabet
                special = added[index].get("special", False)
                self._table[index] = b"" if special else str(piece).encode("utf-8")
            else:
                self._table[index] = decoder.piece_bytes(piece)

    @classmethod
    def from_dir(cls, path: Path, vocab_size: int, bos_id: int | None = None) -> Tokenizer:
        """Read ``tokenizer.json`` of a model directory, and its chat template.

        ``bos_id`` is the model's.  Prompts start without it if ``tokenizer_config.json`` says
        ``"add_bos_token": false``, or if that field is missing and the post-processor is a template that
        adds no token (for instance SmolLM2's).  Raises BadTokenizer.
        """
        file = Path(path) / _FILE
        if not file.is_file():
            hint = "copy tokenizer.json from the place the model was published."
            if (Path(path) / "tokenizer.model").is_file():
                hint = (
                    "convert tokenizer.model with transformers: "
                    "AutoTokenizer.from_pretrained(dir, use_fast=True).save_pretrained(dir)."
                )
            raise BadTokenizer(f"{file} does not exist.", hint=hint)
        settings = Path(path) / _SETTINGS
        wanted = None
        if settings.is_file():
            wanted = read_json_object(settings, BadTokenizer).get("add_bos_token")
        if wanted is None:
            spec = read_json_object(file, BadTokenizer)
            wanted = not _has_empty_template(spec.get("post_processor"))
        chat = ChatTemplate.from_dir(Path(path))
        return cls.from_file(file, vocab_size, bos_id if wanted else None, chat)

    @classmethod
    def from_file(
        cls,
        path: Path,
        vocab_size: int,
        bos_id: int | None = None,
        chat: ChatTemplate | None = None,
    ) -> Tokenizer:
        """Read a ``tokenizer.json``.  Raises BadTokenizer."""
        return cls(read_text(Path(path), BadTokenizer), Path(path), vocab_size, bos_id, chat)

    @classmethod
    def of_program(cls, directory: Path, manifest: artifact.Manifest) -> Tokenizer:
        """Return the tokenizer of a compiled directory.  Raises BadArtifact if its files were changed."""
        chat = artifact.CHAT_TEMPLATE in manifest.files
        names = (artifact.TOKENIZER, artifact.CHAT_TEMPLATE) if chat else (artifact.TOKENIZER,)
        artifact.check_files(directory, manifest, names)
        return cls.from_file(
            directory / artifact.TOKENIZER,
            manifest.vocab_size,
            manifest.bos_id,
            ChatTemplate.from_json(directory / artifact.CHAT_TEMPLATE) if chat else None,
        )

    def encode(self, text: str, *, add_bos: bool = True, parse_special: bool = True) -> list[int]:
        """Return the ids of the prompt ``text``, each less than ``vocab_size``.

        ``add_bos``: start with the ids that the file's post-processor prepends, or else ``bos_id``
        (unless the text already begins with it).  Ids that a post-processor appends are dropped, since a prompt
        continues.  ``parse_special``: encode the spelling of a special token in ``text``, such as ``</s>``, as that
        token; otherwise as plain text.
        """
        self._engine.encode_special_tokens = not parse_special
        encoding = self._engine.encode(text, add_special_tokens=add_bos)
        ids: list[int] = list(encoding.ids)
        if not add_bos:
            return ids
        mask = encoding.special_tokens_mask
        if all(mask):  # empty text: only the start remains
            ids = ids[:1] if self.bos_id is None or ids[:1] == [self.bos_id] else []
        else:
            ids = ids[: len(mask) - mask[::-1].index(0)]
        if self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids

    def encode_chat(
        self,
        message: str | Message,
        before: Sequence[Message] = (),
        tools: Sequence[Tool] | None = None,
    ) -> list[int]:
        """Return the ids of a message in the chat template, up to where the answer begins.

        For the arguments see :meth:`ChatTemplate.render`.  Raises UsageError if there is no template, BadTokenizer
        if it cannot be rendered.
        """
        if self.chat is None:
            raise UsageError("the model has no chat template.", "leave out --chat.")
        # the template writes all special tokens, including BOS
        return self.encode(self.chat.render(message, before, tools), add_bos=False)

    def encode_table(self) -> EncodeTable:
        """Return tables with which a program without the library computes the ids of :meth:`encode`."""
        return build_encode_table(
            json.loads(self._source),
            self._engine.token_to_id,
            empty=self.encode(""),
            first=self.bos_id,
        )

    def decode_table(self) -> list[bytes]:
        """Return ``vocab_size`` entries: the bytes that token i adds to the text.

        Special tokens and ids without a piece add nothing.  A character may be split over
        several tokens, so one entry need not be valid UTF-8.
        """
        return list(self._table)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ``ids`` as the device prints it: joined entries of the table.

        Bytes that are not UTF-8 become U+FFFD.  Raises IndexError for an id of ``vocab_size`` or more.
        """
        return join_pieces([self._table[index] for index in ids], self.strip_leading_space)

    def to_json(self) -> str:
        """Return the text of the ``tokenizer.json`` this was read from, unchanged."""
        return self._source

    def _check_size(self, origin: Path) -> None:
        vocab: dict[str, int] = self._engine.get_vocab(with_added_tokens=True)
        beyond = sorted((index, piece) for piece, index in vocab.items())
        beyond = [item for item in beyond if item[0] >= self.vocab_size]
        if beyond:
            index, piece = beyond[0]
            raise BadTokenizer(
                f"{origin} has {len(beyond)} ids beyond the model's vocab_size "
                f"{self.vocab_size}, the first is {index} ({piece!r}).",
                hint="tokenizer.json and config.json have to come from the same model.",
            )


def _has_empty_template(processor: Any) -> bool:
    """Return whether a post-processor is a template without special tokens."""
    if not isinstance(processor, dict) or processor.get("type") != "TemplateProcessing":
        return False
    parts = processor.get("single")
    return isinstance(parts, list) and all(
        isinstance(part, dict) and "Sequence" in part for part in parts or [{}]
    )


def _check_model(spec: dict[str, Any], origin: Path) -> None:
    model = spec.get("model")
    if not isinstance(model, dict):
        raise BadTokenizer(f"{origin} has no tokenizer model.")
    # tokenizers before 0.9 did not write the type of a BPE
    kind = model.get("type") or ("BPE" if "merges" in model else None)
    if kind not in MODELS:
        raise BadTokenizer(
            f"{origin} holds a {kind} tokenizer; supported are {' and '.join(MODELS)}."
        )
    if model.get("dropout"):
        raise BadTokenizer(
            f"{origin}: BPE dropout {model['dropout']} makes encoding random.",
            hint="set dropout to null.",
        )


def _check_templates(processor: Any, origin: Path) -> None:
    """Raise BadTokenizer if a template uses undefined tokens, which would make the library panic."""
    if not isinstance(processor, dict):
        return
    for part in _list(processor.get("processors")):
        _check_templates(part, origin)
    known = processor.get("special_tokens")
    used = {
        str(piece["SpecialToken"].get("id"))
        for pieces in (processor.get("single"), processor.get("pair"))
        for piece in _list(pieces)
        if isinstance(piece, dict) and isinstance(piece.get("SpecialToken"), dict)
    }
    if missing := sorted(used - set(known if isinstance(known, dict) else ())):
        raise BadTokenizer(
            f"{origin}: the post-processor's template names {', '.join(missing)}, which its "
            "special_tokens do not define.",
            hint="save it again with the current transformers.",
        )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
