"""The model type ``shrinkc`` for lm-evaluation-harness.

    lm_eval --model shrinkc --model_args path=out --tasks hellaswag

Needs the extra ``lm-eval``.  Compiled directories need no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from shrinkc.checkpoints import check_device, load, suited_threads, use_threads
from shrinkc.core import artifact
from shrinkc.core.errors import UsageError
from shrinkc.core.progress import Update
from shrinkc.evaluation.compiled_scorer import CompiledScorer, Engine
from shrinkc.evaluation.scorer import Choices, Item, Scorer
from shrinkc.evaluation.torch_scorer import BATCH, TorchScorer

CHUNK = 64  # questions between two reports to the harness, which may store results (--use_cache)
HARNESS_DEVICE = "cuda:0"

Request = tuple[tuple[str, str] | None, list[int], list[int]]  # texts, ids of context, ids of rest


class ScorerLM(TemplateLM):  # type: ignore[misc]
    """Adapter from a ``scorer`` to the harness' model interface.

    ``prefix_token_id``: the token used as an empty context (None: BOS, or else the end token).
    ``max_gen_toks``: limit of new tokens for tasks without one.  ``update`` receives the number of finished questions.
    Text is generated greedily.  Raises UsageError for tasks that sample or need more positions than the model has.
    """

    def __init__(
        self,
        scorer: Scorer,
        prefix_token_id: int | None = None,
        max_gen_toks: int = 256,
        update: Update | None = None,
    ) -> None:
        super().__init__()
        self.scorer = scorer
        prefixes = (prefix_token_id, scorer.bos_id, *scorer.end_ids)
        self._prefix = next((token for token in prefixes if token is not None), None)
        if self._prefix is None:
            raise UsageError(
                f"{scorer.name} has neither a BOS nor an end token.",
                "say with prefix_token_id=ID what an empty context stands for.",
            )
        self._max_gen_toks = max_gen_toks
        self._update = update or _ignore
        self.max_length = scorer.max_length

    # ---- tokens ----

    @property
    def eot_token_id(self) -> int:
        """Return the id of the first end token."""
        return self.scorer.end_ids[0] if self.scorer.end_ids else self.prefix_token_id

    @property
    def prefix_token_id(self) -> int:
        """Return the id of the token used as an empty context."""
        assert self._prefix is not None
        return self._prefix

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Return token ids.  By default special tokens are added unless the text already begins with a BOS."""
        ids = self.scorer.encode(string, special=False)
        special = add_special_tokens
        if special is None:
            special = self.scorer.bos_id is None or ids[:1] != [self.scorer.bos_id]
        return self.scorer.encode(string, special=True) if special else ids

    @property
    def tokenizer_name(self) -> str:
        return self.scorer.name

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """See LM.  Raises UsageError if the history does not end with a user's message, or without a template."""
        if not add_generation_prompt or chat_history[-1]["role"] != "user":
            raise UsageError(
                "a chat that does not end with a user's message is not possible.",
                "leave out --apply_chat_template for this task.",
            )
        return self.scorer.chat_text(chat_history[-1]["content"], chat_history[:-1])

    # ---- what tasks ask ----

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Return (log-likelihood, is greedy) of each rest given its context, which is cut on the left to fit.

        Consecutive requests with the same context, such as the choices of a question, are computed together.
        """
        found: list[tuple[float, bool]] = []
        cut = [(text, self._fitting(context, rest), rest) for text, context, rest in requests]
        questions = [list(same) for _, same in groupby(cut, key=lambda request: request[1])]
        for part, update in self._chunks(questions, disable_tqdm):
            asked = [Choices(same[0][1], [rest for *_, rest in same]) for same in part]
            predicted = self.scorer.predicted(asked, update)
            for same, endings in zip(part, predicted, strict=True):
                for (text, *_), ending in zip(same, endings, strict=True):
                    found.append((-float(ending.losses.sum()), bool(ending.greedy.all())))
                    if text is not None:  # windows of loglikelihood_rolling are cached as a whole
                        self.cache_hook.add_partial("loglikelihood", text, found[-1])
        return found

    def _fitting(self, context: list[int], rest: list[int]) -> list[int]:
        if not 1 <= len(rest) <= self.max_length:
            raise UsageError(
                f"{len(rest)} tokens to be predicted are asked for, {self.scorer.name} has "
                f"{self.max_length} positions."
            )
        return context[-(self.max_length + 1 - len(rest)) :]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Return log-likelihoods of whole texts; each token is scored once, in windows of the model's length."""
        windows = [
            [
                (None, *make_disjoint_window(pair))
                for pair in get_rolling_token_windows(
                    self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, 1
                )
            ]
            for request in requests
        ]
        every: Any = [window for part in windows for window in part]
        values = iter(self._loglikelihood_tokens(every, disable_tqdm))
        found = []
        for request, part in zip(requests, windows, strict=True):
            total = sum(next(values)[0] for _ in part)
            found.append(total)
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return found

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Return greedy texts up to, and without, the first stop sequence or end token."""
        found: list[str] = []
        asked = [(request, *self._prompt(*request.args)) for request in requests]
        for part, update in self._chunks(asked, disable_tqdm):
            for (most, until), same in groupby(part, key=lambda each: each[2:]):
                alike = list(same)
                prompts = [ids for _, ids, *_ in alike]
                new = self.scorer.generate(prompts, most, update, until)
                for (request, *_), ids in zip(alike, new, strict=True):
                    text = self.scorer.decode(ids)
                    ends = [text.find(stop) for stop in until if stop in text]
                    found.append(text[: min(ends, default=len(text))])
                    self.cache_hook.add_partial("generate_until", request.args, found[-1])
        return found

    def _prompt(
        self, text: str, settings: dict[str, Any]
    ) -> tuple[list[int], int, tuple[str, ...]]:
        """Return the prompt's ids, cut on the left to leave room; the limit of new tokens; and the stop sequences."""
        settings = normalize_gen_kwargs(settings, self._max_gen_toks)
        most = settings["max_gen_toks"]
        if settings["do_sample"]:
            raise UsageError(
                "a task wants text that is sampled, which is not supported.",
                "--gen_kwargs do_sample=false,temperature=0 makes it greedy.",
            )
        if most >= self.max_length:
            raise UsageError(
                f"{most} new tokens are asked for, {self.scorer.name} has {self.max_length} positions.",
                "a compiled directory has as many as 'shrinkc compile ... --context N' said; "
                "max_gen_toks in the task, or in --gen_kwargs of lm_eval, asks for fewer.",
            )
        until = tuple(stop for stop in settings["until"] if stop)
        return self.tok_encode(text)[most - self.max_length :], most, until

    def _chunks(
        self, questions: Sequence[Item], disable_tqdm: bool
    ) -> Iterator[tuple[Sequence[Item], Update]]:
        """Yield up to CHUNK questions at a time, and a function that reports progress on them."""
        with tqdm(total=len(questions), desc="shrinkc", disable=disable_tqdm) as bar:
            for at in range(0, len(questions), CHUNK):

                def update(done: int, total: int, note: str = "", /, at: int = at) -> None:
                    self._update(at + done, len(questions))
                    bar.update(at + done - bar.n)

                yield questions[at : at + CHUNK], update


@register_model("shrinkc")
class ShrinkcLM(ScorerLM):
    """Harness model of ``path``: a compiled directory, or a checkpoint that ``shrinkc eval`` measures in torch.

    ``engine`` ("host" or "interpreter") applies to compiled directories; ``dtype``, ``device``, ``batch_size`` and
    ``threads`` apply to checkpoints.
    """

    def __init__(
        self,
        path: str,
        engine: Engine | None = None,
        dtype: str = "float32",
        device: str | None = None,
        batch_size: int | str = BATCH,
        max_batch_size: int | None = None,
        threads: int | None = None,
        prefix_token_id: int | None = None,
        max_gen_toks: int = 256,
    ) -> None:
        scorer: Scorer
        if artifact.is_artifact(Path(path)):
            scorer = CompiledScorer(Path(path), dict(os.environ), engine or "host")
        else:
            if engine is not None:
                raise UsageError(f"engine={engine}: {path} is not a compiled directory.")
            loaded = load(path, dtype=dtype, device=_device(device))
            use_threads(threads or suited_threads(loaded.model.config.hidden_size))
            batch = BATCH if isinstance(batch_size, str) else batch_size
            scorer = TorchScorer(loaded, batch=batch)
        super().__init__(scorer, prefix_token_id, max_gen_toks)


def _device(name: str | None) -> str:
    """Return the device to compute on.  The harness passes HARNESS_DEVICE if the user gave none."""
    import torch

    if name is None or (name == HARNESS_DEVICE and not torch.cuda.is_available()):
        return "cpu"
    check_device(name)
    return name


def _ignore(done: int, total: int, note: str = "", /) -> None:
    """Do nothing: the harness shows its own progress bar."""
