"""Fingerprints: the inputs of a result as labelled values, so that a message can name a difference.

A fingerprint is a flat table, label -> value.  A file is recorded by name and hash, without its folder,
so that files can be moved.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shrinkc.core.artifact import file_record

Fingerprint = dict[str, Any]

FILE = "content of "
# files in a model directory that do not belong to the model
_NO_MODEL = (".md", ".png", ".svg", ".gitattributes", ".lock")


def model_fingerprint(source: Path, label: str = "") -> Fingerprint:
    """Return the hash of every file of a model (a directory or a GGUF file); ``label`` precedes the names."""
    if source.is_file():
        return {f"{FILE}{label}{source.name}": file_record(source).sha256}
    files = sorted(
        p for p in source.rglob("*")
        if p.is_file() and not p.name.endswith(_NO_MODEL) and p.name != "step.json"
        and not any(part.startswith(".") for part in p.relative_to(source).parts)
    )  # fmt: skip
    return {
        f"{FILE}{label}{p.relative_to(source).as_posix()}": file_record(p).sha256 for p in files
    }


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return a text "label: old → new" for every value that differs."""
    found = []
    for label in [*old, *(label for label in new if label not in old)]:
        before, after = old.get(label), new.get(label)
        if before == after and (label in old) == (label in new):
            continue
        if label.startswith(FILE):
            name = label.removeprefix(FILE)
            if label not in new:
                found.append(f"{name} is no longer used")
            elif label not in old:
                found.append(f"{name} is new")
            else:
                found.append(f"{name} has other content")
        else:
            found.append(f"{label}: {_show(before)} → {_show(after)}")
    return found


def _show(value: Any) -> str:
    return "not given" if value is None else str(value)
