"""Scorer of a compiled directory: its host program or the interpreter runs the integer model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import tokenizers
from numpy.typing import NDArray

from shrinkc.abi import Trace
from shrinkc.build import build_program
from shrinkc.core import artifact
from shrinkc.core.errors import RunFailed, UsageError
from shrinkc.core.shell import name_of, quoted
from shrinkc.evaluation.scorer import Choices, Predicted, Scorer, has_ended
from shrinkc.importer import Message, Tokenizer
from shrinkc.ir.interpreter import Interpreter
from shrinkc.ir.serialize import load
from shrinkc.simulate import run_program
from shrinkc.simulate.proof import Request, parse
from shrinkc.simulate.runner import host_logits

Engine = Literal["host", "interpreter"]
ENGINES: tuple[Engine, ...] = ("host", "interpreter")

TIMEOUT_S = 3600.0
_ROWS = 128  # rows of logits converted to float64 at a time, which limits memory
STEP = 16  # tokens generated before the first search for a stop text


def token_losses(
    logits: NDArray, targets: Sequence[int] | NDArray[np.int64], frac: int = 0
) -> NDArray[np.float64]:
    """Return the cross-entropy [T] in nats of ``targets`` [T] under ``logits`` [T, vocab] / 2**frac, in float64."""
    wanted = np.asarray(targets, np.int64)
    if len(logits) != len(wanted):
        raise ValueError(f"{len(logits)} rows of logits for {len(wanted)} tokens")
    losses = np.empty(len(wanted))
    for at in range(0, len(wanted), _ROWS):
        part = np.ldexp(np.asarray(logits[at : at + _ROWS], np.float64), -frac)
        top = part.max(axis=1)
        log_sum = top + np.log(np.exp(part - top[:, None]).sum(axis=1))
        losses[at : at + _ROWS] = log_sum - part[np.arange(len(part)), wanted[at : at + _ROWS]]
    return losses


class CompiledScorer(Scorer):
    """Scorer of the compiled ``directory``.  Both engines compute the same integers.

    Raises BadArtifact; on "host", where the program is built, also ToolMissing and BuildFailed.
    """

    def __init__(self, directory: Path, env: Mapping[str, str], on: Engine = "host") -> None:
        if on not in ENGINES:
            raise UsageError(f"no engine called '{on}'.", f"allowed: {', '.join(ENGINES)}.")
        self._directory = directory
        self._env = env
        self._on = on
        self._manifest = artifact.read_manifest(directory)
        artifact.check_files(directory, self._manifest, (artifact.IR,))
        self._tokenizer = Tokenizer.of_program(directory, self._manifest)
        # encodes like the float model's tokenizer, so that both models get the same token ids
        self._encoder = tokenizers.Tokenizer.from_str(self._tokenizer.to_json())
        self._encoder.no_truncation()
        self._encoder.no_padding()
        self._graph = load(directory / artifact.IR)
        self.end_ids = tuple(self._graph.eos_ids)
        self._frac = next(
            self._graph.types[op.out].frac
            for op in self._graph.ops
            if self._graph.types[op.out].kind == "logits"
        )
        if on == "host":
            build_program(directory, "host", env=env)
        self.name = name_of(directory)
        self.vocab = self._manifest.vocab_size
        self.max_length = self._manifest.context
        self.batch = 1
        self.bos_id = self._bos_id()

    def encode(self, text: str, *, special: bool) -> list[int]:
        return list(self._encoder.encode(text, add_special_tokens=special).ids)

    def encode_chat(self, message: str) -> list[int]:
        return self._tokenizer.encode_chat(message)

    def _bos_id(self) -> int | None:
        """Return the id of the token that prompts begin with, or else of the chat template's ``bos_token``."""
        chat = self._tokenizer.chat
        if self._manifest.bos_id is not None or chat is None:
            return self._manifest.bos_id
        found: int | None = self._encoder.token_to_id(chat.tokens.get("bos_token", ""))
        return found

    def chat_text(self, message: str, before: Sequence[Message]) -> str:
        if self._tokenizer.chat is None:
            raise UsageError(f"{self.name} has no chat template.", "leave out what asks for one.")
        return self._tokenizer.chat.render(message, before)

    def decode(self, ids: Sequence[int]) -> str:
        """See Scorer.  Uses the decode table of the device."""
        return self._tokenizer.decode(ids)

    def _predict(self, questions: Sequence[Choices]) -> list[list[Predicted]]:
        """See Scorer.  Computes the context again for every ending; holds the int32 logits of one sequence."""
        fed = [[*q.context, *ending[:-1]] for q in questions for ending in q.endings]
        logits = self._logits(fed)
        return [
            [self._predicted(next(logits)[len(q.context) - 1 :], ending) for ending in q.endings]
            for q in questions
        ]

    def _predicted(self, logits: NDArray, ending: list[int]) -> Predicted:
        losses = token_losses(logits, ending, self._frac)
        return Predicted(losses, logits.argmax(axis=1) == ending)

    def next_logits(self, sequence: Sequence[int], rows: int) -> Iterator[NDArray]:
        """See Scorer.  Holds the int32 logits of the whole sequence."""
        (logits,) = self._logits([list(sequence[:-1])])
        for at in range(0, len(logits), rows):
            yield np.ldexp(logits[at : at + rows].astype(np.float64), -self._frac)

    def _generate(
        self, prompts: Sequence[Sequence[int]], max_new: int, until: Sequence[str]
    ) -> list[list[int]]:
        """See Scorer.  With ``until`` the first request is for STEP tokens, each further one for twice as many."""
        out = []
        for prompt in prompts:
            if not prompt:
                raise UsageError("the prompt has no tokens.", "give a text.")
            new, step = list[int](), min(STEP if until else max_new, max_new)
            while True:
                request = Request((*prompt, *new), step)
                more = self._host_tokens(request) if self._on == "host" else self._tokens(request)
                ended = len(more) < step or more[-1] in self._graph.eos_ids
                new += more[:-1] if more and more[-1] in self._graph.eos_ids else more
                step = min(2 * step, max_new - len(new))
                if ended or not step or has_ended(self.decode(new), until):
                    break
            out.append(new)
        return out

    def describe(self) -> dict[str, object]:
        return {
            "name": self.name,
            "kind": "compiled",
            "dtype": "integer",
            "engine": self._on,
            "model": self._manifest.model,
            "target": self._manifest.target,
            "options": self._manifest.options,
            "layers": self._graph.num_layers,
            "max_length": self.max_length,
            "ir_sha256": self._manifest.files[artifact.IR].sha256,
            "versions": {"shrinkc": self._manifest.shrinkc},
        }

    def _logits(self, sequences: Sequence[Sequence[int]]) -> Iterator[NDArray]:
        """Yield the integer logits [T, vocab] of each sequence; each starts with an empty KV cache."""
        if self._on == "host":
            yield from host_logits(self._directory, sequences, self._env)
            return
        for ids in sequences:
            yield Interpreter(self._graph).forward(list(ids), all_logits=True)

    def _host_tokens(self, request: Request) -> list[int]:
        words = request.words(self._manifest.context, Trace.TIME)
        output = run_program(self._directory, "host", words, env=self._env, timeout_s=TIMEOUT_S)
        record = parse(output.lines)
        if output.exit_code != 0 or not record.complete:
            raise RunFailed(
                f"the program ended with {output.exit_code} after {len(record.tokens)} tokens.",
                "this says where it went wrong:\n"
                + quoted("shrinkc", "run", self._directory, "--make", "SAN=1"),
            )
        return record.tokens

    def _tokens(self, request: Request) -> list[int]:
        interpreter = Interpreter(self._graph)
        feed, out = list(request.prompt), list[int]()
        while len(out) < request.new_tokens:
            logits = interpreter.forward(feed)[-1]
            out.append(int(np.argmax(logits)))  # ties: the lowest index, like the device
            if out[-1] in self._graph.eos_ids:
                break
            feed = [out[-1]]
        return out
