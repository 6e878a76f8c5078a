"""Quantised checkpoints: the device computes with the integers of the file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from end_to_end.programs import add_adapters
from helpers.float_reference import forward
from helpers.layer import MODULES
from helpers.quantised import Format, formats_of, quantise, quantised_model
from helpers.tiny_llama import write_tiny_llama
from shrinkc.core.errors import QuantizeError
from shrinkc.importer import FloatModel, QuantizedWeight, load_model
from shrinkc.importer.model import Zero
from shrinkc.ir.graph import Graph
from shrinkc.ir.interpreter import Interpreter
from shrinkc.ir.linear import QLinear
from shrinkc.ir.ops import Embed, Linear, NormQuant, Quant
from shrinkc.quantize import QuantOptions, lower
from shrinkc.quantize.weights import D_MAX, MatrixFormat, Output, convert_matrix, fuse
from shrinkc.schedule.shapes import shapes_of_config, shapes_of_graph
from shrinkc.storage import ZERO_BITS, Offsets

OUT = Output(2.0**-20 / 127, 16)
FORMATS = [
    Format(bits, group, zero)
    for bits in (2, 3, 4, 8)
    for group in (16, 32, 128, None)
    for zero in ("middle", "integer", "float")
]


def random_weight(n: int, k: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = np.exp(0.7 * rng.standard_normal((n, 1)))
    return (rng.standard_normal((n, k)) * rows / np.sqrt(k)).astype(np.float32)


def per_weight(w: QLinear, values: np.ndarray) -> np.ndarray:
    """Repeat group values [n, groups] for every weight: int64 [n, k]."""
    return np.repeat(values.astype(np.int64), w.group, axis=1)[:, : w.k]


def dequantized(w: QuantizedWeight) -> np.ndarray:
    """Return the weights as float64 [n, k], columns in stored order."""
    group = np.repeat(np.arange(w.scale.shape[1]), w.group)[: w.q.shape[1]]
    return w.q * w.scale.astype(np.float64)[:, group] + w.offset.astype(np.float64)[:, group]


# --- one matrix --------------------------------------------------------------------------


@pytest.mark.parametrize("f", FORMATS, ids=str)
@pytest.mark.parametrize("k", [64, 256, 300])
def test_integers_are_the_checkpoints(f: Format, k: int) -> None:
    """q is the file's integer minus a constant; scales and offsets are within half a unit of the row."""
    w = quantise(random_weight(13, k, k), f, np.random.default_rng(k))
    m = convert_matrix("w", w, OUT)
    # 16 weights of 3 bits would take the place of 32
    assert m.bits == (4 if (f.bits, f.group) == (3, 16) else f.bits)
    np.testing.assert_array_equal(m.q.astype(int) + (1 << (f.bits - 1)), w.q.astype(int))
    assert (m.b is None) == (f.zero == "middle")
    group = w.group if w.group < k else None
    assert m.group_size == group and (group is None or group % m.group == 0)
    want, unit = dequantized(w), m.row_scale[:, None]
    if m.d is None:
        # only the grid of the rows: half a unit of the multiplier of the largest
        np.testing.assert_allclose(m.dequantized(), want, rtol=0.5 / m.r.min() + 1e-6)
        return
    spread = np.repeat(np.arange(w.scale.shape[1]), w.group)[:k]
    scale = w.scale.astype(np.float64)[:, spread]
    assert (np.abs(per_weight(m, m.d) * unit - scale) <= 0.5000001 * unit).all()
    # d is as fine as the row's largest scale allows
    assert m.d.max(axis=1).min() >= D_MAX // 2 - 1
    # the scale's half unit for every step from zero, and the offset's
    steps = np.abs(want) / scale + 1
    assert (np.abs(m.dequantized() - want) <= 0.51 * unit * (steps + 1)).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_zero_points_stay_exact(bits: int) -> None:
    """b = d * zero for integer zero points, so a stored zero stays exactly zero."""
    w = quantise(random_weight(20, 96, 3), Format(bits, 32, "integer"), np.random.default_rng(1))
    m = convert_matrix("w", w, OUT)
    assert m.b is not None and m.d is not None
    zero = np.rint(-w.offset / w.scale).astype(int) - (1 << (bits - 1))
    per = m.groups // zero.shape[1]
    np.testing.assert_array_equal(m.b, m.d.astype(int) * np.repeat(zero, per, axis=1))
    zeros = dequantized(w) == 0
    assert zeros.any()
    assert (m.dequantized()[zeros] == 0).all()
    assert m.zero_points == (bits <= ZERO_BITS)
    if m.zero_points:
        np.testing.assert_array_equal(m.zeros(), np.repeat(zero, per, axis=1))


@pytest.mark.parametrize(("point", "stored"), [(0, True), (15, True), (16, False), (7.5, False)])
def test_zero_points_that_do_not_fit_are_offsets(point: float, stored: bool) -> None:
    """A zero point of 16 is out of range (no importer gives it), and 7.5 is not an integer."""
    w = quantise(random_weight(20, 96, 3), Format(4, 32, "integer"), np.random.default_rng(1))
    offset = w.offset.copy()
    offset[3, 1] = -point * w.scale[3, 1]
    w = replace(w, offset=offset)
    m = convert_matrix("w", w, OUT)
    assert m.zero_points is stored and m.b is not None and m.d is not None
    if point != 7.5:
        at = m.groups // w.scale.shape[1]
        assert (m.b[3, at : 2 * at] == m.d[3, at : 2 * at].astype(int) * (point - 8)).all()


def test_the_scale_of_a_group_of_zeros_is_ignored() -> None:
    """Importers write 1 where a file's scale is 0."""
    w = quantise(random_weight(4, 96, 3), Format(4, 32, "integer"), np.random.default_rng(1))
    scale, offset, q = w.scale.copy(), w.offset.copy(), w.q.copy()
    scale[2, 1], offset[2, 1], q[2, 32:64] = 1, -3, 3
    m = convert_matrix("w", replace(w, scale=scale, offset=offset, q=q), OUT)
    assert m.zero_points and m.d is not None
    np.testing.assert_array_equal(m.dequantized()[2, 32:64], 0)
    assert m.d[2].max() >= D_MAX // 2 - 1


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("far", [3.0, 300.0, 30000.0])
def test_offsets_far_from_zero(bits: int, far: float) -> None:
    """Groups with values many steps from zero: the offset fits int16 and is within a unit of the row."""
    rng = np.random.default_rng(4)
    n, groups = 6, 4
    w = QuantizedWeight(
        bits, 16, rng.integers(0, 1 << bits, (n, 64)).astype(np.uint8),
        rng.uniform(0.5, 1, (n, groups)).astype(np.float32),
        (far * rng.choice([-1, 1], (n, groups))).astype(np.float32),
    )  # fmt: skip
    m = convert_matrix("w", w, OUT)
    assert np.abs(m.effective()).max() <= 32767
    error = np.abs(m.dequantized() - dequantized(w))
    # a group's step is off by at most half a unit, or d is 1 because the unit is larger than the step
    per_step = np.where(np.repeat(m.d, m.group, axis=1) == 1, 1.0, 0.51)
    assert (error <= (per_step * (1 << bits) + 0.51) * m.row_scale[:, None]).all()


def test_offsets_far_larger_than_the_scale() -> None:
    """The unit of the int16 offsets is far above the scale: values are right to 0.1 %, also if another group
    of the row has a large scale."""
    q = np.arange(32, dtype=np.uint8)[None, :] % 16
    for scale in ([1e-30, 1e-30], [1e-30, 1e28]):
        w = QuantizedWeight(
            4, 16, q, np.array([scale], np.float32), np.full((1, 2), 1e30, np.float32)
        )
        np.testing.assert_allclose(
            convert_matrix("w", w, OUT).dequantized(), dequantized(w), rtol=1e-3
        )


def test_group_scales_that_differ_by_1000_in_a_row() -> None:
    """The smallest scale is stored as at least one unit."""
    w = quantise(random_weight(4, 128, 7), Format(4, 16), np.random.default_rng(2))
    scale = w.scale * np.logspace(0, -3, 8, dtype=np.float32)[None, :]
    w = replace(w, scale=scale, offset=-8 * scale)
    m = convert_matrix("w", w, OUT)
    assert m.d is not None and m.d.min() == 1
    assert (np.abs(m.dequantized() - dequantized(w)) <= 8.01 * m.row_scale[:, None]).all()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zero", ["middle", "integer", "float"])
@pytest.mark.parametrize("group", [32, None])
def test_scales_of_groups_with_equal_weights_are_ignored(
    bits: int, zero: str, group: int | None
) -> None:
    """Their weights keep their value, and the row's other groups keep their precision.  (Importers write scale 1
    where the file has 0.)"""
    w = quantise(random_weight(12, 128, 8), Format(bits, group, zero), np.random.default_rng(3))
    q, scale, offset = w.q.copy(), w.scale.copy(), w.offset.copy()
    where = [(0, g) for g in range(scale.shape[1])] + [(5, 0)]  # a whole row, and a group
    for row, g in where:
        q[row, g * w.group : (g + 1) * w.group] = middle = 1 << (bits - 1)
        scale[row, g], offset[row, g] = 1000.0, -1000.0 * middle
        if zero == "float":
            offset[row, g] += np.float32(0.05)  # Q4_1: all weights are the minimum
    changed = replace(w, q=q, scale=scale, offset=offset)
    m, before = convert_matrix("w", changed, OUT), convert_matrix("w", w, OUT)
    want = dequantized(changed)
    touched = np.zeros(want.shape, bool)
    for row, g in where:
        touched[row, g * w.group : (g + 1) * w.group] = True
    error, usual = np.abs(m.dequantized() - want), np.abs(before.dequantized() - dequantized(w))
    assert error[~touched].max() <= 1.5 * usual.max() + 1e-9
    assert (
        error[touched] <= 0.51 * np.broadcast_to(m.row_scale[:, None], want.shape)[touched]
    ).all()
    if zero != "float":
        assert (m.dequantized()[touched] == 0).all()


@pytest.mark.parametrize("smaller", [20_000, 30_000, 40_000])
def test_rows_far_smaller_than_the_largest(smaller: int) -> None:
    """A row whose multiplier is 1 to 3 still has group scales in range."""
    w = quantise(random_weight(6, 64, 9), Format(4, 32), np.random.default_rng(4))
    scale = w.scale.copy()
    scale[0] = scale[1:].max() / smaller
    w = replace(w, scale=scale, offset=-8 * scale)
    m, want = convert_matrix("w", w, OUT), dequantized(w)
    assert 1 <= m.r[0] <= 3
    np.testing.assert_allclose(m.dequantized()[0], want[0], rtol=0.01)


# --- fusing ------------------------------------------------------------------------------


def test_parts_of_different_widths_and_groups() -> None:
    """Fusing takes the widest bits and the gcd of the group sizes, and changes no weight."""
    rng = np.random.default_rng(5)
    parts = {
        "q": quantise(random_weight(5, 192, 1), Format(4, 64, "integer"), rng),
        "k": quantise(random_weight(3, 192, 2), Format(8, 48), rng),
        "v": quantise(random_weight(4, 192, 3), Format(2, None), rng),
    }
    w = fuse(parts)
    assert (w.bits, w.group) == (8, 16)
    want = np.concatenate([dequantized(p) for p in parts.values()])
    np.testing.assert_allclose(dequantized(w), want, rtol=1e-6, atol=1e-7)
    declared = [(4, 64, Zero.POINT), (8, 48, Zero.MIDDLE), (2, 192, Zero.MIDDLE)]
    assert (
        MatrixFormat.of(w)
        == MatrixFormat.fused(declared, 192)
        == MatrixFormat(8, 16, Offsets.ZEROS)
    )
    m = convert_matrix("w", w, OUT)
    np.testing.assert_array_equal(m.q[:5].astype(int) + 8, parts["q"].q)
    np.testing.assert_array_equal(m.q[5:8].astype(int) + 128, parts["k"].q)
    np.testing.assert_array_equal(m.q[8:].astype(int) + 2, parts["v"].q)


def test_different_orders_are_refused_by_name() -> None:
    rng = np.random.default_rng(6)
    w = random_weight(4, 32)
    a = quantise(w, Format(4, 8), rng, rng.permutation(32))
    b = quantise(w, Format(4, 8), rng)
    with pytest.raises(QuantizeError, match="layer 0 q_proj and layer 0 k_proj") as refused:
        fuse({"layer 0 q_proj": a, "layer 0 k_proj": b})
    assert "act-order" in str(refused.value)
    fuse({"a": a, "b": a})


# --- whole models ------------------------------------------------------------------------

SIZES: dict[str, Any] = {
    "hidden": 64, "intermediate": 96, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 16,
}  # fmt: skip


def base(folder: Path, **shape: Any) -> FloatModel:
    write_tiny_llama(folder, **{**SIZES, **shape})
    return load_model(folder)


def overrides(layer: int, module: str) -> Format | None:
    """Mix widths and groups per module and layer, float modules and act-order."""
    if layer < 0:
        return Format(8, 32) if module == "embedding" else None
    if module in ("q_proj", "k_proj", "v_proj"):
        bits = {"q_proj": 4, "k_proj": 8, "v_proj": 3}[module]
        return Format(bits, 32 if module == "k_proj" else 16, "integer", act_order=True)
    if module == "o_proj":
        return Format(4, 32, "float", act_order=layer == 1)
    if module == "down_proj":
        return Format(2 if layer else 4, 16, "integer", act_order=True)
    return None if layer == 0 else Format(4, None, "middle", act_order=True)


MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "gptq-4-128": (lambda i, m: Format(4, 128) if i >= 0 else None, {"hidden": 128, "intermediate": 256}),
    "gptq-asymmetric-act-order": (
        lambda i, m: Format(4, 32, "integer", act_order=True) if i >= 0 else None,
        {"tied": False},
    ),
    "gptq-8-per-row": (lambda i, m: Format(8, None) if i >= 0 else None, {}),
    "q4_1": (lambda i, m: Format(4, 32, "float") if i >= 0 else Format(8, 32), {}),
    "q8_0": (lambda i, m: Format(8, 32), {"tied": False}),
    "2-bit": (lambda i, m: Format(2, 16, "integer") if i >= 0 else Format(4, 16, "float"), {}),
    "overrides": (overrides, {}),
    "head-act-order": (
        lambda i, m: Format(4, 16, act_order=m != "embedding") if m != "embedding" else None,
        {"tied": False},
    ),
}  # fmt: skip


def lowered(folder: Path, name: str, **shape: Any) -> tuple[FloatModel, Graph]:
    format_of, sizes = MODELS[name]
    model = quantised_model(base(folder, **{**sizes, **shape}), format_of)
    return model, lower(model, QuantOptions(), 32)


def logits_of(graph: Graph, ids: list[int]) -> np.ndarray:
    head = next(op.weight for op in graph.ops if isinstance(op, Linear) and op.layer < 0)
    return np.asarray(Interpreter(graph).forward(ids, all_logits=True)) * 2.0**-head.frac


@pytest.mark.parametrize("name", MODELS)
def test_integer_model_is_close_to_float_with_the_same_weights(tmp_path: Path, name: str) -> None:
    """Relative RMS error of all logits below 0.04, the loss by 8-bit activations (random weights)."""
    model, graph = lowered(tmp_path, name)
    ids = np.random.default_rng(1).integers(0, model.config.vocab_size, 24).tolist()
    want, got = forward(model, ids, np.float64), logits_of(graph, ids)
    assert np.sqrt(np.square(got - want).mean() / np.square(want).mean()) <= 0.04


@pytest.mark.parametrize("name", MODELS)
def test_every_matrix_of_the_graph_holds_the_files_integers(tmp_path: Path, name: str) -> None:
    model, graph = lowered(tmp_path, name)
    found = {op.weight.name: op.weight for op in graph.ops if isinstance(op, Linear)}
    embedding = next(op.table for op in graph.ops if isinstance(op, Embed))
    compared = 0

    def same(m: QLinear, rows: slice, w: object, order: np.ndarray | None = None) -> None:
        nonlocal compared
        if isinstance(w, QuantizedWeight):
            q = w.q if order is None else w.q[order]
            np.testing.assert_array_equal(m.q[rows].astype(int) + (1 << (w.bits - 1)), q)
            compared += q.size

    c = model.config
    nq, nkv, ffn = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim, c.intermediate_size
    for i, layer in enumerate(model.layers):
        qkv, gu = found[f"layer{i}.qkv"], found[f"layer{i}.gate_up"]
        same(qkv, slice(0, nq), layer.wq)
        same(qkv, slice(nq, nq + nkv), layer.wk)
        same(qkv, slice(nq + nkv, None), layer.wv)
        same(found[f"layer{i}.o"], slice(None), layer.wo)
        same(found[f"layer{i}.down"], slice(None), layer.w_down)
        order = layer.w_down.order if isinstance(layer.w_down, QuantizedWeight) else None
        same(gu, slice(0, ffn), layer.w_gate, order)
        same(gu, slice(ffn, None), layer.w_up, order)
    same(embedding, slice(None), model.embedding)
    if model.head is not None:
        same(found["head"], slice(None), model.head)
    assert compared > 10_000


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("adapters", [False, True])
def test_shapes_from_the_headers_are_those_of_the_graph(
    tmp_path: Path, name: str, adapters: bool
) -> None:
    """Except for column orders, which the headers do not contain."""
    format_of, sizes = MODELS[name]
    model = quantised_model(base(tmp_path, **sizes), format_of)
    ranks = {}
    if adapters:
        add_adapters(model, {"q_proj": 2, "o_proj": 3, "up_proj": 1, "down_proj": 4})
        ranks = {"qkv": 2, "o": 3, "gate_up": 1, "down": 4}
    a = shapes_of_graph(lower(model, QuantOptions(), 16), 500)
    b = shapes_of_config(model.config, QuantOptions(), 16, 500, ranks, formats_of(model))
    assert replace(a, perms=0) == b


@pytest.mark.parametrize("name", ["gptq-asymmetric-act-order", "overrides", "gptq-4-128"])
def test_adapters_of_quantised_checkpoints(tmp_path: Path, name: str) -> None:
    """Relative RMS error of all logits below 0.1, also with act-order.  The random adapters are as large as the
    weights; with a's columns in the wrong order the error would be 0.5."""
    format_of, sizes = MODELS[name]
    model = quantised_model(base(tmp_path, **sizes), format_of)
    add_adapters(model, dict.fromkeys(MODULES, 5))
    graph = lower(model, QuantOptions(), 32)
    ids = np.random.default_rng(1).integers(0, model.config.vocab_size, 24).tolist()
    want, got = forward(model, ids, np.float64), logits_of(graph, ids)
    assert np.sqrt(np.square(got - want).mean() / np.square(want).mean()) <= 0.1


def test_only_down_needs_no_permutation(tmp_path: Path) -> None:
    """qkv, o and gate_up permute their input; for down, the rows of gate and up are reordered instead."""
    _, graph = lowered(tmp_path, "gptq-asymmetric-act-order")
    for layer in range(graph.num_layers):
        inputs = [op for op in graph.body(layer) if isinstance(op, (NormQuant, Quant))]
        assert [op.perm is not None for op in inputs] == [True, True, True, False]


def test_a_float_part_of_a_fused_matrix_is_refused_by_name(tmp_path: Path) -> None:
    model = quantised_model(base(tmp_path), lambda i, m: Format() if m == "k_proj" else None)
    for refused in (
        lambda: lower(model, QuantOptions(), 16),
        lambda: shapes_of_config(model.config, QuantOptions(), 16, 9, {}, formats_of(model)),
    ):
        with pytest.raises(QuantizeError, match=r"layer 0: k_proj .* q_proj, v_proj float"):
            refused()


def test_an_embedding_in_another_order_is_refused(tmp_path: Path) -> None:
    model = quantised_model(
        base(tmp_path, tied=False), lambda i, m: Format(4, 16, act_order=True) if i < 0 else None
    )
    with pytest.raises(QuantizeError, match="embedding's columns"):
        lower(model, QuantOptions(), 16)


def test_groups_of_the_options_are_for_float_matrices_only(tmp_path: Path) -> None:
    """--group-size 7 divides no matrix here; the refusal names only the float ones."""
    model = quantised_model(base(tmp_path), lambda i, m: Format(4, 16) if i >= 0 else None)
    lower(model, QuantOptions(group_size=7), 16)
    some = quantised_model(base(tmp_path / "b"), lambda i, m: Format() if m == "o_proj" else None)
    with pytest.raises(QuantizeError) as refused:
        lower(some, QuantOptions(group_size=7), 16)
    assert "down (96)" in str(refused.value) and "o (64)" not in str(refused.value)


def test_groups_of_a_four_bit_head_have_to_divide_its_inputs(tmp_path: Path) -> None:
    """Also if the layers are quantised already, so that no other matrix is checked."""
    model = quantised_model(base(tmp_path), lambda i, m: Format(4, 16) if i >= 0 else None)
    with pytest.raises(QuantizeError, match=r"embedding and head \(64\)"):
        lower(model, QuantOptions(group_size=48, embedding_bits=4), 16)
    lower(model, QuantOptions(group_size=48, embedding_bits=4, short_last_group=True), 16)
    lower(model, QuantOptions(group_size=32, embedding_bits=4), 16)
