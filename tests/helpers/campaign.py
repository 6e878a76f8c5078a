"""Long series of trials by command: a journal to go on from, and their sections of one page."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from shrinkc.core.errors import BadData, RunChanged
from shrinkc.core.journal import Journal

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "results" / "robustness.md"
_TITLE = "# Robustness\n\nEach section is written by the command that it names.\n"


def journal_of(path: Path, about: Mapping[str, Any]) -> Journal:
    """The journal of a campaign; one about something else, such as other sources, is begun anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return Journal(path, dict(about))
    except (RunChanged, BadData):
        path.unlink()
        return Journal(path, dict(about))


def sources_hash(*folders: str) -> str:
    """Of every source below ``folders`` of the project, whatever is installed."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0")
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _commit() -> str:
    """Of these files; nothing where there is no git, or no repository of it."""
    asked = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def provenance(command: str) -> str:
    """The sentence that says how a section's figures were made."""
    commit = _commit()
    at = f", commit {commit}" if commit else ""
    return (
        f"`{command}`, {date.today().isoformat()}{at}; {os.cpu_count()} cores of "
        f"{platform.machine()}, Python {platform.python_version()}."
    )


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown; numbers are to the right, with commas."""
    lines = [[f"{v:,}" if isinstance(v, int) else str(v) for v in row] for row in rows]
    numbers = [all(re.fullmatch(r"[\d,.–]+", row[i]) for row in lines) for i in range(len(head))]
    rule = ["---:" if number else "---" for number in numbers]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(head), rule, *lines]) + "\n"


def write_section(page: Path, title: str, text: str) -> None:
    """Puts a section into ``page`` in place of the one of that title; sections are in order of titles."""
    old = page.read_text(encoding="utf-8") if page.is_file() else _TITLE
    parts = re.split(r"(?m)^(?=## )", old)
    sections = {part.splitlines()[0]: part.rstrip() for part in parts[1:]}
    sections[f"## {title}"] = f"## {title}\n\n{text.rstrip()}"
    body = [parts[0].rstrip(), *(sections[name] for name in sorted(sections))]
    page.write_text("\n\n".join(body) + "\n", encoding="utf-8")
