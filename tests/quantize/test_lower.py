"""Lowered models compared with their float models; adapters; refusals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from end_to_end.programs import add_adapters
from helpers.float_reference import forward
from helpers.layer import MODULES
from helpers.tiny_llama import write_tiny_llama
from shrinkc.core.errors import QuantizeError
from shrinkc.importer import FloatModel, load_model
from shrinkc.ir.graph import Graph
from shrinkc.ir.interpreter import Interpreter
from shrinkc.ir.linear import QLinear
from shrinkc.ir.ops import Embed, Linear, NormQuant
from shrinkc.numerics.fixed import saturate32
from shrinkc.numerics.matrices import embed, linear, rescale
from shrinkc.numerics.vectors import WIDE_MANTISSA, Q16Vector, quantize_q16
from shrinkc.quantize import QuantOptions, check_sizes, lower
from shrinkc.schedule.shapes import shapes_of_config, shapes_of_graph

RANKS = dict(zip(MODULES, (2, 1, 3, 4, 2, 3, 5), strict=True))


def make(folder: Path, ranks: Mapping[str, int] | None = None, **shape: Any) -> FloatModel:
    sizes = {
        "hidden": 48,
        "intermediate": 96,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 12,
    }
    write_tiny_llama(folder, **{**sizes, **shape})
    model = load_model(folder)
    add_adapters(model, ranks or {})
    return model


def merged(model: FloatModel) -> FloatModel:
    """Return the model with its adapters added to the weights."""
    layers = []
    for layer in model.layers:
        added = {}
        for module, adapter in layer.adapters.items():
            field = MODULES[module].field
            added[field] = getattr(layer, field) + adapter.b @ adapter.a
        layers.append(replace(layer, adapters={}, **added))
    return replace(model, layers=layers)


def logits_of(graph: Graph, ids: list[int]) -> np.ndarray:
    head = next(op.weight for op in graph.ops if isinstance(op, Linear) and op.layer < 0)
    return np.asarray(Interpreter(graph).forward(ids, all_logits=True)) * 2.0**-head.frac


def fidelity(model: FloatModel, options: QuantOptions) -> tuple[float, float]:
    """Return (correlation, relative RMS error) of all logits of 24 random tokens."""
    ids = np.random.default_rng(1).integers(0, model.config.vocab_size, 24).tolist()
    want = forward(merged(model), ids, np.float64)
    got = logits_of(lower(model, options, 32), ids)
    error = np.sqrt(np.square(got - want).mean() / np.square(want).mean())
    return float(np.corrcoef(got.ravel(), want.ravel())[0, 1]), float(error)


SHAPES: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tied": False},
    "one-kv-head": {"kv_heads": 1, "head_dim": 64},
    "odd": {"hidden": 37, "intermediate": 91, "heads": 3, "kv_heads": 1, "head_dim": 4},
    "three-layers": {"layers": 3, "rope_theta": 500.0},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_8_bit_logits_are_close_to_float(tmp_path: Path, shape: str) -> None:
    """Correlation at least 0.999, relative RMS error at most 0.04 (random weights)."""
    correlation, error = fidelity(make(tmp_path, **SHAPES[shape]), QuantOptions())
    assert correlation >= 0.999 and error <= 0.04


@pytest.mark.parametrize("asymmetric", [False, True])
def test_8_bit_groups(tmp_path: Path, asymmetric: bool) -> None:
    """Correlation at least 0.999, relative RMS error at most 0.04."""
    options = QuantOptions(group_size=12, asymmetric=asymmetric)
    correlation, error = fidelity(make(tmp_path), options)
    assert correlation >= 0.999 and error <= 0.04


@pytest.mark.parametrize("asymmetric", [False, True])
def test_4_bit_groups(tmp_path: Path, asymmetric: bool) -> None:
    """Correlation at least 0.95, relative RMS error at most 0.3 (random weights: the worst case)."""
    options = QuantOptions(bits=4, group_size=12, asymmetric=asymmetric)
    correlation, error = fidelity(make(tmp_path), options)
    assert correlation >= 0.95 and error <= 0.3


def test_4_bit_against_float_with_the_same_weights(tmp_path: Path) -> None:
    """Error below 0.04 compared with the same 4-bit weights, dequantised to float."""
    model = make(tmp_path, tied=False)
    graph = lower(model, QuantOptions(bits=4, group_size=12), 32)
    weights = {
        op.weight.name: op.weight.dequantized() for op in graph.ops if isinstance(op, Linear)
    }
    embedding = next(op.table for op in graph.ops if isinstance(op, Embed))
    nq, nkv = 48, 24
    layers = []
    for i, layer in enumerate(model.layers):
        qkv, gu = weights[f"layer{i}.qkv"], weights[f"layer{i}.gate_up"]
        layers.append(replace(
            layer, wq=qkv[:nq], wk=qkv[nq : nq + nkv],
            wv=qkv[nq + nkv :], wo=weights[f"layer{i}.o"], w_gate=gu[:96], w_up=gu[96:],
            w_down=weights[f"layer{i}.down"],
        ))  # fmt: skip
    same = replace(model, layers=layers, embedding=embedding.dequantized(), head=weights["head"])
    ids = np.random.default_rng(2).integers(0, 107, 24).tolist()
    want, got = forward(same, ids, np.float64), logits_of(graph, ids)
    assert np.sqrt(np.square(got - want).mean() / np.square(want).mean()) <= 0.04


def test_embedding_rows_in_fixed_point(tmp_path: Path) -> None:
    """Every row within half a weight step + one unit of the residual's fixed point."""
    for tied in (True, False):
        model = make(tmp_path / str(tied), tied=tied)
        graph = lower(model, QuantOptions(), 8)
        ids = list(range(8))
        op = next(op for op in graph.ops if isinstance(op, Embed))
        rows = embed(op.table, np.array(ids), op.factor, op.shift)
        frac = graph.types["embed"].frac
        step = np.abs(model.embedding[ids]).max(axis=1) / 127
        error = np.abs(rows * 2.0**-frac - model.embedding[ids])
        assert (error <= 0.51 * step[:, None] + 2.0**-frac).all()


# --- adapters --------------------------------------------------------------------------


@pytest.mark.parametrize("options", [QuantOptions(), QuantOptions(bits=4)], ids=["8bit", "4bit"])
def test_adapters_equal_merged_weights_in_float(tmp_path: Path, options: QuantOptions) -> None:
    """8 bit: error below 0.05; 4 bit: at most 10 % more than with merged weights."""
    model = make(tmp_path, RANKS, tied=False)
    correlation, error = fidelity(model, options)
    plain, plain_error = fidelity(replace(model, layers=merged(model).layers), options)
    if options.bits == 8:
        assert correlation >= 0.998 and error <= 0.05
    else:
        assert error <= 1.1 * plain_error and correlation >= 0.99 * plain


def matrices_with_adapters(tmp_path: Path) -> list[QLinear]:
    graph = lower(make(tmp_path, RANKS), QuantOptions(), 16)
    found = [op.weight for op in graph.ops if isinstance(op, Linear) and op.weight.low_rank]
    assert len(found) == 8
    return found


def test_adapter_is_exact_in_python_integers(tmp_path: Path) -> None:
    """y = rescale(W x) + rescale(b quantise(rescale(a x))), each step in Python integers."""
    rng = np.random.default_rng(4)
    for w in matrices_with_adapters(tmp_path):
        assert w.low_rank is not None
        a, b = w.low_rank.a, w.low_rank.b
        assert (a.group, a.x_bits, a.k) == (w.group, w.x_bits, w.k)
        top = 1 << w.x_bits
        x = Q16Vector(
            rng.integers(-top, top + 1, (2, w.k)), rng.integers(1 << 14, 1 << 15, 2),
            rng.integers(-4, 5, 2),
        )  # fmt: skip

        def product(m: QLinear, v: Q16Vector) -> np.ndarray:
            rows = [[int(e) for e in row] for row in m.effective()]
            inputs = [[int(e) for e in row] for row in v.q]
            assert m.drop == 0
            acc = [[sum(p * q for p, q in zip(r, i, strict=True)) for r in rows] for i in inputs]
            return rescale(m, np.array(acc), v)

        mid = quantize_q16(product(a, x), b.x_bits)
        want = saturate32(product(w, x) + product(b, mid))
        np.testing.assert_array_equal(linear(w, x), want)


def test_adapter_alone_against_float(tmp_path: Path) -> None:
    """b (a x) within 0.1 % of its largest result, for inputs large enough to make rounding negligible."""
    rng = np.random.default_rng(5)
    for w in matrices_with_adapters(tmp_path):
        adapter, w.low_rank = w.low_rank, None
        assert adapter is not None
        a, b = adapter.a, adapter.b
        v = quantize_q16(np.rint(rng.standard_normal((6, w.k)) * 2.0**20).astype(int), w.x_bits)
        # in units of the fixed point: acc * r * mantissa * 2**(exponent - 32 - shift)
        scale = (v.mantissa * 2.0 ** (v.exponent - v.exponent.max()))[:, None]
        mid = v.q @ a.effective().T * a.r * scale * 2.0 ** (-32 - a.shift)
        want = mid * WIDE_MANTISSA @ b.effective().T * b.r * 2.0 ** (-32 - b.shift)
        raised = math.ceil(math.log2(1000 / np.abs(want).max()))
        v.exponent = v.exponent - v.exponent.max() + raised
        want *= 2.0**raised
        plain = linear(w, v)
        w.low_rank = adapter
        assert np.abs(linear(w, v) - plain - want).max() <= 0.001 * np.abs(want).max() + 2


@pytest.mark.parametrize("group", [None, 4, 16, 32, 64, 128])
@pytest.mark.parametrize("hidden", [37, 64, 128])
def test_adapters_share_any_groups(tmp_path: Path, group: int | None, hidden: int) -> None:
    """4-bit weights with any group size: a reads its input in the groups of the matrix."""
    model = make(tmp_path, RANKS, hidden=hidden, intermediate=128)
    options = QuantOptions(bits=4, group_size=group, asymmetric=True, short_last_group=True)
    graph = lower(model, options, 16)
    found = [op.weight for op in graph.ops if isinstance(op, Linear) and op.weight.low_rank]
    assert len(found) == 8
    for w in found:
        assert w.low_rank is not None
        a = w.low_rank.a
        assert (a.group, a.pad, a.cmax, a.bits, a.d) == (w.group, 8, w.cmax, 8, None)
    shapes = shapes_of_graph(graph, 500)
    ranks = {"qkv": 2 + 1 + 3, "o": 4, "gate_up": 2 + 3, "down": 5}
    assert shapes == shapes_of_config(model.config, options, 16, 500, ranks)
    with_adapters = fidelity(model, options)[1]
    with_merged_weights = fidelity(replace(model, layers=merged(model).layers), options)[1]
    assert with_adapters <= 1.1 * with_merged_weights


# --- refusals and shapes -----------------------------------------------------------------


def test_groups_that_do_not_divide_name_every_matrix(tmp_path: Path) -> None:
    model = make(tmp_path, hidden=40, intermediate=100, heads=2, kv_heads=1, head_dim=14)
    with pytest.raises(QuantizeError) as refused:
        lower(model, QuantOptions(bits=4, group_size=16), 16)
    for part in ("qkv and gate_up (40)", "o (28)", "down (100)"):
        assert part in str(refused.value)
    lower(model, QuantOptions(bits=4, group_size=16, short_last_group=True), 16)
    lower(model, QuantOptions(bits=4, group_size=4), 16)


@pytest.mark.parametrize("options", [{"bits": 1}, {"bits": 16}, {"embedding_bits": 7}])
def test_widths_that_do_not_exist(options: dict[str, Any]) -> None:
    with pytest.raises(QuantizeError, match="allowed: 8, 6, 5, 4, 3, 2"):
        QuantOptions(**options)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        QuantOptions(),
        QuantOptions(bits=4, group_size=12, embedding_bits=4),
        QuantOptions(bits=4, asymmetric=True),
        QuantOptions(group_size=128, short_last_group=True),
    ],
)
def test_shapes_from_the_config_are_those_of_the_graph(
    tmp_path: Path, options: QuantOptions, tied: bool
) -> None:
    """So a plan from the config is the plan of the graph."""
    model = make(tmp_path, tied=tied)
    a = shapes_of_graph(lower(model, options, 16), 500)
    b = shapes_of_config(model.config, options, 16, 500, {})
    assert a == b


def test_shapes_with_adapters(tmp_path: Path) -> None:
    model = make(tmp_path, RANKS)
    a = shapes_of_graph(lower(model, QuantOptions(), 16), 500)
    ranks = {"qkv": 2 + 1 + 3, "o": 4, "gate_up": 2 + 3, "down": 5}
    assert a == shapes_of_config(model.config, QuantOptions(), 16, 500, ranks)


def test_progress_names_every_layer(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    lower(make(tmp_path, layers=3), QuantOptions(), 16, lambda *step: seen.append(step))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_silu_product_stays_in_int32_where_rounding_lengthens_rows(tmp_path: Path) -> None:
    """Rows whose norm nearly doubles by quantisation, and an input in their direction."""
    k = 1024
    row = np.full(k, 0.51, np.float32)
    row[:2] = 7.5, -7.5
    row *= 0.769 * 0.02
    path = tmp_path / "long-rows"
    weights = np.tile(row, (8, 1))
    write_tiny_llama(
        path, hidden=k, intermediate=8, layers=1, heads=2, head_dim=4, vocab=107,
        overrides={
            "model.layers.0.mlp.gate_proj.weight": weights,
            "model.layers.0.mlp.up_proj.weight": weights,
            "model.layers.0.post_attention_layernorm.weight": np.ones(k, np.float32),
            "model.embed_tokens.weight": np.tile(row, (107, 1)),
        },
    )  # fmt: skip
    g = lower(load_model(path), QuantOptions(bits=4, asymmetric=True), 8)
    assert Interpreter(g).forward([1, 2, 3], all_logits=True).shape == (3, 107)


@pytest.mark.parametrize("eps", [2.0**-126, 1e-5, 2.0**-7])
@pytest.mark.parametrize("size", [0.0, 1e-6, 1.0, 1e5])
@pytest.mark.parametrize("hidden", [2, 16])
def test_norms_keep_every_allowed_epsilon(
    tmp_path: Path, eps: float, size: float, hidden: int
) -> None:
    overrides = {"model.embed_tokens.weight": np.full((107, hidden), size, np.float32)}
    write_tiny_llama(tmp_path, hidden=hidden, heads=1, head_dim=4, eps=eps, overrides=overrides)
    g = lower(load_model(tmp_path), QuantOptions(), 8)
    norms = [op for op in g.ops if isinstance(op, NormQuant)]
    scale = 2.0 ** (2 * g.types["embed"].frac - 2 * norms[0].pre_shift)
    assert [n.eps for n in norms] == [max(1, round(eps * hidden * scale))] * len(norms)


def test_all_sizes_that_are_too_large_are_named(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path)
    config = load_model(tmp_path).config
    check_sizes(replace(config, vocab_size=524280, intermediate_size=65535))
    with pytest.raises(QuantizeError) as refused:
        check_sizes(replace(config, vocab_size=524281, intermediate_size=65536, num_heads=65535))
    text = str(refused.value)
    assert "vocab_size = 524281; at most 524280 is allowed" in text
    assert "intermediate_size = 65536; at most 65535 is allowed" in text
    assert "num_attention_heads * head_dim = 524280; at most 65535 is allowed" in text
    assert "q, k and v = 524296" in text and "hidden_size" not in text


@pytest.mark.parametrize("name", ["mlp.gate_proj", "mlp.up_proj", "both", "norm"])
def test_a_layer_with_zero_gate_or_up_is_legal(tmp_path: Path, name: str) -> None:
    """Pruning can set whole matrices to zero."""
    zero = np.zeros((24, 16), np.float32)
    at = "model.layers.1."
    overrides: dict[str, np.ndarray] = {
        "both": {f"{at}mlp.gate_proj.weight": zero, f"{at}mlp.up_proj.weight": zero},
        "norm": {f"{at}post_attention_layernorm.weight": np.zeros(16, np.float32)},
    }.get(name, {f"{at}{name}.weight": zero})
    path = tmp_path / "zero"
    write_tiny_llama(path, overrides=overrides)
    g = lower(load_model(path), QuantOptions(), 16)
    assert Interpreter(g).forward([1, 2, 3]).shape == (1, 107)


@pytest.mark.parametrize("module", ["k_proj", "v_proj", "gate_proj"])
@pytest.mark.parametrize("rank", [4, 16])
def test_adapters_whose_rows_add_up_stay_in_range(tmp_path: Path, module: str, rank: int) -> None:
    """All rows of a, and of b, are parallel: the bound must be their sum, not its square root.
    The interpreter raises ArithmeticError for a result out of range."""
    model = make(tmp_path / "m", {module: rank})
    for layer in model.layers:
        adapter = layer.adapters[module]
        a = np.tile(adapter.a[:1] * 20, (rank, 1))
        b = np.full_like(adapter.b, np.abs(adapter.b).max() * 20)
        layer.adapters[module] = replace(adapter, a=a, b=b)
        getattr(layer, MODULES[module].field)[:] *= 1e-3
        # a token in the direction of these rows, which gives the largest possible result after the norm
        model.embedding[7] = a[0] / np.maximum(np.abs(layer.attn_norm), 1e-3)
    assert np.isfinite(logits_of(lower(model, QuantOptions(), 32), [7, 7, 3, 7])).all()


@pytest.mark.parametrize("eps", [1e-5, 1e-6])
def test_tokens_of_a_few_units_stay_in_range(tmp_path: Path, eps: float) -> None:
    """One huge entry of the embedding makes other tokens as small as a few units; rounding their values down
    loses most of a norm's sum of squares."""
    model = make(tmp_path / "m", eps=eps)
    for entry in (3.0, 10.0, 100.0, 1000.0):
        model.embedding[9, 5] = entry
        graph = lower(model, QuantOptions(), 32)
        unit = 2.0 ** -graph.types["embed"].frac
        for token, units in enumerate((1, 3, 7, 15, 31), start=40):
            model.embedding[token] = units * unit
        graph = lower(model, QuantOptions(), 32)
        assert np.isfinite(logits_of(graph, [40, 41, 42, 43, 44, 9])).all()
