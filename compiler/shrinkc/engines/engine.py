"""What a compute engine is: what multiplies a matrix with activations, and what it asks for.

The cores are one.  Another one stands beside them: it reads matrices in place, in a store of its own,
and its C twin defines ``sc_engine_<name>`` (sc_engines.h).  What an engine asks for is settled before a
matrix is quantised, because segments decide numbers; where a matrix is run then never changes one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from shrinkc.storage import WORD, MatrixShape, Offsets, StorageFormat, Store, format_of

CORES = "cores"


@dataclass(frozen=True)
class MatrixSpec:
    """What is known of a matrix before an engine is chosen for it.

    ``rows`` are stored ones (gate_up is padded), ``group`` weights have a scale of their own (None:
    one per row), ``rank`` is that of its side path.  ``embedding``: rows are read from it as well.
    """

    name: str
    rows: int
    k: int
    bits: int
    group: int | None
    offsets: Offsets
    rank: int = 0
    embedding: bool = False

    @property
    def format(self) -> StorageFormat:
        return format_of(self.bits)

    @property
    def grouped(self) -> bool:
        """Whether segments have scales of their own."""
        return self.group is not None or self.offsets is not Offsets.NONE


class Tails(IntEnum):
    """Of which jobs the cores multiply the last inputs of every row; in C a number too (sc_model.h)."""

    NONE = 0
    ALL = 1
    EVERY_OTHER = 2  # the first, and every other one behind it

    def has(self, job: int) -> bool:
        return self is not Tails.NONE and job % self == 0


Features = Mapping[str, float]
"""Name -> count, see costs.Work."""


@dataclass(frozen=True)
class Engine:
    """One engine.

    ``store``: how it lays out a matrix.  ``levels``: the memories from which it reads one in place;
    none: tiles of it are copied into L1, as the cores have it.  ``reads_rows``: its C twin can give a
    row, as an embedding needs.

    ``legal(spec)``: None, or why it cannot run that matrix, as the end of a sentence that begins with
    the matrix.  ``cut(k, group, bits)``: inputs per segment of int8 activations, and the multiple to which
    a segment, or all of 16-bit ones, is padded: whole words of 4, and of the cores what the format stores
    together.  ``cycles(spec, tokens)``: an
    estimate for that many tokens at once.  ``scratch(shape, tokens)``: bytes of L1 that it works in, while it has
    the matrix alone.  ``table``: bytes of L1 that its C twin keeps for every matrix of the model, if it runs any.
    ``multipliers(shape)``: bytes of its rows' multipliers, which the cores read behind it, from L1 where that has
    room for those of all matrices.
    ``features(shape, tokens, tiles)``: what its cycles are proportional to, as the
    cost model is fitted to measurements (costs.Work; without the engine's name before them); tiles are
    in row blocks, none where the matrix is read in place.  None: its own estimate is all there is.
    ``tails(k, bits)``: which of its jobs have rows whose last inputs the cores multiply for it.
    ``copies``: it has every matrix twice, the second time for one token.  ``spread(k, bits)``: the taps that a vector
    takes there; 0: there is no copy.
    ``any_pitch``: of several tokens it reads 16-bit vectors however far they are apart.
    ``sums(tokens)``: whether of so many it adds up the sums of low and of high bytes, which else the cores do.
    ``products``: for the cores it multiplies segments that have scales, with several tokens at once (sc_products.c).
    ``chunks``: tokens of longer chunks that suit it where engines run all matrices.
    ``costs_as``: the engine that does with several tokens, and with rows that are read, what this one does, by name.
    ``unit``: the part of the chip, as people call it; ``mode``: how that is used, where it has several modes.
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
    tails: Callable[[int, int], Tails] = lambda k, bits: Tails.NONE
    copies: bool = False
    spread: Callable[[int, int], int] = lambda k, bits: 0
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
        """For people, such as "N-EUREKA 1x1"."""
        return f"{self.unit} {self.mode}".strip()

    def several_words(self, shape: MatrixShape) -> int:
        """Words of the vector that a matrix reads of each of several tokens: what its copy wants between low and high
        bytes one alone has."""
        if not self.copies:
            return shape.x_words
        return 2 * -(-shape.k // WORD)

    def refusal(self, spec: MatrixSpec) -> str | None:
        """None, or why this engine cannot run the matrix: what it says itself, and what holds for all
        that stand beside the cores."""
        if self.name != CORES and spec.rank:
            return "has a side path, which the cores add block by block"
        if spec.embedding and not self.reads_rows:
            return f"is the embedding as well, whose rows {self.label} cannot give"
        return self.legal(spec)

    def cut_of(self, k: int, group: int | None, grouped: bool, bits: int) -> tuple[int, int]:
        """Inputs per segment and the multiple to which it is padded: 16-bit activations, which
        matrices with one scale per row read, are one segment."""
        seg, pad = self.cut(k, group, bits)
        return (seg if grouped else k), pad

    def shape(self, spec: MatrixSpec) -> MatrixShape:
        """How the matrix is stored where this engine runs it."""
        seg, pad = self.cut_of(spec.k, spec.group, spec.grouped, spec.bits)
        return MatrixShape(
            spec.name, spec.rows, spec.k, spec.bits, seg, spec.grouped, spec.offsets, spec.rank,
            pad if pad != spec.format.inputs else 0, self.name, self.store,
        )  # fmt: skip

    def work(self, shape: MatrixShape, tokens: int, tiles: Sequence[int]) -> Features:
        """The features of a product, those of another engine than the cores with its name."""
        if self.features is None:
            group = shape.seg if shape.grouped else None
            spec = MatrixSpec(
                shape.name, shape.rows, shape.k, shape.bits, group, shape.offsets, shape.rank
            )
            found: Features = {"estimated": self.cycles(spec, tokens)}
        else:
            found = self.features(shape, tokens, tiles)
        name = self.costs_as if self.costs_as and tokens > 1 else self.name
        mark = "" if name == CORES else f"{name}."
        return {f"{mark}{name}": count for name, count in found.items()}
