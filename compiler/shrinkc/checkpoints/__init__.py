"""Torch models from directories, and back into directories that anybody can load."""

from shrinkc.checkpoints.libraries import (
    cached,
    check_device,
    need,
    suited_threads,
    threads_within,
    use_threads,
    versions,
)
from shrinkc.checkpoints.loading import (
    Loaded,
    load,
    load_tokenizer,
    located,
    resolve,
    stored_dtype,
    torch_dtype,
)
from shrinkc.checkpoints.loading_line import README, Loading, write_readme
from shrinkc.checkpoints.saving import Savable, on_disk, save

__all__ = [
    "README",
    "Loaded",
    "Loading",
    "Savable",
    "cached",
    "check_device",
    "load",
    "load_tokenizer",
    "located",
    "need",
    "on_disk",
    "resolve",
    "save",
    "stored_dtype",
    "suited_threads",
    "threads_within",
    "torch_dtype",
    "use_threads",
    "versions",
    "write_readme",
]
