"""``--fit``: a format for every float matrix, so that the model fits with the least estimated loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from shrinkc.compression.knapsack import Option, knapsack, largest_that_fits
from shrinkc.compression.width_costs import WidthCosts, costs_by_kind, inputs_of, measured_costs
from shrinkc.core.errors import DoesNotFit, QuantizeError
from shrinkc.driver.fitting import lacks_weights
from shrinkc.driver.passes import Draft, choose_engines
from shrinkc.driver.plan_request import PlanRequest
from shrinkc.engines import ON_CORES
from shrinkc.memory import planner
from shrinkc.memory.parts import align
from shrinkc.model import EMBEDDING, HEAD, SLOT_MODULES, module_name
from shrinkc.quantize import MatrixFormat
from shrinkc.schedule.shapes import ModelShape
from shrinkc.storage import WIDTHS, Offsets, format_of

# of weights that share a scale; 128 would be stored as two groups with the same scale, so take as many bytes as 64
GROUPS = (64, 48, 32, 24, 16)
TOKEN_MATRICES = ("head", "embedding")


@dataclass(frozen=True)
class ChosenWidth:
    """Format that ``--fit`` chose for a stored matrix.

    Attributes:
        name: The matrix, such as ``"layer3.qkv"``, ``"head"`` or an untied ``"embedding"``.
        bits: Bits per weight.
        group_size: Weights that share a scale.  None: one scale per output channel.
        asymmetric: Whether it has zero points.
        bytes: Stored bytes with scales, without a second layout.
        cost: Estimated increase in loss, in the unit of :class:`ChosenWidths`.
    """

    name: str
    bits: int
    group_size: int | None
    asymmetric: bool
    bytes: int
    cost: float

    @property
    def kind(self) -> str:
        """The name without the layer."""
        return self.name.rpartition(".")[2]

    @property
    def layer(self) -> int:
        """Number of the layer, -1 for embedding and LM head."""
        layer = self.name.rpartition(".")[0]
        return int(layer.removeprefix("layer")) if layer else -1

    @property
    def width(self) -> str:
        """The format in words."""
        scales = "per channel" if self.group_size is None else f"group size {self.group_size}"
        return f"{self.bits} bit {'asymmetric ' if self.asymmetric else ''}{scales}"


@dataclass(frozen=True)
class ChosenWidths:
    """Formats that ``--fit`` chose.

    Attributes:
        matrices: The format of every float matrix.
        unit: Unit of the costs.
        source: Where the costs come from.
    """

    matrices: tuple[ChosenWidth, ...]
    unit: str
    source: str

    @property
    def cost(self) -> float:
        """Sum of all estimated costs."""
        return sum(m.cost for m in self.matrices)

    def by_matrix(self) -> dict[str, str]:
        """Return matrix -> format in words."""
        return {m.name: m.width for m in self.matrices}

    def to_json(self) -> dict[str, object]:
        """Return a JSON object."""
        rows = [
            {
                "matrix": m.name, "bits": m.bits, "group_size": m.group_size, "asymmetric": m.asymmetric,
                "bytes": m.bytes, "cost": m.cost,
            }
            for m in self.matrices
        ]  # fmt: skip
        return {"unit": self.unit, "source": self.source, "cost": self.cost, "matrices": rows}


def choose_widths(draft: Draft, request: PlanRequest) -> tuple[Draft, ChosenWidths]:
    """Return the draft with the chosen formats, or with the smallest ones if nothing fits.

    Raises BadData for a file of sensitivities, and QuantizeError if no matrix is float.
    """
    config = draft.config
    costs = (
        costs_by_kind(config)
        if request.sensitivity is None
        else measured_costs(config, _file(request.sensitivity))
    )
    return _Search(draft, request, costs).chosen()


def smallest_widths(draft: Draft, request: PlanRequest) -> Draft:
    """Return the draft with the formats of the fewest bytes."""
    return _Search(draft, request, costs_by_kind(draft.config)).smallest()


def _file(path: Path) -> Path:
    """Return the file of a result, given itself or its directory."""
    return path / "sensitivity.json" if path.is_dir() else path


class _Search:
    """Search among formats of all float matrices.  Layers with equal weights have equal formats."""

    def __init__(self, draft: Draft, request: PlanRequest, costs: WidthCosts) -> None:
        self.draft, self.request, self.costs = draft, request, costs
        names = list(_float_matrices(draft))
        if not names:
            raise QuantizeError(
                "--fit can choose nothing: all matrices are quantised already.",
                "leave --fit out; for other widths, compile the float model that it was made from.",
            )
        self.members: dict[str, list[str]] = {}  # first of equal matrices -> all of them
        for name in names:
            self.members.setdefault(self._owner(name), []).append(name)
        self.formats = {name: list(self._candidates(name)) for name in self.members}
        sizes = self._sizes()
        self.items = [
            _worthwhile(
                (n, sizes[form][name], sum(costs.of(one, form) for one in equal))
                for n, form in enumerate(self.formats[name])
            )
            for name, equal in self.members.items()
        ]

    def _owner(self, name: str) -> str:
        """Return the first matrix with equal weights."""
        layer, _, slot = name.rpartition(".")
        if not layer or not self.draft.repeats:
            return name
        return f"layer{self.draft.repeats[int(layer.removeprefix('layer'))]}.{slot}"

    def _candidates(self, name: str) -> Iterator[MatrixFormat]:
        """Yield the formats that a matrix may have: what options say stays, all else is free."""
        r, k = self.request, inputs_of(self.draft.config, name)
        of_tokens = name in TOKEN_MATRICES
        fixed = r.embedding_bits if of_tokens else r.bits
        for bits in WIDTHS if fixed is None else (fixed,):
            groups: Sequence[int | None] = [None, *(g for g in GROUPS if k % g == 0)]
            if r.group_size is not None:
                groups = [r.group_size]
            if not format_of(bits).grouped_embeddings and (of_tokens or r.group_size is None):
                groups = [
                    None
                ]  # 8-bit weights are as good with one scale, and read 16-bit activations
            for group in groups:
                kinds = [Offsets.WIDE] if r.asymmetric else [Offsets.NONE]
                if not r.asymmetric and group is not None:
                    kinds.append(Offsets.WIDE)
                for offsets in [Offsets.NONE] if of_tokens else kinds:
                    form = MatrixFormat(bits, group, offsets)
                    if self._supported(name, form):
                        yield form

    def _supported(self, name: str, form: MatrixFormat) -> bool:
        try:
            self.costs.of(name, form)
        except QuantizeError:
            return False
        return True

    def _sizes(self) -> dict[MatrixFormat, dict[str, int]]:
        """Return format -> matrix -> stored bytes with an adapter, as the cores store it."""
        every = dict.fromkeys(form for forms in self.formats.values() for form in forms)
        found = {}
        for form in every:
            chosen = dict.fromkeys(_all_matrices(self.draft), form)
            sizes = _bytes_by_matrix(self._with(chosen).shape)
            found[form] = {
                name: sum(sizes[one] for one in equal) for name, equal in self.members.items()
            }
        return found

    def _with(self, chosen: Mapping[str, MatrixFormat]) -> Draft:
        """Return the draft with these formats, on the cores."""
        quant = replace(self.draft.quant, chosen=chosen)
        return replace(self.draft, quant=quant, choices=ON_CORES)

    def _draft(self, picked: Sequence[int]) -> Draft:
        """Return the draft with option ``picked[i]`` of each item."""
        chosen: dict[str, MatrixFormat] = {}
        for item, index, (owner, equal) in zip(
            self.items, picked, self.members.items(), strict=True
        ):
            chosen |= dict.fromkeys(equal, self.formats[owner][item[index][0]])
        return self._with(chosen)

    def _least(self, key: int) -> list[int]:
        """Return the options with the fewest bytes (1) or the least cost (2)."""
        return [min(range(len(item)), key=lambda i: item[i][key]) for item in self.items]

    def _bytes(self, picked: Sequence[int]) -> int:
        return sum(item[index][1] for item, index in zip(self.items, picked, strict=True))

    def smallest(self) -> Draft:
        return self._draft(self._least(1))

    def chosen(self) -> tuple[Draft, ChosenWidths]:
        best = self._least(2)
        if (missing := self._lacking(best)) is not None:
            smallest = self._least(1)
            most = self._bytes(best) - max(1, missing)
            found = None
            if most >= self._bytes(smallest):
                found = largest_that_fits(
                    self._choose, self._bytes, self._lacking, self._bytes(smallest), most
                )
            best = smallest if found is None else found
        return self._draft(best), self._result(best)

    def _choose(self, budget: int) -> list[int]:
        picked = knapsack(self.items, budget)
        assert picked is not None, "the budget is at least that of the smallest choice"
        return picked

    def _lacking(self, picked: Sequence[int]) -> int | None:
        """Return None if the choice fits, else the missing bytes, 0 if another memory than that of weights is full."""
        try:
            draft = choose_engines(self._draft(picked))
            planner.check_fits(draft.shape, draft.target, draft.l1)
        except DoesNotFit as error:
            return sum(lack.excess for lack in error.lacks if lacks_weights(lack))
        return None

    def _result(self, picked: Sequence[int]) -> ChosenWidths:
        found: dict[str, ChosenWidth] = {}
        sizes = _bytes_by_matrix(self._draft(picked).shape)
        for item, index, (owner, equal) in zip(
            self.items, picked, self.members.items(), strict=True
        ):
            form = self.formats[owner][item[index][0]]
            for name in equal:
                found[name] = ChosenWidth(
                    name, form.bits, form.group, form.asymmetric, sizes[name],
                    self.costs.of(name, form),
                )  # fmt: skip
        ordered = tuple(found[name] for name in _float_matrices(self.draft))
        return ChosenWidths(ordered, self.costs.unit, self.costs.source)


def _all_matrices(draft: Draft) -> Iterator[str]:
    """Yield the names of all stored matrices without adapters."""
    for i in range(draft.config.num_layers):
        for slot in SLOT_MODULES:
            yield f"layer{i}.{slot}"
    yield "head"
    if not draft.config.tie_embeddings:
        yield "embedding"


def _float_matrices(draft: Draft) -> Iterator[str]:
    """Yield the names of the stored matrices that the checkpoint has as floats."""
    known = draft.formats or {}
    tied = draft.config.tie_embeddings
    token_modules = {"head": EMBEDDING if tied else HEAD, "embedding": EMBEDDING}
    for name in _all_matrices(draft):
        layer, _, slot = name.rpartition(".")
        modules = (
            [module_name(int(layer.removeprefix("layer")), short) for short in SLOT_MODULES[slot]]
            if layer
            else [token_modules[name]]
        )
        if not known.keys() & set(modules):
            yield name


def _bytes_by_matrix(shape: ModelShape) -> dict[str, int]:
    """Return matrix -> aligned bytes, with matrix a of its adapter; 0 if it shares those of an earlier one."""
    found: dict[str, int] = {}
    repeated = dict(shape.shared)
    for m in shape.matrices:
        name = m.name.removesuffix(".a")
        found[name] = found.get(name, 0) + (0 if m.name in repeated else align(m.bytes))
    return found


def _worthwhile(options: Iterator[Option]) -> list[Option]:
    """Return the options without those that another one beats in bytes and cost, smallest first."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda o: (o[1], o[2])):
        if not kept or option[2] < kept[-1][2]:
            kept.append(option)
    return kept
