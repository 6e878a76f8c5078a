"""Records of the steps of a run: each step's folder has a ``step.json`` with hashes of its files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shrinkc.core.artifact import FileRecord, file_record
from shrinkc.core.errors import BadStep, RunChanged
from shrinkc.core.fingerprint import Fingerprint, differences
from shrinkc.core.output import write_file
from shrinkc.core.parsing import parse_json

STEP, CARD = "step.json", "README.md"
FORMAT = "shrinkc-step"
VERSION = 1


@dataclass
class StepRecord:
    """Content of ``step.json``.

    ``model``: the directory of the model; None for the step's own directory.  ``figures``: sizes
    (see ModelFacts.figures).  ``metrics``: result of evaluate() with the fingerprint
    ``evaluation``.  ``files``: all other files of the step's directory.
    """

    name: str
    stage: str
    seed: int
    threads: int
    versions: dict[str, str]
    fingerprint: Fingerprint
    figures: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    model: str | None = None
    evaluation: Fingerprint = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    files: dict[str, FileRecord] = field(default_factory=dict)

    def content_fingerprint(self) -> Fingerprint:
        """Return the hashes of the step's files, for the fingerprint of the next step."""
        return {f"content of {self.name}/{n}": record.sha256 for n, record in self.files.items()}


def list_files(directory: Path) -> list[str]:
    """Return the sorted relative paths (with slashes) of all files below ``directory`` except step.json and the model
    card, which is written again after a measurement and may be edited."""
    files = (p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())
    return sorted(name for name in files if name not in (STEP, CARD))


def write_step(directory: Path, record: StepRecord) -> None:
    write_json(directory / STEP, {"format": FORMAT, "version": VERSION, **asdict(record)})


def read_step(directory: Path) -> StepRecord:
    """Return the record of a step; raise BadStep if it is damaged or a file is missing or was changed."""
    path = directory / STEP
    hint = (
        f"delete {directory} and the steps after it to make them again, or start over with --force."
    )
    if not path.exists():
        # without a record, --force does not delete the files, since they may be the user's
        raise BadStep(
            f"{path} is missing.", f"delete {directory} and the steps after it to make them again."
        )
    content = read_record(path, FORMAT, VERSION, hint)
    try:
        files = {name: FileRecord(**record) for name, record in content.pop("files").items()}
        record = StepRecord(files=files, **content)
    except (TypeError, KeyError, AttributeError) as error:
        raise BadStep(f"{path} is damaged: {error}.", hint) from error
    faults = []
    for name, wanted in files.items():
        file = directory / name
        try:
            if not file.is_file():
                faults.append(f"{name} is missing")
            elif file_record(file) != wanted:
                faults.append(f"{name} is not as it was written")
        except OSError as error:  # such as an impossible name
            faults.append(f"{name[:80]} cannot be read: {error.strerror}")
    if faults:
        raise BadStep(f"{directory}: {', '.join(faults)}.", hint)
    return record


def read_record(path: Path, kind: str, version: int, hint: str) -> dict[str, Any]:
    """Return the content of a file of the format ``kind``, without format and version.  Raises BadStep."""
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise BadStep(f"{path} is damaged: {error}.", hint) from error
    if content.pop("format", None) != kind:
        raise BadStep(f"{path} is no {kind}.", hint)
    if (found := content.pop("version", None)) != version:
        raise BadStep(f"{path} is of version {found}, this shrinkc reads version {version}.", hint)
    return content


def remove_partials(folder: Path) -> None:
    """Remove the partial files of a killed process."""
    for leftover in folder.glob(".*.partial"):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink()


def check_unchanged(problem: str, old: Fingerprint, new: Fingerprint, hint: str) -> None:
    """Raise RunChanged unless both are equal; ``problem`` is the message before the list of differences."""
    if changed := differences(old, new):
        raise RunChanged(f"{problem}: {'; '.join(changed)}.", hint)


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object of a file.  Raises OSError, ValueError."""
    content = parse_json(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_file(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
