"""Progress, sizes, help and exit codes."""

from __future__ import annotations

import errno
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shrinkc.cli import console, stopping
from shrinkc.cli.main import DEFECT
from shrinkc.cli.main import cli as commands
from shrinkc.cli.stopping import TERMINATED
from shrinkc.core import errors
from shrinkc.core.errors import ShrinkcError
from shrinkc.core.progress import Silent, Stage
from shrinkc.core.words import parse_size, show_size, show_time

from .conftest import Cli


@pytest.fixture(autouse=True)
def ordinary_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the tests are run in."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, quiet: float = 0.05) -> str:
    monkeypatch.setattr(console, "QUIET_SECONDS", quiet)
    monkeypatch.setattr(console, "LINE_SECONDS", 0.05)
    monkeypatch.setattr(console, "BAR_SECONDS", 0.05)
    with console.Console(stream).stage("loading weights") as update:
        update(1, 4)
        time.sleep(0.3)
    return stream.getvalue()


def test_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(io.StringIO(), monkeypatch).splitlines()
    assert len(lines) >= 2
    assert all(re.fullmatch(r"loading weights: 25 % \(\d+ s\)", line) for line in lines)


def test_a_bar_on_a_terminal_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(Terminal(), monkeypatch)
    assert "[######..................] loading weights: 25 %" in text
    assert text.endswith("\r\x1b[K") and "\n" not in text


def test_no_escape_where_the_user_wants_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    text = shown(Terminal(), monkeypatch)
    assert "loading weights: 25 %" in text and "\x1b" not in text and "\n" not in text
    assert text.endswith(" \r"), "what was shown is written over"
    assert not console.takes_escapes(Terminal())
    monkeypatch.setenv("NO_COLOR", "")
    assert console.takes_escapes(Terminal()), "set but empty says nothing"


def test_lines_on_a_dumb_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    text = shown(Terminal(), monkeypatch)
    assert len(text.splitlines()) >= 2
    assert re.fullmatch(r"(loading weights: 25 % \(\d+ s\)\n)+", text)
    assert not console.takes_escapes(Terminal())


def test_escapes_are_for_terminals_only() -> None:
    assert not console.takes_escapes(io.StringIO())


@pytest.mark.parametrize("columns", [200, 60, 40, 30, 20, 12])
def test_a_bar_says_how_far_it_is_in_any_width(columns: int) -> None:
    stage = Stage("generating code and weights", 0.0, 3, 4, "loss 2.31")
    bar = stage.bar(13.2, columns)
    assert len(bar) <= columns and ": 75 %" in bar
    assert bar.startswith("[####") == (columns == 200)
    assert ("loss 2.31" in bar) == (columns >= 60) and ("13 s" in bar) == (columns >= 40)
    # the title is shortened, and says so
    assert ("generating code and weights" in bar) == ("…" not in bar) == (columns >= 40)
    waiting = Stage("checking against the interpreter", 0.0).bar(13.2, columns)
    assert len(waiting) <= columns and waiting.endswith(": 13 s")


def test_a_bar_at_30_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    text = shown(Terminal(), monkeypatch)
    assert "loading weights: 25 % (0 s)" in text
    assert all(len(part) < 30 for part in text.split("\r\x1b[K"))


def test_quick_work_is_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(io.StringIO(), monkeypatch, quiet=2.0) == ""


def test_work_of_unknown_length() -> None:
    assert Stage("running", 10.0).line(13.2) == "running: 3 s"
    assert Stage("running", 10.0).bar(13.2) == "running: 3 s"
    with Silent().stage("x") as update:
        update(1, 2)


def test_the_time_that_is_left() -> None:
    stage = Stage("training", 100.0)
    stage.update(0, 40, "", 110.0)  # ten seconds of loading before
    assert stage.line(111.0) == "training: 0 % (11 s)"
    stage.update(10, 40, "loss 2.1", 130.0)
    assert stage.line(130.0) == "training: 25 % (30 s, about 60 s left, loss 2.1)"
    # what hangs takes longer
    assert stage.line(150.0) == "training: 25 % (50 s, about 2 min left, loss 2.1)"
    stage.update(40, 40, "", 200.0)
    assert stage.line(200.0) == "training: 100 % (100 s)"
    # the next count within the same stage is other work
    stage.update(0, 8, "", 200.0)
    stage.update(2, 8, "", 202.0)
    assert "25 % (102 s, about 6 s left)" in stage.line(202.0)


def test_the_time_that_is_left_of_a_run_that_goes_on() -> None:
    stage = Stage("training", 0.0)
    stage.update(900, 1000, "", 5.0)  # where it was interrupted
    assert stage.left(6.0) is None
    stage.update(910, 1000, "", 15.0)
    assert stage.left(15.0) == 90.0


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (61.6, "62 s"), (150, "2 min"), (7200, "2.0 h")]
)
def test_times_for_people(seconds: float, text: str) -> None:
    assert show_time(seconds) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("131072", 131072),
        ("128KiB", 131072),
        ("128k", 131072),
        ("0.5 MiB", 1 << 19),
        ("1g", 1 << 30),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "KiB", "-1", "1.0001k", "0", "1TB", "1e3"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="size|bytes"):
        parse_size(text)


def test_sizes_are_shown_in_their_unit() -> None:
    assert [show_size(n) for n in (12, 1536, 3 << 19)] == ["12 B", "1.5 KiB", "1.5 MiB"]


def test_version_and_help(cli: Cli) -> None:
    assert cli("--version").out.startswith("shrinkc, version ")
    text = cli("--help").out
    for command in ("compile", "plan", "run", "export", "doctor"):
        assert command in text
        assert "Usage: shrinkc " + command in cli(command, "--help").out


def test_no_command_shows_the_help(cli: Cli) -> None:
    """On stderr and as a usage error: a script that lost its command did nothing."""
    for arguments in ((), ("--debug",)):
        result = cli(*arguments)
        assert (result.code, result.out) == (2, "")
        assert result.err == cli("--help").out and result.err.startswith("Usage: shrinkc [OPTIONS]")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nonsense"], r"No such option:? '?--nonsense'?\. Hint: see 'shrinkc --help'\."),
        (["nonsense"], r"No such command 'nonsense'\. Hint: see 'shrinkc --help'\."),
        (["compile"], r"Missing argument 'MODEL'\. Hint: see 'shrinkc compile --help'\."),
        (
            ["compile", "m"],
            r"Missing option '-o' / '--output'\. Hint: see 'shrinkc compile --help'\.",
        ),
    ],
)
def test_one_message_says_what_is_wrong(cli: Cli, arguments: list[str], message: str) -> None:
    result = cli(*arguments)
    assert (result.code, result.out) == (2, "")
    assert re.fullmatch(f"shrinkc: usage: {message}", result.words)


def every_error() -> list[type[ShrinkcError]]:
    found = (getattr(errors, name) for name in dir(errors))
    return [e for e in found if isinstance(e, type) and issubclass(e, ShrinkcError)]


def test_no_two_errors_share_an_exit_code() -> None:
    codes = [0, DEFECT, TERMINATED, *(error.exit_code for error in every_error())]
    assert len({*codes}) == len(codes)


# ---- standard output that cannot be written ----


def shell(line: str) -> tuple[int, str]:
    """Exit code and stderr of a real process."""
    command = f'"{sys.executable}" -m shrinkc {line}'
    ran = subprocess.run(command, shell=True, capture_output=True, text=True)
    return ran.returncode, " ".join(ran.stderr.split())


def full_file(disk: Path) -> Path:
    """A file that takes nothing, on the ``disk`` of four KiB."""
    (disk / "much").write_bytes(bytes(4096))
    return disk / "out"


# progress is no complaint, but would be read as one
LINES = [
    "plan -q {model}",
    "plan -q {model} --json",
    "--help",
    "plan --help",
    "--version",
    "doctor -q",
]


@pytest.mark.parametrize("line", LINES)
def test_a_full_standard_output_is_called_so(
    model: Path, small_disk: Callable[[int], Path], line: str
) -> None:
    code, said = shell(f"{line.format(model=model)} > {full_file(small_disk(4))}")
    assert code == 40
    assert said == (
        "shrinkc: cannot write: standard output cannot be written: No space left on device. Hint: "
        "the results go there; redirect it to another place."
    )


@pytest.mark.parametrize(
    ("line", "code"), [*((line, 1) for line in LINES), ("", 2), ("plan nowhere", 10)]
)
def test_streams_that_nobody_reads(model: Path, line: str, code: int) -> None:
    """Also where words are left in a buffer, which the interpreter flushes at its end."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "shrinkc", *line.format(model=model).split()]
    try:
        ran = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
        both = subprocess.run(command, stdout=writing, stderr=writing)
    finally:
        os.close(writing)
    assert (ran.returncode, both.returncode) == (code, code)
    assert ran.stderr == "" or code != 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, TERMINATED)])
def test_signals_where_nobody_can_be_told(
    model: Path, small_disk: Callable[[int], Path], number: int, code: int
) -> None:
    """As of ``shrinkc ... 2>&1 | tee log``: Ctrl-C ends tee as well."""
    script = (
        "import os, signal; from shrinkc.cli import main; "
        "from shrinkc.driver import planning; "
        f"planning.prepare = lambda _: os.kill(os.getpid(), {number:d}); "
        "signal.signal(signal.SIGINT, signal.default_int_handler); main.main()"
    )
    command = [sys.executable, "-c", script, "plan", str(model)]
    with full_file(small_disk(4)).open("wb") as full:
        assert subprocess.run(command, stderr=full).returncode == code


def test_the_end_of_a_file_is_no_interrupt(
    cli: Cli, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_: object) -> None:
        raise EOFError("no more")

    monkeypatch.setattr("shrinkc.driver.planning.prepare", end)
    result = cli("plan", model)
    assert result.code == DEFECT and "EOFError: no more" in result.words


def test_closed_streams(model: Path, small_disk: Callable[[int], Path]) -> None:
    code, said = shell(f"plan {model} >&-")
    assert code == 40 and "standard output cannot be written: it is closed" in said
    assert shell(f"plan {model} 2>&-") == (0, "")
    assert shell("plan nowhere 2>&-") == (10, "")
    assert shell(f"plan nowhere 2> {full_file(small_disk(4))}") == (10, "")
    assert shell(f"plan -q {model} | head -1") == (0, "")


def test_a_file_of_which_the_system_gives_no_name(
    cli: Cli, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shrinkc.driver.planning.prepare", full)
    result = cli("plan", model)
    assert result.code == 40
    assert "a file cannot be written: No space left on device." in result.words
    assert str(Path.cwd()) not in result.words and "scratch files go to" in result.words


def test_signals_that_the_caller_ignores_stay_ignored() -> None:
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stopping.install()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is signal.getsignal(signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_signal_that_was_lost_ends_the_work_at_its_next_sign_of_progress(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reporter = console.Console(io.StringIO())
    with pytest.raises(SystemExit) as stop, reporter.stage("training") as update:
        update(1, 4)
        monkeypatch.setattr(stopping, "_came", [signal.SIGTERM])
        update(2, 4)
    assert stop.value.code == TERMINATED
    monkeypatch.setattr(stopping, "_came", [signal.SIGINT])
    with pytest.raises(KeyboardInterrupt), reporter.stage("training"):
        raise AssertionError("it does not begin")


IMPATIENT = """
import atexit, os, signal, subprocess, time
from shrinkc.cli import main
from shrinkc.driver import planning

def press_on():
    press = 'for i in $(seq 2000); do kill -INT "$0" || break; done'
    nowhere = subprocess.DEVNULL
    subprocess.Popen(["sh", "-c", press, str(os.getpid())], stdout=nowhere, stderr=nowhere)
    time.sleep(0.05)

def stop(_):
    os.kill(os.getpid(), signal.SIGINT)

atexit.register(press_on)
planning.prepare = stop
main.main()
"""


def test_ctrl_c_once_more_when_it_has_ended(model: Path) -> None:
    """While the interpreter shuts down, in which it has put back the system's own handler."""
    ran = subprocess.run(
        [sys.executable, "-c", IMPATIENT, "plan", str(model)],
        capture_output=True, text=True,
        # a background job of a shell inherits a SIGINT that is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert ran.returncode == 130, ran.stderr
    assert ran.stderr == "shrinkc: interrupted: stopped; nothing was left half-written.\n"


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_what_a_shell_needs_to_complete_words(name: str) -> None:
    env = {**os.environ, "_SHRINKC_COMPLETE": f"{name}_source"}
    ran = subprocess.run([sys.executable, "-m", "shrinkc"], env=env, capture_output=True, text=True)
    assert ran.returncode == 0 and f"_SHRINKC_COMPLETE={name}_complete" in ran.stdout
    if name == "bash":
        assert subprocess.run(["bash", "-n"], input=ran.stdout, text=True).returncode == 0


def test_words_that_a_shell_completes() -> None:
    asked = {"_SHRINKC_COMPLETE": "bash_complete", "COMP_WORDS": "shrinkc do", "COMP_CWORD": "1"}
    ran = subprocess.run(
        [sys.executable, "-m", "shrinkc"],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
    )
    assert (ran.stdout, ran.stderr) == ("plain,doctor\n", "")


# --- more and less --------------------------------------------------------------------------


@pytest.mark.parametrize("name", commands.commands)
def test_every_command_can_be_quiet_and_verbose(cli: Cli, name: str) -> None:
    command = commands.commands[name]
    names = [option for param in command.params for option in param.opts]
    assert {"-q", "--quiet", "-v", "--verbose"} <= set(names)
    assert len(names) == len(set(names))
    result = cli(name, "-q", "-v", *shlex.split(command.examples[0])[2:])  # type: ignore[attr-defined]
    assert (result.code, "--quiet and --verbose cannot be used together" in result.words) == (
        2,
        True,
    )


def test_quiet(cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "QUIET_SECONDS", 0.0)
    result = cli("compile", model, "-o", tmp_path / "out", "--quiet")
    assert (result.code, result.out, result.err) == (0, "", "")
    assert (tmp_path / "out" / "manifest.json").is_file()
    result = cli("compile", model, "-o", tmp_path / "out", "-q", "--json")
    assert (result.code, result.json["error"]["code"]) == (40, 40)
    assert "exists" in result.words, "errors are said all the same"
    assert "2 layers" in cli("plan", model, "-q").out, "and so are results"


def test_verbose(cli: Cli, model: Path, tmp_path: Path) -> None:
    quick = ["compile", model, "-o", tmp_path / "out"]
    assert "planning" not in cli(*quick).err
    result = cli(*quick, "--force", "--verbose")
    assert re.search(r"^planning: \d+\.\d s$", result.err, re.MULTILINE)
    assert re.search(r"^loading weights: \d+\.\d s$", result.err, re.MULTILINE)
    assert cli("plan", model, "--json", "-v").json["fits"], "stdout has the object alone"


def test_lines_thin_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of its own: an hour of work is some 40 lines, and later ones are 5 minutes apart."""
    now = 0.0

    class Ended:
        def wait(self, seconds: float) -> bool:
            nonlocal now
            now += seconds
            return now > 10000

    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    stream = io.StringIO()
    console.Console(stream)._report(Stage("training", 0.0), Ended())  # type: ignore[arg-type]
    times = [int(float(line.split()[1])) for line in stream.getvalue().splitlines()]
    assert times[:5] == [2, 4, 6, 8, 10]
    gaps = [b - a for a, b in zip(times, times[1:], strict=False)]
    assert gaps == sorted(gaps) or max(gaps) - 1 <= max(gaps[-3:])
    assert len([t for t in times if t <= 3600]) in range(30, 50)
    assert 299 <= gaps[-1] <= 301
