"""What long work has done, kept in a file: whole lines only, of this very work only, by one process."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from shrinkc.core.errors import BadData, OutputError, RunChanged
from shrinkc.core.journal import Journal

ABOUT = {"content of model": "abc", "windows": 4, "samples": ("a", "b")}


def records(path: Path, about: dict[str, object] | None = None) -> list[dict[str, object]]:
    journal = Journal(path, ABOUT if about is None else about)
    journal.close()
    return journal.records


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "journal"
    journal = Journal(path, ABOUT)
    assert (journal.records, journal.damaged, journal.empty) == ([], 0, True)
    for number in range(3):
        journal.add({"number": number, "loss": 0.1 + number})
    assert not journal.empty
    journal.close()
    return path


def test_what_was_written_is_found(written: Path) -> None:
    assert records(written) == [{"number": n, "loss": 0.1 + n} for n in range(3)]


def test_wherever_a_process_is_killed_the_whole_lines_hold(written: Path) -> None:
    content = written.read_bytes()
    lines = content.split(b"\n")
    for size in range(len(content) + 1):
        written.write_bytes(content[:size])
        journal = Journal(written, ABOUT)
        # head and magic are two lines; the line feed is no part of what makes one whole
        whole = sum(size >= len(b"\n".join(lines[: 3 + n])) for n in range(3))
        assert [r["number"] for r in journal.records] == list(range(whole))
        journal.add({"number": 9})
        journal.close()
        assert [r["number"] for r in records(written)] == [*range(whole), 9]


def test_a_changed_byte_costs_its_line_alone(written: Path) -> None:
    content = written.read_bytes()
    at = content.index(b'"number": 1')
    for place in range(at, at + 11):
        changed = bytearray(content)
        changed[place] ^= 1
        written.write_bytes(changed)
        journal = Journal(written, ABOUT)
        journal.close()
        assert ([r["number"] for r in journal.records], journal.damaged) == ([0, 2], 1)


def test_another_work_is_refused_and_named(written: Path) -> None:
    before = written.read_bytes()
    with pytest.raises(RunChanged, match=r"windows: 4 → 5; seed: not given → 1") as caught:
        records(written, {**ABOUT, "windows": 5, "seed": 1})
    assert caught.value.exit_code == 63 and "delete the file to start over" in str(caught.value)
    assert written.read_bytes() == before


def test_without_its_first_line_all_of_it_is_lost(written: Path) -> None:
    content = written.read_bytes()
    written.write_bytes(content.replace(b'"windows": 4', b'"windows": 5'))
    journal = Journal(written, ABOUT)
    assert (journal.records, journal.damaged) == ([], 4)
    journal.close()


@pytest.mark.parametrize("content", [b"notes\n", b"{}", b"shrinkc-journal 2\n"])
def test_a_file_of_the_users_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(BadData, match=r"notes\.txt is not a file of earlier results"):
        Journal(path, ABOUT)
    assert path.read_bytes() == content


def test_one_process_at_a_time(written: Path) -> None:
    journal = Journal(written, ABOUT)
    with pytest.raises(OutputError, match="another shrinkc is working with"):
        Journal(written, ABOUT)
    journal.close()
    assert len(records(written)) == 3


def test_what_is_no_place_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, says in (
        (tmp_path, "Is a directory"),
        (tmp_path / "pipe", "is not a regular file"),
        (tmp_path / "no" / "journal", "No such file"),
    ):
        with pytest.raises(OutputError, match=says):
            Journal(path, ABOUT)


def test_on_a_full_disk_what_was_written_stays(small_disk: Callable[[int], Path]) -> None:
    path = small_disk(16) / "journal"
    journal = Journal(path, ABOUT)
    journal.add({"number": 0})
    size = path.stat().st_size
    with pytest.raises(OutputError, match="No space left"):
        journal.add({"text": "x" * 40_000})
    assert path.stat().st_size == size
    journal.add({"number": 1})  # no gap in what is kept
    journal.close()
    assert records(path) == [{"number": 0}]
