"""Choices of a budget, counted in bytes of the compiled program: of its matrices, or of all memories of a target."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from shrinkc.compression.choices import (
    EMBEDDING_WIDTHS,
    FUSED,
    Choice,
    Space,
    best,
    gptq_of,
)
from shrinkc.compression.knapsack import largest_that_fits
from shrinkc.compression.recipe_settings import CUTS
from shrinkc.compression.sensitivity import Costs
from shrinkc.compression.stages import gptq
from shrinkc.compression.stages.gptq import WIDTHS
from shrinkc.core.errors import BudgetUnreachable, DoesNotFit
from shrinkc.core.progress import Update
from shrinkc.core.words import listed
from shrinkc.importer import LlamaConfig, open_checkpoint
from shrinkc.memory.parts import align
from shrinkc.memory.planner import bytes_without_weights, make_plan
from shrinkc.model import HEAD
from shrinkc.quantize import QuantOptions
from shrinkc.schedule.choose import choose_engines, multiplied
from shrinkc.schedule.shapes import (
    ModelShape,
    default_context,
    permutation_entries,
    shapes_of_config,
)
from shrinkc.targets import L2, SIRACUSA, Target


class CompiledMatrices(Space):
    """The choices for a model, counted as bytes of the compiled matrices, scales included.

    Matrices are those that the compiler stores; the modules of one share a width.
    """

    counted = "compiled_bytes"
    units = FUSED

    def __init__(
        self,
        config: LlamaConfig,
        settings: gptq.Settings,
        rank: int,
        target: Target,
        decode_table: int = 0,
        cut: Collection[str] = CUTS,
    ) -> None:
        """Initialise; ``decode_table``: bytes of the tokenizer's decode table."""
        super().__init__(config, settings, rank, cut)
        self.target, self.decode_table = target, decode_table

    def shape(self, config: LlamaConfig, settings: gptq.Settings) -> ModelShape:
        """Return the compiled form of the model after a stage gptq with ``settings``."""
        ranks = {slot: self.rank * len(modules) for slot, modules in self.units.items()}
        formats, options = gptq.formats(settings, config), QuantOptions()
        choices = choose_engines(multiplied(config, options, ranks, formats, ()), self.target)
        permuted = [m for m in formats if settings.desc_act and m != HEAD]
        return shapes_of_config(
            config, options, default_context(config), self.decode_table, ranks, formats, choices=choices,
            perms=permutation_entries(config, permuted),
        )  # fmt: skip

    def shape_of(self, choice: Choice) -> ModelShape:
        """Return the compiled form of a choice."""
        config = self.narrowed(choice.ffn, choice.kv_groups)
        config = replace(config, num_layers=config.num_layers - len(choice.removed))
        return self.shape(config, gptq_of(choice, self.config, self.settings))

    def uniform(
        self, config: LlamaConfig, group_size: int, bits: int, embedding_bits: int
    ) -> ModelShape:
        """Return the shape with one width for all matrices, and one for embedding and LM head."""
        embeddings = gptq.EmbeddingFormat(
            bits=embedding_bits, group_size=self.embedding_group_size()
        )
        settings = replace(
            self.settings, bits=bits, group_size=group_size, modules={}, embeddings=embeddings
        )
        return self.shape(config, settings)

    def matrices(self, config: LlamaConfig, group_size: int) -> dict[str, dict[int, int]]:
        """Return stored matrix of one layer -> width -> bytes, low-rank adapter included."""
        allowed = super().matrices(config, group_size)
        found: dict[str, dict[int, int]] = {slot: {} for slot in self.units}
        for bits in WIDTHS:
            one = self.uniform(
                replace(config, num_layers=1), group_size, bits, min(EMBEDDING_WIDTHS)
            )
            for slot, modules in self.units.items():
                if all(bits in allowed[m] for m in modules):
                    stored = [m for m in one.layers[0] if m.name.split(".")[1] == slot]
                    found[slot][bits] = sum(align(m.bytes) for m in stored)
        return found

    def stored_embeddings(self) -> dict[int, list[int]]:
        """Return width -> bytes of the LM head and, unless it is tied, of the embedding."""
        config = replace(self.config, num_layers=1)
        group_size = gptq.as_tuple(self.settings.group_size)[0]
        found = {}
        for bits in EMBEDDING_WIDTHS:
            one = self.uniform(config, group_size, min(WIDTHS), bits)
            found[bits] = [align(m.bytes) for m in (one.head, one.embedding) if m is not None]
        return found

    def embeddings(self) -> dict[int, int]:
        """Return width -> bytes of embedding and LM head."""
        return {bits: sum(sizes) for bits, sizes in self.stored_embeddings().items()}


class OnTarget(CompiledMatrices):
    """The choices for a model, counted as bytes of the compiled program in the target's memories, flash included.

    Code, tables and the KV cache at the default context count too.
    """

    counted = "program_bytes"

    def __init__(self, *given: Any, **named: Any) -> None:
        """Initialise as :class:`CompiledMatrices`."""
        super().__init__(*given, **named)
        self._other: dict[tuple[int, int, int], int] = {}

    def embeddings(self) -> dict[int, int]:
        """Return width -> bytes of embedding and LM head; only widths that fit a memory, if there are any."""
        room = max(v.bytes for v in self.target.stored)
        found = self.stored_embeddings()
        fitting = {bits: sum(sizes) for bits, sizes in found.items() if max(sizes) <= room}
        return fitting or super().embeddings()

    def other(self, config: LlamaConfig, group_size: int) -> int:
        """Return the bytes of the memories that weights cannot use, with the narrowest matrices.

        Raises DoesNotFit if they have fewer."""
        key = (config.num_layers, config.intermediate_size, config.num_kv_heads)
        if key not in self._other:
            shape = self.uniform(config, group_size, min(WIDTHS), min(EMBEDDING_WIDTHS))
            self._other[key] = bytes_without_weights(shape, self.target)
        return self._other[key]

    def planned(self, choice: Choice) -> Choice | None:
        """Return the choice with the bytes of its memory plan; None if it does not fit."""
        try:
            used = make_plan(self.shape_of(choice), self.target).used
        except DoesNotFit:
            return None
        return replace(choice, bytes=sum(used[v.name] for v in self.target.stored))

    def free(self, shape: ModelShape) -> int:
        """Return the bytes that weights can use.  Raises DoesNotFit if L1 or L2 is too small."""
        return sum(v.bytes for v in self.target.stored) - bytes_without_weights(shape, self.target)

    def refusal(self, choice: Choice) -> BudgetUnreachable:
        """Return the error for a smallest choice that does not fit, with required and available bytes."""
        shape = self.shape_of(choice)
        largest = max(shape.stored, key=lambda m: m.bytes)
        memories = [v for v in self.target.stored if v.bytes]
        try:
            why = (
                f"weights need {_stored(shape)} bytes, {largest.name} alone {largest.bytes}; have "
                f"{self.free(shape)} in {listed([v.label for v in memories])}"
                + "".join(f", {v.bytes} of them in {v.label}" for v in memories if v.name != L2)
                + "."
            )
        except DoesNotFit as error:
            why = error.message
        return BudgetUnreachable(
            f"{self.target.name} does not hold the smallest choice, context {shape.context}: {why}",
            "give a smaller model, or more flash, up to that of your board.",
        )

    def check(self, budget: int) -> None:
        """Raise BudgetUnreachable, with required and available bytes, unless the smallest choice fits."""
        smallest = self.smallest()
        if self.planned(smallest) is None:
            raise self.refusal(smallest)

    def choose(self, costs: Costs, budget: int, update: Update) -> Choice:
        """Return the choice with the least predicted loss that the planner can place.

        If a choice does not fit, because it has too many bytes or because matrices do not fill the memories exactly,
        it is made again with fewer bytes.  Raises BudgetUnreachable if the smallest choice does not fit.
        """

        def lacking(choice: Choice) -> int | None:
            if self.planned(choice) is not None:
                return None
            shape = self.shape_of(choice)
            return max(0, _stored(shape) - self.free(shape))

        chosen = largest_that_fits(
            lambda at: best(self, costs, at, update), lambda choice: choice.bytes, lacking,
            self.least(), budget,
        )  # fmt: skip
        found = None if chosen is None else self.planned(chosen)
        if found is None:
            least = best(self, costs, self.least(), update)
            found = self.planned(least)
            if found is None:
                raise self.refusal(least)
        return found


def _stored(shape: ModelShape) -> int:
    """Return the bytes of all weights, aligned as in the memory plan."""
    return sum(align(m.bytes) for m in shape.stored)


def compiled_bytes(directory: Path) -> int | None:
    """Return the bytes of the matrices of a quantised model directory, compiled for Siracusa; None for floats and for
    low-rank adapters."""
    opened = open_checkpoint(directory)
    if opened.formats is None or opened.ranks:
        return None
    config, options, target = opened.config, QuantOptions(), SIRACUSA
    choices = choose_engines(multiplied(config, options, {}, opened.formats, ()), target)
    shape = shapes_of_config(
        config, options, default_context(config), 0, {}, opened.formats, choices=choices
    )
    return sum(align(m.bytes) for m in shape.stored)
