"""Compilers with ccache in front of them, since tests build hundreds of programs of the same sources.

Two programs differ in their generated headers, so most of their files come out of the preprocessor
alike.  The cache begins empty and ends with the run, so that no result of one run can decide another.
"""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from pathlib import Path

COMPILERS = ("cc", "gcc", "riscv64-unknown-elf-gcc")
_NAME = "shrinkc-ccache-"


def put_in_front() -> Path | None:
    """Makes PATH of this process and its children begin with a new folder of compilers that ask a
    new cache first; the folder, which the caller removes.  None, and nothing is changed, without ccache
    or where it has been done: by the process that started this one.
    """
    ccache, path = shutil.which("ccache"), os.environ.get("PATH", "")
    if ccache is None or _NAME in path:
        return None
    folder = Path(tempfile.mkdtemp(prefix=_NAME))
    tools = folder / "bin"
    tools.mkdir()
    for name in COMPILERS:
        compiler = _behind(name, Path(ccache).resolve(), path)
        if compiler is None:
            continue
        # with full names, and no link that ccache knows by its name: some tests have a PATH of their own
        (tools / name).write_text(
            f'#!/bin/sh\nexec {shlex.quote(ccache)} {shlex.quote(compiler)} "$@"\n'
        )
        (tools / name).chmod(0o755)
    os.environ["PATH"] = f"{tools}{os.pathsep}{path}"
    os.environ["CCACHE_DIR"] = str(folder / "cache")
    # programs lie in folders of their own and are compiled there, by relative paths: nothing of an
    # object hangs on the folder but the name of it that a debugger is told
    os.environ["CCACHE_NOHASHDIR"] = "1"
    return folder


def _behind(name: str, ccache: Path, path: str) -> str | None:
    """The first program of that name in ``path`` that is not ccache: some systems have links to it in front."""
    for folder in path.split(os.pathsep):
        found = shutil.which(name, path=folder)
        if found is not None and Path(found).resolve() != ccache:
            return found
    return None
