"""An output file or directory appears complete or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from shrinkc.core.errors import OutputError, ShrinkcError

Foreign = Callable[[Path], list[str] | None]
"""What of a directory is not shrinkc's: files that it did not make, or that were changed since; None
when it did not make the directory at all."""

_ERRNO = re.compile(r"\[Errno (\d+)\]")
_RUST = re.compile(r"\(os error (\d+)\)")  # how safetensors and tokenizers say it
_FULL = (errno.ENOSPC, errno.EDQUOT)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_TRIAL = 4096  # bytes: a full file system takes an empty file, but no block
_SHOWN = 5  # names in a message


# ---- directories ----


@contextmanager
def new_directory(
    out: Path, *, force: bool = False, foreign: Foreign | None = None
) -> Iterator[Path]:
    """Yields a directory beside ``out`` to write into, which becomes ``out`` at the end.

    Whatever leaves the context by an exception, an interrupt included, leaves ``out`` as it was
    and nothing else behind.  A directory that holds something is replaced only with ``force``, and
    only if all of it is shrinkc's by ``foreign``; without that, never.  An OSError becomes an
    OutputError that names ``out``, and so does what a library makes of one.
    """
    out = Path(os.path.abspath(out))
    if out.is_symlink():
        out = out.resolve()  # what the link points to is replaced, the link stays
    _check_in_the_way(out, force=force, foreign=foreign)
    partial = _beside(out)
    made = make_folder(out.parent)
    finished = False
    try:
        partial.mkdir()
        yield partial
        _move_into_place(partial, out, partial.with_suffix(".old"))
        finished = True
    except OutputError as error:  # of a file in it: that name means nothing to the user
        message, hint = (
            text and text.replace(str(partial), str(out)) for text in (error.message, error.hint)
        )
        raise OutputError(message or "", hint) from error
    except ShrinkcError:
        raise
    except Exception as error:
        reason = _of_the_system(error)
        if reason is None:
            raise
        raise output_error(out, reason) from error
    finally:
        if not finished:
            shutil.rmtree(partial, ignore_errors=True)
            remove_folders(made)


def check_directory(out: Path, *, force: bool = False, foreign: Foreign | None = None) -> None:
    """OutputError when :func:`new_directory` would refuse ``out``, or nothing can be written beside
    it: to be asked before the long work."""
    _check_in_the_way(out, force=force, foreign=foreign)
    if os.path.ismount(out):
        raise OutputError(
            f"{out} is a mount point, which cannot be replaced.",
            "choose a directory inside of it.",
        )
    real = Path(os.path.realpath(out))
    _try(real.parent, real.name, out)


def check_folder(out: Path, made_here: Callable[[Path], bool]) -> None:
    """OutputError when ``out`` is no folder to work or to go on in, or nothing can be written in it."""
    _check_in_the_way(out, force=True, foreign=lambda path: [] if made_here(path) else None)
    try_folder(out)


def try_folder(out: Path) -> None:
    """OutputError unless a file can be written in ``out``, or where that would be made."""
    real = Path(os.path.realpath(out))
    _try(real, real.name, out)


def make_folder(out: Path) -> list[Path]:
    """Makes ``out`` and the folders above it; returns what had to be made, outermost first.

    OutputError when that fails; then nothing is left.
    """
    missing = []
    folder = Path(os.path.realpath(out))  # mkdir takes a link that leads nowhere for a file
    made: list[Path] = []
    try:
        while not _is_there(folder):
            missing.append(folder)
            folder = folder.parent
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        for path in reversed(missing):
            with suppress(FileExistsError):
                path.mkdir()
                made.append(path)
    except OSError as error:
        remove_folders(made)
        raise output_error(out, error) from error
    return made


def remove_folders(made: list[Path]) -> None:
    """Undoes :func:`make_folder`, as far as nobody else uses them by now."""
    for folder in reversed(made):
        with suppress(OSError):
            folder.rmdir()


def _check_in_the_way(out: Path, *, force: bool, foreign: Foreign | None) -> None:
    try:
        if not _is_there(out):
            return
        if not out.is_dir():
            raise OutputError(
                f"{out} exists and is not a directory.", "choose another output directory."
            )
        if next(out.iterdir(), None) is None:
            return
        others = foreign(out) if foreign is not None else None
    except OSError as error:
        raise output_error(out, error) from error
    if others is None:
        whose = "" if foreign is None else " and was not created by shrinkc"
        raise OutputError(
            f"{out} is not empty{whose}.",
            "choose another output directory, or empty this one first.",
        )
    if not force:
        raise OutputError(
            f"{out} exists already.",
            "add --force to replace it, or choose another output directory.",
        )
    refuse_to_delete(out, others)


def refuse_to_delete(out: Path, others: list[str]) -> None:
    """OutputError when there are ``others``, files in ``out`` that are not shrinkc's."""
    if others:
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        raise OutputError(
            f"{out} contains files that shrinkc did not create, or that were changed since: "
            f"{', '.join(others[:_SHOWN])}{more}.",
            "--force would delete them: move them away, or choose another output directory.",
        )


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


# ---- files ----


@contextmanager
def new_file(out: Path) -> Iterator[BinaryIO]:
    """Yields a file to write into, which becomes ``out`` at the end.

    A regular file, or the one that a link leads to, is replaced as a whole and keeps its rights;
    whatever leaves the context by an exception leaves it as it was.  What cannot be replaced is
    written as it comes: a pipe, a character device, an open descriptor such as /dev/stdout.  An
    OSError becomes an OutputError that names ``out``.
    """
    partial = None
    try:
        number = _descriptor(out)
        target = None if number is not None else _replaced(out)
        if target is None:
            # a copy of the descriptor: opened anew, a file would be written from its beginning
            with open(out if number is None else os.dup(number), "wb") as file:
                yield file
            return
        partial = _beside(target)
        with partial.open("xb") as file:
            yield file
        with suppress(FileNotFoundError):
            shutil.copymode(target, partial)
        os.replace(partial, target)
    except ShrinkcError:
        raise
    except Exception as error:
        # torch hides what the file said behind an error of its own
        reason = _of_the_system(error) or _of_the_system(error.__context__)
        if reason is None:
            raise
        raise output_error(out, reason) from error
    finally:
        if partial is not None:
            with suppress(OSError):
                partial.unlink()


def write_file(out: Path, text: str) -> None:
    """Writes ``text`` in UTF-8 as :func:`new_file` does."""
    with new_file(out) as file:
        file.write(text.encode("utf-8"))


def check_file(out: Path) -> Path | None:
    """The regular file that :func:`new_file` replaces or makes; None for what it writes as it comes.

    OutputError when it could not write ``out``, as far as that can be known: to be asked before the long work.
    """
    try:
        number = _descriptor(out)
        if number is not None:
            os.write(number, b"")
            return None
        target = _replaced(out)
    except OSError as error:
        raise output_error(out, error) from error
    if target is not None:
        if not target.parent.exists():
            raise OutputError(
                f"{target.parent} does not exist.", "create it, or choose another directory."
            )
        _try(target.parent, target.name, out)
    return target


def _replaced(out: Path) -> Path | None:
    """The regular file that ``out`` is, leads to or becomes; None for what is written as it comes.

    OutputError for what is no output at all; OSError.
    """
    real = Path(os.path.realpath(out))
    try:
        mode = out.stat().st_mode
    except FileNotFoundError:
        return real
    if stat.S_ISDIR(mode):
        raise OutputError(f"{out} is a directory.", "give the name of a file.")
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)):
        kind = "a block device" if stat.S_ISBLK(mode) else "a socket"
        raise OutputError(f"{out} is {kind}.", "give the name of a file.")
    if not os.access(out, os.W_OK):  # a directory's rights would let us replace it all the same
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return real if stat.S_ISREG(mode) else None


def _descriptor(out: Path) -> int | None:
    """The number of this process's open file that ``out`` is a name of, as /dev/stdout is."""
    own = os.path.realpath("/proc/self/fd")
    path = str(out)
    for _ in range(40):  # links that lead in circles are somebody else's error
        folder, name = os.path.split(path)
        folder = os.path.realpath(folder)
        if folder == own and name.isdecimal():
            return int(name)
        path = os.path.join(folder, name)
        if not os.path.islink(path):
            return None
        path = os.path.join(folder, os.readlink(path))
    return None


def locked_file(path: Path, taken: str, hint: str) -> int:
    """The file, open for appending, made where there is none; whoever closes it gives up the lock.

    OutputError that says ``taken`` while another process has it.
    """
    while True:
        with ExitStack() as undo:
            try:
                file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
                undo.callback(os.close, file)
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not stat.S_ISREG(os.fstat(file).st_mode):
                    raise OutputError(f"{path} is not a regular file.", "give the name of a file.")
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(file), path.stat()):
                        undo.pop_all()
                        return file
            except BlockingIOError as error:
                raise OutputError(taken, hint) from error
            except OSError as error:
                raise output_error(path, error) from error
        # closed: the one that had it has deleted it


# ---- both ----


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
        hint = "a part of the path is a file; choose another output."
    elif number == errno.ENAMETOOLONG:
        hint = "choose a shorter name."
    else:
        hint = "check the path and the file system it is on."
    return OutputError(f"{out} cannot be written: {reason}.", hint)


def _of_the_system(error: BaseException | None) -> OSError | None:
    """The OSError that ``error`` is, or that a library written in Rust made a text of."""
    if isinstance(error, OSError):
        return error
    found = _RUST.search(str(error))
    if found is None:
        return None
    number = int(found[1])
    return OSError(number, os.strerror(number))


def _beside(path: Path) -> Path:
    """A name beside ``path`` that nobody else has."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def _is_there(path: Path) -> bool:
    """Whether there is something.  OSError when it is not possible that there is, such as below a
    file (Path.exists() says no, or raises, as its version of Python has it)."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True


def _try(folder: Path, name: str, out: Path) -> None:
    """OutputError about ``out`` unless a file of about that ``name`` can be written in ``folder``,
    or in the nearest one above it that is there."""
    names = [name]
    try:
        while not _is_there(folder):
            names.append(folder.name)
            folder = folder.parent
        for part in names:
            _is_there(folder / part)  # too long, or ``folder`` is a file
        test = _beside(folder / name)
        try:
            with test.open("xb") as file:
                file.write(bytes(_TRIAL))
                file.flush()
                os.fsync(file.fileno())
        finally:
            test.unlink(missing_ok=True)
    except OSError as error:
        raise output_error(out, error) from error
