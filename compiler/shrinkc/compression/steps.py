"""The directory of a run: a folder per step with its ``step.json``, checked before it is relied on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shrinkc.core.artifact import FileRecord, file_record
from shrinkc.core.errors import BadStep
from shrinkc.core.fingerprint import Fingerprint
from shrinkc.core.output import write_file
from shrinkc.core.parsing import parse_json

STEP = "step.json"
FORMAT = "shrinkc-step"
VERSION = 1


@dataclass
class StepRecord:
    """What ``step.json`` says.

    ``model``: the directory with the model; None where it is the step's own.  ``figures``: sizes
    (see ModelFacts.figures).  ``metrics``: what evaluate() returned, made under
    ``evaluation``.  ``files``: every other file of the step's directory.
    """

    name: str
    stage: str
    seed: int
    threads: int
    versions: dict[str, str]
    fingerprint: Fingerprint
    settings: dict[str, Any]
    parameters: dict[str, Any]
    notes: list[str]
    figures: dict[str, Any]
    seconds: float
    model: str | None = None
    evaluation: Fingerprint = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    files: dict[str, FileRecord] = field(default_factory=dict)

    def outcome(self) -> Fingerprint:
        """What the next step is made from: the hashes of this one's files."""
        return {f"content of {self.name}/{n}": record.sha256 for n, record in self.files.items()}


def list_files(directory: Path) -> list[str]:
    """Every file below ``directory`` but step.json, with slashes, in a fixed order."""
    files = (p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())
    return sorted(name for name in files if name != STEP)


def write_step(directory: Path, record: StepRecord) -> None:
    """Writes step.json, whole."""
    write_json(directory / STEP, {"format": FORMAT, "version": VERSION, **asdict(record)})


def read_step(directory: Path) -> StepRecord:
    """The record of a step whose files are all there and as they were; else BadStep."""
    path = directory / STEP
    hint = (
        f"delete {directory} and the steps after it to make them again, or start over with --force."
    )
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise BadStep(f"{path} is not the record of a compression step.", hint)
        version = content.pop("version", None)
        if version != VERSION:
            raise BadStep(
                f"{path} is of version {version}, this shrinkc reads version {VERSION}.", hint
            )
        files = {name: FileRecord(**record) for name, record in content.pop("files").items()}
        record = StepRecord(files=files, **content)
    except FileNotFoundError as error:
        # without a record nothing tells whose the files are, and --force would not delete them
        raise BadStep(
            f"{path} is missing.",
            f"delete {directory} and the steps after it to make them again.",
        ) from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadStep(f"{path} is damaged: {error}.", hint) from error
    faults = []
    for name, wanted in files.items():
        file = directory / name
        try:
            if not file.is_file():
                faults.append(f"{name} is missing")
            elif file_record(file) != wanted:
                faults.append(f"{name} is not as it was written")
        except OSError as error:  # its name may be none that a file can have
            faults.append(f"{name[:80]} cannot be read: {error.strerror}")
    if faults:
        raise BadStep(f"{directory}: {', '.join(faults)}.", hint)
    return record


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file.  Raises OSError, ValueError."""
    content = parse_json(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a file, whole."""
    write_file(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
