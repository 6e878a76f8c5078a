"""Franken models (layer passthrough): the layers of a model in any order, some skipped, some repeated.

A franken model shares the tensors of the original model.  Each occurrence of a layer is a separate module with its own
index, and so its own place in the KV cache.
"""

from __future__ import annotations

import copy
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from shrinkc.checkpoints import Loaded, save
from shrinkc.core.errors import BadData, UsageError
from shrinkc.core.output import new_directory
from shrinkc.core.progress import Reporter
from shrinkc.core.shell import name_of
from shrinkc.core.words import show_metric
from shrinkc.evaluation.plan import EvalPlan, evaluate
from shrinkc.evaluation.rows import task_values
from shrinkc.evaluation.torch_scorer import TorchScorer

LAYERS_MAX = 1000  # layers of a configuration; more are a typing error
TIMED_TOKENS = 16
TIMED_ROUNDS = 5
NOTE = "franken.json"
UNCHANGED = "unchanged"

_PART = re.compile(r"(?P<first>\d{1,9})(?:-(?P<last>\d{1,9})|x(?P<times>\d{1,9}))?")
_SYNTAX = (
    "write layers as 0-11,14-29 (ranges forwards), 15x3 (layer 15 three times), 4 (one layer)."
)


@dataclass(frozen=True)
class Configuration:
    """An order of layers.  ``text``: as the user wrote it; ``layers``: the model's layer at each place."""

    name: str
    text: str
    layers: tuple[int, ...]


def parse_layers(text: str, num_layers: int) -> tuple[int, ...]:
    """Parse a list of layers: parts ``a``, ``a-b`` (both included) and ``axn`` (layer a n times), separated by commas.

    Raises UsageError with the part: if it cannot be read, names a layer beyond ``num_layers``, is a backward range, or
    makes more than LAYERS_MAX layers.
    """
    out: list[int] = []
    for part in map(str.strip, text.split(",")):
        match = _PART.fullmatch(part)
        if match is None:
            raise UsageError(f"'{part}' in the layers '{text}' cannot be read.", _SYNTAX)
        first = int(match["first"])
        last = int(match["last"] or first)
        times = int(match["times"] or 1)
        if max(first, last) >= num_layers:
            raise UsageError(
                f"'{part}' in the layers '{text}': the model has no layer {max(first, last)}.",
                f"its layers are 0 to {num_layers - 1}.",
            )
        if last < first or times == 0:
            raise UsageError(f"'{part}' in the layers '{text}' names no layer.", _SYNTAX)
        if len(out) + (last - first + 1) * times > LAYERS_MAX:
            raise UsageError(
                f"with '{part}' the layers '{text}' are too many.",
                f"a configuration has at most {LAYERS_MAX} layers.",
            )
        out += list(range(first, last + 1)) * times
    return tuple(out)


def assemble(model: Any, layers: Sequence[int]) -> Any:
    """Return a model of the same class that runs ``layers`` of ``model`` in that order and shares its tensors."""
    from torch.nn import ModuleList

    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    out = copy.deepcopy(model, dict(shared))
    # one module per occurrence, for its own place in the KV cache
    out.model.layers = ModuleList(
        copy.deepcopy(model.model.layers[layer], dict(shared)) for layer in layers
    )
    for place, layer in enumerate(out.model.layers):
        layer.self_attn.layer_idx = place
    out.config.num_hidden_layers = len(layers)
    kinds = getattr(model.config, "layer_types", None)
    if kinds:
        out.config.layer_types = [kinds[layer] for layer in layers]
    return out.requires_grad_(False).eval()


def save_checkpoint(loaded: Loaded, configuration: Configuration, directory: Path) -> None:
    """Write ``configuration`` as a plain Hugging Face directory.

    The format requires a copy per occurrence of a layer; ``franken.json`` records the model and the original layers.
    Weights are stored in the narrowest float type that holds them exactly.  Raises OutputError, StageFailed.
    """
    from torch.nn import ModuleList

    model = copy.deepcopy(assemble(loaded.model, configuration.layers))
    # safetensors refuses shared tensors
    model.model.layers = ModuleList(copy.deepcopy(layer) for layer in model.model.layers)
    _use_stored_dtype(model)
    note = {
        "format": "shrinkc-franken",
        "version": 1,
        "model": name_of(loaded.path),
        "layers": configuration.text,
        "layer_list": list(configuration.layers),
    }
    with new_directory(directory) as folder:
        save(model, loaded.tokenizer, folder)
        (folder / NOTE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")


def _use_stored_dtype(model: Any) -> None:
    """Convert a float32 model in place to a 16-bit type that holds all its weights exactly, if there is one.

    Most checkpoints are stored in 16 bits and were loaded as float32."""
    import torch

    for dtype in (torch.bfloat16, torch.float16):
        if all(torch.equal(p.to(dtype).to(p.dtype), p) for p in model.parameters()):
            model.to(dtype)
            return


@dataclass(frozen=True)
class Story:
    """Settings of a text that is generated twice: greedily, and with nucleus sampling (``top_p``)."""

    prompt: str = "Once upon a time"
    tokens: int = 48
    seed: int = 0
    temperature: float = 0.8
    top_p: float = 0.95


@dataclass(frozen=True)
class Row:
    """Results of one configuration.  ``metrics``: result of ``evaluate``.  ``seconds``: time per new token with a KV
    cache, the least of TIMED_ROUNDS; ``ratio``: time relative to the unchanged model."""

    configuration: Configuration
    parameters: int
    greedy: str
    sampled: str
    seconds: float
    ratio: float
    metrics: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.configuration.name,
            "layers": self.configuration.text,
            "layer_list": list(self.configuration.layers),
            "parameters": self.parameters,
            "greedy": self.greedy,
            "sampled": self.sampled,
            "seconds_per_token": self.seconds,
            "time_ratio": self.ratio,
            "evaluation": self.metrics,
        }


def generate(
    model: Any,
    ids: Sequence[int],
    new: int,
    *,
    sample: Story | None = None,
    exact: bool = False,
) -> list[int]:
    """Generate up to ``new`` tokens after ``ids``, greedily or with the settings of ``sample``.

    Generation stops after an end token unless ``exact``."""
    import torch

    settings: dict[str, Any] = {
        "max_new_tokens": new, "num_beams": 1, "repetition_penalty": 1.0,
        "do_sample": sample is not None, "top_k": 0,
        "temperature": sample.temperature if sample else 1.0, "top_p": sample.top_p if sample else 1.0,
    }  # fmt: skip
    if exact:
        settings["min_new_tokens"] = new
    tokens = torch.tensor([list(ids)])
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(sample.seed if sample else 0)
        out = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            pad_token_id=model.generation_config.pad_token_id or 0,
            **settings,
        )
    return [int(t) for t in out[0, len(ids) :]]


def _time(
    models: Sequence[Any], ids: Sequence[int], update: Callable[[int, int], None]
) -> list[float]:
    """Measure the seconds per new token of each model, in turns, so that other load affects all of them."""
    taken: list[list[float]] = [[] for _ in models]
    update(0, TIMED_ROUNDS * len(models))
    for turn in range(TIMED_ROUNDS):
        for i, model in enumerate(models):
            generate(model, ids, 1, exact=True)
            begin = time.perf_counter()
            generate(model, ids, TIMED_TOKENS, exact=True)
            taken[i].append((time.perf_counter() - begin) / TIMED_TOKENS)
            update(turn * len(models) + i + 1, TIMED_ROUNDS * len(models))
    return [min(t) for t in taken]


def compare(
    loaded: Loaded,
    configurations: Sequence[Configuration],
    story: Story,
    plan: EvalPlan,
    reporter: Reporter,
) -> list[Row]:
    """Run the unchanged model, then every configuration.

    Raises BadData if prompt and text are longer than the model's context, and the errors of ``evaluate``.
    """
    count = loaded.model.config.num_hidden_layers
    asked = [Configuration(UNCHANGED, f"0-{count - 1}", tuple(range(count))), *configurations]
    models = [assemble(loaded.model, c.layers) for c in asked]
    ids = prompt_ids(loaded, story.prompt, max(story.tokens, TIMED_TOKENS))

    def text(new: list[int]) -> str:
        return loaded.tokenizer.decode([*ids, *new], skip_special_tokens=True)

    with reporter.stage("time per token") as update:
        seconds = _time(models, ids, update)
    rows = []
    for c, model, time_taken in zip(asked, models, seconds, strict=True):
        with reporter.stage(f"{c.name}: text") as update:
            greedy = text(generate(model, ids, story.tokens))
            update(1, 2)
            sampled = text(generate(model, ids, story.tokens, sample=story))
        metrics: dict[str, Any] = {}
        if not plan.empty:
            metrics = evaluate(TorchScorer(replace(loaded, model=model)), plan, reporter)
        rows.append(
            Row(
                c, sum(p.numel() for p in model.parameters()), greedy, sampled, time_taken,
                time_taken / seconds[0], metrics,
            )
        )  # fmt: skip
    return rows


def prompt_ids(loaded: Loaded, prompt: str, new: int = 0) -> list[int]:
    """Return the ids of ``prompt``, with the begin token if the model's tokenizer adds one.

    Raises BadData if they and ``new`` more tokens do not fit the model's context.
    """
    tokenizer = loaded.tokenizer
    ids = list(tokenizer(prompt)["input_ids"])
    if not ids and tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id]
    most = loaded.model.config.max_position_embeddings
    if not ids or len(ids) + new > most:
        raise BadData(
            f"the prompt has {len(ids)} tokens; {new} more do not fit {most} positions."
            if ids
            else "the prompt has no tokens, and the model has no begin token.",
            "give another prompt, or fewer --tokens.",
        )
    return ids


def table(rows: Sequence[Row]) -> list[str]:
    """Return Markdown with a table of the measurements, followed by the texts."""
    columns: dict[str, Callable[[Row], str]] = {
        "configuration": lambda r: r.configuration.name,
        "layers": lambda r: r.configuration.text,
        "parameters": lambda r: f"{r.parameters / 1e6:.2f} M",
        "ms/token": lambda r: f"{1000 * r.seconds:.1f}",
        "time": lambda r: f"{r.ratio:.2f}×",
    }
    if "perplexity" in rows[0].metrics:
        columns["perplexity"] = lambda r: f"{r.metrics['perplexity']['perplexity']:.2f}"
    for label in task_values(rows[0].metrics):
        columns[label] = partial(_task_value, label)
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(show(row) for show in columns.values())} |" for row in rows]
    for row in rows:
        lines += ["", f"**{row.configuration.name}**", ""]
        lines += [f"* greedy: {_one_line(row.greedy)}", f"* sampled: {_one_line(row.sampled)}"]
    return lines


def _task_value(label: str, row: Row) -> str:
    return show_metric(label, task_values(row.metrics)[label])


def _one_line(text: str) -> str:
    return " ".join(text.split())
