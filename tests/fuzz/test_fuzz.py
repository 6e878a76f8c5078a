"""A short run of the fuzzer: every importer ends every mutated input in success or in a refusal by name.

`make fuzz` tries thousands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.campaign import journal_of
from helpers.tiers import slow_but

from .blind import BLIND, truncated
from .campaign import campaign, load, make_bases, rows
from .subjects import SUBJECTS
from .trial import CALLS, try_input

INPUTS = 24  # of every importer


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """bases(name): where the valid inputs of a subject are; skips where something is missing."""
    load()
    folder = tmp_path_factory.mktemp("bases")

    def made(name: str) -> Path:
        if lacking := SUBJECTS[name].missing():
            pytest.skip(f"needs {', '.join(lacking)}")
        if not (folder / name).is_dir():
            make_bases([SUBJECTS[name]], folder)
        return folder

    return made


@pytest.mark.parametrize("name", slow_but(SUBJECTS, "config", "gguf", "gptq", "tokenizer"))
def test_every_mutated_input_is_read_or_refused_by_name(
    name: str, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    path, about = tmp_path / "journal", {"sources": "these"}
    journal = journal_of(path, about)
    calls: list[int] = []

    def update(done: int, total: int, note: str = "") -> None:
        calls.append(done)

    records = campaign([SUBJECTS[name]], bases(name), INPUTS, 0, journal, update, tmp_path / "work")
    assert [r for r in records if "escape" in r] == []
    assert calls[-1] == INPUTS and len({r["code"] for r in records}) > 1, "some are refused"
    one, every = rows(records)
    assert (one["inputs"], one["escaped"]) == (INPUTS, 0) and every == {
        **one,
        "id": "all",
        "input": "all",
    }
    journal.close()
    journal = journal_of(path, about)
    assert records == campaign(
        [SUBJECTS[name]], bases(name), INPUTS, 0, journal, update, tmp_path / "nowhere"
    ), "what is in the journal is not tried again"
    journal.close()


@pytest.mark.parametrize("name", slow_but(SUBJECTS, "config", "gguf", "gptq", "tokenizer"))
def test_what_was_not_changed_is_read(
    name: str, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    """Otherwise every mutation would only show again why the input itself is refused."""
    subject = SUBJECTS[name]
    for number, action in enumerate(subject.actions):
        plain = replace(subject, actions=(action,))
        found = try_input(
            plain, bases(name) / name, f"plain {number}", tmp_path / "work", frozenset(range(9))
        )
        assert (found.code, found.escape) == (0, ""), (action, found)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a traceback": (lambda path: 1 // 0, "ZeroDivisionError"),
    "memory": (lambda path: bytearray(1 << 34), "MemoryError"),
    "half-written": (lambda path: (path.parent.parent / "out.partial").mkdir(), "half-written"),
    "a scratch file": (lambda path: (path.parent.parent / "tmp" / "x").mkdir(), "left behind"),
    "the input": (lambda path: (path / "more").write_text("x"), "input was changed"),
    "the process": (lambda path: __import__("os").abort(), "signal 6"),
    "a warning": (lambda path: __import__("warnings").warn("odd", stacklevel=1), "Warning:"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_fuzzer_finds(
    fault: str, bases: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, said = FAULTS[fault]
    monkeypatch.setitem(CALLS, "py:fault", call)
    subject = replace(SUBJECTS["config"], actions=(("py:fault", "{in}/model"),))
    found = try_input(subject, bases("config") / "config", "0", tmp_path / "work")
    assert said in found.escape and not (tmp_path / "work").exists()


@pytest.mark.slow
def test_an_escape_is_told_with_the_mutations_that_it_takes(
    bases: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that trusts one file: what was done to others is left out."""

    def trusting(path: Path) -> None:
        if b"architectures" not in (path / "config.json").read_bytes():
            raise KeyError("architectures")

    monkeypatch.setitem(CALLS, "py:trusting", trusting)
    subject = replace(
        SUBJECTS["config"], actions=(("py:trusting", "{in}/model"),),
        files={"model/config.json": (truncated,), "model/*.json": BLIND},
    )  # fmt: skip
    journal = journal_of(tmp_path / "journal", {})
    records = campaign([subject], bases("config"), 40, 0, journal, lambda *_: None, tmp_path / "w")
    journal.close()
    found = [r for r in records if "escape" in r]
    assert found and all(r["escape"].startswith("KeyError") for r in found)
    assert all(step.startswith("model/config.json") for r in found for step in r["steps"])
    assert rows(records)[0]["escaped"] == len(found)


def test_one_seed_one_input(bases: Callable[[str], Path], tmp_path: Path) -> None:
    first, again, other = (
        try_input(SUBJECTS["tokenizer"], bases("tokenizer") / "tokenizer", seed, tmp_path / "work")
        for seed in ("1/x", "1/x", "2/x")
    )
    assert (first.steps, first.code) == (again.steps, again.code)
    assert first.steps != other.steps
