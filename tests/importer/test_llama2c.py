from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from helpers.float_reference import forward
from shrinkc.core.errors import BadTokenizer, BadWeights, ModelNotFound, OutputError
from shrinkc.importer import convert_llama2c, load_hf
from shrinkc.importer.rope import half_order

from . import llama2c_reference as reference

# pieces 259 …: merges by score, the single characters last, as SentencePiece orders them
WORDS = [b"th", b" t", b" the", b"the", b"he", b"hh", b"hhh"]
CHARACTERS = [b" ", b"t", b"h", b"e"]
PIECES = [
    *reference.byte_pieces(),
    *((piece, -float(rank)) for rank, piece in enumerate(WORDS + CHARACTERS)),
]
SIZES = reference.Sizes(vocab_size=len(PIECES))


def write_inputs(
    folder: Path, version: int = 0, tied: bool = True, sizes: reference.Sizes = SIZES
) -> tuple[Path, Path, Path]:
    """Return checkpoint, tokenizer and an output path that does not exist."""
    weights = reference.random_weights(sizes, tied)
    checkpoint, tokenizer = folder / "model.bin", folder / "tok.bin"
    checkpoint.write_bytes(reference.checkpoint_bytes(sizes, weights, version))
    tokenizer.write_bytes(reference.tokenizer_bytes(PIECES))
    return checkpoint, tokenizer, folder / "out"


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize(
    "sizes",
    [
        SIZES,
        reference.Sizes(12, 7, 1, 2, 2, len(PIECES), 8),
        reference.Sizes(16, 10, 3, 8, 4, len(PIECES), 8),
    ],
)
def test_same_logits_as_llama2c(
    tmp_path: Path, version: int, tied: bool, sizes: reference.Sizes
) -> None:
    convert_llama2c(*write_inputs(tmp_path, version, tied, sizes))
    model = load_hf(tmp_path / "out")
    tokens = [1, 5, 260, 261, 5, 0, 7]
    expected = reference.logits(sizes, reference.random_weights(sizes, tied), tokens)
    np.testing.assert_allclose(forward(model, tokens, np.float64), expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(forward(model, tokens), expected, atol=1e-4)
    assert (model.head is None) == tied


def test_config_of_the_result(tmp_path: Path) -> None:
    convert_llama2c(*write_inputs(tmp_path))
    config = load_hf(tmp_path / "out").config
    assert (config.hidden_size, config.intermediate_size, config.num_layers) == (24, 20, 2)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (3, 1, 8)
    assert (config.vocab_size, config.max_position) == (len(PIECES), 16)
    assert (config.rms_norm_eps, config.rope_theta) == (1e-5, 1e4)
    assert (config.bos_id, config.eos_ids) == (1, (2,))


def test_rows_pair_up() -> None:
    rows = np.arange(12, dtype=np.float32)[:, None]
    assert rows[half_order(12, 6)][:, 0].tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]


# --- output ----------------------------------------------------------------------------


def test_result_is_complete_and_nothing_else_is_left(tmp_path: Path) -> None:
    convert_llama2c(*write_inputs(tmp_path))
    assert listing(tmp_path) == ["model.bin", "out", "tok.bin"]
    assert listing(tmp_path / "out") == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert str(tmp_path) not in (tmp_path / "out" / "config.json").read_text()


def test_result_has_the_usual_permissions(tmp_path: Path) -> None:
    convert_llama2c(*write_inputs(tmp_path))
    (tmp_path / "usual").mkdir()
    (tmp_path / "usual" / "file").touch()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "usual").stat().st_mode
    usual = (tmp_path / "usual" / "file").stat().st_mode
    assert {file.stat().st_mode for file in (tmp_path / "out").iterdir()} == {usual}


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    checkpoint, tokenizer, out = write_inputs(tmp_path)
    convert_llama2c(checkpoint, tokenizer, out)
    convert_llama2c(checkpoint, tokenizer, tmp_path / "again")
    for file in out.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name


@pytest.mark.parametrize("kind", ["directory", "file", "dangling link"])
def test_existing_output_is_refused_and_kept(tmp_path: Path, kind: str) -> None:
    checkpoint, tokenizer, out = write_inputs(tmp_path)
    if kind == "directory":
        out.mkdir()
    elif kind == "file":
        out.write_text("mine")
    else:
        out.symlink_to(tmp_path / "nowhere")
    before = listing(tmp_path)
    with pytest.raises(OutputError, match="already exists.*another output"):
        convert_llama2c(checkpoint, tokenizer, out)
    assert listing(tmp_path) == before


def test_output_in_a_missing_folder(tmp_path: Path) -> None:
    checkpoint, tokenizer, _ = write_inputs(tmp_path)
    with pytest.raises(OutputError, match="not a directory"):
        convert_llama2c(checkpoint, tokenizer, tmp_path / "a" / "b")


def test_failure_while_writing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    paths = write_inputs(tmp_path)
    monkeypatch.setattr("shrinkc.importer.llama2c.save_file", full)
    with pytest.raises(OutputError, match="No space left"):
        convert_llama2c(*paths)
    assert listing(tmp_path) == ["model.bin", "tok.bin"]


def test_a_full_disk(tmp_path: Path, small_disk: Callable[[int], Path]) -> None:
    """Full before anything is written, in the tokenizer, in the weights, in the last file."""
    checkpoint, tokenizer, _ = write_inputs(tmp_path)
    full = 0
    for kib in range(4, 200, 4):
        disk = small_disk(kib)
        try:
            convert_llama2c(checkpoint, tokenizer, disk / "out")
            break
        except OutputError as error:
            full += 1
            assert "No space left on device" in str(error) and "free some space" in str(error)
            assert "partial" not in str(error)
            assert list(disk.iterdir()) == []
    assert 4 < full < 40


# --- damaged checkpoints -----------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("change", [-1, -4, -4000, 1, 4])
def test_wrong_length(tmp_path: Path, version: int, change: int) -> None:
    paths = write_inputs(tmp_path, version)
    data = paths[0].read_bytes()
    paths[0].write_bytes(data[:change] if change < 0 else data + bytes(change))
    with pytest.raises(BadWeights) as caught:
        convert_llama2c(*paths)
    assert f"need {len(data)} bytes, have {len(data) + change}" in str(caught.value)
    assert listing(tmp_path) == ["model.bin", "tok.bin"]


@pytest.mark.parametrize("length", [0, 3, 27])
def test_truncated_header(tmp_path: Path, length: int) -> None:
    paths = write_inputs(tmp_path)
    paths[0].write_bytes(paths[0].read_bytes()[:length])
    with pytest.raises(BadWeights, match=f"need 28 bytes, have {length}"):
        convert_llama2c(*paths)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        (0, 0, "hidden_size = 0"),
        (1, -5, "intermediate_size = -5"),
        (2, 1 << 30, "num_hidden_layers"),
        (3, 5, "hidden_size = 24 is not a multiple of num_attention_heads = 5"),
        (3, 24, "even head dimension"),
        (4, 2, "not a multiple of num_key_value_heads = 2"),
    ],
)
def test_inconsistent_header(tmp_path: Path, field: int, value: int, said: str) -> None:
    paths = write_inputs(tmp_path)
    data = bytearray(paths[0].read_bytes())
    struct.pack_into("<i", data, 4 * field, value)
    paths[0].write_bytes(data)
    with pytest.raises(BadWeights, match=said):
        convert_llama2c(*paths)


def test_quantised_version_is_refused(tmp_path: Path) -> None:
    paths = write_inputs(tmp_path, version=2)
    with pytest.raises(BadWeights, match="version 2"):
        convert_llama2c(*paths)


def test_nan_is_named(tmp_path: Path) -> None:
    paths = write_inputs(tmp_path)
    data = bytearray(paths[0].read_bytes())
    struct.pack_into("<f", data, 28 + 4 * (24 + 3), float("nan"))
    paths[0].write_bytes(data)
    with pytest.raises(BadWeights, match=r"embed_tokens.weight holds 1 NaN .* \[1, 3\]"):
        convert_llama2c(*paths)


def test_missing_inputs(tmp_path: Path) -> None:
    checkpoint, tokenizer, out = write_inputs(tmp_path)
    with pytest.raises(ModelNotFound):
        convert_llama2c(tmp_path / "none", tokenizer, out)
    with pytest.raises(BadTokenizer, match="cannot be read"):
        convert_llama2c(checkpoint, tmp_path / "none", out)


# --- tokenizer -----------------------------------------------------------------------------


def test_encodes_as_llama2c_does(tmp_path: Path) -> None:
    convert_llama2c(*write_inputs(tmp_path))
    tokenizer = load_hf(tmp_path / "out").tokenizer
    rng = random.Random(0)
    for _ in range(3000):
        text = "".join(rng.choice("the  hé\n") for _ in range(rng.randint(0, 12)))
        ids = tokenizer.encode(text)
        assert ids == reference.encode(PIECES, text), repr(text)
        assert tokenizer.decode(ids) == text


def test_control_names_in_text_are_text_for_llama2c(tmp_path: Path) -> None:
    convert_llama2c(*write_inputs(tmp_path))
    tokenizer = load_hf(tmp_path / "out").tokenizer
    text = "the</s><s><0x41>"
    assert tokenizer.encode(text, parse_special=False) == reference.encode(PIECES, text)
    assert 2 in tokenizer.encode(text)


def test_settings_for_transformers(tmp_path: Path) -> None:
    convert_llama2c(*write_inputs(tmp_path))
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert (settings["bos_token"], settings["eos_token"]) == ("<s>", "</s>")


@pytest.mark.parametrize("cut", [1, 5, 9, 200])
def test_truncated_tokenizer(tmp_path: Path, cut: int) -> None:
    paths = write_inputs(tmp_path)
    data = paths[1].read_bytes()
    paths[1].write_bytes(data[:-cut])
    with pytest.raises(BadTokenizer, match=r"need \d+ bytes, have \d+|holds \d+ tokens"):
        convert_llama2c(*paths)
    assert listing(tmp_path) == ["model.bin", "tok.bin"]


def replaced(index: int, piece: bytes, score: float = -50.0) -> list[tuple[bytes, float]]:
    return [*PIECES[:index], (piece, score), *PIECES[index + 1 :]]


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        (PIECES[:-1], f"holds {len(PIECES) - 1} tokens, the checkpoint needs {len(PIECES)}"),
        ([*PIECES, (b"x", 0.0)], f"holds {len(PIECES) + 1} tokens"),
        (replaced(10, b"x"), "token 10 is 'x', expected the byte piece <0x07>"),
        (replaced(265, b"\xff\xfe"), "token 265.*not UTF-8"),
        (replaced(265, b"th"), r"more than once: 'th' at \[259, 265\]"),
        (replaced(259, b"th", float("nan")), "score NaN"),
        (replaced(263, b"he", 0.0), "'th' and 'he' have the same score"),
    ],
)
def test_refused_tokenizers(tmp_path: Path, pieces: list[tuple[bytes, float]], said: str) -> None:
    paths = write_inputs(tmp_path)
    paths[1].write_bytes(reference.tokenizer_bytes(pieces))
    with pytest.raises(BadTokenizer, match=said):
        convert_llama2c(*paths)


@pytest.mark.parametrize("length", [-1, 1 << 30])
def test_piece_length_out_of_range(tmp_path: Path, length: int) -> None:
    paths = write_inputs(tmp_path)
    data = bytearray(paths[1].read_bytes())
    struct.pack_into("<i", data, 8, length)
    paths[1].write_bytes(data)
    with pytest.raises(BadTokenizer, match=f"token 0 has length {length}"):
        convert_llama2c(*paths)


def test_vocabulary_without_the_byte_pieces(tmp_path: Path) -> None:
    sizes = reference.Sizes(vocab_size=100)
    paths = write_inputs(tmp_path, sizes=sizes)
    paths[1].write_bytes(reference.tokenizer_bytes(PIECES[:100]))
    with pytest.raises(BadTokenizer, match="at least 259 are needed"):
        convert_llama2c(*paths)
