"""Outputs: whole or not at all, whatever kind of thing is at their place already."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from shrinkc.core.errors import OutputError
from shrinkc.core.output import (
    check_directory,
    check_file,
    check_folder,
    make_folder,
    new_directory,
    new_file,
    remove_folders,
    try_folder,
    write_file,
)

needs_rights = pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")


@pytest.fixture
def terminal() -> Iterator[Path]:
    """A character device that any user may have."""
    try:
        master, slave = os.openpty()
    except OSError as error:
        pytest.skip(f"there are no pseudo-terminals here: {error.strerror}")
    yield Path(os.ttyname(slave))
    os.close(slave)
    os.close(master)


@pytest.fixture
def nobody() -> Iterator[None]:
    """Without root's rights: root would harm others if it replaced a device that is everybody's."""
    if os.geteuid() != 0:
        yield
        return
    with suppress(OSError):  # a root that may not become another user has no rights over devices
        os.seteuid(65534)
    yield
    os.seteuid(0)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder in which nothing but the test's own files may be left."""
    folder = tmp_path / "place"
    folder.mkdir()
    yield folder
    assert [p.name for p in folder.rglob("*") if "partial" in p.name] == []


# ---- files ----


def test_a_file_is_replaced_as_a_whole_and_keeps_its_rights(place: Path) -> None:
    out = place / "report.json"
    write_file(out, "ä")
    assert out.read_bytes() == "ä".encode()
    out.chmod(0o600)
    before = out.stat().st_ino
    with new_file(out) as file:
        file.write(b"new")
        assert out.read_text(encoding="utf-8") == "ä"
    assert out.read_text() == "new"
    assert stat.S_IMODE(out.stat().st_mode) == 0o600 and out.stat().st_ino != before


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, OutputError])
def test_what_fails_leaves_the_file_as_it_was(place: Path, error: type[BaseException]) -> None:
    out = place / "report.json"
    out.write_text("old")
    with pytest.raises(error), new_file(out) as file:
        file.write(b"half")
        raise error("stop")
    assert out.read_text() == "old"


def test_a_link_stays_and_its_file_is_written(place: Path) -> None:
    (place / "folder").mkdir()
    for name, content in (("there", "old"), ("not yet", None)):
        target = place / "folder" / name
        if content is not None:
            target.write_text(content)
        link = place / f"link to {name}"
        link.symlink_to(f"folder/{name}")
        check_file(link)
        write_file(link, "new")
        assert link.is_symlink() and target.read_text() == "new"


def test_links_in_circles(place: Path) -> None:
    (place / "a").symlink_to(place / "b")
    (place / "b").symlink_to(place / "a")
    for work in (check_file, lambda out: write_file(out, "x")):
        with pytest.raises(OutputError, match="symbolic links"):
            work(place / "a")
    assert (place / "a").is_symlink() and (place / "b").is_symlink()


def test_a_pipe_is_written_as_it_is(place: Path) -> None:
    out = place / "pipe"
    os.mkfifo(out)
    check_file(out)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(out.read_bytes()), daemon=True)
    reader.start()
    write_file(out, "report")
    reader.join(20)
    assert read == [b"report"] and stat.S_ISFIFO(out.lstat().st_mode)


def test_a_character_device_is_written_as_it_is(place: Path, terminal: Path) -> None:
    (place / "link").symlink_to(terminal)
    for name in (terminal, place / "link"):
        check_file(name)
        write_file(name, "report")
    assert stat.S_ISCHR(terminal.lstat().st_mode) and (place / "link").is_symlink()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_a_device_that_is_full(nobody: None) -> None:
    out = Path("/dev/full")
    with pytest.raises(OutputError, match="full cannot be written: No space left"):
        write_file(out, "report")
    assert stat.S_ISCHR(out.lstat().st_mode)


@pytest.mark.parametrize("by", ["name", "link"])
def test_an_open_descriptor(place: Path, by: str) -> None:
    """As /dev/stdout is one: what was written before stays, and what comes after follows."""
    with (place / "log").open("wb", buffering=0) as log:
        log.write(b"before ")
        out = Path(f"/proc/self/fd/{log.fileno()}")
        if by == "link":
            (place / "out").symlink_to(out)
            out = place / "out"
        check_file(out)
        write_file(out, "report ")
        log.write(b"after")
    assert (place / "log").read_text() == "before report after"
    assert by == "name" or (place / "out").is_symlink()


def test_a_descriptor_of_a_pipe_and_one_that_is_closed() -> None:
    reading, writing = os.pipe()
    try:
        write_file(Path(f"/proc/self/fd/{writing}"), "report")
        assert os.read(reading, 100) == b"report"
        for work in (check_file, lambda out: write_file(out, "x")):
            with pytest.raises(OutputError, match="Bad file descriptor"):
                work(Path(f"/proc/self/fd/{reading}"))
    finally:
        os.close(reading)
        os.close(writing)
    with pytest.raises(OutputError, match="Bad file descriptor"):
        check_file(Path(f"/proc/self/fd/{writing}"))


def test_what_is_no_place_for_a_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "folder").mkdir()
    (place / "file").write_text("mine")
    monkeypatch.chdir(place)  # a socket's name must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        for out, said in (
            (place / "folder", "is a directory"),
            (place / "socket", "is a socket"),
            (place / "file" / "below", "Not a directory.*a part of the path is a file"),
            (place / ("n" * 300), "too long.*shorter name"),
            (place / "no" / "where", "no does not exist"),
        ):
            with pytest.raises(OutputError, match=said):
                check_file(out)
            with pytest.raises(OutputError):
                write_file(out, "x")
        assert stat.S_ISSOCK((place / "socket").lstat().st_mode)
    assert (place / "file").read_text() == "mine" and list((place / "folder").iterdir()) == []


def test_a_block_device_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = place / "disk"
    try:
        os.mknod(out, stat.S_IFBLK | 0o666, os.makedev(7, 255))
    except PermissionError:  # most users may not: a file that says that it is one
        out.touch()
        real = Path.stat
        block = os.stat_result((stat.S_IFBLK | 0o666, *out.stat()[1:]))
        monkeypatch.setattr(
            Path, "stat", lambda path, **how: block if path == out else real(path, **how)
        )
    for work in (check_file, lambda path: write_file(path, "x")):
        with pytest.raises(OutputError, match="is a block device"):
            work(out)
    assert stat.S_ISBLK(out.stat().st_mode) and [p.name for p in place.iterdir()] == ["disk"]


@needs_rights
def test_files_without_rights(place: Path) -> None:
    (place / "mine").write_text("protected")
    (place / "mine").chmod(0o444)
    (place / "folder").mkdir(mode=0o555)
    for out in (place / "mine", place / "folder" / "report"):
        with pytest.raises(OutputError, match="Permission denied"):
            check_file(out)
    with pytest.raises(OutputError, match="Permission denied"):
        write_file(place / "mine", "x")
    assert (place / "mine").read_text() == "protected"


def test_a_full_disk_is_known_before_and_keeps_the_file(small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(8)
    (disk / "report").write_text("old")
    check_file(disk / "report")
    (disk / "much").write_bytes(bytes(4096))
    for work in (
        lambda: check_file(disk / "report"),
        lambda: check_directory(disk / "out"),
        lambda: try_folder(disk / "deep" / "out"),
        lambda: write_file(disk / "report", "new" * 5000),
    ):
        with pytest.raises(OutputError, match="No space left.*free some space"):
            work()
    assert (disk / "report").read_text() == "old"
    assert sorted(p.name for p in disk.iterdir()) == ["much", "report"]


def test_where_not_even_root_may_write() -> None:
    for work in (check_file, check_directory, try_folder):
        with pytest.raises(OutputError, match="/proc/shrinkc cannot be written"):
            work(Path("/proc/shrinkc"))


# ---- directories ----


def test_the_place_of_a_directory_is_tried_before(place: Path) -> None:
    (place / "file").write_text("mine")
    for out, said in (
        (place / "file" / "below" / "out", "Not a directory.*a part of the path is a file"),
        (place / ("n" * 300), "too long.*shorter name"),
        (place / ("n" * 300) / "out", "too long.*shorter name"),
        (place / "new" / ("n" * 300) / "out", "too long.*shorter name"),
        (place / "file", "is not a directory"),
    ):
        for work in (check_directory, lambda path: check_folder(path, lambda _: True)):
            with pytest.raises(OutputError, match=said):
                work(out)
    for out in (place / "out", place / "deep" / "er" / "out"):
        check_directory(out)
        try_folder(out)
    assert [p.name for p in place.iterdir()] == ["file"]


def test_a_mount_point_is_not_replaced(small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(8)
    with pytest.raises(OutputError, match="mount point.*inside of it"):
        check_directory(disk)
    check_folder(disk, lambda _: False)
    assert list(disk.iterdir()) == []


def test_a_link_to_a_directory_stays(place: Path) -> None:
    (place / "link").symlink_to("target")
    check_directory(place / "link")
    with new_directory(place / "link") as folder:
        (folder / "a").write_text("1")
    assert (place / "link").is_symlink() and (place / "target" / "a").read_text() == "1"


def test_files_that_are_not_ours_are_named_and_kept(place: Path) -> None:
    out = place / "out"
    out.mkdir()
    others = [f"note{i}" for i in range(7)]
    for name in others:
        (out / name).write_text(name)
    said = "note0, note1, note2, note3, note4 and 2 more.*move them away"
    with (
        pytest.raises(OutputError, match=said),
        new_directory(out, force=True, foreign=lambda _: others),
    ):
        pass
    with pytest.raises(OutputError, match="not created by shrinkc"):
        check_directory(out, force=True, foreign=lambda _: None)
    with pytest.raises(OutputError, match=r"out is not empty\."):
        check_directory(out, force=True)
    assert sorted(p.name for p in out.iterdir()) == others


def test_a_failure_inside_is_told_by_the_name_of_the_output(
    place: Path, small_disk: Callable[[int], Path]
) -> None:
    out = small_disk(64) / "out"
    with pytest.raises(OutputError) as caught, new_directory(out) as folder:
        write_file(folder / "big", "x" * (1 << 20))
    assert str(out / "big") in str(caught.value) and "partial" not in str(caught.value)
    with pytest.raises(OutputError, match="No space left"), new_directory(out):
        # as the libraries written in Rust say it
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    with pytest.raises(RuntimeError), new_directory(out):
        raise RuntimeError("something else")
    assert list(out.parent.iterdir()) == []


def test_folders_are_made_and_removed_again(place: Path) -> None:
    made = make_folder(place / "a" / "b")
    assert made == [place / "a", place / "a" / "b"] and make_folder(place / "a" / "b") == []
    (place / "a" / "other").write_text("somebody's")
    remove_folders(made)
    assert [p.name for p in (place / "a").iterdir()] == ["other"]
    (place / "link").symlink_to(place / "new")
    assert make_folder(place / "link") == [place / "new"]
    (place / "file").write_text("x")
    with pytest.raises(OutputError, match="a part of the path is a file"):
        make_folder(place / "file")
