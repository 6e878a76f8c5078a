"""The models that the tests of this folder compile."""

from __future__ import annotations

import pytest

from helpers.llama2c import write_stories260k
from helpers.shared_data import find_shared_data
from helpers.tiny_llama import write_tiny_llama
from shrinkc.importer import FloatModel, load_model


@pytest.fixture(scope="session")
def story_model(tmp_path_factory: pytest.TempPathFactory) -> FloatModel:
    """stories260K where the shared data is there, else a tiny random model of odd sizes."""
    folder = tmp_path_factory.mktemp("story_model") / "model"
    data = find_shared_data()
    if data is not None:
        write_stories260k(data, folder)
    else:
        write_tiny_llama(
            folder, hidden=60, intermediate=130, layers=3, heads=6, kv_heads=3, head_dim=10, seed=5
        )
    return load_model(folder)
