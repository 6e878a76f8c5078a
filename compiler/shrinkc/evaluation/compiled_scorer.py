"""The integer model of a compiled directory, run by its host program or by the interpreter."""

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
from shrinkc.core.progress import Update
from shrinkc.core.shell import name_of, quoted
from shrinkc.evaluation.divergence import sequences_against
from shrinkc.evaluation.protocols import token_losses
from shrinkc.evaluation.scorer import Choices, Compared, Predicted, Scorer, whole_sequences
from shrinkc.importer import Message, Tokenizer
from shrinkc.ir.interpreter import Interpreter
from shrinkc.ir.serialize import load
from shrinkc.simulate import run_program
from shrinkc.simulate.proof import Request, parse
from shrinkc.simulate.runner import host_logits

Engine = Literal["host", "interpreter"]
ENGINES: tuple[Engine, ...] = ("host", "interpreter")

TIMEOUT_S = 3600.0


class CompiledScorer:
    """A Scorer of the compiled ``directory``.  Both engines compute the same integers.

    Raises BadArtifact; on "host" also ToolMissing and BuildFailed, since it builds the program.
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
        # as the float model's tokenizer encodes, so that both are asked the same
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

    def encode(self, text: str, *, special: bool) -> list[int]:
        """See Scorer."""
        return list(self._encoder.encode(text, add_special_tokens=special).ids)

    def encode_chat(self, message: str) -> list[int]:
        """See Scorer."""
        return self._tokenizer.encode_chat(message)

    @property
    def bos_id(self) -> int | None:
        """The token that prompts begin with, or else what the chat template calls so."""
        chat = self._tokenizer.chat
        if self._manifest.bos_id is not None or chat is None:
            return self._manifest.bos_id
        found: int | None = self._encoder.token_to_id(chat.tokens.get("bos_token", ""))
        return found

    def chat_text(self, message: str, before: Sequence[Message]) -> str:
        """A message after those ``before`` it in the chat template, up to where the answer begins."""
        if self._tokenizer.chat is None:
            raise UsageError(f"{self.name} has no chat template.", "leave out what asks for one.")
        return self._tokenizer.chat.render(message, before)

    def decode(self, ids: Sequence[int]) -> str:
        """See Scorer; by the table that the device prints with."""
        return self._tokenizer.decode(ids)

    def losses(self, sequences: Sequence[Sequence[int]], update: Update) -> list[NDArray]:
        """See Scorer."""
        return [found.losses for found in self.predicted(sequences, update)]

    def predicted(self, sequences: Sequence[Sequence[int]], update: Update) -> list[Predicted]:
        """Of each sequence; memory for one sequence's logits as int32 at a time."""
        out = []
        update(0, len(sequences))
        fed = [list(s[:-1]) for s in sequences]
        for logits, sequence in zip(self._logits(fed), sequences, strict=True):
            losses = token_losses(logits, sequence[1:], self._frac)
            out.append(Predicted(losses, logits.argmax(axis=1) == sequence[1:]))
            update(len(out), len(sequences))
        return out

    def next_logits(self, sequence: Sequence[int], rows: int) -> Iterator[NDArray]:
        """See Scorer; memory for the sequence's logits as int32."""
        (logits,) = self._logits([list(sequence[:-1])])
        for at in range(0, len(logits), rows):
            yield np.ldexp(logits[at : at + rows].astype(np.float64), -self._frac)

    def against(
        self, base: Scorer, sequences: Sequence[Sequence[int]], update: Update
    ) -> list[Compared]:
        """See Scorer."""
        return sequences_against(self, base, sequences, update)

    def choice_losses(self, questions: Sequence[Choices], update: Update) -> list[list[float]]:
        """See Scorer."""
        return whole_sequences(self, questions, update)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new: int,
        update: Update,
        *,
        first_line: bool = False,
    ) -> list[list[int]]:
        """See Scorer."""
        out = []
        update(0, len(prompts))
        for prompt in prompts:
            request = Request(tuple(prompt), max_new)
            if not prompt:
                raise UsageError("the prompt has no tokens.", "give a text.")
            tokens = self._host_tokens(request) if self._on == "host" else self._tokens(request)
            if tokens and tokens[-1] in self._graph.eos_ids:
                tokens.pop()
            out.append(tokens)
            update(len(out), len(prompts))
        return out

    def describe(self) -> dict[str, object]:
        """See Scorer."""
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
        """Integers [T, vocab] of each sequence, at all its positions from an empty KV cache."""
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
            out.append(int(np.argmax(logits)))  # the lowest index among equals, as the device
            if out[-1] in self._graph.eos_ids:
                break
            feed = [out[-1]]
        return out
