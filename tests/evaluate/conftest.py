from __future__ import annotations

import os
from pathlib import Path

import pytest

from helpers.tiny_llama import write_tiny_llama
from shrinkc.importer import FloatModel, load_model

# faster for matrices this small, as long as numpy is not loaded yet
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> FloatModel:
    path = tmp_path_factory.mktemp("tiny") / "model"
    write_tiny_llama(path, hidden=64, intermediate=96, heads=4, kv_heads=2, max_position=512)
    return load_model(path)


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny_dir") / "model"
    write_tiny_llama(path, max_position=512)
    return path
