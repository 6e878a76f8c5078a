"""What is measured on GVSoC, of which programs, and the bar that each figure is held to.

Peers' figures are those of Deeploy at bf64cfae, in its documents ("published") and of its generated code rebuilt
with stock GCC 14.2 on the same simulator ("re-run").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from shrinkc.importer import parse_config
from shrinkc.model import matrix_shapes

L2_MAY = 1.15  # times as many cycles with the decode path's code in L2
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
LAYERS = {
    "smollm2-layer": {"hidden": 576, "ffn": 1536, "heads": 9, "kv_heads": 3, "head_dim": 64, "layers": 1},
    "smollm2-layers": {"hidden": 576, "ffn": 1536, "heads": 9, "kv_heads": 3, "head_dim": 64, "layers": 2},
    "llama-3.2-1b-layer": {
        "hidden": 2048, "ffn": 8192, "heads": 32, "kv_heads": 8, "head_dim": 64, "layers": 1,
    },
}  # fmt: skip
"""Of random weights, with a vocabulary of 512."""


@dataclass(frozen=True)
class Program:
    """A model, how it is compiled, and its run: ``prompt`` tokens, or those of ``text``, and ``steps`` of decode
    behind them, the last of which is that of position ``prompt + steps - 1``; with ``lookup`` so many tokens in
    fewer passes, with drafts of that length.  ``profile``: operations are timed too."""

    model: str
    context: int
    options: tuple[str, ...] = ()
    prompt: int = 1
    steps: int = 2  # the first makes what the engine's jobs have in common
    profile: bool = False
    text: str | None = None
    lookup: int | None = None

    @property
    def name(self) -> str:
        return "-".join([self.model, str(self.context), *self.options]).replace("--", "")

    @property
    def in_l2(self) -> Program:
        """With the decode path's code there."""
        return replace(self, options=(*self.options, "--code", "l2"))

    def command(self, model: str, out: str) -> tuple[list[str], list[str]]:
        """(of the compilation, of the run), without ``shrinkc``."""
        compiled = ["compile", model, "--target", "siracusa", "--context", str(self.context)]
        compiled += [*self.options, "-o", out]
        ids = ",".join(map(str, [1, *(259 + i % 200 for i in range(self.prompt - 1))]))
        given = ["--prompt-ids", ids] if self.text is None else ["--prompt", self.text]
        run = ["run", out, "--on", "gvsoc", *given, "--tokens", str(self.steps + 1), "--ignore-eos"]
        run += [] if self.lookup is None else ["--lookup", str(self.lookup)]
        return compiled, [*run, "--json", *(["--profile"] * self.profile)]


Measure = Callable[[list[dict[str, Any]], list[dict[str, Any]]], float]
"""Of the runs of a row's programs, and their models' configurations, the figure."""


@dataclass(frozen=True)
class Row:
    """One figure.  ``least``: more is better, of the figure and of ``bar`` and ``aim``, which not every figure
    has.  ``twice``: also with code in L2, where :data:`L2_MAY` is what the bar allows."""

    what: str
    programs: tuple[Program, ...]
    measure: Measure
    bar: float | None = None
    aim: float | None = None
    published: str = ""
    again: str = ""
    least: bool = False
    digits: int = 0
    needs: tuple[str, ...] = field(default=())
    twice: bool = False

    @property
    def in_l2(self) -> Row:
        """The same figure with code in L2."""
        bar = None if self.bar is None else self.bar / L2_MAY if self.least else self.bar * L2_MAY
        return replace(self, programs=tuple(p.in_l2 for p in self.programs), bar=bar, twice=False)

    def met(self, value: float) -> str:
        """Whether the bar is, for the table."""
        if self.bar is None:
            return "–"
        return "yes" if (value >= self.bar if self.least else value <= self.bar) else "no"

    def shown(self, value: float) -> str:
        """A figure, a bar or an aim as the table has it."""
        return f"{value:,.{self.digits}f}"

    def cells(self, value: float, in_l2: float | None = None) -> list[str]:
        """Of the table, the command left out."""
        met, moved = self.met(value), "–"
        if in_l2 is not None:
            met, moved = f"{met}, {self.in_l2.met(in_l2)}", f"**{self.shown(in_l2)}**"
        bar = "–" if self.bar is None else f"{'≥' if self.least else '≤'} {self.shown(self.bar)}"
        aim = "–" if self.aim is None else self.shown(self.aim)
        return [self.what, f"**{self.shown(value)}**", moved, bar, aim, met, self.published or "–",
                self.again or "–"]  # fmt: skip


def decode(runs: list[dict[str, Any]], configs: list[dict[str, Any]]) -> float:
    """The last step."""
    return float(runs[0]["cycles"]["decode"][-1])


def each_token(runs: list[dict[str, Any]], configs: list[dict[str, Any]]) -> float:
    """All passes after the prefill, over the tokens that they gave."""
    return sum(runs[0]["cycles"]["decode"]) / (len(runs[0]["new_tokens"]) - 1)


def each_cached(runs: list[dict[str, Any]], configs: list[dict[str, Any]]) -> float:
    """Of two runs, the second behind more tokens."""
    first, last = (run["cycles"]["decode"][-1] for run in runs)
    return float(last - first) / (len(runs[1]["prompt_tokens"]) - len(runs[0]["prompt_tokens"]))


def prefill(runs: list[dict[str, Any]], configs: list[dict[str, Any]]) -> float:
    return float(runs[0]["cycles"]["prefill"])


def prefill_to_decode(runs: list[dict[str, Any]], configs: list[dict[str, Any]]) -> float:
    """The whole prompt against one decoded token."""
    return prefill(runs, configs) / decode(runs, configs)


def ratio(runs: list[dict[str, Any]], configs: list[dict[str, Any]]) -> float:
    """The first program's decode step against the second's."""
    first, second = (float(run["cycles"]["decode"][-1]) for run in runs)
    return first / second


def least(runs: list[dict[str, Any]], configs: list[dict[str, Any]]) -> float:
    """The fastest program's decode step."""
    return min(float(r["cycles"]["decode"][-1]) for r in runs)


def bus_share(runs: list[dict[str, Any]], configs: list[dict[str, Any]]) -> float:
    """Of the last decode step, the share in per cent in which the HyperBus, a byte per cycle, brings weights."""
    return 100 * float(runs[0]["weights_in_flash"]) / decode(runs, configs)


def times_as_fast(runs: list[dict[str, Any]], configs: list[dict[str, Any]]) -> float:
    """The second run against the first per token; ValueError where their texts do not begin alike."""
    first, second = (run["new_tokens"] for run in runs)
    if any(a != b for a, b in zip(first, second, strict=False)):
        raise ValueError(f"drafts changed the text: {first}, {second}")
    return each_token(runs[:1], configs) / each_token(runs[1:], configs)


def accepted(runs: list[dict[str, Any]], configs: list[dict[str, Any]]) -> float:
    """Per cent of the drafted tokens."""
    drafts = runs[0]["lookup"]
    return 100 * float(drafts["accepted"]) / float(drafts["drafted"])


def layer_macs(phase: str) -> Measure:
    """Products of weights and of attention in all layers, per cycle that these take, of a profile; of a prompt in all
    but the last one, where most of its tokens only fill the cache."""

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


LONG = {at: Program("microLlama", 256, prompt=at - 1) for at in (64, 248)}
STORIES = {
    bits: Program("examples/stories", 64, () if bits == 8 else ("--bits", str(bits)), 61)
    for bits in (8, 4, 2)
}
BEST = tuple(
    Program("stories260K", 64, options, 61)
    for options in (
        (),
        ("--bits", "4"),
        ("--bits", "2"),
        ("--bits", "4", "--group", "32", "--short-last-group"),
    )
)
ROWS = (
    Row("microLlama and a head of 512 tokens, 8 bit, compiled for 256: decode at position 64", (LONG[64],),
        decode, 100_000, 71_000, "780,000", "918,000", twice=True),
    Row("same, at position 248", (LONG[248],), decode, 180_000, 120_000, "", "1,990,000", twice=True),
    Row("same, each cached token", (LONG[64], LONG[248]), each_cached, 450, 300, "", "5,700", twice=True),
    Row("same, prefill of 64 tokens", (Program("microLlama", 256, prompt=64, steps=0),), prefill, 2_500_000,
        1_400_000, "28,300,000", "28,500,000", twice=True),
    Row("stories260K, decode at position 62, best of its formats", BEST, least, 50_000, 35_000,
        needs=("data",), twice=True),
    Row("examples/stories, 8 bit, decode at position 62", (STORIES[8],), decode, 70_000, 50_000, twice=True),
    Row("same, 4 bit against 8 bit", (STORIES[4], STORIES[8]), ratio, 1.0, 0.5, digits=2),
    Row("same, 2 bit against 4 bit", (STORIES[2], STORIES[4]), ratio, 1.0, 0.5, digits=2),
    Row("a layer of SmolLM2-135M's shape, 4 bit per row, decode at position 16: MAC per cycle",
        (Program("smollm2-layer", 128, ("--bits", "4"), 15, profile=True),), layer_macs("decode"), 35, 50,
        least=True, digits=1, twice=True),
    Row("same layer, 8 bit, prefill of 36: MAC per cycle",
        (Program("smollm2-layers", 128, prompt=36, steps=0, profile=True),), layer_macs("prefill"), 150, 250,
        least=True, digits=1, twice=True),
)  # fmt: skip

# one text of 8 tokens for all, and few passes: GVSoC keeps 7 GB for each over these weights
STREAMED = Program(SMOLLM2, 1024, text="red blue red blue red blue red blue", steps=1)
DRAFTED = replace(STREAMED, steps=4, lookup=3)
LLAMA_LAYER = Program("llama-3.2-1b-layer", 256, ("--bits", "4"), 2, profile=True)
FLASH = (
    Row(f'SmolLM2-135M-Instruct, Q4_1, compiled for 1024, behind "{STREAMED.text}": decode at position 8',
        (STREAMED,), decode, needs=("smollm2",)),
    Row("same, % of the HyperBus bound", (STREAMED,), bus_share, 97, 99, least=True, digits=1,
        needs=("smollm2",)),
    Row("same, prefill of these 8 tokens", (STREAMED,), prefill, needs=("smollm2",)),
    Row("same, prefill of 8 tokens against decode of one", (STREAMED,), prefill_to_decode, 1.1, 1.02, digits=2,
        needs=("smollm2",)),
    Row("same, the next 4 tokens with drafts of 3 by prompt lookup: per token", (DRAFTED,), each_token,
        needs=("smollm2",)),
    Row("same, times as fast with these drafts", (STREAMED, DRAFTED), times_as_fast, 1.5, 2, least=True, digits=2,
        needs=("smollm2",)),
    Row("same, % of drafted tokens accepted", (DRAFTED,), accepted, least=True, needs=("smollm2",)),
    Row("a layer of LLaMA-3.2-1B's shape, random, 4 bit per row, with a head of 512 tokens: decode at position 3",
        (LLAMA_LAYER,), decode),
    Row("same, MAC per cycle in the layer, mean of two tokens", (LLAMA_LAYER,), layer_macs("decode"), least=True,
        digits=1),
    Row("same, % of the HyperBus bound", (LLAMA_LAYER,), bus_share, least=True, digits=1),
)  # fmt: skip
"""Of models whose weights lie in flash; their runs take minutes and gigabytes each."""
