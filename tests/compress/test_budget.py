"""A budget: the knapsack compared with exhaustive search, and the resulting stages."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from tests.compress.quantising import COARSE, STORIES, Recorder, quantised, write_text

from helpers.tiny_gptq import tiny_gptq
from shrinkc.compression import budget as budgets
from shrinkc.compression.budget import allowed_bytes, decide, space_of, stages_of
from shrinkc.compression.calibration import Calibration
from shrinkc.compression.choices import FUSED, Choice, Space, best, narrow_loss
from shrinkc.compression.compiled_choices import CompiledMatrices, OnTarget, compiled_bytes
from shrinkc.compression.facts import facts_of
from shrinkc.compression.knapsack import Option, knapsack
from shrinkc.compression.recipe import load_recipe, parse_recipe, parse_toml
from shrinkc.compression.run import compress
from shrinkc.compression.sensitivity import MODULES, NARROW, WIDTHS, Costs, LayerSensitivity
from shrinkc.compression.stages import gptq
from shrinkc.compression.stages.kinds import KINDS
from shrinkc.core.errors import BadRecipe, BudgetUnreachable
from shrinkc.core.progress import Silent
from shrinkc.driver.compiling import Compiled, compile_model
from shrinkc.driver.plan_request import PlanRequest
from shrinkc.importer import LlamaConfig, load_config, open_checkpoint
from shrinkc.memory.parts import align
from shrinkc.memory.planner import make_plan
from shrinkc.targets import CHIPS, KIB, MIB, PULP_OPEN, SIRACUSA, TARGETS, Target

pytestmark = pytest.mark.libraries("scipy")


def exhaustive(items: Sequence[Sequence[Option]], budget: int) -> float | None:
    """Return the least loss of all combinations within the budget."""
    fitting = [
        sum(loss for _, _, loss in picked)
        for picked in product(*items)
        if sum(size for _, size, _ in picked) <= budget
    ]
    return min(fitting, default=None)


def frontier(items: Sequence[Sequence[Option]], budget: int) -> float | None:
    """Return the least loss within the budget for many items, from the Pareto front of (bytes, loss)."""
    pairs = {0: 0.0}
    for item in items:
        grown: dict[int, float] = {}
        for size, loss in pairs.items():
            for _, more, cost in item:
                if size + more <= budget:
                    new = loss + cost
                    grown[size + more] = min(new, grown.get(size + more, math.inf))
        pairs, lowest = {}, math.inf
        for size in sorted(grown):
            if grown[size] < lowest:
                lowest = pairs[size] = grown[size]
    return min(pairs.values(), default=None)


@pytest.mark.parametrize("seed", range(60))
def test_knapsack_is_the_best_of_all_combinations(seed: int) -> None:
    rng = random.Random(seed)
    unit = rng.choice([1, 7, 48])
    items: list[list[Option]] = [
        [(bits, unit * bits * rng.randint(1, 9), rng.random() / bits) for bits in (2, 3, 4, 8)]
        for _ in range(rng.randint(1, 6))
    ]
    low = sum(min(s for _, s, _ in item) for item in items)
    high = sum(max(s for _, s, _ in item) for item in items)
    allowed = rng.randint(low - unit, high + unit)
    picked = knapsack(items, allowed)
    wanted = exhaustive(items, allowed)
    assert frontier(items, allowed) == (None if wanted is None else pytest.approx(wanted))
    if picked is None:
        assert wanted is None
        return
    assert sum(item[i][1] for item, i in zip(items, picked, strict=True)) <= allowed
    found = sum(item[i][2] for item, i in zip(items, picked, strict=True))
    assert found == pytest.approx(wanted)


@pytest.mark.parametrize("seed", range(10))
def test_equal_items_are_chosen_as_well_as_others(seed: int) -> None:
    """Equal items are counted by one variable; the first of them get the better options."""
    rng = random.Random(seed)
    kinds: list[list[Option]] = [
        [(bits, bits * rng.randint(1, 9), rng.random() / bits) for bits in (2, 3, 4, 8)]
        for _ in range(2)
    ]
    items = [kinds[n] for n in (0, 1, 0, 0, 1, 0)]
    low = sum(min(s for _, s, _ in item) for item in items)
    allowed = low + rng.randint(0, 60)
    picked = knapsack(items, allowed)
    assert picked is not None
    assert sum(item[i][1] for item, i in zip(items, picked, strict=True)) <= allowed
    losses = [item[i][2] for item, i in zip(items, picked, strict=True)]
    assert sum(losses) == pytest.approx(exhaustive(items, allowed))
    for equal in ((0, 2, 3, 5), (1, 4)):
        assert [losses[n] for n in equal] == sorted(losses[n] for n in equal)


def test_large_budgets_are_spent_to_the_byte() -> None:
    rng = random.Random(1)
    items: list[list[Option]] = [
        [(b, b * rng.randint(10**5, 10**6) + rng.randint(0, 99), rng.random() / b) for b in WIDTHS]
        for _ in range(8)
    ]
    allowed = sum(item[2][1] for item in items)  # most of them at 3 bit
    picked = knapsack(items, allowed)
    wanted = exhaustive(items, allowed)
    assert picked is not None
    assert wanted is not None
    found = sum(item[i][2] for item, i in zip(items, picked, strict=True))
    assert found == pytest.approx(wanted)


def some_costs(layers: int, seed: int, *, kv_heads: int) -> Costs:
    rng = random.Random(seed)

    def growing(scale: float) -> dict[int, float]:
        return {
            8: scale * 0.01 * rng.random(),
            4: scale,
            3: scale * 4,
            2: scale * (9 + rng.random()),
        }

    found = []
    for _ in range(layers):
        modules = {m: growing(0.01 * rng.random()) for m in MODULES}
        found.append(
            LayerSensitivity(
                removed=rng.random(),
                ffn={share: share * rng.random() for share in NARROW},
                kv_group=0.3 * rng.random() if kv_heads > 1 else None,
                bits={bits: sum(m[bits] for m in modules.values()) for bits in WIDTHS},
                modules=modules,
            )
        )
    return Costs(found, growing(0.005))


SMALL = replace(
    load_config(STORIES), num_layers=4, hidden_size=64, intermediate_size=256, num_heads=4,
    num_kv_heads=2, head_dim=16, vocab_size=128,
)  # fmt: skip


def best_of_all(space: Space, costs: Costs, allowed: int) -> float | None:
    """Return the best choice of all numbers of removed layers and all widths, by :func:`frontier`."""
    c, found = space.config, []
    order = sorted(range(1, c.num_layers - 1), key=lambda i: costs.layers[i].removed)
    for gone, ffn, kv in product(range(3), space.ffns(), (0, 1)):
        config = space.narrowed(ffn, kv)
        kept = [i for i in range(c.num_layers) if i not in order[:gone]]
        fixed = sum(costs.layers[i].removed for i in order[:gone])
        for i in kept:
            fixed += narrow_loss(costs.layers[i], 1 - ffn / c.intermediate_size)
            fixed += kv * (costs.layers[i].kv_group or 0.0)
        shapes = gptq.module_shapes(replace(config, num_layers=1))
        items: list[list[Option]] = []
        for i in kept:
            for name, (n, k) in shapes.items():
                module = name.removeprefix("model.layers.0.")
                group = space.group_size(config)
                assert group is not None
                items.append([
                    (b, gptq.matrix_bytes(n, k, bits=b, group_size=group, sym=False, desc_act=False),
                     costs.layers[i].modules[module][b])
                    for b in (2, 3, 4, 8)
                    if n * b % 32 == 0  # GPTQModel packs zero points into whole words
                ])  # fmt: skip
        items.append([
            (b, gptq.embedding_bytes(c.vocab_size, c.hidden_size, b, 64), costs.embedding[b])
            for b in (2, 3, 4, 8)
        ])  # fmt: skip
        norms = 2 * c.hidden_size * (2 * len(kept) + 1)
        loss = frontier(items, allowed - norms)
        if loss is not None:
            found.append(fixed + loss)
    return min(found, default=None)


@pytest.mark.parametrize("seed", range(6))
def test_the_choice_is_the_best_of_all(seed: int) -> None:
    space = Space(SMALL, gptq.Settings(group_size=64, sym=False), 0)
    costs = some_costs(4, seed, kv_heads=2)
    for share in (0.02, 0.15, 0.4, 0.9):
        least = space.least()
        allowed = round(least + share * 4 * least)
        choice = best(space, costs, allowed, lambda *_: None)
        assert choice.bytes <= allowed
        assert choice.loss == pytest.approx(best_of_all(space, costs, allowed), rel=1e-9)


def test_the_smallest_choice_is_possible() -> None:
    space = Space(SMALL, gptq.Settings(group_size=64, sym=False), 0)
    costs = some_costs(4, 0, kv_heads=2)
    assert best(space, costs, space.least(), lambda *_: None).bytes == space.least()
    with pytest.raises(BudgetUnreachable, match=str(space.least())):
        best(space, costs, space.least() - 1, lambda *_: None)


def test_more_bytes_never_cost_more() -> None:
    space = Space(SMALL, gptq.Settings(group_size=64, sym=False), 0)
    costs = some_costs(4, 3, kv_heads=2)
    losses = [
        best(space, costs, space.least() + step * 20_000, lambda *_: None).loss for step in range(9)
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[-1]


def test_noise_does_not_favour_fewer_bits() -> None:
    """A measurement in which fewer bits are better than more bits is no reason to choose them."""
    space = Space(SMALL, gptq.Settings(group_size=64, sym=False), 0)
    costs = some_costs(4, 0, kv_heads=2)
    costs.layers[1].modules["mlp.up_proj"].update({8: 0.02, 4: -0.5, 3: -0.5, 2: 5.0})
    choice = best(space, costs, 10**9, lambda *_: None)
    assert set(choice.bits.values()) <= {4, 3, 8}
    assert choice.loss >= 0.02


def test_only_bits_are_chosen_if_nothing_may_be_cut() -> None:
    settings = gptq.Settings(group_size=64, sym=False)
    whole = Space(SMALL, settings, 0, cut=())
    costs = some_costs(4, 0, kv_heads=2)
    choice = best(whole, costs, whole.least(), lambda *_: None)
    assert (choice.removed, choice.ffn, choice.kv_groups) == ((), SMALL.intermediate_size, 0)
    assert choice.bytes == whole.least() > Space(SMALL, settings, 0).least()
    with pytest.raises(BudgetUnreachable, match="with 2 bit weights"):
        whole.check(whole.least() - 1)
    with pytest.raises(BadRecipe, match="cut = 'heads'; layers, ffn, kv_heads are allowed"):
        parse_recipe({"budget": {"share": 0.5, "cut": ["heads"]}})


def test_a_share_counts_the_matrices_as_they_are_compiled() -> None:
    """The bytes of a choice are those of the stored matrices in the plan of that model."""
    config = load_config(STORIES)
    recipe = parse_recipe({"budget": {"share": 0.3, "cut": []}})
    settings = budgets.gptq_settings(recipe)
    space = budgets.space_of(recipe, STORIES, config, settings)
    assert isinstance(space, CompiledMatrices)
    choice = best(space, some_costs(5, 7, kv_heads=2), round(1.3 * space.least()), lambda *_: None)
    stored = sum(align(m.bytes) for m in space.shape_of(choice).stored)
    assert choice.bytes == stored + space.other(config, choice.group_size)
    assert len(set(choice.bits.values())) > 1


@pytest.mark.parametrize("rank", [0, 4])
def test_stages_make_the_bytes_and_widths_that_were_chosen(rank: int) -> None:
    config = load_config(STORIES)
    facts = facts_of(STORIES)
    tables: dict[str, dict[str, object]] = {"budget": {"target_bytes": 1}}
    if rank:
        tables |= {"eora": {"rank": rank}}
    recipe = parse_recipe(tables)
    settings = budgets.gptq_settings(recipe)
    space = Space(config, settings, rank)
    costs = some_costs(5, 7, kv_heads=2)
    for share in (0.0, 0.3, 1.5):
        choice = best(space, costs, round(space.least() * (1 + share)), lambda *_: None)
        stages = stages_of(recipe, choice, config, settings)
        now = facts
        for stage in stages:
            kind = KINDS[stage.kind]
            assert not kind.preflight(stage.settings, now)
            now = kind.predict(stage.settings, now)
        assert now.packed_bytes == choice.bytes
        kept = [i for i in range(5) if i not in choice.removed]
        chosen = next(s.settings for s in stages if s.kind == "gptq")
        for new, old in enumerate(kept):
            for name in MODULES:
                wanted = choice.bits[old, name]
                assert chosen.of(f"model.layers.{new}.{name}")["bits"] == wanted


def test_the_stages_are_in_order_and_survive_a_recipe_file() -> None:
    recipe = parse_recipe(
        {
            "budget": {"target_bytes": "64MiB"},
            "gptq": {"group_size": 32, "damp": 0.1},
            "eora": {"rank": 4},
            "lora": {"text": "some.txt"},
        }
    )
    config = load_config(STORIES)
    settings = budgets.gptq_settings(recipe)
    space = Space(config, settings, 4)
    choice = best(space, some_costs(5, 1, kv_heads=2), space.least(), lambda *_: None)
    stages = stages_of(recipe, choice, config, settings)
    assert [s.kind for s in stages] == ["depth", "width", "lora", "gptq", "eora"]
    assert stages[3].settings.damp == 0.1
    written = recipe.with_stages(stages).to_toml()
    again = parse_toml(written, name="recipe")
    assert [s.settings for s in again.stages] == [s.settings for s in stages]


def test_what_is_allowed() -> None:
    assert allowed_bytes(parse_recipe({"budget": {"target_bytes": "2MiB"}}), 1) == 2 << 20
    assert allowed_bytes(parse_recipe({"budget": {"share": 0.25}}), 1000) == 500
    chip = SIRACUSA.room("wmem") + SIRACUSA.l2
    for given, flash in (
        ({}, 512 * MIB),
        ({"flash_bytes": 0}, 0),
        ({"flash_bytes": "8MiB"}, 8 * MIB),
    ):
        recipe = parse_recipe({"budget": {"fit": "siracusa", **given}})
        assert allowed_bytes(recipe, 1) == chip + flash
    only_l2 = parse_recipe({"budget": {"fit": "pulp-open", "flash_bytes": 0}})
    assert allowed_bytes(only_l2, 1) == PULP_OPEN.l2
    with pytest.raises(BadRecipe, match="flash_bytes needs fit"):
        parse_recipe({"budget": {"target_bytes": "2MiB", "flash_bytes": 0}})
    with pytest.raises(BadRecipe, match="flash_bytes = 'much' is no size"):
        parse_recipe({"budget": {"fit": "siracusa", "flash_bytes": "much"}})
    for name in TARGETS.keys() - CHIPS:
        with pytest.raises(BadRecipe, match=f"fit = '{name}'; siracusa, pulp-open are allowed"):
            parse_recipe({"budget": {"fit": name}})


def test_a_chip_without_weight_memory() -> None:
    """The choice is planned in L2 only; a choice that does not fit is refused with its numbers."""
    small = PULP_OPEN.with_room(l2=240 * KIB)
    space, costs = on_chip(SMALL, small), some_costs(4, 2, kv_heads=2)
    choice = space.choose(costs, small.l2, lambda *_: None)
    plan = make_plan(space.shape_of(choice), small)
    assert choice.bytes == plan.used["l2"] <= small.l2 and plan.used["flash"] == 0
    whole = on_chip(SMALL, PULP_OPEN)
    least = whole.planned(whole.smallest())
    assert least is not None
    # with less L2, the KV cache moves to another memory
    low, high = 0, least.bytes
    while high - low > 16:
        middle = (low + high) // 32 * 16
        try:
            on_chip(SMALL, PULP_OPEN.with_room(l2=middle)).check(0)
            high = middle
        except BudgetUnreachable:
            low = middle
    with pytest.raises(BudgetUnreachable, match=r"pulp-open does not hold .* have \d+ in L2\."):
        on_chip(SMALL, PULP_OPEN.with_room(l2=high - 16)).check(0)


def on_chip(
    config: LlamaConfig, target: Target, *, rank: int = 0, pieces: int = 1000, **settings: Any
) -> OnTarget:
    return OnTarget(
        config, gptq.Settings(**{"sym": False} | settings), rank, target.with_room(flash=0), pieces
    )


def compiled(model: Path, out: Path) -> Compiled:
    request = PlanRequest(model)
    return compile_model(request, out, force=False, reporter=Silent())


@pytest.mark.parametrize(
    ("tables", "rank", "desc_act", "sym"),
    [(4, 0, False, False), (8, 3, True, False), (4, 2, False, True), (3, 0, True, False)],
)
def test_the_bytes_on_a_chip_are_those_of_the_compiled_program(
    tables: int, rank: int, desc_act: bool, sym: bool, tmp_path: Path
) -> None:
    """Bytes are those of every placement in plan.json and of everything else in L2, for a model with all widths."""
    widths = [dict(zip(FUSED, bits, strict=True)) for bits in ((2, 3, 4, 8), (8, 4, 3, 2))]
    bits = {(i, m): widths[i][slot] for i in (0, 1) for slot, ms in FUSED.items() for m in ms}
    tiny_gptq(
        tmp_path / "model", group=32, sym=sym, desc_act="shared" if desc_act else False, layers=2,
        module_bits={f"model.layers.{i}.{m}": b for (i, m), b in bits.items()},
        embedding_bits=tables, eora_rank=rank or None,
    )  # fmt: skip
    config = load_config(tmp_path / "model")
    recipe = parse_recipe({
        "budget": {"fit": "siracusa", "flash_bytes": 0},
        "gptq": {"group_size": 32, "sym": sym, "desc_act": desc_act, "embeddings": {"bits": 4, "group_size": 32}},
    } | ({"eora": {"rank": rank}} if rank else {}))  # fmt: skip
    space = space_of(recipe, tmp_path / "model", config, budgets.gptq_settings(recipe))
    choice = Choice((), config.intermediate_size, 0, 32, tables, bits, 0, 0.0)

    compiled(tmp_path / "model", tmp_path / "out")
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    placed: dict[str, int] = {}
    for p in plan["placements"]:
        name = p["name"].removesuffix(".a")
        placed[name] = placed.get(name, 0) + -(-p["bytes"] // 16) * 16
    sizes = space.sizes(2, config.intermediate_size, 0)
    assert sizes is not None
    counted = {f"layer{i}.{s}": sizes.units[s][widths[i][s]] for i in (0, 1) for s in FUSED}
    assert placed == counted | {"head": space.embeddings()[tables]}
    assert compiled_bytes(tmp_path / "model") == (None if rank else sum(placed.values()))
    assert isinstance(space, OnTarget)
    planned = space.planned(choice)
    assert planned is not None
    assert planned.bytes == plan["used"]["wmem"] + plan["used"]["l2"]
    assert planned.bytes == sum(counted.values()) + space.embeddings()[tables] + sizes.other


def test_modules_that_are_stored_together_share_a_width() -> None:
    """The choice is the best one; losses are sums over the modules."""
    space, costs = on_chip(SMALL, SIRACUSA), some_costs(4, 2, kv_heads=2)
    allowed = round(1.6 * space.least())
    choice = best(space, costs, allowed, lambda *_: None)
    assert choice.bytes <= allowed
    assert len(set(choice.bits.values())) > 1
    for (i, _), modules in product(choice.bits, FUSED.values()):
        assert len({choice.bits[i, m] for m in modules}) == 1
    losses = [costs.layers[i].modules[m][b] for (i, m), b in choice.bits.items()]
    losses += [max(0.0, costs.layers[i].removed) for i in choice.removed]
    share = 1 - choice.ffn / SMALL.intermediate_size
    kept = {i for i, _ in choice.bits}
    losses += [narrow_loss(costs.layers[i], share) for i in kept]
    losses += [choice.kv_groups * (costs.layers[i].kv_group or 0.0) for i in kept]
    assert choice.loss == pytest.approx(sum(losses) + costs.embedding[choice.embedding_bits])


@pytest.mark.parametrize(
    ("vocab", "wmem", "l2", "seed"),
    [
        (1024, 60, 140, 0),
        *(
            pytest.param(*memories, seed, marks=pytest.mark.slow)
            for memories in ((1024, 60, 140), (1024, 150, 140), (1024, 260, 140), (8192, 300, 200))
            for seed in (1, 2)
        ),
    ],
)
def test_what_is_chosen_for_a_chip_is_planned(vocab: int, wmem: int, l2: int, seed: int) -> None:
    """Matrices do not fill the memories exactly.  In the last cases, only weight memory can hold the embedding, which
    is placed after the layers, so that much of L2 stays empty."""
    target = SIRACUSA.with_room(wmem=wmem * KIB, l2=l2 * KIB)
    space = on_chip(replace(SMALL, vocab_size=vocab), target)
    costs = some_costs(4, seed, kv_heads=2)
    whole, least = target.room("wmem") + target.l2, space.least()
    choice = space.choose(costs, whole, lambda *_: None)
    assert space.planned(choice) == choice
    assert choice.bytes <= whole
    tried = [best(space, costs, at, lambda *_: None) for at in range(least, whole, whole // 50)]
    tried.sort(key=lambda c: c.loss)
    # the search tries several budgets, so another budget may give a slightly better choice
    assert choice.loss <= 1.05 * next(c.loss for c in tried if space.planned(c))


def test_flash_counts() -> None:
    """With flash, the choice is better than what the chip alone holds, and fills the flash."""
    chip = SIRACUSA.with_room(wmem=60 * KIB, l2=140 * KIB)
    costs = some_costs(4, 0, kv_heads=2)
    alone = on_chip(replace(SMALL, vocab_size=1024), chip)
    larger = OnTarget(alone.config, alone.settings, 0, chip.with_room(flash=64 * KIB), 1000)
    losses = []
    for space in (alone, larger):
        whole = sum(v.bytes for v in space.target.stored)
        choice = space.choose(costs, whole, lambda *_: None)
        assert space.planned(choice) == choice and choice.bytes <= whole
        losses.append(choice.loss)
    assert losses[1] < losses[0]
    used = make_plan(larger.shape_of(choice), larger.target).used
    assert used["flash"] > 48 * KIB
    assert choice.bytes == used["wmem"] + used["l2"] + used["flash"]


def test_a_chip_without_room_is_refused_with_need_and_have(tmp_path: Path) -> None:
    costs = some_costs(4, 0, kv_heads=2)
    whole = on_chip(SMALL, SIRACUSA)
    shape = whole.shape_of(whole.smallest())
    weights = sum(-(-m.bytes // 16) * 16 for m in shape.stored)
    beside = whole.smallest().bytes - weights
    fitting = SIRACUSA.with_room(wmem=weights, l2=beside)
    on_chip(SMALL, fitting).check(0)
    choice = on_chip(SMALL, fitting).choose(costs, weights + beside, lambda *_: None)
    assert choice.bytes == weights + beside
    with pytest.raises(BudgetUnreachable) as refusal:
        on_chip(SMALL, fitting.with_room(wmem=weights - 16)).check(0)
    assert f"need {weights} bytes" in refusal.value.message
    assert f"have {weights - 16} in weight memory and L2" in refusal.value.message
    # the embedding may be in weight memory too, so L2 lacks the bytes that both memories lack
    lacking = rf"have {weights - 16} in weight memory and L2, {weights} of them in weight memory"
    with pytest.raises(BudgetUnreachable, match=lacking):
        on_chip(SMALL, fitting.with_room(l2=beside - 16)).check(0)
    with pytest.raises(BudgetUnreachable, match=rf"L2: need \d+ bytes, have {beside - 32768}"):
        on_chip(SMALL, fitting.with_room(l2=beside - 32768)).check(0)
    with pytest.raises(BudgetUnreachable, match=r"L1: need \d+ bytes .*, have 4096"):
        on_chip(SMALL, SIRACUSA.with_room(l1=4096)).check(0)


def test_sizes_that_gptq_cannot_store_are_said() -> None:
    odd = replace(SMALL, hidden_size=104)
    for space in (Space(odd, gptq.Settings(group_size=64), 0), on_chip(odd, SIRACUSA)):
        with pytest.raises(BadRecipe, match="no groups and widths"):
            space.check(1 << 30)


def calibration(folder: Path) -> Calibration:
    return Calibration((write_text(folder),), 8, 64)


@pytest.mark.slow
@pytest.mark.libraries("torch", "transformers")
def test_decide_measures_and_reports(tmp_path: Path) -> None:
    recipe = parse_recipe({"budget": {"target_bytes": "300KiB"}})
    facts = facts_of(STORIES)
    decision = decide(recipe, STORIES, facts, calibration(tmp_path), Recorder(), tmp_path)
    report = json.loads(json.dumps(decision.report))
    assert report["packed_bytes"] <= 300 << 10
    assert report["packed_bytes"] > 0.95 * (300 << 10)
    assert report["baseline_loss"] < report["predicted_loss"] < report["baseline_loss"] + 1
    assert sum(report["matrices_at_bits"].values()) == 7 * (5 - len(report["removed_layers"]))
    assert decision.recipe.budget is None
    assert f"{report['packed_bytes']} with " in decision.note()
    # again, from the stored measurements
    state = (tmp_path / "sensitivity.jsonl").read_bytes()
    again = decide(recipe, STORIES, facts, calibration(tmp_path), Recorder(), tmp_path)
    assert again == decision
    assert (tmp_path / "sensitivity.jsonl").read_bytes() == state


@pytest.mark.slow
@pytest.mark.libraries("torch", "transformers", "gptqmodel", "peft")
def test_what_fit_chose_compiles_without_flash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All steps: vocabulary pruning, measurement, choice, quantisation and compilation for a chip with too little
    memory for the model at 4 bit."""
    small = SIRACUSA.with_room(wmem=260 * KIB, l2=104 * KIB)
    monkeypatch.setitem(TARGETS, "siracusa", small)
    recipe = parse_recipe({
        "calibration": {"text": [write_text(tmp_path)], "samples": 8, "length": 64},
        "budget": {"fit": "siracusa", "flash_bytes": 0},
        "vocabulary": {"keep": 448},
    })  # fmt: skip
    run = compress(str(STORIES), tmp_path / "run", recipe, reporter=Silent())
    again = compress(str(STORIES), tmp_path / "run", recipe, reporter=Silent())
    assert again.rows == run.rows and run.rows[1].name == "01-vocabulary"
    assert {row.vocabulary for row in run.rows[1:]} == {448}
    report = json.loads((tmp_path / "run" / "budget.json").read_text())["report"]
    assert len(report["matrices_at_bits"]) > 1

    program = compiled(run.final, tmp_path / "program")
    plan = json.loads((tmp_path / "program" / "plan.json").read_text())
    assert {p["level"] for p in plan["placements"]} <= {"wmem", "l2"}
    assert plan["used"]["flash"] == plan["stage_bytes"] == 0
    assert (plan["capacity"]["wmem"], plan["capacity"]["l2"]) == (small.room("wmem"), small.l2)
    assert all(plan["used"][level] <= plan["capacity"][level] for level in ("l1", "l2", "wmem"))
    used = plan["used"]["wmem"] + plan["used"]["l2"]
    assert used == report["program_bytes"] > 0.97 * report["budget_bytes"]
    stage = next(
        s for s in load_recipe(str(tmp_path / "run" / "recipe.toml")).stages if s.kind == "gptq"
    )
    assert open_checkpoint(run.final).formats == gptq.formats(
        stage.settings, program.prepared.config
    )


def test_out_of_reach_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    recipe = parse_recipe({"budget": {"target_bytes": "10KiB"}})
    facts = facts_of(STORIES)
    least = Space(facts.config, budgets.gptq_settings(recipe), 0).least()
    with pytest.raises(BudgetUnreachable) as refusal:
        decide(recipe, STORIES, facts, calibration(tmp_path), Recorder(), tmp_path)
    assert str(least) in refusal.value.message
    assert refusal.value.exit_code == 22
    assert not (tmp_path / "sensitivity.jsonl").exists()


@pytest.mark.slow
@pytest.mark.libraries("torch", "transformers")
def test_stages_that_a_budget_makes_itself(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    facts = facts_of(STORIES)
    recipe = parse_recipe({"budget": {"target_bytes": "1MiB"}, "depth": {"remove": 1}})
    with pytest.raises(BadRecipe, match="the recipe has depth as well"):
        decide(recipe, STORIES, facts, calibration(tmp_path), Recorder(), tmp_path)
    tables = {"budget": {"target_bytes": "1MiB"}, "gptq": {}, "vocabulary": {"keep": 400}}
    with pytest.raises(
        BadRecipe, match=r"needs the final embedding, but \[vocabulary\] would change it later"
    ):
        decide(parse_recipe(tables), STORIES, facts, calibration(tmp_path), Recorder(), tmp_path)
    small = quantised(tmp_path_factory, "coarse", COARSE)
    recipe = parse_recipe({"budget": {"target_bytes": "1MiB"}})
    with pytest.raises(BadRecipe, match="quantised already"):
        decide(recipe, small, facts_of(small), calibration(tmp_path), Recorder(), tmp_path)


def test_groups_that_divide_are_found() -> None:
    config: LlamaConfig = replace(SMALL, hidden_size=96, num_heads=6)
    space = Space(config, gptq.Settings(group_size=128, sym=False), 0)
    assert space.group_size(config) == 32
    assert space.group_size(replace(config, intermediate_size=176)) == 16
    assert space.group_size(replace(config, intermediate_size=100)) is None
    per_channel = Space(config, gptq.Settings(group_size=-1, sym=False), 0)
    assert per_channel.group_size(replace(config, intermediate_size=100)) == -1
