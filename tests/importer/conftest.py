from __future__ import annotations

import os
from pathlib import Path

import pytest

from helpers.shared_data import find_shared_data

# Threads cost more than they bring for matrices this small, and on a busy machine the two
# long tests of test_stories260k.py take a minute instead of three seconds.  Works only as
# long as numpy is not loaded yet.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = find_shared_data()
    if folder is None:
        pytest.skip("no test data: set SHRINKC_DATA or provide ../shared/data")
    return folder


@pytest.fixture(scope="session")
def stories_dir(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stories260K, converted to a Hugging Face directory."""
    from helpers.llama2c import write_stories260k

    out = tmp_path_factory.mktemp("stories") / "stories260K"
    write_stories260k(shared_data, out)
    return out
