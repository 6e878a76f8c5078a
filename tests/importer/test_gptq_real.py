"""Checkpoints of GPTQModel: our importer and GPTQModel read the same weights."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers.float_reference import forward
from helpers.tiny_llama import write_tiny_llama
from importer.quantize_with_gptqmodel import CASES, RANK, TOKENS, WITH_EORA
from shrinkc.importer import Formats, QuantizedWeight, load_model, open_checkpoint
from shrinkc.importer.gptq import read_gptq
from shrinkc.importer.model import Zero

pytestmark = pytest.mark.slow  # torch and GPTQModel

PROGRAM = Path(__file__).with_name("quantize_with_gptqmodel.py")


@pytest.fixture(scope="session")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("gptqmodel") is None:
        pytest.skip("gptqmodel is not installed (pip install '.[compress]')")
    folder = tmp_path_factory.mktemp("gptqmodel")
    source = folder / "float"
    write_tiny_llama(source, hidden=64, intermediate=96, heads=4, kv_heads=2, vocab=128, tied=False)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    (source / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names})
    )
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(source), str(folder)],
        capture_output=True,
        text=True,
        cwd=folder,  # it leaves logs where it runs
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("case", CASES)
def test_every_matrix_is_the_one_that_gptqmodel_computes(quantized: Path, case: str) -> None:
    expected = dict(np.load(quantized / f"{case}.npz"))
    del expected["logits"]
    ours = read_gptq(quantized / case)
    assert ours.keys() == expected.keys()
    assert len(ours) >= 13
    for name, weight in ours.items():
        # its kernel multiplies in float16
        rounded = weight.dequantized().astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(rounded, expected[name], err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_logits(quantized: Path, case: str) -> None:
    expected = np.load(quantized / f"{case}.npz")["logits"]
    model = load_model(quantized / case)
    # EoRA included, where there is one; the reference is a float16 model
    difference = np.abs(forward(model, TOKENS) - expected)
    assert difference.max() < 0.03 < 0.3 < np.abs(expected).max()


def test_formats(quantized: Path) -> None:
    def of(case: str) -> Formats:
        found = open_checkpoint(quantized / case).formats
        assert found is not None
        weights = read_gptq(quantized / case)
        assert {n: (w.bits, w.group) for n, w in weights.items()} == {
            n: f[:2] for n, f in found.items()
        }
        return found

    assert set(of("b4_sym").values()) == {(4, 32, Zero.MIDDLE)}
    assert set(of("b4_act").values()) == {(4, 32, Zero.POINT)}
    mixed = of("b3_v2_dynamic")
    assert "model.layers.0.mlp.up_proj" not in mixed
    assert mixed["model.layers.1.mlp.up_proj"] == (8, 16, Zero.POINT)
    assert mixed["model.layers.0.mlp.gate_proj"] == (3, 32, Zero.POINT)
    per_channel = of("b8_channel")
    assert per_channel["model.layers.0.mlp.down_proj"] == (8, 96, Zero.MIDDLE)
    assert "lm_head" in per_channel


def test_act_order_and_eora_are_really_there(quantized: Path) -> None:
    ordered = load_model(quantized / "b4_act").layers[0].wq
    assert isinstance(ordered, QuantizedWeight)
    assert ordered.order is not None
    layers = load_model(quantized / WITH_EORA).layers
    assert all(len(layer.adapters) == 7 for layer in layers)
    assert layers[0].adapters["o_proj"].a.shape == (RANK, 64)
