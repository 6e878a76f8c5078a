"""Generation of text (:mod:`shrinkc.compression.self_generated`): samples many documents at the same time.

Shards alternate between conversations and free text.  In a conversation the model continues its chat template where
the user's message would be, then the template's tokens follow, then it answers (Xu et al. 2024, "Magpie").  Free text
begins with nothing but the start token (Liu et al. 2023, "LLM-QAT").  Each shard has its own random seed, so that
writing can stop between two shards.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shrinkc.checkpoints import cached, load
from shrinkc.compression.attention import use_products
from shrinkc.compression.self_generated import Document, SelfGenerated, SelfGeneratedSettings
from shrinkc.compression.steps import remove_partials
from shrinkc.core.errors import NothingWritten
from shrinkc.core.progress import Reporter
from shrinkc.importer.chat_template import ChatTemplate

if TYPE_CHECKING:
    from torch import Tensor

MESSAGE_TOKENS = 96  # most tokens of a user's message
EMPTY_SHARDS = 4  # consecutive empty shards after which NothingWritten is raised
LEAST_WRITTEN = 8  # sampled tokens; shorter documents are dropped
_MARK = "THE-MESSAGE"
# time of generating a token, in tokens of a forward pass over windows in float32
TOKEN_COST = 1.3


@dataclass(frozen=True)
class Beginnings:
    """Token ids for the start of documents.  ``chat``: before and after a user's message, None without a template.
    ``free``: the start of free text.  ``ends``: ids that end a text."""

    chat: tuple[list[int], list[int]] | None
    free: list[int]
    ends: list[int]

    @classmethod
    def of(cls, tokenizer: Any, model: Any, directory: Path, *, chat: bool) -> Beginnings:
        """Return the beginnings for a model.  Raises BadTokenizer if its chat template cannot be used."""
        ends = {tokenizer.eos_token_id}
        for config in (model.config, model.generation_config):
            given = getattr(config, "eos_token_id", None)
            ends |= set(given) if isinstance(given, list) else {given}
        ends -= {None}
        first = tokenizer.bos_token_id
        if first is None:
            first = min(ends, default=0)
        template = ChatTemplate.from_dir(directory) if chat else None
        parts = None
        if template is not None:
            before, mark, after = template.render(_MARK).partition(_MARK)

            def ids(text: str) -> list[int]:
                return list(tokenizer(text, add_special_tokens=False)["input_ids"])

            if mark and ids(before) and ids(after):
                parts = ids(before), ids(after)
        return cls(parts, [first], sorted(ends))


def write_text(
    store: SelfGenerated,
    source: Path,
    tokens: int,
    *,
    seed: int,
    device: str,
    made_from: dict[str, Any],
    reporter: Reporter,
) -> None:
    """Generate text with the model in ``source`` until ``store`` has ``tokens`` tokens.

    ``made_from`` is stored in the record.  Raises NothingWritten if the model ends its texts at once, and the errors
    of :func:`shrinkc.checkpoints.load`.
    """
    settings = store.settings
    remove_partials(store.folder)
    have = store.written()
    with reporter.stage("self-generated text") as update:
        update(min(have, tokens), tokens)
        loaded = load(source, dtype=settings.dtype, device=device)
        use_products(loaded.model)
        if not store.made_from():
            found = Beginnings.of(loaded.tokenizer, loaded.model, source, chat=settings.chat)
            # stored in the record, because a template may contain today's date
            store.start(made_from, [found.chat, found.free, found.ends])
        begin = Beginnings(*store.begin())
        empty = 0
        while have < tokens:
            before = have

            def report(done: int, rate: float, before: int = before) -> None:
                update(min(before + done, tokens), tokens, f"{rate:.0f} tokens/s")

            number = store.shards()
            documents = write_shard(loaded, settings, begin, seed, number, report)
            store.add(documents)
            have = store.written()
            update(min(have, tokens), tokens)
            empty = empty + 1 if have == before else 0
            if empty == EMPTY_SHARDS:
                raise NothingWritten(
                    f"{source.name} wrote nothing new in {EMPTY_SHARDS * settings.batch} attempts: it ends a "
                    f"text in less than {LEAST_WRITTEN} tokens, or repeats one.",
                    "give your own text instead of 'self', or a higher self_generated.temperature.",
                )


def write_shard(
    loaded: Any,
    settings: SelfGeneratedSettings,
    begin: Beginnings,
    seed: int,
    number: int,
    report: Any = lambda done, rate: None,
) -> list[Document]:
    """Generate shard ``number``: at most ``settings.batch`` documents, without empty ones.

    ``report(tokens, tokens per second)`` is called after each step.
    """
    import torch

    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    conversation = begin.chat is not None and number % 2 == 0
    before, after = begin.chat if begin.chat is not None and conversation else (begin.free, [])
    rows = [_Row(before, after, begin.ends, settings.length) for _ in range(settings.batch)]
    limit = min(settings.length, loaded.model.config.max_position_embeddings)
    cache = _cache(loaded.model, limit)
    tokens = torch.tensor([before[:limit]] * len(rows))
    live, done, started = list(rows), 0, time.monotonic()
    with torch.no_grad():
        for _ in range(limit - len(before)):
            chosen = _choose(loaded.model, tokens, cache, settings.temperature, generator)
            fed = [row.take(int(token)) for row, token in zip(live, chosen, strict=True)]
            done += len(live)
            report(done, done / max(time.monotonic() - started, 1e-6))
            still = [i for i, row in enumerate(live) if not row.over]
            if not still:
                break
            if len(still) < len(live):  # finished rows cost as much as others
                cache.batch_select_indices(torch.tensor(still, device=loaded.model.device))
                live = [live[i] for i in still]
            tokens = torch.tensor([[fed[i]] for i in still])
    first = 0 if conversation else len(before)
    return [
        Document(_decoded(loaded.tokenizer, row.ids, first), len(row.ids))
        for row in rows
        if row.written >= LEAST_WRITTEN
    ]


def _decoded(tokenizer: Any, ids: list[int], first: int) -> str:
    """Decode ``ids`` with special tokens.  The ``first`` ids are decoded separately: some tokenizers put a space after
    them, which would become a token when the text is read."""
    parts = (ids[:first], ids[first:])
    return "".join(tokenizer.decode(part, skip_special_tokens=False) for part in parts if part)


class _Row:
    """A document that is being generated: chooses between the sampled token and the template's next token."""

    def __init__(self, before: list[int], after: list[int], ends: list[int], limit: int) -> None:
        self.ids, self.after, self.ends, self.limit = list(before), list(after), ends, limit
        self.begun = len(before)
        self.forced: list[int] = []
        self.written = 0
        self.over = len(before) >= limit

    def take(self, token: int) -> int:
        """Return the next token, given the sampled ``token``."""
        if self.forced:
            token = self.forced.pop(0)
        elif self.after and self._message_ends(token):
            token, *self.forced = self.after
            self.over = self.written == 0  # no message: nothing to answer
            self.after, self.written = [], 0
        elif token in self.ends:
            self.over = True
        else:
            self.written += 1
        self.ids.append(token)
        self.over = self.over or len(self.ids) >= self.limit
        return token

    def _message_ends(self, token: int) -> bool:
        long = len(self.ids) - self.begun >= MESSAGE_TOKENS
        return long or token == self.after[0] or token in self.ends


def _choose(model: Any, tokens: Tensor, cache: Any, temperature: float, generator: Any) -> Tensor:
    """Feed ``tokens`` [rows, t] and sample a token per row from softmax(logits / temperature)."""
    import torch

    kept = cached(model.model, cache)
    hidden = model.model(input_ids=tokens.to(model.device), use_cache=True, **kept)
    logits = model.lm_head(hidden.last_hidden_state[:, -1]).float().cpu()
    # cumulative sums: torch.multinomial takes ten times as long
    sums = torch.softmax(logits / temperature, -1).cumsum(-1)
    drawn = torch.rand(len(tokens), 1, generator=generator) * sums[:, -1:]
    return torch.searchsorted(sums, drawn, right=True).clamp_(max=logits.shape[1] - 1)[:, 0]


def _cache(model: Any, room: int) -> Any:
    """Return a preallocated KV cache for ``room`` tokens; the default cache of transformers is copied per token."""
    from transformers.cache_utils import Cache, DynamicLayer

    class Layer(DynamicLayer):  # type: ignore[misc]
        def update(self, key: Any, value: Any, *args: Any, **options: Any) -> tuple[Any, Any]:
            if not self.is_initialized:
                self.lazy_initialization(key, value)
                shape = (*key.shape[:2], room, key.shape[3])
                self.room, self.used = (key.new_empty(shape), value.new_empty(shape)), 0
            end = self.used + key.shape[2]
            for place, new in zip(self.room, (key, value), strict=True):
                place[:, :, self.used : end] = new
            self.used = end
            self.keys, self.values = (place[:, :, :end] for place in self.room)
            return self.keys, self.values

        def batch_select_indices(self, indices: Any) -> None:
            self.room = tuple(place[indices] for place in self.room)
            self.keys, self.values = (place[:, :, : self.used] for place in self.room)

    return Cache(layers=[Layer() for _ in range(model.config.num_hidden_layers)])
