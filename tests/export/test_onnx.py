"""The ONNX graph, run by onnxruntime, gives the interpreter's integers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.conftest import Cli
from end_to_end.programs import add_adapters
from helpers.tiny_families import write_family
from helpers.tiny_gptq import tiny_gptq
from helpers.tiny_llama import write_tiny_llama
from shrinkc.core.errors import UnsupportedModel
from shrinkc.export import fixed, vectors
from shrinkc.export.model import CONVERTERS, to_onnx
from shrinkc.importer import load_model
from shrinkc.ir.graph import Graph
from shrinkc.ir.ops import OPS, NormQuant, Quant, SiluMul
from shrinkc.ir.serialize import load
from shrinkc.numerics import fixed as exact
from shrinkc.numerics import vectors as exact_vectors
from shrinkc.quantize import QuantOptions, lower

from .runtime import differences, evaluated

pytestmark = pytest.mark.libraries("onnx", "onnxruntime")

STORIES = Path(__file__).resolve().parents[2] / "examples" / "stories"


# ---- whole models ----


def test_stories(tmp_path: Path) -> None:
    graph = lower(load_model(STORIES), QuantOptions(), 128)
    assert differences(graph, [1, 403, 407, 261], 32) == 0


@pytest.mark.libraries("torch", "transformers")
@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
        ("qwen2", {}),
        ("llama", {"attention_bias": True, "num_key_value_heads": 1}),
    ],
)
def test_families(tmp_path: Path, family: str, config: dict[str, Any]) -> None:
    write_family(tmp_path / "m", family, **config)
    graph = lower(load_model(tmp_path / "m"), QuantOptions(), 24)
    assert differences(graph, [3, 7, 11], 4) == 0


@pytest.mark.parametrize(
    "options",
    [
        QuantOptions(bits=4, group_size=32, embedding_bits=4),
        QuantOptions(
            bits=4, group_size=24, embedding_bits=8, asymmetric=True, short_last_group=True
        ),
        QuantOptions(bits=2, group_size=16, embedding_bits=3, short_last_group=True),
        QuantOptions(bits=6, group_size=16, embedding_bits=5, asymmetric=True),
    ],
    ids=str,
)
def test_groups(tmp_path: Path, options: QuantOptions) -> None:
    write_tiny_llama(
        tmp_path / "m", hidden=64, intermediate=96, heads=4, kv_heads=2, tied=False, seed=5
    )
    graph = lower(load_model(tmp_path / "m"), options, 24)
    assert any(op.weight.d is not None for op in graph.ops if hasattr(op, "weight"))
    assert differences(graph, [3, 7, 11], 4) == 0


@pytest.mark.parametrize("options", [QuantOptions(), QuantOptions(bits=4, group_size=8)], ids=str)
def test_adapters(tmp_path: Path, options: QuantOptions) -> None:
    write_tiny_llama(tmp_path / "m", hidden=40, intermediate=56, heads=4, kv_heads=2, head_dim=6)
    model = load_model(tmp_path / "m")
    add_adapters(model, {"q_proj": 2, "o_proj": 3, "up_proj": 1, "down_proj": 5})
    assert differences(lower(model, options, 24), [3, 7, 11], 4) == 0


def test_inputs_in_another_order(tmp_path: Path) -> None:
    tiny_gptq(tmp_path / "q", group=16, sym=False, desc_act="shared", eora_rank=3, embedding_bits=8)
    graph = lower(load_model(tmp_path / "q"), QuantOptions(), 24)
    assert any(op.perm is not None for op in graph.ops if isinstance(op, (NormQuant, Quant)))
    assert differences(graph, [3, 7, 11], 4) == 0


@pytest.mark.parametrize("form", ["tied", "window"])
def test_gemma(tmp_path: Path, form: str) -> None:
    config: dict[str, Any] = {
        "tied": {"tie_word_embeddings": True},
        "window": {"sliding_window": 3},
    }[form]
    kinds = ["sliding_attention", "full_attention"]
    write_family(tmp_path / "m", "gemma3_text", head_dim=16, layer_types=kinds, **config)
    graph = lower(load_model(tmp_path / "m"), QuantOptions(), 24)
    assert differences(graph, [3, 7, 11, 5], 4) == 0


def test_another_model_differs(tmp_path: Path) -> None:
    """So that the comparison is one."""
    graphs = []
    for seed in (0, 1):
        write_tiny_llama(tmp_path / f"{seed}", seed=seed)
        graphs.append(lower(load_model(tmp_path / f"{seed}"), QuantOptions(), 24))
    assert differences(graphs[0], [3, 7], 1, other=graphs[1]) > 0


# ---- primitives, where models do not come ----

RNG = np.random.default_rng(11)
EDGES = np.array(
    [0, 1, 2, 3, 127, 128, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 52], np.int64
)
POSITIVE = np.concatenate(
    [EDGES, (1 << np.arange(62)), (1 << np.arange(1, 62)) - 1, RNG.integers(0, 1 << 62, 200)]
)
SIGNED = np.concatenate([POSITIVE >> 20, -(POSITIVE >> 20)])
INT32 = np.concatenate(
    [SIGNED[np.abs(SIGNED) < 1 << 31], RNG.integers(-(1 << 31) + 1, 1 << 31, 200)]
)


def test_primitives() -> None:
    def same(twin: Any, want: Any, *arrays: np.ndarray) -> None:
        wanted = want if isinstance(want, tuple) else (want,)
        for got, value in zip(evaluated(twin, *arrays), wanted, strict=True):
            np.testing.assert_array_equal(got, value)

    same(fixed.bit_length, exact.bit_length(POSITIVE), POSITIVE)
    same(fixed.rsqrt, exact.rsqrt(POSITIVE + 1), POSITIVE + 1)
    below = POSITIVE[POSITIVE < 1 << 32]
    same(fixed.isqrt32, exact.isqrt32(below), below)
    same(fixed.sigmoid_q15, exact.sigmoid_q15(INT32), INT32)
    nines = np.arange(1 << 14)
    same(fixed.exp2_table, exact.exp2_table(nines), nines)
    for shift in (-5, 0, 1, 2, 7, 40, 62):
        fitting = SIGNED >> 8
        same(lambda v, s=shift: fixed.round_shift(v, s), exact.round_shift(fitting, shift), fitting)
    shifts = RNG.integers(-20, 62, len(SIGNED))
    same(fixed.round_shift, exact.round_shift(SIGNED >> 2, shifts), SIGNED >> 2, shifts)
    factors, shifts = RNG.integers(0, 1 << 31, len(INT32)), RNG.integers(-40, 40, len(INT32))
    want = exact.requantize(INT32, factors, shifts)
    assert (np.abs(want) == exact.INT32_MAX).any(), "saturation is met"
    same(fixed.requantize, want, INT32, factors, shifts)


def test_vectors_of_all_sizes() -> None:
    """Zeros, a single one, the largest values, and lengths that no group divides."""
    for k, group in ((10, 4), (8, 8), (7, 16)):
        x = RNG.integers(-(1 << 31) + 1, 1 << 31, (6, k)) >> RNG.integers(0, 30, (6, 1))
        x[0], x[1, 1:], x[2] = 0, 0, (1 << 31) - 1
        want = exact_vectors.quantize_vector(x, group, 255)
        got = evaluated(
            lambda v, k=k, group=group: tuple(vectors.quantize_vector(v, k, group, 255)), x
        )
        for one, other in zip(got, (want.q, want.mantissa, want.exponent, want.c), strict=True):
            np.testing.assert_array_equal(one, other)
        wide = exact_vectors.quantize_q16(x, 14)
        q, mantissa, exponent = evaluated(lambda v: tuple(vectors.quantize_q16(v, 14)[:3]), x)
        np.testing.assert_array_equal(q, wide.q)
        np.testing.assert_array_equal(exponent, wide.exponent)
        assert (wide.mantissa == mantissa).all()


# ---- the file and the command ----


def test_every_op_has_a_converter() -> None:
    ours = {op for op in OPS.values() if op.__module__.startswith("shrinkc.")}
    assert ours == {*CONVERTERS}


def test_an_op_without_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_llama(tmp_path / "m")
    graph = lower(load_model(tmp_path / "m"), QuantOptions(), 24)
    monkeypatch.delitem(CONVERTERS, SiluMul)
    with pytest.raises(UnsupportedModel, match="without a converter to ONNX: SiluMul"):
        to_onnx(graph, "0")


def test_a_cache_of_4_bits_is_refused(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "m")
    graph = lower(load_model(tmp_path / "m"), QuantOptions(kv_bits=4), 24)
    with pytest.raises(UnsupportedModel, match="a KV cache of 4 bits") as refused:
        to_onnx(graph, "0")
    assert "--kv-bits 8" in refused.value.hint


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from shrinkc.cli.main import run_cli

    folder = tmp_path_factory.mktemp("export")
    write_tiny_llama(folder / "tiny")
    assert run_cli(["compile", str(folder / "tiny"), "-o", str(folder / "out")]) == 0
    return folder / "out"


def test_the_file(cli: Cli, compiled: Path, tmp_path: Path) -> None:
    import onnx

    file = tmp_path / "model.onnx"
    result = cli("export", compiled, "--onnx", file, "--json")
    assert result.code == 0
    assert result.json["bytes"] == file.stat().st_size and result.json["model"] == "tiny"
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    assert sum(result.json["nodes"].values()) == len(model.graph.node)
    assert all(node.domain == "" for node in model.graph.node), "standard operators alone"
    graph: Graph = load(compiled / "ir.safetensors")
    stored = {t.name: t for t in model.graph.initializer}
    table = onnx.numpy_helper.to_array(stored["layer0.down.q"])
    assert table.dtype == np.int8 and table.shape == (graph.hidden, graph.ffn)
    assert [o.name for o in model.graph.output][:3] == ["logits", "next", "present.0.key"]
    again = tmp_path / "again.onnx"
    assert cli("export", compiled / "ir.safetensors", "--onnx", again).code == 0
    assert again.read_bytes() == file.read_bytes()


def test_what_is_refused(
    cli: Cli, compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.onnx"
    for arguments, code, said in (
        ([compiled], 2, "give one of --onnx FILE, --gguf FILE"),
        ([tmp_path, "--onnx", file], 61, "ir.safetensors cannot be read"),
        ([compiled, "--onnx", tmp_path / "no/a.onnx"], 40, "no"),
    ):
        result = cli("export", *arguments)
        assert (result.code, result.out) == (code, "") and said in result.words
    monkeypatch.setattr("shrinkc.driver.exporting.ONNX_MOST", 1000)
    result = cli("export", compiled, "--onnx", file)
    assert result.code == 11 and "an ONNX file can have 1000" in result.words
    monkeypatch.setattr("shrinkc.driver.exporting.find_spec", lambda name: None)
    result = cli("export", compiled, "--onnx", file)
    assert result.code == 53 and "pip install '.[onnx]'" in result.words
    assert not file.exists()
