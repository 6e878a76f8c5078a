"""What ops and the cores say that they do, against counts by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memory.shapes import make_shape
from shrinkc.costs import Work
from shrinkc.engines import ENGINES, THE_CORES, MatrixSpec, engine_named
from shrinkc.engines.neureka_1x1 import jobs_of_one
from shrinkc.ir.steps import Call, PassSizes
from shrinkc.memory.cycles import Passes, StepWork
from shrinkc.memory.plan import planned_sizes
from shrinkc.memory.planner import make_plan
from shrinkc.quantize import QuantOptions
from shrinkc.schedule.shapes import ModelShape
from shrinkc.storage import MatrixShape, Offsets
from shrinkc.targets import KIB, SIRACUSA, Target


def steps_of(
    shape: ModelShape, tokens: int, position: int, target: Target = SIRACUSA, l1: int | None = None
) -> dict[str, StepWork]:
    """The first layer's and those outside, by name."""
    passes = Passes(shape, make_plan(shape, target, l1), target)
    return {s.name: s for s in reversed(passes.steps(tokens, position))}


def test_vectors() -> None:
    """100 inputs of 16 bit are 13 for a core, in no blocks; of 10 tokens it has one and such a share."""
    shape = make_shape(hidden=100, ffn=20)
    steps = steps_of(shape, 3, 0)
    want = {"tokens": 3, "elements": 39, "blocks": 0, "sums": 0}
    several = {"calls_of_several": 1, "starts_of_several": 0}
    assert steps["attn_in.q"].work == steps["mlp_in.q"].work == Work(want | several)
    # of 20 a core has 3; the final norm is of the last token alone, which takes another path
    assert steps["down_in.q"].work == Work(want | several | {"elements": 9})
    one = {"calls": 1, "starts": 0, "tokens": 1, "elements": 13}
    assert steps["final.q"].work == Work(want | one)
    assert steps_of(shape, 1, 0)["attn_in.q"].work == Work(want | one)
    # of 9 all cores and the controller have one; of 10 the cores have shares of the last, of 6 six of them have one
    for tokens, each, elements in ((9, 1, 100), (10, 2, 113), (6, 1, 100), (18, 2, 200)):
        many = steps_of(shape, tokens, 0)["attn_in.q"].work
        assert many == Work(want | several | {"tokens": each, "elements": elements})


def test_vectors_in_groups() -> None:
    """Groups of 32: 100 inputs are 3 x 4 + 1 blocks of 8, two for a core; offsets need 4 sums.  Of 10 tokens a core
    has one, and a share of the last."""
    options = QuantOptions(bits=4, group_size=32, asymmetric=True, short_last_group=True)
    work = steps_of(make_shape(hidden=100, options=options), 10, 0)["attn_in.q"].work
    share = {"calls": 1, "starts": 0, "tokens": 1, "elements": 13, "blocks": 2, "sums": 4}
    assert work == Work(share | {"tokens_whole": 1, "elements_whole": 100, "groups_whole": 4})


def test_heads() -> None:
    """8 + 2 x 4 heads of 6 for 3 tokens are 48 items, 6 on each of 8 cores."""
    steps = steps_of(make_shape(heads=8, kv_heads=4, head_dim=6), 3, 10)
    assert steps["q8"].work == Work({"calls": 1, "heads": 6, "channels": 36})


@pytest.mark.parametrize(
    ("tokens", "position", "heads", "lives"),
    [
        (1, 0, 8, [1]),
        (1, 10, 3, [11]),
        (1, 10, 9, [11, 11]),
        # 2 x 5 items on 8 cores: core 0 has head 0 of the first and head 3 of the second token
        (2, 7, 5, [8, 9]),
        # 4 tokens of one head: the last token's core reads most
        (4, 7, 1, [11]),
    ],
)
def test_attention(tokens: int, position: int, heads: int, lives: list[int]) -> None:
    shape = make_shape(heads=heads, kv_heads=1, head_dim=6)
    fours = sum(-(-live // 4) * 4 for live in lives)
    want = {
        "calls": 1, "heads": len(lives), "channels": 6 * len(lives), "positions": sum(lives),
        "position_channels": 6 * fours, "shared": 0,
    }  # fmt: skip
    assert steps_of(shape, tokens, position)["attn"].work == Work(want)


@pytest.mark.parametrize(
    ("heads", "lives"),
    [
        # 12 heads: one for each core, and 4 cut in two, half of 26 blocks for each core
        (12, [101, 52]),
        # 2 heads are cut in four, 7 blocks at most for each core
        (2, [28]),
        # 3 heads would be 3 parts of 8 for each core: 3 times 4 blocks
        (3, [16, 16, 16]),
        # all cores have heads of their own
        (16, [101, 101]),
    ],
)
def test_heads_that_are_fewer_than_cores_share_positions(heads: int, lives: list[int]) -> None:
    shape = make_shape(heads=heads, kv_heads=1, head_dim=48, context=128, layers=2)
    work = steps_of(shape, 1, 100)["attn"].work
    assert work.features["heads"] == len(lives) and work.features["positions"] == sum(lives)
    assert work.features["shared"] == (heads % 8 > 0)
    assert steps_of(shape, 1, 3)["attn"].work.features["shared"] == 0
    assert steps_of(shape, 2, 100)["attn"].work.features["shared"] == 0


def test_a_cache_in_pieces_is_moved() -> None:
    """Keys twice and values once for each round of 8 heads, in blocks of 4 positions."""
    shape = make_shape(heads=12, kv_heads=12, head_dim=10, context=500, layers=10)
    plan = make_plan(shape, SIRACUSA, 132 * KIB)
    assert not plan.kv_in_l1 and 0 < 4 * plan.kv_window_blocks < shape.context
    moved = steps_of(shape, 1, 490, l1=132 * KIB)["attn"].work.moved
    k_block, v_block = 4 * 12 * (4 + 12), 4 * 12 * 10
    assert moved == 2 * 123 * (2 * k_block + v_block)
    # as long as it is short, a layer's comes into L1
    assert steps_of(shape, 1, 20, l1=132 * KIB)["attn"].work.moved == 0
    # a cache that is in L1 stays there
    assert steps_of(make_shape(), 1, 100)["attn"].work.moved == 0


def matrix(**fields: object) -> MatrixShape:
    base = MatrixShape(
        "layer0.o", rows=200, k=100, bits=8, group=64, grouped=False, offsets=Offsets.NONE
    )
    return replace(base, **fields)  # type: ignore[arg-type]


def test_a_product_on_the_cores() -> None:
    """25 blocks in tiles of 16 and 9: 2 + 2 on the busiest core; 16 + 9 words of 4 inputs."""
    assert THE_CORES.work(matrix(), 3, (16, 9)) == {
        "tiles": 2, "token_tiles": 6, "blocks": 12, "words_w8": 12 * 25, "groups": 24, "scales": 0,
        "offsets": 0, "split_tiles": 0,
    }  # fmt: skip
    grouped = matrix(bits=4, group=32, grouped=True, offsets=Offsets.WIDE)
    # groups of 32 and one of 4 that is stored as 8
    assert THE_CORES.work(grouped, 1, (25,)) == {
        "tiles": 1, "token_tiles": 1, "blocks": 4, "group_words_w4": 4 * 26, "groups": 16, "scales": 16,
        "offsets": 16, "split_tiles": 0,
    }  # fmt: skip


def test_products_of_a_pass() -> None:
    shape = make_shape(hidden=64, ffn=172, heads=8, kv_heads=4, head_dim=8)
    steps = steps_of(shape, 2, 0)
    qkv = {"calls": 1, **THE_CORES.work(shape.layers[0][0], 2, (16,))}
    assert steps["qkv"].work == Work(qkv) and steps["qkv"].op == "linear"
    assert steps["mid"].work.features["added"] == steps["mid"].work.features["blocks"] == 2
    assert steps["h"].op == "silumul"
    assert steps["h"].work.features["blocks"] == 2 * 6  # 43 blocks on 8 cores
    # the head multiplies one token's vector, in the order of the vocabulary
    assert steps["logits"].work.features["blocks"] == 8
    assert sum(t.bytes for t in steps["logits"].tiles) == shape.head.bytes


def test_an_adapter_is_counted() -> None:
    plain, side = make_shape(), make_shape(ranks={"qkv": 8})
    a, b = steps_of(plain, 1, 0)["qkv"], steps_of(side, 1, 0)["qkv"]
    more = {n: b.work.features[n] - a.work.features[n] for n in a.work.features}
    assert more["calls"] == 1 and more["tiles"] == 2
    assert more["words_w8"] == 16 + 2 * 2  # 8 rows of 64 inputs, then 2 blocks of 8 inputs
    assert len(b.tiles) == len(a.tiles) + 1


def test_an_embedding_from_outside_is_fetched() -> None:
    far = SIRACUSA.with_room(wmem=0, l2=200 * KIB)
    shape = make_shape(vocab=3000)
    assert steps_of(shape, 3, 0)["embed"].work == Work({"calls": 1, "tokens": 3, "elements": 24})
    passes = Passes(shape, make_plan(shape, far), far)
    assert passes.steps(3, 0)[0].work.fetched == 3 * shape.head.block_bytes


@pytest.mark.usefixtures("plain")
def test_a_product_elsewhere_is_rescaled_by_the_cores() -> None:
    shape = make_shape()
    away = tuple(replace(m, engine="plain") for m in shape.layers[0][:1])
    sizes = planned_sizes(shape, SIRACUSA, make_plan(shape, SIRACUSA))
    step = next(s for s in sizes.steps if s.name == "qkv")
    call = Call(sizes, 3, 0, away[0], (), shape.head)
    features = step.op.work(step, call).features
    assert features["calls"] == 1 and features["plain.estimated"] == 3 * 1000
    # 128 rows, 16 for each core, of 3 tokens
    assert features["overlapped.rows_of_several"] == 48 and features["overlapped.tokens"] == 3
    assert step.op.work(step, replace(call, tokens=1)).features["overlapped.rows"] == 16
    assert not {"added", "overlapped.added"} & set(features)
    mid = next(s for s in sizes.steps if s.name == "mid")
    assert mid.op.work(mid, replace(call, tokens=1)).features["overlapped.added"] == 16


@pytest.mark.usefixtures("plain")
def test_an_engine_is_started_beside_what_the_cores_quantise() -> None:
    shape = make_shape(hidden=100)
    sizes = planned_sizes(shape, SIRACUSA, make_plan(shape, SIRACUSA))
    step = next(s for s in sizes.steps if s.name == "attn_in.q")
    away = replace(shape.layers[0][0], engine="plain")
    few = step.op.work(step, Call(sizes, 1, 0, away, (), shape.head)).features
    assert (few["starts"], few["elements"]) == (1, 13)  # of 100, on 8 cores
    many = step.op.work(step, Call(sizes, 16, 0, away, (), shape.head)).features
    assert (many["starts_of_several"], many["elements"]) == (1, 200)


@pytest.mark.usefixtures("plain")
def test_a_row_that_an_engine_reads_is_unpacked() -> None:
    shape = make_shape()
    sizes = planned_sizes(shape, SIRACUSA, make_plan(shape, SIRACUSA))
    step = sizes.steps[0]
    call = Call(sizes, 3, 0, None, (), replace(shape.head, engine="plain"))
    assert step.op.work(step, call).features == {"calls": 1, "tokens": 3, "elements_plain": 24}


def test_the_last_jobs_of_one_token_are_short() -> None:
    """Rows of a matrix and its jobs: of 128 rows, and at the end two or three of 64."""
    cases = {8: 1, 64: 1, 96: 2, 192: 3, 200: 3, 256: 3, 320: 4, 512: 5}
    assert {rows: jobs_of_one(rows) for rows in cases} == cases


def test_jobs_of_neureka() -> None:
    """200 rows of 100 inputs: 7 blocks of 32 rows, 4 of inputs; in 3x3 mode 12 channels in one tile."""
    dense, folded = engine_named("neureka_1x1"), engine_named("neureka_3x3")
    m = matrix(group=100)
    assert dense.work(m, 1, ()) == {
        "neureka_1x1.calls": 1, "neureka_1x1.jobs": 3, "neureka_1x1.rows": 7, "neureka_1x1.blocks": 28,
        "neureka_1x1.pixels": 0,
    }  # fmt: skip
    assert dense.work(m, 16, ()) == {
        "neureka_1x1.calls": 1, "neureka_1x1.jobs_of_several": 4, "neureka_1x1.rows": 7,
        "neureka_1x1.blocks_of_several": 28, "neureka_1x1.pixels": 105,
    }  # fmt: skip
    assert folded.work(replace(m, bits=4), 3, ()) == {
        "neureka_3x3.calls": 1, "neureka_3x3.jobs_of_several": 6, "neureka_3x3.rows": 21,
        "neureka_3x3.tiles": 21, "neureka_3x3.planes": 84, "neureka_3x3.remainders": 0,
    }  # fmt: skip
    # of 768 inputs three whole tiles, and three words for the cores
    long = folded.shape(MatrixSpec("m", 200, 768, 4, None, Offsets.NONE))
    assert folded.work(long, 1, ()) == {
        "neureka_3x3.calls": 1, "neureka_3x3.jobs": 2, "neureka_3x3.rows": 7,
        "neureka_3x3.tiles": 21, "neureka_3x3.planes": 84, "neureka_3x3.remainders": 21,
    }  # fmt: skip


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = replace(
        engine_named("cores"), name="plain", levels=("wmem",), features=None,
        cycles=lambda spec, tokens: 1000 * tokens,
    )  # fmt: skip
    monkeypatch.setitem(ENGINES, "plain", engine)


def test_another_engine_says_what_it_does() -> None:
    fast = replace(
        engine_named("cores"), name="fast", levels=("wmem",), features=lambda m, t, tiles: {"jobs": 7 * t}
    )  # fmt: skip
    assert fast.work(matrix(), 2, ()) == {"fast.jobs": 14}
    estimate = replace(fast, features=None, cycles=lambda spec, tokens: spec.rows * tokens)
    assert estimate.work(matrix(), 2, ()) == {"fast.estimated": 400}


def test_an_op_that_says_nothing() -> None:
    from shrinkc.ir.graph import Op

    shape = make_shape()
    sizes: PassSizes = planned_sizes(shape, SIRACUSA, make_plan(shape, SIRACUSA))
    step = sizes.steps[0]
    call = Call(sizes, 5, 0, None, (), shape.head)
    width = step.op.width(step, sizes)
    assert Op.work.__func__(step.op, step, call) == Work({"calls": 1, "elements": 5 * width})


def test_formats_have_features_of_their_own() -> None:
    for bits in (8, 4, 3, 2):
        shape = make_shape(options=QuantOptions(bits=bits, embedding_bits=bits))
        assert steps_of(shape, 1, 0)["qkv"].work.features[f"words_w{bits}"] > 0
