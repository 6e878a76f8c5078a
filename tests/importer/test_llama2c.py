"""examples/convert_llama2c.py: its output computes and encodes like llama2.c."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from helpers.float_reference import forward
from helpers.llama2c import convert
from shrinkc.importer import load_model

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


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("sizes", [SIZES, reference.Sizes(16, 10, 3, 8, 4, len(PIECES), 8)])
def test_same_logits_as_llama2c(
    tmp_path: Path, version: int, tied: bool, sizes: reference.Sizes
) -> None:
    convert(*write_inputs(tmp_path, version, tied, sizes))
    model = load_model(tmp_path / "out")
    tokens = [1, 5, 260, 261, 5, 0, 7]
    expected = reference.logits(sizes, reference.random_weights(sizes, tied), tokens)
    np.testing.assert_allclose(forward(model, tokens, np.float64), expected, rtol=1e-9, atol=1e-9)
    assert (model.head is None) == tied


def test_config_of_the_result(tmp_path: Path) -> None:
    convert(*write_inputs(tmp_path))
    config = load_model(tmp_path / "out").config
    assert (config.hidden_size, config.intermediate_size, config.num_layers) == (24, 20, 2)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (3, 1, 8)
    assert (config.vocab_size, config.max_position) == (len(PIECES), 16)
    assert (config.rms_norm_eps, config.rope_theta) == (1e-5, 1e4)
    assert (config.bos_id, config.eos_ids) == (1, (2,))


@pytest.mark.parametrize(("change", "said"), [(-4, "ends in model.norm"), (4, "its header says")])
def test_wrong_length(tmp_path: Path, change: int, said: str) -> None:
    checkpoint, tokenizer, out = write_inputs(tmp_path)
    data = checkpoint.read_bytes()
    garbage = 4 * SIZES.seq_len * SIZES.head_size  # RoPE tables, behind the last norm
    checkpoint.write_bytes(data[: change - garbage] if change < 0 else data + bytes(change))
    with pytest.raises(SystemExit, match=said):
        convert(checkpoint, tokenizer, out)
    assert not out.exists()


def test_quantised_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="version 2"):
        convert(*write_inputs(tmp_path, version=2))


def test_tokenizer_of_another_model(tmp_path: Path) -> None:
    paths = write_inputs(tmp_path)
    paths[1].write_bytes(reference.tokenizer_bytes(PIECES[:-1]))
    with pytest.raises(SystemExit, match=f"has {len(PIECES) - 1} tokens"):
        convert(*paths)


def test_encodes_as_llama2c_does(tmp_path: Path) -> None:
    convert(*write_inputs(tmp_path))
    tokenizer = load_model(tmp_path / "out").tokenizer
    rng = random.Random(0)
    for _ in range(1000):
        text = "".join(rng.choice("the  hé\n") for _ in range(rng.randint(0, 12)))
        ids = tokenizer.encode(text)
        assert ids == reference.encode(PIECES, text), repr(text)
        assert tokenizer.decode(ids) == text
    text = "the</s><s><0x41>"  # names of control tokens are text for llama2.c
    assert tokenizer.encode(text, parse_special=False) == reference.encode(PIECES, text)
    assert 2 in tokenizer.encode(text)
