"""Manifest of a compiled directory: model, target, options, and a hash of every file."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from shrinkc.core.errors import BadArtifact
from shrinkc.core.parsing import check_fields, json_object, parse_json

MANIFEST = "manifest.json"
FORMAT = "shrinkc-program"
VERSION = 2

IR = "ir.safetensors"
IR_TEXT = "ir.txt"
PLAN = "plan.json"
MEMORY_MAP = "memory.svg"
TOKENIZER = "tokenizer.json"
CHAT_TEMPLATE = "chat_template.json"  # only if the model has a chat template
BUILD = "build"  # output of make
PROFILE = f"{BUILD}/profile.json"  # of the last run with --profile
REPORTS = ("report.html", "report.json")  # output of `shrinkc report`
REPORT = "shrinkc-report"  # marker at the beginning of both reports
MEASURES = frozenset({"perplexity", "tasks", "samples"})  # an evaluation has at least one

# of context and vocabulary; limits the memory that a damaged manifest can request
_MAX_SIZE = 1 << 24
_AGAIN = "compile the model again."

Option = str | int | bool | None


@dataclass(frozen=True)
class FileRecord:
    """Size and SHA-256 of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Facts about a compiled program that a run needs.

    ``widths``: matrix -> format that ``--fit`` chose for it.

    ``bos_id``: the id that prompts start with, or None.  ``files``: relative path with slashes -> record,
    without build results.  ``stack_bytes``: whose stack -> bytes reserved for it.  ``static_bytes``: memory -> most
    bytes that a program takes, with stacks and cache.
    """

    model: str
    target: str
    context: int
    vocab_size: int
    bos_id: int | None
    command: str
    shrinkc: str
    options: dict[str, Option]
    widths: dict[str, str] = field(default_factory=dict)
    stack_bytes: dict[str, int] = field(default_factory=dict)
    static_bytes: dict[str, int] = field(default_factory=dict)
    files: dict[str, FileRecord] = field(default_factory=dict)


def is_artifact(directory: Path) -> bool:
    """Return whether any version of shrinkc compiled this directory."""
    return json_object(directory / MANIFEST).get("format") == FORMAT


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write the manifest with a record of every file that is in ``directory`` now."""
    content = asdict(manifest)
    content["files"] = {
        name: asdict(file_record(directory / name)) for name in list_files(directory)
    }
    text = json.dumps({"format": FORMAT, "version": VERSION, **content}, indent=2)
    (directory / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(directory: Path) -> Manifest:
    """Return the manifest of ``directory``.  Raises BadArtifact if it is missing, damaged or of another version."""
    path = directory / MANIFEST
    if not path.is_file():
        raise BadArtifact(
            f"{directory} has no {MANIFEST}.", "give a directory made by 'shrinkc compile'."
        )
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise BadArtifact(f"{path} is not the manifest of a compiled program.", _AGAIN)
        version = content.pop("version", None)
        if version != VERSION:
            raise BadArtifact(
                f"{path} is of version {version}, this shrinkc reads version {VERSION}.", _AGAIN
            )
        files = {name: FileRecord(**record) for name, record in content.pop("files").items()}
        manifest = Manifest(files=files, **content)
        _check_types(manifest)
        return manifest
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadArtifact(f"{path} is damaged: {error}.", _AGAIN) from error


def _check_types(m: Manifest) -> None:
    """Raise TypeError for a field of the wrong type, ValueError for an impossible size."""
    for part in (m, *m.files.values()):
        check_fields(part)
    options = {str, int, bool, type(None)}
    if type(m.options) is not dict or not {type(v) for v in m.options.values()} <= options:
        raise TypeError("options are values by name")
    if type(m.widths) is not dict or not {type(v) for v in m.widths.values()} <= {str}:
        raise TypeError("widths are texts by matrix")
    for name, size in (("context", m.context), ("vocab_size", m.vocab_size)):
        if not 0 < size <= _MAX_SIZE:
            raise ValueError(f"{name} = {size}; 1 to {_MAX_SIZE} is possible")


def check_files(directory: Path, manifest: Manifest, names: tuple[str, ...]) -> None:
    """Raise BadArtifact if one of the files ``names`` is missing or was changed."""
    wrong = [name for name in names if not _unchanged(directory, manifest, name)]
    if wrong:
        raise BadArtifact(
            f"{directory}: {', '.join(wrong)} missing or changed since compiling, so a run cannot be "
            "verified.",
            _AGAIN,
        )


def changed_files(directory: Path, manifest: Manifest) -> list[str]:
    """Return the files that are missing or were changed after compiling."""
    return [name for name in manifest.files if not _unchanged(directory, manifest, name)]


def foreign_files(directory: Path) -> list[str] | None:
    """Return the files below ``directory`` that shrinkc did not write or that were edited; None if shrinkc did not
    compile the directory.  Build results, reports and evaluations of this program are shrinkc's.  Accepts directories
    of every version."""
    content = json_object(directory / MANIFEST)
    if content.get("format") != FORMAT:
        return None
    try:
        known = {name: FileRecord(**record) for name, record in content["files"].items()}
    except (KeyError, TypeError, AttributeError):
        known = {}  # a damaged manifest: all files count as foreign
    return [
        name
        for name in all_files(directory)
        if name != MANIFEST
        and not name.startswith(f"{BUILD}/")
        and not (name in known and _is(directory / name, known[name]))
        and not (name in REPORTS and is_report(directory / name))
        and not (IR in known and is_evaluation(directory / name, known[IR].sha256))
    ]


def is_evaluation(path: Path, ir_sha256: str) -> bool:
    """Return whether ``shrinkc eval DIR -o path`` wrote this file about the program with that integer model."""
    if path.suffix != ".json" or path.is_symlink():
        return False
    found = json_object(path)
    model = found.get("model")
    measured = found.keys() - {"model"}
    ours = isinstance(model, dict) and model.get("ir_sha256") == ir_sha256
    return ours and 0 < len(measured) and measured <= MEASURES


def is_report(path: Path) -> bool:
    """Return whether ``shrinkc report`` wrote this file."""
    try:
        with path.open("rb") as file:
            return REPORT.encode("ascii") in file.read(64)
    except OSError:
        return False


def all_files(directory: Path) -> list[str]:
    """Return relative paths (with slashes, sorted) of all files below ``directory``, and of links, also to
    directories."""
    found = []
    for folder, folders, files in os.walk(directory):
        here = Path(folder)
        links = [name for name in folders if (here / name).is_symlink()]
        found += [(here / name).relative_to(directory).as_posix() for name in [*files, *links]]
    return sorted(found)


def list_files(directory: Path) -> list[str]:
    """Return relative paths (with slashes, sorted) of all files below ``directory`` except the manifest."""
    files = (p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())
    return sorted(name for name in files if name != MANIFEST)


def file_record(path: Path) -> FileRecord:
    """Return size and hash of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileRecord(path.stat().st_size, digest)


def _unchanged(directory: Path, manifest: Manifest, name: str) -> bool:
    return name in manifest.files and _is(directory / name, manifest.files[name])


def _is(path: Path, record: FileRecord) -> bool:
    try:
        return path.is_file() and file_record(path) == record
    except OSError:  # unreadable, or a damaged manifest has an impossible file name
        return False
