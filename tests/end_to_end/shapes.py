"""Random models, and the proof that a program of one gives the interpreter's integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from helpers.layer import MODULES
from helpers.quantised import Format, formats_of, quantised_model
from helpers.tiny_llama import write_tiny_llama
from shrinkc.abi import LOOKUP_MAX
from shrinkc.engines import CORES, engine_named
from shrinkc.importer import FloatModel, load_model
from shrinkc.ir.graph import Graph
from shrinkc.memory.planner import make_plan
from shrinkc.numerics.sampling import Sampling
from shrinkc.quantize import QuantOptions, lower
from shrinkc.schedule.choose import choose_engines, choose_second_layouts, multiplied
from shrinkc.schedule.shapes import ModelShape
from shrinkc.simulate.proof import Record, Request, reference
from shrinkc.targets import PULP_OPEN, SIRACUSA, Target

from .programs import (
    Program,
    add_adapters,
    compile_graph,
    l2_without_weights,
    random_request,
    shape_of,
    smallest_l1,
)

HOST_BUILDS: tuple[dict[str, str], ...] = (
    {"SAN": "1", "LAZY": "1"},
    {"CORES": "8"},
    {"CORES": "3", "LAZY": "1"},
    {},
)
FAMILIES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
PLACES = ("usual", "usual", "smallest L1", "some L1", "flash", "cache in lower memory")


@dataclass(frozen=True)
class Case:
    """One drawn model: arguments of write_tiny_llama, its family, of the quantiser, and the rest.

    ``stored``: the integers that the checkpoint has, by "layer module"; empty where all is float.
    ``engines``: those that may run matrices.  ``place``: one of PLACES.
    """

    seed: int
    family: str
    model: dict[str, Any]
    options: QuantOptions
    stored: dict[str, Format]
    ranks: dict[str, int]
    context: int
    target: Target
    engines: tuple[str, ...]
    place: str

    def __str__(self) -> str:
        m = self.model
        stored = {f"{f.bits}" for f in self.stored.values()}
        widths = f"stored in {'/'.join(sorted(stored))}" if stored else f"{self.options.bits}"
        return (
            f"seed {self.seed}: {self.family}, {m['layers']} layers, hidden {m['hidden']}, ffn "
            f"{m['intermediate']}, {m['heads']}/{m['kv_heads']} heads of {m['head_dim']}, {widths} bit, "
            f"group {self.options.group_size}, cache of {self.options.kv_bits} bit, context {self.context}, "
            f"{self.target.name} on {'+'.join(self.engines)}, {self.place}"
        )


def draw(seed: int) -> Case:
    """A random case.  Every fourth seed has a regular shape, every fifth has adapters, every sixth is
    a checkpoint of integers."""
    rng = np.random.default_rng(1000 + seed)

    def pick(*values: Any) -> Any:
        return values[int(rng.integers(len(values)))]

    kv_heads = pick(1, 1, 2, 3)
    family = pick("llama", "llama", *FAMILIES)
    model = {
        "hidden": int(rng.integers(5, 101)),
        "intermediate": int(rng.integers(3, 151)),
        "layers": pick(1, 1, 2, 3),
        "kv_heads": kv_heads,
        "heads": kv_heads * pick(1, 2, 3, 4),
        "head_dim": pick(4, 6, 8, 10, 14, 32, 64, 66, 128),
        "vocab": int(rng.integers(20, 300)),
        "tied": pick(True, False),
        "rope_theta": pick(500.0, 1e4, 5e5),
        "rope_scaling": pick(None, None, LLAMA3) if family == "llama" else None,
        "dtype": pick("float32", "float16", "bfloat16"),
        "eos_ids": pick(2, [2, 5]),
        "max_position": 96,
        "seed": seed,
    }
    ranks: dict[str, int] = {}
    group = pick(None, None, None, None, 4, 5, 8, 17, 32, 60, 64, 100, 200)
    if seed % 4 == 3:
        model.update(hidden=64, intermediate=192, heads=4, kv_heads=2, head_dim=16)
        group = pick(8, 16, 32, 64)
    if seed % 5 == 4:
        group = pick(None, 64)
        ranks = {m: int(rng.integers(1, 10)) for m in MODULES if rng.random() < 0.7}
        if group == 64:  # adapters read the activation groups of their matrix
            model.update(hidden=64, intermediate=130, heads=4, kv_heads=2, head_dim=32)
    options = QuantOptions(
        bits=pick(8, 6, 5, 4, 3, 2),
        group_size=group,
        asymmetric=pick(False, True),
        embedding_bits=pick(8, 8, 6, 5, 4, 3, 2),
        short_last_group=True,
    )
    stored = _stored(model, pick) if seed % 6 == 5 else {}
    if stored:
        options, ranks = QuantOptions(), {}
    target = pick(*[SIRACUSA] * 5, PULP_OPEN)
    found = [engine_named(name) for name in target.engines if name != CORES]
    others = [e.name for e in found if not e.second_layout and rng.random() < 0.7]
    place = pick(*PLACES)
    if place == "flash":  # which the other engines cannot read
        others = []
    if place == "cache in lower memory":  # the others have no writable weight memory
        target = SIRACUSA
    context = int(rng.integers(9, 71))
    if rng.random() < 0.5:
        others += [e.name for e in found if e.second_layout and e.costs_as in others]
    # another generator, so that the other draws do not depend on it
    if np.random.default_rng(5000 + seed).random() < 0.3:
        options = replace(options, kv_bits=4)
    return Case(
        seed, family, model, options, stored, ranks, context, target, (CORES, *others), place,
    )  # fmt: skip


def _stored(model: dict[str, Any], pick: Any) -> dict[str, Format]:
    """Widths, groups and zero points by module and layer, as GPTQ and GGUF files mix them."""

    def one(inputs: int) -> Format:
        groups = [g for g in (8, 16, 21, 32, 64) if inputs % g == 0]
        zero = pick("middle", "integer", "float")
        return Format(pick(2, 3, 4, 5, 6, 8), pick(None, *groups), zero, pick(False, False, True))

    sizes = {
        "hidden": model["hidden"],
        "ffn": model["intermediate"],
        "q": model["heads"] * model["head_dim"],
    }
    found = {}
    for layer in range(model["layers"]):
        by_slot: dict[str, Format] = {}
        for name, part in MODULES.items():
            f = one(sizes[part.inputs])
            # what reads one input has one order of its columns, and groups of one size
            shared = by_slot.setdefault(part.slot, f)
            found[f"{layer} {name}"] = replace(f, group=shared.group, act_order=shared.act_order)
    return found


def float_model(case: Case, folder: Path) -> FloatModel:
    """Writes the checkpoint of ``case`` into ``folder`` and reads it again; its matrices are those that
    are stored as integers."""
    m = case.model
    rng = np.random.default_rng(case.seed)
    sizes = {"q": m["heads"] * m["head_dim"], "kv": m["kv_heads"] * m["head_dim"]}
    sizes["hidden"] = m["hidden"]
    extra: dict[str, np.ndarray] = {}
    for layer in range(m["layers"]):
        for part in MODULES.values():
            if case.family == "qwen2" and part.slot == "qkv":
                name = f"model.layers.{layer}.{part.name}.bias"
                extra[name] = rng.standard_normal(sizes[part.rows]).astype(np.float32)
        for norm in ("q_norm", "k_norm") if case.family == "qwen3" else ():
            gains = 1 + 0.3 * rng.standard_normal(m["head_dim"])
            extra[f"model.layers.{layer}.self_attn.{norm}.weight"] = gains.astype(np.float32)
    about = {"model_type": case.family, "architectures": [FAMILIES[case.family]]}
    write_tiny_llama(folder, config=about, overrides=extra, **m)
    model = load_model(folder)
    if case.stored:
        model = quantised_model(model, lambda i, name: case.stored.get(f"{i} {name}"), case.seed)
    add_adapters(model, case.ranks, seed=3)
    return model


def build(case: Case, folder: Path, *, whole_runtime: bool = False) -> Program:
    """The compiled directory of ``case``.  Raises what the compiler refuses it with."""
    model = float_model(case, folder / "model")
    target = replace(case.target, engines=case.engines)
    formats = formats_of(model) if case.stored else None
    ranks: dict[str, int] = {}
    for module, rank in case.ranks.items():  # adapters that read one input are fused
        slot = MODULES[module].slot
        ranks[slot] = ranks.get(slot, 0) + rank
    matrices = multiplied(model.config, case.options, ranks, formats, ())
    choices = choose_engines(matrices, target)
    free = {level.name: level.bytes for level in target.on_chip}
    choices = choose_second_layouts(choices, matrices, target, free)
    graph = lower(model, case.options, case.context, choices=choices)
    target, l1 = _placed(case, shape_of(graph, model), target)
    return compile_graph(graph, model, folder / "out", target, l1, whole_runtime=whole_runtime)


def _placed(case: Case, shape: ModelShape, target: Target) -> tuple[Target, int | None]:
    """The memories of the target as ``case`` has them, and how much L1 is used."""
    if case.place == "usual":
        return target, None
    rng = np.random.default_rng(case.seed)
    least = smallest_l1(shape, target)
    if case.place == "flash":
        rooms = {v.name: 0 for v in target.on_chip}
        rooms["l2"] = l2_without_weights(shape, target=target)
        return target.with_room(**rooms), None
    if case.place == "some L1":
        return target, int(rng.integers(least, target.l1 + 1))
    if case.place == "cache in lower memory":
        target = _behind(shape, target, least, rng)
    return target, least


def _behind(shape: ModelShape, target: Target, l1: int, rng: np.random.Generator) -> Target:
    """Room for the cache of some layers in L2 and in weight memory; that of the others lies in HyperRAM."""
    plan = make_plan(shape, target, l1)
    beside = {b.name: b.bytes for b in plan.lower_buffers}
    cache = sum(b.bytes for b in plan.lower_buffers if b.name == "kv cache") // len(shape.layers)
    if not cache:
        return target
    others = sum(beside.values()) - beside.get("kv cache", 0)
    in_l2 = int(rng.integers(len(shape.layers) + 1))
    in_wmem = int(rng.integers(len(shape.layers) - in_l2 + 1))
    swapped = in_l2 + in_wmem < len(shape.layers)
    levels = tuple(
        replace(v, writable=in_wmem * cache) if v.name == "wmem" else v for v in target.levels
    )
    return replace(target, levels=levels).with_room(l2=others + (in_l2 + swapped) * cache)


def requests(program: Program, seed: int) -> tuple[list[Request], list[Record]]:
    """Runs of a program, and what they have to give: a prompt of several tokens, one of a single token
    with a sampler, and, where a pass can verify drafts, the first one with lookup."""
    graph: Graph = program.graph
    rng = np.random.default_rng(seed)
    prompt = int(rng.integers(1, graph.context))
    hot = Sampling(int(rng.integers(20000, 200000)), int(rng.integers(1, 65537)), seed)
    asked = [
        random_request(graph, rng, prompt, min(12, graph.context - prompt)),
        random_request(graph, rng, 1, min(graph.context - 1, 20), hot),
    ]
    wanted = [reference(graph, r) for r in asked]
    if program.plan.verified > 1:
        asked.append(replace(asked[0], prompt_lookup=1 + seed % LOOKUP_MAX))
        wanted.append(wanted[0])
    return asked, wanted


def prove(
    program: Program, machine: str, seed: int, runs: tuple[list[Request], list[Record]]
) -> int:
    """Builds for ``machine``, runs, and compares; returns how many values were compared.

    AssertionError where one differs.
    """
    options: Mapping[str, str] = {}
    if machine == "host":
        options = HOST_BUILDS[seed % len(HOST_BUILDS)]
    program.build(machine, **options)
    compared = 0
    for request, want in zip(*runs, strict=True):
        compared += program.prove(machine, request, want, timeout_s=300).compared
    return compared
