"""One mutated input, made and read in a child process of its own with little memory and time.

The child is forked from a process that has everything imported, so that a trial takes milliseconds, and
the input's seed decides everything: what is read, how it is changed, and how it is read.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from shrinkc.cli.main import run_cli
from shrinkc.compression.recipe import load_recipe, parse_toml
from shrinkc.compression.run_directory import foreign_files
from shrinkc.compression.steps import STEP, read_step
from shrinkc.core.artifact import changed_files, is_artifact, read_manifest
from shrinkc.core.errors import ShrinkcError
from shrinkc.importer import open_checkpoint

from .subjects import Action, Subject

SECONDS = 30  # of the clock: other work may be going on
CPU_SECONDS = 10
MEMORY = 1 << 30  # bytes beyond what the process has before the trial
FILE = 64 << 20  # bytes of a file that is written
DEFECT = 70


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.  ``code``: the exit code, or minus the signal that ended it.  ``escape``: what
    must not happen, empty where nothing did.  ``said``: the end of stderr.  ``steps``: how the input was
    made."""

    code: int
    escape: str
    said: str
    action: Action
    steps: tuple[str, ...]
    cpu: float
    memory: int

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def try_input(
    subject: Subject, bases: Path, seed: str, work: Path, without: frozenset[int] = frozenset()
) -> Outcome:
    """The trial of ``seed``; ``bases``: what ``subject.make`` wrote.  ``without``: numbers of mutations
    that are left out, to find out which it takes.  The folder ``work`` is made, and removed."""
    work.mkdir(parents=True)
    report, end = os.pipe()
    child = os.fork()
    if not child:
        os.close(report)
        try:
            _child(subject, bases, seed, work, without, end)
        except BaseException:
            os.write(
                end, json.dumps({"escape": f"fuzzer: {traceback.format_exc()[-600:]}"}).encode()
            )
        finally:
            os._exit(0)
    os.close(end)
    watch = os.pidfd_open(child)
    late = not select.select([watch], [], [], SECONDS)[0]
    if late:
        os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    os.close(watch)
    with open(report, "rb") as pipe:
        text = pipe.read()
    said = (work / "err").read_text(errors="replace") if (work / "err").is_file() else ""
    shutil.rmtree(work, ignore_errors=True)
    found = json.loads(text) if text else {}
    code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else found.get("code", DEFECT)
    cpu = usage.ru_utime + usage.ru_stime
    escape = found.get("escape", "the process died without a word")
    if os.WIFSIGNALED(status):
        escape = f"took more than {SECONDS} s" if late else f"ended by signal {os.WTERMSIG(status)}"
    elif not escape and cpu > CPU_SECONDS:
        escape = f"took {cpu:.0f} s of CPU"
    return Outcome(
        code, escape, said[-1500:], tuple(found.get("action", ())), tuple(found.get("steps", ())),
        round(cpu, 3), usage.ru_maxrss,
    )  # fmt: skip


def make_input(
    subject: Subject, bases: Path, seed: str, place: Path, without: frozenset[int] = frozenset()
) -> tuple[Path, Action, list[str]]:
    """Writes the input of ``seed`` to ``place``; returns the unchanged one, what reads it, and what was
    done to it."""
    rng = Random(seed)
    base = rng.choice(sorted(p for p in bases.iterdir() if p.is_dir()))
    action = rng.choice(subject.actions)
    sealed = subject.seal is not None and rng.random() < 0.7
    count = rng.choice((1, 1, 1, 2, 2, 3, 5))
    for path in base.rglob("*"):
        if path.is_dir():
            (place / path.relative_to(base)).mkdir(parents=True)
    place.mkdir(exist_ok=True)
    for path in base.rglob("*"):
        if path.is_file():
            _link(path, place / path.relative_to(base))
    names = [n for n in subject.changeable(base) if subject.mutators(n)]
    done = []
    for number in range(count):
        draw = Random(f"{seed}/{number}")
        name = draw.choice(names)
        if number not in without:
            done.append(f"{name}: {_mutate(draw, subject, place / name, names)}")
    if sealed and subject.seal is not None:
        try:
            subject.seal(place)
            done.append("hashes of its files are up to date")
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            done.append("its hashes cannot be brought up to date")
    return base, action, done


def _link(path: Path, place: Path) -> None:
    try:
        os.link(path, place)
    except OSError:  # on another disk
        shutil.copy2(path, place)


def _mutate(rng: Random, subject: Subject, path: Path, names: list[str]) -> str:
    """Changes the file, which is a link to the valid one, by replacing it."""
    if rng.random() < 0.04:
        return _instead(rng, path)
    if not path.is_file():
        return "is no file any more"
    data, said = rng.choice(subject.mutators(next(n for n in names if path.match(n))))(
        rng, path.read_bytes()
    )
    path.unlink()
    path.write_bytes(data)
    return said


def _instead(rng: Random, path: Path) -> str:
    """Something else in the place of a file."""
    how = rng.choice(("missing", "a folder", "a link to nothing", "a link to itself"))
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    if how == "a folder":
        path.mkdir()
    elif how != "missing":
        path.symlink_to(path if how.endswith("itself") else path.parent / "nothing")
    return how


# ---- in the child ----


def _child(
    subject: Subject, bases: Path, seed: str, work: Path, without: frozenset[int], end: int
) -> None:
    gc.freeze()  # what the parent has left open is not the trial's to warn of
    made, out, scratch = work / "in", work / "out", work / "tmp"
    scratch.mkdir()
    base, action, steps = make_input(subject, bases, seed, made, without)
    before = _listing(made)
    _redirect(work)
    warnings.resetwarnings()
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.showwarning = _warned
    tempfile.tempdir = str(scratch)
    os.environ.update(TMPDIR=str(scratch), COLUMNS="100")
    _limit()
    words = [w.format(**{"in": made, "good": base, "out": out}) for w in action]
    code, escape = _run(words)
    sys.stdout.flush()
    sys.stderr.flush()
    said = (work / "err").read_text(errors="replace")
    escape = escape or _wrong(subject, code, said)
    escape = escape or _left_behind(code, work, before)
    about = {
        "code": code,
        "escape": escape[:1000],
        "action": action,
        "steps": [s[:300] for s in steps],
    }
    os.write(end, json.dumps(about).encode())


def _redirect(work: Path) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for name, number in (("out", 1), ("err", 2)):
        file = os.open(
            work / f"{name}.txt" if name == "out" else work / name, os.O_CREAT | os.O_WRONLY
        )
        os.dup2(file, number)
        os.close(file)
    os.dup2(null, 0)
    sys.stdout = open(1, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115


def _warned(message: object, category: type, *where: object) -> None:
    print(f"{category.__name__}: {message} at {where[:2]}", file=sys.stderr)


def _limit() -> None:
    has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (has + MEMORY, has + MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE, FILE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _run(words: list[str]) -> tuple[int, str]:
    """Exit code, and what escaped."""
    try:
        if not words[0].startswith("py:"):
            return run_cli(words), ""
        try:
            CALLS[words[0]](Path(words[1]))
        except ShrinkcError as refusal:
            print(f"shrinkc: {refusal}", file=sys.stderr)
            return refusal.exit_code, ""
        return 0, ""
    except BaseException as error:
        traceback.print_exc()
        return DEFECT, f"{type(error).__name__}: {error}"


def _wrong(subject: Subject, code: int, said: str) -> str:
    if code not in subject.codes:
        return f"exit code {code}: {' '.join(said.split())[-300:]}"
    for word in ("Traceback (most recent", "Warning:", "panicked at", "Exception ignored"):
        if word in said:
            return f"{word!r} on stderr"
    if code not in (0, 64) and "shrinkc: " not in said:  # 64: what differs is on stdout
        return f"exit code {code} without a reason"
    return ""


def _left_behind(code: int, work: Path, before: dict[str, tuple[int, int]]) -> str:
    if _listing(work / "in") != before:
        return "the input was changed"
    if left := os.listdir(work / "tmp"):
        return f"left behind: {left}"
    others = set(os.listdir(work)) - {"in", "tmp", "err", "out.txt"}
    if others - {"out", "out.html", "out.json"} or (code and others):
        return f"half-written: {sorted(others)}"
    out = work / "out"
    if is_artifact(out) and changed_files(out, read_manifest(out)):
        return "a compiled directory that is not as its manifest says"
    return ""


def _listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file, build results aside."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name, about = path.relative_to(folder).as_posix(), path.lstat()
        if not path.is_dir() and "/build/" not in name:
            found[name] = (about.st_size, about.st_mtime_ns)
    return found


def _load(path: Path) -> None:
    open_checkpoint(path).load()


def _encode(path: Path) -> None:
    tokenizer = open_checkpoint(path, whole=True).tokenizer
    assert tokenizer is not None, "a whole checkpoint has one"
    ids = tokenizer.encode("the <s> llama\x00 \U0001f999 eats")
    tokenizer.decode(ids)
    tokenizer.decode_table()
    if tokenizer.chat is not None:
        tokenizer.encode_chat("Hello {{ x }}")
    tokenizer.encode_table()


def _recipe(path: Path) -> None:
    recipe = load_recipe(str(path))
    parse_toml(recipe.to_toml())


def _steps(path: Path) -> None:
    foreign_files(path)
    for step in sorted(path.glob(f"*/{STEP}")):
        read_step(step.parent)


CALLS: dict[str, Callable[[Path], None]] = {
    "py:load": _load,
    "py:encode": _encode,
    "py:recipe": _recipe,
    "py:steps": _steps,
}
