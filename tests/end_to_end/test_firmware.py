"""examples/firmware: a conversation of three turns says the same on every board, with the cache kept."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from shrinkc.importer import Tokenizer, load_model
from shrinkc.ir.graph import Graph
from shrinkc.simulate.proof import Request, reference
from shrinkc.targets import PULP_OPEN, SIRACUSA, Target

from .programs import ENV, compile_model, need

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


def converse(board: str, target: Target, folder: Path, answer: int = ANSWER) -> None:
    """Compile the story model, build the firmware, talk to it."""
    model = load_model(FIRMWARE.parent / "stories")
    program = compile_model(model, folder / "out", context=256, target=target)
    lines = folder / "lines"
    lines.write_text("".join(f"{line}\n" for line in LINES) + "\x04" * (board == "virt"))
    with lines.open() as stdin:
        done = subprocess.run(
            ["make", "-s", "-C", FIRMWARE, f"OUT={program.out}", f"BOARD={board}", f"BUILD={folder / 'build'}",
             f"INPUT={lines}", f"ANSWER={answer}", "run"],
            stdin=stdin, capture_output=True, timeout=580, env=ENV, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    told = expected_bytes(program.graph, model.tokenizer, answer)
    assert done.stdout.replace(b"\r", b"").endswith(told), (done.stdout, told)


@pytest.mark.parametrize("board", ["host", "virt"])
def test_a_conversation(board: str, tmp_path: Path) -> None:
    need("host" if board == "host" else "qemu")
    if board == "virt" and shutil.which("qemu-system-riscv32") is None:
        pytest.skip("qemu-system-riscv32 is not installed; apt-get install qemu-system-riscv")
    converse(board, SIRACUSA, tmp_path)


@pytest.mark.slow
@pytest.mark.gvsoc
@pytest.mark.parametrize("target", [SIRACUSA, PULP_OPEN], ids=str)
def test_a_conversation_on_gvsoc(target: Target, tmp_path: Path) -> None:
    need("gvsoc", target)
    converse(target.name, target, tmp_path, ON_GVSOC)
