"""Storage shapes of every matrix, from sizes alone, so that planning needs no weights."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from shrinkc.engines import ON_CORES, Choices, MatrixSpec, engine_named
from shrinkc.importer import Formats, LlamaConfig
from shrinkc.ir.graph import Graph
from shrinkc.ir.linear import QLinear
from shrinkc.ir.ops import Embed, Linear, NormAdd, NormQuant, Quant, RopeCache
from shrinkc.ir.steps import SlotSizes, Step
from shrinkc.model import (
    HEAD,
    SLOT_MODULES,
    family_of,
    layer_windows,
    slot_shapes,
    slots_with_bias,
)
from shrinkc.quantize import MatrixFormat, QuantOptions, matrix_formats, pass_of
from shrinkc.storage import ADAPTER_BITS, KV_BITS, MatrixShape, Offsets, format_of

DEFAULT_CONTEXT = 256

Ranks = Sequence[dict[str, int]] | dict[str, int]
"""Slot -> rank of its low-rank adapter, per layer or for all layers."""


def default_context(config: LlamaConfig) -> int:
    """Return the context for which a model is compiled by default."""
    return min(config.max_position, DEFAULT_CONTEXT)


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model, from which the planner works."""

    vocab: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    num_layers: int
    context: int
    piece_bytes: int
    # per layer, in the order of a pass; "<slot>.a" of an adapter precedes its slot
    layers: tuple[tuple[MatrixShape, ...], ...]
    head: MatrixShape
    embedding: MatrixShape | None  # None: tied to the LM head
    perms: int = 0  # entries of all permutations of inputs (act-order)
    # (matrix, an earlier one with equal bytes, stored once), by name
    shared: tuple[tuple[str, str], ...] = ()
    biases: int = 0  # entries of all biases, zeros included
    head_norms: bool = False  # heads of q and k are normalised
    steps: tuple[Step, ...] = ()  # of a pass
    # per layer the positions that a token attends to, 0 for all; empty if all layers attend to all
    windows: tuple[int, ...] = ()
    rope_tables: int = 1
    kv_bits: int = KV_BITS[0]  # bits of keys and values in the KV cache

    @property
    def post_norms(self) -> int:
        """The number of norms after blocks in each layer."""
        return sum(step.op is NormAdd for step in self.steps)

    @property
    def matrices(self) -> list[MatrixShape]:
        """All matrices in the order of a pass; an untied embedding last."""
        out = [m for layer in self.layers for m in layer] + [self.head]
        return out + ([self.embedding] if self.embedding else [])

    @cached_property
    def kinds(self) -> list[MatrixShape]:
        """One matrix of each different shape."""
        return list({m.kind: m for m in self.matrices}.values())

    @cached_property
    def readers(self) -> list[MatrixShape]:
        """One matrix of each different shape, without an untied embedding, which is not multiplied with."""
        every = [m for layer in self.layers for m in layer] + [self.head]
        return list({m.kind: m for m in every}.values())

    @cached_property
    def slots(self) -> dict[str, SlotSizes]:
        """Maximum sizes of the matrices of each slot, over all layers."""
        found: dict[str, list[MatrixShape]] = {"head": [self.head]}
        for m in (m for layer in self.layers for m in layer):
            found.setdefault(m.name.split(".", 1)[-1], []).append(m)
        return {slot: SlotSizes.of(matrices) for slot, matrices in found.items()}

    @property
    def stored(self) -> list[MatrixShape]:
        """All matrices except those that share the bytes of an earlier one."""
        repeats = dict(self.shared)
        return [m for m in self.matrices if m.name not in repeats]


def padded_rows(slot: str, rows: int) -> int:
    """Return the stored rows: gate_up interleaves 4 gate and 4 up rows, so both halves are padded to 4."""
    return 2 * (-(-(rows // 2) // 4) * 4) if slot == "gate_up" else rows


def _shape(w: QLinear, name: str) -> MatrixShape:
    slot = name.rsplit(".", 1)[-1]
    own = format_of(w.bits).inputs
    return MatrixShape(
        name, padded_rows(slot, w.n), w.k, w.bits, w.group, w.d is not None, w.offsets,
        w.low_rank.a.n if w.low_rank else 0, w.pad if w.pad != own else 0,
        w.engine, engine_named(w.engine).store,
        grouped_input=w.d is None and not w.x_bits,
    )  # fmt: skip


def shapes_of_graph(graph: Graph, piece_bytes: int) -> ModelShape:
    """Return the shapes of a lowered model."""
    layers: list[list[MatrixShape]] = [[] for _ in range(graph.num_layers)]
    head: MatrixShape | None = None
    embedding: MatrixShape | None = None
    embedded = next(op.table for op in graph.ops if isinstance(op, Embed))
    weights: list[QLinear] = []
    for op in graph.ops:
        if not isinstance(op, Linear):
            continue
        if op.layer < 0:
            head = _shape(op.weight, "head")
            if embedded is not op.weight:
                embedding = _shape(embedded, "embedding")
            continue
        weights += [op.weight.low_rank.a, op.weight] if op.weight.low_rank else [op.weight]
        if op.weight.low_rank:
            layers[op.layer].append(_shape(op.weight.low_rank.a, op.weight.low_rank.a.name))
        layers[op.layer].append(_shape(op.weight, op.weight.name))
    assert head is not None
    perms = sum(
        len(op.perm)
        for op in graph.ops
        if isinstance(op, (NormQuant, Quant)) and op.perm is not None
    )
    return ModelShape(
        graph.vocab, graph.hidden, graph.ffn, graph.heads, graph.kv_heads, graph.head_dim,
        graph.num_layers, graph.context, piece_bytes, tuple(map(tuple, layers)), head, embedding,
        perms, _equal(weights),
        sum(len(op.bias) for op in graph.ops if isinstance(op, Linear) and op.bias is not None),
        any(isinstance(op, RopeCache) and op.q_gain is not None for op in graph.ops),
        graph.steps(), graph.windows(), graph.rope_tables, graph.kv_bits,
    )  # fmt: skip


def _equal(weights: Sequence[QLinear]) -> tuple[tuple[str, str], ...]:
    """Return (matrix, the first one with equal stored bytes) for all repeated matrices."""
    first: dict[tuple[object, ...], str] = {}
    out = []
    for w in weights:
        owner = first.setdefault(_content(w), w.name)
        if owner != w.name:
            out.append((w.name, owner))
    return tuple(out)


def _content(w: QLinear) -> tuple[object, ...]:
    """Return a key that is equal for matrices with equal stored bytes, adapters included."""
    digest = hashlib.sha256()
    for part in [w, w.low_rank.b] if w.low_rank else [w]:
        for array in (part.q, part.d, part.b, part.r):
            digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
    return replace(_shape(w, w.name), name=w.name.rsplit(".", 1)[-1]), digest.digest()


def matrix_specs(
    config: LlamaConfig,
    options: QuantOptions,
    ranks: Ranks,
    formats: Formats | None,
) -> tuple[list[list[MatrixSpec]], MatrixSpec, MatrixSpec | None]:
    """Return (specs of each layer's slots, of the LM head, of an untied embedding or None)."""
    c = config
    slots, head_format, embedding_format = matrix_formats(c, options, formats)

    def spec(name: str, rows: int, k: int, f: MatrixFormat, rank: int = 0) -> MatrixSpec:
        tied = name == "head" and c.tie_embeddings
        return MatrixSpec(name, rows, k, f.bits, f.group, f.offsets, rank, tied)

    layers = [
        [
            spec(
                f"layer{i}.{slot}", padded_rows(slot, rows), k, slots[i][slot],
                (ranks if isinstance(ranks, dict) else ranks[i]).get(slot, 0),
            )
            for slot, (rows, k) in slot_shapes(c).items()
        ]
        for i in range(c.num_layers)
    ]  # fmt: skip
    head = spec("head", c.vocab_size, c.hidden_size, head_format)
    embedding = None
    if not c.tie_embeddings:
        embedding = spec("embedding", c.vocab_size, c.hidden_size, embedding_format)
    return layers, head, embedding


def equal_matrices(
    layers: Sequence[Sequence[MatrixSpec]], repeats: Sequence[int]
) -> tuple[tuple[str, str], ...]:
    """Return (matrix, an earlier one with equal weights) by name, from equal layers."""
    return tuple(
        (again.name, first.name)
        for i, owner in enumerate(repeats)
        # whether adapters are equal too is not known yet
        if owner != i and not any(m.rank for m in (*layers[i], *layers[owner]))
        for again, first in zip(layers[i], layers[owner], strict=True)
    )


def permutation_entries(config: LlamaConfig, permuted: Collection[str]) -> int:
    """Return the entries of all permutations that act-order needs, one per input.

    ``permuted``: modules whose columns are stored in another order than their inputs.  The modules of a slot share one
    permutation; down needs none, because the rows of gate and up are reordered.
    """
    firsts = {SLOT_MODULES[slot][0]: k for slot, (_, k) in slot_shapes(config).items()}
    entries = {**firsts, "down_proj": 0, HEAD: config.hidden_size}
    return sum(entries.get(name.rpartition(".")[2], 0) for name in permuted)


def shapes_of_config(
    config: LlamaConfig,
    options: QuantOptions,
    context: int,
    piece_bytes: int,
    ranks: Ranks,
    formats: Formats | None = None,
    repeats: Sequence[int] = (),
    choices: Choices = ON_CORES,
    perms: int = 0,
) -> ModelShape:
    """Return the shapes that a lowered model will have, without reading weights.

    ``options`` apply to float modules, ``formats`` to modules that a checkpoint stores quantised.  ``repeats``: per
    layer the first one with equal weights; empty if all differ.  ``choices``: engines of the matrices.  ``perms``: see
    ``permutation_entries``.
    """
    c = config
    specs, head_spec, embedding_spec = matrix_specs(c, options, ranks, formats)

    def shape(spec: MatrixSpec) -> MatrixShape:
        return engine_named(choices.engine(spec.name)).shape(spec)

    def layer(specs: Sequence[MatrixSpec]) -> tuple[MatrixShape, ...]:
        out: list[MatrixShape] = []
        for spec in specs:
            main = shape(spec)
            if rank := spec.rank:
                a = f"{spec.name}.a"
                own, both = format_of(ADAPTER_BITS).inputs, main.format.inputs
                pad = both if both > own else 0
                out.append(
                    MatrixShape(
                        a, rank, spec.k, ADAPTER_BITS, main.group, False, Offsets.NONE, 0, pad,
                        grouped_input=not main.wide,
                    )
                )  # fmt: skip
            out.append(main)
        return tuple(out)

    layers = tuple(map(layer, specs))
    shared = equal_matrices(specs, repeats)
    head = shape(head_spec)
    embedding = None if embedding_spec is None else shape(embedding_spec)
    return ModelShape(
        c.vocab_size, c.hidden_size, c.intermediate_size, c.num_heads, c.num_kv_heads, c.head_dim,
        c.num_layers, context, piece_bytes, layers, head, embedding, perms, shared,
        biases=c.num_layers * sum(slot_shapes(c)[slot][0] for slot in slots_with_bias(c)),
        head_norms=bool(family_of(c).head_norms),
        steps=pass_of(c), windows=layer_windows(c, context),
        rope_tables=1 if c.local_rope_theta is None else 2, kv_bits=options.kv_bits,
    )  # fmt: skip
