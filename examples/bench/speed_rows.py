"""The rows of the speed benchmark on GVSoC: programs, a figure that is computed from their runs, and its target.

The peer is Deeploy at bf64cfae: figures of its documents ("published"), and of its generated code built with stock
GCC 14.2 and run on the same simulator ("run again").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from models import SMOLLM2

from shrinkc.importer import parse_config
from shrinkc.model import matrix_shapes

L2_MAY = 1.15  # with code in L2, targets are laxer by this factor


@dataclass(frozen=True)
class Program:
    """A model, how it is compiled, and a run of it.

    ``prompt`` is the number of prompt tokens (or ``text`` is the prompt), ``steps`` the number of decode steps after
    it: the last one is at position ``prompt + steps - 1``.  ``prompt_lookup`` is the length of drafts, with
    ``profile`` operations are timed too.
    """

    model: str
    context: int
    options: tuple[str, ...] = ()
    prompt: int = 1
    steps: int = 2  # the first decode step prepares the engine's jobs, so the second is measured
    profile: bool = False
    text: str | None = None
    prompt_lookup: int | None = None

    @property
    def name(self) -> str:
        return "-".join([self.model, str(self.context), *self.options]).replace("--", "")

    @property
    def in_l2(self) -> Program:
        """The same program with the code of its decode loop in L2."""
        return replace(self, options=(*self.options, "--code", "l2"))

    def commands(self, model: str, out: str) -> tuple[list[str], list[str]]:
        """The arguments of shrinkc that compile it and that run it."""
        compiled = ["compile", model, "--target", "siracusa", "--context", str(self.context)]
        compiled += [*self.options, "-o", out]
        ids = ",".join(map(str, [1, *(259 + i % 200 for i in range(self.prompt - 1))]))
        given = ["--prompt-ids", ids] if self.text is None else ["--prompt", self.text]
        run = ["run", out, "--on", "gvsoc", *given, "--tokens", str(self.steps + 1), "--ignore-eos"]
        run += [] if self.prompt_lookup is None else ["--prompt-lookup", str(self.prompt_lookup)]
        return compiled, [*run, "--json", *(["--profile"] * self.profile)]


Measure = Callable[[list[dict[str, Any]], list[dict[str, Any]]], float]
"""From the runs of a row's programs (JSON of ``shrinkc run``) and their models' configurations to a figure."""


@dataclass(frozen=True)
class Row:
    """One figure.  ``least``: the target is a minimum.  ``twice``: measured with code in L2 as well.  ``needs``:
    what the benchmark has to be given for it."""

    id: str
    what: str
    unit: str
    programs: tuple[Program, ...]
    measure: Measure
    target: float | None = None
    published: float | None = None
    rerun: float | None = None
    least: bool = False
    digits: int = 0
    needs: tuple[str, ...] = field(default=())
    twice: bool = False

    @property
    def in_l2(self) -> Row:
        """The same figure with code in L2."""
        target = (
            None
            if self.target is None
            else self.target / L2_MAY
            if self.least
            else self.target * L2_MAY
        )
        return replace(
            self, programs=tuple(p.in_l2 for p in self.programs), target=target, twice=False
        )

    def met(self, value: float) -> bool | None:
        """Whether the target is; None where there is none."""
        if self.target is None:
            return None
        return value >= self.target if self.least else value <= self.target

    def figures(self, value: float, in_l2: float | None = None) -> dict[str, Any]:
        """The row of the data file."""
        form = f"{{:,.{self.digits}f}}"
        return {
            "id": self.id, "what": self.what, "unit": self.unit, "measured": round(value, 4), "target": self.target,
            "met": self.met(value), "code_in_l2": None if in_l2 is None else round(in_l2, 4),
            "met_code_in_l2": None if in_l2 is None else self.in_l2.met(in_l2), "peer_published": self.published,
            "peer_rerun": self.rerun,
            "formats": {"measured": form, "code_in_l2": form, "target": f"{'≥' if self.least else '≤'} {form}"},
        }  # fmt: skip


def decode(runs: list[dict[str, Any]], configs: list[dict[str, Any]]) -> float:
    """The last decode step."""
    return float(runs[0]["cycles"]["decode"][-1])


def each_token(runs: list[dict[str, Any]], configs: list[dict[str, Any]]) -> float:
    """Cycles of all decode steps, per token that they made."""
    return sum(runs[0]["cycles"]["decode"]) / (len(runs[0]["new_tokens"]) - 1)


def each_cached(runs: list[dict[str, Any]], configs: list[dict[str, Any]]) -> float:
    """The second run has the longer prompt."""
    first, last = (run["cycles"]["decode"][-1] for run in runs)
    return float(last - first) / (len(runs[1]["prompt_tokens"]) - len(runs[0]["prompt_tokens"]))


def prefill(runs: list[dict[str, Any]], configs: list[dict[str, Any]]) -> float:
    return float(runs[0]["cycles"]["prefill"])


def prefill_to_decode(runs: list[dict[str, Any]], configs: list[dict[str, Any]]) -> float:
    """Cycles of the whole prompt per cycle of a decoded token."""
    return prefill(runs, configs) / decode(runs, configs)


def ratio(runs: list[dict[str, Any]], configs: list[dict[str, Any]]) -> float:
    """The first program's decode step, divided by the second's."""
    first, second = (float(run["cycles"]["decode"][-1]) for run in runs)
    return first / second


def least(runs: list[dict[str, Any]], configs: list[dict[str, Any]]) -> float:
    """The fastest program's decode step."""
    return min(float(r["cycles"]["decode"][-1]) for r in runs)


def bus_share(runs: list[dict[str, Any]], configs: list[dict[str, Any]]) -> float:
    """Per cent of the last decode step in which the HyperBus (one byte per cycle) transfers weights."""
    return 100 * float(runs[0]["weights_in_flash"]) / decode(runs, configs)


def times_as_fast(runs: list[dict[str, Any]], configs: list[dict[str, Any]]) -> float:
    """Speed-up of the second run per token.  ValueError where drafts changed the text."""
    first, second = (run["new_tokens"] for run in runs)
    if any(a != b for a, b in zip(first, second, strict=False)):
        raise ValueError(f"drafts changed the text: {first}, {second}")
    return each_token(runs[:1], configs) / each_token(runs[1:], configs)


def accepted(runs: list[dict[str, Any]], configs: list[dict[str, Any]]) -> float:
    """Per cent of the drafted tokens that were accepted."""
    drafts = runs[0]["prompt_lookup"]
    return 100 * float(drafts["accepted"]) / float(drafts["drafted"])


def layer_macs(phase: str) -> Measure:
    """Multiply-accumulates per cycle in the layers, weights and attention, from a profile.  Prefill leaves the last
    layer out: there most tokens of a prompt only fill the KV cache."""

    def measure(runs: list[dict[str, Any]], configs: list[dict[str, Any]]) -> float:
        run, config = runs[0], parse_config(configs[0])
        first, new = len(run["prompt_tokens"]), len(run["new_tokens"])
        positions = range(first) if phase == "prefill" else range(first, first + new - 1)
        steps = 1 if phase == "prefill" else len(positions)
        layers = config.num_layers - (phase == "prefill")
        inner = [s for n, s in matrix_shapes(config).items() if ".layers.0." in n]
        weights = layers * sum(rows * inputs for rows, inputs in inner) * len(positions)
        heads = layers * config.num_heads * config.head_dim
        attention = 2 * heads * sum(at + 1 for at in positions)
        rows = run["profile"][phase]["layers"]
        cycles = sum(row["cycles"] for row in rows if row["layer"] < layers)
        return (weights + attention) / steps / cycles

    return measure


LONG = {
    at: Program("microLlama", 256, prompt=max(1, at - 1), steps=1 + (at > 1))
    for at in (1, 64, 128, 248)
}
STORIES = {
    bits: Program("examples/stories", 64, () if bits == 8 else ("--bits", str(bits)), 61)
    for bits in (8, 4, 2)
}
GROUPS = ("--bits", "4", "--group-size", "32", "--short-last-group")
BEST = tuple(
    Program("stories260K", 64, options, 61)
    for options in ((), ("--bits", "4"), ("--bits", "2"), GROUPS)
)
MICRO = "microLlama shape, 8 bit, context 256"
LAYER = "one layer of SmolLM2-135M"
ROWS = (
    Row("micro_decode_64", f"{MICRO}: decode at position 64", "cycles per token", (LONG[64],), decode, 100_000,
        780_000, 918_000, twice=True),
    Row("micro_decode_248", f"{MICRO}: decode at position 248", "cycles per token", (LONG[248],), decode, 180_000,
        None, 1_990_000, twice=True),
    Row("micro_cached_token", f"{MICRO}: each further cached token", "cycles", (LONG[64], LONG[248]), each_cached,
        450, None, 5_700, twice=True),
    Row("micro_prefill_64", f"{MICRO}: prefill of 64 tokens", "cycles",
        (Program("microLlama", 256, prompt=64, steps=0),), prefill, 2_500_000, 28_300_000, 28_500_000, twice=True),
    Row("stories260k_decode_62", "stories260K, fastest format: decode at position 62", "cycles per token", BEST, least,
        50_000, needs=("data",), twice=True),
    Row("stories_decode_62", "examples/stories, 8 bit: decode at position 62", "cycles per token", (STORIES[8],),
        decode, 70_000, twice=True),
    Row("stories_4bit_to_8bit", "examples/stories: decode at 4 bit ÷ decode at 8 bit", "ratio",
        (STORIES[4], STORIES[8]), ratio, 1.0, digits=2),
    Row("stories_2bit_to_4bit", "examples/stories: decode at 2 bit ÷ decode at 4 bit", "ratio",
        (STORIES[2], STORIES[4]), ratio, 1.0, digits=2),
    Row("layer_decode_16", f"{LAYER}, 4 bit: decode at position 16", "MAC per cycle",
        (Program("smollm2-layer", 128, ("--bits", "4"), 15, profile=True),), layer_macs("decode"), 35,
        least=True, digits=1, twice=True),
    Row("layer_prefill_36", f"{LAYER}, 8 bit: prefill of 36 tokens", "MAC per cycle",
        (Program("smollm2-layers", 128, prompt=36, steps=0, profile=True),), layer_macs("prefill"), 150,
        least=True, digits=1, twice=True),
)  # fmt: skip

# Three models in every format, measured after a prompt of 61 tokens and at the first position.
MODELS = {
    "stories": ("examples/stories", "examples/stories"),
    "stories260k": ("stories260K", "stories260K"),
    "micro": ("microLlama", "microLlama shape"),
}  # id: model, how the table calls it
FORMATS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "8bit": ((), "8 bit per-channel", "all"),
    "8bit_cores": (("--engines", "cores"), "8 bit per-channel", "cores only"),
    "4bit_g32": (GROUPS, "4 bit, group size 32", "all"),
    "4bit": (("--bits", "4"), "4 bit per-channel", "all"),
    "2bit": (("--bits", "2"), "2 bit per-channel", "all"),
}  # id: options, weights, engines

# One text of 8 tokens and few decode steps: GVSoC keeps 7 GB per step over these weights.
STREAMED = Program(SMOLLM2, 1024, text="red blue red blue red blue red blue", steps=1)
DRAFTED = replace(STREAMED, steps=4, prompt_lookup=3)
LLAMA_LAYER = Program("llama-3.2-1b-layer", 256, ("--bits", "4"), 2, profile=True)
SMOL = "SmolLM2-135M-Instruct, Q4_1, context 1024"
ONE = "one layer of LLaMA-3.2-1B's shape, 4 bit per-channel"
BUS = "decode, time in which the HyperBus transfers weights"
FLASH = (
    Row("smollm2_decode_8", f"{SMOL}: decode at position 8", "cycles per token", (STREAMED,), decode,
        needs=("smollm2",)),
    Row("smollm2_bus_share", f"{SMOL}: {BUS}", "% of cycles", (STREAMED,), bus_share, 97, least=True, digits=1,
        needs=("smollm2",)),
    Row("smollm2_prefill_8", f"{SMOL}: prefill of 8 tokens", "cycles", (STREAMED,), prefill, needs=("smollm2",)),
    Row("smollm2_prefill_ratio", f"{SMOL}: prefill of 8 tokens ÷ decode of one token", "ratio", (STREAMED,),
        prefill_to_decode, 1.1, digits=2, needs=("smollm2",)),
    Row("smollm2_lookup", f"{SMOL}: decode with prompt-lookup drafts of 3 tokens", "cycles per token", (DRAFTED,),
        each_token, needs=("smollm2",)),
    Row("smollm2_lookup_speedup", f"{SMOL}: speed-up by prompt lookup", "ratio", (STREAMED, DRAFTED), times_as_fast,
        1.5, least=True, digits=2, needs=("smollm2",)),
    Row("smollm2_lookup_accepted", f"{SMOL}: drafted tokens that were accepted", "%", (DRAFTED,), accepted,
        needs=("smollm2",)),
    Row("llama1b_layer_decode_3", f"{ONE}: decode at position 3", "cycles per token", (LLAMA_LAYER,), decode),
    Row("llama1b_layer_macs", f"{ONE}: decode", "MAC per cycle", (LLAMA_LAYER,), layer_macs("decode"), digits=1),
    Row("llama1b_layer_bus_share", f"{ONE}: {BUS}", "% of cycles", (LLAMA_LAYER,), bus_share, digits=1),
)  # fmt: skip
"""Models whose weights lie in flash; their runs take minutes and gigabytes each."""
