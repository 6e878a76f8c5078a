"""From a model directory and options to a memory plan, before any weight is read.

``plan`` stops here and ``compile`` goes on from here, so both say the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from shrinkc.cli.fitting import alternatives, shortfalls
from shrinkc.cli.units import show_size
from shrinkc.core.artifact import Option
from shrinkc.core.errors import DoesNotFit, ModelNotFound, UsageError
from shrinkc.importer import LlamaConfig, Tokenizer, load_config, load_hf
from shrinkc.importer.safetensors_file import SafetensorsFile
from shrinkc.memory.plan import Plan, make_plan
from shrinkc.memory.verify import verify
from shrinkc.quantize import QuantOptions
from shrinkc.quantize.weights import check_groups
from shrinkc.report.memory_map import LEVEL_NAMES
from shrinkc.schedule.shapes import ModelShape, shapes_of_config
from shrinkc.targets import Target, target_named

DEFAULT_CONTEXT = 256
CONTEXT_MAX = 4094  # more probabilities overflow the attention's sum (ir/rules.py)

_SLOT_OF = {
    "self_attn.q_proj": "qkv", "self_attn.k_proj": "qkv", "self_attn.v_proj": "qkv",
    "self_attn.o_proj": "o", "mlp.gate_proj": "gate_up", "mlp.up_proj": "gate_up",
    "mlp.down_proj": "down",
}  # fmt: skip
_LORA_A = re.compile(r"\.layers\.(\d+)\.(.+)\.lora_A\.weight$")


@dataclass(frozen=True)
class PlanRequest:
    """What to compile, for what, and how."""

    model: Path
    target: str
    quant: QuantOptions
    context: int | None = None
    l1: int | None = None
    adapter: Path | None = None

    @classmethod
    def from_options(
        cls,
        *,
        model: Path,
        target: str,
        bits: str,
        group: int | None,
        short_last_group: bool,
        asymmetric: bool,
        head_bits: str,
        context: int | None,
        l1: int | None,
        adapter: Path | None,
    ) -> PlanRequest:
        """From the command line's values."""
        quant = QuantOptions(
            bits=int(bits), group=group, asymmetric=asymmetric, head_bits=int(head_bits),
            short_last_group=short_last_group,
        )  # fmt: skip
        return cls(model, target, quant, context, l1, adapter)


@dataclass(frozen=True)
class Prepared:
    """A plan and what it was made from."""

    request: PlanRequest
    name: str
    config: LlamaConfig
    tokenizer: Tokenizer
    context: int
    target: Target
    shape: ModelShape
    plan: Plan

    @property
    def options(self) -> dict[str, Option]:
        """Every option that decides the program, without paths."""
        q = self.request.quant
        adapter = self.request.adapter
        return {
            "target": self.target.name,
            "bits": q.bits,
            "group": q.group,
            "short_last_group": q.short_last_group,
            "asymmetric": q.asymmetric,
            "head_bits": q.head_bits,
            "context": self.context,
            "l1": self.plan.l1_budget,
            "adapter": None if adapter is None else adapter.resolve().name,
        }

    @property
    def command(self) -> str:
        """The command line that makes the same program: names instead of paths, nothing implied."""
        words = ["shrinkc", "compile", self.name]
        for name, value in self.options.items():
            option = "--" + name.replace("_", "-")
            if value is True:
                words.append(option)
            elif value is not None and value is not False:
                words += [option, str(value)]
        return " ".join(words)

    @property
    def weight_bytes(self) -> int:
        """Stored bytes of all matrices, scales and padding included."""
        return sum(p.bytes for p in self.plan.placements)

    def lines(self) -> list[str]:
        """A summary for people."""
        c, p, q = self.config, self.plan, self.request.quant
        group = f" in groups of {q.group}" if q.group else ""
        kind = " asymmetric" if q.asymmetric else ""
        implied = " (default)" if self.request.context is None else ""
        tiles = sum(-(-x.blocks // x.tile_blocks) for x in p.placements if x.name != "embedding")
        yes = {True: "L1", False: "L2"}
        out = [
            f"{self.name} for {self.target.name}: {c.num_layers} layers, hidden {c.hidden_size}, "
            f"vocabulary {c.vocab_size}, context {self.context}{implied}",
            f"  weights     {show_size(self.weight_bytes)} at {q.bits} bit{kind}{group}, embedding "
            f"and head at {q.head_bits} bit",
        ]
        for level, label in LEVEL_NAMES.items():
            used, have = p.used[level], p.capacity[level]
            if used or level in ("l1", "l2"):
                share = f"{100 * used / have:.0f} %" if have else "-"
                out.append(
                    f"  {label:<11} {show_size(used):>10} of {show_size(have):>10}  {share:>5}"
                )
        out.append(
            f"  schedule    chunks of {p.chunk} tokens, {tiles} tiles of up to "
            f"{show_size(p.tile_bytes)} per pass, KV cache in {yes[p.kv_in_l1]}, logits in "
            f"{yes[p.logits_in_l1]}"
        )
        return out

    def to_json(self) -> dict[str, object]:
        """The same for programs."""
        p = self.plan
        return {
            "model": self.name,
            "command": self.command,
            "options": self.options,
            "fits": True,
            "memory": {
                level: {"used": p.used[level], "available": p.capacity[level]}
                for level in LEVEL_NAMES
            },
            "weight_bytes": self.weight_bytes,
            "chunk": p.chunk,
            "tile_bytes": p.tile_bytes,
            "kv_in_l1": p.kv_in_l1,
            "logits_in_l1": p.logits_in_l1,
        }


def prepare(request: PlanRequest) -> Prepared:
    """Reads config, tokenizer and the adapter's header, and plans.

    Raises what the importer raises, UsageError, QuantizeError, or DoesNotFit with changes that
    were checked to fit.
    """
    target = target_named(request.target)
    if not request.model.is_dir():
        load_hf(request.model)  # raises, and knows how to say it
    config = load_config(request.model)
    tokenizer = Tokenizer.from_dir(request.model, config.vocab_size, config.bos_id)
    context = _context(request, config)
    quant = request.quant
    check_groups(
        {
            "qkv and gate_up": config.hidden_size,
            "o": config.num_heads * config.head_dim,
            "down": config.intermediate_size,
        },
        quant.group,
        quant.short_last_group,
    )
    if request.l1 is not None and request.l1 > target.l1:
        raise UsageError(
            f"--l1 {request.l1} is more than the {target.l1} bytes of {target.name}.",
            "leave --l1 out to use all of it.",
        )
    piece_bytes = sum(map(len, tokenizer.decode_table()))
    ranks = adapter_ranks(request.adapter, config.num_layers)

    def shape_for(quant: QuantOptions, context: int) -> ModelShape:
        return _shape(config, quant, context, piece_bytes, ranks)

    shape = shape_for(quant, context)
    try:
        plan = make_plan(shape, target, request.l1)
    except DoesNotFit:
        found = alternatives(shape_for, quant, context, target, request.l1)
        hint = (
            f"these were checked to fit: {'; '.join(found)}."
            if found
            else "no shorter context, narrower weights or larger L1 makes it fit this target."
        )
        raise DoesNotFit(
            f"{request.model.resolve().name} at context {context} on {target.name}: "
            + " ".join(shortfalls(shape, target, request.l1)),
            hint,
        ) from None
    verify(plan, shape, target)
    name = request.model.resolve().name
    return Prepared(request, name, config, tokenizer, context, target, shape, plan)


def _context(request: PlanRequest, config: LlamaConfig) -> int:
    most = min(config.max_position, CONTEXT_MAX)
    if request.context is None:
        return min(most, DEFAULT_CONTEXT)
    if not 2 <= request.context <= most:
        limit = (
            "the model was made for"
            if most == config.max_position
            else "the integer attention can sum over"
        )
        raise UsageError(
            f"--context {request.context} is not possible; {most} positions are what {limit}.",
            f"allowed: 2 to {most}.",
        )
    return request.context


def adapter_ranks(adapter: Path | None, num_layers: int) -> list[dict[str, int]]:
    """Per layer: slot -> rank of its side path, from the header of the adapter's file alone.

    Adapters of q, k and v (and of gate and up) share one side path, so their ranks add up.
    """
    ranks: list[dict[str, int]] = [{} for _ in range(num_layers)]
    if adapter is None:
        return ranks
    path = adapter / "adapter_model.safetensors"
    if not path.is_file():
        raise ModelNotFound(
            f"{path} does not exist.", "give the directory that PEFT's save_pretrained wrote."
        )
    for name, entry in SafetensorsFile(path).entries.items():
        match = _LORA_A.search(name)
        # what does not match is refused by name when the adapter is loaded
        if match and int(match[1]) < num_layers and match[2] in _SLOT_OF and entry.shape:
            layer, slot = ranks[int(match[1])], _SLOT_OF[match[2]]
            layer[slot] = layer.get(slot, 0) + entry.shape[0]
    return ranks


def _shape(
    config: LlamaConfig,
    quant: QuantOptions,
    context: int,
    piece_bytes: int,
    ranks: list[dict[str, int]],
) -> ModelShape:
    """shapes_of_config knows one set of ranks for all layers; an adapter may leave layers out."""
    distinct: dict[tuple[tuple[str, int], ...], ModelShape] = {}
    layers = []
    for index, rank in enumerate(ranks):
        key = tuple(sorted(rank.items()))
        if key not in distinct:
            distinct[key] = shapes_of_config(config, quant, context, piece_bytes, rank)
        layers.append(distinct[key].layers[index])
    return replace(next(iter(distinct.values())), layers=tuple(layers))
