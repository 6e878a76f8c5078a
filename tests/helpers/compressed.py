"""A compression run as it lies on disk, its models aside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shrinkc.compression.run_directory import BUDGET, FORMAT, RECIPE, RUN, VERSION
from shrinkc.compression.sensitivity import MODULES, NARROW, WIDTHS
from shrinkc.compression.steps import StepRecord, list_files, write_json, write_step
from shrinkc.core.artifact import file_record


def step(
    folder: Path,
    name: str,
    stage: str,
    packed: int,
    perplexity: float | None,
    samples: dict[str, str] | None = None,
) -> None:
    """A step of a run as compression leaves it; ``samples``: prompt -> text."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    figures = {
        "layers": 5, "intermediate": 256, "kv_heads": 2, "parameters": 1000, "non_zeros": 1000,
        "bytes_on_disk": 2 * packed, "packed_bytes": packed,
    }  # fmt: skip
    files = {f: file_record(folder / f) for f in list_files(folder)}
    metrics: dict[str, Any] = {}
    if perplexity is not None:
        metrics["perplexity"] = {
            "perplexity": perplexity, "protocol": "wikitext512", "bits_per_byte": perplexity / 40,
            "text_tokens": 512,
        }  # fmt: skip
    if samples:
        texts = [{"prompt": prompt, "text": text} for prompt, text in samples.items()]
        metrics["samples"] = {"texts": texts}
    write_step(
        folder,
        StepRecord(
            name=name, stage=stage, seed=0, threads=1, versions={}, fingerprint={}, settings={},
            parameters={}, notes=[], figures=figures, seconds=30.0, metrics=metrics, files=files,
        ),
    )  # fmt: skip


def sensitivities(layers: int) -> dict[str, Any]:
    """Of a model of so many layers, as a budget keeps them: later layers and narrower ones cost more."""

    def costs(scale: float) -> dict[str, Any]:
        def at(layer: int, bits: int) -> float:
            return scale * (layer + 1) / 4**bits

        return {
            "layers": [
                {
                    "removed": scale * (i + 1), "ffn": {str(s): scale * s for s in NARROW}, "kv_group": None,
                    "bits": {str(bits): 7 * at(i, bits) for bits in WIDTHS},
                    "modules": {m: {str(bits): at(i, bits) for bits in WIDTHS} for m in MODULES},
                }
                for i in range(layers)
            ],
            "embedding": {str(bits): at(0, bits) for bits in WIDTHS},
        }  # fmt: skip

    return {
        "format": "shrinkc-sensitivity", "version": 1, "unit": "nats per token", "baseline": 1.5, "tokens": 510,
        "group_size": 32, "dtype": "float32", "samples": 2, "length": 256, "loss": costs(1.0), "kl": costs(0.5),
        "loss_error": costs(0.1), "kl_error": None,
    }  # fmt: skip


def write_run(run: Path, model: str, prompt: str) -> None:
    """A run of two steps with a budget, both measured, each with a text after ``prompt``."""
    step(run / "00-source", "00-source", "source", 2000, 30.5, {prompt: "there was a cat"})
    step(run / "01-gptq", "01-gptq", "gptq", 500, 33.25, {prompt: "there was a <b>dog</b> & me"})
    write_json(run / RUN, {"format": FORMAT, "version": VERSION, "model": model})
    (run / RECIPE).write_text("[gptq]\nbits = 4\n", encoding="utf-8")
    chosen = {"made_from": {}, "recipe": "", "report": {"sensitivity": sensitivities(5)}}
    write_json(run / BUDGET, chosen)
