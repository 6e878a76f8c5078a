"""Running: streaming, endings, and the private copy of the program."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from program import INPUT_WORDS, input_words

from conftest import ENV, Built
from shrinkc.build import PROGRAM
from shrinkc.core.errors import BadArtifact, UsageError
from shrinkc.simulate import run_program
from shrinkc.simulate.elf import replace_section, section_place
from shrinkc.simulate.process import Finished, run_streaming


def python(
    code: str,
    directory: Path,
    *,
    terminal: bool = False,
    timeout_s: float = 20.0,
    on_line: Callable[[str], None] | None = None,
) -> Finished:
    return run_streaming(
        [sys.executable, "-c", code],
        env=ENV,
        directory=directory,
        stdin=subprocess.DEVNULL,
        timeout_s=timeout_s,
        on_line=on_line,
        terminal=terminal,
    )


@pytest.mark.parametrize("terminal", [False, True])
def test_lines_end_at_newlines_only(tmp_path: Path, terminal: bool) -> None:
    code = r"import sys; sys.stdout.buffer.write(b'a\r\nb\x0bc\x85\n\nend')"
    done = python(code, tmp_path, terminal=terminal)
    assert done.lines == ["a\r", "b\x0bc\\x85", "", "end"]
    assert done.code == 0


@pytest.mark.parametrize("terminal", [False, True])
def test_lines_come_while_the_program_runs(tmp_path: Path, terminal: bool) -> None:
    arrived: list[float] = []
    code = "import time; print('one', flush=True); time.sleep(1.5); print('two')"
    python(code, tmp_path, terminal=terminal, on_line=lambda _: arrived.append(time.monotonic()))
    assert arrived[1] - arrived[0] > 1


def test_much_output_on_both_streams(tmp_path: Path) -> None:
    code = "import sys\nfor i in range(20000): print(i); print(i, file=sys.stderr)"
    done = python(code, tmp_path)
    assert len(done.lines) == len(done.errors) == 20000


def test_time_out_ends_grandchildren_too(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    grandchild = f"import time\nwhile True: open({str(alive)!r}, 'a').write('x'); time.sleep(.05)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    done = python(code, tmp_path, timeout_s=2.0)
    assert done.code is None
    size = alive.stat().st_size
    assert size > 0
    time.sleep(0.3)
    assert alive.stat().st_size == size


def test_interrupt_ends_the_program(tmp_path: Path) -> None:
    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        python("import time; print(1, flush=True); time.sleep(60)", tmp_path, on_line=interrupt)
    assert time.monotonic() - started < 20


def test_program_that_was_not_built(tmp_path: Path) -> None:
    with pytest.raises(BadArtifact, match=r"has no build/rv32/model\.elf"):
        run_program(tmp_path, "qemu", [0], env=ENV, timeout_s=1)


def test_unknown_machine(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no machine called 'board'"):
        run_program(tmp_path, "board", [0], env=ENV, timeout_s=1)


def test_words_may_be_an_array(built: Built) -> None:
    words = np.array(input_words(), dtype=np.uint32)
    output = run_program(built("host"), "host", words, env=ENV, timeout_s=60)
    assert f"input 1 = {words[1]}" in output.lines


def test_only_the_section_changes(built: Built, tmp_path: Path) -> None:
    program = built("siracusa") / PROGRAM["siracusa"]
    before = program.read_bytes()
    replace_section(program, ".sc_input", b"\x01\x02\x03", tmp_path / "copy")
    after = (tmp_path / "copy").read_bytes()
    offset, size = section_place(before, ".sc_input", program)
    assert size == 4 * INPUT_WORDS
    assert after[offset : offset + size] == b"\x01\x02\x03".ljust(size, b"\0")
    assert after[:offset] == before[:offset]
    assert after[offset + size :] == before[offset + size :]
    assert program.read_bytes() == before


def test_input_that_does_not_fit(built: Built, tmp_path: Path) -> None:
    program = built("siracusa") / PROGRAM["siracusa"]
    with pytest.raises(UsageError, match="do not fit"):
        replace_section(program, ".sc_input", bytes(4 * INPUT_WORDS + 1), tmp_path / "copy")


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"text", "not a 32-bit"), (b"\x7fELF\x01\x01" + bytes(20), "damaged")],
)
def test_damaged_program(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "model.elf").write_bytes(content)
    with pytest.raises(BadArtifact, match=reason):
        replace_section(tmp_path / "model.elf", ".sc_input", b"", tmp_path / "copy")
