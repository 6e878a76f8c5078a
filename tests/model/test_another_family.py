"""A new family takes two files: one with biases and head norms is added to a copy of the package by its file and an
entry in families.py, and is then planned, compiled, run and verified."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from end_to_end.programs import need
from helpers.product import copy_with
from helpers.tiny_llama import write_tiny_llama

FAMILY = '''"""Biases of q, k and v, and norms of heads."""

from shrinkc.model.family import HEAD_NORMS, NORMS, QKV, Family

FERN = Family(
    name="fern", architecture="FernForCausalLM", gguf="fern", gguf_interleaved=False,
    norms=(*NORMS, *HEAD_NORMS), biased=QKV, defaults={"bos_token_id": 1},
)
'''
HEADS, KV_HEADS, HEAD = 4, 2, 8


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the wheel's files, with one new and one changed file."""
    return copy_with(
        tmp_path_factory.mktemp("product"),
        {"compiler/shrinkc/model/fern.py": FAMILY},
        "compiler/shrinkc/model/families.py",
        {
            "from shrinkc.model.llama": "from shrinkc.model.fern import FERN\nfrom shrinkc.model.llama",
            "(LLAMA, MISTRAL": "(FERN, LLAMA, MISTRAL",
        },
        "FERN",
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLaMA, changed to the family by its config and additional tensors."""
    folder = tmp_path_factory.mktemp("model")
    write_tiny_llama(folder, hidden=32, heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "fern", "architectures": ["FernForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    tensors, rng = load_file(folder / "model.safetensors"), np.random.default_rng(1)
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}.self_attn"
        for name, rows in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            bias = rng.standard_normal(rows * HEAD).astype(np.float32)
            tensors[f"{at}.{name}_proj.bias"] = bias
        for name in ("q", "k"):
            tensors[f"{at}.{name}_norm.weight"] = rng.uniform(0.5, 2, HEAD).astype(np.float32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def shrinkc(product: Path, *arguments: object, code: int = 0) -> str:
    """Run the copy's command line and return its output."""
    env = {**os.environ, "PYTHONPATH": str(product / "compiler")}
    done = subprocess.run(
        [sys.executable, "-m", "shrinkc", *map(str, arguments)],
        capture_output=True, text=True, env=env, cwd=product, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_the_product_refuses_it_by_name(model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "shrinkc", "plan", str(model)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 11 and "fern" in done.stderr, done.stderr


@pytest.mark.slow
def test_planned_compiled_run_and_proved(product: Path, model: Path, tmp_path: Path) -> None:
    need("host")
    refused = shrinkc(product, "plan", write_unknown(tmp_path / "unknown"), code=11)
    assert "fern (FernForCausalLM)" in " ".join(refused.split())
    shrinkc(product, "plan", model)
    out = tmp_path / "out"
    shrinkc(product, "compile", model, "-o", out)
    text = (out / "ir.txt").read_text()
    assert "bias = int32" in text and "q_gain = int16" in text and "k_gain = int16" in text
    told = shrinkc(
        product,
        "run",
        out,
        "--on",
        "host",
        "--prompt-ids",
        "1,5,9,7",
        "--tokens",
        "12",
        "--ignore-eos",
    )
    assert "verified bit for bit" in told


def write_unknown(folder: Path) -> Path:
    """Write a model of an unknown family."""
    write_tiny_llama(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "moss"}))
    return folder
