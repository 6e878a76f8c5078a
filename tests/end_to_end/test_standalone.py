"""The native program on its own: prompt and options in, text out, and no Python anywhere."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from helpers.tiny_llama import write_tiny_llama
from shrinkc.abi import Exit, Trace
from shrinkc.build import PROGRAM, build_program
from shrinkc.cli.main import run_cli
from shrinkc.core.artifact import read_manifest
from shrinkc.driver.asking import sampling_of
from shrinkc.importer import Tokenizer
from shrinkc.simulate.proof import Request

from .programs import ENV, need

CONTEXT = 48


@pytest.fixture(scope="module", params=["sentencepiece", "bytelevel"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled directory whose native program is built, with sanitizers."""
    need("host")
    folder = tmp_path_factory.mktemp("standalone")
    write_tiny_llama(folder / "tiny", vocab=380, layers=1, tokenizer=request.param)
    command = ["compile", str(folder / "tiny"), "-o", str(folder / "out"), "--target", "host"]
    assert run_cli([*command, "--context", str(CONTEXT)]) == 0
    build_program(folder / "out", "host", env=ENV, options={"SAN": "1"})
    return folder / "out"


def call(program: Path, *arguments: str, **streams: object) -> subprocess.CompletedProcess[bytes]:
    """The program alone in an empty environment."""
    return subprocess.run(
        [program / PROGRAM["host"], *arguments],
        env={},
        check=False,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        **streams,  # type: ignore[call-overload]
    )


@pytest.mark.parametrize("prompt", ["", "the", "Día 🙂 </s>  x", "--tokens", "a\tb\n"])
@pytest.mark.parametrize(
    ("options", "tokens", "temperature", "top_p", "seed", "ignore_eos", "lookup"),
    [
        ([], None, 0, 1, 0, False, 0),
        (["--prompt-lookup", "8", "--tokens=9"], 9, 0, 1, 0, False, 8),
        (["--tokens", "3", "--seed=4294967295", "--ignore-eos"], 3, 0, 1, 2**32 - 1, True, 0),
        (["--tokens=2", "--temperature", "0.7", "--top-p", "0.45"], 2, 0.7, 0.45, 0, False, 0),
        (["--temperature", "0.02", "--top-p", "1e-9"], None, 0.02, 1e-9, 0, False, 0),
        # 32768.5 and 32769.5 of 65536: halves become even
        (["--top-p", "0.50000762939453125"], None, 0, 0.50000762939453125, 0, False, 0),
        (["--top-p", "0.50002288818359375"], None, 0, 0.50002288818359375, 0, False, 0),
    ],
    ids=["plain", "lookup", "seed", "sampled", "coldest", "half", "other half"],
)
def test_words_are_those_of_shrinkc(
    program: Path, prompt: str, options: list[str], tokens: int | None, temperature: float,
    top_p: float, seed: int, ignore_eos: bool, lookup: int,
) -> None:  # fmt: skip
    ids = tuple(Tokenizer.of_program(program, read_manifest(program)).encode(prompt))
    new = CONTEXT - len(ids) if tokens is None else tokens
    sampling = sampling_of(temperature, top_p, seed)
    want = Request(ids, new, sampling, ignore_eos, lookup).words(CONTEXT, Trace.TEXT)
    done = call(program, *options, "--words", "--", prompt)
    assert (done.returncode, done.stderr) == (0, b"")
    np.testing.assert_array_equal(np.frombuffer(done.stdout, "<u4"), want)


@pytest.mark.slow
def test_text_is_that_of_shrinkc(program: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--tokens", "12", "--temperature", "1.5", "--seed", "9", "--ignore-eos"]
    capfd.readouterr()
    command = ["run", str(program), "--make", "SAN=1", "--prompt", "ein día", *options]
    assert run_cli(command) == 0
    told = capfd.readouterr().out
    done = call(program, *options, "ein día")
    assert done.returncode == 0
    assert done.stdout.decode(errors="replace") == told
    ids = Tokenizer.of_program(program, read_manifest(program)).encode("ein día")
    done = call(program, *options, "--ids", ",".join(map(str, ids)))
    assert done.stdout.decode(errors="replace") == told


def test_text_with_lookup_is_the_same(program: Path) -> None:
    """Also where an end token ends it, and where drafts are longer than what is left."""
    for options in (["--ignore-eos"], ["--tokens", "7"], []):
        texts = [
            call(program, *options, *look, "the the the the")
            for look in ([], ["--prompt-lookup=8"])
        ]
        assert [t.returncode for t in texts] == [0, 0] and texts[0].stdout
        assert texts[0].stdout == texts[1].stdout


TWICE = """
int __real_sc_program(void);
int __wrap_sc_program(void) {
    int code = __real_sc_program();
    return code ? code : __real_sc_program();
}
"""


@pytest.mark.slow
def test_a_second_text_begins_like_the_first(tmp_path: Path) -> None:
    """Firmware may begin another session; the space that leads a text is dropped each time."""
    need("host")
    write_tiny_llama(tmp_path / "tiny", vocab=380, layers=1, tokenizer="sentencepiece")
    out = tmp_path / "out"
    command = ["compile", str(tmp_path / "tiny"), "-o", str(out), "--target", "host"]
    assert run_cli([*command, "--context", str(CONTEXT)]) == 0
    (out / "src/twice.c").write_text(TWICE)
    build_program(out, "host", env=ENV, options={"CC": "cc -Wl,--wrap=sc_program"})
    done = call(out, "--tokens", "5", "the")
    first, second, end = done.stdout.split(b"\n")
    assert (done.returncode, end) == (0, b"")
    assert first.startswith(b"the") and second == first


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tokens", "0", "a"], "--tokens 0 is not possible; allowed: 1 to "),
        (["--tokens", "48", "a"], "--tokens 48 is not possible; allowed: 1 to 4"),
        (["--tokens"], "--tokens needs a value"),
        (["--seed", "-1"], "--seed -1 is not possible; allowed: 0 to 4294967295"),
        (["--seed", "4294967296"], "allowed: 0 to 4294967295"),
        (["--seed", "99999999999999999999999"], "allowed: 0 to 4294967295"),
        (["--temperature", "0.001"], "allowed: 0 (the most probable token) or 0.02 to 100"),
        (["--temperature", "nan"], "0.02 to 100"),
        (["--temperature", "warm"], "--temperature warm is not a number"),
        (["--top-p", "0"], "--top-p 0 is not possible; allowed: above 0, at most 1"),
        (["--prompt-lookup", "0", "a"], "--prompt-lookup 0 is not possible; allowed: 1 to 8"),
        (["--prompt-lookup", "9", "a"], "--prompt-lookup 9 is not possible; allowed: 1 to 8"),
        (
            ["--prompt-lookup", "3", "--temperature", "0.7", "a"],
            "with --temperature 0.7; it is for temperature 0",
        ),
        (["--ids", "1,two"], "--ids 1,two is not a list of numbers"),
        (["--ids", "1,-2"], "not a list of numbers"),
        (["--ids", "1,380"], "--ids 380 is not possible; allowed: 0 to 379"),
        (["--ids", "12345678901234567890"], "not a list of numbers"),
        (["--ids", ",".join("5" * CONTEXT)], "leaves no room"),
        (["--ids", ""], "the prompt has no tokens"),
        (["x" * 200], "the prompt takes 2"),
        (["--ids", "1", "a"], "a prompt and --ids cannot be used together"),
        (["a", "b"], "more than one prompt: b"),
        (["--chat", "a"], "--chat is not an option; --help lists them"),
        ([b"\xff"], "the prompt is not UTF-8"),
    ],
    ids=str,
)
def test_what_is_not_possible_is_refused(program: Path, arguments: list[str], said: str) -> None:
    done = call(program, *arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"model: ") and said in done.stderr.decode()


def test_help_and_a_terminal(program: Path) -> None:
    done = call(program, "--help")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"what the context of 48 leaves" in done.stdout and b"below 380" in done.stdout
    assert b"the text so far, 1 to 8;" in done.stdout
    ours, its = os.openpty()
    try:  # without arguments there is nothing to do at a terminal
        alone = subprocess.run(
            [program / PROGRAM["host"]], stdin=its, capture_output=True, check=False, timeout=60
        )
        assert (alone.returncode, alone.stdout) == (2, b"")
        assert alone.stderr == done.stdout
        words = subprocess.run(
            [program / PROGRAM["host"], "--words"], stdout=its, stderr=subprocess.PIPE, check=False
        )
        assert words.returncode == 2 and b"nothing for a terminal" in words.stderr
    finally:
        os.close(ours)
        os.close(its)


@pytest.mark.parametrize("text", [b"piped in", b"abcd", b"x"])
def test_text_on_stdin_is_no_input(program: Path, text: bytes) -> None:
    done = subprocess.run(
        [program / PROGRAM["host"]], input=text, capture_output=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (Exit.PLATFORM, b"")
    assert b"a prompt goes on the command line" in done.stderr


def test_text_that_cannot_be_written_is_no_success(program: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [program / PROGRAM["host"], "--tokens", "3", "the"], stdin=subprocess.DEVNULL,
            stdout=full, stderr=subprocess.PIPE, check=False, timeout=60,
        )  # fmt: skip
    assert done.returncode == Exit.PLATFORM
    assert b"cannot write to stdout" in done.stderr


@pytest.mark.slow
def test_a_tokenizer_that_is_not_known_takes_ids(tmp_path: Path) -> None:
    need("host")
    write_tiny_llama(tmp_path / "tiny", vocab=380, layers=1, tokenizer="bytelevel")
    file = tmp_path / "tiny/tokenizer.json"
    spec = json.loads(file.read_text())
    spec["pre_tokenizer"] = {
        "type": "Sequence", "pretokenizers": [{"type": "Punctuation", "behavior": "Isolated"}, spec["pre_tokenizer"]],
    }  # fmt: skip
    file.write_text(json.dumps(spec))
    out = tmp_path / "out"
    assert run_cli(["compile", str(tmp_path / "tiny"), "-o", str(out), "--target", "host"]) == 0
    build_program(out, "host", env=ENV)
    done = call(out, "the")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode() == (
        "model: this program takes --ids only: the tokenizer's pre-tokenizer Punctuation is not "
        "known to it\n"
    )
    assert call(out, "--tokens", "3").returncode == 0  # nothing but the begin token
    assert call(out, "--ids", "1,5").returncode == 0
