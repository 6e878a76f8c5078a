"""Scorer of a float model in torch, in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shrinkc.checkpoints import Loaded, cached, versions
from shrinkc.core.errors import BadWeights, UsageError
from shrinkc.evaluation.kv_cache import check_bits, use_cache_of
from shrinkc.evaluation.scorer import Choices, Predicted, Scorer, has_ended
from shrinkc.importer import Message

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 8
_LOGIT_BYTES = 64 << 20  # of float32 logits at a time, which limits memory


class TorchScorer(Scorer):
    """Scorer of ``loaded``.  ``batch``: sequences computed together, which changes rounding only.

    ``kv_bits``: bits of keys and values (this changes the given model); None: not rounded.
    Sequences of a batch have similar lengths.  No token attends to the padding.
    """

    def __init__(self, loaded: Loaded, *, batch: int = BATCH, kv_bits: int | None = None) -> None:
        if batch < 1:
            raise UsageError(f"a batch of {batch} is not possible.", "allowed: 1 and more.")
        check_bits(kv_bits)
        if kv_bits is not None:
            use_cache_of(loaded.model, kv_bits)
        self._kv_bits = kv_bits
        self._model: Any = loaded.model
        self._tokenizer: Any = loaded.tokenizer
        self._kind = loaded.kind
        self.batch = batch
        self.name = loaded.path.name
        self.vocab = int(self._model.config.vocab_size)
        self.max_length = int(self._model.config.max_position_embeddings)
        self.bos_id = self._tokenizer.bos_token_id
        self.end_ids = tuple(sorted(end_ids(self._model)))

    def encode(self, text: str, *, special: bool) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=special))

    def chat_text(self, message: str, before: Sequence[Message]) -> str:
        if not self._tokenizer.chat_template:
            raise UsageError(f"{self.name} has no chat template.", "leave out --chat.")
        text: str = self._tokenizer.apply_chat_template(
            [*before, {"role": "user", "content": message}],
            tokenize=False,
            add_generation_prompt=True,
        )
        return text

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def next_logits(self, sequence: Sequence[int], rows: int) -> Iterator[NDArray]:
        import torch

        head = self._model.get_output_embeddings()
        with torch.no_grad():
            ids = torch.tensor([list(sequence[:-1])], device=self._model.device)
            hidden = self._model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0]
        for at in range(0, len(hidden), rows):
            with torch.no_grad():  # not around the yield: it would affect the caller's code
                logits = head(hidden[at : at + rows]).float().cpu().numpy()
            yield logits

    def _predict(self, questions: Sequence[Choices]) -> list[list[Predicted]]:
        """See Scorer.  A context shared by several endings is computed once."""
        if all(len(q.endings) == 1 for q in questions):
            return [[found] for found in _predicted(self._model, questions)]
        return [_endings_predicted(self._model, q) for q in questions]

    def _generate(
        self, prompts: Sequence[Sequence[int]], max_new: int, until: Sequence[str]
    ) -> list[list[int]]:
        """See Scorer.  Prompts are padded on the left; finished rows are removed from the batch."""

        def ended(ids: list[int]) -> bool:
            return bool(until) and has_ended(self.decode(ids), until)

        return _generate(self._model, prompts, max_new, ended)

    def describe(self) -> dict[str, object]:
        import torch

        return {
            "name": self.name,
            "kind": self._kind,
            "dtype": str(self._model.dtype).removeprefix("torch."),
            **({} if self._kv_bits is None else {"kv_bits": self._kv_bits}),
            "device": self._model.device.type,
            "threads": torch.get_num_threads(),
            "batch": self.batch,
            "layers": int(self._model.config.num_hidden_layers),
            "parameters": int(self._model.num_parameters()),
            "max_length": self.max_length,
            "versions": versions(),
        }


def _predicted(model: Any, questions: Sequence[Choices]) -> list[Predicted]:
    """Predict one ending per question.  Padding on the right needs no mask, because attention is causal."""
    import torch

    sequences = [[*q.context, *q.endings[0]] for q in questions]
    ids = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
    ids = ids.to(model.device)
    with torch.no_grad():
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        return [
            _cross_entropy(
                model,
                hidden[row, len(q.context) - 1 : len(q) - 1],
                ids[row, len(q.context) : len(q)],
            )
            for row, q in enumerate(questions)
        ]


def _endings_predicted(model: Any, question: Choices) -> list[Predicted]:
    """Predict all endings of one question.  The context's keys and values are computed once and copied per ending."""
    import torch
    from transformers import DynamicCache

    decoder, cache = model.get_decoder(), DynamicCache(config=model.config)
    kept = cached(decoder, cache)
    count, width = len(question.endings), max(map(len, question.endings))
    ids = torch.zeros(count, width, dtype=torch.long)
    for row, ending in enumerate(question.endings):
        ids[row, : len(ending)] = torch.tensor(ending)
    ids = ids.to(model.device)
    with torch.no_grad():
        context = torch.tensor([question.context], device=model.device)
        hidden = decoder(input_ids=context, use_cache=True, **kept).last_hidden_state[:, -1:]
        hidden = hidden.expand(count, -1, -1)
        if width > 1:
            cache.batch_repeat_interleave(count)
            more = decoder(input_ids=ids[:, :-1], use_cache=True, **kept).last_hidden_state
            hidden = torch.cat([hidden, more], 1)
        return [
            _cross_entropy(model, hidden[row, : len(ending)], ids[row, : len(ending)])
            for row, ending in enumerate(question.endings)
        ]


def _cross_entropy(model: Any, hidden: Tensor, targets: Tensor) -> Predicted:
    """Return the prediction of ``targets`` int64 [n] from ``hidden`` [n, width], a slice at a time."""
    import torch

    head = model.get_output_embeddings()
    rows = max(1, _LOGIT_BYTES // (4 * head.weight.shape[0]))
    losses, greedy = [], []
    for at in range(0, len(targets), rows):
        logits = head(hidden[at : at + rows]).float()
        part = targets[at : at + rows]
        wanted = logits.gather(1, part[:, None])[:, 0]
        losses.append((torch.logsumexp(logits, 1).double() - wanted.double()).cpu().numpy())
        greedy.append((logits.argmax(1) == part).cpu().numpy())
    result = Predicted(np.concatenate(losses), np.concatenate(greedy))
    if not np.isfinite(result.losses).all():
        raise BadWeights(
            "the model's loss is not a finite number.",
            "its weights overflow in this dtype; try --dtype float32.",
        )
    return result


def _generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    max_new: int,
    ended: Callable[[list[int]], bool],
) -> list[list[int]]:
    """Generate one batch with a KV cache.  ``ended(new ids)`` returns whether a row is finished."""
    import torch
    from transformers import DynamicCache

    if min(map(len, prompts)) < 1:
        raise UsageError("the prompt has no tokens.", "give a text.")
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    ids, mask = ids.to(model.device), mask.to(model.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    ends = end_ids(model)
    cache = DynamicCache(config=model.config)
    decoder = model.get_decoder()
    kept = cached(decoder, cache)
    new: list[list[int]] = [[] for _ in prompts]
    alive = list(range(len(prompts)))
    with torch.no_grad():
        for step in range(max_new):
            hidden = decoder(
                input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, **kept
            ).last_hidden_state[:, -1]
            best = model.get_output_embeddings()(hidden).argmax(1).tolist()
            keep = []
            for row, (who, token) in enumerate(zip(alive, best, strict=True)):
                if token in ends:
                    continue
                new[who].append(token)
                if not ended(new[who]):
                    keep.append(row)
            if not keep or step + 1 == max_new:
                break
            rows = torch.tensor(keep, device=model.device)
            if len(keep) < len(alive):
                cache.batch_select_indices(rows)
                alive = [alive[row] for row in keep]
            ids = torch.tensor([[best[row]] for row in keep], device=model.device)
            mask = torch.cat([mask[rows], torch.ones_like(ids)], 1)
            positions = positions[rows, -1:] + 1
    return new


def end_ids(model: Any) -> set[int]:
    """Return the end tokens from the model's generation settings, or else its config."""
    return set(_flat(model.generation_config.eos_token_id)) or set(_flat(model.config.eos_token_id))


def _flat(ids: int | Sequence[int] | None) -> Iterator[int]:
    if ids is not None:
        yield from [ids] if isinstance(ids, int) else ids
