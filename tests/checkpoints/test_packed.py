"""Packed steps: embedding and LM head as integers, and the standard GPTQ checkpoints that are made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import shrinkc
from helpers.tiny_gptq import tiny_gptq
from shrinkc.checkpoints import is_packed, pack_step, write_gptq
from shrinkc.compression.facts import facts_of
from shrinkc.compression.summary import markdown
from shrinkc.core.errors import ShapeMismatch
from shrinkc.importer import load_model, open_checkpoint
from shrinkc.importer.embedding_sidecar import HEAD_SIDECAR, SIDECAR, read_embedding
from shrinkc.importer.gptq import read_gptq
from shrinkc.importer.safetensors_file import PACKED

SMALL: dict[str, Any] = {"hidden": 64, "intermediate": 96, "layers": 2, "heads": 4, "kv_heads": 2}
KINDS: dict[str, dict[str, Any]] = {
    "symmetric": {"embedding_bits": 4},
    "zero points": {"sym": False, "embedding_bits": 3},
    "gptq_v2": {"layout": "gptq_v2", "embedding_bits": 4},
    "order": {"sym": False, "desc_act": "shared", "embedding_bits": 8},
    "per channel": {"group": -1, "embedding_bits": 2},
    "mixed": {
        "module_bits": {"model.layers.0.mlp.up_proj": 8, "model.layers.1.mlp.up_proj": 3},
        "embedding_bits": 4,
    },
    "adapter": {"embedding_bits": 4, "eora_rank": 4, "eora_folder": "."},
}


def packed(folder: Path, **about: Any) -> tuple[Path, Path]:
    """Return a checkpoint of GPTQModel with a sidecar, and the same as a packed step."""
    plain, step = folder / "plain", folder / "step"
    for directory in (plain, step):
        tiny_gptq(directory, **{**SMALL, **about})
    matrix = read_embedding(step / SIDECAR)
    pack_step(step, {SIDECAR: matrix})
    return plain, step


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_step_is_the_same_model(tmp_path: Path, kind: str) -> None:
    plain, step = packed(tmp_path, **KINDS[kind])
    assert is_packed(step) and not is_packed(plain)
    assert not (step / "model.safetensors").exists()
    before, after = read_gptq(plain), read_gptq(step)
    assert before.keys() == after.keys() and len(after) == 15
    for name, weight in before.items():
        for part in ("bits", "group", "q", "scale", "offset", "order"):
            np.testing.assert_array_equal(getattr(weight, part), getattr(after[name], part), name)
    assert open_checkpoint(plain).formats == open_checkpoint(step).formats
    assert open_checkpoint(plain).permuted == open_checkpoint(step).permuted
    assert open_checkpoint(plain).ranks == open_checkpoint(step).ranks
    sizes = [facts_of(directory).packed_bytes for directory in (plain, step)]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_standard_checkpoint_has_the_tensors_of_the_quantiser(
    tmp_path: Path, kind: str
) -> None:
    plain, step = packed(tmp_path, **KINDS[kind])
    out = tmp_path / "gptq"
    out.mkdir()
    write_gptq(step, out)
    wanted, found = (load_file(d / "model.safetensors") for d in (plain, out))
    assert wanted.keys() == found.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name], tensor, name)
    names = [sorted(f.name for f in d.iterdir() if f.name != SIDECAR) for d in (plain, out)]
    assert names[0] == names[1]
    for name in ("config.json", "quantize_config.json"):
        texts = [json.loads((d / name).read_text()) for d in (plain, out)]
        assert texts[0] == texts[1]
    # a directory without packed weights is copied
    again = tmp_path / "again"
    again.mkdir()
    write_gptq(out, again)
    assert (again / "model.safetensors").samefile(out / "model.safetensors")


def test_the_bytes_on_disk_are_the_bytes_that_are_said(tmp_path: Path) -> None:
    """Weights of 3.5 MB, beside which configuration, tokenizer and headers are small."""
    sizes = {"hidden": 512, "intermediate": 1024, "layers": 2, "heads": 8, "kv_heads": 4}
    for name, about in {
        "symmetric": {"group": 64, "embedding_bits": 4},
        "points": {"group": 64, "sym": False, "embedding_bits": 3},
    }.items():
        plain, step = packed(tmp_path / name, **sizes, **about)
        facts = facts_of(step)
        assert facts.packed_bytes > 2_000_000
        assert facts.bytes_on_disk == sum(f.stat().st_size for f in step.iterdir())
        assert facts.packed_bytes < facts.bytes_on_disk <= 1.02 * facts.packed_bytes
        assert facts_of(plain).bytes_on_disk > 1.02 * facts.packed_bytes


def test_the_table_says_what_its_sizes_are() -> None:
    assert "On disk: all files of the step's directory" in markdown([])


def test_a_step_without_its_embedding_is_refused(tmp_path: Path) -> None:
    _, step = packed(tmp_path, embedding_bits=4)
    (step / SIDECAR).unlink()
    with pytest.raises(ShapeMismatch, match=r"missing model.embed_tokens.weight"):
        load_model(step)


def test_a_separate_head_is_packed_too(tmp_path: Path) -> None:
    step = tmp_path / "step"
    tiny_gptq(step, **SMALL, embedding_bits=4, tied=False)
    matrix = read_embedding(step / SIDECAR)
    pack_step(step, {SIDECAR: matrix, HEAD_SIDECAR: matrix})
    model = load_model(step)
    for found in (model.embedding, model.head):
        np.testing.assert_array_equal(found.q, matrix.q)  # type: ignore[union-attr]
    assert not [
        name for name in load_file(step / PACKED) if name.startswith(("lm_head", "model.emb"))
    ]


@pytest.mark.slow
@pytest.mark.libraries("torch", "transformers")
@pytest.mark.parametrize("kind", KINDS)
def test_shrinkc_load_gives_the_same_logits(tmp_path: Path, kind: str) -> None:
    import torch

    plain, step = packed(tmp_path, **KINDS[kind])
    ids = torch.arange(16)[None] + 3
    with torch.no_grad():
        wanted, found = (shrinkc.load(d)(ids).logits for d in (plain, step))
    assert torch.equal(wanted, found)
    with pytest.raises(shrinkc.errors.UsageError, match="dtype='int8'"):
        shrinkc.load(step, dtype="int8")


@pytest.mark.slow
@pytest.mark.libraries("torch", "transformers")
def test_no_other_library_starts_from_a_random_embedding(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    _, step = packed(tmp_path, embedding_bits=4)
    with pytest.raises(OSError, match=r"model.safetensors"):
        AutoModelForCausalLM.from_pretrained(step)


@pytest.mark.slow
@pytest.mark.libraries("gptqmodel", "optimum", "torch")
def test_transformers_loads_the_standard_checkpoint(tmp_path: Path) -> None:
    """Of a packed step with one format, through GPTQModel's kernels."""
    import torch
    from transformers import AutoModelForCausalLM

    _, step = packed(tmp_path, sym=False, embedding_bits=4, intermediate=64)
    (tmp_path / "gptq").mkdir()
    write_gptq(step, tmp_path / "gptq")
    ids = torch.arange(16)[None] + 3
    with torch.no_grad():
        wanted = shrinkc.load(step)(ids).logits
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "gptq")(ids).logits.float()
    assert (found - wanted).norm() < 0.03 * wanted.norm()  # float16 against float32
