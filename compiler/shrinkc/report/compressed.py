"""The sections of a compression run's report."""

from __future__ import annotations

from collections.abc import Sequence

from shrinkc.core.words import show_time
from shrinkc.report.heat import costs_of_layers, heat
from shrinkc.report.parts import (
    NONE,
    Card,
    Data,
    Figure,
    Samples,
    Section,
    Table,
    Text,
    number,
    percent,
    size,
)
from shrinkc.report.quality import quality


def sections(data: Data) -> list[Section]:
    """In the order of the page."""
    return [
        _verdict(data),
        _quality(data),
        _steps(data),
        _sensitivity(data),
        _samples(data),
        Section("recipe", "Recipe", source_said="As it ran (recipe.toml):", source=data["recipe"]),
    ]


def _verdict(data: Data) -> Section:
    steps = data["steps"]
    cards = []
    if steps:
        first, last = steps[0], steps[-1]
        cards = [
            Card("Packed size", size(last["packed_bytes"]),
                 f"{percent(last['share'])} of the given model in bf16, {size(first['packed_bytes'])} as given",
                 min(1.0, last["share"])),
            Card("Parameters", number(last["parameters"]), f"of {number(first['parameters'])}"),
            _change("Perplexity", "perplexity", steps, 2),
            _change("Bits per byte", "bits_per_byte", steps, 4),
            Card("Steps", number(len(steps) - 1), f"took {show_time(data['seconds'])}"),
        ]  # fmt: skip
    return Section("verdict", "Verdict", cards=cards, notes=data["notes"])


def _change(title: str, key: str, steps: Sequence[Data], digits: int) -> Card:
    """What the last measured step has, and the first one."""
    measured = [s for s in steps if s[key] is not None]
    if not measured:
        return Card(title, NONE, "not measured")
    first, last = measured[0], measured[-1]
    return Card(
        title, number(last[key], digits),
        f"of {last['name']}; {number(first[key], digits)} of {first['name']}; {last['protocol']}",
    )  # fmt: skip


def _quality(data: Data) -> Section:
    key, name = _measure(data)
    svg = quality(data["steps"], key, name)
    if svg is None:
        return Section(
            "quality", "Bytes against quality", notes=["No step of this run was measured."]
        )
    said = (
        "Each measured step: packed bytes across (integers at their width, all else at 16 bit), "
        f"{name} upwards, less is better. Point at a step, or use the arrow keys, to see its figures."
    )
    return Section(
        "quality", "Bytes against quality", said, figures=[Figure(svg, f"{name} over bytes")]
    )


def _measure(data: Data) -> tuple[str, str]:
    """Perplexities of different tokens do not compare; bits per byte do."""
    return (
        ("perplexity", "perplexity") if data["same_tokens"] else ("bits_per_byte", "bits per byte")
    )


def _steps(data: Data) -> Section:
    rows = [
        (s["name"], s["stage"], number(s["layers"]), number(s["intermediate"]), number(s["kv_heads"]),
         number(s["vocabulary"]), number(s["parameters"]), size(s["packed_bytes"]), percent(s["share"]),
         number(s["perplexity"], 2), number(s["bits_per_byte"], 4), percent(s["trivia_closed"]),
         percent(s["trivia_open"]), percent(s["hellaswag"]), percent(s["hellaswag_norm"]), show_time(s["seconds"]))
        for s in data["steps"]
    ]  # fmt: skip
    head = (
        "step", "stage", "#layers", "#FFN", "#KV heads", "#tokens", "#parameters", "#packed", "#of bf16",
        "#perplexity", "#bits per byte", "#TriviaQA closed", "#TriviaQA open", "#HellaSwag acc",
        "#HellaSwag norm", "#took",
    )  # fmt: skip
    said = [(s["name"], note) for s in data["steps"] for note in s["notes"]]
    tables = [Table("Steps", head, rows)]
    if said:
        tables.append(Table("What the steps said", ("step", "note"), said))
    return Section("steps", "Step by step", tables=tables if rows else ())


def _sensitivity(data: Data) -> Section:
    s = data["sensitivity"]
    if s is None:
        note = "No sensitivities lie here: a recipe with a budget measures them, and so does 'shrinkc sensitivity'."
        return Section("sensitivity", "Sensitivities", notes=[note])
    figures = [
        Figure(heat(s["layers"], s["modules"], s["matrices"][bits], f"one matrix at {bits} bit"),
               f"one matrix at {bits} bit: divergence, {s['unit']}")
        for bits in s["matrices"]
    ]  # fmt: skip
    title = "a layer removed: growth of the loss"
    figures.append(Figure(costs_of_layers(s["removed"], title), f"{title}, {s['unit']}"))
    head = ("layer", "#removed: loss grows by", *(f"#all at {bits} bit" for bits in s["all_at"]))
    rows = [
        (
            f"layer {i}",
            number(s["removed"][i], 5),
            *(number(costs[i], 5) for costs in s["all_at"].values()),
        )
        for i in range(s["layers"])
    ]
    said = (
        f"What it costs to change one thing, the rest of the model as it is: {s['unit']}, over {s['tokens']:,} "
        f"predictions of {s['samples']} windows. Stronger colour: costs more (logarithmic)."
    )
    table = Table("Layers: growth of the loss", head, rows, folded=True)
    return Section("sensitivity", "Sensitivities", said, figures=figures, tables=[table])


def _samples(data: Data) -> Section:
    found: dict[str, list[Text]] = {}
    for step in data["steps"]:
        for sample in step["samples"]:
            found.setdefault(sample["prompt"], []).append(Text(step["name"], sample["text"]))
    samples = [Samples(prompt, texts) for prompt, texts in found.items()]
    said = "What each step goes on with after the same prompt, greedily." if samples else ""
    notes = (
        [] if samples else ["No step wrote samples: a recipe asks for them with evaluate.samples."]
    )
    return Section("samples", "Samples side by side", said, samples=samples, notes=notes)
