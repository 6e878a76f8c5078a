"""Request to plan or compile: a model and options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from shrinkc.core.errors import UsageError
from shrinkc.driver.estimating import check_speed
from shrinkc.importer import Checkpoint, open_checkpoint
from shrinkc.quantize import QuantOptions
from shrinkc.storage import KV_BITS, WIDEST
from shrinkc.targets import DEFAULT, SIZES


@dataclass(frozen=True)
class PlanRequest:
    """Options of :func:`shrinkc.plan`, by name.

    ``model`` is a path, optionally with an ``adapter``, or an opened checkpoint, which includes its adapter.
    """

    model: Path | Checkpoint
    target: str = DEFAULT.name
    bits: int | None = None
    group_size: int | None = None
    short_last_group: bool = False
    asymmetric: bool = False
    embedding_bits: int | None = None
    kv_bits: int = KV_BITS[0]
    context: int | None = None
    l1: int | None = None
    adapter: Path | None = None
    engines: str | Sequence[str] | None = None
    code: str | None = None
    position: int | None = None
    clock: float | None = None
    ram: int | None = None
    flash: int | None = None
    hyperram: int | None = None
    fit: bool = False
    sensitivity: Path | None = None

    def __post_init__(self) -> None:
        """Raise QuantizeError for an impossible width, UsageError for an impossible value of another option."""
        check_speed(self.position, self.clock)
        if isinstance(self.model, Checkpoint) and self.adapter is not None:
            raise UsageError(
                f"--adapter {self.adapter}: {self.model.name} was opened already.",
                "give the adapter to 'shrinkc.open'.",
            )
        if self.sensitivity is not None and not self.fit:
            raise UsageError(
                "--sensitivity needs --fit.", "give --fit as well, or leave --sensitivity out."
            )
        _ = self.quant

    @cached_property
    def quant(self) -> QuantOptions:
        """Return the quantisation options of float matrices and of the KV cache."""
        return QuantOptions(
            bits=WIDEST if self.bits is None else self.bits, group_size=self.group_size, asymmetric=self.asymmetric,
            embedding_bits=WIDEST if self.embedding_bits is None else self.embedding_bits,
            short_last_group=self.short_last_group, kv_bits=self.kv_bits,
        )  # fmt: skip

    @property
    def sizes(self) -> dict[str, int | None]:
        """Return the given sizes of memories in bytes, by names of SIZES."""
        return {name: getattr(self, name) for name in SIZES}

    @property
    def given(self) -> set[str]:
        """Return the names of ``quant`` options that the user gave."""
        names = ("bits", "group_size", "short_last_group", "asymmetric", "embedding_bits")
        return {
            f"--{name.replace('_', '-')}" for name in names if getattr(self, name) not in (None, False)
        }  # fmt: skip

    @property
    def engine_names(self) -> list[str] | None:
        """Return the engines allowed in addition to the cores; None: all of the target's."""
        if isinstance(self.engines, str):
            return [name.strip() for name in self.engines.split(",")]
        return None if self.engines is None else list(self.engines)

    def opened(self, *, whole: bool) -> Checkpoint:
        """Return the checkpoint; with ``whole`` it must have weights and tokenizer."""
        if not isinstance(self.model, Checkpoint):
            return open_model(self.model, self.adapter, whole=whole)
        if not whole or self.model.whole:
            return self.model
        adapter = self.model.adapter if self.model.adapter_given else None
        return open_model(Path(self.model.hub or self.model.path), adapter, whole=True)


def open_model(model: Path, adapter: Path | None = None, *, whole: bool = False) -> Checkpoint:
    """Open a checkpoint from a path or an id of the hub, see :func:`open_checkpoint`.

    Weights are downloaded from the hub only with ``whole``; the model's name is then its id.  Raises the errors of
    :func:`open_checkpoint`; ModelNotFound also if the hub refuses, and for the directory of a compression run,
    because its steps are the models.
    """
    from shrinkc.checkpoints import located

    path = located(model, weights=whole)
    checkpoint = open_checkpoint(path, adapter, whole=whole)
    return checkpoint if path == model else replace(checkpoint, name=str(model), hub=str(model))
