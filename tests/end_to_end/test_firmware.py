"""examples/firmware: a conversation of three turns says the same on every board, with the cache kept."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from shrinkc.importer import FloatModel, Tokenizer, load_model
from shrinkc.ir.graph import Graph
from shrinkc.simulate.proof import Request, reference
from shrinkc.targets import KIB, PULP_OPEN, SIRACUSA, Target, board_of

from .programs import ENV, Program, compile_model, need

FIRMWARE = Path(__file__).parents[2] / "examples/firmware"
LINES = ("Once upon a time", "The dog said", "Then they")
ANSWER, ON_GVSOC = 24, 3  # tokens of an answer; a token takes the simulator several seconds


def expected_bytes(graph: Graph, tokenizer: Tokenizer, answer: int) -> bytes:
    """What the interpreter says, given all that was said before."""
    pieces, history, said = tokenizer.decode_table(), list[int](), b""
    for line in LINES:
        ids = tokenizer.encode(line)
        history += ids[1:] if history and ids[0] == history[0] else ids
        new = reference(graph, Request(tuple(history), answer)).tokens
        history += new
        text = b"".join(pieces[token] for token in new if token not in graph.eos_ids)
        said += text.removeprefix(b" ") if not said and tokenizer.strip_leading_space else text
        said += b"\n"
    return said


def talk(
    command: list[str | Path], model: FloatModel, graph: Graph, lines: Path, answer: int
) -> None:
    """Send the lines to a firmware, and compare its answers."""
    with lines.open() as stdin:
        done = subprocess.run(
            command, stdin=stdin, capture_output=True, timeout=580, env=ENV, check=False
        )
    assert done.returncode == 0, done.stderr[-2000:]
    told = expected_bytes(graph, model.tokenizer, answer)
    assert done.stdout.replace(b"\r", b"").endswith(told), (done.stdout, told)


def compile_story(target: Target, out: Path) -> tuple[FloatModel, Program]:
    model = load_model(FIRMWARE.parent / "stories")
    return model, compile_model(model, out, context=256, target=target, name="stories")


def write_lines(file: Path, board: str) -> Path:
    """The lines that a person types; on a board Ctrl-D ends them."""
    file.write_text("".join(f"{line}\n" for line in LINES) + "\x04" * (board == "virt"))
    return file


def converse(board: str, target: Target, folder: Path, answer: int = ANSWER) -> None:
    """Compile the story model, build the firmware, talk to it."""
    model, program = compile_story(target, folder / "out")
    lines = write_lines(folder / "lines", board)
    make = [
        "make", "-s", "-C", FIRMWARE, f"OUT={program.out}", f"BOARD={board}", f"BUILD={folder / 'build'}",
        f"ANSWER={answer}", "run",
    ]  # fmt: skip
    talk(make, model, program.graph, lines, answer)


def test_a_conversation_on_the_host(tmp_path: Path) -> None:
    need("host")
    converse("host", SIRACUSA, tmp_path)


def test_a_conversation_on_a_board(tmp_path: Path) -> None:
    """The linker script has the sizes of memory that the model was compiled for, and the firmware keeps them."""
    board = board_of(150 * KIB, 700 * KIB)
    need("qemu", board)
    converse("virt", board, tmp_path)
    listed = subprocess.run(
        ["riscv64-unknown-elf-size", "-A", tmp_path / "build/firmware.elf"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    rows = (line.split() for line in listed.splitlines() if line.startswith("."))
    sizes = {name: int(size) for name, size, _ in rows}
    assert sizes[".stack"] + sizes[".data"] + sizes[".bss"] <= board.l1
    assert sum(sizes[f".{x}"] for x in ("text", "rodata", "sc_wmem", "data")) <= board.room("wmem")


@pytest.mark.slow
@pytest.mark.gvsoc
@pytest.mark.parametrize("target", [SIRACUSA, PULP_OPEN], ids=str)
def test_a_conversation_on_gvsoc(target: Target, tmp_path: Path) -> None:
    need("gvsoc", target)
    converse(target.name, target, tmp_path, ON_GVSOC)
