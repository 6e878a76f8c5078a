"""An output directory appears complete or not at all."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shrinkc.core.errors import OutputError

_ERRNO = re.compile(r"\[Errno (\d+)\]")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def new_directory(out: Path, *, force: bool, replaceable: Callable[[Path], bool]) -> Iterator[Path]:
    """Yields a directory beside ``out`` to write into, which becomes ``out`` at the end.

    Whatever leaves the context by an exception, an interrupt included, leaves ``out`` as it was
    and nothing else behind.  A directory that holds something is replaced only with ``force``, and
    only if it is ``replaceable``.  An OSError becomes an OutputError that names the path.
    """
    out = Path(os.path.abspath(out))
    if out.is_symlink():
        out = out.resolve()  # what the link points to is replaced, the link stays
    check_replaceable(out, force=force, replaceable=replaceable)
    tag = secrets.token_hex(4)
    partial = out.parent / f".{out.name}.{tag}.partial"
    try:
        made = _make_parents(out.parent)
    except OSError as error:
        raise output_error(out, error) from error
    finished = False
    try:
        partial.mkdir()
        yield partial
        _move_into_place(partial, out, out.parent / f".{out.name}.{tag}.old")
        finished = True
    except OSError as error:
        raise output_error(out, error) from error
    finally:
        if not finished:
            shutil.rmtree(partial, ignore_errors=True)
            for folder in reversed(made):
                with suppress(OSError):  # somebody else may use it by now
                    folder.rmdir()


def check_replaceable(out: Path, *, force: bool, replaceable: Callable[[Path], bool]) -> None:
    """OutputError when ``out`` is in the way: to be asked before the long work."""
    if not out.exists():
        return
    if not out.is_dir():
        raise OutputError(
            f"{out} exists and is not a directory.", "choose another output directory."
        )
    try:
        empty = next(out.iterdir(), None) is None
    except OSError as error:
        raise output_error(out, error) from error
    if empty:
        return
    if not replaceable(out):
        raise OutputError(
            f"{out} is not empty and was not made by shrinkc.",
            "choose another output directory, or empty this one yourself.",
        )
    if not force:
        raise OutputError(
            f"{out} exists already.", "--force replaces it, or choose another output directory."
        )


def output_error(out: Path, error: OSError) -> OutputError:
    """What the operating system said about writing ``out``, and what to do about it."""
    number, reason = error.errno, error.strerror or str(error)
    if isinstance(error, shutil.Error):  # of copytree: a list of texts, one per file
        numbers = [int(n) for n in _ERRNO.findall(reason)]
        number = numbers[0] if numbers else None
        reason = os.strerror(number) if number is not None else reason
    if number in _FULL:
        hint = f"free some space on the file system of {out.parent}, or choose another one."
    elif number in _DENIED:
        hint = f"choose a directory that you may write to, or change the rights of {out.parent}."
    elif number in (errno.ENOTDIR, errno.EEXIST):
        hint = "a part of the path is a file; choose another output directory."
    else:
        hint = "check the path and the file system it is on."
    return OutputError(f"{out} cannot be written: {reason}.", hint)


def _make_parents(folder: Path) -> list[Path]:
    """Makes ``folder``; returns what had to be made, outermost first."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    made: list[Path] = []
    for path in reversed(missing):
        try:
            path.mkdir()
        except FileExistsError:
            continue
        except OSError:
            for other in reversed(made):
                with suppress(OSError):
                    other.rmdir()
            raise
        made.append(path)
    return made


def _move_into_place(partial: Path, out: Path, aside: Path) -> None:
    """The old directory is put aside first and comes back if the new one cannot take its place."""
    if not out.exists():
        partial.rename(out)
        return
    try:
        # inside the try: an interrupt between the two renames must bring the old one back too
        out.rename(aside)
        partial.rename(out)
    except BaseException:
        if aside.exists() and not out.exists():
            aside.rename(out)
        raise
    finally:
        if out.exists():
            shutil.rmtree(aside, ignore_errors=True)
