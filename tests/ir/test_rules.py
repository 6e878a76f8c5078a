"""Every rule fires: for each one an illegal graph and the words of its complaint."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pytest

from helpers.tiny_families import write_family
from shrinkc.core.errors import IllegalIR
from shrinkc.importer import load_model
from shrinkc.ir import rules
from shrinkc.ir.graph import Graph
from shrinkc.ir.linear import LowRank, QLinear
from shrinkc.ir.ops import (
    OPS,
    Attention,
    Embed,
    Linear,
    NormAdd,
    NormQuant,
    Op,
    Quant,
    RopeCache,
    SiluMul,
)
from shrinkc.ir.rules import check
from shrinkc.quantize import QuantOptions, lower

Fresh = Callable[..., Graph]
T = TypeVar("T", bound=Op)


def first(g: Graph, kind: type[T]) -> T:
    return next(op for op in g.ops if isinstance(op, kind))


def weight(g: Graph) -> QLinear:
    return first(g, Linear).weight


def retype(g: Graph, name: str, **fields: object) -> None:
    g.types[name] = replace(g.types[name], **fields)  # type: ignore[arg-type]


def bias_of_another_size(g: Graph) -> None:
    first(g, Linear).bias = np.zeros(3, np.int32)


def bias_of_another_type(g: Graph) -> None:
    op = first(g, Linear)
    op.bias = np.zeros(op.weight.n)


def bias_that_does_not_negate(g: Graph) -> None:
    op = first(g, Linear)
    op.bias = np.full(op.weight.n, -(1 << 31), np.int32)


def normed(g: Graph) -> RopeCache:
    op = first(g, RopeCache)
    op.q_gain = op.k_gain = np.ones(6, np.int16)
    op.eps, op.pre_shift = 1, 2
    return op


def half_a_head_norm(g: Graph) -> None:
    normed(g).k_gain = None


def head_pre_shift(g: Graph) -> None:
    normed(g).pre_shift = 1


def head_eps(g: Graph) -> None:
    normed(g).eps = 0


def head_gain(g: Graph) -> None:
    normed(g).k_gain = np.ones(5, np.int16)


def head_gain_of_minus_one(g: Graph) -> None:
    normed(g).q_gain = np.full(6, -32768, np.int16)


def wrong_input_kind(g: Graph) -> None:
    quant = first(g, Quant)
    quant.inputs = (first(g, NormQuant).out,)


def wrong_output_kind(g: Graph) -> None:
    retype(g, first(g, Embed).out, kind="q8", group=8, cmax=1)


def bits(g: Graph) -> None:
    weight(g).bits = 7


def weights_outside(g: Graph) -> None:
    weight(g).q[0, 0] = 8


def weights_of_another_type(g: Graph) -> None:
    weight(g).q = weight(g).q.astype(np.int16)


def shape_of_d(g: Graph) -> None:
    w = weight(g)
    assert w.d is not None
    w.d = w.d[:, :-1]


def shape_of_b(g: Graph) -> None:
    w = weight(g)
    assert w.b is not None
    w.b = w.b[:-1]


def type_of_b(g: Graph) -> None:
    w = weight(g)
    assert w.b is not None
    w.b = w.b.astype(np.int32)


def scale_of_zero(g: Graph) -> None:
    w = weight(g)
    assert w.d is not None
    w.d[1, 1] = 0


def offsets_alone(g: Graph) -> None:
    weight(g).d = None


def _with_zero_points(g: Graph, point: int) -> QLinear:
    w = weight(g)
    assert w.d is not None
    w.b, w.zero_points = w.d.astype(np.int16) * np.int16(point), True
    return w


def zero_points_between(g: Graph) -> None:
    w = _with_zero_points(g, -8)
    assert w.b is not None and w.d is not None
    w.d[0, 0], w.b[0, 0] = 2, 3


def zero_points_beyond(g: Graph) -> None:
    _with_zero_points(g, 8)


def zero_points_of_none(g: Graph) -> None:
    _with_zero_points(g, 7).b = None


def r_of_16_bits(g: Graph) -> None:
    first(g, Linear).weight.r[0] = 65535


def type_of_r(g: Graph) -> None:
    weight(g).r = weight(g).r.astype(np.int32)


def group_across_the_group_size(g: Graph) -> None:
    weight(g).group_size = 12


def padding(g: Graph) -> None:
    weight(g).pad = 4


def padded_too_far(g: Graph) -> None:
    """Whole words of 4 bit, but not what the cores read."""
    weight(g).pad = 16


def unknown_engine(g: Graph) -> None:
    weight(g).engine = "abacus"


def dropped_too_much(g: Graph) -> None:
    weight(g).drop = 25


def kept_too_much(g: Graph) -> None:
    """An 8-bit matrix of groups that drops nothing."""
    w = weight(g)
    w.bits, w.drop = 8, 0


def weight_beyond_int16(g: Graph) -> None:
    w = weight(g)
    assert w.b is not None and w.d is not None
    w.q[0, 0], w.d[0, 0], w.b[0, 0] = -8, 255, 32767


def group_sum(g: Graph) -> None:
    """Eight inputs a group are too few: one group of all 40."""
    w = weight(g)
    assert w.b is not None and w.d is not None
    w.group_size = w.group = 40
    w.q[:], w.d, w.b = 0, w.d[:, :1].copy(), np.full((w.n, 1), 32767, np.int16)


def accumulator(g: Graph) -> None:
    op = first(g, Linear)
    w = op.weight
    assert w.d is not None
    w.q[:], w.d[:] = 7, 255
    w.cmax = 1 << 16
    retype(g, op.inputs[0], cmax=1 << 16)


def input_group(g: Graph) -> None:
    retype(g, first(g, Linear).inputs[0], group=4)


def input_cmax(g: Graph) -> None:
    retype(g, first(g, Linear).inputs[0], cmax=1)


def output_frac(g: Graph) -> None:
    op = first(g, Linear)
    retype(g, op.out, frac=op.weight.frac + 1)


def residual_frac(g: Graph) -> None:
    op = next(o for o in g.ops if isinstance(o, Linear) and len(o.inputs) == 2)
    retype(g, op.inputs[1], frac=op.weight.frac - 1)


def norm_of_one(g: Graph) -> None:
    retype(g, first(g, NormQuant).inputs[0], width=1)


def pre_shift(g: Graph) -> None:
    first(g, NormQuant).pre_shift += 1


def eps(g: Graph) -> None:
    first(g, NormQuant).eps = 0


def large_eps(g: Graph) -> None:
    first(g, NormQuant).eps = (1 << 61) + 1


def gain(g: Graph) -> None:
    first(g, NormQuant).gain = np.ones(3, np.int16)


def gain_of_minus_one(g: Graph) -> None:
    first(g, NormQuant).gain[2] = -(1 << 31)


def repeated_input(g: Graph) -> None:
    op = first(g, Quant)
    k = g.types[op.inputs[0]].width
    op.perm = np.zeros(k, np.uint16)


def short_permutation(g: Graph) -> None:
    first(g, NormQuant).perm = np.arange(39, dtype=np.uint16)


def qkv_width(g: Graph) -> None:
    first(g, RopeCache).head_dim = 8


def heads_over_kv(g: Graph) -> None:
    first(g, Attention).kv_heads = 3


def odd_head_dim(g: Graph) -> None:
    first(g, Attention).head_dim = 5


def probability_bits(g: Graph) -> None:
    first(g, Attention).weight_bits = 24


def context(g: Graph) -> None:
    g.context = 4097
    first(g, Attention).weight_bits = 12


def window(g: Graph) -> None:
    first(g, Attention).window = g.context


def gelu(g: Graph) -> None:
    first(g, SiluMul).gelu = 2


def key_order_of_one_layer(g: Graph) -> None:
    op = [op for op in g.ops if isinstance(op, RopeCache)][-1]
    op.key_order = _order(op)


def key_order_twice(g: Graph) -> None:
    for op in g.ops:
        if isinstance(op, RopeCache):
            op.key_order = 0 * _order(op)


def key_order_of_words(g: Graph) -> None:
    for op in g.ops:
        if isinstance(op, RopeCache):
            op.key_order = _order(op).astype(np.int64)


def _order(op: RopeCache) -> np.ndarray:
    return np.tile(np.arange(op.head_dim, dtype=np.uint8), (op.kv_heads, 1))


def rope_table(g: Graph) -> None:
    first(g, RopeCache).table = 1


def no_rope_table(g: Graph) -> None:
    g.rope_cos, g.rope_sin = (np.concatenate([t, t], axis=1) for t in (g.rope_cos, g.rope_sin))


def score_scale(g: Graph) -> None:
    first(g, Attention).scale_mantissa = (1 << 15) + 1


def cache_unit(g: Graph) -> None:
    first(g, RopeCache).k_unit = 32


def dot_product_of_17_bits(g: Graph) -> None:
    first(g, Attention).dot_shift -= 1


def silu_shift(g: Graph) -> None:
    first(g, SiluMul).shift = 16


def gate_shift(g: Graph) -> None:
    first(g, SiluMul).gate_shift = 32


def embed_factor(g: Graph) -> None:
    first(g, Embed).factor = 1 << 31


ILLEGAL: list[tuple[Callable[[Graph], None], str, str]] = [
    (wrong_input_kind, "rule_signature", "takes"),
    (wrong_output_kind, "rule_signature", "gives i32, its output is q8"),
    (bits, "rule_matrix", "7 bits"),
    (weights_outside, "rule_matrix", "weights outside -8..7"),
    (weights_of_another_type, "rule_matrix", "weights outside -8..7"),
    (shape_of_d, "rule_matrix", "d is"),
    (shape_of_b, "rule_matrix", "b is"),
    (type_of_b, "rule_matrix", "b is int32"),
    (scale_of_zero, "rule_matrix", "a group scale of 0"),
    (offsets_alone, "rule_matrix", "offsets without group scales"),
    (zero_points_between, "rule_matrix", "offsets that are no zero points"),
    (zero_points_beyond, "rule_matrix", "offsets that are no zero points"),
    (zero_points_of_none, "rule_matrix", "offsets that are no zero points"),
    (type_of_r, "rule_matrix", "row scales are int32"),
    (r_of_16_bits, "rule_matrix", "a row scale of 65535"),
    (group_across_the_group_size, "rule_matrix", "group 8 and group size 12 do not nest"),
    (padding, "rule_matrix", "4-bit groups padded to 4"),
    (padded_too_far, "rule_engine", "groups of 8 padded to 16; cores asks for 8 and 8"),
    (unknown_engine, "rule_engine", "engine 'abacus'; there are cores"),
    (dropped_too_much, "rule_drop", "25 bits dropped, allowed 0..24"),
    (kept_too_much, "rule_drop", "0 bits dropped, allowed 1..24"),
    (weight_beyond_int16, "rule_accumulator", "a weight of more than 32767 units"),
    (group_sum, "rule_accumulator", "a group's sum up to"),
    (accumulator, "rule_accumulator", "more than 2147483647"),
    (input_group, "rule_linear_types", "does not match"),
    (input_cmax, "rule_linear_types", "does not match"),
    (output_frac, "rule_linear_types", "output"),
    (residual_frac, "rule_linear_types", "residual"),
    (bias_of_another_size, "rule_linear_types", "bias is int32(3,), not int32(48,)"),
    (bias_of_another_type, "rule_linear_types", "bias is float64(48,)"),
    (bias_that_does_not_negate, "rule_linear_types", "a bias of -2**31"),
    (pre_shift, "rule_norm", "pre_shift"),
    (norm_of_one, "rule_norm", "a norm over 1 value"),
    (eps, "rule_norm", "eps 0 outside"),
    (large_eps, "rule_norm", "eps 2305843009213693953 outside"),
    (gain, "rule_norm", "gain is"),
    (gain_of_minus_one, "rule_norm", "a gain of -2**31"),
    (repeated_input, "rule_permutation", "no permutation of"),
    (short_permutation, "rule_permutation", "no permutation of 40 inputs"),
    (qkv_width, "rule_qkv", "needs 64 values per token, gets 48"),
    (heads_over_kv, "rule_heads", "4 heads over 3 KV heads"),
    (odd_head_dim, "rule_heads", "odd head_dim 5"),
    (probability_bits, "rule_probabilities", "24-bit probabilities overflow"),
    (context, "rule_probabilities", "more than 4096"),
    (score_scale, "rule_probabilities", "scale mantissa 32769"),
    (window, "rule_window", "positions at context"),
    (key_order_of_one_layer, "rule_key_order", "a cache of 4 bits, others have 8"),
    (key_order_twice, "rule_key_order", "a key order that is no permutation"),
    (key_order_of_words, "rule_key_order", "key order is int64"),
    (rope_table, "rule_rope", "RoPE table 1 of 1"),
    (no_rope_table, "rule_rope", "RoPE table None of 2"),
    (gelu, "rule_gelu", "gelu = 2"),
    (half_a_head_norm, "rule_head_norm", "need both gains, eps and pre_shift"),
    (head_pre_shift, "rule_head_norm", "pre_shift 1 for heads of 6"),
    (head_eps, "rule_head_norm", "eps 0 outside"),
    (head_gain, "rule_head_norm", "gain of a head is int16(5,)"),
    (head_gain_of_minus_one, "rule_head_norm", "a gain of -32768"),
    (cache_unit, "rule_units", "units of 2**32, allowed -14..31"),
    (dot_product_of_17_bits, "rule_probabilities", "are not 16 bits"),
    (silu_shift, "rule_shifts", "shifts 16, "),
    (gate_shift, "rule_shifts", "and 32 outside"),
    (embed_factor, "rule_factor", "factor 2147483648 outside"),
]


@pytest.mark.parametrize(
    ("damage", "rule", "words"), ILLEGAL, ids=lambda v: getattr(v, "__name__", None)
)
def test_illegal_graph_is_refused_by_name(
    fresh: Fresh, damage: Callable[[Graph], None], rule: str, words: str
) -> None:
    g = fresh()
    damage(g)
    with pytest.raises(IllegalIR) as refused:
        check(g)
    message = str(refused.value)
    assert f"({rule})" in message and words in message, message


def wide_and_grouped(g: Graph) -> None:
    w = weight(g)
    w.d = np.ones((w.n, 1), np.uint8)


def wide_in_groups(g: Graph) -> None:
    weight(g).group = 20


def bits_of_more_than_two_signed_bytes(g: Graph) -> None:
    weight(g).x_bits = 15


def bits_below_none(g: Graph) -> None:
    weight(g).x_bits = -1


def wide_accumulator(g: Graph) -> None:
    """14 bits are right for the 40 inputs that there were."""
    w = weight(g)
    assert w.x_bits == 14
    w.q = np.full((w.n, 2000), 127, np.int8)
    w.group = 2000


def input_bits(g: Graph) -> None:
    retype(g, first(g, Linear).inputs[0], bits=13)


def input_of_bytes(g: Graph) -> None:
    retype(g, first(g, Linear).inputs[0], kind="q8", group=40, cmax=255, bits=0)


# of matrices with one scale per row
ILLEGAL_WIDE: list[tuple[Callable[[Graph], None], str, str]] = [
    (wide_and_grouped, "rule_activations", "group scales, groups of 40 and 14-bit activations"),
    (wide_in_groups, "rule_activations", ": groups of 20 and 14-bit activations"),
    (bits_of_more_than_two_signed_bytes, "rule_activations", "15-bit activations"),
    (bits_below_none, "rule_activations", "-1-bit activations"),
    (wide_accumulator, "rule_accumulator", "accumulator up to 4161536000, more than 2147483647"),
    (input_bits, "rule_linear_types", "input q16[40] 13 bits does not match"),
    (input_of_bytes, "rule_linear_types", "which reads q16[40] 14 bits"),
]


@pytest.mark.parametrize(
    ("damage", "rule", "words"), ILLEGAL_WIDE, ids=lambda v: getattr(v, "__name__", None)
)
def test_illegal_graph_of_wide_activations_is_refused_by_name(
    fresh: Fresh, damage: Callable[[Graph], None], rule: str, words: str
) -> None:
    g = fresh(sides=True)
    damage(g)
    with pytest.raises(IllegalIR) as refused:
        check(g)
    message = str(refused.value)
    assert f"({rule})" in message and words in message, message


def side_of_other_activations(g: Graph) -> None:
    side(g).a.x_bits -= 1


def side_rank(g: Graph) -> None:
    b = side(g).b
    b.q, b.group = b.q[:, :-1], b.group - 1


def side_frac(g: Graph) -> None:
    side(g).b.frac += 1


def side_weights(g: Graph) -> None:
    side(g).b.q = side(g).b.q.astype(np.int16)


def side_padding(g: Graph) -> None:
    side(g).a.pad = 8


def side(g: Graph) -> LowRank:
    found = weight(g).low_rank
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("damage", "rule"),
    [
        (side_of_other_activations, "rule_linear_types"),
        (side_rank, "rule_linear_types"),
        (side_frac, "rule_linear_types"),
        (side_weights, "rule_matrix"),
        (side_padding, "rule_linear_types"),
    ],
)
def test_illegal_adapter_is_refused(
    fresh: Fresh, damage: Callable[[Graph], None], rule: str
) -> None:
    g = fresh(sides=True)
    damage(g)
    with pytest.raises(IllegalIR, match=rf"\({rule}\)"):
        check(g)


def use_before_definition(g: Graph) -> None:
    g.ops[1], g.ops[2] = g.ops[2], g.ops[1]


def double_definition(g: Graph) -> None:
    g.ops.insert(2, g.ops[1])


def missing_type(g: Graph) -> None:
    g.types["spare"] = g.types.pop(g.ops[3].out)


def unequal_layers(g: Graph) -> None:
    retype(g, next(op for op in g.ops if op.layer == 1 and isinstance(op, SiluMul)).out, width=7)


def rope_of_another_shape(g: Graph) -> None:
    g.rope_cos = g.rope_cos[None]


def rope_of_another_type(g: Graph) -> None:
    g.rope_sin = g.rope_sin.astype(np.int32)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (use_before_definition, "is not defined before it"),
        (double_definition, "defined twice"),
        (unequal_layers, "layer 1 differs from layer 0"),
        (missing_type, "no type"),
        (rope_of_another_shape, r"rope cos is int16\(1, .*, not int16\("),
        (rope_of_another_type, "rope sin is int32"),
    ],
)
def test_structure(fresh: Fresh, damage: Callable[[Graph], None], words: str) -> None:
    g = fresh()
    damage(g)
    with pytest.raises(IllegalIR, match=words):
        check(g)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"pre_shift": 1}, "pre_shift 1 for width 64"),
        ({"eps": 0}, r"eps 0 outside 1..2\*\*61"),
        ({"factor": 1 << 15}, r"factor 32768 \* 2"),
        ({"exponent": 65}, r"\* 2\*\*65 outside"),
        ({"gain": np.ones(3, np.int32)}, r"gain is int32\(3,\)"),
        ({"gain": np.full(64, -(1 << 31), np.int32)}, r"a gain of -2\*\*31"),
        ({"inputs": ("layer0.mid_in", "layer0.mid_in")}, "adds .* to .* and gives"),
    ],
)
def test_a_norm_that_adds(gemma: Graph, changed: dict[str, Any], words: str) -> None:
    g = copy.deepcopy(gemma)
    check(g)
    for name, value in changed.items():
        setattr(first(g, NormAdd), name, value)
    with pytest.raises(IllegalIR, match=rf"normadd .*{words}.*\(rule_norm_add\)"):
        check(g)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    folder = tmp_path_factory.mktemp("gemma")
    write_family(folder, "gemma3_text")
    return lower(load_model(folder), QuantOptions(), 8)


def test_every_rule_has_an_illegal_graph() -> None:
    named = {rule for _, rule, _ in ILLEGAL + ILLEGAL_WIDE} | {"rule_norm_add"}
    own = [rule for op in OPS.values() for rule in op.RULES]
    assert named == {r.__name__ for r in (*rules.COMMON, *own, rules.rule_engine)}
    files = [rules, *(sys.modules[op.__module__] for op in OPS.values())]
    assert {n for f in files for n in vars(f) if n.startswith("rule_")} == named


def test_legal_graphs_pass(fresh: Fresh) -> None:
    check(fresh())
    check(fresh(sides=True))


def test_all_violations_are_named_at_once(fresh: Fresh) -> None:
    g = fresh()
    pre_shift(g)
    silu_shift(g)
    heads_over_kv(g)
    with pytest.raises(IllegalIR, match="3 violation") as refused:
        check(g)
    for rule in ("rule_norm", "rule_shifts", "rule_heads"):
        assert rule in str(refused.value)
