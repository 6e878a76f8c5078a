"""The line of Python in a step's model card: it loads the step as shrinkc does, or refuses."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny_gptq import tiny_gptq
from helpers.tiny_llama import write_tiny_llama
from shrinkc.checkpoints import Loading, load, pack_step
from shrinkc.importer.embedding_sidecar import SIDECAR, read_embedding

RANK = 4
SIZES: dict[str, Any] = {"hidden": 64, "intermediate": 64, "layers": 1, "heads": 2, "kv_heads": 2}
MIXED: dict[str, Any] = {
    "group": 16, "sym": False, "desc_act": "shared",
    "module_bits": {"model.layers.0.mlp.up_proj": 8, "model.layers.0.mlp.down_proj": 3},
}  # fmt: skip
EORA: dict[str, Any] = {"eora_rank": RANK, "eora_folder": "."}
KINDS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "mixed": MIXED,
    "eora": EORA,
    "mixed-eora": MIXED | EORA,
}


def make(folder: Path, kind: str) -> Path:
    if kind.startswith("packed"):
        tiny_gptq(folder, **SIZES, **(KINDS[kind.removeprefix("packed-")]), embedding_bits=4)
        pack_step(folder, {SIDECAR: read_embedding(folder / SIDECAR)})
    elif kind == "float":
        write_tiny_llama(folder, **SIZES)
    else:
        tiny_gptq(folder, **SIZES, **KINDS[kind])
    return folder


def line_of(folder: Path) -> str:
    """Return the code block of the section on loading."""
    _, code, _ = Loading.of(folder).section().split("```")
    return code.removeprefix("python\n")


@pytest.mark.parametrize(
    ("kind", "plain", "said"),
    [
        ("float", True, "AutoModelForCausalLM.from_pretrained('.')"),
        ("uniform", True, "AutoModelForCausalLM.from_pretrained('.')"),
        ("mixed", False, "GPTQModel.load('.', backend"),
        ("eora", True, "import peft; from transformers"),
        ("packed-mixed", False, "shrinkc.load('.')"),
        ("mixed-eora", False, f"adapter=Lora(path='.', rank={RANK})"),
    ],
)
def test_what_the_section_says(tmp_path: Path, kind: str, plain: bool, said: str) -> None:
    loading = Loading.of(make(tmp_path / "step", kind))
    assert said in line_of(tmp_path / "step")
    assert loading.plain == plain
    assert str(tmp_path) not in loading.section()
    assert str(tmp_path) in loading.line(str(tmp_path / "step"))


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(torch.arange(16)[None] + 3).logits.float()


@pytest.mark.slow
@pytest.mark.libraries("gptqmodel", "optimum", "peft", "torch")
@pytest.mark.parametrize("kind", ["float", *KINDS, "packed-mixed", "packed-eora"])
def test_the_line_loads_the_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    step = make(tmp_path / "step", kind)
    monkeypatch.chdir(step)
    names: dict[str, Any] = {}
    exec(line_of(step), names)
    found, wanted = logits(names["model"]), logits(load(step).model)
    # 16-bit arithmetic against float32; a lost adapter is an error of 40 %
    assert (found - wanted).norm() < 0.03 * wanted.norm()


@pytest.mark.slow
@pytest.mark.libraries("gptqmodel", "optimum", "peft", "torch")
def test_nothing_is_left_out_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForCausalLM.from_pretrained(make(tmp_path / "mixed", "mixed"))
    step = make(tmp_path / "eora", "eora")
    plain = AutoModelForCausalLM.from_pretrained(step)  # for any path, not only the section's
    wanted = logits(load(step).model)
    assert (logits(plain) - wanted).norm() < 0.03 * wanted.norm()
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError):
        exec(line_of(step), {})
