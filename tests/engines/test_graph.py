"""The engine in the integer IR: shown, kept in files, and held to what it asks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from end_to_end.programs import add_adapters
from helpers.tiny_llama import write_tiny_llama
from shrinkc.core.errors import IllegalIR
from shrinkc.engines import CORES, ENGINES, THE_CORES, Choice, Choices, Engine
from shrinkc.importer import FloatModel, load_model
from shrinkc.ir.dump import dump
from shrinkc.ir.graph import Graph
from shrinkc.ir.linear import QLinear
from shrinkc.ir.ops import Linear, vector_type
from shrinkc.ir.rules import check
from shrinkc.ir.serialize import load, save
from shrinkc.quantize import QuantOptions, lower

from .plain import EAGER, lowered


@pytest.fixture
def model(tmp_path: Path) -> FloatModel:
    write_tiny_llama(tmp_path / "model", hidden=64, intermediate=72, vocab=112, seed=6)
    return load_model(tmp_path / "model")


GROUPS = QuantOptions(group_size=8)


@pytest.fixture
def graph(model: FloatModel, register: Callable[[Engine], None]) -> Graph:
    """Groups in the layers, whose groups the engine decides, and a head with one scale per row."""
    register(EAGER)
    return lowered(model, GROUPS, 16)


def matrix(graph: Graph, name: str) -> QLinear:
    return next(op.weight for op in graph.ops if isinstance(op, Linear) and op.weight.name == name)


def test_the_text_names_it(model: FloatModel, graph: Graph) -> None:
    lines = [line for line in dump(graph).splitlines() if "int8[" in line]
    assert len(lines) > 8 and all(" on plain" in line for line in lines)
    assert " on " not in dump(lower(model, GROUPS, 16))


def test_a_file_keeps_it(graph: Graph, tmp_path: Path) -> None:
    matrix(graph, "layer1.o").engine = CORES
    w = matrix(graph, "layer1.o")
    assert w.d is not None
    w.d, w.group, w.pad = w.d[:, ::2].copy(), 8, 4
    op = next(o for o in graph.ops if isinstance(o, Linear) and o.weight is w)
    graph.types[op.inputs[0]] = vector_type(w)
    save(graph, tmp_path / "ir.safetensors")
    again = load(tmp_path / "ir.safetensors")
    assert dump(again) == dump(graph)
    assert matrix(again, "layer0.o").engine == "plain"
    assert matrix(again, "layer1.o").engine == CORES


def test_a_file_of_an_engine_that_is_not_known(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(graph, tmp_path / "ir.safetensors")
    monkeypatch.delitem(ENGINES, "plain")
    with pytest.raises(
        IllegalIR, match=r"'plain'; there are cores, neureka_1x1, neureka_3x3, neureka_both \("
    ):
        load(tmp_path / "ir.safetensors")


def other_group(graph: Graph) -> None:
    """Groups as the cores have them, on both sides of a matrix."""
    op = next(o for o in graph.ops if isinstance(o, Linear))
    assert op.weight.d is not None
    op.weight.d, op.weight.group = op.weight.d[:, ::2].copy(), 8
    graph.types[op.inputs[0]] = vector_type(op.weight)


def other_padding(graph: Graph) -> None:
    matrix(graph, "layer0.qkv").pad = 4


def other_padding_of_a_row(graph: Graph) -> None:
    matrix(graph, "head").pad = 4


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (other_group, "groups of 8 padded to 12; plain asks for 4 and 12"),
        (other_padding, "groups of 4 padded to 4; plain asks for 4 and 12"),
        (other_padding_of_a_row, "head: groups of 64 padded to 4; plain asks for 64 and 12"),
    ],
)
def test_a_matrix_that_is_not_cut_as_its_engine_asks(
    graph: Graph, damage: Callable[[Graph], None], words: str
) -> None:
    check(graph)
    damage(graph)
    with pytest.raises(IllegalIR, match=words):
        check(graph)


def test_one_scale_per_row_is_one_group_whatever_an_engine_says(graph: Graph) -> None:
    """Of a grouped matrix it decides the groups."""
    assert EAGER.cut(64, None, 8)[0] == 24
    head, down = matrix(graph, "head"), matrix(graph, "layer0.down")
    assert (head.group, head.pad, head.x_bits) == (64, 12, 14)
    assert (down.group, down.pad, down.x_bits) == (4, 12, 0)


def test_an_adapter_beside_the_cores(model: FloatModel) -> None:
    """What choose never does."""
    add_adapters(model, {"o_proj": 2})
    graph = lower(model, QuantOptions(), 16)
    low_rank = matrix(graph, "layer0.o").low_rank
    assert low_rank is not None
    low_rank.b.engine = "plain"
    with pytest.raises(IllegalIR, match=r"layer0\.o\.b: an adapter on plain, not on the cores"):
        check(graph)


def test_other_matrices_are_as_they_were(
    model: FloatModel, register: Callable[[Engine], None]
) -> None:
    """One on plain: its own integers change, and no others do before it."""
    register(EAGER)
    one = lower(model, GROUPS, 16, choices=Choices({"layer1.down": Choice("plain")}))
    none = lower(model, GROUPS, 16)
    for op in none.ops:
        if isinstance(op, Linear):
            mine, theirs = op.weight, matrix(one, op.weight.name)
            same = np.array_equal(mine.q, theirs.q) and mine.group == theirs.group
            assert same == (op.weight.name != "layer1.down")
    assert matrix(one, "layer1.down").group == EAGER.cut(72, 8, 8)[0] != THE_CORES.cut(72, 8, 8)[0]
