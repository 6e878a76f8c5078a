"""Property: a random LLaMA shape either compiles and gives the interpreter's integers on the
host and under qemu-riscv32, or is refused with a documented error.

`make random-shapes` proves more of them, on GVSoC too.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.campaign import journal_of
from helpers.layer import MODULES
from helpers.quantised import Format
from helpers.tiers import slow_but
from helpers.tiny_llama import write_tiny_llama
from shrinkc.build import build_program
from shrinkc.importer import load_model
from shrinkc.ir.graph import Graph
from shrinkc.quantize import QuantOptions
from shrinkc.simulate.proof import Record, Request, reference
from shrinkc.storage import WIDTHS

from .programs import ENV, GREEDY, compile_model, missing, need
from .random_shapes import REFUSALS, campaign, rows, trait_rows, try_shape
from .shapes import build, draw, prove, requests

COUNT = 10


@pytest.mark.parametrize("seed", slow_but(range(COUNT), 1))
def test_random_shape_gives_the_interpreters_integers(tmp_path: Path, seed: int) -> None:
    need("host")
    case = draw(seed)
    try:
        program = build(case, tmp_path)
    except REFUSALS as refusal:
        pytest.skip(f"{case} refused: {refusal}")
    runs = requests(program, seed)
    assert prove(program, "host", seed, runs) > 0
    if missing("qemu") is None:
        assert prove(program, "qemu", seed, runs) > 0


@pytest.mark.slow
def test_the_most_hot_code_finds_its_place(tmp_path: Path) -> None:
    """Every width of weights, on the cores and on their engine, with adapters, biases and groups: the
    kernels of one program are all that there are, and it links for the chip."""
    need("qemu")
    case = draw(29)
    assert {f.bits for f in case.stored.values()} == set(WIDTHS)
    # as many zero points as share no factor with the widths: every width occurs with every one
    kinds = ("middle", "integer", "float", "integer", "float")
    widths, zeros = itertools.cycle(WIDTHS), itertools.cycle(kinds)
    stored = {
        f"{layer} {name}": Format(next(widths), None if layer % 2 else 16, next(zeros), layer == 0)
        for layer in range(5)
        for name in MODULES
    }
    sizes = {"layers": 5, "intermediate": 192, "tied": False}
    program = build(
        replace(
            case, model={**case.model, **sizes}, stored=stored, ranks=dict.fromkeys(MODULES, 2),
            place="usual",
        ),
        tmp_path,
    )  # fmt: skip
    assert {m.engine for m in program.shape.stored} == {"cores", "neureka_both"}
    build_program(program.out, "siracusa", env=ENV)


def test_qemu_is_there_for_the_property_above() -> None:
    """Without it the property was checked on the host only: shown as a skip, not hidden."""
    need("qemu")


def test_most_random_shapes_are_not_refused(tmp_path: Path) -> None:
    """The property above would be empty if everything were refused."""
    compiled = 0
    for seed in range(COUNT):
        try:
            build(draw(seed), tmp_path / str(seed))
            compiled += 1
        except REFUSALS:
            continue
    assert compiled >= 0.8 * COUNT


@pytest.mark.slow
def test_the_command_counts_goes_on_and_tells(tmp_path: Path) -> None:
    """A difference is a fault with its seed; what is in the journal is not proved again."""
    need("host")
    about = {"sources": "these"}
    calls: list[tuple[int, int, str]] = []

    def update(done: int, total: int, note: str = "") -> None:
        calls.append((done, total, note))

    path = tmp_path / "work" / "journal"
    journal = journal_of(path, about)
    first = campaign(journal, ("host",), 1, update)
    journal.close()
    again = journal_of(path, about)
    assert again.records == first == campaign(again, ("host",), 1, update)
    assert calls[0] == calls[1] and calls[0][:2] == (1, 1)
    wrong = {**first[0], "seed": 1, "compared": {}, "fault": "AssertionError: layer0[3]"}
    found = {("host",): [*first, wrong]}
    compared = first[0]["compared"]["host"]
    assert compared > 0 and rows(found) == [
        {"id": "host", "machine": "host", "matched": 1, "differ": 1, "refused": 0, "compared": compared, "seeds": "0–1"}
    ]  # fmt: skip
    assert {"id": "family", "property": "Family", "host": {draw(0).family: 1}} in trait_rows(found)
    again.add({**wrong, "seed": 0, "machines": ["host"]})
    again.close()
    third = journal_of(path, about)
    assert len(third.records) == 2
    assert campaign(third, ("host",), 1, update) == first, "a fault is tried again"
    third.close()
    others = journal_of(path, {"sources": "others"})
    assert others.records == []
    others.close()


def test_a_program_that_differs_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    need("host")

    def other(graph: Graph, request: Request) -> Record:
        want = reference(graph, request)
        want.tokens[-1] ^= 1
        return want

    monkeypatch.setattr("end_to_end.shapes.reference", other)
    record = try_shape(0, ("host",))
    assert "fault" in record and "mismatched=1" in record["fault"] and not record["compared"]


@pytest.mark.slow
def test_whole_context_from_one_token_prompt_under_threads(tmp_path: Path) -> None:
    """8 threads under the thread sanitizer: no race, and the interpreter's integers."""
    need("host")
    write_tiny_llama(
        tmp_path / "model", hidden=33, intermediate=50, heads=3, kv_heads=1, head_dim=4
    )
    program = compile_model(
        load_model(tmp_path / "model"),
        tmp_path / "out",
        QuantOptions(bits=4, asymmetric=True),
        context=24,
        l1_budget=None,
    ).build("host", CORES="8", SAN="thread", LAZY="1")
    program.prove("host", Request((1,), 23, GREEDY, ignore_eos=True))


@pytest.mark.slow
def test_end_token_ends_the_run(tmp_path: Path) -> None:
    """The chosen end token is the last one of a run, and a run may ignore it."""
    need("host")
    write_tiny_llama(tmp_path / "probe")
    graph = compile_model(load_model(tmp_path / "probe"), tmp_path / "a", context=20).graph
    first = reference(graph, Request((1, 40), 6, GREEDY, ignore_eos=True)).tokens
    write_tiny_llama(tmp_path / "model", eos_ids=[first[2], 2])
    program = compile_model(load_model(tmp_path / "model"), tmp_path / "out", context=20)
    program.build("host", SAN="1")
    stopped, going = (Request((1, 40), 6, GREEDY, ignore_eos=e) for e in (False, True))
    want = reference(program.graph, stopped)
    assert want.tokens == first[: first.index(first[2]) + 1]
    program.prove("host", stopped, want)
    program.prove("host", going)
