"""The directory of a compression run: names of its files, detection of foreign files, and its lock."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shrinkc.compression.self_generated import FOLDER as SELF_GENERATED
from shrinkc.compression.self_generated import SelfGenerated, SelfGeneratedSettings
from shrinkc.compression.steps import (
    CARD,
    STEP,
    check_unchanged,
    read_json,
    remove_partials,
    write_json,
)
from shrinkc.core.artifact import REPORTS, all_files, is_report
from shrinkc.core.errors import BadStep, OutputError
from shrinkc.core.fingerprint import Fingerprint
from shrinkc.core.output import locked_file, make_folder, remove_folders

RUN = "run.json"
RECIPE, TABLE, PICTURE = "recipe.toml", "table.md", "run.svg"
LOCK = ".lock"
LOGS, SCRATCH = "logs", ".scratch"
FORMAT = "shrinkc-run"
VERSION = 1
SOURCE = "00-source"
MADE_FROM = "made-from.json"  # fingerprint of a stage, in the folder of its state
BUDGET = "budget.json"  # a budget's choice and its inputs
FINAL = "final"  # link to the last step of a complete run


def is_run(directory: Path) -> bool:
    """Return whether this is the directory of a run of any version of shrinkc."""
    try:
        return read_json(directory / RUN).get("format") == FORMAT
    except (OSError, ValueError):
        return False


def can_continue(directory: Path) -> bool:
    """Return whether this is a run, an incomplete run without run.json yet, or has partial files only."""
    if is_run(directory) or (directory / SOURCE / STEP).is_file():
        return True
    return all(path.name == LOCK or _is_partial(path.name) for path in directory.iterdir())


def foreign_files(out: Path) -> list[str]:
    """Return the files in the run ``out`` that shrinkc did not write, according to the records of its steps.

    All files of a step with a damaged record count as shrinkc's."""
    own = {RUN, RECIPE, TABLE, PICTURE, LOCK, BUDGET}
    own |= {name for name in REPORTS if is_report(out / name)}
    own |= {FINAL} if (out / FINAL).is_symlink() else set()
    try:
        written = SelfGenerated(out / SELF_GENERATED, SelfGeneratedSettings()).files()
    except BadStep:  # its record is damaged
        written = [path.name for path in (out / SELF_GENERATED).iterdir()]
    steps: dict[str, set[str] | None] = {}
    found = []
    for name in all_files(out):
        top, _, rest = name.partition("/")
        if (not rest and top in own) or top in (LOGS, SCRATCH) or _is_partial(top):
            continue
        if top == SELF_GENERATED and (rest in written or _is_partial(rest)):
            continue
        if rest and is_step(top) and (out / top / STEP).is_file():
            if top not in steps:
                steps[top] = _recorded(out / top)
            known = steps[top]
            if known is None or rest in known:
                continue
        found.append(name)
    return found


def _recorded(step: Path) -> set[str] | None:
    try:
        return {STEP, CARD, *read_json(step / STEP)["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def link_final(out: Path, step: str) -> Path:
    """Make ``out``/final a link to a step, atomically, and return it; without links, return the step itself."""
    link, made = out / FINAL, out / f".{FINAL}.partial"
    if link.exists() and not link.is_symlink():
        return out / step  # not ours
    try:
        made.unlink(missing_ok=True)
        made.symlink_to(step, target_is_directory=True)
        os.replace(made, link)
    except OSError:  # a file system or a user without links
        return out / step
    return link


def step_name(number: int, stage: str) -> str:
    """Return the name of the directory of a step; ``number`` counts stages from 1."""
    return f"{number:02d}-{stage}"


def saved_state_bytes(out: Path, step: str) -> int:
    """Return the bytes of the saved state of an interrupted step."""
    found = (out / SCRATCH / step).rglob("*")
    return sum(file.stat().st_size for file in found if file.is_file())


def is_step(name: str) -> bool:
    return name[:2].isdigit() and name[2:3] == "-"


def _is_partial(name: str) -> bool:
    return name.startswith(".") and name.endswith(".partial")


def state_folder(out: Path, step: str, expected: Fingerprint) -> Path:
    """Return the folder for a step's state, with the state of the same interrupted step or empty."""
    folder = out / SCRATCH / step
    if not check_state(out, step, expected):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_json(folder / MADE_FROM, expected)
    remove_partials(folder)
    return folder


def check_state(out: Path, step: str, expected: Fingerprint) -> bool:
    """Return whether an interrupted step has saved state; raise RunChanged if its fingerprint differs."""
    folder = out / SCRATCH / step
    if not (folder / MADE_FROM).exists():
        return False
    check_unchanged(
        f"{out}: step {step} was interrupted, and began from something else",
        read_json(folder / MADE_FROM),
        expected,
        f"change that back to go on, or delete {folder} to begin that step again.",
    )
    return True


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Lock ``out`` within the context.  Raises OutputError if another process has locked it."""
    made = make_folder(out)
    with os.fdopen(_lock(out), "ab"):
        try:
            yield
        finally:
            # while the lock is held, so that no other process sees a part of the directory
            if made and not is_run(out):  # refused before the run wrote anything
                shutil.rmtree(out.resolve(), ignore_errors=True)
                remove_folders(made)
            else:
                (out / LOCK).unlink(missing_ok=True)


def _lock(out: Path) -> int:
    """Return the descriptor of the locked file; closing it releases the lock."""
    while True:
        make_folder(out)
        try:
            return locked_file(
                out / LOCK, f"another shrinkc is working on {out}.",
                "wait for it, or choose another directory.",
            )  # fmt: skip
        except OutputError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
        # the process with the lock has just removed the directory


def clear(out: Path) -> None:
    """Delete the content of a run except run.json, so that the directory still counts as a run."""
    for path in out.iterdir():
        if path.name in (LOCK, RUN):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
