"""The proof's own failure paths: every way a run can differ is found, counted and named.

A perfect run is made from the interpreter's own record; each test breaks one thing in the lines of
such a run and says what the verdict must be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from helpers.tiny_llama import write_tiny_llama
from shrinkc.core.errors import RunFailed
from shrinkc.importer import load_model
from shrinkc.ir.graph import Graph
from shrinkc.numerics.sampling import Sampling
from shrinkc.quantize import QuantOptions, lower
from shrinkc.simulate import proof
from shrinkc.simulate.proof import (
    Difference,
    Pass,
    Record,
    Request,
    Verdict,
    compare,
    followed,
    locate,
    op_values,
    parse,
    reference,
)

REQUEST = Request((1, 40, 41), 4, ignore_eos=True)
PROMPT, NEW = len(REQUEST.prompt), REQUEST.new_tokens
POSITIONS = PROMPT + NEW - 1
FIRST, LAST = PROMPT - 1, POSITIONS - 1  # positions whose logits are compared

Lines = list[str]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    folder = tmp_path_factory.mktemp("proof") / "model"
    write_tiny_llama(folder, seed=4)
    return lower(load_model(folder), QuantOptions(), 12)


@pytest.fixture(scope="module")
def want(graph: Graph) -> Record:
    return reference(graph, REQUEST)


@pytest.fixture(scope="module")
def pieces(graph: Graph) -> list[bytes]:
    return [b"<%d>" % i for i in range(graph.vocab)]


def word(value: int) -> str:
    return f"{value & 0xFFFFFFFF:08x}"


@pytest.fixture
def lines(want: Record, pieces: list[bytes]) -> Lines:
    """What a device that computes everything right prints."""
    out = ["booting, not a line of the protocol", ""]
    for position in range(POSITIONS):
        for (at, layer), value in want.hashes.items():
            if at == position:
                out.append(f"@H {at} {layer} {value:08x}")
        if position in want.logits:
            logits = want.logits[position]
            for first in range(0, len(logits), 8):
                words = " ".join(word(int(v)) for v in logits[first : first + 8])
                out.append(f"@L {position} {first} {words}")
            token = want.tokens[position - FIRST]
            out.append(f"@C {'P' if position == FIRST else 'D'} {100 + position}")
            out.append(f"@T {position} {token} {pieces[token].hex()}")
    return [*out, f"@Z {NEW}"]


def everything(graph: Graph) -> int:
    """Values of a whole comparison: layers' outputs, logits, tokens and their bytes."""
    return POSITIONS * graph.num_layers * graph.hidden + NEW * graph.vocab + 2 * NEW


Judge = Callable[[Lines], Verdict]


@pytest.fixture
def judge(graph: Graph, want: Record, pieces: list[bytes]) -> Judge:
    return lambda lines: compare(parse(lines), want, graph, pieces)


def without(lines: Lines, start: str) -> Lines:
    left = [line for line in lines if not line.startswith(start)]
    assert len(left) < len(lines), f"nothing begins with {start}"
    return left


def edited(lines: Lines, start: str, change: Callable[[list[str]], list[str]]) -> Lines:
    (at,) = (i for i, line in enumerate(lines) if line.startswith(start))
    return [*lines[:at], " ".join(change(lines[at].split())), *lines[at + 1 :]]


def test_a_right_run(judge: Judge, lines: Lines, graph: Graph) -> None:
    verdict = judge(lines)
    assert verdict.ok
    assert (verdict.compared, verdict.mismatched) == (everything(graph), 0)
    assert verdict.first_difference is None


def test_times_and_tokens_are_read(lines: Lines, want: Record) -> None:
    record = parse(lines)
    assert record.complete
    assert record.tokens == want.tokens
    assert record.prefill_time == 100 + FIRST
    assert record.decode_times == [100 + p for p in range(FIRST + 1, LAST + 1)]


def test_without_the_decode_table_no_text_is_compared(
    graph: Graph, want: Record, lines: Lines
) -> None:
    verdict = compare(parse(lines), want, graph)
    assert verdict.ok and verdict.compared == everything(graph) - NEW


def test_a_run_of_which_nothing_was_compared_has_failed(graph: Graph) -> None:
    verdict = compare(Record(complete=True), Record(complete=True), graph)
    assert verdict.compared == 0 and not verdict.ok


def test_a_run_that_said_nothing(judge: Judge, graph: Graph, want: Record) -> None:
    verdict = judge([])
    # what no run need say: of the last layer the outputs before that of the prompt's last token
    must = everything(graph) - graph.hidden * min(want.logits)
    assert not verdict.ok and verdict.compared == must
    # all of it, and the end that did not come
    assert verdict.mismatched == must + 1
    assert verdict.first_difference is not None
    assert verdict.first_difference.got == "missing"


def test_what_nothing_is_made_from(judge: Judge, lines: Lines, graph: Graph, want: Record) -> None:
    """Outputs of the last layer before the prompt's last token may all be left out, but not some, nor be wrong."""
    last, end = graph.num_layers - 1, min(want.logits)
    assert end > 1
    left = lines
    for at in range(end):
        left = without(left, f"@H {at} {last} ")
    verdict = judge(left)
    assert verdict.ok and verdict.compared == everything(graph) - graph.hidden * end
    assert judge(without(lines, f"@H {end - 1} {last} ")).mismatched == graph.hidden
    other = want.hashes[end - 1, last] ^ 1
    verdict = judge(edited(lines, f"@H {end - 1} {last} ", lambda f: [*f[:3], f"{other:08x}"]))
    assert verdict.mismatched == graph.hidden
    for place in (f"@H {end} {last} ", f"@H {end - 1} {last - 1} "):
        assert judge(without(lines, place)).mismatched == graph.hidden


def test_a_missing_hash(judge: Judge, lines: Lines, graph: Graph, want: Record) -> None:
    verdict = judge(without(lines, "@H 2 1 "))
    assert verdict.mismatched == graph.hidden
    expected = f"{want.hashes[2, 1]:08x}"
    assert verdict.first_difference == Difference(2, 1, "layer output hash", 0, "missing", expected)


def test_a_wrong_hash(judge: Judge, lines: Lines, graph: Graph, want: Record) -> None:
    other = want.hashes[1, 0] ^ 1
    verdict = judge(edited(lines, "@H 1 0 ", lambda f: [*f[:3], f"{other:08x}"]))
    assert verdict.compared == everything(graph) and verdict.mismatched == graph.hidden
    assert verdict.first_difference is not None
    assert (verdict.first_difference.step, verdict.first_difference.layer) == (1, 0)
    assert verdict.first_difference.got == f"{other:08x}"


def test_one_wrong_logit(judge: Judge, lines: Lines, want: Record) -> None:
    right = int(want.logits[FIRST][10])
    verdict = judge(edited(lines, f"@L {FIRST} 8 ", lambda f: [*f[:5], word(right ^ 4), *f[6:]]))
    assert verdict.mismatched == 1
    assert verdict.first_difference == Difference(FIRST, None, "logits", 10, right ^ 4, right)


def test_negative_logits_are_signed(lines: Lines, want: Record) -> None:
    assert min(int(v.min()) for v in want.logits.values()) < 0
    record = parse(lines)
    for position, logits in want.logits.items():
        np.testing.assert_array_equal(record.logits[position], logits)


@pytest.mark.parametrize("start", [f"@L {FIRST} 0 ", f"@L {FIRST} 104 "])
def test_logits_that_are_short(judge: Judge, lines: Lines, graph: Graph, start: str) -> None:
    """Then none of that position counts as equal."""
    verdict = judge(without(lines, start))
    assert verdict.mismatched == graph.vocab
    assert verdict.first_difference is not None
    assert verdict.first_difference.op == "logits"
    assert verdict.first_difference.expected == f"{graph.vocab} values"


def test_no_logits_at_all(judge: Judge, lines: Lines, graph: Graph) -> None:
    verdict = judge(without(lines, "@L "))
    assert verdict.mismatched == NEW * graph.vocab
    assert verdict.first_difference is not None
    assert verdict.first_difference.got == "0 values"


def drafted(lines: Lines, graph: Graph, kept: int) -> Lines:
    """The run again, its decode passes one of NEW - 1 tokens, the last of which were drafted wrong; only
    ``kept`` of them count, whose lines are not printed again."""
    begin = next(i for i, line in enumerate(lines) if line.startswith(f"@H {FIRST + 1} "))
    until = next(i for i, line in enumerate(lines) if line.startswith(f"@H {FIRST + 1 + kept} "))
    wrong = []
    for at in range(FIRST + 1 + kept, POSITIONS):
        wrong += [f"@H {at} {layer} 0000abcd" for layer in range(graph.num_layers)]
        wrong += [f"@L {at} {first} {word(7)} {word(8)}" for first in range(0, graph.vocab, 2)]
    done = f"@V {FIRST + 1} {NEW - 1} {kept}"
    return [*lines[:begin], *wrong, *lines[begin:until], done, *lines[until:]]


@pytest.mark.parametrize("kept", [1, 2])
def test_what_came_of_a_wrong_draft_does_not_count(
    judge: Judge, lines: Lines, graph: Graph, want: Record, kept: int
) -> None:
    """Nothing of it is left, and no value that was to be compared was not."""
    more = drafted(lines, graph, kept)
    verdict = judge(more)
    assert (verdict.compared, verdict.mismatched) == (everything(graph), 0)
    record = parse(more)
    assert record.hashes == want.hashes and record.logits.keys() == want.logits.keys()
    assert record.passes == [Pass(NEW - 1, kept)]
    # without the line that says so it is a difference, as is a position that is not fed again
    assert not judge(without(more, "@V ")).ok
    last = next(i for i, line in enumerate(more) if line.startswith("@V "))
    assert not judge([*more[: last + 1], *without(more[last + 1 :], "@H ")]).ok
    assert not judge([*more[: last + 1], *without(more[last + 1 :], "@L ")]).ok


def test_a_wrong_token(judge: Judge, lines: Lines, want: Record) -> None:
    wrong = (want.tokens[1] + 1) % 90
    at = FIRST + 1
    verdict = judge(edited(lines, f"@T {at} ", lambda f: [f[0], f[1], str(wrong), *f[3:]]))
    assert verdict.mismatched == 1
    assert verdict.first_difference == Difference(at, None, "token", 0, wrong, want.tokens[1])


def test_wrong_text(judge: Judge, lines: Lines, want: Record, pieces: list[bytes]) -> None:
    verdict = judge(edited(lines, f"@T {LAST} ", lambda f: [*f[:3], "41"]))
    assert verdict.mismatched == 1
    right = pieces[want.tokens[-1]].hex()
    assert verdict.first_difference == Difference(LAST, None, "text", 0, "41", right)


def test_a_token_that_is_missing(judge: Judge, lines: Lines) -> None:
    """And its text with it."""
    verdict = judge(without(lines, f"@T {LAST} "))
    assert verdict.mismatched == 2
    assert verdict.first_difference is not None
    assert (verdict.first_difference.op, verdict.first_difference.got) == ("token", "missing")


def test_more_tokens_than_asked_for(judge: Judge, lines: Lines) -> None:
    verdict = judge([*lines[:-1], f"@T {LAST + 1} 5 41", f"@T {LAST + 2} 6 42", lines[-1]])
    assert not verdict.ok and verdict.mismatched == 2
    assert verdict.first_difference is not None
    assert verdict.first_difference.got == "2 more tokens"


def test_a_run_without_an_end(judge: Judge, lines: Lines) -> None:
    verdict = judge(without(lines, "@Z"))
    assert not verdict.ok and verdict.mismatched == 1
    assert verdict.first_difference is not None
    assert verdict.first_difference.got == "no end of run"


def test_the_first_difference_is_the_first_in_order_of_execution(
    judge: Judge, lines: Lines, want: Record
) -> None:
    """Not in that of the lines: a layer comes before the logits, an earlier position before a later."""
    broken = edited(lines, f"@T {FIRST} ", lambda f: [f[0], f[1], "0", *f[3:]])
    broken = edited(broken, f"@H {FIRST} 1 ", lambda f: [*f[:3], "00000000"])
    broken = edited(broken, f"@H {LAST} 0 ", lambda f: [*f[:3], "00000000"])
    verdict = judge(list(reversed(broken)))
    assert verdict.first_difference is not None
    assert verdict.first_difference.step == FIRST and verdict.first_difference.layer == 1


def test_a_refusal_of_the_device_is_no_verdict() -> None:
    with pytest.raises(RunFailed, match="refused its input: top_p outside 1..65536"):
        parse(["@E top_p outside 1..65536"])


# ---- the closer look ----


@pytest.fixture(scope="module")
def dumped(graph: Graph, want: Record) -> dict[str, np.ndarray]:
    """What a right device dumps of layer 1 at the second position, under its names."""
    return op_values(graph, REQUEST, want, 1, 1)


def on_device(dumped: dict[str, np.ndarray], graph: Graph) -> dict[str, np.ndarray]:
    """As the device lays it out: these sizes need no padding, but heads have 4 bytes a word."""
    out = {name: value.copy() for name, value in dumped.items()}
    width = -(-graph.head_dim // 4) * 4
    heads = np.zeros((graph.heads, width), np.int64)
    heads[:, : graph.head_dim] = out["q8"].reshape(graph.heads, -1)
    out["q8"] = heads.reshape(-1)
    return out


def test_a_right_layer_has_no_difference(graph: Graph, dumped: dict[str, np.ndarray]) -> None:
    assert len(dumped) >= 12
    assert locate(on_device(dumped, graph), dumped, graph, 1, 1) is None


@pytest.mark.parametrize("name", ["attn_in.q", "attn_in.s", "qkv", "q8", "attn", "mid", "h", "out"])
def test_the_op_that_differs_is_named(
    graph: Graph, dumped: dict[str, np.ndarray], name: str
) -> None:
    got = on_device(dumped, graph)
    got[name][1] += 1
    found = locate(got, dumped, graph, 1, 1)
    expected = int(dumped[name].reshape(-1)[1])
    assert found == Difference(1, 1, name, 1, expected + 1, expected)


def test_every_op_of_the_graph_can_be_named(graph: Graph, dumped: dict[str, np.ndarray]) -> None:
    """What a device dumps comes from the graph, and so does what is looked for."""
    vectors = {op.name for op in graph.body(1) if graph.types[op.out].kind == "q16"}
    assert vectors == {"attn_in.q", "o_in.q", "mlp_in.q", "down_in.q"}
    assert {op.name for op in graph.body(1)} <= set(dumped)
    for name in {op.name for op in graph.body(1)} | {f"{v[:-1]}s" for v in vectors}:
        got = on_device(dumped, graph)
        got[name][0] += 1
        found = locate(got, dumped, graph, 1, 1)
        assert found is not None and (found.op, found.index) == (name, 0)


def test_the_earliest_op_is_named(graph: Graph, dumped: dict[str, np.ndarray]) -> None:
    got = on_device(dumped, graph)
    for name in ("out", "mid", "attn"):
        got[name][0] -= 3
    found = locate(got, dumped, graph, 1, 1)
    assert found is not None and found.op == "attn"


# --- the interpreter follows a run ----------------------------------------------------------


SAMPLED = Sampling(inv_temp_q16=50000, top_p_q16=60000, seed=7)
FOLLOWED = [
    Request((1, 40, 41), 9, ignore_eos=True),
    Request((1, 40, 41), 9, SAMPLED, ignore_eos=True),
    Request((5,), 1),
]


def same(got: Record | None, want: Record) -> bool:
    return (
        got is not None
        and (got.tokens, got.hashes, got.complete) == (want.tokens, want.hashes, want.complete)
        and got.logits.keys() == want.logits.keys()
        and all((got.logits[at] == want.logits[at]).all() for at in want.logits)
    )


@pytest.mark.parametrize("asked", FOLLOWED)
def test_a_run_that_is_followed_is_the_interpreters_own(
    graph: Graph, asked: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = reference(graph, asked)
    assert same(followed(graph, asked, want.tokens), want)
    monkeypatch.setattr(proof, "_TOGETHER", 3)
    assert same(followed(graph, asked, want.tokens), want)


@pytest.mark.parametrize("asked", FOLLOWED[:2])
def test_another_token_is_not_followed(graph: Graph, asked: Request) -> None:
    want = reference(graph, asked).tokens
    for at in range(len(want)):
        for other in ((want[at] + 1) % graph.vocab, graph.vocab, -1):
            assert followed(graph, asked, [*want[:at], other, *want[at + 1 :]]) is None
    assert followed(graph, asked, want[:-1]) is None
    assert followed(graph, asked, [*want, want[-1]]) is None
    assert followed(graph, asked, []) is None


def test_a_run_ends_where_it_has_to(graph: Graph) -> None:
    """After an end token, and not before."""
    asked = Request((1, 40, 41), 9)
    tokens = reference(graph, replace(asked, ignore_eos=True)).tokens
    ending = replace(graph, eos_ids=(tokens[4],))
    stop = tokens.index(tokens[4]) + 1
    want = reference(ending, asked)
    assert len(want.tokens) == stop < 9
    assert same(followed(ending, asked, want.tokens), want)
    for every in (1, 2, 8):
        assert followed(ending, asked, tokens, every) is None
        assert followed(ending, asked, tokens[: stop - 1], every) is None


@pytest.mark.parametrize("every", [2, 4, 8, 50])
def test_some_tokens_are_asked(graph: Graph, every: int) -> None:
    """Layers of all positions, logits and choice of every Nth token and the last; and those count."""
    asked = FOLLOWED[0]
    want = reference(graph, asked)
    some = followed(graph, asked, want.tokens, every)
    assert some is not None and some.hashes == want.hashes and some.tokens == want.tokens
    places = [i for i in range(9) if i % every == 0 or i == 8]
    assert [at - FIRST for at in some.logits] == places
    assert all((some.logits[at] == want.logits[at]).all() for at in some.logits)
    pieces = [b"<%d>" % i for i in range(graph.vocab)]
    got = replace(want, pieces=[pieces[token] for token in want.tokens])
    verdict = compare(got, some, graph, pieces)
    layers = (PROMPT + 8) * graph.num_layers * graph.hidden
    assert (verdict.compared, verdict.mismatched) == (layers + len(places) * (graph.vocab + 2), 0)
    # a choice that was not asked is not proved; one that was, is
    for at in range(9):
        other = [*want.tokens[:at], (want.tokens[at] + 1) % graph.vocab, *want.tokens[at + 1 :]]
        if at in places:
            assert followed(graph, asked, other, every) is None
