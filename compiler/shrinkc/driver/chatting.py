"""Conversations with a compiled program, in its model's chat template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from shrinkc.core.errors import BadTokenizer, UsageError
from shrinkc.core.progress import Reporter
from shrinkc.driver.asking import DEFAULT_TOKENS, RunRequest
from shrinkc.driver.run_result import RunResult
from shrinkc.driver.running import Program, Session
from shrinkc.driver.story import OnText
from shrinkc.importer import Message
from shrinkc.simulate.proof import Request

Role = Literal["user", "tool"]
Ending = Literal["end", "tokens", "context"]
"""Reason why an answer ended: the model's end token, the limit of tokens, or a full context."""


@dataclass(frozen=True)
class Answer:
    """An answer of a conversation.

    Attributes:
        message: The message.
        text: The answer, including calls of tools as the model writes them.
        ended: ``"end"``: by the model; ``"tokens"``: by ``tokens``; ``"context"``: the context is full.
        forgotten: How many of the oldest exchanges were left out for it.
        result: The run that gave the answer.
    """

    message: str
    text: str
    ended: Ending
    forgotten: int
    result: RunResult

    def __repr__(self) -> str:
        return f"<Answer {self.text!r:.60}, ended by {self.ended}, {len(self.result.new_tokens)} tokens>"

    def to_json(self) -> dict[str, object]:
        """Return a JSON object."""
        run = self.result.to_json()
        names = ("prompt_tokens", "new_tokens", "cycles", "seconds", "verdict")
        return {
            "message": self.message,
            "answer": self.text,
            "ended": self.ended,
            "forgotten": self.forgotten,
            "cached_tokens": self.result.cached_tokens,
            **{name: run[name] for name in names},
        }


class Conversation:
    """Messages and answers in turn.

    The program stays between answers, with the KV cache of what was said, so an answer takes the time of its own
    tokens.

    If a message does not fit into the context, the oldest exchanges are forgotten.  The system message
    stays.

    It is a context manager; its end is :meth:`close`.

    Attributes:
        model: Name of the model.
        context: Tokens that the whole conversation may take.
        exchanges: Pairs of message and answer that are not forgotten.
        roles: The role of each of these messages: ``"user"`` or ``"tool"``.
    """

    def __init__(
        self, directory: Path, request: RunRequest, system: str | None,
        *, env: Mapping[str, str], reporter: Reporter,
    ) -> None:  # fmt: skip
        """Build and start the program.  ``request``: how it runs and how answers are sampled.

        Raises UsageError if the model has no chat template or the template no place for ``system``, and the errors
        of :func:`shrinkc.run`.
        """
        self._program = Program.open(directory, request, env=env, reporter=reporter)
        self._reporter = reporter
        self._session: Session | None = None
        self._system: list[Message] = (
            [] if system is None else [{"role": "system", "content": system}]
        )
        self.exchanges: list[tuple[str, str]] = []
        self.roles: list[Role] = []
        self.model = self._program.manifest.model
        self.context = self._program.manifest.context
        self._check_template(directory, system)
        most = self.context - len(self._ids("", 0)) - 1
        if request.tokens is not None and not 1 <= request.tokens <= most:
            raise UsageError(
                f"--tokens {request.tokens} is not possible: an answer can have {most} tokens in a "
                f"context of {self.context}.",
                f"allowed: 1 to {most}; or compile with a longer --context.",
            )
        for note in request.notes():
            reporter.note(note)
        self._program.build(reporter)
        self._session = Session(self._program)

    def __repr__(self) -> str:
        count = len(self.exchanges)
        return f"<Conversation with {self.model}: {count} exchanges, context {self.context}>"

    def ask(self, message: str, on_text: OnText | None = None, *, role: Role = "user") -> Answer:
        """Ask, and return the answer.

        KeyboardInterrupt ends the answer; the part that was generated stays in the conversation.

        Args:
            message: The user's message.
            on_text: Is called with each piece of the answer, and with a final newline.
            role: ``"tool"`` if the message is the result of a tool that the model called.

        Raises:
            UsageError: The message alone is too long.  The conversation does not change.
            BadTokenizer: The chat template refuses the message, such as one of a tool.
        """
        ids, forgotten = self._fitted(message, role)
        room = self.context - len(ids)
        request = self._program.request
        most = room if request.tokens is None else min(request.tokens, room)
        asked = request.asked(ids, most)
        said: list[str] = []

        def tell(text: str) -> None:
            said.append(text)
            if on_text is not None:
                on_text(text)

        self.exchanges, self.roles = self.exchanges[forgotten:], self.roles[forgotten:]
        try:
            result = self._run(asked, tell)
        except BaseException:
            self.close()  # the next answer begins with an empty cache
            raise
        finally:  # after Ctrl-C too, the conversation keeps the text so far
            # the final newline of the output, not the model's
            text = "".join(said).removesuffix("\n")
            if said:
                self.exchanges.append((message, text))
                self.roles.append(role)
        ending: Ending = "end"
        if len(result.new_tokens) == most:
            ending = "context" if most == room else "tokens"
        return Answer(message, text, ending, forgotten, result)

    def _run(self, asked: Request, on_text: OnText) -> RunResult:
        if self._session is None:
            self._session = Session(self._program)
        return self._session.run(asked, reporter=self._reporter, on_text=on_text)

    def close(self) -> None:
        """End the program.  The conversation can go on; the next answer starts the program again."""
        if self._session is not None:
            self._session.close()
        self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fitted(self, message: str, role: Role) -> tuple[list[int], int]:
        """Return the prompt, and the number of oldest exchanges dropped to make room for it and an answer."""
        wanted = min(self._program.request.tokens or DEFAULT_TOKENS, self.context // 4)
        for forgotten in range(len(self.exchanges) + 1):
            if [*self.roles, role][forgotten] == "tool" and forgotten:
                continue  # the result of a tool belongs to the call before it
            ids = self._ids(message, forgotten, role)
            room = self.context - len(ids)
            if room >= wanted:
                return ids, forgotten
        if room < 1:
            raise UsageError(
                f"the message has {len(ids)} tokens, including those of the chat template, but the program was "
                f"compiled for a context of {self.context}.",
                "shorten it, or compile the model with a longer --context.",
            )
        return ids, forgotten

    def _ids(self, message: str, forgotten: int, role: Role = "user") -> list[int]:
        before = [
            {"role": who, "content": content}
            for asked, exchange in zip(
                self.roles[forgotten:], self.exchanges[forgotten:], strict=True
            )
            for who, content in zip((asked, "assistant"), exchange, strict=True)
        ]
        last = {"role": role, "content": message}
        tools = self._program.request.tools
        return self._program.tokenizer.encode_chat(last, [*self._system, *before], tools)

    def _check_template(self, directory: Path, system: str | None) -> None:
        template = self._program.tokenizer.chat
        if template is None:
            raise UsageError(
                f"{directory} was compiled from a model that has no chat template.",
                "use 'shrinkc run --prompt TEXT', which continues a text.",
            )
        talk = [{"role": "user", "content": "(1)"}, {"role": "assistant", "content": "(2)"}]
        shown = template.render("(3)", talk)
        try:
            shown = template.render("(3)", [*self._system, *talk])
        except BadTokenizer as error:  # raised because of the system message alone
            raise UsageError(
                f"--system is not possible: {error.message}",
                "put it into the first message instead.",
            ) from error
        template.check_tools(self._program.request.tools)
        if system is not None and system.strip() not in shown:
            raise UsageError(
                "--system is not possible: the model's chat template has no place for it.",
                "put it into the first message instead.",
            )
        if not all(part in shown for part in ("(1)", "(2)", "(3)")):
            raise UsageError(
                "a chat is not possible: the model's chat template keeps only one message.",
                "use 'shrinkc run --chat --prompt TEXT', which answers a single message.",
            )
