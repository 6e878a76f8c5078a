"""Attention maps and the figures that are drawn from them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from shrinkc.checkpoints import Loaded, load
from shrinkc.compression.attention_maps import (
    LOW,
    TOKENS,
    attention_maps,
    draw_maps,
    figures,
    slug,
    spectrum,
)
from shrinkc.compression.franken import Configuration

STORIES = Path(__file__).resolve().parents[2] / "examples" / "stories"


@pytest.fixture(scope="module")
def stories() -> Loaded:
    return load(STORIES)


def test_maps_are_causal_and_sum_to_one(stories: Loaded) -> None:
    maps = attention_maps(stories, (0, 2, 2), list(range(5, 25)))
    assert maps.shape == (3, 6, 20, 20)
    assert np.allclose(maps.sum(axis=-1), 1, atol=1e-5)
    assert np.array_equal(np.triu(maps, 1), np.zeros_like(maps))
    assert not np.allclose(maps[1], maps[2]), "the same layer at another place sees other values"


def test_the_first_map_by_hand(stories: Loaded) -> None:
    """Of layer 0, whose input is the embedding: from the weights, with RoPE in complex numbers."""
    ids = np.array([1, 40, 300, 77, 12, 500])
    state = {k: v.double().numpy() for k, v in stories.model.state_dict().items()}
    x = state["model.embed_tokens.weight"][ids]
    norm = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-5)
    norm *= state["model.layers.0.input_layernorm.weight"]
    angles = np.outer(np.arange(6), 10000.0 ** (-np.arange(8) / 8))

    def turned(name: str, heads: int) -> np.ndarray:
        values = norm @ state[f"model.layers.0.self_attn.{name}.weight"].T
        values = values.reshape(6, heads, 2, 8).transpose(1, 0, 2, 3)
        return (values[:, :, 0] + 1j * values[:, :, 1]) * np.exp(1j * angles)

    q, k = turned("q_proj", 6), np.repeat(turned("k_proj", 2), 3, axis=0)
    scores = (q @ k.conj().transpose(0, 2, 1)).real / 4
    scores[:, np.triu_indices(6, 1)[0], np.triu_indices(6, 1)[1]] = -np.inf
    expected = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    assert np.abs(attention_maps(stories, (0,), ids.tolist())[0] - expected).max() < 1e-5


def test_spectrum_of_a_wave() -> None:
    t = np.arange(16)
    wave = np.cos(2 * np.pi * 3 * t / 16)[:, None] * np.ones(16)
    found = spectrum(wave)
    assert np.argwhere(found > 1e-9).tolist() == [[5, 8], [11, 8]]  # +-3 around the middle
    assert np.isclose(found[5, 8], 16 * 16 / 2)


def test_figures_of_plain_maps() -> None:
    size = 16
    even = np.tril(np.ones((size, size)))
    even /= even.sum(axis=1, keepdims=True)
    assert np.isclose(figures(even).entropy, 1)
    first = np.zeros((size, size))
    first[:, 0] = 1
    f = figures(first)
    # one column: no change along tokens, every frequency alike along places
    assert f.entropy == 0 and f.first == 1
    assert np.isclose(f.spectral_entropy, np.log(15) / np.log(255))
    assert np.isclose(f.low, (2 * int(LOW * 8)) / 15)
    diagonal = figures(np.eye(size))
    assert diagonal.entropy == 0 and np.isclose(diagonal.first, 1 / size)
    noise = figures(np.abs(np.random.default_rng(0).normal(size=(64, 64))))
    assert noise.spectral_entropy > 0.9 and abs(noise.low - LOW**2) < 0.03
    flat = figures(np.full((8, 8), 1 / 8))
    assert flat.spectral_entropy == 0 == flat.low


def test_pictures_are_the_same_every_time(stories: Loaded, tmp_path: Path) -> None:
    configurations = [Configuration("a/b", (0, 1)), Configuration("c", (2, 2))]
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        result = draw_maps(stories, configurations, "Once upon a time", folder)
        assert json.loads((folder / "attention.json").read_text()) == result
    names = sorted(p.name for p in folders[0].iterdir())
    assert names == [
        "a_b.attention.png", "a_b.fourier.png", "attention.json", "c.attention.png",
        "c.fourier.png",
    ]  # fmt: skip
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    assert result["tokens"] == TOKENS
    assert result["text"].startswith("Once upon a time")
    for c, layers in zip(result["configurations"], ([0, 1], [2, 2]), strict=True):
        assert [entry["layer"] for entry in c["layers"]] == layers
        heads = [head for entry in c["layers"] for head in entry["heads"]]
        assert len(heads) == 12
        assert all(0 <= value <= 1 + 1e-9 for head in heads for value in head.values())
    assert (folders[0] / "c.attention.png").stat().st_size > 5000


def test_file_names() -> None:
    assert slug("0-1,2x3") == "0-1_2x3"
    assert slug("/") == "configuration"
