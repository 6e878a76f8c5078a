from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.float_reference import forward
from helpers.gguf_blocks import K_QUANTS
from helpers.tiny_gguf import gguf_name, tiny_gguf
from helpers.tiny_gptq import write_eora
from importer.test_gptq import assert_same, refusal
from shrinkc.core.errors import (
    BadConfig,
    BadWeights,
    ModelNotFound,
    ShapeMismatch,
    UnsupportedModel,
)
from shrinkc.importer import (
    Llama3RopeScaling,
    QuantizedWeight,
    inverse_frequencies,
    load_config,
    load_model,
    open_checkpoint,
)
from shrinkc.importer.gguf_file import GgufFile
from shrinkc.importer.model import Zero
from shrinkc.importer.rope import half_order
from shrinkc.model import LinearRopeScaling

UP = "model.layers.0.mlp.up_proj"

# type -> bits, inputs per scale, zero points
FORMATS = {
    "Q8_0": (8, 32, Zero.MIDDLE), "Q4_0": (4, 32, Zero.NEAR), "Q4_1": (4, 32, Zero.ANY),
    "Q5_0": (5, 32, Zero.NEAR), "Q5_1": (5, 32, Zero.ANY), "IQ4_NL": (8, 32, Zero.MIDDLE),
    "Q2_K": (2, 16, Zero.ANY), "Q3_K": (3, 16, Zero.NEAR), "Q4_K": (4, 32, Zero.ANY),
    "Q5_K": (5, 32, Zero.ANY), "Q6_K": (6, 16, Zero.NEAR),
}  # fmt: skip


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", *FORMATS])
def test_every_type(tmp_path: Path, kind: str, tied: bool) -> None:
    sizes = {"hidden": 256, "intermediate": 256} if kind in K_QUANTS else {}
    written = tiny_gguf(
        tmp_path / "m.gguf", kind=kind, embedding_kind=kind, tied=tied, **sizes  # type: ignore[arg-type]
    )  # fmt: skip
    model = load_model(tmp_path / "m.gguf")
    assert_same(model, written)
    assert model.source == "m.gguf"
    assert (model.head is None) == tied == model.config.tie_embeddings
    found = open_checkpoint(tmp_path / "m.gguf").formats
    if kind not in FORMATS:
        assert found is None
        return
    bits, group, _ = FORMATS[kind]
    assert found is not None
    assert len(found) == (15 if tied else 16)
    assert set(found.values()) == {FORMATS[kind]}
    for weight in (model.embedding, model.layers[1].wq, model.layers[0].w_down):
        assert isinstance(weight, QuantizedWeight)
        assert (weight.bits, weight.group, weight.order) == (bits, group, None)
        assert (weight.scale > 0).all()
        assert weight.q.max() < 1 << bits
        if kind == "Q8_0":
            assert (weight.offset == -128 * weight.scale).all()


def test_types_may_differ(tmp_path: Path) -> None:
    kinds = {UP: "F16", "model.norm": "F16", "model.layers.1.self_attn.k_proj": "Q4_0"}
    written = tiny_gguf(tmp_path / "m.gguf", kinds=kinds)
    model = load_model(tmp_path / "m.gguf")
    assert_same(model, written)
    assert isinstance(model.layers[0].w_up, np.ndarray)
    found = open_checkpoint(tmp_path / "m.gguf").formats
    assert found is not None
    assert UP not in found
    assert found["model.embed_tokens"] == (8, 32, False)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_blocks_of_equal_weights(tmp_path: Path, kind: str) -> None:
    values = np.random.default_rng(0).standard_normal((96, 64)).astype(np.float32)
    values[3, :32] = 0
    values[5, 32:] = -0.75
    values[6] = np.abs(values[6])  # Q4_0: all scales of the row are negative
    written = tiny_gguf(tmp_path / "m.gguf", kind=kind, overrides={UP: values})
    model = load_model(tmp_path / "m.gguf")
    assert_same(model, written)
    weight = model.layers[0].w_up
    assert isinstance(weight, QuantizedWeight)
    assert (weight.scale > 0).all()
    if kind in ("Q4_0", "Q5_0"):
        middle = 1 << (weight.bits - 1)
        assert set((-weight.offset / weight.scale).reshape(-1)) == {middle - 1, middle}


def test_config(tmp_path: Path) -> None:
    tiny_gguf(
        tmp_path / "m.gguf",
        metadata={
            "llama.rope.freq_base": 50000.0,
            "llama.context_length": 77,
            "tokenizer.ggml.eot_token_id": 4,
            "llama.attention.key_length": 16,
            "llama.attention.value_length": 16,
            "llama.rope.scaling.type": "none",
            "llama.expert_count": 0,
            "general.type": "model",
            "general.name": "anything",
        },
    )
    config = load_config(tmp_path / "m.gguf")
    assert config == load_model(tmp_path / "m.gguf").config
    assert (config.rope_theta, config.max_position, config.eos_ids) == (50000.0, 77, (2, 4))
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (4, 2, 16)
    assert (config.vocab_size, config.intermediate_size, config.num_layers) == (288, 96, 2)
    assert config.rms_norm_eps == np.float32(1e-5)
    assert config.rope_scaling is None


def test_without_optional_metadata(tmp_path: Path) -> None:
    absent = ("llama.vocab_size", "llama.attention.head_count_kv", "llama.rope.freq_base")
    tiny_gguf(tmp_path / "m.gguf", kv_heads=4, vocab=266, metadata=dict.fromkeys(absent))
    config = load_config(tmp_path / "m.gguf")
    assert (config.vocab_size, config.num_kv_heads, config.rope_theta) == (266, 4, 10000.0)


@pytest.mark.parametrize(
    ("metadata", "factor"),
    [
        ({"rope.scaling.factor": 2.0}, 2.0),
        ({"rope.scale_linear": 2.0}, 2.0),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}, 8.0),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 8.0}, None),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 1.0}, None),
        ({"rope.scaling.factor": 0.0}, None),
        ({"rope.scaling.type": "linear"}, None),
    ],
)
def test_linear_rope_scaling(
    tmp_path: Path, metadata: dict[str, Any], factor: float | None
) -> None:
    keys = {f"llama.{key}": value for key, value in metadata.items()}
    tiny_gguf(tmp_path / "m.gguf", metadata=keys)
    scaling = load_config(tmp_path / "m.gguf").rope_scaling
    assert scaling == (None if factor is None else LinearRopeScaling(factor))


def test_a_linear_rope_scaling_that_is_none(tmp_path: Path) -> None:
    tiny_gguf(tmp_path / "m.gguf", metadata={"llama.rope.scaling.factor": -2.0})
    assert "rope_scaling.factor = -2.0" in refusal(BadConfig, tmp_path / "m.gguf")


def test_rope_factors_of_llama_3(tmp_path: Path) -> None:
    sizes = {"hidden": 128, "heads": 2, "kv_heads": 1, "layers": 1}
    base = {"llama.rope.freq_base": 500000.0}
    tiny_gguf(tmp_path / "plain.gguf", metadata=base, **sizes)  # type: ignore[arg-type]
    plain = load_config(tmp_path / "plain.gguf")
    # Meta's formula, as llama.cpp's converter writes it out
    frequencies = inverse_frequencies(plain)
    factors = []
    for frequency in frequencies:
        wavelength = 2 * np.pi / frequency
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192 / 1:
            factors.append(32.0)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / 32 + smooth))
    assert len({1.0, 32.0} ^ set(factors)) > 1
    extra = {"rope_freqs.weight": np.array(factors, dtype=np.float32)}
    tiny_gguf(tmp_path / "m.gguf", metadata=base, extra=extra, **sizes)  # type: ignore[arg-type]
    scaling = load_model(tmp_path / "m.gguf").config.rope_scaling
    assert scaling == Llama3RopeScaling(32.0, 1.0, 4.0, 8192)

    extra["rope_freqs.weight"][:] *= np.linspace(1, 1.1, 32, dtype=np.float32)
    tiny_gguf(tmp_path / "o.gguf", metadata=base, extra=extra, **sizes)  # type: ignore[arg-type]
    assert "not Llama 3's scaling" in refusal(UnsupportedModel, tmp_path / "o.gguf")
    both = base | {"llama.rope.scaling.factor": 2.0}
    tiny_gguf(tmp_path / "b.gguf", metadata=both, extra=extra, **sizes)  # type: ignore[arg-type]
    assert "together with rope_freqs" in refusal(UnsupportedModel, tmp_path / "b.gguf")
    extra = {"rope_freqs.weight": np.ones(31, dtype=np.float32)}
    tiny_gguf(tmp_path / "p.gguf", metadata=base, extra=extra, **sizes)  # type: ignore[arg-type]
    assert "holds 31 factors, not 32" in refusal(BadWeights, tmp_path / "p.gguf")


def test_logits_are_those_of_the_same_model_with_rows_in_order(tmp_path: Path) -> None:
    from helpers.tiny_llama import write_tiny_llama

    written = tiny_gguf(tmp_path / "m.gguf", kind="F32", embedding_kind="F32", tied=False)
    sizes = {"hidden": 64, "intermediate": 96, "heads": 4, "kv_heads": 2, "vocab": 288}
    tensors = {f"{name}.weight": values for name, values in written.items()}
    write_tiny_llama(tmp_path / "hf", tied=False, overrides=tensors, **sizes)  # type: ignore[arg-type]
    ids = [1, 5, 9, 100, 200]
    np.testing.assert_array_equal(
        forward(load_model(tmp_path / "m.gguf"), ids), forward(load_model(tmp_path / "hf"), ids)
    )


def test_adapter(tmp_path: Path) -> None:
    written = tiny_gguf(tmp_path / "m.gguf")
    write_eora(tmp_path / "lora", written, 3)
    model = load_model(tmp_path / "m.gguf", tmp_path / "lora")
    assert model.layers[1].adapters["q_proj"].b.shape == (64, 3)


def test_progress(tmp_path: Path) -> None:
    tiny_gguf(tmp_path / "m.gguf")
    seen: list[tuple[int, int]] = []
    load_model(tmp_path / "m.gguf", progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] > 0


# --- refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"general.architecture": "gemma"}, "general.architecture = 'gemma'"),
        ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type = 'yarn'"),
        ({"llama.expert_count": 8}, "mixtures of experts"),
        ({"llama.attention.something": 1}, "llama.attention.something = 1: unknown"),
        ({"llama.rope.dimension_count": 8}, "llama.rope.dimension_count = 8, the heads have 16"),
        ({"llama.attention.value_length": 8}, "llama.attention.value_length = 8"),
        ({"general.type": "adapter"}, "general.type = 'adapter'"),
        ({"split.count": 3}, "merge them first"),
    ],
)
def test_unsupported(tmp_path: Path, metadata: dict[str, Any], said: str) -> None:
    tiny_gguf(tmp_path / "m.gguf", metadata=metadata)
    assert said in refusal(UnsupportedModel, tmp_path / "m.gguf")
    with pytest.raises(UnsupportedModel):
        load_config(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"llama.block_count": None, "llama.context_length": None}, "llama.block_count"),
        ({"llama.attention.head_count": 3}, "num_attention_heads = 3"),
        ({"llama.feed_forward_length": [96, 96]}, "intermediate_size = [96, 96]"),
        ({"llama.attention.layer_norm_rms_epsilon": -1.0}, "rms_norm_eps = -1.0"),
        ({"tokenizer.ggml.bos_token_id": 1000}, "bos_token_id = 1000"),
        ({"llama.vocab_size": None, "tokenizer.ggml.tokens": 5}, "vocab_size is missing"),
    ],
)
def test_bad_config(tmp_path: Path, metadata: dict[str, Any], said: str) -> None:
    tiny_gguf(tmp_path / "m.gguf", metadata=metadata)
    assert said in refusal(BadConfig, tmp_path / "m.gguf")


def test_shapes(tmp_path: Path) -> None:
    tiny_gguf(
        tmp_path / "m.gguf",
        overrides={UP: np.ones((95, 64), dtype=np.float32), "model.norm": None},
        extra={"blk.0.attn_q.bias": np.ones(64, dtype=np.float32)},
    )
    text = refusal(ShapeMismatch, tmp_path / "m.gguf")
    assert "blk.0.ffn_up.weight is [95, 64], the config says [96, 64]" in text
    assert "missing output_norm.weight [64]" in text
    assert "unexpected blk.0.attn_q.bias [64]" in text
    with pytest.raises(ShapeMismatch):
        open_checkpoint(tmp_path / "m.gguf")


def test_values(tmp_path: Path) -> None:
    bad = np.ones((96, 64), dtype=np.float32)
    bad[3, 4] = np.nan
    kinds = {UP: "F32", "model.layers.1.mlp.up_proj": "F16"}
    overrides = {UP: bad, "model.layers.1.mlp.up_proj": bad * np.float32(np.inf)}
    tiny_gguf(tmp_path / "m.gguf", kinds=kinds, overrides=overrides)
    text = refusal(BadWeights, tmp_path / "m.gguf")
    assert "blk.0.ffn_up.weight holds 1 NaN or infinite value of 6144, the first at [3, 4]" in text
    assert "blk.1.ffn_up.weight holds 6144 NaN" in text


@pytest.mark.parametrize(
    ("kind", "at", "value", "said"),
    [
        ("Q8_0", 0, np.nan, "scales holds 1 NaN"),
        ("Q4_0", 0, np.inf, "scales holds 1 NaN or infinite"),
        ("Q8_0", 0, np.inf, "scales holds 1 NaN or infinite"),
        ("Q4_0", 0, -np.inf, "scales holds 1 NaN or infinite"),
        ("Q4_1", 2, np.nan, "minima holds 1 NaN"),
        ("Q4_1", 0, -1.0, "1 negative scales of type Q4_1"),
        ("Q8_0", 0, -1.0, "1 negative scales of type Q8_0"),
        ("Q5_1", 2, -np.inf, "minima holds 1 NaN or infinite"),
        ("IQ4_NL", 0, np.nan, "scales holds 1 NaN"),
        ("Q6_K", 208, np.nan, "scales holds 1 NaN"),
        ("Q3_K", 108, np.inf, "scales holds 1 NaN or infinite"),
        ("Q2_K", 82, np.nan, "minima holds 1 NaN"),
        ("Q5_K", 2, np.inf, "minima holds 1 NaN or infinite"),
        ("Q4_K", 0, -1.0, "negative scales of type Q4_K"),
    ],
)
def test_scales(tmp_path: Path, kind: str, at: int, value: float, said: str) -> None:
    file = tmp_path / "m.gguf"
    sizes = {"hidden": 256, "intermediate": 256} if kind in K_QUANTS else {}
    tiny_gguf(file, kind=kind, **sizes)  # type: ignore[arg-type]
    begin = GgufFile(file).tensors[f"{gguf_name(UP)}.weight"].begin
    data = bytearray(file.read_bytes())
    data[begin + at : begin + at + 2] = np.float16(value).tobytes()
    file.write_bytes(data)
    with warnings.catch_warnings():  # nothing but the refusal is said
        warnings.simplefilter("error")
        text = refusal(BadWeights, file)
    assert gguf_name(UP) in text
    assert said in text


# --- the container -----------------------------------------------------------------------


def entry(key: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + value


def tensor(name: str, sizes: list[int], kind: int, offset: int) -> bytes:
    head = struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", len(sizes))
    return head + struct.pack(f"<{len(sizes)}QIQ", *sizes, kind, offset)


def container(
    tensors: list[bytes], data: bytes = b"", entries: list[bytes] | None = None, version: int = 3
) -> bytes:
    entries = entries or []
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(entries))
    head += b"".join(entries) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data


def opened(path: Path, content: bytes) -> GgufFile:
    path.write_bytes(content)
    return GgufFile(path)


@pytest.mark.parametrize("version", [2, 3])
def test_all_types_of_metadata(tmp_path: Path, version: int) -> None:
    entries = [
        entry("a", 0, b"\xff"), entry("b", 1, b"\xff"), entry("c", 2, b"\xff\xff"),
        entry("d", 3, b"\xff\xff"), entry("e", 4, b"\xff" * 4), entry("f", 5, b"\xff" * 4),
        entry("g", 6, struct.pack("<f", 0.5)), entry("h", 7, b"\x01"),
        entry("i", 8, struct.pack("<Q", 3) + "é!".encode()), entry("j", 10, b"\xff" * 8),
        entry("k", 11, b"\xff" * 8), entry("l", 12, struct.pack("<d", 0.1)),
        entry("m", 9, struct.pack("<IQ", 5, 2) + struct.pack("<ii", -7, 8)),
        entry("n", 9, struct.pack("<IQ", 8, 2) + 2 * (struct.pack("<Q", 1) + b"x")),
        entry("o", 9, struct.pack("<IQ", 7, 2) + b"\x01\x00"),
    ]  # fmt: skip
    file = opened(tmp_path / "m.gguf", container([], b"", entries, version))
    expected = [255, -1, 65535, -1, 2**32 - 1, -1, 0.5, True, "é!", 2**64 - 1, -1, 0.1]
    expected += [[-7, 8], ["x", "x"], [True, False]]  # type: ignore[list-item]
    assert list(file.metadata.values()) == expected
    assert file.metadata["h"] is True


def test_places(tmp_path: Path) -> None:
    alignment = entry("general.alignment", 4, struct.pack("<I", 64))
    content = container(
        [tensor("b", [32, 2], 8, 64), tensor("a", [3], 0, 0)], b"", [alignment]
    ).ljust(192)
    data = np.arange(3, dtype="<f4").tobytes().ljust(64) + bytes(range(68))
    file = opened(tmp_path / "m.gguf", content[:192] + data)
    assert file.tensors["a"].begin % 64 == 0
    assert file.tensors["b"].shape == (2, 32)
    np.testing.assert_array_equal(file.block_bytes("b").reshape(-1), np.arange(68))
    np.testing.assert_array_equal(file.block_bytes("a").view("<f4").reshape(-1), [0, 1, 2])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "truncated: need 8 bytes, have 0"),
        (b"GG", "truncated: need 8 bytes, have 2"),
        (b"GGML" + bytes(20), "begins with b'GGML'"),
        (b"GGUF\x03\x00", "truncated: need 8 bytes, have 6"),
        (container([])[:12], "truncated: need 24 bytes, have 12"),
        (container([])[:20], "truncated: need 24 bytes, have 20"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 40, 0), "truncated: need 32 bytes, have 24"),
        (container([], entries=[entry("a", 13, b"")]), "13 is not a valid GGUFValueType"),
        (
            container([], entries=[entry("a", 9, struct.pack("<IQ", 9, 0))]),
            "an array of type 9 is not supported",
        ),
        (container([], entries=[entry("a", 9, struct.pack("<IQ", 4, 9))]), "truncated: need 85"),
        # counts that would keep the package busy for ever
        (container([], entries=[entry("a", 9, struct.pack("<IQ", 0, 1 << 60))]), "truncated: need"),
        (container([], entries=[entry("a", 9, struct.pack("<IQ", 8, 1 << 60))]), "truncated: need"),
        (container([struct.pack("<Q", 1) + b"t" + b"\xff" * 4]), "truncated: need"),
        (container([], entries=[entry("a", 0, b"1")] * 2), "Duplicate a already in list"),
        (container([], entries=[entry("a", 8, struct.pack("<Q", 1) + b"\xff")]), "not UTF-8"),
        (container([], entries=[entry("a", 8, b"\xff" * 8)]), "truncated: need 1844"),
        (
            container([], entries=[entry("general.alignment", 4, struct.pack("<I", 24))]),
            "Invalid alignment: must be a non-zero power of two",
        ),
        (container([tensor("t", [], 0, 0)]), "t has 0 dimensions"),
        (container([tensor("t", [1] * 5, 0, 0)]), "t has 5 dimensions"),
        (container([tensor("t", [4], 0, 0)] * 2, bytes(32)), "more than once: t"),
        (container([tensor("t", [4], 0, 4)], bytes(64)), "t begins at 4, no multiple of 32"),
        (container([tensor("t", [40], 8, 0)], bytes(64)), "t is [40], in blocks of 32"),
        (container([tensor("t", [4, 0], 0, 0)], bytes(64)), "t is [0, 4]"),
        (
            container([tensor("t", [9], 0, 0), tensor("u", [4], 0, 32)], bytes(64)),
            "u overlaps t",
        ),
        (
            container([tensor("t", [9], 0, 32)], bytes(67)),
            "truncated: need 132 bytes for the data of t",
        ),
    ],
)
def test_damage(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(BadWeights) as caught:
        opened(tmp_path / "m.gguf", content)
    assert said in str(caught.value)


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    tiny_gguf(tmp_path / "m.gguf", layers=1)
    content = (tmp_path / "m.gguf").read_bytes()
    data = min(t.begin for t in GgufFile(tmp_path / "m.gguf").tensors.values())
    short = tmp_path / "short.gguf"
    ends = [*range(0, data, 37), data - 1, data, len(content) - 40]
    for end in ends:
        with pytest.raises(BadWeights, match="truncated"):
            opened(short, content[:end])
    assert len(ends) > 100


def test_versions_and_byte_order(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="version 1;"):
        opened(tmp_path / "m.gguf", container([], version=1))
    with pytest.raises(UnsupportedModel, match="version 3 in big-endian byte order"):
        opened(tmp_path / "m.gguf", b"GGUF" + struct.pack(">IQQ", 3, 0, 0))


def test_types_that_are_not_supported_are_all_named(tmp_path: Path) -> None:
    tensors = [tensor("a", [256], 16, 0), tensor("b", [4], 0, 0), tensor("c", [256], 99, 0)]
    with pytest.raises(UnsupportedModel) as caught:
        opened(tmp_path / "m.gguf", container(tensors))
    text = str(caught.value)
    assert "2 of 3 tensors" in text
    assert "a is IQ2_XXS; c is type 99" in text
    assert "llama-quantize IN OUT Q4_K_M" in text


def test_many_types_that_are_not_supported_are_counted(tmp_path: Path) -> None:
    tensors = [tensor(f"blk.{i}.ffn_up.weight", [256], 23, 0) for i in range(210)]
    tensors += [tensor("token_embd.weight", [256], 20, 0), tensor("b", [4], 0, 0)]
    with pytest.raises(UnsupportedModel) as caught:
        opened(tmp_path / "m.gguf", container(tensors))
    assert caught.value.message.endswith(
        "210 of 212 tensors are of types that are not supported (F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, "
        "Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL are): 210 tensors are IQ4_XS, e.g. blk.0.ffn_up.weight; "
        "blk.1.ffn_up.weight; blk.2.ffn_up.weight."
    )


def test_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        load_model(tmp_path / "m.gguf")


def test_order_of_rows_of_q_and_k() -> None:
    rows = np.arange(12, dtype=np.float32)[:, None]
    assert rows[half_order(12, 6)][:, 0].tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
