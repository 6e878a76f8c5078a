"""Output files and directories that appear completely or not at all."""

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
"""Returns the files of a directory that shrinkc did not make or that were changed; None if shrinkc did not make
the directory."""

_ERRNO = re.compile(r"\[Errno (\d+)\]")
_RUST = re.compile(r"\(os error (\d+)\)")  # in messages of safetensors and tokenizers
_FULL = (errno.ENOSPC, errno.EDQUOT)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_TRIAL = 4096  # bytes: a full file system accepts an empty file, but not a block
_SHOWN = 5  # names in a message


# ---- directories ----


@contextmanager
def new_directory(
    out: Path, *, force: bool = False, foreign: Foreign | None = None
) -> Iterator[Path]:
    """Yield a temporary directory next to ``out``, which becomes ``out`` at the end.

    If an exception (or interrupt) leaves the context, ``out`` is unchanged and nothing else remains.  An existing
    directory that is not empty is replaced only with ``force``, and only if ``foreign`` finds no files in it.  An
    OSError, also one hidden in a library's error, becomes an OutputError that names ``out``.
    """
    out = Path(os.path.abspath(out))
    if out.is_symlink():
        out = out.resolve()  # replaces a link's target and keeps the link
    _check_in_the_way(out, force=force, foreign=foreign)
    partial = _beside(out)
    made = make_folder(out.parent)
    finished = False
    try:
        partial.mkdir()
        yield partial
        _move_into_place(partial, out, partial.with_suffix(".old"))
        finished = True
    except OutputError as error:
        # names a file in the temporary directory, which the user does not know
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
    """Raise OutputError if :func:`new_directory` would refuse ``out`` or cannot write next to it.  Call it before long
    work."""
    _check_in_the_way(out, force=force, foreign=foreign)
    if os.path.ismount(out):
        raise OutputError(
            f"{out} is a mount point, which cannot be replaced.",
            "choose a directory inside of it.",
        )
    real = Path(os.path.realpath(out))
    _try(real.parent, real.name, out)


def check_folder(out: Path, made_here: Callable[[Path], bool]) -> None:
    """Raise OutputError unless work can begin or continue in ``out`` and files can be written there."""
    _check_in_the_way(out, force=True, foreign=lambda path: [] if made_here(path) else None)
    try_folder(out)


def try_folder(out: Path) -> None:
    """Raise OutputError unless a file can be written in ``out``, or ``out`` can be made."""
    real = Path(os.path.realpath(out))
    _try(real, real.name, out)


def make_folder(out: Path) -> list[Path]:
    """Make ``out`` and the folders above it; return the new ones, outermost first.

    Raises OutputError if that fails; then no new folder remains.
    """
    missing = []
    folder = Path(os.path.realpath(out))  # mkdir refuses a dangling link
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
    """Undo :func:`make_folder`, except for folders that are not empty."""
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
    """Raise OutputError if ``others``, the files in ``out`` that are not shrinkc's, is not empty."""
    if others:
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        raise OutputError(
            f"{out} contains files that shrinkc did not create, or that were changed since: "
            f"{', '.join(others[:_SHOWN])}{more}.",
            "--force would delete them: move them away, or choose another output directory.",
        )


def _move_into_place(partial: Path, out: Path, aside: Path) -> None:
    """Rename the old directory to ``aside``, then ``partial`` to ``out``; restore the old one if that fails."""
    if not out.exists():
        partial.rename(out)
        return
    try:
        # inside the try: an interrupt between the renames must also restore the old directory
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
    """Yield a temporary file, which becomes ``out`` at the end.

    A regular file (or the target of a link) is replaced as a whole and keeps its permissions; it is unchanged
    if an exception leaves the context.  Outputs that cannot be replaced are written directly: a pipe, a
    character device, an open descriptor such as /dev/stdout.  An OSError becomes an OutputError that names
    ``out``.
    """
    partial = None
    try:
        number = _descriptor(out)
        target = None if number is not None else _replaced(out)
        if target is None:
            # duplicate the descriptor: a file that is opened again would be overwritten from its beginning
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
        # torch raises its own error while handling the file's
        reason = _of_the_system(error) or _of_the_system(error.__context__)
        if reason is None:
            raise
        raise output_error(out, reason) from error
    finally:
        if partial is not None:
            with suppress(OSError):
                partial.unlink()


def write_file(out: Path, text: str) -> None:
    """Write ``text`` in UTF-8 with :func:`new_file`."""
    with new_file(out) as file:
        file.write(text.encode("utf-8"))


def check_file(out: Path) -> Path | None:
    """Return the regular file that :func:`new_file` replaces or makes; None for an output written directly.

    Raises OutputError if ``out`` evidently cannot be written.  Call it before long work.
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
    """Return the regular file that ``out`` is, links to or becomes; None for an output written directly.

    Raises OutputError if ``out`` cannot be an output, or OSError.
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
    if not os.access(out, os.W_OK):  # the directory's permissions could still allow replacing it
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return real if stat.S_ISREG(mode) else None


def _descriptor(out: Path) -> int | None:
    """Return the descriptor that ``out`` names, as /dev/stdout does, or None."""
    own = os.path.realpath("/proc/self/fd")
    path = str(out)
    for _ in range(40):  # a limit for circular links; opening them reports the error
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
    """Open a file for appending, make it if needed, and lock it; closing it releases the lock.

    Raises OutputError with the message ``taken`` if another process holds the lock.
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
        # the previous holder has deleted the file: try again with a new one


# ---- both ----


def output_error(out: Path, error: OSError) -> OutputError:
    """Return an OutputError with the system's reason why ``out`` cannot be written, and a hint."""
    number, reason = error.errno, error.strerror or str(error)
    if isinstance(error, shutil.Error):  # raised by copytree: a list of texts, one per file
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
    """Return ``error`` if it is an OSError, or the OSError named in the message of a Rust library."""
    if isinstance(error, OSError):
        return error
    found = _RUST.search(str(error))
    if found is None:
        return None
    number = int(found[1])
    return OSError(number, os.strerror(number))


def _beside(path: Path) -> Path:
    """Return an unused name next to ``path``."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def _is_there(path: Path) -> bool:
    """Return whether ``path`` exists.  Raises OSError if it is impossible, such as a path below a file
    (Path.exists() returns False or raises, depending on the Python version)."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True


def _try(folder: Path, name: str, out: Path) -> None:
    """Raise OutputError about ``out`` unless a file with a name like ``name`` can be written in ``folder``,
    or in its nearest existing parent."""
    names = [name]
    try:
        while not _is_there(folder):
            names.append(folder.name)
            folder = folder.parent
        for part in names:
            _is_there(folder / part)  # raises if the name is too long or ``folder`` is a file
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
