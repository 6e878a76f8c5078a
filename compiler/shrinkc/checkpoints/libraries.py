"""Libraries of the extra ``compress``: presence, versions, devices and threads."""

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
COLUMNS_PER_THREAD = 128  # least columns of a matrix per thread
# Libraries that influence results: recorded in step.json and part of a run's fingerprint.
RECORDED = (
    "torch", "transformers", "peft", "gptqmodel", "auto-round", "safetensors", "tokenizers", "numpy",
)  # fmt: skip
# Transformers, PEFT and GPTQModel import torchao if it is installed.  Its import prints warnings of missing CUDA
# libraries, and torch warns about the registration of two enums.
_CHATTY = ("torchao", "torch.utils._pytree")


def need(
    *modules: str,
    how: str = "pip install '.[compress]' in shrinkc's source folder brings all that compression needs.",
) -> None:
    """Raise ExtraMissing with the names of all ``modules`` that are not installed, and ``how`` to install them.

    Every import of a heavy library is preceded by this call, so it also silences the warnings of torchao's import.
    """
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise ExtraMissing(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed.", how
        )


def versions() -> dict[str, str]:
    """Return the versions of the installed libraries of ``RECORDED``.

    The version of torch is ``torch.__version__``, because it names the build (``+cpu``, ``+cu132``), which
    influences results.  The package metadata from PyPI lack the build.
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
    """Return the keyword argument that passes ``cache`` to a transformers decoder.

    Its name changed in transformers 5.40, and an unknown name is silently ignored."""
    arguments = inspect.signature(decoder.forward).parameters
    return {"cache" if "cache" in arguments else "past_key_values": cache}


def check_device(name: str) -> None:
    """Raise UsageError unless torch can compute on the device ``name`` of this machine."""
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
    """Set the number of torch's threads, 1 to THREADS_MAX; otherwise raise UsageError.

    Sums differ in their last bits between thread counts, so a run pins and records the number.
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
    """Set the number of torch's threads within the context, see :func:`use_threads`."""
    need("torch")
    import torch

    before = torch.get_num_threads()
    use_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def suited_threads(hidden: int) -> int:
    """Return a useful number of threads for a model of hidden size ``hidden``: torch's default, or fewer.

    Threads wait for each other at every operation.  With matrices of 96 columns, two threads are never faster than
    one, even on idle cores.  On busy cores they take several times as long.
    """
    import torch

    return max(1, min(torch.get_num_threads(), hidden // COLUMNS_PER_THREAD))


def quiet() -> None:
    """Switch off progress bars and advice of the libraries: shrinkc reports progress itself."""
    need("torch", "transformers")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module=r"(transformers|peft)\.")
