"""Checks before a run: all problems in one error, and an estimate of time, memory and disk space."""

from __future__ import annotations

import shutil
import time
import timeit
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from shrinkc.compression.calibration import Calibration
from shrinkc.compression.facts import ModelFacts
from shrinkc.compression.recipe import Recipe
from shrinkc.compression.recipe_settings import EvaluateSettings
from shrinkc.compression.run_directory import saved_state_bytes, step_name
from shrinkc.compression.self_generated import SelfGeneratedSettings
from shrinkc.compression.stages.context import Stage, Work
from shrinkc.compression.stages.kinds import KINDS
from shrinkc.compression.writing import TOKEN_COST
from shrinkc.core.errors import (
    BadData,
    BadRecipe,
    OutputError,
    QuantizeError,
    ShrinkcError,
    UnsupportedModel,
)
from shrinkc.core.words import show_size, show_time

# Peak memory of the libraries.  Measured, as the stages' bytes per parameter are, with SmolLM2-135M (resident set
# of `shrinkc compress`).
LIBRARY_BYTES = 600 << 20
TIMED_TOKENS = 512
TIMED_SECONDS = 2.0  # long enough to notice other load
TIMED_PASSES = 4  # at least
SELF_GENERATED_BYTES = 6  # of self-generated text on disk, per token
# A step loads its model (some twice), saves it, loads it again as a check, counts and hashes it.  Together that takes
# about this many times the time of one load.
STEP_LOADS = 5.0
NO_WORK = Work()


@dataclass
class Estimate:
    """Estimate for the remaining steps.  ``seconds``: CPU time (idle machine) and wall-clock time (current load).
    ``disk``: the most bytes that are needed at once.  ``left``: number of remaining steps, and of all steps.
    """

    seconds: tuple[float, float]
    memory: int
    disk: int
    left: tuple[int, int] = (0, 0)

    def line(self) -> str:
        idle, busy = map(show_time, self.seconds)
        left, total = self.left
        time = f"about {idle}" + (f" left, for {left} of {total} steps" if left < total else "")
        if busy != idle:
            time += f" on this machine alone, {busy} as busy as it is now"
        return (
            f"estimate: {time}; {show_size(self.memory)} of memory, {show_size(self.disk)} on disk"
        )


@dataclass
class Preflight:
    """``facts``: the model after every stage, as far as it can be predicted."""

    estimate: Estimate
    facts: list[ModelFacts]
    notes: list[str] = field(default_factory=list)


def preflight(
    recipe: Recipe,
    facts: ModelFacts,
    calibration: Calibration,
    loaded: Any,
    out: Path,
    *,
    done: int = 0,
    unmeasured: Sequence[int] = (),
    loading: float = 0.0,
    measured: Work = NO_WORK,
) -> Preflight:
    """Check all stages of ``recipe`` for the model ``facts``; the first ``done`` stages are finished.

    ``unmeasured``: finished steps (0: the source model) that have to be evaluated.  ``loaded``: the model for timed
    forward passes, and its tokenizer; ``loading``: seconds that loading took.  ``measured``: work before the stages,
    to choose them.  Raises an error with all problems, of the class of the first one: BadRecipe, UnsupportedModel,
    QuantizeError, BadData or OutputError.
    """
    problems, chain = stage_problems(recipe, facts)
    notes: list[str] = []
    for number, stage in enumerate(recipe.stages):
        around = recipe.stages[:number], recipe.stages[number + 1 :]
        notes += KINDS[stage.kind].advice(stage, *around)
    ratios = _ratios(recipe, loaded.model.device.type)
    notes += _dtype_notes(ratios)
    problems += _data_problems(recipe, calibration, loaded.tokenizer, notes)
    estimate = None
    if not problems:
        estimate = _estimate(
            recipe, chain, calibration, loaded, out, done, unmeasured, loading, ratios, measured
        )
    if estimate is not None:
        problems += _resource_problems(estimate, out, notes)
    if problems:
        count = f"{len(problems)} problems: " if len(problems) > 1 else ""
        text = "; ".join(text.rstrip(".") for _, text in problems)
        raise problems[0][0](f"{count}{text}.", "nothing was changed; correct the recipe.")
    assert estimate is not None
    return Preflight(estimate, chain[1:], notes)


def stage_problems(
    recipe: Recipe, facts: ModelFacts
) -> tuple[list[tuple[type[ShrinkcError], str]], list[ModelFacts]]:
    """Return the problems of the stages with a model of the sizes ``facts``, each with the class of its error, and the
    sizes before the first and after every stage."""
    problems: list[tuple[type[ShrinkcError], str]] = []
    chain = [facts]
    for stage in recipe.stages:
        kind, now = KINDS[stage.kind], chain[-1]
        if now.quantized and not kind.gives_integers:
            problems.append((
                UnsupportedModel,
                f"[{stage.name}] works on float models, but the model is already quantised",
            ))  # fmt: skip
            chain.append(now)
            continue
        before = recipe.stages[: len(chain) - 1]
        problems += [
            (UnsupportedModel, f"[{stage.name}] {text}")
            for text in order_problems(stage, before, facts)
        ]
        error = QuantizeError if kind.gives_integers else BadRecipe
        found = kind.preflight(stage.settings, now)
        problems += [(error, f"[{stage.name}] {text}") for text in found]
        chain.append(_after(stage, now, bool(found)))
    return problems, chain


def order_problems(stage: Stage, before: Sequence[Stage], given: ModelFacts) -> Iterator[str]:
    """Yield problems with the stages ``before`` a stage and with the kind of the model ``given``."""
    kind = KINDS[stage.kind]
    if kind.needs_floats and given.quantized:
        yield "needs the float model, but the one given is already quantised"
    adapters = next((s.name for s in before if KINDS[s.kind].adds_adapters), None)
    if adapters is not None and kind.on_quantised and not kind.adds_adapters:
        yield f"changes the weights that the adapters of [{adapters}] correct; put [{adapters}] after it"
    yield from kind.order(stage.settings, before)


def resolve_recipe(recipe: Recipe, facts: ModelFacts) -> tuple[Recipe, list[str]]:
    """Resolve lists of alternatives (``group_size``) in the recipe by the model's sizes at each stage.

    Returns the recipe, and a note for each value that is not the first of its list."""
    stages, notes = [], []
    for given in recipe.stages:
        kind = KINDS[given.kind]
        settings, found = kind.resolve(given.settings, facts)
        stage = replace(given, settings=settings)
        notes += [f"[{stage.name}] {text}" for text in found]
        stages.append(stage)
        facts = _after(stage, facts, bool(kind.preflight(settings, facts)))
    return replace(recipe, stages=tuple(stages)), notes


def _after(stage: Stage, facts: ModelFacts, failed: bool) -> ModelFacts:
    """Return the facts after a stage; after a failed one, only ``quantized`` is updated."""
    kind = KINDS[stage.kind]
    if not failed:
        return kind.predict(stage.settings, facts)
    return replace(facts, quantized=True) if kind.quantises else facts


PRODUCTS = 0.8
"""Share of matrix products in the time of float32 training; only they depend on the dtype."""
SLOW = 1.5
"""Slowdown of bfloat16 from which a note is given."""


def _ratios(recipe: Recipe, device: str) -> dict[str, float]:
    """Return table of the recipe -> time relative to float32, for tables that compute in bfloat16 on a CPU.

    The ratio is below 1 if the CPU has instructions for bfloat16."""
    own = {"self_generated": recipe.self_generated} if recipe.self_generated_tokens() else {}
    tables = own | {stage.name: stage.settings for stage in recipe.stages}
    names = [name for name, s in tables.items() if getattr(s, "dtype", "") == "bfloat16"]
    if not names or device != "cpu":
        return {}
    forward, training = bfloat16_ratios()
    return {name: forward if name in own else training for name in names}


def _dtype_notes(ratios: Mapping[str, float]) -> list[str]:
    slowed = {name: ratio for name, ratio in ratios.items() if ratio >= SLOW}
    if not slowed:
        return []
    listed = ", ".join(f"[{name}]" for name in slowed)
    return [
        f"this CPU takes {max(slowed.values()):.1f} times as long in bfloat16 as in float32: "
        f'dtype = "float32" in {listed} would save that, for twice the memory'
    ]


def bfloat16_ratios() -> tuple[float, float]:
    """Measure the time of matrix products in bfloat16 relative to float32 on this CPU: forward, and in training
    (gradients of both factors included).  Uses the CPU time of one thread, because threads on a busy machine wait
    for each other."""
    import torch

    taken: dict[torch.dtype, list[float]] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for dtype in (torch.float32, torch.bfloat16):
            x, w, y = (
                torch.ones(*shape, dtype=dtype) for shape in ((64, 512), (1024, 512), (64, 1024))
            )
            taken[dtype] = [
                _fastest(product)
                for product in (
                    lambda x=x, w=w: torch.nn.functional.linear(x, w),
                    lambda y=y, w=w: torch.mm(y, w),
                    lambda y=y, x=x: torch.mm(y.T, x),
                )
            ]
    finally:
        torch.set_num_threads(threads)
    exact, low = taken[torch.float32], taken[torch.bfloat16]
    return low[0] / exact[0], sum(low) / sum(exact)


def _fastest(work: Callable[[], Any]) -> float:
    """Measure CPU seconds of this thread: the fastest of three runs after a warm-up."""
    return min(timeit.repeat(work, timer=time.thread_time, number=1, repeat=4)[1:])


def _data_problems(
    recipe: Recipe, calibration: Calibration, tokenizer: Any, notes: list[str]
) -> list[tuple[type[ShrinkcError], str]]:
    choices = () if recipe.evaluate is None else recipe.evaluate.choices()
    problems: list[tuple[type[ShrinkcError], str]] = [
        (BadData, f"evaluate.tasks: there is no file {file}")
        for choice in choices
        for file in choice.files
        if not file.is_file()
    ]

    def check(work: Any) -> None:
        try:
            notes.extend(n for n in work() or [] if n not in notes)
        except BadData as error:
            text = f"{error.message} {error.hint or ''}".strip()
            if (BadData, text) not in problems:
                problems.append((BadData, text))

    if recipe.needs_calibration:
        check(lambda: calibration.check(tokenizer))
        notes += calibration.notes
    for stage in recipe.stages:
        checked, settings = KINDS[stage.kind].check_data, stage.settings
        check(lambda c=checked, s=settings: c(s, calibration, tokenizer))
    return problems


def _estimate(
    recipe: Recipe,
    chain: list[ModelFacts],
    calibration: Calibration,
    loaded: Any,
    out: Path,
    done: int,
    unmeasured: Sequence[int],
    loading: float,
    ratios: Mapping[str, float],
    measured: Work,
) -> Estimate:
    """Estimate the remaining steps.  Time per token is proportional to the model's parameters and to ``ratios``; of an
    evaluation, only perplexity is included."""
    speed = measured_speed(loaded.model)
    if recipe.run.dtype == "bfloat16":  # the timed model computes in bfloat16 itself
        ratios = {}
    loads = STEP_LOADS * loading / speed.busy
    measuring = evaluation_tokens(recipe.evaluate, calibration.characters_per_token)
    shares = [facts.parameters / chain[0].parameters for facts in chain]
    seconds = speed.token * measuring * sum(shares[number] for number in unmeasured)
    seconds += speed.of(measured) + loads * (measured != NO_WORK)
    disk, most, memory = 0, 0, 0
    store = calibration.self_generated
    if store is not None and done < len(recipe.stages):
        left = max(0, recipe.self_generated_tokens() - store.written())
        # TOKEN_COST is for bfloat16 on a CPU that is fast in it
        seconds += left * TOKEN_COST * speed.token * max(1.0, ratios.get("self_generated", 1.0))
        disk += left * SELF_GENERATED_BYTES
        memory = _writing_memory(store.settings, chain[0]) if left else 0
    for number, stage in enumerate(recipe.stages[done:], done):
        before, after, kind = chain[number], chain[number + 1], KINDS[stage.kind]
        work = kind.work(stage.settings, before, calibration)
        products = 1 - PRODUCTS + PRODUCTS * ratios.get(stage.name, 1.0)
        seconds += (speed.token * work.tokens * products + loads) * shares[number]
        seconds += speed.of(Work(0, work.numbers, work.calls)) + kind.child_seconds
        seconds += speed.token * measuring * shares[number + 1]
        disk += after.bytes_on_disk
        own_memory = LIBRARY_BYTES + kind.parameter_bytes * before.parameters
        own_memory += kind.memory(stage.settings, before, calibration)
        memory = max(memory, own_memory)
        kept = kind.kept(stage.settings, before)
        if number == done:  # state of an interrupted attempt is on disk already
            kept = max(0, kept - saved_state_bytes(out, step_name(number + 1, stage.name)))
        most = max(most, disk + kept)
    total = len(recipe.stages)
    return Estimate((seconds, seconds * speed.busy), memory, max(most, disk), (total - done, total))


def _writing_memory(settings: SelfGeneratedSettings, facts: ModelFacts) -> int:
    """Return the bytes of the model and of the KV cache of all documents in a batch."""
    c, size = facts.config, 4 if settings.dtype == "float32" else 2
    cache = 2 * c.num_layers * c.num_kv_heads * c.head_dim * settings.batch * settings.length
    return LIBRARY_BYTES + size * (2 * facts.parameters + cache)


def evaluation_tokens(settings: EvaluateSettings | None, characters_per_token: float) -> float:
    """Return the number of tokens in the perplexity's windows."""
    if settings is None or settings.text is None:
        return 0.0
    window = 2048 if settings.protocol == "wikitext2048" else 512
    tokens = Path(settings.text).stat().st_size / characters_per_token
    return tokens if settings.windows is None else min(tokens, settings.windows * window)


@dataclass(frozen=True)
class Speed:
    """Seconds on the idle machine for a ``token`` of a forward pass, for a ``number`` of an elementwise operation on a
    large tensor, and for a ``call`` of torch on a small one.  ``busy``: factor at the current load."""

    token: float
    number: float
    call: float
    busy: float

    def of(self, work: Work) -> float:
        """Return the seconds that ``work`` takes on the idle machine."""
        return self.token * work.tokens + self.number * work.numbers + self.call * work.calls


PARALLEL = 0.8  # parallel share of a forward pass and of elementwise operations
BUSY = 1.3  # ratio of wall-clock to CPU time from which the machine counts as busy


def measured_speed(model: Any) -> Speed:
    """Measure the speed of torch's threads on ``model``.

    Idle: CPU time of this thread.  On a busy machine, threads wait for each other and use CPU time meanwhile: there
    one thread is timed, and the time of several is calculated.
    """
    import torch

    threads = torch.get_num_threads()
    here = str(model.device) == "cpu"
    try:
        torch.set_num_threads(1)
        one, waited = seconds_per_token(model)
        number, call = _seconds_per_number(), _seconds_per_call()
    finally:
        torch.set_num_threads(threads)
    if threads == 1 or not here:
        return Speed(one, number, call, waited / one)
    several, wall = seconds_per_token(model)
    shared = 1 - PARALLEL + PARALLEL / threads
    alone = one * shared if waited > BUSY * one else min(one, several)
    return Speed(alone, number * shared, call, max(1.0, wall / alone))


def _seconds_per_number() -> float:
    """Measure elementwise operations that read float32 and write new memory, as rounding does."""
    import torch

    x = torch.ones(1 << 20)
    return _fastest(lambda: x.add(1.0).round().clamp(0, 15).mul(0.5)) / (4 * x.numel())


def _seconds_per_call() -> float:
    import torch

    x, calls = torch.ones(64, requires_grad=True), 200

    def chain() -> None:  # half of the calls are in the backward pass
        y = x
        for _ in range(calls // 2):
            y = y.mul(0.5)
        y.sum().backward()

    return _fastest(chain) / calls


def seconds_per_token(model: Any) -> tuple[float, float]:
    """Measure the time of forward passes per token: on the idle machine, and at the current load.

    The first is the CPU time of this thread in the fastest pass, or the fastest pass if another device computes.
    The second is the mean wall-clock time.
    """
    import torch

    length = min(TIMED_TOKENS, model.config.max_position_embeddings)
    ids = (torch.arange(length)[None] % model.config.vocab_size).to(model.device)
    here = str(model.device) == "cpu"
    working: list[float] = []
    wall: list[float] = []
    with torch.no_grad():
        model(ids)  # warm-up
        while len(wall) < TIMED_PASSES or sum(wall) < TIMED_SECONDS:
            started, began = time.perf_counter(), time.thread_time()
            model(ids)
            if not here:
                torch.accelerator.synchronize()
            worked = time.thread_time() - began
            wall.append(time.perf_counter() - started)
            working.append(worked if here else wall[-1])
    return min(working) / length, sum(wall) / len(wall) / length


def _resource_problems(
    estimate: Estimate, out: Path, notes: list[str]
) -> list[tuple[type[ShrinkcError], str]]:
    folder = out
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if estimate.disk > free:
        return [
            (
                OutputError,
                f"{out} needs about {show_size(estimate.disk)}, {show_size(free)} are free",
            )
        ]
    memory = available_memory()
    if memory is not None and estimate.memory > memory:
        notes.append(
            f"about {show_size(estimate.memory)} of memory are needed (an estimate), "
            f"{show_size(memory)} are free"
        )
    return []


def available_memory() -> int | None:
    """Return the free memory in bytes, or None if the system does not report it."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kib = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if kib is None else int(kib) * 1024
