"""What a compression run left."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any


def contents(out: Path) -> dict[str, Any]:
    """Every file of a run by name, but the logs of libraries, which say how long something took; of JSON what does
    not depend on that."""
    found: dict[str, Any] = {}
    for file in sorted(out.rglob("*")):
        name = file.relative_to(out).as_posix()
        if not file.is_file() or name == "table.md" or file.suffix == ".log":
            continue
        if name.endswith("/README.md"):  # the model card
            found[name] = re.sub(r"all steps took .*?\. Packed", "Packed", file.read_text("utf-8"))
        elif file.suffix == ".json":
            found[name] = without_seconds(json.loads(file.read_text()))
        else:
            found[name] = file.read_bytes()
    return found


def without_seconds(value: Any) -> Any:
    """JSON without the fields that say how long something took."""
    if isinstance(value, dict):
        return {k: without_seconds(v) for k, v in value.items() if k != "seconds"}
    return [without_seconds(v) for v in value] if isinstance(value, list) else value
