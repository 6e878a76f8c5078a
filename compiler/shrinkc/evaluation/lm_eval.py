"""The model ``shrinkc`` of lm-evaluation-harness: what shrinkc measures, for the harness' tasks.

    lm_eval --model shrinkc --model_args path=out --tasks hellaswag

Needs the extra ``lm-eval``; with a compiled directory no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
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
from shrinkc.evaluation.compiled_scorer import CompiledScorer, Engine
from shrinkc.evaluation.torch_scorer import BATCH, TorchScorer
from shrinkc.model import FAMILIES

CHUNK = 64  # sequences after which the harness is told, which may keep it (--use_cache)
HARNESS_DEVICE = "cuda:0"
STEP = 16  # tokens that are generated before a stop sequence is looked for; twice as many each time

Request = tuple[tuple[str, str], list[int], list[int]]  # text, and token ids of context and rest


@register_model("shrinkc")
class ShrinkcLM(TemplateLM):  # type: ignore[misc]
    """``path`` is a compiled directory, or any model that ``shrinkc eval`` measures in torch.

    ``engine`` ("host" or "interpreter") is for compiled ones; ``dtype``, ``device``, ``batch_size`` and
    ``threads`` for the others.  ``prefix_token_id`` is what an empty context stands for (None: the BOS, or
    else the end token).  ``max_gen_toks``: of a task that does not say.  Text is generated greedily;
    UsageError for a task that wants it sampled, and for what no model of this length can be asked.
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
        super().__init__()
        self.scorer: CompiledScorer | TorchScorer
        if artifact.is_artifact(Path(path)):
            self.scorer = CompiledScorer(Path(path), dict(os.environ), engine or "host")
        else:
            if engine is not None:
                raise UsageError(f"engine={engine}: {path} is not a compiled directory.")
            loaded = load(path, dtype=dtype, device=_device(device), families=FAMILIES)
            use_threads(threads or suited_threads(loaded.model.config.hidden_size))
            batch = BATCH if isinstance(batch_size, str) else batch_size
            self.scorer = TorchScorer(loaded, batch=batch)
        if not self.scorer.end_ids and self.scorer.bos_id is None and prefix_token_id is None:
            raise UsageError(
                f"{self.scorer.name} has neither a BOS nor an end token.",
                "say with prefix_token_id=ID what an empty context stands for.",
            )
        self._prefix = prefix_token_id
        self._max_gen_toks = max_gen_toks
        self.max_length = self.scorer.max_length

    # ---- tokens ----

    @property
    def eot_token_id(self) -> int:
        """The first of the tokens that end a text."""
        return self.scorer.end_ids[0] if self.scorer.end_ids else self.prefix_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context."""
        for found in (self._prefix, self.scorer.bos_id, *self.scorer.end_ids):
            if found is not None:
                return int(found)
        raise AssertionError("the constructor has refused it")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids; with special tokens unless a BOS is there already, or it is said."""
        ids = self.scorer.encode(string, special=False)
        special = add_special_tokens
        if special is None:
            special = self.scorer.bos_id is None or ids[:1] != [self.scorer.bos_id]
        return self.scorer.encode(string, special=True) if special else ids

    @property
    def tokenizer_name(self) -> str:
        """See LM."""
        return self.scorer.name

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """See LM.  UsageError for a beginning of the answer, and for a model without a template."""
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
        """Of each rest, given its context: what is too long for the model is cut on the left."""
        found: list[tuple[float, bool]] = []
        for part in self._chunks(requests, disable_tqdm):
            asked = []
            for _, context, rest in part:
                if not 1 <= len(rest) <= self.max_length:
                    raise UsageError(
                        f"{len(rest)} tokens to be predicted are asked for, {self.scorer.name} has "
                        f"{self.max_length} positions."
                    )
                asked.append([*context, *rest][-(self.max_length + 1) :])
            for (text, _, rest), predicted in zip(
                part, self.scorer.predicted(asked, _ignore), strict=True
            ):
                last = slice(-len(rest), None)
                answer = (-float(predicted.losses[last].sum()), bool(predicted.greedy[last].all()))
                found.append(answer)
                if text is not None:  # parts of a rolling text are none of the harness' requests
                    self.cache_hook.add_partial("loglikelihood", text, answer)
        return found

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, each token once, in windows of the model's length."""
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
        """Greedy text up to the first stop sequence, which is not part of it, or an end token."""
        found = []
        for request in tqdm(requests, desc="shrinkc", disable=disable_tqdm):
            prompt, settings = request.args
            settings = normalize_gen_kwargs(settings, self._max_gen_toks)
            if settings["do_sample"]:
                raise UsageError(
                    "a task wants text that is sampled, which is not supported.",
                    "--gen_kwargs do_sample=false,temperature=0 makes it greedy.",
                )
            text = self._greedy(prompt, settings["max_gen_toks"], settings["until"])
            found.append(text)
            self.cache_hook.add_partial("generate_until", request.args, text)
        return found

    def _greedy(self, prompt: str, most: int, until: Sequence[str]) -> str:
        room = self.max_length - most
        if room < 1:
            raise UsageError(
                f"{most} new tokens are asked for, {self.scorer.name} has {self.max_length} positions.",
                "--gen_kwargs max_gen_toks=N asks for fewer.",
            )
        ids, new, step = self.tok_encode(prompt)[-room:], list[int](), STEP
        while True:
            wanted = min(step, most - len(new))
            (more,) = self.scorer.generate([[*ids, *new]], wanted, _ignore)
            new += more
            text = self.scorer.decode(new)
            ends = [text.find(stop) for stop in until if stop and stop in text]
            if ends or len(more) < wanted or len(new) == most:
                return text[: min(ends, default=len(text))]
            step *= 2

    def _chunks(
        self, requests: Sequence[Request], disable_tqdm: bool
    ) -> Iterator[Sequence[Request]]:
        with tqdm(total=len(requests), desc="shrinkc", disable=disable_tqdm) as bar:
            for at in range(0, len(requests), CHUNK):
                part = requests[at : at + CHUNK]
                yield part
                bar.update(len(part))


def _device(name: str | None) -> str:
    """The device to compute on: the harness says HARNESS_DEVICE where its user said nothing."""
    import torch

    if name is None or (name == HARNESS_DEVICE and not torch.cuda.is_available()):
        return "cpu"
    check_device(name)
    return name


def _ignore(done: int, total: int, note: str = "", /) -> None:
    """The harness has a bar of its own."""
