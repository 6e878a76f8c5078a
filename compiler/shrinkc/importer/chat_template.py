"""Chat templates: they turn a user's message into the prompt of a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from shrinkc.core.errors import BadTokenizer, UsageError
from shrinkc.importer.jsonfile import parse_json_object, read_json_object, read_text

_FILE = "chat_template.jinja"
_SETTINGS = "tokenizer_config.json"
_SPECIAL = "special_tokens_map.json"
_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")

Message = Mapping[str, Any]
"""``role`` (system, user, assistant or tool), ``content``, and what else the template reads, such as ``tool_calls``."""

Tool = Mapping[str, Any]
"""JSON schema of a function that the model may call: ``type`` ("function"), and ``function`` with ``name``,
``description`` and ``parameters``."""


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template and the special tokens that it may name (``bos_token`` -> its text)."""

    source: str
    tokens: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_dir(cls, path: Path) -> ChatTemplate | None:
        """Return the template of a Hugging Face directory, or None.  Raises BadTokenizer if a file is damaged."""
        settings = _object(path / _SETTINGS)
        file = path / _FILE
        source = read_text(file, BadTokenizer) if file.is_file() else settings.get("chat_template")
        if isinstance(source, list):  # several named templates
            named = [t for t in source if isinstance(t, dict) and t.get("name") == "default"]
            source = named[-1].get("template") if named else None
        if not isinstance(source, str):
            return None
        tokens = {}
        for origin in (_object(path / _SPECIAL), settings):
            for name in _TOKENS:
                value = origin.get(name)
                text = value.get("content") if isinstance(value, dict) else value
                if isinstance(text, str):
                    tokens[name] = text
        return cls(source, tokens)

    @classmethod
    def from_json(cls, path: Path) -> ChatTemplate:
        """Read a file of :meth:`to_json`.  Raises BadTokenizer if it is something else."""
        content = parse_json_object(read_text(path, BadTokenizer), path, BadTokenizer)
        source, tokens = content.get("template"), content.get("tokens")
        if not isinstance(source, str) or not isinstance(tokens, dict):
            raise BadTokenizer(f"{path} holds no chat template.", "compile the model again.")
        return cls(source, tokens)

    def to_json(self) -> str:
        """Return the text of ``chat_template.json`` in a compiled directory."""
        content = {"template": self.source, "tokens": self.tokens}
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"

    def check_tools(self, tools: Sequence[Tool] | None) -> None:
        """Raise UsageError if the template does not show ``tools``."""
        if tools and self.render("Hi", tools=tools) == self.render("Hi"):
            raise UsageError(
                "--tools is not possible: the model's chat template has no place for tools.",
                "describe them in the first message instead.",
            )

    def render(
        self,
        message: str | Message,
        before: Sequence[Message] = (),
        tools: Sequence[Tool] | None = None,
    ) -> str:
        """Return the prompt for a message, ending where the answer begins, like transformers.

        ``message``: a user's text, or a message with its role.  ``before``: earlier messages.  ``tools``: functions
        that the model may call.  Raises BadTokenizer if the template refuses the messages, or needs a value that is
        not provided.  Templates come with models, so they run in Jinja's sandbox.
        """
        last = {"role": "user", "content": message} if isinstance(message, str) else dict(message)
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
        )
        environment.filters["tojson"] = _tojson
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
        try:
            return environment.from_string(self.source).render(
                messages=[*map(dict, before), last],
                tools=None if tools is None else [*map(dict, tools)],
                documents=None,
                add_generation_prompt=True,
                **self.tokens,
            )
        except Exception as error:
            # a template is a program of the model's author and may raise anything
            raise BadTokenizer(
                f"the model's chat template cannot be used: {type(error).__name__}: {error}.",
                "put the message in the model's form yourself, and give it with --prompt.",
            ) from error


def _object(path: Path) -> dict[str, Any]:
    return read_json_object(path, BadTokenizer) if path.is_file() else {}


class _Generation(jinja2.ext.Extension):
    """Jinja tag ``{% generation %}``, which marks answers for training.  It renders its body."""

    tags = {"generation"}  # noqa: RUF012  # declared so by Jinja

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """Return the body as a scope."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's built-in filter escapes HTML; transformers passes these arguments
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
