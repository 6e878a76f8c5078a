"""The libraries of the extra ``compress``: are they there, which versions, how many threads."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from shrinkc.core.errors import ExtraMissing, UsageError

THREADS_MAX = 1024
COLUMNS_PER_THREAD = 128  # of a matrix that is worth dividing
# What decides the numbers of a stage: recorded in step.json, part of a run's fingerprint.
RECORDED = (
    "torch", "transformers", "peft", "gptqmodel", "auto-round", "safetensors", "tokenizers", "numpy",
)  # fmt: skip
# Transformers, PEFT and GPTQModel import torchao where it is installed.  While it is imported it warns that
# its CUDA libraries do not load, and torch warns how torchao registers two of its enums.
_CHATTY = ("torchao", "torch.utils._pytree")


def need(*modules: str) -> None:
    """ExtraMissing that names every one of ``modules`` that is not installed.

    Whoever imports a heavy library asks for it here first, so that the warnings of torchao's import
    are switched off here.
    """
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise ExtraMissing(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed.",
            "pip install '.[compress]' in shrinkc's source folder brings all that compression needs.",
        )


def versions() -> dict[str, str]:
    """Library -> version of those of ``RECORDED`` that are installed.

    Of torch the module's own: it names the build as well (``+cpu``, ``+cu132``), on which numbers
    depend, while the version of the package on PyPI leaves that out.
    """
    found = {}
    for name in RECORDED:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    if "torch" in found:
        import torch

        found["torch"] = str(torch.__version__)
    return found


def cached(decoder: Any, cache: Any) -> dict[str, Any]:
    """``cache`` as the argument of a transformers decoder: older versions have the old name, from 5.40 on
    there is only the new one, and one that a version does not know it ignores without a word."""
    arguments = inspect.signature(decoder.forward).parameters
    return {"cache" if "cache" in arguments else "past_key_values": cache}


def check_device(name: str) -> None:
    """UsageError unless torch can compute on the device ``name`` here and now."""
    if name == "cpu":
        return
    need("torch")
    import torch

    there = ["cpu"]
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is not None:
        count = torch.accelerator.device_count()
        there += [found.type, *(f"{found.type}:{i}" for i in range(count))]
    if name not in there:
        raise UsageError(
            f"--device {name}: torch {torch.__version__} has no such device on this machine.",
            f"allowed: {', '.join(there)}.",
        )


def use_threads(n: int) -> None:
    """Computes with ``n`` threads from now on.

    Sums differ in their last bits between thread counts, so a run pins and records the number.
    UsageError unless it is 1 to THREADS_MAX.
    """
    if not 1 <= n <= THREADS_MAX:
        raise UsageError(f"--threads {n} is not possible.", f"allowed: 1 to {THREADS_MAX}.")
    need("torch")
    import torch

    torch.set_num_threads(n)
    with suppress(RuntimeError):  # allowed once per process, before any parallel work
        torch.set_num_interop_threads(1)


@contextmanager
def threads_within(n: int) -> Iterator[None]:
    """As :func:`use_threads`, until the context ends."""
    need("torch")
    import torch

    before = torch.get_num_threads()
    use_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def suited_threads(hidden: int) -> int:
    """How many threads a model of hidden size ``hidden`` profits from: torch's own choice, or fewer.

    Threads wait for each other at every operation.  With matrices of 96 columns two are never quicker than
    one, not even on idle cores; where these have other work, they take several times as long.
    """
    import torch

    return max(1, min(torch.get_num_threads(), hidden // COLUMNS_PER_THREAD))


def quiet() -> None:
    """No progress bars and advice of the libraries: shrinkc reports progress itself."""
    need("torch", "transformers")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module=r"(transformers|peft)\.")
