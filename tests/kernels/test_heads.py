"""heads_prepare, heads_attend, shares and sc_head_* against quantize_heads(), store_heads() and attend()."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from shrinkc.abi import kv_block_bytes, query_bytes
from shrinkc.ir.ops import Attention, RopeCache
from shrinkc.ir.ops.attention import SHARES_MAX
from shrinkc.numerics import vectors
from shrinkc.numerics.attention import SoftmaxScale, attend
from shrinkc.numerics.vectors import (
    Coding,
    HeadNorm,
    QHeads,
    StoredHeads,
    quantize_heads,
    rotate_heads,
    rotation_bits,
    store_heads,
    store_parts,
    store_rotated,
)

from .conftest import CODES, CONFIGS, SHORT
from .harness import HEADS, Harness, assert_same, to_words

Get = Callable[[str], Harness]
POSITIONS = 4
KINDS = ("random", "small", "zero", "spread", "equal", "full")


UNIT = 17  # the least in which every int32 has a scale
CODE_UNIT = 18  # and every half range of codes of 4 bits
EXTRA_BITS = 5  # of which the largest values' means saturate


def unit_of(h: Harness) -> int:
    return CODE_UNIT if h.graph.kv_bits == 4 else UNIT


def softmax_scale(
    h: Harness, mantissa: int, exponent: int, unit: int | None = None
) -> SoftmaxScale:
    unit = unit_of(h) if unit is None else unit
    op = next(op for op in h.graph.ops if isinstance(op, Attention))
    return SoftmaxScale(
        mantissa, exponent, op.dot_shift, op.weight_bits, unit + growth(h), EXTRA_BITS
    )


def growth(h: Harness) -> int:
    """By how many bits values grow when a cache of 4 bits rotates them."""
    bits = rotation_bits(h.config.head_dim) if h.graph.kv_bits == 4 else 0
    return bits - bits // 2


@dataclass(frozen=True)
class Norm:
    """The gains int16 [D] and the other constants of the norms of heads."""

    q_gain: np.ndarray
    k_gain: np.ndarray
    eps: int
    pre_shift: int


def norm_of(h: Harness) -> Norm | None:
    op = next(op for op in h.graph.ops if isinstance(op, RopeCache))
    if op.q_gain is None or op.k_gain is None or op.eps is None or op.pre_shift is None:
        return None
    return Norm(op.q_gain, op.k_gain, op.eps, op.pre_shift)


def make_qkv(h: Harness, n: int, kind: str, rng: np.random.Generator) -> np.ndarray:
    c = h.config
    rows = (c.heads + 2 * c.kv_heads, c.head_dim)
    limit = (1 << 31) - 1
    x = rng.integers(-limit, limit + 1, (n, *rows))
    if kind == "small":
        x = rng.integers(-3, 4, (n, *rows))
    elif kind == "zero":
        x[:] = 0
    elif kind == "spread":  # magnitudes from 1 to 2**31 from head to head and token to token
        x >>= rng.integers(0, 31, (n, rows[0], 1))
    elif kind == "equal":
        x[:] = x[:1]
    elif kind == "full":  # mantissas of exactly 2**15
        x = rng.choice([-limit, limit], (n, *rows))
    return x


def angles(h: Harness, n: int) -> tuple[np.ndarray, np.ndarray]:
    return h.graph.rope_cos[:n].astype(np.int64), h.graph.rope_sin[:n].astype(np.int64)


def command(
    h: Harness, x: np.ndarray, how: SoftmaxScale, pieces: Sequence[int], first: int
) -> tuple[int, np.ndarray]:
    n = len(x)
    cos, sin = h.graph.rope_cos[:n], h.graph.rope_sin[:n]
    rope = np.ascontiguousarray(np.stack([cos, sin], axis=2).astype(np.int16)).reshape(-1)
    norm = norm_of(h)
    gains = [] if norm is None else [to_words([norm.eps & 0xFFFFFFFF, norm.eps >> 32])]
    if norm is not None:
        gains.append(np.concatenate([norm.q_gain, norm.k_gain]).view(np.int32))
    if (order := key_order(h)) is not None:
        padded = np.zeros(-(-order.size // 4) * 4, np.uint8)
        padded[: order.size] = order.reshape(-1)
        gains.append(padded.view(np.int32))
    units = [k_unit(h, how), how.v_unit, how.v_unit + how.extra_bits]
    head = [n, first, how.mantissa, how.exponent, *units, len(pieces), *pieces]
    return HEADS, np.concatenate(
        [to_words(head), *gains, to_words(x.reshape(-1)), rope.view(np.int32)]
    )


def unpack(h: Harness, words: np.ndarray, n: int, first: int) -> dict[str, np.ndarray]:
    """The command's answer in the layouts that sc_attention.h describes."""
    c = h.config
    hdp, blocks = query_bytes(c.head_dim, h.graph.kv_bits), -(-c.context // POSITIONS)
    k_words, v_words = (
        size // 4 for size in kv_block_bytes(c.kv_heads, c.head_dim, h.graph.kv_bits)
    )
    record = k_words // (POSITIONS * c.kv_heads)
    sizes = [n * c.heads * hdp // 4, n * c.heads, blocks * k_words, blocks * v_words]
    sizes += [(n - first) * c.heads * c.head_dim, 1]
    assert len(words) == sum(sizes)
    q, q_scale, k, v, out, shared = np.split(words, np.cumsum(sizes)[:-1])
    records = k.reshape(-1, c.kv_heads, record)[:n]
    both = {
        "q": q.view(np.int8).reshape(n, c.heads, hdp),
        "q scale": q_scale.reshape(n, c.heads),
        "out": out.reshape(n - first, c.heads, c.head_dim),
        "shared": shared,
    }
    if h.graph.kv_bits == 4:
        return both | unpacked_codes(h, records, v, n)
    vq = v.view(np.int8).reshape(blocks, c.kv_heads, c.head_dim, POSITIONS).transpose(0, 3, 1, 2)
    return {
        **both,
        "k": np.ascontiguousarray(records[:, :, 1:]).view(np.int8),
        "k scale": records[:, :, 0] & 0xFFFF,
        "v": vq.reshape(-1, c.kv_heads, c.head_dim)[:n],
        "v scale": records[:, :, 0] >> 16,
    }


def unpacked_codes(h: Harness, records: np.ndarray, v: np.ndarray, n: int) -> dict[str, np.ndarray]:
    """Keys and values of a cache of 4 bits, from its records int32 [n, KV heads, words] and V blocks."""
    c = h.config
    wide = c.head_dim // 16 * 4
    data = np.ascontiguousarray(records).view(np.uint8)
    codes = nibbles(data[..., 8 + wide :])  # in words: low nibbles of 4 bytes, then high ones
    codes = codes.reshape(*codes.shape[:2], -1, 4, 2).swapaxes(3, 4).reshape(*codes.shape[:2], -1)
    heads = v.view(np.uint8).reshape(-1, c.kv_heads, 1 + c.head_dim // 2, POSITIONS)
    heads = heads.transpose(0, 3, 1, 2).reshape(-1, c.kv_heads, 1 + c.head_dim // 2)[:n]
    offset, below = (x.astype(np.int8).astype(np.int64) for x in (data[..., 6:7], heads[..., :1]))
    assert not codes[..., c.head_dim - wide :].any()
    return {
        "k": data[..., 8 : 8 + wide].view(np.int8),
        "k scale": records[:, :, 0] & 0xFFFF if wide else np.zeros((n, c.kv_heads)),
        "codes": 16 * codes[..., : c.head_dim - wide] + offset,
        "codes scale": records[:, :, 1] & 0xFFFF,
        "v": 16 * nibbles(heads[..., 1:]) + below,
        "v scale": records[:, :, 0] >> 16,
    }


def nibbles(data: np.ndarray) -> np.ndarray:
    """Signed codes of 4 bits, two of each byte: int64 [..., 2 * bytes]."""
    both = np.stack([data << 4, data & 0xF0], axis=-1).astype(np.uint8).view(np.int8)
    return (both.astype(np.int64) >> 4).reshape(*data.shape[:-1], -1)


def key_order(h: Harness) -> np.ndarray | None:
    return next(op for op in h.graph.ops if isinstance(op, RopeCache)).key_order


def k_unit(h: Harness, how: SoftmaxScale) -> int:
    """Keys that pass through a norm are in its unit (quantize/bounds.py: stored_unit)."""
    norm = norm_of(h)
    return how.v_unit - growth(h) if norm is None else unit_of(h) + norm.pre_shift


def shared_tokens(h: Harness, first: int, n: int) -> int:
    """How many of the tokens have heads that cores share (sc_shares.h); the harness compares these."""
    c = h.config
    left = c.heads % c.cores
    start = 1000 * c.cores // ((18 + 2 * c.head_dim) * (c.cores - left))
    if left == 0 or start >= c.context:
        return 0
    shares = left // math.gcd(left, c.cores)
    assert shares <= SHARES_MAX
    ranges = shares * c.cores // left
    blocks = [t // POSITIONS + 1 for t in range(max(first, start), n)]
    return sum(
        b >= ranges and shares * -(-b // ranges) <= -(-c.context // POSITIONS) for b in blocks
    )


def expected(h: Harness, x: np.ndarray, how: SoftmaxScale, first: int) -> dict[str, np.ndarray]:
    c = h.config
    cos, sin = angles(h, len(x))
    norm = norm_of(h)

    q_part, k_part, v_part = np.split(x, (c.heads, c.heads + c.kv_heads), axis=1)
    q_norm = k_norm = None
    if norm is not None:
        gains = (norm.q_gain.astype(np.int64), norm.k_gain.astype(np.int64))
        q_norm, k_norm = (HeadNorm(gain, norm.pre_shift, norm.eps) for gain in gains)
    q = quantize_heads(q_part, cos, sin, q_norm)
    order = key_order(h)
    if order is None:
        keys = [store_heads(k_part, k_unit(h, how), cos, sin, k_norm)]
        v = store_heads(v_part, how.v_unit)
    else:
        keys, v = stored_codes(h, k_part, v_part, order.astype(np.int64), how, (cos, sin, k_norm))
        q.q = np.take_along_axis(
            q.q, np.repeat(order.astype(np.int64), c.heads // c.kv_heads, axis=0)[None], axis=2
        )
    n = len(x)
    mask = np.arange(n)[None, :] <= np.arange(first, n)[:, None]
    outs = []
    for i in range(c.heads):
        own = QHeads(q.q[first:, i], q.mantissa[first:, i], q.exponent[first:, i])
        j = i // (c.heads // c.kv_heads)
        *own_keys, values = (StoredHeads(t.q[:, j], t.scale[:, j]) for t in (*keys, v))
        outs.append(attend(how, own, own_keys, values, mask))
    out = np.stack(outs, axis=1)
    if order is not None:
        out = rotate_heads(out)
    pad = ((0, 0), (0, 0), (0, query_bytes(c.head_dim, h.graph.kv_bits) - c.head_dim))

    scale = to_words(q.mantissa | (q.exponent << 16))
    both = {
        "q": np.pad(q.q, pad), "q scale": scale, "v": v.q, "v scale": v.scale, "out": out,
        "shared": [shared_tokens(h, first, n)],
    }  # fmt: skip
    if order is None:
        return both | {"k": np.pad(keys[0].q, pad), "k scale": keys[0].scale}
    *wide, codes = keys
    both |= {"codes": codes.q, "codes scale": codes.scale}
    return both | ({"k": wide[0].q, "k scale": wide[0].scale} if wide else {})


def stored_codes(
    h: Harness,
    k: np.ndarray,
    v: np.ndarray,
    order: np.ndarray,
    how: SoftmaxScale,
    rotation: tuple[np.ndarray, np.ndarray, HeadNorm | None],
) -> tuple[list[StoredHeads], StoredHeads]:
    """Keys in parts, and values, of a cache of 4 bits."""
    c = h.config
    wide = c.head_dim // 16 * 4
    parts = [(Coding.BYTES, order[:, :wide])] if wide else []
    parts.append((Coding.NIBBLES, order[:, wide:]))
    return store_parts(k, k_unit(h, how), parts, *rotation), store_rotated(v, how.v_unit)


def check(
    h: Harness, jobs: Sequence[tuple[np.ndarray, SoftmaxScale, Sequence[int], int, str]]
) -> int:
    results = h.run([command(h, x, how, pieces, first) for x, how, pieces, first, _ in jobs])
    compared = 0
    for words, (x, how, pieces, first, what) in zip(results, jobs, strict=True):
        got, want = unpack(h, words, len(x), first), expected(h, x, how, first)
        for name, values in want.items():
            compared += assert_same(got[name], values, f"{name} of {what}, pieces {pieces}")
    return compared


@pytest.mark.parametrize("config", [*CONFIGS, *CODES])
def test_contexts_and_score_scales(harness: Get, config: str) -> None:
    """Contexts 1..17 and the longest, every token's attention; scores from flat to one-hot."""
    h, rng = harness(config), np.random.default_rng(20)
    whole = next(op for op in h.graph.ops if isinstance(op, Attention))
    blocks = -(-h.config.context // POSITIONS)
    jobs = []
    for n in range(1, 18):
        for kind in KINDS if n in (1, 2, 5, 17) else (KINDS[n % len(KINDS)],):
            mantissa = int(rng.choice([1 << 14, 1 << 15, whole.scale_mantissa]))
            x = make_qkv(h, n, kind, rng)
            # the exponent at which 31-bit heads give scores around 1, and far from it
            exponent = int(rng.choice([-80, -58, -50, -44, -40, -35, -20, whole.scale_exponent]))
            how = softmax_scale(h, mantissa, exponent)
            jobs.append((x, how, [blocks], 0, f"{kind} {n} tokens scale 2**{exponent}"))
    n = min(h.config.context, 64)
    x = make_qkv(h, n, "random", rng) >> 8
    for unit in (9, 16, 22):  # of heads of 2**23: scales rounded up by little and by much
        how = softmax_scale(h, 1 << 14, -63 + unit, unit)
        jobs.append((x, how, [blocks], n - 2, f"{n} tokens in units of 2**{unit}"))
    assert check(h, jobs) > 1000


@pytest.mark.parametrize("config", [*SHORT, *CODES])
def test_pieces_of_the_cache_change_nothing(harness: Get, config: str) -> None:
    """Split at every block boundary, and into equal pieces of every size."""
    h, rng = harness(config), np.random.default_rng(21)
    n = h.config.context
    blocks = -(-n // POSITIONS)
    x = make_qkv(h, n, "spread", rng) >> 6
    how = softmax_scale(h, 1 << 14, -42)
    jobs = [(x, how, [b, blocks], n - 1, "one cut") for b in range(1, blocks)]
    jobs += [(x, how, [size], n - 1, "equal pieces") for size in range(1, blocks + 1)]
    assert check(h, jobs) > 1000


def test_a_rounded_up_scale_that_equals_the_heads_own(harness: Get) -> None:
    """Keys behind a norm whose scale, rounded up, is what the head's largest value was before it."""
    h, rng = harness("norm128"), np.random.default_rng(1)
    norm = norm_of(h)
    assert norm is not None
    how, c = softmax_scale(h, 1 << 14, -40), h.config
    cos, sin = angles(h, 1)
    gain, unit = norm.k_gain.astype(np.int64), k_unit(h, how)
    k_norm = vectors.HeadNorm(gain, norm.pre_shift, norm.eps)
    found: list[np.ndarray] = []
    while len(found) < 3:
        x = rng.standard_normal((4000, 1, c.head_dim)) * 2.0 ** rng.uniform(24, 28.5, (4000, 1, 1))
        x = np.clip(np.rint(x), -(2**31) + 1, 2**31 - 1).astype(np.int64)
        n = len(x)
        turned = vectors._head_mantissas(
            (x * gain) >> 15, np.repeat(cos, n, 0), np.repeat(sin, n, 0)
        )
        y, top, exponent = turned
        mantissa, exponent = vectors._norm_scale(x, top, exponent, k_norm)
        right = np.clip(unit - exponent, 0, 31)
        scale = -(-mantissa >> right)
        plain = (127 << vectors.HEAD_QSHIFT) // top
        adjusted = plain * mantissa // (scale << right)
        same = (right > 0) & (scale << right == top) & (mantissa != top)
        differs = (
            vectors.round_shift(y * plain[..., None], vectors.HEAD_QSHIFT)
            != vectors.round_shift(y * adjusted[..., None], vectors.HEAD_QSHIFT)
        ).any(axis=2)
        found += list(x[(same & differs)[:, 0]])
    jobs = []
    for head in found[:3]:
        qkv = np.zeros((1, c.heads + 2 * c.kv_heads, c.head_dim), np.int64)
        qkv[0, c.heads] = head[0]
        jobs.append((qkv, how, [-(-c.context // POSITIONS)], 0, "a coincidence"))
    assert check(h, jobs) > 100


@pytest.mark.parametrize("config", ["hd64", "hd12", "codes64"])
def test_heads_that_cores_share(harness: Get, config: str) -> None:
    """Every position of a context in which heads are fewer than cores: the result of one core alone."""
    h, rng = harness(config), np.random.default_rng(22)
    n = h.config.context
    x = make_qkv(h, n, "spread", rng) >> 6
    how = softmax_scale(h, 1 << 14, -42)
    assert shared_tokens(h, 0, n) > 0
    assert check(h, [(x, how, [-(-n // POSITIONS)], 0, "shared")]) > 1000
