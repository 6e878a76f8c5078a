"""Prompt lookup: token for token, hash for hash what plain greedy decoding gives, in fewer passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.tiers import in_tiers
from helpers.tiny_llama import write_tiny_llama
from shrinkc.abi import LOOKUP_MAX, Exit, Trace
from shrinkc.core.errors import DoesNotFit, RunFailed
from shrinkc.importer import FloatModel, load_model
from shrinkc.ir.steps import PassSizes
from shrinkc.memory.plan import Plan, planned_sizes
from shrinkc.memory.planner import make_plan
from shrinkc.quantize import QuantOptions, lower
from shrinkc.simulate import run_program
from shrinkc.simulate.proof import Pass, Record, Request, compare, parse, reference
from shrinkc.targets import KIB, SIRACUSA

from .programs import (
    ENV,
    WARM,
    Program,
    add_adapters,
    compile_graph,
    compile_model,
    l2_without_weights,
    need,
    random_request,
    shape_of,
    smallest_l1,
)

CONTEXT = 64
LOOPING = 14  # a seed whose greedy text comes back to what it said, and leaves it again
SIZES: dict[str, Any] = {
    "hidden": 20, "intermediate": 40, "tied": False, "seed": LOOPING, "max_position": CONTEXT,
}  # fmt: skip
NGRAM = 3


def draft(text: Sequence[int], most: int) -> list[int]:
    """What followed the longest end of ``text``, of 3 tokens at most, where it was last before."""

    def common(at: int) -> int:
        return next(
            (n for n in range(min(NGRAM, at)) if text[at - 1 - n] != text[-1 - n]), min(NGRAM, at)
        )

    length, at = max(((common(at), at) for at in range(1, len(text))), default=(0, 0))
    out = list(text)
    for i in range(0 if not length else most if length == NGRAM else min(most, 2 * length + 1)):
        out.append(out[at + i])
    return out[len(text) :]


def passes(request: Request, tokens: Sequence[int], verified: int) -> list[Pass]:
    """Of a run that gives ``tokens``, the last of them where it asks for no more or an end token came."""
    made, out = 1, []
    while made < len(tokens):
        text = [*request.prompt, *tokens[:made]]
        most = min(request.prompt_lookup, verified - 1, request.new_tokens - made - 1)
        guesses = draft(text, most)
        kept = 1
        while (
            kept <= len(guesses)
            and guesses[kept - 1] == tokens[made + kept - 1]
            and made + kept < len(tokens)
        ):
            kept += 1
        out.append(Pass(1 + len(guesses), kept))
        made += kept
    return out


def same(got: Record, want: Record) -> bool:
    """All that two runs say of the tokens that they chose; no position more, none less.  Before the prompt's end a
    run need not say what the last layer gives."""
    last, end = max(layer for _, layer in want.hashes), min(want.logits)
    must = {at: h for at, h in want.hashes.items() if at[0] >= end or at[1] < last}
    return (
        (got.tokens, got.complete) == (want.tokens, want.complete)
        and got.hashes in (must, want.hashes)
        and got.logits.keys() == want.logits.keys()
        and all(np.array_equal(got.logits[at], want.logits[at]) for at in want.logits)
    )


def prove_lookup(
    program: Program,
    on: str,
    request: Request,
    most: Sequence[int] = range(1, LOOKUP_MAX + 1),
    want: Record | None = None,
) -> list[list[Pass]]:
    """The passes of runs with drafts of up to ``most`` tokens, each proved against plain decoding."""
    want = reference(program.graph, request) if want is None else want
    verified = program.plan.verified
    found = []
    for n in most:
        asked = replace(request, prompt_lookup=n)
        got = parse(program.run(on, asked, timeout_s=300))
        verdict = compare(got, want, program.graph)
        assert verdict.ok, f"{on}, drafts of {n}: {verdict}"
        assert same(got, want)
        assert got.passes == passes(asked, want.tokens, verified)
        assert len(got.decode_times) == len(got.passes)
        found.append(got.passes)
    return found


def model_of(folder: Path, **sizes: Any) -> FloatModel:
    write_tiny_llama(folder, **{**SIZES, **sizes})
    return load_model(folder)


def repeating(model: FloatModel, new: int, seed: int = 3) -> Request:
    """A prompt in which things come again."""
    ids = np.random.default_rng(seed).integers(3, model.config.vocab_size, 5)
    return Request((1, *(int(i) for i in (*ids, *ids[:4], *ids))), new, ignore_eos=True)


@dataclass(frozen=True)
class Case:
    """A model, and a plan for it: that of the least L1 with which ``planned``."""

    sizes: dict[str, Any] = field(default_factory=dict)
    options: QuantOptions = field(default_factory=QuantOptions)
    ranks: dict[str, int] = field(default_factory=dict)
    planned: Callable[[Plan, PassSizes], bool] | None = None
    flash: bool = False


LONG = {"hidden": 772, "intermediate": 24, "heads": 2, "head_dim": 6, "layers": 1, "vocab": 90}
WIDE = {"hidden": 40, "intermediate": 88, "heads": 4, "kv_heads": 2, "head_dim": 6}
CASES = {
    "as planned": Case(),
    "passes of 2": Case(WIDE, planned=lambda plan, _: plan.chunk == 2),
    "the cache in pieces": Case(
        WIDE,
        planned=lambda plan, sizes: plan.chunk > 1 and not plan.kv_in_l1 and not sizes.kv_layer_in_l1,
    ),
    "a layer's cache in L1": Case(
        WIDE | {"layers": 3}, planned=lambda plan, sizes: plan.chunk > 1 and sizes.kv_layer_in_l1
    ),
    "logits in L2": Case(
        {"hidden": 12, "vocab": 1501, "head_dim": 4, "layers": 1},
        planned=lambda plan, _: plan.chunk > 1 and not plan.logits_in_l1,
    ),
    "flash, adapters, 4 bit": Case(
        WIDE, QuantOptions(bits=4, asymmetric=True, embedding_bits=4), {"q_proj": 3, "down_proj": 9},
        flash=True,
    ),
    "odd sizes, groups": Case(
        {"hidden": 37, "intermediate": 91, "heads": 3, "head_dim": 10, "vocab": 203},
        QuantOptions(group_size=17, short_last_group=True),
    ),
    "24 tokens in all: verified by 3": Case({"vocab": 24, "tied": True}),
    "blocks that cores split": Case(
        LONG, QuantOptions(bits=4, embedding_bits=4), planned=lambda plan, sizes: plan.verified > 1 and sizes.split
    ),
    "blocks that cores split, 8 bit": Case(
        LONG, planned=lambda plan, sizes: plan.verified > 1 and sizes.split
    ),
}  # fmt: skip


def build_case(case: Case, folder: Path) -> tuple[Program, FloatModel]:
    model = model_of(folder / "model", **case.sizes)
    add_adapters(model, case.ranks)
    graph, target, l1 = lower(model, case.options, CONTEXT), SIRACUSA, None
    shape = shape_of(graph, model)
    if case.planned is not None:
        for budget in range(smallest_l1(shape), SIRACUSA.l1, KIB // 2):
            try:
                plan = make_plan(shape, SIRACUSA, budget)
            except DoesNotFit:
                continue
            if case.planned(plan, planned_sizes(shape, SIRACUSA, plan)):
                l1 = budget
                break
        assert l1 is not None, "no budget gives such a plan"
    if case.flash:
        target = SIRACUSA.with_room(wmem=0, l2=l2_without_weights(shape))
    program = compile_graph(graph, model, folder / "out", target, l1)
    assert ({p.level for p in program.plan.placements} == {"flash"}) == case.flash
    return program, model


@pytest.mark.parametrize(("name", "sanitizers"), in_tiers(CASES, "as planned"))
def test_it_is_plain_greedy_decoding(name: str, sanitizers: dict[str, str], tmp_path: Path) -> None:
    """Drafts of 1 to 8 tokens, right ones and wrong ones, to the end of the context; sanitizers, threads."""
    need("host")
    program, model = build_case(CASES[name], tmp_path)
    again = repeating(model, 20)
    to_the_end = random_request(program.graph, np.random.default_rng(5), 9, CONTEXT - 9)
    want = reference(program.graph, again)
    program.build("host", **sanitizers)
    found = prove_lookup(program, "host", again, want=want)
    found += prove_lookup(program, "host", to_the_end, (3, 8))
    passes = [p for run in found for p in run]
    assert 0 < sum(p.kept - 1 for p in passes) < sum(p.tokens - 1 for p in passes)
    if not sanitizers:
        return
    cores = "8" if name.startswith("blocks") else "3"
    program.build("host", CORES=cores, LAZY="1")
    prove_lookup(program, "host", again, (2, 8), want)


@pytest.mark.slow
def test_no_race(tmp_path: Path) -> None:
    need("host")
    program, model = build_case(CASES["a layer's cache in L1"], tmp_path)
    program.build("host", SAN="thread", CORES="8", LAZY="1")
    prove_lookup(program, "host", repeating(model, 12), (8,))


@pytest.mark.slow
@pytest.mark.qemu
def test_on_qemu(tmp_path: Path) -> None:
    need("qemu")
    program, model = build_case(CASES["as planned"], tmp_path)
    prove_lookup(program.build("qemu"), "qemu", repeating(model, 30), (1, 4, 8))


@pytest.mark.gvsoc
@pytest.mark.parametrize(
    "name", [n for n in CASES if n not in ("passes of 2", "24 tokens in all: verified by 3")]
)
def test_on_the_soc(name: str, tmp_path: Path) -> None:
    need("gvsoc")
    program, model = build_case(CASES[name], tmp_path)
    prove_lookup(program.build("gvsoc"), "gvsoc", repeating(model, 24), (2, 8))


@pytest.mark.slow
def test_an_end_token_within_a_draft(tmp_path: Path) -> None:
    """It is the last of the run, though more behind it was drafted right; or it is as any other."""
    need("host")
    model = model_of(tmp_path / "probe")
    graph = lower(model, QuantOptions(), CONTEXT)
    start = (1, 40, 41)
    text = reference(graph, Request(start, CONTEXT - 3, ignore_eos=True)).tokens

    def candidates() -> Any:
        """(prompt, place of a token that is new, in a pass that keeps some before and some behind it)"""
        for cut in range(5, len(text) - 8):
            request = Request((*start, *text[:cut]), len(text) - cut, prompt_lookup=LOOKUP_MAX)
            made = 1
            for p in passes(request, text[cut:], 8):
                for i in range(made + 1, made + p.kept - 1):
                    if text[cut + i] not in text[cut : cut + i]:
                        yield request, i
                made += p.kept

    request, at = next(iter(candidates()))
    end = text[len(request.prompt) - 3 + at]
    model = model_of(tmp_path / "model", eos_ids=[end, 2])
    program = compile_model(model, tmp_path / "out", context=CONTEXT).build("host", SAN="1")
    want = reference(program.graph, request)
    assert len(want.tokens) == at + 1 and want.tokens[-1] == end
    stopped = prove_lookup(program, "host", replace(request, prompt_lookup=0), want=want)
    going = prove_lookup(program, "host", replace(request, prompt_lookup=0, ignore_eos=True))
    assert stopped[-1] == [*going[-1][: len(stopped[-1]) - 1], stopped[-1][-1]]
    assert 1 < stopped[-1][-1].kept < going[-1][len(stopped[-1]) - 1].kept


@pytest.mark.slow
@pytest.mark.parametrize(
    "ids", [(5, 5, 3, 3, 5, 5, 4), (4, 3, 5, 5, 3, 3, 3), (3, 5, 3, 3, 5, 3, 4)]
)
def test_a_wrong_draft_leaves_no_scale(ids: tuple[int, ...], tmp_path: Path) -> None:
    """Of 64 heads, some have their largest value at a token that does not count: what is kept of all positions'
    scales is without it.  With it, each of these prompts gives other integers."""
    need("host")
    sizes = {"hidden": 64, "intermediate": 64, "heads": 16, "kv_heads": 16, "head_dim": 4}
    model = model_of(tmp_path / "model", **sizes, layers=4, seed=5)
    program = compile_model(model, tmp_path / "out", context=CONTEXT).build(
        "host", SAN="1", CORES="8"
    )
    found = prove_lookup(program, "host", Request((1, *ids), 12, ignore_eos=True), (4,))
    assert any(p.kept < p.tokens for p in found[0])


@pytest.mark.slow
def test_a_wrong_draft_leaves_the_dump_alone(tmp_path: Path) -> None:
    """A position that was fed a wrong token first is dumped as it was in the end."""
    need("host")
    program, model = build_case(CASES["as planned"], tmp_path)
    program.build("host")
    request = replace(repeating(model, 20), prompt_lookup=4)
    found = parse(program.run("host", request)).passes
    position, wrong = len(request.prompt), None
    for p in found:
        if p.kept < p.tokens:
            wrong = position + p.kept  # the first that is fed again
        position += p.kept
    assert wrong is not None and wrong < position
    dumps = []
    for asked in (request, replace(request, prompt_lookup=0)):
        words = asked.words(CONTEXT, Trace.DUMP, (wrong, 1))
        dumps.append(
            parse(run_program(program.out, "host", words, env=ENV, timeout_s=60).lines).dumps
        )
    assert dumps[0].keys() == dumps[1].keys() and len(dumps[0]) > 5
    for name, values in dumps[1].items():
        np.testing.assert_array_equal(dumps[0][name], values, name)


@pytest.mark.parametrize(
    ("lookup", "l1", "sampling", "said"),
    [
        (9, False, None, "more tokens to draft than a draft may have"),
        (3, False, WARM, "lookup is for greedy sampling"),
        (3, True, None, "no room for lookup: a pass of this program cannot verify a draft"),
    ],
)
def test_the_program_refuses(
    tmp_path: Path, lookup: int, l1: bool, sampling: Any, said: str
) -> None:
    need("host")
    case = replace(CASES["as planned"], planned=(lambda plan, _: plan.chunk == 1) if l1 else None)
    program, model = build_case(case, tmp_path)
    request = replace(repeating(model, 3), prompt_lookup=lookup)
    if sampling is not None:
        request = replace(request, sampling=sampling)
    program.build("host")
    words = request.words(CONTEXT, Trace.PROOF)
    done = run_program(program.out, "host", words, env=ENV, timeout_s=60)
    assert done.exit_code == Exit.REFUSED
    with pytest.raises(RunFailed, match=said):
        parse(done.lines)
