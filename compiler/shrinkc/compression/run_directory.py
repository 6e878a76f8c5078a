"""The directory of a compression run: names in it, what in it is a run's own, and that one process has it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shrinkc.compression.self_generated import FOLDER as SELF_GENERATED
from shrinkc.compression.self_generated import SelfGenerated, SelfGeneratedSettings
from shrinkc.compression.steps import STEP, check_unchanged, read_json, remove_partials, write_json
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
MADE_FROM = "made-from.json"  # beside a stage's state: the fingerprint of that stage
CHOSEN = "budget.json"  # what a budget chose, and from what


def is_run(directory: Path) -> bool:
    """Whether shrinkc made this directory as a run, in any version."""
    try:
        return read_json(directory / RUN).get("format") == FORMAT
    except (OSError, ValueError):
        return False


def begun(directory: Path) -> bool:
    """Whether this is a run, or what an attempt left or has so far that came to none yet."""
    if is_run(directory) or (directory / SOURCE / STEP).is_file():
        return True
    return all(path.name == LOCK or _is_partial(path.name) for path in directory.iterdir())


def foreign_files(out: Path) -> list[str]:
    """Files in the run ``out`` that no attempt made, by the records of its steps.  A step whose
    record is damaged is taken for made here."""
    own = {RUN, RECIPE, TABLE, PICTURE, LOCK, CHOSEN}
    own |= {name for name in REPORTS if is_report(out / name)}
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
        return {STEP, *read_json(step / STEP)["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def step_name(number: int, stage: str) -> str:
    """Of the directory of the stage of that name, counted from 1."""
    return f"{number:02d}-{stage}"


def kept_of(out: Path, step: str) -> int:
    """Bytes of what an interrupted attempt at a step has left to go on from."""
    found = (out / SCRATCH / step).rglob("*")
    return sum(file.stat().st_size for file in found if file.is_file())


def is_step(name: str) -> bool:
    return name[:2].isdigit() and name[2:3] == "-"


def _is_partial(name: str) -> bool:
    return name.startswith(".") and name.endswith(".partial")


def state_of(out: Path, step: str, expected: Fingerprint) -> Path:
    """The folder for a step's state, from this very step or empty."""
    folder = out / SCRATCH / step
    if not check_state(out, step, expected):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_json(folder / MADE_FROM, expected)
    remove_partials(folder)
    return folder


def check_state(out: Path, step: str, expected: Fingerprint) -> bool:
    """Whether an interrupted attempt left state; RunChanged when that is from something else."""
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
    """OutputError while another process works on ``out``."""
    made = make_folder(out)
    with os.fdopen(_lock(out), "ab"):
        try:
            yield
        finally:
            # while the lock is held: whoever comes next finds all of it or nothing
            if made and not is_run(out):  # refused before anything was made
                shutil.rmtree(out.resolve(), ignore_errors=True)
                remove_folders(made)
            else:
                (out / LOCK).unlink(missing_ok=True)


def _lock(out: Path) -> int:
    """The locked file; whoever closes it gives up the lock."""
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
        # the one that had it removed all of it just then


def clear(out: Path) -> None:
    """Removes what is in a run; it stays one, so that the next attempt may go on."""
    for path in out.iterdir():
        if path.name in (LOCK, RUN):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
