"""GGUF files: the integers of a checkpoint again, for shrinkc's reader, the gguf package and transformers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from cli.conftest import Cli
from helpers.tiny_families import CLASSES, logits_of, write_family, write_family_gptq
from helpers.tiny_gptq import tiny_gptq
from helpers.tiny_llama import write_tiny_llama
from shrinkc.core.errors import UnsupportedModel
from shrinkc.core.progress import Silent
from shrinkc.driver.exporting import export_gguf
from shrinkc.export.gguf import write_gguf
from shrinkc.export.gguf_blocks import TYPES, misfit, to_blocks, type_for
from shrinkc.importer import load_model, open_checkpoint
from shrinkc.importer.gguf_file import GgufFile
from shrinkc.importer.model import FloatModel, QuantizedWeight, dense
from shrinkc.model import FIELDS, family_of

STORIES = Path(__file__).resolve().parents[2] / "examples" / "stories"
TEXTS = ("Once upon a time", "in 1984,\n\n two  <s>girls</s> é €", "")


def weight(
    bits: int, group: int, zero: str, *, rows: int = 6, inputs: int = 192
) -> QuantizedWeight:
    """Return random integers; ``zero`` is "middle", "points" (integers), or "offsets"."""
    rng = np.random.default_rng(bits * group)
    shape = (rows, -(-inputs // group))
    scale = rng.uniform(1e-3, 1, shape).astype(np.float16).astype(np.float32)
    points = np.full(shape, 1 << (bits - 1))
    if zero == "points":
        points = rng.integers(0, 1 << bits, shape)
        points.flat[:2] = 0, (1 << bits) - 1
    offset = -(scale * points.astype(np.float32))
    if zero == "offsets":
        offset = offset + rng.uniform(0, 1e-3, shape).astype(np.float32)
    q = rng.integers(0, 1 << bits, (rows, inputs)).astype(np.uint8)
    q[:, 0], q[:, -1] = 0, (1 << bits) - 1
    return QuantizedWeight(bits, group, q, scale, offset)


@pytest.mark.parametrize("group", [32, 96, 192])
@pytest.mark.parametrize(
    ("bits", "zero", "expected"),
    [
        (2, "points", "Q4_0"), (2, "offsets", "Q4_1"),
        (3, "middle", "Q4_0"), (3, "points", "Q4_0"),
        (4, "middle", "Q4_0"), (4, "points", "Q5_0 Q4_1"), (4, "offsets", "Q4_1"),
        (5, "middle", "Q5_0"), (5, "points", "Q8_0 Q5_1"),
        (6, "points", "Q8_0"), (8, "middle", "Q8_0"),
    ],
)  # fmt: skip
def test_blocks(bits: int, zero: str, expected: str, group: int) -> None:
    """The package reads the weights; those of a type without minimum are exact."""
    given = weight(bits, group, zero)
    chosen, compact = expected.split()[0], expected.split()[-1]
    assert type_for(given) == chosen and type_for(given, compact=True) == compact
    assert misfit(given) is None
    exact = given.dequantized()
    for name in {chosen, compact}:
        raw = to_blocks(given, name)
        read = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name])
        allowed = 0 if TYPES[name].signed else np.abs(given.offset).max() * 2.0**-11
        assert np.abs(read - exact).max() <= allowed
        assert raw.size * 8 / given.q.size == TYPES[name].bits_per_weight


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (weight(8, 32, "points"), "8 bit with zero points"),
        (weight(4, 16, "middle"), "its group size 16 is no multiple of 32"),
        (weight(4, 8, "middle", inputs=40), "its 40 inputs are no multiple of 32"),
        (
            QuantizedWeight(
                4, 64, np.zeros((1, 64), np.uint8), np.ones((1, 1), np.float32),
                np.zeros((1, 1), np.float32), np.arange(64)[::-1],
            ),
            "desc_act",
        ),
    ],
)  # fmt: skip
def test_what_no_type_holds(given: QuantizedWeight, said: str) -> None:
    assert type_for(given) is None
    assert said in str(misfit(given))


def integers(model: FloatModel) -> dict[str, Any]:
    """Return the difference of integers and zero points, or floats, of each matrix of the layers."""
    found = {}
    for index, layer in enumerate(model.layers):
        for module, name in FIELDS.items():
            matrix = getattr(layer, name)
            if isinstance(matrix, QuantizedWeight):
                group_of = np.arange(matrix.shape[1]) // matrix.group
                zero = np.rint(-matrix.offset / matrix.scale)
                matrix = matrix.q - zero[:, group_of]
            found[f"{index}.{module}"] = matrix
    return found


def rest(model: FloatModel) -> list[Any]:
    """Return norms, biases, embedding and head."""
    family = family_of(model.config)
    parts = [model.final_norm, dense(model.embedding)]
    for layer in model.layers:
        parts += [getattr(layer, norm.field) for norm in family.norms]
        parts += [layer.biases[name] for name in sorted(layer.biases)]
    return [*parts, *([] if model.head is None else [dense(model.head)])]


CHECKPOINTS: dict[str, dict[str, Any]] = {
    "symmetric": {"embedding_bits": 4},
    "zero points": {"sym": False, "embedding_bits": 3, "tokenizer": "bytelevel", "vocab": 300},
    "offsets": {"sym": False, "embedding_bits": 8},
    "per channel, head": {"group": -1, "lm_head": True},
    "mixed": {
        "module_bits": {"model.layers.0.mlp.up_proj": 8, "model.layers.1.mlp.up_proj": 3},
        "embedding_bits": 4,
    },
    "llama 3": {
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    },
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
}  # fmt: skip


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_the_file_has_the_same_integers(tmp_path: Path, kind: str, compact: bool) -> None:
    tiny_gptq(tmp_path / "m", **CHECKPOINTS[kind])
    wanted = load_model(tmp_path / "m")
    written = write_gguf(wanted, tmp_path / "m.gguf", compact=compact)
    found = load_model(tmp_path / "m.gguf")
    before, after = integers(wanted), integers(found)
    assert before.keys() == after.keys() and len(before) == 14
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], name)
    for one, other in zip(rest(wanted), rest(found), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-3)
    assert {f.name: getattr(wanted.config, f.name) for f in _fields(wanted)} == {
        f.name: getattr(found.config, f.name) for f in _fields(wanted)
    }
    for text in TEXTS:
        assert wanted.tokenizer.encode(text) == found.tokenizer.encode(text)
    # again the same bytes
    write_gguf(wanted, tmp_path / "again.gguf", compact=compact)
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "m.gguf").read_bytes()
    assert sum(part.count for part in written.kinds) == 15 + (wanted.head is not None)
    for part in written.kinds:
        inexact = part.type in ("Q4_1", "F16")
        assert part.error < 1e-3 if inexact else part.error == 0, part
        assert part.steps is None or part.steps < (0.01 if part.type == "Q4_1" else 0.5)


def _fields(model: FloatModel) -> Any:
    return [f for f in dataclasses.fields(model.config) if f.name != "rms_norm_eps"]


def test_floats_and_chat_templates(tmp_path: Path, cli: Cli) -> None:
    folder = tmp_path / "m"
    write_tiny_llama(folder, hidden=64, intermediate=96, heads=4, kv_heads=2)
    template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    settings = {"chat_template": template, "bos_token": "<s>", "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    result = cli("export", folder, "--gguf", tmp_path / "m.gguf", "--json")
    assert result.code == 0, result.err
    assert result.json["bytes"] == (tmp_path / "m.gguf").stat().st_size
    (kind,) = result.json["kinds"]
    assert (kind["stored"], kind["type"], kind["matrices"]) == ("floats", "F16", 15)
    assert 0 < kind["relative_error"] < 1e-3 and "floats: 15 matrices as F16" in result.words
    before, after = (load_model(p) for p in (folder, tmp_path / "m.gguf"))
    assert after.tokenizer.bos_id is None is before.tokenizer.bos_id
    assert after.tokenizer.chat is not None and after.tokenizer.chat.source == template
    assert open_checkpoint(tmp_path / "m.gguf").license == "mit"


def test_unknown_tokenizers_are_refused(tmp_path: Path) -> None:
    tiny_gptq(tmp_path / "m", tokenizer="bytelevel", vocab=300)
    file = tmp_path / "m/tokenizer.json"
    spec = json.loads(file.read_text())
    for change, said in (
        ({"pre_tokenizer": {"type": "Whitespace"}}, "the pre-tokenizer Whitespace is not known"),
        ({"pre_tokenizer": {**spec["pre_tokenizer"], "use_regex": False}}, "into words by nothing"),
        ({"model": {**spec["model"], "ignore_merges": True}}, "ignore_merges = True"),
    ):
        file.write_text(json.dumps(spec | change))
        with pytest.raises(UnsupportedModel, match=said):
            write_gguf(load_model(tmp_path / "m"), tmp_path / "m.gguf")
        assert not (tmp_path / "m.gguf").exists()


def test_sentencepiece_needs_merges_in_the_order_of_scores(tmp_path: Path) -> None:
    """Merges of added tokens never happen, and merges that make one piece may have any order."""
    with pytest.raises(UnsupportedModel, match="not in the order of the scores"):
        write_gguf(load_model(STORIES), tmp_path / "m.gguf")  # a BPE that was trained as such
    tiny_gptq(tmp_path / "m")
    file = tmp_path / "m/tokenizer.json"
    spec = json.loads(file.read_text())
    merges = [m if isinstance(m, list) else m.split(" ") for m in spec["model"]["merges"]]
    assert len({"".join(m) for m in merges}) >= 2

    piece = "".join(merges[-1])
    token = {
        "id": spec["model"]["vocab"][piece], "content": piece, "special": False, "normalized": False,
        "single_word": False, "lstrip": False, "rstrip": False,
    }  # fmt: skip
    # its merge first, which the scores of the others do not allow
    model = {**spec["model"], "merges": [merges[-1], *merges[:-1]]}
    added = [*(spec.get("added_tokens") or []), token]
    file.write_text(json.dumps({**spec, "model": model, "added_tokens": added}))
    write_gguf(load_model(tmp_path / "m"), tmp_path / "m.gguf")
    before, after = (load_model(p).tokenizer for p in (tmp_path / "m", tmp_path / "m.gguf"))
    for text in (*TEXTS, f"a {piece} b"):
        assert before.encode(text) == after.encode(text)


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"eora_rank": 4, "eora_folder": "."}, "low-rank adapter; export the step before eora"),
        ({"group": 16}, "its group size 16 is no multiple of 32"),
        ({"desc_act": "shared"}, "stored in another order (desc_act)"),
        ({"bits": 8, "sym": False}, "8 bit with zero points"),
    ],
)
def test_refused_by_name(cli: Cli, tmp_path: Path, about: dict[str, Any], said: str) -> None:
    tiny_gptq(tmp_path / "m", **about)
    result = cli("export", tmp_path / "m", "--gguf", tmp_path / "m.gguf")
    assert result.code == 11 and said in result.words
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.slow
@pytest.mark.libraries("torch", "transformers")
@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("family", CLASSES)
def test_transformers_computes_the_same(tmp_path: Path, family: str, integer: bool) -> None:
    """Every family, as floats and as integers of GPTQ, through the loader for GGUF files of transformers."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    # the sizes of heads that transformers assumes: it does not read the file's
    config: dict[str, Any] = {
        "qwen3": {"head_dim": 128},
        "gemma3_text": {"head_dim": 256, "num_hidden_layers": 6, "sliding_window": 32},
    }.get(family, {})
    source, model = tmp_path / "m", write_family(tmp_path / "m", family, **config)
    if integer:
        source = tmp_path / "gptq"
        model = write_family_gptq(source, tmp_path / "m", model)
    written = export_gguf(source, tmp_path / "m.gguf", Silent()).written
    assert bool(written.notes) == (family == "mistral")
    before, after = integers(load_model(source)), integers(load_model(tmp_path / "m.gguf"))
    for name in before:
        np.testing.assert_allclose(before[name], after[name], rtol=0, atol=0 if integer else 2e-3)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        gguf_file="m.gguf",
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    assert theirs.config.model_type.startswith(family.removesuffix("_text")) or family == "mistral"
    ids = [1, *range(5, 40)]
    wanted, found = logits_of(model, ids), logits_of(theirs, ids)
    assert np.abs(found - wanted).max() < 0.01 * np.abs(wanted).max()
    assert (found.argmax(1) == wanted.argmax(1)).mean() >= 0.95


def test_the_metadata_name_the_sizes(tmp_path: Path) -> None:
    tiny_gptq(tmp_path / "m", vocab=300)
    write_gguf(load_model(tmp_path / "m"), tmp_path / "m.gguf")
    found = GgufFile(tmp_path / "m.gguf").metadata
    assert found["general.architecture"] == "llama" and found["general.name"] == "m"
    assert (found["llama.vocab_size"], found["llama.rope.dimension_count"]) == (300, 16)
    assert len(found["tokenizer.ggml.tokens"]) == 300
    assert found["tokenizer.ggml.tokens"][-1] == "[PAD299]"
    assert found["tokenizer.ggml.token_type"][-1] == 5
