"""Storage shapes of every matrix: derived from sizes alone, so that a plan needs no weights."""

from __future__ import annotations

from dataclasses import dataclass

from shrinkc.importer.model import LlamaConfig
from shrinkc.ir.graph import Graph
from shrinkc.ir.linear import ROW_BLOCK, QLinear, segment_size
from shrinkc.ir.ops import Embed, Linear
from shrinkc.quantize.lower import QuantOptions

SLOTS = ("qkv", "o", "gate_up", "down")  # per layer, in the order they are streamed
X_BLOCK = 8  # inputs one core quantises at a time: SC_BLOCK in sc_kernels.h


@dataclass(frozen=True)
class MatrixShape:
    """One stored matrix.  ``rank`` > 0: the b matrix of a side path [rows, rank] rides along."""

    name: str
    rows: int
    k: int
    bits: int
    seg: int
    grouped: bool
    asymmetric: bool
    rank: int = 0

    @property
    def nseg(self) -> int:
        return -(-self.k // self.seg)

    @property
    def last(self) -> int:
        return self.k - (self.nseg - 1) * self.seg

    def seg_words(self, elements: int) -> int:
        """int32 words (4 inputs) of a segment of that many inputs, padding included."""
        return -(-elements // 8) * 2 if self.bits == 4 else -(-elements // 4)

    @property
    def words(self) -> int:
        return (self.nseg - 1) * self.seg_words(self.seg) + self.seg_words(self.last)

    @property
    def header(self) -> int:
        """Bytes of d and z per segment of a block."""
        return ROW_BLOCK * (int(self.grouped) + int(self.asymmetric))

    @property
    def x_blocks(self) -> int:
        """Units of quantisation work of the input vector."""
        return (self.nseg - 1) * -(-self.seg // X_BLOCK) + -(-self.last // X_BLOCK)

    @property
    def blocks(self) -> int:
        return -(-self.rows // ROW_BLOCK)

    @property
    def side(self) -> MatrixShape | None:
        if self.rank == 0:
            return None
        return MatrixShape(
            f"{self.name}.b", self.rows, self.rank, 8, segment_size(self.rank, None), False, False
        )

    @property
    def block_bytes(self) -> int:
        weights = self.words * 4 * ROW_BLOCK // (2 if self.bits == 4 else 1)
        own = 2 * ROW_BLOCK + self.nseg * self.header + weights
        return own + (self.side.block_bytes if self.side else 0)

    @property
    def bytes(self) -> int:
        return self.blocks * self.block_bytes


@dataclass(frozen=True)
class ModelShape:
    """Everything the planner needs to know of a model."""

    vocab: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    num_layers: int
    context: int
    piece_bytes: int
    # per layer, in stream order; "<slot>.a" precedes its slot where there is a side path
    layers: tuple[tuple[MatrixShape, ...], ...]
    head: MatrixShape
    embedding: MatrixShape | None  # None: tied, the head's storage serves

    @property
    def matrices(self) -> list[MatrixShape]:
        """Every stored matrix, in stream order, the embedding last: it is read a row at a time."""
        out = [m for layer in self.layers for m in layer] + [self.head]
        return out + ([self.embedding] if self.embedding else [])


def padded_rows(slot: str, rows: int) -> int:
    """Stored rows: gate_up interleaves 4 gate and 4 up rows, so each half is padded to 4."""
    return 2 * (-(-(rows // 2) // 4) * 4) if slot == "gate_up" else rows


def _shape(w: QLinear, name: str) -> MatrixShape:
    slot = name.rsplit(".", 1)[-1]
    return MatrixShape(
        name, padded_rows(slot, w.n), w.k, w.bits, w.seg, w.d is not None, w.z is not None,
        w.low_rank.a.n if w.low_rank else 0,
    )  # fmt: skip


def shapes_of_graph(graph: Graph, piece_bytes: int) -> ModelShape:
    """The shapes of a lowered model."""
    layers: list[list[MatrixShape]] = [[] for _ in range(graph.num_layers)]
    head: MatrixShape | None = None
    embedding: MatrixShape | None = None
    tables = [op.table for op in graph.ops if isinstance(op, Embed)]
    for op in graph.ops:
        if not isinstance(op, Linear):
            continue
        if op.layer < 0:
            head = _shape(op.weight, "head")
            if tables[0] is not op.weight:
                embedding = _shape(tables[0], "embedding")
            continue
        if op.weight.low_rank:
            layers[op.layer].append(_shape(op.weight.low_rank.a, op.weight.low_rank.a.name))
        layers[op.layer].append(_shape(op.weight, op.weight.name))
    assert head is not None
    return ModelShape(
        graph.vocab, graph.hidden, graph.ffn, graph.heads, graph.kv_heads, graph.head_dim,
        graph.num_layers, graph.context, piece_bytes, tuple(map(tuple, layers)), head, embedding,
    )  # fmt: skip


def shapes_of_config(
    config: LlamaConfig,
    options: QuantOptions,
    context: int,
    piece_bytes: int,
    ranks: dict[str, int],
) -> ModelShape:
    """The shapes a model will have, before any weight is touched.

    ``ranks``: slot -> rank of its side path, equal in all layers.
    """
    c, o = config, options
    grouped = o.group is not None or o.asymmetric
    qkv = (c.num_heads + 2 * c.num_kv_heads) * c.head_dim
    sizes = {
        "qkv": (qkv, c.hidden_size),
        "o": (c.hidden_size, c.num_heads * c.head_dim),
        "gate_up": (2 * c.intermediate_size, c.hidden_size),
        "down": (c.hidden_size, c.intermediate_size),
    }

    def layer(i: int) -> tuple[MatrixShape, ...]:
        out: list[MatrixShape] = []
        for slot, (rows, k) in sizes.items():
            name, rank = f"layer{i}.{slot}", ranks.get(slot, 0)
            if rank:
                out.append(
                    MatrixShape(f"{name}.a", rank, k, 8, segment_size(k, None), False, False)
                )
            out.append(
                MatrixShape(
                    name, padded_rows(slot, rows), k, o.bits, segment_size(k, o.group), grouped,
                    o.asymmetric, rank,
                )
            )  # fmt: skip
        return tuple(out)

    group = o.group if o.head_bits == 4 else None
    head = MatrixShape(
        "head", c.vocab_size, c.hidden_size, o.head_bits, segment_size(c.hidden_size, group),
        group is not None, False,
    )  # fmt: skip
    embedding = None
    if not c.tie_embeddings:
        embedding = MatrixShape("embedding", *vars_of(head))
    return ModelShape(
        c.vocab_size, c.hidden_size, c.intermediate_size, c.num_heads, c.num_kv_heads, c.head_dim,
        c.num_layers, context, piece_bytes, tuple(layer(i) for i in range(c.num_layers)), head,
        embedding,
    )  # fmt: skip


def vars_of(m: MatrixShape) -> tuple[int, int, int, int, bool, bool]:
    """The sizes of a shape without its name."""
    return m.rows, m.k, m.bits, m.seg, m.grouped, m.asymmetric
