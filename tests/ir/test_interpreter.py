"""The golden model does not depend on how tokens are grouped into calls."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shrinkc.ir.graph import Graph
from shrinkc.ir.interpreter import Interpreter
from shrinkc.ir.ops import Op
from shrinkc.numerics.sampling import Sampling, sample

from .conftest import CONTEXT

Fresh = Callable[..., Graph]


def tokens(g: Graph, n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, g.vocab, n).tolist()


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cuts=st.sets(st.integers(1, CONTEXT - 1)), sides=st.booleans(), seed=st.integers(0, 99))
def test_any_split_gives_the_same_logits(
    fresh: Fresh, cuts: set[int], sides: bool, seed: int
) -> None:
    g = fresh(sides)
    ids = tokens(g, CONTEXT, seed)
    whole = Interpreter(g).forward(ids, all_logits=True)
    assert whole.shape == (CONTEXT, g.vocab)
    interp = Interpreter(g)
    at = [0, *sorted(cuts), CONTEXT]
    pieces = [interp.forward(ids[a:b], all_logits=True) for a, b in zip(at, at[1:], strict=False)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    interp = Interpreter(g)
    last = [interp.forward(ids[a:b])[0] for a, b in zip(at, at[1:], strict=False)]
    np.testing.assert_array_equal(np.stack(last), whole[[b - 1 for b in at[1:]]])


def test_calls_without_logits_change_nothing(fresh: Fresh) -> None:
    g = fresh()
    ids = tokens(g, 10)
    want = Interpreter(g).forward(ids)
    interp = Interpreter(g)
    assert interp.forward(ids[:7], logits=False).shape == (0, g.vocab)
    np.testing.assert_array_equal(interp.forward(ids[7:]), want)


def test_later_tokens_do_not_matter(fresh: Fresh) -> None:
    g = fresh()
    ids = tokens(g, 12)
    want = Interpreter(g).forward(ids, all_logits=True)
    other = Interpreter(g).forward([*ids[:8], 3, 4, 5, 6], all_logits=True)
    np.testing.assert_array_equal(other[:8], want[:8])
    assert (other[8:] != want[8:]).any()


def test_position_matters(fresh: Fresh) -> None:
    g = fresh()
    same = Interpreter(g).forward([5, 9, 5, 9], all_logits=True)
    assert (same[1] != same[3]).any()


def test_values_stay_in_int32(fresh: Fresh) -> None:
    g = fresh(sides=True)
    seen: dict[str, int] = {}

    def observe(op: Op, value: object) -> None:
        if isinstance(value, np.ndarray):
            seen[op.out] = int(np.abs(value).max())

    Interpreter(g).forward(tokens(g, CONTEXT), observe=observe)
    assert len(seen) > 5 * g.num_layers
    assert max(seen.values()) <= (1 << 31) - 1


def test_refusals(fresh: Fresh) -> None:
    interp = Interpreter(fresh())
    interp.forward(tokens(interp.graph, CONTEXT - 1))
    with pytest.raises(ValueError, match="past the context of 24"):
        interp.forward([1, 2])
    for bad in (-1, interp.graph.vocab):
        with pytest.raises(ValueError, match="token ids must be in"):
            interp.forward([bad])


# --- sampling ----------------------------------------------------------------------------

SCALE_SHIFT = 4  # logits with 20 fraction bits


def fixed(logits: np.ndarray) -> np.ndarray:
    return np.rint(logits * 2.0**20).astype(np.int64)


def test_greedy_takes_the_lowest_index_of_equals() -> None:
    assert sample(np.array([1, 7, 7, 3]), SCALE_SHIFT, Sampling(), 0) == 1
    assert sample(np.full(9, -5), SCALE_SHIFT, Sampling(), 3) == 0


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_shares_are_softmax_probabilities(temperature: float) -> None:
    """20,000 positions: within 0.015 of every token's probability."""
    logits = np.linspace(-2, 2, 11)
    how = Sampling(round(65536 / temperature), 65536, seed=3)
    drawn = [sample(fixed(logits), SCALE_SHIFT, how, p) for p in range(20_000)]
    p = np.exp(logits / temperature)
    share = np.bincount(drawn, minlength=11) / 20_000
    assert np.abs(share - p / p.sum()).max() < 0.015


def test_top_p_keeps_the_smallest_sufficient_set() -> None:
    """Probabilities 0.4, 0.3, 0.2, 0.1: top-p 0.75 keeps three tokens, 0.65 two, 0.01 one."""
    logits = fixed(np.log(np.array([0.1, 0.4, 0.2, 0.3])))
    for top_p, kept in ((0.75, {1, 3, 2}), (0.65, {1, 3}), (0.01, {1})):
        how = Sampling(65536, round(top_p * 65536), seed=1)
        assert {sample(logits, SCALE_SHIFT, how, p) for p in range(400)} == kept


def test_seed_and_position_decide_the_draw() -> None:
    logits = fixed(np.zeros(50))
    a, b = Sampling(65536, 65536, 1), Sampling(65536, 65536, 2)
    draws = [[sample(logits, SCALE_SHIFT, how, p) for p in range(40)] for how in (a, b, a)]
    assert draws[0] == draws[2] != draws[1]
    assert len(set(draws[0])) > 10
