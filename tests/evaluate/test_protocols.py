"""The protocols count what they say, and the loss is the one of the definition."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import fidelity
import numpy as np
import pytest
from fidelity import integer_logits
from numpy.typing import NDArray

from helpers.float_reference import forward
from helpers.float_reference import token_losses as reference_losses
from helpers.llama2c import write_stories260k
from helpers.shared_data import find_shared_data
from shrinkc.core.errors import BadData, UsageError
from shrinkc.evaluation import token_losses
from shrinkc.evaluation.items import read_text
from shrinkc.importer import FloatModel, load_model
from shrinkc.ir.interpreter import Interpreter
from shrinkc.quantize import QuantOptions, lower

# ---------------------------------------------------------------- cutting


def test_windows_are_the_first_ids_without_specials(tiny: FloatModel) -> None:
    text = "the cat and the hen. " * 100
    ids = tiny.tokenizer.encode(text, add_bos=False)
    windows = fidelity.text_windows(tiny.tokenizer, text, 3, 40)
    assert [len(w) for w in windows] == [40, 40, 40]
    assert [i for w in windows for i in w] == ids[:120]
    assert windows[0][0] != tiny.config.bos_id


def test_windows_take_all_of_a_text_that_just_fits(tiny: FloatModel) -> None:
    text = "abcdefghij" * 20
    count = len(tiny.tokenizer.encode(text, add_bos=False))
    assert len(fidelity.text_windows(tiny.tokenizer, text, 1, count)) == 1
    with pytest.raises(BadData, match=f"the text has {count}") as caught:
        fidelity.text_windows(tiny.tokenizer, text, 1, count + 1)
    assert caught.value.exit_code == 17


def test_a_short_text_is_refused_with_what_would_work(tiny: FloatModel) -> None:
    text = "abcdefghij" * 20
    with pytest.raises(UsageError) as caught:
        fidelity.text_windows(tiny.tokenizer, text, 9, 50)
    assert caught.value.hint == "allowed: 1 to 4 windows, or all."
    assert len(fidelity.text_windows(tiny.tokenizer, text, 4, 50)) == 4


def test_stories_are_split_stripped_cut_and_left_out(tiny: FloatModel) -> None:
    long = "Once upon a time " + "x" * 600
    middle = "One day " + "y" * 60 + "\n\nNo new story here."
    short = "Once upon a time."
    text = f"  {long}\n\n{middle}  \n\n{short}\n\nOne day never asked for"
    pieces = fidelity.story_pieces(tiny.tokenizer, text, 3)
    assert len(pieces) == 2
    assert len(pieces[0]) == 400
    assert pieces[0] == tiny.tokenizer.encode(long)[:400]
    assert pieces[1] == tiny.tokenizer.encode(middle)
    assert {p[0] for p in pieces} == {tiny.config.bos_id}


def test_stories_that_are_not_there_are_refused(tiny: FloatModel) -> None:
    text = "Once upon a time " + "x" * 100
    with pytest.raises(UsageError, match="the text has 1"):
        fidelity.story_pieces(tiny.tokenizer, text, 2)
    with pytest.raises(UsageError, match="none of the 1 stories"):
        fidelity.story_pieces(tiny.tokenizer, "short", 1)


@pytest.mark.parametrize("name", sorted(fidelity.PROTOCOLS))
@pytest.mark.parametrize("count", [0, -1])
def test_a_count_below_one_is_refused(tiny: FloatModel, name: str, count: int) -> None:
    with pytest.raises(UsageError, match="is not usable"):
        fidelity.PROTOCOLS[name].cut(tiny.tokenizer, "Once upon a time " * 500, count)


@pytest.mark.parametrize("name", sorted(fidelity.PROTOCOLS))
def test_sequences_fit_the_context_of_their_protocol(tiny: FloatModel, name: str) -> None:
    protocol = fidelity.PROTOCOLS[name]
    text = "\n\n".join(["Once upon a time " + "abc " * 150] * 4)
    assert max(map(len, protocol.cut(tiny.tokenizer, text, 1))) == protocol.longest


# ---------------------------------------------------------------- loss


def test_loss_by_hand() -> None:
    """Logits 0, log 2, log 5 are the probabilities 1/8, 2/8 and 5/8."""
    row = np.log([1.0, 2.0, 5.0])
    fed: list[list[int]] = []

    def logits_of(ids: NDArray[np.int64]) -> NDArray[np.floating]:
        fed.append(ids.tolist())
        return np.tile(row, (len(ids), 1))

    seen: list[tuple[int, int, float]] = []
    result = fidelity.measure("by hand", logits_of, [[2, 0, 1], [0, 2]], lambda *a: seen.append(a))
    assert fed == [[2, 0], [0]]
    assert (result.protocol, result.sequences, result.tokens) == ("by hand", 2, 3)
    assert result.loss == pytest.approx((math.log(8) + math.log(4) + math.log(8 / 5)) / 3)
    assert result.perplexity == pytest.approx((8 * 4 * 8 / 5) ** (1 / 3))
    assert result.greedy.tolist() == [2, 2, 2]
    assert [(done, total) for done, total, _ in seen] == [(1, 2), (2, 2)]
    assert seen[0][2] == pytest.approx((math.log(8) + math.log(4)) / 2)
    assert seen[1][2] == result.loss
    assert result.to_dict() == {
        "protocol": "by hand",
        "sequences": 2,
        "tokens": 3,
        "loss": result.loss,
        "perplexity": result.perplexity,
    }


def test_equal_logits_lose_the_log_of_the_vocabulary() -> None:
    result = fidelity.measure("u", lambda ids: np.zeros((len(ids), 107)), [[5] * 300])
    assert result.tokens == 299
    assert result.loss == pytest.approx(math.log(107))
    assert set(result.greedy.tolist()) == {0}


def test_losses_of_large_logits_do_not_overflow() -> None:
    losses = token_losses(np.array([[1e5, 0.0], [0.0, -1e5]]), [1, 0])
    assert losses == pytest.approx([1e5, 0.0])


def test_losses_need_as_many_rows_as_tokens() -> None:
    with pytest.raises(ValueError, match="2 rows of logits for 1 tokens"):
        token_losses(np.zeros((2, 3)), [0])


def test_nothing_to_predict_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing to predict"):
        fidelity.measure("none", lambda ids: np.zeros((len(ids), 3)), [])
    with pytest.raises(UsageError, match="sequence 1 has 1 tokens"):
        fidelity.measure("none", lambda ids: np.zeros((len(ids), 3)), [[1, 2], [1]])


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(ArithmeticError, match="sequence 0"):
        fidelity.measure("nan", lambda ids: np.full((len(ids), 3), np.nan), [[1, 2]])


def test_agreement_counts_equal_tokens() -> None:
    def result(*greedy: int) -> Any:
        return fidelity.Result("p", 1, len(greedy), 1.0, np.array(greedy))

    assert fidelity.agreement(result(1, 2, 3, 4), result(1, 2, 0, 4)) == 0.75
    with pytest.raises(ValueError, match="cannot be compared"):
        fidelity.agreement(result(1, 2), result(1, 2, 3))


# ---------------------------------------------------------------- models


def sequences(vocab: int, count: int, length: int) -> list[list[int]]:
    rng = np.random.default_rng(5)
    ids: list[list[int]] = rng.integers(3, vocab, (count, length)).tolist()
    return ids


def test_float_loss_is_that_of_the_reference(tiny: FloatModel) -> None:
    ids = sequences(tiny.config.vocab_size, 3, 60)
    result = fidelity.measure("tiny", partial(forward, tiny), ids)
    losses = np.concatenate([reference_losses(tiny, x) for x in ids])
    assert result.tokens == len(losses) == 177
    assert result.loss == pytest.approx(losses.mean(), rel=1e-12)
    best = [forward(tiny, x[:-1]).argmax(axis=1) for x in ids]
    assert result.greedy.tolist() == np.concatenate(best).tolist()


def test_integer_logits_are_the_interpreters_in_float_units(tiny: FloatModel) -> None:
    graph = lower(tiny, QuantOptions(), 64)
    ids = np.array(sequences(tiny.config.vocab_size, 1, 60)[0])
    logits_of = integer_logits(graph)
    logits = logits_of(ids)
    want = Interpreter(graph).forward(ids, all_logits=True)
    frac = graph.types["logits"].frac
    assert np.array_equal(logits * 2.0**frac, want)
    assert np.array_equal(logits_of(ids), logits), "a second call must not see the first's cache"
    reference = forward(tiny, ids, np.float64)
    assert np.abs(logits - reference).max() < 0.05 * np.abs(reference).max()


@pytest.mark.parametrize(
    ("options", "bound", "same"),
    [
        # of the weights' rounding: with 16-bit activations 97 of 100 tokens agree
        (QuantOptions(), 0.006, 0.96),
        (QuantOptions(4, group_size=32), 0.05, 0.5),
        (QuantOptions(4, group_size=32, asymmetric=True, embedding_bits=4), 0.05, 0.5),
    ],
    ids=["8", "4", "4-asymmetric"],
)
def test_integer_loss_is_near_the_float_loss(
    tiny: FloatModel, options: QuantOptions, bound: float, same: float
) -> None:
    ids = sequences(tiny.config.vocab_size, 4, 100)
    a = fidelity.measure("tiny", partial(forward, tiny), ids)
    b = fidelity.measure("tiny", integer_logits(lower(tiny, options, 100)), ids)
    assert a.tokens == b.tokens == 396
    assert abs(a.loss - b.loss) < bound
    assert fidelity.agreement(a, b) > same


# ---------------------------------------------------------------- a real model


@pytest.mark.slow
def test_stories260k_reaches_its_target(tmp_path: Path) -> None:
    data = find_shared_data()
    if data is None:
        pytest.skip("no test data: set SHRINKC_DATA or provide ../shared/data")
    write_stories260k(data, tmp_path / "m")
    model = load_model(tmp_path / "m")
    protocol = fidelity.PROTOCOLS["tinystories"]
    text = read_text(data / "tinystories" / "tinystories_val.txt")
    ids = protocol.cut(model.tokenizer, text, protocol.count)
    graph = lower(model, QuantOptions(), protocol.longest)
    result = fidelity.measure(protocol.name, integer_logits(graph), ids)
    assert result.tokens == 20_188
    assert result.loss <= 1.300


# ---- files ----


def test_read_text_normalises_line_ends(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes("a\r\nb\rc\né".encode())
    assert read_text(file) == "a\nb\nc\né"


def test_read_text_refuses_by_name(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="nowhere cannot be read"):
        read_text(tmp_path / "nowhere")
    file = tmp_path / "latin"
    file.write_bytes(b"abc\xe9 ")
    with pytest.raises(BadData, match="is not UTF-8 text: .* at byte 3"):
        read_text(file)
