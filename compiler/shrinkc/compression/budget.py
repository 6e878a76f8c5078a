"""Joint choice of layers, widths and bit-widths for a model of at most a number of bytes.

Among the choices within the budget (:mod:`shrinkc.compression.choices`) the one with the least predicted loss is
taken: the sum of the divergences that :mod:`shrinkc.compression.sensitivity` measured separately, or, if only bits are
chosen, that :mod:`shrinkc.compression.fisher` estimated.  The sum is more accurate for small changes; two removed
layers, or a narrow layer at few bits, may cost more.  The prediction does not include what later stages recover (LoRA,
reconstruction, EoRA).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from shrinkc.compression import fisher, sensitivity
from shrinkc.compression.calibration import Calibration
from shrinkc.compression.choices import Choice, Space, gptq_of
from shrinkc.compression.compiled_choices import CompiledMatrices, OnTarget
from shrinkc.compression.facts import FLOAT_BYTES, ModelFacts
from shrinkc.compression.fingerprint import run_fingerprint, stage_fingerprint
from shrinkc.compression.fisher import Estimated, estimate_costs
from shrinkc.compression.preflight import resolve_recipe
from shrinkc.compression.recipe import Recipe, parse_toml
from shrinkc.compression.recipe_settings import BudgetSettings
from shrinkc.compression.sensitivity import FITTED, Sensitivity, measure
from shrinkc.compression.stages import depth, gptq, width
from shrinkc.compression.stages.context import Stage, Work
from shrinkc.compression.stages.kinds import KINDS
from shrinkc.compression.steps import check_unchanged, read_json, write_json
from shrinkc.core.errors import BadRecipe
from shrinkc.core.fingerprint import Fingerprint
from shrinkc.core.progress import Reporter
from shrinkc.importer import LlamaConfig, Tokenizer
from shrinkc.targets import CHIPS, Target, target_named

PROBED, PROBE_LENGTH = 2, 256  # windows for sensitivities, and tokens of each
ESTIMATED = 4  # windows for the costs of fewer bits alone; memory holds their inputs and gradients


@dataclass(frozen=True)
class Decision:
    """The recipe with its concrete stages, the choice that gave them, and a report for budget.json."""

    recipe: Recipe
    choice: Choice
    report: dict[str, Any] = field(default_factory=dict)

    def keep(self, file: Path, made_from: Fingerprint) -> None:
        """Save the choice for :func:`earlier_choice`."""
        content = {"made_from": made_from, "recipe": self.recipe.to_toml(), "report": self.report}
        write_json(file, content)

    def note(self) -> str:
        r, c = self.report, self.choice
        widths = ", ".join(f"{count} at {bits}" for bits, count in r["matrices_at_bits"].items())
        kept = ""
        if any(s.kind in ("depth", "width") for s in self.recipe.stages):
            removed = ", ".join(map(str, c.removed)) or "none"
            kept = f"layers {removed} removed, {c.ffn} FFN channels, {c.kv_groups} KV heads less, "
        return (
            f"budget {r['budget_bytes']} bytes: {c.bytes} with {kept}matrices: {widths} bit, "
            f"embedding at {c.embedding_bits} bit; predicted loss {r['predicted_loss']:.3f} after "
            f"{r['baseline_loss']:.3f} ({r['prediction']})"
        )


def choice_fingerprints(
    recipe: Recipe, model: Fingerprint, calibration: Calibration
) -> tuple[Fingerprint, Fingerprint]:
    """Return the fingerprints of a choice and of its measurements, which do not depend on the budget."""
    assert recipe.budget is not None
    made_from = model | run_fingerprint(recipe)
    for stage in recipe.stages:
        made_from |= stage_fingerprint(stage, calibration)
    made_from |= {f"calibration.{k}": v for k, v in calibration.fingerprint().items()}
    # as JSON gives them back
    settings = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(recipe.budget).items()}
    return made_from | {f"budget.{k}": v for k, v in settings.items()}, made_from


def earlier_choice(file: Path, recipe: Recipe, made_from: Fingerprint) -> Recipe | None:
    """Return the recipe of an earlier choice, or None.  Raises RunChanged if it was made with other settings."""
    if not file.exists():
        return None
    kept = read_json(file)
    check_unchanged(
        f"{file} was made with other settings",
        kept["made_from"],
        made_from,
        "change that back to go on, choose another output directory, or start over with --force.",
    )
    return parse_toml(kept["recipe"], name=recipe.name)


def decide(
    recipe: Recipe,
    source: Path,
    facts: ModelFacts,
    calibration: Calibration,
    reporter: Reporter,
    scratch: Path,
    parameters: int = 0,
) -> Decision:
    """Measure the model in ``source``, choose, and return the recipe with the stages of the choice.

    The recipe's own stages stay, with the chosen bit-widths for ``gptq``; stages ``depth`` and ``width`` are added.
    ``scratch`` keeps measurements of an interrupted run.  ``parameters``: of the model before all stages, for
    ``share``; by default those of ``facts``.  Raises BadRecipe, BudgetUnreachable with the least possible bytes,
    and the errors of :func:`shrinkc.compression.sensitivity.measure`.
    """
    from shrinkc.checkpoints import load

    check_recipe(recipe, facts)
    settings = gptq_settings(recipe)
    space = space_of(recipe, source, facts.config, settings)
    budget = allowed_bytes(recipe, parameters or facts.parameters)
    space.check(budget)
    loaded = load(source, dtype=recipe.run.dtype)
    windows = calibration.windows(loaded.tokenizer)
    measured: Sensitivity | Estimated
    if recipe.budget is not None and recipe.budget.cut:
        windows = windows[:, :PROBE_LENGTH]
        probed = max(1, min(PROBED, len(windows) // 2))
        measured = measure(
            loaded.model, windows[:probed], windows[probed : probed + FITTED],
            scratch / "sensitivity.jsonl", reporter,
        )  # fmt: skip
    else:
        evenly = windows[:: max(1, len(windows) // ESTIMATED)][:ESTIMATED]
        measured = estimate_costs(loaded.model, evenly, recipe.run.seed, reporter)
    with reporter.stage("budget") as update:
        choice = space.choose(measured.kl, budget, update)
    stages = stages_of(recipe, choice, facts.config, settings)
    first = before_budget(recipe)
    later, _ = resolve_recipe(recipe.with_stages(stages[len(first) :]), facts)
    stages = [*first, *later.stages]
    report = _report(choice, space.counted, budget, measured, facts)
    return Decision(recipe.with_stages(stages), choice, report)


def work(recipe: Recipe, facts: ModelFacts, calibration: Calibration) -> Work:
    """Return the work of measuring what each change costs; none without a budget."""
    if recipe.budget is None:
        return Work()
    if recipe.budget.cut:
        probed = max(1, min(PROBED, calibration.samples // 2))
        return sensitivity.work(facts, probed, min(PROBE_LENGTH, calibration.length))
    return fisher.work(facts, min(ESTIMATED, calibration.samples), calibration.length)


def before_budget(recipe: Recipe) -> list[Stage]:
    """Return the first stages that change embedding and LM head; they run before the choice."""
    return list(takewhile(_changes_embeddings, recipe.stages))


def _changes_embeddings(stage: Stage) -> bool:
    return KINDS[stage.kind].changes_embeddings


def check_recipe(recipe: Recipe, facts: ModelFacts) -> None:
    """Raise BadRecipe for stages that a budget adds itself, and for a quantised model."""
    taken = [s.name for s in recipe.stages if s.kind in ("depth", "width")]
    if taken:
        raise BadRecipe(
            f"[budget] chooses layers and widths; the recipe has {', '.join(taken)} as well.",
            "leave those stages out, or the budget.",
        )
    late = [s.name for s in recipe.stages[len(before_budget(recipe)) :] if _changes_embeddings(s)]
    if late:
        raise BadRecipe(
            f"[budget] needs the final embedding, but [{late[0]}] would change it later.",
            f"put [{late[0]}] before all other stages.",
        )
    if len([s for s in recipe.stages if s.kind == "gptq"]) > 1:
        raise BadRecipe("[budget] allows one stage gptq.")
    if facts.quantized:
        raise BadRecipe("[budget] needs a float model; this one is quantised already.")


def allowed_bytes(recipe: Recipe, parameters: int) -> int:
    """Return the allowed bytes; for ``fit``, the sum of the memories for weights.  ``parameters``: of the original."""
    budget = recipe.budget
    assert budget is not None
    if budget.share is not None:
        return int(budget.share * FLOAT_BYTES * parameters)
    if budget.bytes is not None:
        return budget.bytes
    return sum(v.bytes for v in _target(budget).stored)


def _target(budget: BudgetSettings) -> Target:
    """Return the target of ``fit`` with the recipe's flash; without ``fit``, the target that bytes are counted for."""
    target = target_named(budget.fit or CHIPS[0])
    return target if budget.flash_room is None else target.with_room(flash=budget.flash_room)


def space_of(recipe: Recipe, source: Path, config: LlamaConfig, settings: gptq.Settings) -> Space:
    """Return the choices for the model in ``source``, with bytes counted as the recipe's budget asks."""
    budget = recipe.budget
    assert budget is not None
    rank = next((s.settings.rank for s in recipe.stages if s.kind == "eora"), 0)
    if budget.target_bytes is not None:
        return Space(config, settings, rank, budget.cut)
    if budget.share is not None:
        return CompiledMatrices(config, settings, rank, _target(budget), cut=budget.cut)
    tokenizer = Tokenizer.from_dir(source, config.vocab_size, config.bos_id)
    decode_table = sum(map(len, tokenizer.decode_table()))
    return OnTarget(config, settings, rank, _target(budget), decode_table, budget.cut)


def gptq_settings(recipe: Recipe) -> gptq.Settings:
    """Return the recipe's settings of gptq; by default asymmetric, which low bit-widths need."""
    given = next((s.settings for s in recipe.stages if s.kind == "gptq"), None)
    return gptq.Settings(group_size=64, sym=False) if given is None else given


def with_gptq(recipe: Recipe, facts: ModelFacts) -> Recipe:
    """Return the recipe with the stage gptq that a budget will add before stages for quantised models."""
    first = next((i for i, s in enumerate(recipe.stages) if KINDS[s.kind].on_quantised), None)
    if first is None or any(KINDS[s.kind].quantises for s in recipe.stages):
        return recipe
    settings = gptq_settings(recipe)
    group_size = Space(facts.config, settings, 0).group_size(facts.config)
    own = Stage(
        "gptq", "gptq", replace(settings, group_size=-1 if group_size is None else group_size)
    )
    return replace(recipe, stages=(*recipe.stages[:first], own, *recipe.stages[first:]))


def stages_of(
    recipe: Recipe, choice: Choice, config: LlamaConfig, settings: gptq.Settings
) -> list[Stage]:
    """Return all stages: those before the budget, depth and width, then the recipe's, with one gptq before all
    stages for quantised models."""
    stages = before_budget(recipe)
    given = [s for s in recipe.stages[len(stages) :] if not KINDS[s.kind].on_quantised]
    if choice.removed:
        stages.append(Stage("depth", "depth", depth.Settings(layers=choice.removed)))
    narrow: dict[str, Any] = {}
    if choice.ffn < config.intermediate_size:
        narrow["ffn_keep"] = choice.ffn
    if choice.kv_groups:
        narrow["kv_groups"] = choice.kv_groups
    if narrow:
        stages.append(Stage("width", "width", width.Settings(**narrow)))
    chosen = gptq_of(choice, config, settings)
    name = next((s.name for s in given if s.kind == "gptq"), "gptq")
    stages += [s for s in given if s.kind != "gptq"]
    stages.append(Stage(name, "gptq", chosen))
    return stages + [s for s in recipe.stages if KINDS[s.kind].on_quantised]


def _report(
    choice: Choice, counted: str, budget: int, measured: Sensitivity | Estimated, facts: ModelFacts
) -> dict[str, Any]:
    """Return the choice and its inputs for budget.json; ``counted`` is the key of its bytes."""
    widths = list(choice.bits.values())
    return {
        "budget_bytes": budget,
        counted: choice.bytes,
        "baseline_loss": measured.baseline,
        "predicted_loss": measured.baseline + choice.loss,
        "prediction": "baseline and the sum of the divergences of single changes: without interactions "
        "between changes, without what later stages recover",
        "removed_layers": list(choice.removed),
        "ffn_channels": [facts.config.intermediate_size, choice.ffn],
        "kv_groups_removed": choice.kv_groups,
        "group_size": choice.group_size,
        "embedding_bits": choice.embedding_bits,
        "matrices_at_bits": {bits: widths.count(bits) for bits in sorted(set(widths))},
        "sensitivity"
        if isinstance(measured, Sensitivity)
        else "estimated_costs": measured.to_json(),
    }
