"""``shrinkc run``: verdicts, differences found and named, and clean output."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.tiny_llama import write_tiny_llama
from shrinkc.core.words import show_rounded

from .conftest import Cli

Needs = Callable[..., None]


def test_host(cli: Cli, compiled: Path, needs: Needs) -> None:
    needs("cc", "make")
    result = cli("run", compiled, "--prompt", "a the", "--tokens", 8)
    assert result.code == 0
    assert result.out.startswith("a the")
    assert "\nverified bit for bit: all layer outputs, logits and tokens equal" in result.err


def test_chat(cli: Cli, model: Path, tmp_path: Path, needs: Needs) -> None:
    needs("cc", "make")
    talking = Path(shutil.copytree(model, tmp_path / "talking"))
    (talking / "chat_template.jinja").write_text(
        "{{ bos_token }}Q: {{ messages[0].content }}\n{% if add_generation_prompt %}A:{% endif %}"
    )
    (talking / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    out = tmp_path / "program"
    assert cli("compile", talking, "-o", out, "--target", "host").code == 0
    asked = ["--tokens", 5, "--ignore-eos", "--json"]
    chat = cli("run", out, "--chat", "--prompt", "the cat?", *asked)
    same = cli("run", out, "--prompt", "Q: the cat?\nA:", *asked)  # BOS is put in front of it
    assert chat.code == same.code == 0
    assert chat.json["prompt_tokens"] == same.json["prompt_tokens"]
    assert chat.json["new_tokens"] == same.json["new_tokens"]
    told = cli("run", out, "--chat", "--prompt", "the cat?", "--tokens", 5, "--ignore-eos")
    assert told.out.strip() == same.json["text"].split("A:", 1)[1].strip()  # the answer alone
    (out / "chat_template.json").write_text("{}")
    assert "chat_template.json missing or changed since compiling" in cli("run", out).words


def test_chat_refused(cli: Cli, compiled: Path) -> None:
    result = cli("run", compiled, "--chat", "--prompt", "Hi")
    assert (result.code, "no chat template" in result.words) == (2, True)
    result = cli("run", compiled, "--chat")
    assert (result.code, "--chat needs a message" in result.words) == (2, True)


def test_json_is_one_clean_object(cli: Cli, compiled: Path, needs: Needs) -> None:
    needs("cc", "make")
    result = cli("run", compiled, "--prompt-ids", "1,5,9", "--tokens", 6, "--ignore-eos", "--json")
    assert result.code == 0
    run = result.json
    assert (run["target"], run["model"], run["prompt_tokens"]) == ("host", "tiny", [1, 5, 9])
    assert len(run["new_tokens"]) == 6
    assert run["cycles"] is None
    # 8 positions x 2 layers x 20 values, of the last layer from the prompt's last token on; 6 times 107 logits,
    # 6 tokens and their text
    assert run["verdict"] == {
        "compared": (8 + 6) * 20 + 6 * 107 + 6 + 6, "mismatched": 0, "first_difference": None,
        "every": 1,
    }  # fmt: skip
    assert isinstance(run["text"], str)


@pytest.mark.qemu
def test_qemu_says_the_same_as_host(cli: Cli, compiled: Path, needs: Needs) -> None:
    needs("cc", "make", "riscv64-unknown-elf-gcc", "qemu-riscv32")
    options = ["--prompt", "hello", "--tokens", 5, "--temperature", 0.9, "--top-p", 0.8]
    options += ["--seed", 5, "--json"]
    runs = [cli("run", compiled, "--on", on, *options) for on in ("host", "qemu")]
    assert [r.code for r in runs] == [0, 0]
    assert runs[0].json["new_tokens"] == runs[1].json["new_tokens"]
    assert runs[1].json["verdict"]["mismatched"] == 0 < runs[1].json["verdict"]["compared"]


@pytest.mark.gvsoc
def test_gvsoc_counts_cycles(cli: Cli, compiled: Path, needs: Needs) -> None:
    needs("make", "riscv64-unknown-elf-gcc", "gvsoc")
    options = ["--prompt", "hello", "--tokens", 3, "--ignore-eos"]
    result = cli("run", compiled, "--on", "gvsoc", *options, "--json")
    assert result.code == 0
    cycles = result.json["cycles"]
    assert cycles["prefill"] > 0 and len(cycles["decode"]) == 2 and min(cycles["decode"]) > 0
    assert "decode" in result.err and "per token" in result.err


def test_a_wrong_weight_is_found_and_named(cli: Cli, program: Path, needs: Needs) -> None:
    needs("cc", "make")
    plan = json.loads((program / "plan.json").read_text())
    at = next(p for p in plan["placements"] if p["name"] == "layer1.o")
    blob = program / "blobs/wmem.bin"
    data = bytearray(blob.read_bytes())
    data[at["offset"] + 16 + 3] ^= 0x40  # behind the scales of the first 8 rows
    blob.write_bytes(data)
    result = cli("run", program, "--prompt", "hello", "--tokens", 4, "--json")
    assert result.code == 60
    verdict = result.json["verdict"]
    first = verdict["first_difference"]
    assert verdict["mismatched"] > 0
    # the last layer: of a prompt's tokens the last one alone goes through its o
    step = len(result.json["prompt_tokens"]) - 1
    assert (first["step"], first["layer"], first["op"]) == (step, 1, "mid")
    assert first["index"] < 8 and first["got"] != first["expected"]
    assert f"first at step {step}, layer 1, mid[" in result.words
    assert "changed since it was compiled: blobs/wmem.bin" in result.words


def test_a_wrong_reference_is_no_reference(cli: Cli, program: Path) -> None:
    file = program / "ir.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    result = cli("run", program, "--prompt", "x")
    assert result.code == 61
    assert "ir.safetensors" in result.words


def test_nothing_compared_is_a_failure(
    cli: Cli, compiled: Path, needs: Needs, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("cc", "make")
    from shrinkc.simulate.proof import Record

    monkeypatch.setattr("shrinkc.driver.running.reference", lambda *a: Record(complete=True))
    monkeypatch.setattr("shrinkc.driver.running.parse", lambda *a: Record(complete=True))
    result = cli("run", compiled, "--prompt", "x", "--tokens", 2)
    assert result.code == 60
    assert "nothing was compared" in result.words


def test_no_verify_says_so(cli: Cli, compiled: Path, needs: Needs) -> None:
    needs("cc", "make")
    result = cli("run", compiled, "--prompt", "hello", "--tokens", 3, "--no-verify", "--json")
    assert result.code == 0
    assert result.json["verdict"] is None
    assert "not verified" in result.err


def test_the_streamed_text_is_the_text(cli: Cli, tmp_path: Path, needs: Needs) -> None:
    """Byte tokens that make no UTF-8, pieces with spaces, and a prompt beyond ASCII."""
    needs("cc", "make")
    write_tiny_llama(tmp_path / "bytes", vocab=380, hidden=12, intermediate=20, layers=1)
    assert cli("compile", tmp_path / "bytes", "-o", tmp_path / "out").code == 0
    options = ["--prompt", "día 🙂", "--tokens", 20, "--temperature", 2, "--ignore-eos"]
    for seed in range(3):
        told = cli("run", tmp_path / "out", *options, "--seed", seed)
        object_ = cli("run", tmp_path / "out", *options, "--seed", seed, "--json")
        assert told.code == object_.code == 0
        assert told.out == object_.json["text"] + "\n"
        assert told.out.startswith("día 🙂")


def test_the_prompt_of_a_file(
    cli: Cli, compiled: Path, tmp_path: Path, needs: Needs, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("cc", "make")
    file = tmp_path / "prompt.txt"
    file.write_text("the cat\nin\n")
    asked = ["-n", 3, "--ignore-eos", "--json"]
    want = cli("run", compiled, "-p", "the cat\nin", *asked)
    assert want.code == 0 and len(want.json["new_tokens"]) == 3
    given = cli("run", compiled, "--prompt-file", file, *asked)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(file.read_bytes())))
    piped = cli("run", compiled, "--prompt-file", "-", *asked)
    for run in (given, piped):
        assert run.json["prompt_tokens"] == want.json["prompt_tokens"]
        assert run.json["new_tokens"] == want.json["new_tokens"]


def test_prompt_files_refused(cli: Cli, compiled: Path, tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"ab\xff")
    for options, said in (
        (["--prompt-file", tmp_path / "none"], "none cannot be read: No such file"),
        (["--prompt-file", tmp_path], "cannot be read: Is a directory"),
        (
            ["--prompt-file", tmp_path / "bytes"],
            "bytes is not UTF-8 text: invalid start byte at byte 2",
        ),
        (["--prompt-file", "-", "--prompt", "x"], "cannot be used together"),
        (["--prompt-file", "-", "--prompt-ids", "1"], "cannot be used together"),
    ):
        result = cli("run", compiled, *options)
        assert (result.code, result.out) == (2, "") and said in result.words, options


def test_options_that_do_nothing_are_named(cli: Cli, compiled: Path, needs: Needs) -> None:
    needs("cc", "make")
    base = ["run", compiled, "-p", "x", "-n", 1]
    said = cli(*base, "--seed", 3, "--top-p", 0.5).words
    assert "note: --seed and --top-p do nothing at temperature 0" in said
    assert "note: --seed does nothing at temperature 0" in cli(*base, "--seed", 3).words
    assert "note: --seed" not in cli(*base, "--seed", 3, "--temperature", 0.5).words


def test_prefill_and_decode_have_their_speeds(cli: Cli, compiled: Path, needs: Needs) -> None:
    needs("cc", "make")
    base = ["run", compiled, "--prompt-ids", "1,5,9", "--ignore-eos"]
    run = cli(*base, "-n", 6, "--json")
    speed = run.json["speed"]
    assert (speed["prefill"]["tokens"], speed["decode"]["tokens"]) == (3, 5)
    both = speed["prefill"]["seconds"] + speed["decode"]["seconds"]
    assert 0 < both < run.json["seconds"] + 1
    shown = show_rounded(speed["decode"]["tokens_per_second"])
    assert f"decode {shown} tokens/s" in run.words
    one = cli(*base, "-n", 1, "--json")
    assert one.json["speed"]["decode"] is None and " decode " not in one.words


def test_a_part_is_verified(cli: Cli, program: Path, needs: Needs) -> None:
    needs("cc", "make")
    base = ["run", program, "--prompt-ids", "1,5,9", "-n", 6, "--ignore-eos", "--json"]
    result = cli(*base, "--verify", "every:4")
    assert result.code == 0
    # 8 positions x 20 values, and 6 of the last layer; tokens 0, 4 and 5 with their logits and text
    assert result.json["verdict"] == {
        "compared": (8 + 6) * 20 + 3 * (107 + 2), "mismatched": 0, "first_difference": None, "every": 4,
    }  # fmt: skip
    assert "logits and choice of 3 of 6 tokens (--verify every:4), equal" in result.words
    assert cli(*base, "--verify", "all").json["verdict"]["every"] == 1
    # where a difference is found, all of the run is compared
    plan = json.loads((program / "plan.json").read_text())
    at = next(p for p in plan["placements"] if p["name"] == "layer1.o")
    blob = program / "blobs/wmem.bin"
    data = bytearray(blob.read_bytes())
    data[at["offset"] + 16 + 3] ^= 0x40
    blob.write_bytes(data)
    broken = cli(*base, "--verify", "every:4")
    assert broken.code == 60 and broken.json["verdict"]["first_difference"]["op"] == "mid"


@pytest.mark.parametrize("value", ["every", "every:", "every:0", "every:-1", "some", "every:1e3"])
def test_verify_refused(cli: Cli, compiled: Path, value: str) -> None:
    result = cli("run", compiled, "--verify", value)
    assert (result.code, result.out) == (2, "")
    assert f"--verify {value} is not possible" in result.words
    result = cli("run", compiled, "--verify", "all", "--no-verify")
    assert (result.code, "cannot be used together" in result.words) == (2, True)


@pytest.mark.slow
def test_make_options(cli: Cli, program: Path, needs: Needs) -> None:
    needs("cc", "make")
    result = cli(
        "run", program, "--prompt", "x", "--tokens", 2, "--make", "SAN=1", "--make", "CORES=3"
    )
    assert result.code == 0
    assert "-fsanitize=address" in (program / "build/host/flags").read_text()


@pytest.mark.parametrize("target", ["host", "rv32"])
def test_a_machine_the_program_was_not_compiled_for(
    cli: Cli, model: Path, tmp_path: Path, target: str
) -> None:
    out = tmp_path / "out"
    assert cli("compile", model, "-o", out, "--target", target).code == 0
    others = {"host": ("qemu", "gvsoc"), "rv32": ("gvsoc",)}[target]
    for machine in others:
        result = cli("run", out, "--on", machine)
        assert (result.code, result.out) == (2, "")
        assert f"was compiled for {target} and does not run on {machine}" in result.words
    assert not (out / "build").exists()


def test_a_target_that_is_none(cli: Cli, program: Path) -> None:
    manifest = json.loads((program / "manifest.json").read_text())
    (program / "manifest.json").write_text(json.dumps({**manifest, "target": "board"}))
    result = cli("run", program)
    assert result.code == 61 and "names the target 'board'" in result.words


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--prompt", "a" * 64], "no room for an answer"),
        (["--prompt", "abc", "--tokens", 100], "leaves 60"),
        (["--prompt", "abc", "--tokens", 0], "allowed: 1 to 60"),
        (["--prompt", "a", "--prompt-ids", "1"], "cannot be used together"),
        (["--prompt-ids", "1,two"], "not a list of numbers"),
        (["--prompt-ids", "1,107"], "107 is not a token of this model"),
        (["--temperature", "0.001"], "0.02 to 100"),
        (["--temperature", "nan"], "0.02 to 100"),
        (["--top-p", "0"], "above 0, at most 1"),
        (["--seed", "-1"], "0 to 4294967295"),
        (["--make", "CFLAGS=-O3"], "allowed: OPT="),
        (["--make", "CORES=0"], "allowed: 1 to 8"),
        (["--make", "CORES=nan"], "allowed: 1 to 8"),
        (["--timeout", "0"], "above 0"),
        (["--on", "board"], "'host', 'qemu', 'gvsoc'"),
    ],
    ids=str,
)
def test_impossible_requests(cli: Cli, compiled: Path, options: list[str], said: str) -> None:
    result = cli("run", compiled, *options)
    assert (result.code, result.out) == (2, "")
    assert said in result.words and "Hint:" in result.words


def test_a_build_that_fails_says_how_to_see_all_of_it(
    cli: Cli, program: Path, needs: Needs
) -> None:
    needs("cc", "make")
    result = cli("run", program, "--make", "OPT=-O2", "--make", "CC=cc -bogus flag")
    assert result.code == 51
    assert "run there: make host OPT=-O2 'CC=cc -bogus flag'" in result.words
    assert "\nHint: " in result.err  # not at the end of what make said


def test_directories_that_are_none(cli: Cli, program: Path, tmp_path: Path) -> None:
    assert cli("run", tmp_path / "nowhere").code == 61
    manifest = json.loads((program / "manifest.json").read_text())
    (program / "manifest.json").write_text(json.dumps({**manifest, "version": 99}))
    result = cli("run", program)
    assert result.code == 61 and "version 99" in result.words
    (program / "manifest.json").write_text("{")
    assert cli("run", program).code == 61


def test_missing_tools(
    cli: Cli, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = cli("run", program, "--prompt", "x")
    assert result.code == 50 and "apt-get install make" in result.words
    doctor = cli("doctor")
    assert doctor.code == 50
    assert "MISSING" in doctor.out and "sudo apt-get install gcc make" in doctor.words


def test_doctor(cli: Cli, needs: Needs) -> None:
    needs("cc", "make")
    result = cli("doctor", "--json")
    assert result.code == 0 and result.json["ok"] is True
    names = [t["name"] for t in result.json["tools"]]
    assert names == [
        "cc",
        "make",
        "riscv64-unknown-elf-gcc",
        "qemu-riscv32",
        "qemu-system-riscv32",
        "gvsoc",
    ]
    assert cli("doctor").out.count("\n") >= 5


def test_a_reader_that_stops_early(compiled: Path, needs: Needs) -> None:
    needs("cc", "make")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = f"'{sys.executable}' -m shrinkc run '{compiled}' --prompt hello --tokens 50 | true"
    done = subprocess.run(
        ["sh", "-c", command], env=env, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
