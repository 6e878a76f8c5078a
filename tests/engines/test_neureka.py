"""N-EUREKA's engines: their bit planes read as the chip reads them, and every integer of their programs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from end_to_end.programs import (
    GREEDY,
    WARM,
    Program,
    add_adapters,
    compile_graph,
    missing,
    need,
    random_request,
)
from helpers.tiny_llama import write_tiny_llama
from shrinkc.codegen.pack import stored_rows
from shrinkc.engines import CORES, ENGINES, Engine, MatrixSpec, Tails
from shrinkc.importer import FloatModel, load_hf
from shrinkc.ir.graph import Graph
from shrinkc.ir.linear import QLinear
from shrinkc.ir.ops import Embed, Linear
from shrinkc.quantize import QuantOptions
from shrinkc.quantize.weights import Output, quantize_matrix
from shrinkc.simulate.proof import Request, compare, parse, reference
from shrinkc.storage import Offsets
from shrinkc.targets import SIRACUSA, Target

from .plain import lowered

NAMES = ("neureka", "neureka_3x3")
CONTEXT = 40
AHEAD = 32  # bytes that the chip reads past the last weight


def spec(**fields: Any) -> MatrixSpec:
    return MatrixSpec(**{
        "name": "m", "rows": 64, "k": 64, "bits": 8, "group": None, "offsets": Offsets.NONE, **fields,
    })  # fmt: skip


def matrix(n: int, k: int, bits: int, engine: str) -> QLinear:
    """A matrix of every integer of its width."""
    rng = np.random.default_rng(n + k)
    w = rng.standard_normal((n, k)).astype(np.float32)
    made = quantize_matrix("m", w, Output(2.0**-34, 16), bits=bits, engine=engine)
    low, high = made.format.low, made.format.high
    made.q[:] = rng.integers(low, high + 1, (n, k))
    made.q.reshape(-1)[: n * k // 2] = np.resize(np.arange(low, high + 1), n * k // 2)
    return made


# --- bit planes --------------------------------------------------------------------------


def dense_weight(data: bytes, row: int, i: int, k: int) -> int:
    """1x1 mode: 32 bytes per output and 32 inputs; word m has inputs 4 m .. 4 m + 3, of which nibble b
    has bit b."""
    at = (row * -(-k // 32) + i // 32) * 32 + i % 32 // 4 * 4
    word = int.from_bytes(data[at : at + 4], "little")
    return sum((word >> (4 * b + i % 4) & 1) << b for b in range(8))


def tail_weight(data: bytes, at: int, row: int, i: int, words: int, nibbles: bool) -> int:
    """Behind the rows of its job, where tails begin ``at``: blocks of 8 rows, a word of one row after the other, and
    4 bytes between blocks.  A word has 4 inputs, or 8 in nibbles, the first 4 in the lower ones.  Input i of those that
    are there; ``row`` is one of the job."""
    block = at + row // 8 * (32 * words + 4)
    word, i = divmod(i, 8 if nibbles else 4)
    byte = int(np.frombuffer(data, np.int8)[block + word * 32 + row % 8 * 4 + i % 4])
    if not nibbles:
        return byte
    return byte >> 4 if i >= 4 else (byte % 16 ^ 8) - 8


def folded_weight(
    data: bytes, row: int, i: int, k: int, bits: int, tiles: int | None = None
) -> int:
    """3x3 mode: per output, 28 channels and bit 32 bytes, whose bit 28 (3 y + x) + c is of channel c; input
    i is channel i % C of tap 3 x + y = i / C, where all have C channels.  Of rows of fewer ``tiles`` those that are
    there."""
    channels = -(-k // 36) * 4
    tiles = tiles or -(-channels // 28)
    tap, channel = divmod(i, channels)
    assert channel < 28 * tiles
    tile = row * tiles + channel // 28
    planes = [data[(tile * bits + b) * 32 : (tile * bits + b + 1) * 32] for b in range(bits)]
    at = 28 * (tap % 3 * 3 + tap // 3) + channel % 28
    return sum((plane[at // 8] >> at % 8 & 1) << b for b, plane in enumerate(planes))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize(
    ("n", "k"), [(8, 32), (13, 1), (33, 35), (9, 36), (64, 96), (3, 330), (5, 400)]
)
def test_the_chip_reads_every_weight(name: str, bits: int, n: int, k: int) -> None:
    """All of them, and behind the last a multiplier per row, or what is read ahead."""
    w = matrix(n, k, bits, name)
    engine = ENGINES[name]
    data = engine.store.pack(stored_rows(w, None, engine.store.rows)).tobytes()
    shape = engine.shape(spec(rows=n, k=k, bits=bits))
    assert (w.seg, w.pad) == (shape.seg, shape.pad or shape.format.inputs)
    zero = 128 if name == "neureka" else 1 << (bits - 1)
    rows = -(-n // 8) * 8
    padded = -(-k // 36) * 36 if name == "neureka_3x3" else -(-k // 32) * 32
    for row in range(rows):
        for i in range(padded):
            got = (
                dense_weight(data, row, i, k)
                if name == "neureka"
                else folded_weight(data, row, i, k, bits)
            ) - zero
            assert got == (int(w.q[row, i]) if row < n and i < k else 0), (row, i)
    beside = shape.blocks * shape.block_bytes
    assert np.frombuffer(data[beside : beside + 2 * n], "<u2").tolist() == w.r.tolist()
    assert len(data) == shape.bytes >= beside + AHEAD


@pytest.mark.parametrize(
    ("bits", "n", "k", "tail"),
    [(4, 13, 508, 4), (8, 24, 281, 29), (3, 3, 2048, 32), (4, 9, 1536, 24), (2, 137, 1024, 16)],
)
def test_a_tail_behind_the_image_lies_where_the_cores_read_it(
    bits: int, n: int, k: int, tail: int
) -> None:
    """The engine has whole tiles of 252, and every weight is there once; a job's tails are behind its rows."""
    w = matrix(n, k, bits, "neureka_3x3")
    engine = ENGINES["neureka_3x3"]
    assert engine.tails(k, bits) is Tails.ALL
    assert tail == k % 252
    data = engine.store.pack(stored_rows(w, None, engine.store.rows)).tobytes()
    shape = engine.shape(spec(rows=n, k=k, bits=bits))
    nibbles = bits <= 4
    rows, words = -(-n // 8) * 8, -(-tail // (8 if nibbles else 4))
    inputs = words * (8 if nibbles else 4)
    row_bytes = 32 * bits * (k // 252)
    assert shape.block_bytes == 8 * row_bytes + 32 * words + 4
    zero = 1 << (bits - 1)
    for row in range(rows):
        first = row // 128 * 128
        job, of_job = data[first // 8 * shape.block_bytes :], min(128, rows - first)
        at = row - first
        got = [folded_weight(job, at, i, k - tail, bits) - zero for i in range(k - tail)]
        got += [tail_weight(job, of_job * row_bytes, at, i, words, nibbles) for i in range(inputs)]
        want = w.q[row].tolist() if row < n else [0] * k
        assert got == want + [0] * (inputs - tail)
    beside = shape.blocks * shape.block_bytes
    assert np.frombuffer(data[beside : beside + 2 * n], "<u2").tolist() == w.r.tolist()
    assert len(data) == shape.bytes == beside + max(2 * rows, AHEAD)


@pytest.mark.parametrize(
    ("bits", "n", "k"), [(4, 13, 576), (4, 261, 570), (8, 131, 289), (2, 130, 828), (4, 9, 288)]
)
def test_every_other_job_has_tails_of_the_last_channels(bits: int, n: int, k: int) -> None:
    """The engine has whole tiles of them, and all of the others; the cores have 4 of the first tap, then those of the
    next ones, or, in nibbles, 8."""
    w = matrix(n, k, bits, "neureka_3x3")
    engine = ENGINES["neureka_3x3"]
    assert engine.tails(k, bits) is Tails.EVERY_OTHER
    assert engine.cut(k, None, bits) == (k, 36)
    data = engine.store.pack(stored_rows(w, None, engine.store.rows)).tobytes()
    shape = engine.shape(spec(rows=n, k=k, bits=bits))
    rows, channels, zero = -(-n // 8) * 8, -(-k // 36) * 4, 1 << (bits - 1)
    tiles = -(-channels // 28)
    last = 28 * (tiles - 1)
    nibbles = bits <= 4 and channels - last == 8
    words, short = 9 * (1 if nibbles else (channels - last) // 4), 32 * bits * (tiles - 1)
    assert shape.block_bytes == max(8 * 32 * bits * tiles, 8 * short + 32 * words + 4)
    for row in range(rows):
        first = row // 128 * 128
        job, of_job, at = (
            data[first // 8 * shape.block_bytes :],
            min(128, rows - first),
            row - first,
        )
        want = [*(w.q[row].tolist() if row < n else [0] * k), *[0] * (9 * channels - k)]
        for i in range(9 * channels):
            tap, channel = divmod(i, channels)
            if first % 256:
                got = folded_weight(job, at, i, k, bits) - zero
            elif channel < last:
                got = folded_weight(job, at, i, k, bits, tiles - 1) - zero
            else:
                of_tap, group = (8, 0) if nibbles else (4, (channel - last) // 4)
                place = of_tap * (9 * group + tap) + (channel - last) % of_tap
                got = tail_weight(job, of_job * short, at, place, words, nibbles)
            assert got == want[i], (row, i)
    beside = shape.blocks * shape.block_bytes
    assert np.frombuffer(data[beside : beside + 2 * n], "<u2").tolist() == w.r.tolist()
    assert len(data) == shape.bytes == beside + max(2 * rows, AHEAD)


def test_a_tail_is_left_to_the_cores_where_they_have_the_time() -> None:
    """Those of 252 and 504 inputs have none, long ones would take longer than a tile, as would some of few bits; and
    high bytes begin where a row of the image does, the fourth from low ones where all have tails."""
    engine = ENGINES["neureka_3x3"]
    assert not any(
        engine.tails(k, bits) for k in (64, 252, 504, 600, 4096) for bits in (2, 3, 4, 8)
    )
    assert engine.tails(281, 8) is Tails.ALL
    assert engine.tails(281, 2) is engine.tails(576, 2) is Tails.NONE
    assert engine.tails(576, 4) is Tails.EVERY_OTHER
    for k in range(1, 4000):
        for bits in (2, 3, 4, 8):
            _, pad = engine.cut(k, None, bits)
            if engine.tails(k, bits) is Tails.ALL:
                assert k <= pad == 4 * 3 * (k // 252 * 28)
            else:
                assert pad == 36


def copied_sums(
    data: bytes, q: np.ndarray, low: np.ndarray, high: np.ndarray, bits: int, taps: int
) -> np.ndarray:
    """What the chip makes of a copy: int64 [rows, low and high], job by job as a convolution of 3x3 over an image
    that has two vectors and zeros.

    Low bytes are its first column or pixel, high ones the third behind it; two columns of zeros are left of them, and
    of single pixels two rows above, but none where a vector takes all taps."""
    rows, k = q.shape
    channels = -(-k // (4 * taps)) * 4
    tiles, groups, side = -(-channels // 28), 9 // taps, 0 if taps == 9 else 2
    half = 128 if taps == 1 else 64
    image = np.zeros((5, 10, 28 * tiles), np.int64)  # [y, x, channel]
    for at, vector in ((0, low), (3, high)):
        padded = np.zeros(taps * channels, np.int64)
        padded[:k] = vector
        for tap in range(taps):  # columns of three
            x, y = divmod(tap, 3)
            part = padded[tap * channels : (tap + 1) * channels]
            image[y + (2 if taps == 1 else 0), side + at + x, :channels] = part
    found, at, row = np.zeros((rows, 2), np.int64), 0, 0
    halves = -(-rows // half)
    whole = halves // 2 - 1 if halves > 3 else 0
    sizes = [2 * half] * whole + [half] * (halves - 2 * whole - 1) + [rows - half * (halves - 1)]
    for job, count in enumerate(sizes):
        n = -(-count // groups)
        size = n * tiles * bits * 32
        words = np.frombuffer(data[at : at + size], np.uint8).reshape(n, tiles, bits, 32)
        planes = np.unpackbits(words, axis=3, bitorder="little")[..., : 9 * 28].astype(np.int64)
        w = sum(planes[:, :, b] << b for b in range(bits)) - (1 << (bits - 1))
        w = w.reshape(n, tiles, 3, 3, 28).transpose(0, 2, 3, 1, 4).reshape(n, 3, 3, -1)
        for r in range(count):
            group, output = divmod(r, n)
            x, y = (group // 3, group % 3) if taps == 1 else (group, 0)
            for byte in (0, 1):
                seen = image[y : y + 3, x + 3 * byte : x + 3 * byte + 3]
                found[row + r, byte] = (seen * w[output]).sum()
        at += 2 * (-(-half // groups)) * tiles * bits * 32 if job < whole else size
        row += count
    assert len(data) == at + AHEAD
    return found


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize(
    ("n", "k"),
    [
        (8, 64),
        (77, 60),
        (213, 64),
        (333, 61),
        (96, 96),
        (640, 100),
        (300, 33),
        (72, 1100),
        (264, 1600),
    ],
)
def test_a_copy_gives_the_sums_of_both_bytes(n: int, k: int, bits: int) -> None:
    """Of all rows, from what lies behind what engine neureka stores."""
    w = matrix(n, k, bits, "neureka_twice")
    engine, first = ENGINES["neureka_twice"], ENGINES["neureka"]
    rows = stored_rows(w, None, engine.store.rows)
    data, before = engine.store.pack(rows).tobytes(), first.store.pack(rows).tobytes()
    shape = engine.shape(spec(rows=n, k=k, bits=bits))
    assert data.startswith(before) and len(data) == shape.bytes
    taps = engine.spread(k, bits)
    assert 4 * shape.words == w.pad == (3 if taps == 1 else 9) * (-(-k // (4 * taps)) * 4)
    rng = np.random.default_rng(k)
    low, high = rng.integers(-128, 128, (2, k))
    got = copied_sums(data[-(-len(before) // 32) * 32 :], rows.q, low, high, bits, taps)
    assert np.array_equal(got, rows.q.astype(np.int64) @ np.stack([low, high], 1))


def test_a_copy_is_no_slower() -> None:
    reason = "takes 470 cycles for one token with its copy, 455 without"
    assert ENGINES["neureka_twice"].refusal(spec(rows=8, k=32)) == reason


def test_the_weights_of_3x3_take_space_by_their_bits() -> None:
    sizes = [ENGINES["neureka_3x3"].shape(spec(k=252, bits=b)).block_bytes for b in (8, 4, 2)]
    assert sizes[0] == 2 * sizes[1] == 4 * sizes[2] == 8 * 8 * 32
    dense = {ENGINES["neureka"].shape(spec(bits=b)).block_bytes for b in (8, 4, 2)}
    assert dense == {8 * 64}


@pytest.mark.parametrize("name", NAMES)
def test_what_it_does_not_run(name: str) -> None:
    engine = ENGINES[name]
    assert engine.refusal(spec()) is engine.refusal(spec(embedding=True)) is None
    for fields in (
        {"group": 32},
        {"offsets": Offsets.WIDE},
        {"group": 16, "offsets": Offsets.WIDE},
    ):
        assert "has scales per group" in str(engine.refusal(spec(**fields)))
    assert "has a side path" in str(engine.refusal(spec(rank=2)))


# --- programs ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A model of which one engine runs all that it can: ``on`` are names without their layer."""

    engine: str
    options: QuantOptions = field(default_factory=QuantOptions)
    sizes: dict[str, Any] = field(default_factory=dict)
    on: frozenset[str] = frozenset({"qkv", "o", "gate_up", "down", "head"})
    ranks: dict[str, int] = field(default_factory=dict)
    biased: bool = False


# heads of 10, 88 rows and 44 inputs, 204 and 107 rows: nothing divides by 8, 32, 36 or 64, and half a block
# of gates and ups is not full
SIZES: dict[str, Any] = {
    "hidden": 44, "intermediate": 102, "vocab": 83, "heads": 4, "kv_heads": 2, "head_dim": 10,
    "layers": 1, "seed": 4,
}  # fmt: skip
GROUPED = QuantOptions(bits=4, group=4, short_last_group=True)
CASES = {
    "1x1": Case("neureka"),
    "1x1, 4 bit, a head of its own": Case(
        "neureka", QuantOptions(bits=4), {"tied": False, "layers": 2}
    ),
    "1x1, biases, several jobs": Case(
        "neureka", sizes={"intermediate": 301, "vocab": 333}, biased=True
    ),
    "1x1, the head alone beside groups": Case("neureka", GROUPED, on=frozenset({"head"})),
    "1x1, beside side paths": Case(
        "neureka", on=frozenset({"o", "gate_up", "head"}), ranks={"k_proj": 3, "down_proj": 2}
    ),
    # the controller has the ninth of one token's heads, and its part of several tokens'
    "1x1, nine heads": Case("neureka", sizes={"heads": 9, "kv_heads": 3, "layers": 2}),
    # from position 14 on the workers share one token's heads, also the last one's of a prompt; the controller does not
    "1x1, heads that are shared": Case("neureka", sizes={"head_dim": 64}),
    "3x3, 8 bit": Case("neureka_3x3"),
    "3x3, 4 bit, biases": Case("neureka_3x3", QuantOptions(bits=4, head_bits=4), biased=True),
    "3x3, 3 bit, several tiles": Case(
        "neureka_3x3", QuantOptions(bits=3, head_bits=2), {"intermediate": 299}
    ),
    "3x3, two layers, a head of its own": Case("neureka_3x3", sizes={"layers": 2, "tied": False}),
    "3x3, 4 bit, tails": Case(
        "neureka_3x3",
        QuantOptions(bits=4, head_bits=4),
        {"hidden": 256, "intermediate": 264},
        biased=True,
    ),
    "3x3, 8 bit, tails, a head of its own": Case(
        "neureka_3x3", sizes={"intermediate": 513, "tied": False}
    ),
    # 568 inputs, of which every other job has tails: of one job, two and four; down has them in all
    "3x3, tails of every other job": Case(
        "neureka_3x3",
        QuantOptions(bits=4, head_bits=8),
        {"hidden": 568, "intermediate": 253, "vocab": 141},
        biased=True,
    ),
    # of 288 inputs they are bytes; 773 have 5 words behind the image, in nibbles 3
    "3x3, 4 bit, tails of four channels": Case(
        "neureka_3x3", QuantOptions(bits=4, head_bits=4), {"hidden": 288, "intermediate": 773}
    ),
    "3x3, 3 bit, tails": Case(
        "neureka_3x3", QuantOptions(bits=3, head_bits=3), {"intermediate": 773}
    ),
    "3x3, 2 bit": Case("neureka_3x3", QuantOptions(bits=2, head_bits=2), {"vocab": 259}),
    # jobs of all extents, the last one's rows no whole blocks
    "copies": Case(
        "neureka_twice", sizes={"hidden": 60, "intermediate": 102, "vocab": 333, "layers": 2}, biased=True
    ),
    "copies, 4 bit": Case(
        "neureka_twice", QuantOptions(bits=4, head_bits=4), {"hidden": 96, "intermediate": 301, "vocab": 651}
    ),
    # vectors of 64 and 72 inputs are equally far apart, but rows in the first store are not equally long
    "copies, pitches alike": Case("neureka_twice", sizes={"hidden": 64, "intermediate": 72}),
    "copies, 2 and 3 bit": Case(
        "neureka_twice", QuantOptions(bits=2, head_bits=3), {"intermediate": 1600, "vocab": 259}
    ),
}  # fmt: skip
ON_QEMU = (
    "1x1",
    "copies",
    "3x3, 4 bit, biases",
    "3x3, 4 bit, tails",
    "3x3, tails of every other job",
)
ON_GVSOC = (
    "1x1, biases, several jobs", "1x1, beside side paths", "1x1, nine heads",
    "1x1, heads that are shared", "3x3, 4 bit, biases",
    "3x3, 3 bit, several tiles", "3x3, 4 bit, tails", "3x3, tails of every other job",
    "3x3, 4 bit, tails of four channels", "3x3, 3 bit, tails", "copies", "copies, 4 bit", "copies, 2 and 3 bit",
    "copies, pitches alike",
)  # fmt: skip


@pytest.fixture
def eager(register: Callable[[Engine], None]) -> None:
    """They run whatever they can."""
    for name in (*NAMES, "neureka_twice"):
        legal = ENGINES["neureka"].legal  # a copy need not gain anything
        register(replace(ENGINES[name], cycles=lambda spec, tokens: 1, legal=legal))


def load(case: Case, folder: Path) -> FloatModel:
    sizes = {**SIZES, **case.sizes}
    if case.biased:
        rng, dim = np.random.default_rng(7), sizes["head_dim"]
        sizes["config"] = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
        sizes["overrides"] = {
            f"model.layers.{i}.self_attn.{p}_proj.bias": rng.standard_normal(n * dim).astype("f4")
            for i in range(sizes["layers"])
            for p, n in {"q": 4, "k": 2, "v": 2}.items()
        }
    write_tiny_llama(folder, **sizes)
    model = load_hf(folder)
    add_adapters(model, case.ranks)
    return model


def target_of(case: Case) -> Target:
    """With the engine, and the one of whose matrices it has copies."""
    names = (CORES, ENGINES[case.engine].costs_as, case.engine)
    return replace(SIRACUSA, engines=tuple(filter(None, names)))


def compiled(case: Case, folder: Path) -> Program:
    model = load(case, folder / "model")
    graph = lowered(model, case.options, CONTEXT, target_of(case))
    return compile_graph(graph, model, folder / "out", target_of(case))


def engines_of(graph: Graph) -> dict[str, str]:
    found = {op.weight.name: op.weight.engine for op in graph.ops if isinstance(op, Linear)}
    return {name.split(".")[-1]: engine for name, engine in found.items()}


def prove(program: Program, on: str, *prompts: int, **options: str) -> int:
    """Values compared of runs with prompts of so many tokens, of which chunks are made."""
    program.build(on, **options)
    rng, compared = np.random.default_rng(1), 0
    for n in prompts:
        request = random_request(program.graph, rng, n, 3, WARM if n == 3 else GREEDY)
        compared += program.prove(on, request, timeout_s=240).compared
    return compared + prove_lookup(program, on)


def prove_lookup(program: Program, on: str) -> int:
    """Values compared of a run that verifies drafts: passes of several tokens, with all of their logits.
    Long enough for a text that comes back to what it said."""
    request = Request((1, *(40, 41, 42) * 2), CONTEXT - 7, ignore_eos=True, lookup=5)
    got = parse(program.run(on, request, timeout_s=240))
    verdict = compare(got, reference(program.graph, request), program.graph)
    assert verdict.ok, verdict
    assert max(p.tokens for p in got.passes) > 2
    return verdict.compared


@pytest.mark.parametrize("name", CASES)
def test_every_integer_is_the_interpreters(name: str, tmp_path: Path, eager: None) -> None:
    """Where the chip is not: its sums in C, with sanitizers, threads and transfers that come late."""
    need("host")
    case = CASES[name]
    program = compiled(case, tmp_path)
    assert {n for n, e in engines_of(program.graph).items() if e == case.engine} == case.on
    assert prove(program, "host", 1, 3, 4, 19, SAN="1", LAZY="1", CORES="3") > 1000
    if name in ON_QEMU and missing("qemu") is None:
        assert prove(program, "qemu", 19) > 0


def test_vectors_take_all_numbers_of_taps() -> None:
    spread = ENGINES["neureka_twice"].spread
    assert [spread(60, 8), spread(102, 8), spread(96, 4), spread(1600, 2)] == [3, 1, 1, 9]


@pytest.mark.parametrize(
    "name",
    [
        "1x1, biases, several jobs",
        "1x1, nine heads",
        "1x1, heads that are shared",
        "3x3, 4 bit, biases",
        "3x3, 4 bit, tails",
        "3x3, tails of every other job",
        "copies",
    ],
)
def test_no_two_threads_meet(name: str, tmp_path: Path, eager: None) -> None:
    need("host")
    assert prove(compiled(CASES[name], tmp_path), "host", 19, 2, SAN="thread", CORES="8") > 1000


@pytest.mark.gvsoc
@pytest.mark.parametrize("name", ON_GVSOC)
def test_on_the_chips_simulator(name: str, tmp_path: Path, eager: None) -> None:
    """The engine itself: jobs of one token and of several, a last chunk that is none of the others."""
    need("gvsoc")
    assert prove(compiled(CASES[name], tmp_path), "gvsoc", 18, 3) > 500


def with_tails_and_copies(folder: Path) -> Program:
    """A program whose engine has matrices with tails and matrices with copies; one token's and prompts' form alike."""
    target = replace(SIRACUSA, engines=(CORES, "neureka", "neureka_3x3", "neureka_twice"))
    options = QuantOptions(bits=4, head_bits=8)
    sizes = {**SIZES, "hidden": 96, "intermediate": 508}
    write_tiny_llama(folder / "model", **sizes)
    model = load_hf(folder / "model")
    program = compile_graph(lowered(model, options, CONTEXT, target), model, folder / "out", target)
    assert engines_of(program.graph) == {
        "qkv": "neureka_twice", "o": "neureka_twice", "gate_up": "neureka_twice", "down": "neureka_3x3",
        "head": "neureka_twice",
    }  # fmt: skip
    macros = (program.out / "src" / "model.h").read_text()
    assert all(f"#define {name} 1" in macros for name in ("SC_ENGINE_TAILS", "SC_ENGINE_COPIES"))
    return program


def test_tails_and_copies_in_one_program(tmp_path: Path) -> None:
    need("host")
    program = with_tails_and_copies(tmp_path)
    assert prove(program, "host", 3, 19, SAN="1", LAZY="1", CORES="3") > 1000
    if missing("qemu") is None:
        program.build("gvsoc")


@pytest.mark.gvsoc
def test_tails_and_copies_in_one_program_on_the_chips_simulator(tmp_path: Path) -> None:
    need("gvsoc")
    assert prove(with_tails_and_copies(tmp_path), "gvsoc", 18, 3) > 500


def test_the_embedding_is_read_from_bit_planes(tmp_path: Path, eager: None) -> None:
    """Tied: no second copy for the cores; each of the programs above reads its rows so."""
    for name in ("1x1", "3x3, 8 bit"):
        graph = compiled(CASES[name], tmp_path / name).graph
        table = next(op.table for op in graph.ops if isinstance(op, Embed))
        assert table.engine == CASES[name].engine
        assert table is next(op.weight for op in graph.ops if op.out == "logits")  # type: ignore[attr-defined]


def test_who_runs_a_matrix_changes_no_integer(tmp_path: Path) -> None:
    """Of one scale per row, whoever runs it."""
    model = load(CASES["1x1"], tmp_path / "model")
    graphs = [
        lowered(model, QuantOptions(bits=4), 16, replace(SIRACUSA, engines=engines))
        for engines in ((CORES,), SIRACUSA.engines)
    ]
    assert set(engines_of(graphs[0]).values()) == {CORES}
    assert (
        set(engines_of(graphs[1]).values()) > {CORES} or CORES not in engines_of(graphs[1]).values()
    )
    for mine, theirs in zip(*(g.ops for g in graphs), strict=True):
        if isinstance(mine, Linear) and isinstance(theirs, Linear):
            a, b = mine.weight, theirs.weight
            for field_name in ("q", "r"):
                np.testing.assert_array_equal(getattr(a, field_name), getattr(b, field_name))
            assert (a.shift, a.frac, a.x_bits, a.seg) == (b.shift, b.frac, b.x_bits, b.seg)
