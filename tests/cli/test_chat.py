"""``shrinkc chat``: what the program is asked in every turn, what ends an answer, and what is refused."""

from __future__ import annotations

import io
import itertools
import json
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import shrinkc
from helpers.tiny_llama import write_tiny_llama
from shrinkc.cli import stopping
from shrinkc.core.errors import ToolMissing
from shrinkc.driver import running

from .conftest import Cli, Result

Needs = Callable[..., None]
Chat = Callable[..., Result]

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "t", "parameters": {}}}]
TOOL_TEMPLATE = (
    "{{ bos_token }}{% for tool in tools or [] %}[{{ tool.function.name }}]{% endfor %}"
    + TEMPLATE.removeprefix("{{ bos_token }}")
)
STORIES = Path(__file__).resolve().parents[2] / "examples" / "stories"


def talking(folder: Path, template: str = TEMPLATE) -> Path:
    (folder / "chat_template.jinja").write_text(template)
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    return folder


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that never ends an answer by itself, with room for some turns."""
    folder = tmp_path_factory.mktemp("chat")
    write_tiny_llama(folder / "tiny", max_position=120, eos_ids=None)
    return shrinkc.compile(talking(folder / "tiny"), folder / "out", target="host").output


@pytest.fixture
def chat(cli: Cli, needs: Needs, monkeypatch: pytest.MonkeyPatch) -> Chat:
    """chat(program, messages, ...): the messages come line by line from no terminal."""
    needs("cc", "make")

    def run(program: Path, messages: Sequence[str] | bytes, *options: object) -> Result:
        lines = messages if isinstance(messages, bytes) else "\n".join(messages).encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
        return cli("chat", program, *options)

    return run


def test_every_turn_is_told_all_that_was_said(cli: Cli, chat: Chat, program: Path) -> None:
    options = ["--tokens", 8, "--temperature", 0.7, "--seed", 3]
    said = chat(program, ["the", "", "in a"], "--system", "you are", *options, "--json")
    assert said.code == 0
    first, second = said.json["answers"]
    text = (
        f"system: you are\nuser: the\nassistant: {first['answer'].strip()}\nuser: in a\nassistant:"
    )
    same = cli("run", program, "--prompt", text, *options, "--json")  # BOS is put in front of it
    assert second["prompt_tokens"] == same.json["prompt_tokens"]
    assert second["new_tokens"] == same.json["new_tokens"]
    assert (first["message"], first["ended"], first["verdict"]) == ("the", "tokens", None)

    told = chat(program, ["the", "in a"], "--system", "you are", *options)
    assert told.code == 0
    assert told.out == f"{first['answer']}\n{second['answer']}\n"
    assert "not verified without --verify" in told.words
    assert told.words.count("note: the answer ends here by --tokens") == 2


def test_answers_are_verified(chat: Chat, program: Path, tmp_path: Path) -> None:
    result = chat(program, ["the", "a"], "--tokens", 4, "--verify", "--json")
    assert result.code == 0
    verdicts = [answer["verdict"] for answer in result.json["answers"]]
    assert len(verdicts) == 2
    assert all(v["compared"] > 0 == v["mismatched"] for v in verdicts)
    assert result.words.count("verified bit for bit: all layer outputs, logits and tokens") == 2

    broken = Path(shutil.copytree(program, tmp_path / "broken"))
    blobs = list((broken / "blobs").glob("*.bin"))
    blob = max((b for b in blobs if b.name != "tokenizer.bin"), key=lambda b: b.stat().st_size)
    data = bytearray(blob.read_bytes())
    data[len(data) // 3 :] = bytes(b ^ 0x40 for b in data[len(data) // 3 :])
    blob.write_bytes(data)
    assert chat(broken, ["the"], "--tokens", 4, "--verify").code == 60


def test_an_answer_takes_the_time_of_its_own_tokens(chat: Chat, program: Path) -> None:
    """The program processes what is new, and is verified; the tokens are those of a run over all that was said."""
    options = ["--tokens", 6, "--temperature", 0.7, "--verify", "--json"]
    answers = chat(program, ["the", "in a", "cat"], *options).json["answers"]
    assert answers[0]["cached_tokens"] == 0
    for before, answer in itertools.pairwise(answers):
        prompt, known = answer["prompt_tokens"], before["prompt_tokens"] + before["new_tokens"]
        same = [a == b for a, b in zip(prompt, known, strict=False)].index(False)
        assert answer["cached_tokens"] == same - 1 >= len(before["prompt_tokens"]) - 1
        # of each new token all layers, and of each chosen one logits, token and text
        assert answer["verdict"]["mismatched"] == 0 < answer["verdict"]["compared"]
        alone = shrinkc.run(
            program, prompt_ids=prompt, tokens=6, temperature=0.7, on="host", reporter=None
        )
        assert answer["new_tokens"] == alone.new_tokens


def test_on_qemu(
    chat: Chat, model: Path, tmp_path: Path, needs: Needs, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("riscv64-unknown-elf-gcc", "qemu-riscv32")
    folder = talking(Path(shutil.copytree(model, tmp_path / "model")))
    out = shrinkc.compile(folder, tmp_path / "out", context=64).output
    options = ["--on", "qemu", "--tokens", 2, "--verify", "--json"]
    answers = chat(out, ["the", "a"], *options).json["answers"]
    assert [a["verdict"]["mismatched"] for a in answers] == [0, 0]
    assert answers[1]["cached_tokens"] > 0

    def missing(name: str, *_: object) -> Path:
        raise ToolMissing(f"{name} is missing.")

    monkeypatch.setattr("shrinkc.simulate.runner.require_tool", missing)
    result = chat(out, ["the"], "--on", "qemu")  # before anything is typed
    assert (result.code, result.out) == (50, "") and "qemu-riscv32 is missing" in result.words


def test_a_conversation_goes_on_after_its_program_has_ended(program: Path, needs: Needs) -> None:
    needs("cc", "make")
    with shrinkc.chat(program, tokens=4, verify=True) as talk:
        first = talk.ask("the")
        talk.close()
        second = talk.ask("a")
        third = talk.ask("in")
    assert [a.result.cached_tokens > 0 for a in (first, second, third)] == [False, False, True]
    assert all(a.result.verdict is not None and a.result.verdict.ok for a in (second, third))


def test_a_full_context_forgets_the_oldest(chat: Chat, program: Path) -> None:
    result = chat(program, ["the", "a cat", "in"], "--system", "you", "--json")
    assert result.code == 0
    answers = result.json["answers"]
    assert [a["forgotten"] for a in answers] == [0, 1, 1]
    assert {a["ended"] for a in answers} == {"context"}
    assert all(len(a["prompt_tokens"]) + len(a["new_tokens"]) == 120 for a in answers)
    assert "the context of 120 tokens is full, the answer ends here" in result.words
    assert "was full: the oldest message and its answer are forgotten" in result.words
    # what the system was told stays: the prompt is that of the message alone
    alone = chat(program, ["in"], "--system", "you", "--json").json["answers"][0]
    assert answers[2]["prompt_tokens"] == alone["prompt_tokens"]


def test_ctrl_c_ends_the_answer(chat: Chat, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[str] = []

    def write(text: str) -> None:
        pieces.append(text)
        if len(pieces) == 4:
            stopping._stop(2, None)  # as the signal does

    monkeypatch.setattr("shrinkc.cli.chatting.write_text", write)
    asked: list[Any] = []
    encode = shrinkc.importer.Tokenizer.encode_chat

    def encoding(self: Any, message: Any, before: Any = (), tools: Any = None) -> list[int]:
        asked.append([m["content"] for m in before])
        return encode(self, message, before)

    monkeypatch.setattr("shrinkc.importer.Tokenizer.encode_chat", encoding)
    result = chat(program, ["the", "a"], "--tokens", 8)
    assert result.code == 0
    assert result.words.count("note: stopped; what was said of the answer counts") == 1
    assert asked[-1] == ["the", "".join(pieces[:4])]
    assert len(pieces) > 12  # the second answer is whole


def test_ctrl_c_before_the_answer_takes_the_message_back(
    chat: Chat, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = running.KeptProgram.run
    calls = []

    def stopped_at_first(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return stopping._stop(2, None) if len(calls) == 1 else run(*arguments, **options)

    monkeypatch.setattr(running.KeptProgram, "run", stopped_at_first)
    result = chat(program, ["the", "a"], "--tokens", 4, "--json")
    assert result.code == 0
    assert "note: stopped before anything was said; the message does not count" in result.words
    (answer,) = result.json["answers"]
    alone = chat(program, ["a"], "--tokens", 4, "--json").json["answers"][0]
    assert answer["prompt_tokens"] == alone["prompt_tokens"]


@pytest.mark.slow
def test_on_a_terminal(tmp_path: Path, needs: Needs) -> None:
    """Streaming, Ctrl-C in an answer and at the prompt, Ctrl-D."""
    needs("cc", "make")
    model = talking(Path(shutil.copytree(STORIES, tmp_path / "stories")))
    out = shrinkc.compile(model, tmp_path / "out", target="host", context=512).output
    ours, theirs = pty.openpty()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-m", "shrinkc", "chat", str(out), "--temperature", "1"]

    def terminal() -> None:
        os.setsid()
        os.close(os.open(os.ttyname(0), os.O_RDWR))  # makes it the one that Ctrl-C comes from

    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, preexec_fn=terminal
    ) as process:
        os.close(theirs)
        seen = ""

        def until(text: str, after: int, typed: bytes = b"") -> int:
            """Where ``text`` ends in what is on the screen after ``typed``; which is typed again if nothing
            comes, for what is typed while a prompt changes the terminal's mode is lost."""
            nonlocal seen
            deadline = time.monotonic() + 60
            os.write(ours, typed)
            while text not in seen[after:]:
                ready, _, _ = select.select([ours], [], [], 5)
                assert ready or time.monotonic() < deadline, seen
                if ready:
                    seen += os.read(ours, 4096).decode()
                else:
                    os.write(ours, typed)
            return seen.index(text, after) + len(text)

        try:
            at = until("> ", 0)
            at = until("Once upon a time\r\n", at, b"Once upon a time\n")
            at = until(" ", at)  # the answer has begun
            at = until("note: stopped", at, b"\x03")
            at = until("> ", at)
            at = until("Ctrl-D ends the chat", at, b"never said\x03")
            at = until("> ", at)
            for _ in range(12):
                os.write(ours, b"\x04")
                with suppress(subprocess.TimeoutExpired):
                    assert process.wait(5) == 0
                    break
            assert process.returncode == 0
        finally:
            process.kill()
            os.close(ours)


@pytest.mark.parametrize(
    ("template", "options", "said"),
    [
        (None, [], "has no chat template. Hint: use 'shrinkc run"),
        ("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}",
         ["--system", "be brief"], "--system is not possible: the model's chat template has no place"),
        ("{{ raise_exception('System role not supported') if messages[0].role == 'system' }}" + TEMPLATE,
         ["--system", "be brief"],
         "--system is not possible: the model's chat template cannot be used: TemplateError: System role not "
         "supported. Hint: put it into the first message instead"),
        ("Q: {{ messages[-1].content }}", [], "the model's chat template keeps only one message"),
        (TEMPLATE, ["--tools", "TOOLS"], "--tools is not possible: the model's chat template has no place for tools"),
        (TEMPLATE, ["--tokens", 0], "--tokens 0 is not possible"),
        (TEMPLATE, ["--tokens", 64], "an answer can have"),
        (TEMPLATE, ["--on", "gvsoc"], "does not run on gvsoc"),
    ],
)  # fmt: skip
def test_refused(
    chat: Chat, model: Path, tmp_path: Path, template: str | None, options: list[object], said: str
) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    if template is not None:
        talking(folder, template)
    out = shrinkc.compile(folder, tmp_path / "out", target="host").output
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    given = [tmp_path / "tools.json" if option == "TOOLS" else option for option in options]
    result = chat(out, ["the"], *given)
    assert (result.code, result.out) == (2, "")
    assert said in result.words


def test_tools_and_their_results(model: Path, tmp_path: Path, cli: Cli, chat: Chat) -> None:
    """The template shows the tools; a result of a tool has its role, and is forgotten together with the call."""
    folder = talking(Path(shutil.copytree(model, tmp_path / "model")), TOOL_TEMPLATE)
    out = shrinkc.compile(folder, tmp_path / "out", target="host", context=64).output
    file = tmp_path / "tools.json"
    file.write_text(json.dumps(TOOLS))
    first = chat(out, ["the"], "--tools", file, "--tokens", 2, "--json").json["answers"][0]
    same = cli("run", out, "--prompt", "the", "--chat", "--tools", file, "--tokens", 2, "--json")
    text = cli("run", out, "--prompt", "[t]user: the\nassistant:", "--tokens", 2, "--json")
    assert first["prompt_tokens"] == same.json["prompt_tokens"] == text.json["prompt_tokens"]

    with shrinkc.chat(out, tools=TOOLS, tokens=2) as talk:
        call = talk.ask("the").text
        answer = talk.ask("in", role="tool")
        want = f"[t]user: the\nassistant: {call.strip()}\ntool: in\nassistant:"
        ids = cli("run", out, "--prompt", want, "--tokens", 2, "--json").json["prompt_tokens"]
        assert answer.result.prompt_tokens == ids
        assert talk.roles == ["user", "tool"]
        while not answer.forgotten:
            answer = talk.ask("a")
        assert answer.forgotten == 2 and talk.roles[0] == "user"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        ("[", "cannot be read"),
        ('{"name": 1}', "is no list of JSON objects"),
        ('["weather"]', "is no list of JSON objects"),
    ],
)
def test_tools_that_cannot_be(cli: Cli, tmp_path: Path, content: str | None, said: str) -> None:
    file = tmp_path / "tools.json"
    if content is not None:
        file.write_text(content)
    result = cli("chat", tmp_path, "--tools", file)
    assert (result.code, result.out) == (2, "")
    assert f"--tools {file} {said}" in result.words


def test_tools_need_the_template(cli: Cli, program: Path, tmp_path: Path) -> None:
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    result = cli("run", program, "--prompt", "the", "--tools", tmp_path / "tools.json")
    assert result.code == 2
    assert "--tools needs the model's chat template. Hint: add --chat" in result.words


def test_messages_that_cannot_be(chat: Chat, program: Path) -> None:
    result = chat(program, ["a" * 120])
    assert (result.code, result.out) == (2, "")
    assert "compiled for a context of 120" in result.words
    result = chat(program, b"\xff\n")
    assert (result.code, result.out) == (2, "")
    assert "a message is not UTF-8 text" in result.words
