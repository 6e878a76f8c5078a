"""Choose layers, widths and bit-widths together, so that a model takes no more than so many bytes.

Of all choices within the budget it is the one with the least predicted cost: the sum of the
divergences that :mod:`shrinkc.compression.sensitivity` measured one by one.  Changes add up better when they are
small; two layers that go together, or a narrow layer at few bits, may cost more than the sum says.
What later stages win back (LoRA, EoRA) is not in the prediction.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from shrinkc.compression.calibration import Calibration
from shrinkc.compression.facts import ModelFacts
from shrinkc.compression.recipe import Recipe, Stage
from shrinkc.compression.sensitivity import (
    FITTED,
    MODULES,
    Costs,
    LayerSensitivity,
    Sensitivity,
    measure,
)
from shrinkc.compression.stages import depth, gptq, width
from shrinkc.core.errors import BadRecipe, BudgetUnreachable
from shrinkc.core.progress import Reporter, Update
from shrinkc.importer import LlamaConfig
from shrinkc.targets import target_named

WIDTHS = (2, 3, 4, 8)
TABLE_WIDTHS = (4, 8)
KEPT_SHARES = (1.0, 0.875, 0.75, 0.625, 0.5)  # of the FFN channels
MOST_REMOVED = 0.5  # of the layers
PROTECT_FIRST, PROTECT_LAST = 1, 1  # without them nothing works, whatever one measurement says
FFN_MULTIPLE = 64
GROUPS = (64, 32, 16)
CONTEXT = 256  # positions whose keys and values the target has to hold as well
STEPS = 200_000  # of a budget, where the sizes have no larger common divisor
PROBED, PROBE_LENGTH = 2, 256  # windows of the sensitivities


@dataclass(frozen=True)
class Choice:
    """``bits``: module (of the layers that stay, old numbers) -> width; ``loss``: predicted growth
    in nats per token; ``bytes``: as :attr:`ModelFacts.packed_bytes` counts them."""

    removed: tuple[int, ...]
    ffn: int
    kv_groups: int
    group: int
    table_bits: int
    bits: dict[tuple[int, str], int]
    bytes: int
    loss: float


@dataclass(frozen=True)
class Decision:
    """The recipe with its concrete stages, and what there is to say about how it came about."""

    recipe: Recipe
    choice: Choice
    report: dict[str, Any] = field(default_factory=dict)

    def note(self) -> str:
        """The choice in one sentence."""
        r, c = self.report, self.choice
        widths = ", ".join(f"{count} at {bits}" for bits, count in r["matrices_at_bits"].items())
        removed = ", ".join(map(str, c.removed)) or "none"
        return (
            f"budget {r['budget_bytes']} bytes: {c.bytes} with layers {removed} removed, "
            f"{c.ffn} FFN channels, {c.kv_groups} KV heads less, matrices: {widths} bit, "
            f"embedding at {c.table_bits} bit; predicted loss {r['predicted_loss']:.3f} after "
            f"{r['baseline_loss']:.3f} ({r['prediction']})"
        )


def choose(
    recipe: Recipe,
    source: Path,
    facts: ModelFacts,
    calibration: Calibration,
    reporter: Reporter,
    scratch: Path,
) -> Recipe:
    """The recipe that :func:`decide` arrives at."""
    return decide(recipe, source, facts, calibration, reporter, scratch).recipe


def decide(
    recipe: Recipe,
    source: Path,
    facts: ModelFacts,
    calibration: Calibration,
    reporter: Reporter,
    scratch: Path,
) -> Decision:
    """Measures the model in ``source``, chooses, and makes stages of it.

    The recipe's own stages stay, with ``gptq`` narrowed to what was chosen; ``depth`` and
    ``width`` are the budget's to make.  ``scratch`` keeps measurements of an interrupted run.
    Raises BadRecipe, BudgetUnreachable with the least that can be reached, or what
    :func:`shrinkc.compression.sensitivity.measure` raises.
    """
    from shrinkc.checkpoints import load

    check_recipe(recipe, facts)
    budget = allowed_bytes(recipe, facts.config)
    settings = gptq_settings(recipe)
    rank = next((s.settings.rank for s in recipe.stages if s.kind == "eora"), 0)
    space = Space(facts.config, settings, rank)
    least = space.least()
    if least > budget:
        raise BudgetUnreachable(
            f"{budget} bytes are out of reach: the least is {least} bytes, with half of the "
            f"layers, half of the FFN, {min(WIDTHS)} bit weights and {min(TABLE_WIDTHS)} bit "
            "embeddings.",
            f"give at least target_bytes = {least}, or a smaller model.",
        )
    loaded = load(source, dtype=recipe.run.dtype)
    windows = calibration.windows(loaded.tokenizer)[:, :PROBE_LENGTH]
    probed = max(1, min(PROBED, len(windows) // 2))
    sensitivity = measure(
        loaded.model, windows[:probed], windows[probed : probed + FITTED],
        scratch / "sensitivity.jsonl", reporter,
    )  # fmt: skip
    with reporter.stage("budget") as update:
        choice = best(space, sensitivity.kl, budget, update)
    stages = stages_of(recipe, choice, facts.config, settings)
    return Decision(recipe.with_stages(stages), choice, _report(choice, budget, sensitivity, facts))


def check_recipe(recipe: Recipe, facts: ModelFacts) -> None:
    """BadRecipe for stages that a budget makes itself, and for a model that is quantised already."""
    taken = [s.name for s in recipe.stages if s.kind in ("depth", "width")]
    if taken:
        raise BadRecipe(
            f"[budget] chooses layers and widths; the recipe has {', '.join(taken)} as well.",
            "leave those stages out, or the budget.",
        )
    if len([s for s in recipe.stages if s.kind == "gptq"]) > 1:
        raise BadRecipe("[budget] allows one stage gptq.")
    if facts.quantized:
        raise BadRecipe("[budget] needs a float model; this one is quantised already.")


def allowed_bytes(recipe: Recipe, config: LlamaConfig) -> int:
    """What the model may take, of packed bytes.

    ``fit``: the memories on the target's chip, less what a program keeps in L2 beside weights:
    its own code and stacks, and 8-bit keys and values of CONTEXT positions.
    """
    budget = recipe.budget
    assert budget is not None
    if budget.bytes is not None:
        return budget.bytes
    assert budget.fit is not None
    target = target_named(budget.fit)
    cache = 2 * config.num_layers * config.num_kv_heads * config.head_dim * CONTEXT
    return target.wmem + max(0, target.l2 - target.l2_system - cache)


def gptq_settings(recipe: Recipe) -> gptq.Settings:
    """Those of the recipe; without any, asymmetric: few bits need it."""
    given = next((s.settings for s in recipe.stages if s.kind == "gptq"), None)
    return gptq.Settings(group=64, sym=False) if given is None else given


class Space:
    """What can be chosen for a model, and what it takes."""

    def __init__(self, config: LlamaConfig, settings: gptq.Settings, rank: int) -> None:
        self.config, self.settings, self.rank = config, settings, rank

    def ffns(self) -> list[int]:
        """Numbers of FFN channels, all of them first."""
        whole = self.config.intermediate_size
        found = [whole]
        for share in KEPT_SHARES[1:]:
            kept = round(share * whole / FFN_MULTIPLE) * FFN_MULTIPLE
            if 0 < kept < found[-1]:
                found.append(kept)
        return found

    def kv_groups(self) -> range:
        """KV heads that may go: there is a measurement for one."""
        return range(min(2, self.config.num_kv_heads))

    def removals(self) -> range:
        """Numbers of layers that may go."""
        count = self.config.num_layers
        free = count - PROTECT_FIRST - PROTECT_LAST
        return range(max(0, min(free, int(MOST_REMOVED * count))) + 1)

    def narrowed(self, ffn: int, kv_groups: int) -> LlamaConfig:
        """The config with these widths."""
        c = self.config
        heads = c.num_kv_heads - kv_groups
        return replace(
            c, intermediate_size=ffn, num_kv_heads=heads,
            num_heads=heads * (c.num_heads // c.num_kv_heads),
        )  # fmt: skip

    def group(self, config: LlamaConfig) -> int | None:
        """The recipe's group (of several the first) if it divides all inputs, else the largest that does."""
        sizes = (config.hidden_size, config.intermediate_size, config.num_heads * config.head_dim)
        wanted = gptq.several(self.settings.group)
        options = [*wanted, *(g for g in GROUPS if -1 in wanted or g < min(wanted))]
        return next((g for g in options if g == -1 or all(s % g == 0 for s in sizes)), None)

    def matrices(self, config: LlamaConfig, group: int) -> dict[str, dict[int, int]]:
        """Matrix of one layer -> width -> bytes, with its side path."""
        shapes = gptq.module_shapes(replace(config, num_layers=1))
        s = self.settings
        return {
            name.removeprefix(gptq.LAYER.format(0)): {
                bits: gptq.matrix_bytes(
                    n, k, bits=bits, group=group, sym=s.sym, desc_act=s.desc_act
                )
                + 2 * self.rank * (n + k)
                for bits in WIDTHS
                if n * bits % 32 == 0 and k * bits % 32 == 0
            }
            for name, (n, k) in shapes.items()
        }

    def tables(self) -> dict[int, int]:
        """Width -> bytes of embedding and head."""
        c = self.config
        count = 1 if c.tie_embeddings else 2
        return {
            bits: count * gptq.table_bytes(c.vocab_size, c.hidden_size, bits, self.table_group())
            for bits in TABLE_WIDTHS
        }

    def table_group(self) -> int:
        """The recipe's group if it divides the hidden size, else the largest that does."""
        options = (*self.settings.table_groups, 64, 32, 16, 8)
        return next((g for g in options if self.config.hidden_size % g == 0), 1)

    def norms(self, layers: int) -> int:
        """Bytes of the gains."""
        return 2 * self.config.hidden_size * (2 * layers + 1)

    def least(self) -> int:
        """Bytes of the smallest model there is to choose."""
        totals = []
        for ffn, kv in product(self.ffns(), self.kv_groups()):
            config = self.narrowed(ffn, kv)
            group = self.group(config)
            if group is None:
                continue
            layer = sum(min(sizes.values()) for sizes in self.matrices(config, group).values())
            left = self.config.num_layers - self.removals()[-1]
            totals.append(left * layer + self.norms(left) + min(self.tables().values()))
        return min(totals)


def best(space: Space, s: Costs, budget: int, update: Update) -> Choice:
    """The choice with the least predicted loss within ``budget`` bytes.

    For every number of layers, FFN width and number of KV heads the bit-widths are a knapsack
    with a choice per matrix, solved exactly up to the rounding of STEPS.  Of equals, the smaller.
    """
    count = len(s.layers)
    order = sorted(
        range(PROTECT_FIRST, count - PROTECT_LAST), key=lambda i: (s.layers[i].removed, i)
    )
    tables = space.tables()
    found: list[Choice] = []
    grid = list(product(space.removals(), space.ffns(), space.kv_groups()))
    for number, (gone, ffn, kv) in enumerate(grid):
        update(number, len(grid))
        config = space.narrowed(ffn, kv)
        group = space.group(config)
        if group is None:
            continue
        removed = tuple(sorted(order[:gone]))
        kept = [i for i in range(count) if i not in removed]
        fixed = sum(max(0.0, s.layers[i].removed) for i in removed)
        for i in kept:
            fixed += narrow_loss(s.layers[i], 1 - ffn / space.config.intermediate_size)
            fixed += max(0.0, s.layers[i].kv_group or 0.0) * kv
        if found and fixed >= min(c.loss for c in found):
            continue  # already worse, whatever the widths
        matrices = space.matrices(config, group)
        names = [(i, m) for i in kept for m in MODULES]
        items = [_options(matrices[m], _by_width(s.layers[i].modules[m], WIDTHS)) for i, m in names]
        items.append(_options(tables, _by_width(s.embedding, TABLE_WIDTHS)))
        picked = knapsack(items, budget - space.norms(len(kept)))
        if picked is None:
            continue
        total = sum(items[n][p][1] for n, p in enumerate(picked))
        *widths, table = (items[n][p][0] for n, p in enumerate(picked))
        loss = fixed + sum(items[n][p][2] for n, p in enumerate(picked))
        found.append(
            Choice(
                removed, ffn, kv, group, table, dict(zip(names, widths, strict=True)),
                total + space.norms(len(kept)), loss,
            )
        )  # fmt: skip
    if not found:
        raise BudgetUnreachable(
            f"{budget} bytes are out of reach: the least is {space.least()} bytes.",
            f"give at least target_bytes = {space.least()}, or a smaller model.",
        )
    return min(found, key=lambda c: (c.loss, c.bytes))


Option = tuple[int, int, float]  # width, bytes, growth of the loss


def _options(sizes: Mapping[int, int], losses: Mapping[int, float]) -> list[Option]:
    return [(bits, size, losses[bits]) for bits, size in sizes.items()]


def _by_width(measured: Mapping[int, float], widths: Sequence[int]) -> dict[int, float]:
    """Growths that never shrink with fewer bits and are never negative: small ones are noise."""
    out, worst = {}, 0.0
    for bits in sorted(widths, reverse=True):
        worst = max(worst, measured[bits])
        out[bits] = worst
    return out


def narrow_loss(layer: LayerSensitivity, share: float) -> float:
    """Growth when ``share`` of the FFN channels go: straight lines between the measured shares."""
    points = sorted({0.0: 0.0, **layer.ffn}.items())
    return float(np.interp(share, [x for x, _ in points], [max(0.0, y) for _, y in points]))


def knapsack(items: Sequence[Sequence[Option]], budget: int) -> list[int] | None:
    """Index of one option per item: the least sum of growths within ``budget`` bytes, or None.

    Dynamic programming over bytes in units of their common divisor, or of budget / STEPS rounded
    up where that is larger; the bytes that rounding leaves over are then given to what gains most.
    """
    spare = budget - sum(min(size for _, size, _ in item) for item in items)
    if spare < 0:
        return None
    # only what is beyond each item's least has to be shared out
    extra = [[size - min(s for _, s, _ in item) for _, size, _ in item] for item in items]
    unit = math.gcd(*(e for item in extra for e in item)) or 1
    unit = max(unit, -(-spare // STEPS), 1)
    room = spare // unit
    best = np.zeros(room + 1)
    picks = []
    for item, more in zip(items, extra, strict=True):
        value = np.full(room + 1, np.inf)
        pick = np.zeros(room + 1, np.int8)
        for index, ((_, _, loss), e) in enumerate(zip(item, more, strict=True)):
            cost = -(-e // unit)
            if cost > room:
                continue
            candidate = best[: room + 1 - cost] + loss
            better = candidate < value[cost:]
            value[cost:][better] = candidate[better]
            pick[cost:][better] = index
        best = value
        picks.append(pick)
    at, chosen = room, []
    for more, pick in zip(reversed(extra), reversed(picks), strict=True):
        index = int(pick[at])
        chosen.append(index)
        at -= -(-more[index] // unit)
    chosen.reverse()
    return _filled(items, chosen, budget)


def _filled(items: Sequence[Sequence[Option]], chosen: list[int], budget: int) -> list[int]:
    """While something fits that lowers the loss, the one that does so most per byte is taken."""
    left = budget - sum(item[i][1] for item, i in zip(items, chosen, strict=True))

    def swaps() -> Iterator[tuple[float, int, int, int]]:
        for number, item in enumerate(items):
            _, size, loss = item[chosen[number]]
            for index, (_, other, lower) in enumerate(item):
                if lower < loss and other - size <= left:
                    more = other - size
                    yield (loss - lower) / max(more, 1e-9), number, index, more

    while (swap := max(swaps(), default=None)) is not None:
        _, number, index, more = swap
        chosen[number] = index
        left -= more
    return chosen


def stages_of(
    recipe: Recipe, choice: Choice, config: LlamaConfig, settings: gptq.Settings
) -> list[Stage]:
    """Depth and width first, then the recipe's stages, with one gptq before any eora."""
    stages = []
    if choice.removed:
        stages.append(Stage("depth", "depth", depth.Settings(layers=choice.removed)))
    narrow: dict[str, Any] = {}
    if choice.ffn < config.intermediate_size:
        narrow["ffn_keep"] = choice.ffn
    if choice.kv_groups:
        narrow["kv_groups"] = choice.kv_groups
    if narrow:
        stages.append(Stage("width", "width", width.Settings(**narrow)))
    chosen = _gptq_of(choice, config, settings)
    given = [s for s in recipe.stages if s.kind not in ("scales", "eora")]
    name = next((s.name for s in given if s.kind == "gptq"), "gptq")
    stages += [s for s in given if s.kind != "gptq"]
    stages.append(Stage(name, "gptq", chosen))
    return stages + [s for s in recipe.stages if s.kind in ("scales", "eora")]


def _gptq_of(choice: Choice, config: LlamaConfig, settings: gptq.Settings) -> gptq.Settings:
    """The commonest width for all, the others as overrides by the layers' new numbers."""
    kept = [i for i in range(config.num_layers) if i not in choice.removed]
    number = {old: new for new, old in enumerate(kept)}
    widths = list(choice.bits.values())
    common = max(sorted(set(widths)), key=widths.count)
    layers: dict[tuple[str, int], list[int]] = {}
    for (layer, module), bits in choice.bits.items():
        if bits != common:
            layers.setdefault((module, bits), []).append(number[layer])
    modules = {}
    for (module, bits), numbers in sorted(layers.items()):
        every = len(numbers) == len(kept)
        place = "" if every else rf"layers\.({'|'.join(map(str, sorted(numbers)))})\."
        modules[place + module.replace(".", r"\.")] = {"bits": bits}
    space = Space(config, settings, 0)
    return replace(
        settings,
        bits=common,
        group=choice.group,
        modules=modules,
        embeddings={"bits": choice.table_bits, "group": space.table_group()},
    )


def _report(
    choice: Choice, budget: int, sensitivity: Sensitivity, facts: ModelFacts
) -> dict[str, Any]:
    """JSON-able: what was chosen, from what."""
    widths = list(choice.bits.values())
    return {
        "budget_bytes": budget,
        "packed_bytes": choice.bytes,
        "baseline_loss": sensitivity.baseline,
        "predicted_loss": sensitivity.baseline + choice.loss,
        "prediction": "baseline and the sum of separately measured divergences: without interactions "
        "between changes, without what later stages recover",
        "removed_layers": list(choice.removed),
        "ffn_channels": [facts.config.intermediate_size, choice.ffn],
        "kv_groups_removed": choice.kv_groups,
        "group": choice.group,
        "embedding_bits": choice.table_bits,
        "matrices_at_bits": {bits: widths.count(bits) for bits in sorted(set(widths))},
        "sensitivity": sensitivity.to_json(),
    }
