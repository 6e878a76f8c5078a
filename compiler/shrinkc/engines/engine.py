"""A compute engine multiplies matrices with activations.

The cores are one engine.  Others read matrices in place, in a layout of their own; the C twin of each defines
``sc_engine_<name>`` (sc_engines.h).  Engines are chosen before matrices are quantised, because the size of groups
decides integers; after that, where a matrix runs never changes one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from shrinkc.storage import WORD, MatrixShape, Offsets, StorageFormat, Store, format_of

CORES = "cores"


@dataclass(frozen=True)
class MatrixSpec:
    """Sizes of a matrix before an engine is chosen for it.

    ``rows`` are stored output channels (gate_up is padded).  ``group_size`` weights share a scale (None: one scale per
    output channel).  ``rank`` is that of its adapter.  ``embedding``: single rows are read from it as well.
    """

    name: str
    rows: int
    k: int
    bits: int
    group_size: int | None
    offsets: Offsets
    rank: int = 0
    embedding: bool = False

    @property
    def format(self) -> StorageFormat:
        return format_of(self.bits)

    @property
    def grouped(self) -> bool:
        """Whether groups have scales of their own."""
        return self.group_size is not None or self.offsets is not Offsets.NONE


class Remainders(IntEnum):
    """Jobs in which the cores multiply the last inputs of every row; sc_matrix.h has the same numbers."""

    NONE = 0
    ALL = 1
    EVERY_OTHER = 2  # the first, third, fifth ...

    def has(self, job: int) -> bool:
        return self is not Remainders.NONE and job % self == 0


Features = Mapping[str, float]
"""Name -> count, see costs.Work."""


@dataclass(frozen=True)
class Engine:
    """One engine, as plain data and functions.

    ``store``: how it lays out a matrix.  ``levels``: the memories from which it reads matrices in place; empty for the
    cores, which copy tiles into L1.  ``reads_rows``: its C twin can give single rows, as an embedding needs.

    ``legal(spec)``: None, or why it cannot run that matrix, as the end of a sentence that begins with the matrix.
    ``cut(k, group_size, bits)``: inputs per stored group, and the multiple to which a group (or the whole of a 16-bit
    vector) is padded.  ``cycles(spec, tokens)``: an estimate.
    ``features(shape, tokens, tiles)``: counts that the cost model is fitted to (costs.Work), without the engine's name;
    ``tiles`` are in row blocks, empty where the matrix is read in place.  None: ``cycles`` is used.
    ``costs_as``: the engine whose costs this one has for several tokens and for single rows.

    ``scratch(shape, tokens)``: bytes of L1 that it uses while it runs the matrix.  ``table``: bytes of L1 that its C
    twin keeps for every matrix of the model, if it runs any.  ``multipliers(shape)``: bytes of the row multipliers that
    the cores apply to its results; they are in L1 if there is room for those of all matrices.

    ``remainders(k, bits)``: in which of its jobs the cores multiply the last inputs of every row.
    ``second_layout``: it stores every matrix in a second layout for single-token decode.  ``taps(k, bits)``: taps of
    the 3x3 filter that a vector takes there; 0 without a second layout.
    ``any_pitch``: for several tokens it reads 16-bit vectors at any distance.
    ``sums(tokens)``: whether it adds the sums of low and high bytes, which the cores do otherwise.
    ``products``: it multiplies grouped matrices of the cores for several tokens at once (sc_products.c).
    ``chunks``: longer prefill chunks that suit it if engines run all matrices.
    ``unit``: the part of the chip, as people call it; ``mode``: its mode, if it has several.
    """

    name: str
    store: Store
    levels: tuple[str, ...]
    legal: Callable[[MatrixSpec], str | None]
    cut: Callable[[int, int | None, int], tuple[int, int]]
    cycles: Callable[[MatrixSpec, int], int]
    scratch: Callable[[MatrixShape, int], int] = lambda shape, tokens: 0
    table: int = 0
    multipliers: Callable[[MatrixShape], int] = lambda shape: 0
    reads_rows: bool = False
    features: Callable[[MatrixShape, int, Sequence[int]], Features] | None = None
    remainders: Callable[[int, int], Remainders] = lambda k, bits: Remainders.NONE
    second_layout: bool = False
    taps: Callable[[int, int], int] = lambda k, bits: 0
    any_pitch: bool = False
    sums: Callable[[int], bool] = lambda tokens: False
    products: bool = False
    chunks: tuple[int, ...] = ()
    costs_as: str = ""
    unit: str = "cores"
    mode: str = ""

    def __post_init__(self) -> None:
        assert self.name.isidentifier() and self.name == self.name.lower(), "it becomes a name in C"
        # the stream of tiles is the cores' own; no other engine takes part in it
        assert bool(self.levels) == (self.name != CORES), "the cores copy, others read in place"
        assert "flash" not in self.levels, "flash has no addresses to read from"

    @property
    def label(self) -> str:
        """Name in messages, such as "N-EUREKA 1x1"."""
        return f"{self.unit} {self.mode}".strip()

    def several_words(self, shape: MatrixShape) -> int:
        """Return the words of each token's vector in a pass of several tokens.

        They are fewer with a second layout, which only single-token decode uses and which needs zeros between bytes."""
        if not self.second_layout:
            return shape.x_words
        return 2 * -(-shape.k // WORD)

    def refusal(self, spec: MatrixSpec) -> str | None:
        """Return None, or the reason why this engine cannot run a matrix."""
        if self.name != CORES and spec.rank:
            return "has an adapter, which the cores add block by block"
        if spec.embedding and not self.reads_rows:
            return f"is the embedding as well, whose rows {self.label} cannot give"
        return self.legal(spec)

    def cut_of(self, k: int, group_size: int | None, grouped: bool, bits: int) -> tuple[int, int]:
        """Return (inputs per stored group, padding); the 16-bit inputs of per-channel matrices are one group."""
        group, pad = self.cut(k, group_size, bits)
        return (group if grouped else k), pad

    def shape(self, spec: MatrixSpec) -> MatrixShape:
        """Return the stored shape of a matrix that this engine runs."""
        group, pad = self.cut_of(spec.k, spec.group_size, spec.grouped, spec.bits)
        return MatrixShape(
            spec.name, spec.rows, spec.k, spec.bits, group, spec.grouped, spec.offsets, spec.rank,
            pad if pad != spec.format.inputs else 0, self.name, self.store,
        )  # fmt: skip

    def work(self, shape: MatrixShape, tokens: int, tiles: Sequence[int]) -> Features:
        """Return the features of a product; names of other engines' features begin with the engine."""
        if self.features is None:
            group_size = shape.group if shape.grouped else None
            spec = MatrixSpec(
                shape.name, shape.rows, shape.k, shape.bits, group_size, shape.offsets, shape.rank
            )
            found: Features = {"estimated": self.cycles(spec, tokens)}
        else:
            found = self.features(shape, tokens, tiles)
        name = self.costs_as if self.costs_as and tokens > 1 else self.name
        mark = "" if name == CORES else f"{name}."
        return {f"{mark}{name}": count for name, count in found.items()}
