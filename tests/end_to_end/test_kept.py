"""A program that keeps its KV cache from one input to the next: the same integers as a run over all tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from helpers.tiny_llama import write_tiny_llama
from shrinkc.abi import Trace
from shrinkc.build.layout import PROGRAM
from shrinkc.core.errors import RunFailed
from shrinkc.importer import load_model
from shrinkc.ir.interpreter import Interpreter
from shrinkc.simulate import KeptProgram
from shrinkc.simulate.proof import Request, compare, followed, parse, reference
from shrinkc.targets import PULP_OPEN, SIRACUSA, Target
from shrinkc.targets.board import BOARD

from .programs import ENV, GREEDY, WARM, Program, compile_model, need

KINDS = [
    pytest.param("host", SIRACUSA, id="host"),
    pytest.param("qemu", SIRACUSA, id="qemu"),
    pytest.param("qemu", BOARD, id="board"),
    pytest.param("gvsoc", SIRACUSA, id="siracusa", marks=pytest.mark.gvsoc),
    pytest.param("gvsoc", PULP_OPEN, id="pulp-open", marks=pytest.mark.gvsoc),
]


@pytest.fixture
def program(on: str, target: Target, tmp_path: Path) -> Iterator[tuple[Program, KeptProgram]]:
    need(on, target)
    write_tiny_llama(tmp_path / "model", hidden=64, intermediate=128, layers=2)
    program = compile_model(load_model(tmp_path / "model"), tmp_path / "out", target=target)
    program.build(on)
    with closing(KeptProgram(program.out, on, env=ENV, target=target)) as kept:
        yield program, kept


@pytest.mark.parametrize(("on", "target"), KINDS)
def test_what_is_kept_is_as_if_processed_again(program: tuple[Program, KeptProgram]) -> None:
    """A next turn, a prompt that leaves the last one in its middle, one from the start, and drafts."""
    made, kept = program
    interpreter = Interpreter(made.graph)

    def turn(prompt: tuple[int, ...], same: int, lookup: int = 0) -> list[int]:
        sampling = GREEDY if lookup else WARM
        request = Request(prompt, 4, sampling, True, lookup, kept=same, more=True)
        lines = kept.run(request.words(made.graph.context, Trace.PROOF), timeout_s=300).lines
        got = parse(lines)
        want = followed(made.graph, request, got.tokens, 1, interpreter)
        assert want is not None
        positions = len(prompt) - request.cached + 4 - 1
        assert len(want.hashes) == positions * made.graph.num_layers
        verdict = compare(got, want, made.graph)
        assert verdict.ok, verdict
        again = reference(made.graph, Request(prompt, 4, sampling, True, lookup))
        assert got.tokens == again.tokens
        assert want.hashes.items() <= again.hashes.items()
        return [*prompt, *got.tokens]

    said = turn((5, 6, 7, 8, 9), 0)
    said = turn((*said, 10, 11), len(said))
    said = turn((*said[:7], 12, 13), 7)
    said = turn((*said[:1], 3, 4, 3, 4, 3), 1, lookup=2)
    said = turn((*said, 3), len(said), lookup=2)
    turn((14, 15), 0)


@pytest.mark.parametrize(("on", "target"), KINDS)
def test_nothing_is_kept_before_the_first_input(program: tuple[Program, KeptProgram]) -> None:
    made, kept = program
    words = Request((5, 6, 7), 2, GREEDY, kept=2, more=True).words(made.graph.context, Trace.TIME)
    output = kept.run(words, timeout_s=300)
    with pytest.raises(RunFailed, match="refused its input: result of llm.h: -13"):
        parse(output.lines)
    assert output.exit_code == 3


def test_a_program_that_does_not_answer(tmp_path: Path) -> None:
    program = tmp_path / PROGRAM["host"]
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho begun\nsleep 60\n")
    program.chmod(0o755)
    with closing(KeptProgram(tmp_path, "host", env=ENV, target=SIRACUSA)) as kept:
        with pytest.raises(RunFailed, match=r"did not end within 0.5 s(.|\n)*begun"):
            kept.run([0] * 100_000, timeout_s=0.5)  # more than a pipe takes
        program.write_text("#!/bin/sh\necho broken >&2\nexit 7\n")
    with closing(KeptProgram(tmp_path, "host", env=ENV, target=SIRACUSA)) as kept:
        output = kept.run([0] * 100_000, timeout_s=60)
        assert (output.exit_code, output.errors) == (7, ["broken"])
