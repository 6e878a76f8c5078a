"""Reading of JSON files, with errors that name the file and the position."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from shrinkc.core.errors import ShrinkcError

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_json_object(path: Path, error: type[ShrinkcError]) -> dict[str, Any]:
    """Return the JSON object in ``path``.

    Raises ``error`` if the file cannot be read, is not UTF-8, is not JSON, or is not an object.
    """
    return parse_json_object(read_text(path, error), path, error)


def read_text(path: Path, error: type[ShrinkcError]) -> str:
    """Return the UTF-8 text of ``path``.  Raises ``error``, which names the file."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as exc:
        raise error(f"{path} is not UTF-8 text (byte {exc.start}).") from exc
    except OSError as exc:
        raise error(f"{path} cannot be read: {exc.strerror}.") from exc


def shortened(value: object, limit: int = 80) -> str:
    """Return ``value`` for a message, in at most ``limit`` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def parse_json_object(text: str, path: Path, error: type[ShrinkcError]) -> dict[str, Any]:
    """Parse ``text``, the content of ``path``.  Raises ``error`` unless it is a JSON object."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as exc:
        raise error(
            f"{path} is not valid JSON: {exc.msg} at line {exc.lineno}, column {exc.colno}.",
            hint="the file may be cut short; copy it again.",
        ) from exc
    except RecursionError as exc:
        raise error(f"{path} is not usable: JSON nested too deeply.") from exc
    except ValueError as exc:  # also raised for integers with thousands of digits
        raise error(f"{path} is not usable: {exc}.") from exc
    if _SURROGATE.search(text):  # an unpaired surrogate is not a character
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as exc:
            raise error(f"{path} is not usable: a string holds half of a character.") from exc
    if not isinstance(value, dict):
        raise error(f"{path} holds a JSON {type(value).__name__}; an object {{...}} is needed.")
    return value
