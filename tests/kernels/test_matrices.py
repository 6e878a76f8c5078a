"""sc_matrix_tile and sc_embed_row against the interpreter, all cores in turn, any tiling."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from helpers.tiers import slow_but
from shrinkc.codegen.pack import gate_up_order, pack_matrix
from shrinkc.ir.linear import (
    ACC_MAX,
    GROUP_SUM_MAX,
    WEIGHT_MAX,
    LowRank,
    QLinear,
    largest_cmax,
    largest_x_bits,
)
from shrinkc.numerics.fixed import INT32_MAX, RESIDUAL_BITS, add_to_residual
from shrinkc.numerics.gating import silu_mul
from shrinkc.numerics.matrices import R_MAX, embed, linear, rescale
from shrinkc.numerics.vectors import Q16Vector, QVector, quantize_q16
from shrinkc.storage import ADAPTER_BITS, format_of, stored_group

from .conftest import ALL_FORMATS, CONFIGS, FEW_FORMATS, GENERIC, WITH_ENGINES
from .harness import (
    ADD,
    ASYM,
    EMBED,
    ENGINE_ROWS,
    GROUPED,
    MATRIX,
    Q16,
    SILU,
    STORE,
    WIDTH,
    ZEROS,
    Harness,
    assert_same,
    half_words,
    matrix_command,
    matrix_words,
    planes,
    to_words,
)

Get = Callable[[str], Harness]
Command = tuple[int, np.ndarray]
EDGE_K = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 63, 64, 65, 127, 128, 129, 171, 172, 173)


def random_linear(
    rng: np.random.Generator,
    n: int,
    k: int,
    fmt: int,
    group: int,
    shift: int = 0,
    name: str = "w",
    pad: int | None = None,
) -> QLinear:
    """A matrix of extreme integers that keeps the IR's bounds; one group of 16-bit activations."""
    bits = fmt & WIDTH
    group = k if fmt & Q16 else group
    low, high = format_of(bits).low, format_of(bits).high
    groups = -(-k // group)
    q = rng.integers(low, high + 1, (n, k))
    if rng.random() < 0.3:
        q = rng.choice([low, high], (n, k))
    d = b = None
    if fmt & GROUPED:
        d = rng.integers(1, int(rng.choice([2, 16, 128, 256])), (n, groups)).astype(np.uint8)
    if fmt & ZEROS:
        assert d is not None
        d = np.minimum(d, 32767 // (np.maximum(-low, high) + 8)).astype(np.uint8)
        b = (d * rng.integers(-8, 8, (n, groups))).astype(np.int16)
        if rng.random() < 0.3:
            b = (d * rng.choice([-8, 7], (n, groups))).astype(np.int16)
    elif fmt & ASYM:
        assert d is not None
        # |q d - b| within int16, at either end of the range that leaves
        room = 32767 - np.maximum(-low, high) * d.astype(int)
        b = np.clip(rng.integers(-32767, 32768, (n, groups)), -room, room).astype(np.int16)
        if rng.random() < 0.3:
            b = (rng.choice([-1, 1], (n, groups)) * room).astype(np.int16)
    w = QLinear(
        name=name, bits=bits, group_size=group if fmt & GROUPED else None, group=group, q=q.astype(np.int8),
        d=d, b=b, r=rng.choice([0, 1, R_MAX, int(rng.integers(R_MAX))], n).astype(np.uint16),
        drop=0, shift=shift, cmax=255, frac=0, pad=pad or format_of(bits).inputs,
        row_scale=np.ones(n), zero_points=bool(fmt & ZEROS),
    )  # fmt: skip
    while w.group_bounds().max() << w.format.fold > GROUP_SUM_MAX:
        assert w.b is not None and w.d is not None
        w.b = w.d * (w.zeros() // 2).astype(np.int16) if w.zero_points else w.b // 2
    if d is not None:
        w.drop = int(rng.integers(not w.format.fold, 8))
        while w.unit_bound() > ACC_MAX:
            w.drop += 1
    if fmt & Q16:
        w.cmax, w.x_bits = 0, largest_x_bits(w.group_bounds())
    else:
        w.cmax = largest_cmax(w.unit_bound())
    assert w.cmax + w.x_bits > 0 and np.abs(w.effective()).max() <= WEIGHT_MAX
    return w


def random_mantissas(rng: np.random.Generator, tokens: int) -> np.ndarray:
    return rng.choice([1 << 14, 1 << 15, int(rng.integers(1 << 14, (1 << 15) + 1))], tokens)


def random_wide_input(rng: np.random.Generator, tokens: int, w: QLinear) -> Q16Vector:
    """Vectors that may reach the accumulator bound, as a whole or in one of their bytes."""
    top = 1 << w.x_bits
    q = rng.integers(-top, top + 1, (tokens, w.k))
    sign = np.where(w.effective()[int(rng.integers(w.n))] < 0, -1, 1)
    kind = int(rng.integers(4))
    if kind == 1:
        q[0] = top * sign
    elif kind == 2:  # low bytes of -128, and the largest high ones
        q[0] = (top - 128 if top > 128 else top) * sign
    elif kind == 3:  # the largest of low bytes alone
        q[0] = np.where(sign < 0, -128, 127) if top > 128 else sign
    return Q16Vector(q, random_mantissas(rng, tokens), rng.integers(-20, 21, tokens))


def random_input(rng: np.random.Generator, tokens: int, w: QLinear) -> QVector | Q16Vector:
    """Vectors that may reach the accumulator bound: q at ±127 and c at cmax in some tokens."""
    if w.x_bits:
        return random_wide_input(rng, tokens, w)
    groups = w.groups
    q = rng.integers(-127, 128, (tokens, w.k))
    c = rng.integers(1, w.cmax + 1, (tokens, groups))
    if rng.random() < 0.3:
        row = int(rng.integers(w.n))
        q[0] = np.where(w.effective()[row] < 0, -127, 127)
        c[0] = w.cmax
    return QVector(q, c, random_mantissas(rng, tokens), rng.integers(-20, 21, tokens))


def residual(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Of all magnitudes that a residual stream may have."""
    top = 1 << RESIDUAL_BITS
    return rng.integers(-top, top, shape) >> rng.integers(0, 30, shape)


def random_case(
    rng: np.random.Generator, fmt: int, n: int, k: int, adapter: bool
) -> tuple[QLinear, QVector | Q16Vector, Q16Vector | None]:
    group = int(rng.choice([stored_group(k, None), 4, 8, 3, 32, 60]))
    group = max(1, min(group, k))
    w = random_linear(rng, n, k, fmt, group, int(rng.integers(-12, 24)))
    x = random_input(rng, int(rng.integers(1, 6)), w)
    if not adapter:
        return w, x, None
    rank = int(rng.integers(1, 12))
    wide = fmt & Q16
    a = random_linear(
        rng, rank, k, ADAPTER_BITS | wide, group, int(rng.integers(0, 12)), "w.a", w.pad
    )
    b = random_linear(rng, n, rank, ADAPTER_BITS | Q16, rank, int(rng.integers(0, 24)), "w.b")
    if isinstance(x, QVector):
        w.cmax = a.cmax = min(a.cmax, w.cmax)
        x.c = np.minimum(x.c, w.cmax)
    else:
        w.x_bits = a.x_bits = min(a.x_bits, w.x_bits)
        x.q = np.clip(x.q, -(1 << w.x_bits), 1 << w.x_bits)
    w.low_rank = LowRank(a, b)
    mid = rescale(a, a.accumulate(x), x)
    return w, x, quantize_q16(mid, b.x_bits)


def case_of(
    rng: np.random.Generator, fmt: int, n: int, k: int, cores: int, adapter: bool, kind: int
) -> tuple[Command, np.ndarray, str]:
    """A command, the interpreter's answer, and what to call it."""
    if kind == SILU:
        n = 2 * n
    w, x, t = random_case(rng, fmt, n, k, adapter)
    tokens = len(x.q)
    width = n // 2 if kind == SILU else n
    stride = width + int(rng.integers(0, 4))
    start = residual(rng, (tokens, stride))
    y = linear(w, x)
    gate_shift, silu_shift, up_shift = int(rng.integers(-12, 20)), 0, 0
    want = start.copy()
    if kind == STORE:
        want[:, :width] = y
    elif kind == ADD:
        want[:, :width] = add_to_residual(start[:, :width], y)
    else:
        for _ in range(15):  # the largest shift that the gates allow, as lower() picks it
            try:
                silu_mul(y, gate_shift, silu_shift + 1, 0)
                silu_shift += 1
            except ArithmeticError:
                break
        up_shift = int(rng.integers(0, 32 - int(np.abs(y[:, width:]).max(initial=1)).bit_length()))
        want[:, :width] = silu_mul(y, gate_shift, silu_shift, min(up_shift, 15))
    tile_blocks = int(rng.integers(1, -(-n // 8) + 1)) if kind != SILU else None
    command = matrix_command(
        w, x, t, start, kind=kind, cores=cores, backwards=bool(rng.integers(2)),
        tile_blocks=tile_blocks, gate_shift=gate_shift, silu_shift=silu_shift,
        up_shift=min(up_shift, 15),
    )  # fmt: skip
    what = (
        f"{('store', 'add', 'silu')[kind]} n {n} k {k} group {w.group} format {fmt} cores {cores}"
    )
    return command, want, f"{what} tokens {tokens} shift {w.shift} adapter {adapter}"


def run_cases(h: Harness, cases: list[tuple[Command, np.ndarray, str]]) -> int:
    compared = 0
    results = h.run([c for c, _, _ in cases])
    split = 0
    for at, ((command, _), _, _) in enumerate(cases):
        if command == MATRIX:
            split += int(results[at][-1])
            results[at] = results[at][:-1]
    times = {got.size // want.size for got, (_, want, _) in zip(results, cases, strict=True)}
    tiles = any(command == MATRIX for (command, _), _, _ in cases)
    assert max(times) == (2 + h.several if tiles else 1)  # sc_matrix_tile, split, sc_matrix_tokens
    assert (split > 0) == tiles
    for got, (_, want, what) in zip(results, cases, strict=True):
        for one in got.reshape(-1, *want.shape):
            compared += assert_same(one, want, what)
    return compared


def formats_of(name: str) -> tuple[int, ...]:
    return CONFIGS[name].formats or ALL_FORMATS


@pytest.mark.parametrize("config", slow_but(GENERIC + FEW_FORMATS, "hd64", *FEW_FORMATS))
def test_rows_and_inputs_around_every_edge(harness: Get, config: str) -> None:
    """Rows 1..17, K around word, block and group sizes, cores 1, 3, 8, tokens 1..5."""
    rng = np.random.default_rng(10)
    adapter = CONFIGS[config].adapter
    cases = []
    for fmt in formats_of(config):
        for kind in (STORE, ADD, SILU):
            for n in range(1, 18):
                k = int(rng.choice(EDGE_K))
                cores = int(rng.choice([1, 3, 8]))
                cases.append(
                    case_of(rng, fmt, n, k, cores, adapter and bool(rng.integers(2)), kind)
                )
        for k in EDGE_K:
            cases.append(case_of(rng, fmt, int(rng.integers(1, 18)), k, 3, False, STORE))
    assert run_cases(harness(config), cases) > 1000


@pytest.mark.parametrize("config", ["hd2", "hd64"])
def test_blocks_divide_among_any_number_of_cores(harness: Get, config: str) -> None:
    """1..2 * cores + 1 blocks of 8 rows, one row less and one more, for 1..9 cores."""
    rng = np.random.default_rng(11)
    cases = []
    for cores in range(1, 10):
        for blocks in range(1, 2 * cores + 2):
            n = max(1, 8 * blocks + int(rng.integers(-1, 2)))
            fmt = int(rng.choice(ALL_FORMATS))
            cases.append(case_of(rng, fmt, n, int(rng.integers(1, 20)), cores, False, STORE))
    assert run_cases(harness(config), cases) > 1000


@pytest.mark.parametrize("config", GENERIC + FEW_FORMATS)
def test_accumulator_bound_is_reached_and_exact(harness: Get, config: str) -> None:
    """x = ±127 along the sign of a row and c = cmax: the largest |acc| the IR allows."""
    rng = np.random.default_rng(12)
    cases = []
    for fmt in formats_of(config):
        if fmt & Q16:
            cases += wide_bounds(rng, fmt)
            continue
        for k in (64, 172):
            w = random_linear(rng, 9, k, fmt, 32, shift=-1)
            w.r[:] = R_MAX
            row = int(w.group_bounds().sum(axis=1).argmax())
            sign = np.where(w.effective()[row] < 0, -127, 127)
            q = np.stack([sign, -sign])
            x = QVector(q, np.full((2, w.groups), w.cmax), np.full(2, 1 << 15), np.zeros(2, int))
            acc = np.abs(w.accumulate(x)).max()
            assert acc <= w.unit_bound() * w.cmax <= INT32_MAX
            assert acc >= (w.unit_bound() - w.groups) * w.cmax
            start = np.zeros((2, 9), int)
            command = matrix_command(w, x, None, start, kind=STORE, cores=4)
            cases.append((command, linear(w, x), f"bound of format {fmt} k {k}"))
    assert run_cases(harness(config), cases) > 0


def wide_bounds(rng: np.random.Generator, fmt: int) -> list[tuple[Command, np.ndarray, str]]:
    """x = ±2**x_bits along the sign of a row: 14 bits, and fewer for a long one of 127 everywhere."""
    cases = []
    for k in (64, 172, 1041, 8200):
        w = random_linear(rng, 9, k, fmt, k, shift=-1)
        w.r[:] = R_MAX
        if k > 1000:
            w.q[2:4] = w.format.high
        w.x_bits = largest_x_bits(w.group_bounds())
        row = int(w.group_bounds().argmax())
        sign = np.where(w.q[row] < 0, -1, 1).astype(np.int64)
        top = sign << w.x_bits
        # all of it; the largest sum of high bytes, less that of low ones; of low bytes alone
        low = np.where(sign < 0, -128, 127)
        q = np.stack([top, -top, top - 128 * sign, low])
        x = Q16Vector(q, np.full(4, 1 << 15), np.zeros(4, int))
        assert np.abs(w.accumulate(x)).max() == w.acc_bound() <= INT32_MAX
        assert w.x_bits == 14 or w.acc_bound() > INT32_MAX // 2
        start = np.zeros((4, 9), int)
        command = matrix_command(w, x, None, start, kind=STORE, cores=4)
        cases.append((command, linear(w, x), f"bound of format {fmt} k {k}"))
        if w.format.high == 127:
            assert w.x_bits == {64: 14, 172: 14, 1041: 13, 8200: 11}[k]
    return cases


def engine_command(
    w: QLinear,
    x: Q16Vector,
    start: np.ndarray,
    rows: int,
    *,
    kind: int,
    sums: int,
    shifts: tuple[int, int, int],
    backwards: bool,
) -> Command:
    """Pieces of ``rows`` rows with the sums that an engine leaves of each: two, of low and of high bytes, or
    one, of both together; 0: one of each row of a block.  Rows behind the last have sums of nobody's, and pieces of
    their own."""
    order = gate_up_order(w.n) if kind == SILU else np.arange(w.n)
    stored = -(-len(order) // 8) * 8
    at = np.full(stored, -2)
    at[: len(order)] = order  # -1: in the middle of gates and ups, rows of zeros
    low, high = (w.q.astype(np.int64) @ plane for plane in planes(x.q[0]))

    def stored_as(values: np.ndarray, garbage: int) -> np.ndarray:
        return np.where(at >= 0, values[np.maximum(at, 0)], np.where(at == -1, 0, garbage))

    r = stored_as(w.r, 0x5A5A)
    of_rows = [
        stored_as(s, 0x12345678) for s in ((low, high) if sums == 2 else (low + 256 * high,))
    ]
    parts = [
        matrix_words(w, stored, 1), to_words([kind, start.shape[1], *shifts, rows, sums]),
        to_words([x.mantissa[0], x.exponent[0]]), to_words(start[0]),
    ]  # fmt: skip
    pieces = range(0, stored, rows)
    for first in reversed(pieces) if backwards else pieces:
        piece = slice(first, min(first + rows, stored))
        parts += [to_words([first]), half_words(r[piece]), *(to_words(s[piece]) for s in of_rows)]
    return ENGINE_ROWS, np.concatenate(parts)


@pytest.mark.parametrize("config", WITH_ENGINES)
@pytest.mark.parametrize("sums", [2, 1, 0])
def test_what_an_engine_sums_becomes_rows(harness: Get, config: str, sums: int) -> None:
    """sc_matrix_joined of two sums and of one, in pieces of 1..70 rows (of gate and up whole blocks), and
    sc_matrix_rows."""
    rng = np.random.default_rng(14)
    cases = []
    for kind in (STORE, ADD, SILU):
        for n in (*range(1, 35), 63, 64, 65, 129):
            rows = (
                int(rng.choice([8, 16, 24, 32, 40, 64, 72] if kind == SILU else range(1, 71)))
                if sums
                else 8
            )
            k, width = int(rng.choice([*EDGE_K, 1041])), n
            w = random_linear(
                rng, 2 * n if kind == SILU else n, k, 8 | Q16, k, int(rng.integers(-12, 24))
            )
            if k > 1000:
                w.q[:] = rng.choice([-127, 127], w.q.shape)
                w.x_bits = largest_x_bits(w.group_bounds())
            x = random_wide_input(rng, 1, w)
            start = residual(rng, (1, width + int(rng.integers(0, 4))))
            y, want = linear(w, x), start.copy()
            shifts = (int(rng.integers(-12, 20)), 0, 0) if kind == SILU else (0, 0, 0)
            if kind == STORE:
                want[:, :width] = y
            elif kind == ADD:
                want[:, :width] = add_to_residual(start[:, :width], y)
            else:
                want[:, :width] = silu_mul(y, *shifts)
            command = engine_command(
                w, x, start, rows, kind=kind, sums=sums, shifts=shifts,
                backwards=bool(rng.integers(2)),
            )  # fmt: skip
            what = f"{('store', 'add', 'silu')[kind]} n {n} k {k} pieces of {rows} sums {sums}"
            cases.append((command, want, f"{what} shift {w.shift} exponent {x.exponent[0]}"))
    assert run_cases(harness(config), cases) > 1000


@pytest.mark.parametrize("config", GENERIC + FEW_FORMATS)
def test_embedding_rows(harness: Get, config: str) -> None:
    """Every row of a block, every format, cores 1..9."""
    rng = np.random.default_rng(13)
    commands, wanted = [], []
    for fmt in formats_of(config):
        for cores in range(1, 10):
            k = int(rng.choice([*range(1, 2 * cores + 2), *EDGE_K]))
            group = max(1, min(k, int(rng.choice([3, 4, 8, 32, 60, 64]))))
            w = random_linear(rng, 11, k, fmt, group)
            factor, shift = int(rng.integers(1, 1 << 31)), int(rng.integers(-8, 20))
            row = int(rng.integers(11))
            block = pack_matrix(w)[row // 8]
            parts = [
                matrix_words(w, 11, 1),
                to_words([row % 8, factor, shift, cores, int(rng.integers(2))]),
                block.view(np.int32),
            ]
            commands.append((EMBED, np.concatenate(parts)))
            wanted.append(
                (
                    embed(w, np.array([row]), factor, shift)[0],
                    f"row {row} k {k} group {group} format {fmt}",
                )
            )
    for got, (want, what) in zip(harness(config).run(commands), wanted, strict=True):
        assert_same(got, want, what)
