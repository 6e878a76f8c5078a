"""Choices of a budget (layers, widths, bit-widths), and the best one within a number of bytes.

:class:`Space` counts packed bytes; :mod:`shrinkc.compression.compiled_choices` counts those of the compiled program.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from shrinkc.compression.facts import FLOAT_BYTES, vector_values
from shrinkc.compression.knapsack import Option, knapsack
from shrinkc.compression.recipe_settings import CUTS
from shrinkc.compression.sensitivity import MODULES, Costs, LayerSensitivity
from shrinkc.compression.stages import gptq
from shrinkc.compression.stages.gptq import WIDTHS
from shrinkc.core.errors import BadRecipe, BudgetUnreachable, DoesNotFit
from shrinkc.core.progress import Update
from shrinkc.importer import LlamaConfig
from shrinkc.model import NAMES, SLOT_MODULES

EMBEDDING_WIDTHS = tuple(bits for bits in gptq.EMBEDDING_WIDTHS if bits < 16)  # 16: not quantised
KEPT_SHARES = (1.0, 0.875, 0.75, 0.625, 0.5)  # of the FFN channels
MOST_REMOVED = 0.5  # of the layers
PROTECT_FIRST, PROTECT_LAST = 1, 1  # removing these breaks the model, whatever a measurement says
FFN_MULTIPLE = 64
GROUPS = (64, 32, 16)
# modules that are stored as one matrix on a chip, and so share a width
FUSED = {slot: tuple(NAMES[part] for part in parts) for slot, parts in SLOT_MODULES.items()}


@dataclass(frozen=True)
class Choice:
    """``bits``: module (of the layers that stay, old numbers) -> width; ``loss``: predicted increase
    in nats per token; ``bytes``: as the :class:`Space` counts them."""

    removed: tuple[int, ...]
    ffn: int
    kv_groups: int
    group_size: int
    embedding_bits: int
    bits: dict[tuple[int, str], int]
    bytes: int
    loss: float


@dataclass(frozen=True)
class Sizes:
    """Bytes of a model of given layers, FFN channels and KV heads, without embedding and LM head.

    ``units``: matrix of a layer -> width -> bytes; ``other``: everything without a width.
    """

    group_size: int
    units: dict[str, dict[int, int]]
    other: int


class Space:
    """The choices for a model, and their bytes, counted like :attr:`ModelFacts.packed_bytes`.

    ``units``: matrix of a layer that gets one width -> its modules.
    """

    counted = "packed_bytes"
    units: Mapping[str, tuple[str, ...]] = {module: (module,) for module in MODULES}

    def __init__(
        self,
        config: LlamaConfig,
        settings: gptq.Settings,
        rank: int,
        cut: Collection[str] = CUTS,
    ) -> None:
        """Initialise; ``rank``: of low-rank adapters, ``cut``: what may be removed."""
        self.config, self.settings, self.rank, self.cut = config, settings, rank, cut

    def ffns(self) -> list[int]:
        """Return the possible numbers of FFN channels; the first one keeps all."""
        whole = self.config.intermediate_size
        found = [whole]
        for share in KEPT_SHARES[1:] if "ffn" in self.cut else ():
            kept = round(share * whole / FFN_MULTIPLE) * FFN_MULTIPLE
            if 0 < kept < found[-1]:
                found.append(kept)
        return found

    def kv_groups(self) -> range:
        """Return the numbers of KV heads that may be removed: 0 or 1, since the removal of one is measured."""
        return range(min(2 if "kv_heads" in self.cut else 1, self.config.num_kv_heads))

    def removals(self) -> range:
        """Return the numbers of layers that may be removed."""
        count = self.config.num_layers
        free = count - PROTECT_FIRST - PROTECT_LAST if "layers" in self.cut else 0
        return range(max(0, min(free, int(MOST_REMOVED * count))) + 1)

    def narrowed(self, ffn: int, kv_groups: int) -> LlamaConfig:
        c = self.config
        heads = c.num_kv_heads - kv_groups
        return replace(
            c, intermediate_size=ffn, num_kv_heads=heads,
            num_heads=heads * (c.num_heads // c.num_kv_heads),
        )  # fmt: skip

    def group_size(self, config: LlamaConfig) -> int | None:
        """Return the recipe's (first) group size if it divides all inputs, else the largest that does, or None."""
        sizes = (config.hidden_size, config.intermediate_size, config.num_heads * config.head_dim)
        wanted = gptq.as_tuple(self.settings.group_size)
        options = [*wanted, *(g for g in GROUPS if -1 in wanted or g < min(wanted))]
        return next((g for g in options if g == -1 or all(s % g == 0 for s in sizes)), None)

    def matrices(self, config: LlamaConfig, group_size: int) -> dict[str, dict[int, int]]:
        """Return matrix of one layer -> width -> bytes, low-rank adapter included."""
        shapes = gptq.module_shapes(replace(config, num_layers=1))
        s = self.settings
        return {
            name.removeprefix(gptq.LAYER.format(0)): {
                bits: gptq.matrix_bytes(
                    n, k, bits=bits, group_size=group_size, sym=s.sym, desc_act=s.desc_act
                )
                + 2 * self.rank * (n + k)
                for bits in WIDTHS
                if n * bits % 32 == 0 and k * bits % 32 == 0
            }
            for name, (n, k) in shapes.items()
        }

    def embeddings(self) -> dict[int, int]:
        """Return width -> bytes of embedding and LM head."""
        c = self.config
        count = 1 if c.tie_embeddings else 2
        return {
            bits: count
            * gptq.embedding_bytes(c.vocab_size, c.hidden_size, bits, self.embedding_group_size())
            for bits in EMBEDDING_WIDTHS
        }

    def embedding_group_size(self) -> int:
        """Return the recipe's group size if it divides the hidden size, else the largest that does."""
        options = (*self.settings.embedding_group_sizes, 64, 32, 16, 8)
        return next((g for g in options if self.config.hidden_size % g == 0), 1)

    def other(self, config: LlamaConfig, group_size: int) -> int:
        """Return the bytes that do not depend on widths: RMSNorm weights and biases."""
        return FLOAT_BYTES * vector_values(config)

    def sizes(self, layers: int, ffn: int, kv_groups: int) -> Sizes | None:
        """Return the bytes of a model with these sizes; None if GPTQ cannot store it.

        Raises DoesNotFit if no bit-widths make it fit.
        """
        config = replace(self.narrowed(ffn, kv_groups), num_layers=layers)
        group_size = self.group_size(config)
        if group_size is None:
            return None
        units = self.matrices(config, group_size)
        return (
            Sizes(group_size, units, self.other(config, group_size))
            if all(units.values())
            else None
        )

    def smallest(self) -> Choice:
        """Return the choice with the fewest bytes, without a loss.  Raises BudgetUnreachable or BadRecipe."""
        left = self.config.num_layers - self.removals()[-1]
        removed = tuple(range(PROTECT_FIRST, PROTECT_FIRST + self.removals()[-1]))
        kept = [i for i in range(self.config.num_layers) if i not in removed]
        embedding_bits, embedding_bytes = min(self.embeddings().items(), key=lambda size: size[1])
        found: list[Choice] = []
        refused: DoesNotFit | None = None
        for ffn, kv in product(self.ffns(), self.kv_groups()):
            try:
                sizes = self.sizes(left, ffn, kv)
            except DoesNotFit as error:
                refused = error
                continue
            if sizes is None:
                continue
            least = {u: min(of.items(), key=lambda size: size[1]) for u, of in sizes.units.items()}
            bits = {(i, m): least[u][0] for i in kept for u, ms in self.units.items() for m in ms}
            layer = sum(size for _, size in least.values())
            total = left * layer + sizes.other + embedding_bytes
            found.append(
                Choice(removed, ffn, kv, sizes.group_size, embedding_bits, bits, total, math.nan)
            )
        if not found and refused is not None:
            raise BudgetUnreachable(
                f"even the smallest choice does not fit. {refused.message}",
                "give a smaller model.",
            )
        if not found:
            raise BadRecipe(
                "[budget] finds no groups and widths that GPTQ can store this model's matrices in.",
                "inputs have to be multiples of 16, unless gptq.group_size = -1, and outputs of 4.",
            )
        return min(found, key=lambda c: c.bytes)

    def least(self) -> int:
        """Return the bytes of the smallest possible model."""
        return self.smallest().bytes

    def check(self, budget: int) -> None:
        """Raise BudgetUnreachable if the smallest model is larger than the budget."""
        least = self.least()
        if least > budget:
            raise BudgetUnreachable(
                f"{budget} bytes are out of reach: the least is {least} bytes, with "
                f"{self._fewest()}{min(WIDTHS)} bit weights and {min(EMBEDDING_WIDTHS)} bit embeddings.",
                f"allow at least {least} bytes, or give a smaller model.",
            )

    def _fewest(self) -> str:
        halves = {"layers": "half of the layers, ", "ffn": "half of the FFN, "}
        return "".join(text for key, text in halves.items() if key in self.cut)

    def choose(self, costs: Costs, budget: int, update: Update) -> Choice:
        """Return the choice with the least predicted loss within ``budget`` bytes; see :func:`best`."""
        return best(self, costs, budget, update)


def best(space: Space, s: Costs, budget: int, update: Update) -> Choice:
    """Return the choice with the least predicted loss within ``budget`` bytes.

    For every number of layers, FFN width and number of KV heads, the bit-widths are a knapsack problem with one
    choice per matrix, solved exactly.  Ties go to the smaller model.
    """
    count = len(s.layers)
    order = sorted(
        range(PROTECT_FIRST, count - PROTECT_LAST), key=lambda i: (s.layers[i].removed, i)
    )
    embeddings = space.embeddings()
    found: list[Choice] = []
    grid = list(product(space.removals(), space.ffns(), space.kv_groups()))
    for number, (removed_count, ffn, kv) in enumerate(grid):
        update(number, len(grid))
        try:
            sizes = space.sizes(count - removed_count, ffn, kv)
        except DoesNotFit:
            continue
        if sizes is None:
            continue
        removed = tuple(sorted(order[:removed_count]))
        kept = [i for i in range(count) if i not in removed]
        fixed = sum(max(0.0, s.layers[i].removed) for i in removed)
        for i in kept:
            fixed += narrow_loss(s.layers[i], 1 - ffn / space.config.intermediate_size)
            fixed += max(0.0, s.layers[i].kv_group or 0.0) * kv
        if found and fixed >= min(c.loss for c in found):
            continue  # already worse, whatever the widths
        names = [(i, u) for i in kept for u in space.units]
        items = [_options(sizes.units[u], _losses(s.layers[i], space.units[u])) for i, u in names]
        items.append(_options(embeddings, monotonic(s.embedding)))
        picked = knapsack(items, budget - sizes.other)
        if picked is None:
            continue
        total = sum(items[n][p][1] for n, p in enumerate(picked))
        *widths, embedding_bits = (items[n][p][0] for n, p in enumerate(picked))
        loss = fixed + sum(items[n][p][2] for n, p in enumerate(picked))
        chosen = zip(names, widths, strict=True)
        bits = {(i, module): width for (i, u), width in chosen for module in space.units[u]}
        total += sizes.other
        found.append(Choice(removed, ffn, kv, sizes.group_size, embedding_bits, bits, total, loss))
    if not found:
        raise BudgetUnreachable(
            f"{budget} bytes are out of reach: the least is {space.least()} bytes.",
            f"allow at least {space.least()} bytes, or give a smaller model.",
        )
    return min(found, key=lambda c: (c.loss, c.bytes))


def _options(sizes: Mapping[int, int], losses: Mapping[int, float]) -> list[Option]:
    return [(bits, size, losses[bits]) for bits, size in sizes.items()]


def _losses(layer: LayerSensitivity, modules: Sequence[str]) -> dict[int, float]:
    """Return bit-width -> increase in loss with all of ``modules`` at that width."""
    each = [monotonic(layer.modules[module]) for module in modules]
    return {bits: sum(losses[bits] for losses in each) for bits in WIDTHS}


def monotonic(measured: Mapping[int, float]) -> dict[int, float]:
    """Return bit-width -> increase in loss, monotonic in the bits and not negative: deviations are noise."""
    out, worst = {}, 0.0
    for bits in sorted(measured, reverse=True):
        worst = max(worst, measured[bits])
        out[bits] = worst
    return out


def narrow_loss(layer: LayerSensitivity, share: float) -> float:
    """Interpolate the increase in loss without ``share`` of the FFN channels between the measured shares."""
    points = sorted({0.0: 0.0, **layer.ffn}.items())
    return float(np.interp(share, [x for x, _ in points], [max(0.0, y) for _, y in points]))


def gptq_of(choice: Choice, config: LlamaConfig, settings: gptq.Settings) -> gptq.Settings:
    """Return settings with the most common width as default, and overrides with the layers' new numbers."""
    kept = [i for i in range(config.num_layers) if i not in choice.removed]
    number = {old: new for new, old in enumerate(kept)}
    widths = list(choice.bits.values())
    common = max(sorted(set(widths)), key=widths.count)
    layers: dict[tuple[str, int], list[int]] = {}
    for (layer, module), bits in choice.bits.items():
        if bits != common:
            layers.setdefault((module, bits), []).append(number[layer])
    modules: dict[str, gptq.Override] = {}
    for (module, bits), numbers in sorted(layers.items()):
        every = len(numbers) == len(kept)
        place = "" if every else rf"layers\.({'|'.join(map(str, sorted(numbers)))})\."
        modules[place + module.replace(".", r"\.")] = {"bits": bits}
    space = Space(config, settings, 0)
    return replace(
        settings,
        bits=common,
        group_size=choice.group_size,
        modules=modules,
        embeddings=gptq.EmbeddingFormat(
            bits=choice.embedding_bits, group_size=space.embedding_group_size()
        ),
    )
