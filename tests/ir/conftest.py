"""One small lowered graph with everything in it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest

from end_to_end.programs import add_adapters
from helpers.tiny_llama import write_tiny_llama
from shrinkc.importer import FloatModel, load_model
from shrinkc.ir.graph import Graph
from shrinkc.quantize import QuantOptions, lower

CONTEXT = 24


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> FloatModel:
    folder = tmp_path_factory.mktemp("ir") / "model"
    write_tiny_llama(
        folder, hidden=40, intermediate=56, layers=2, heads=4, kv_heads=2, head_dim=6, seed=2
    )
    return load_model(folder)


@pytest.fixture(scope="session")
def model_with_sides(tmp_path_factory: pytest.TempPathFactory) -> FloatModel:
    folder = tmp_path_factory.mktemp("ir_sides") / "model"
    write_tiny_llama(
        folder, hidden=40, intermediate=56, heads=4, kv_heads=2, head_dim=6, tied=False, seed=3
    )
    loaded = load_model(folder)
    add_adapters(loaded, {"q_proj": 2, "o_proj": 3, "up_proj": 1, "down_proj": 5})
    return loaded


@pytest.fixture(scope="session")
def _lowered(model: FloatModel) -> Graph:
    return lower(
        model, QuantOptions(bits=4, group_size=8, asymmetric=True, short_last_group=True), CONTEXT
    )


@pytest.fixture(scope="session")
def _lowered_sides(model_with_sides: FloatModel) -> Graph:
    return lower(model_with_sides, QuantOptions(), CONTEXT)


@pytest.fixture
def fresh(_lowered: Graph, _lowered_sides: Graph) -> Callable[..., Graph]:
    """fresh(sides=False): a copy of a legal graph that a test may damage."""

    def get(sides: bool = False) -> Graph:
        return copy.deepcopy(_lowered_sides if sides else _lowered)

    return get
