"""Layers that a checkpoint stores more than once are found by their bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.tiny_llama import write_tiny_llama
from shrinkc.importer.repeats import repeated_layers


def write(path: Path, order: list[int], shards: int = 1, **changes: object) -> None:
    """A model whose layer i has the tensors of layer order[i] of a random one."""
    tensors = write_tiny_llama(path / "first", layers=max(order) + 1)
    overrides = dict(changes)
    for place, layer in enumerate(order):
        for name in [n for n in tensors if n.startswith(f"model.layers.{layer}.")]:
            mine = name.replace(f"layers.{layer}.", f"layers.{place}.", 1)
            overrides.setdefault(mine, tensors[name])
    write_tiny_llama(path / "model", layers=len(order), overrides=overrides, shards=shards, seed=1)


@pytest.mark.parametrize("shards", [1, 3])
def test_found(tmp_path: Path, shards: int) -> None:
    write(tmp_path, [0, 1, 1, 2, 0], shards)
    assert repeated_layers(tmp_path / "model") == (0, 1, 1, 3, 0)


def test_none(tmp_path: Path) -> None:
    write(tmp_path, [0, 1, 2])
    assert repeated_layers(tmp_path / "model") == ()


def test_one_value_makes_a_layer_different(tmp_path: Path) -> None:
    tensors = write_tiny_llama(tmp_path / "first", layers=2)
    down = tensors["model.layers.1.mlp.down_proj.weight"].copy()
    down[-1, -1] += 1  # far behind what a glance sees
    write(tmp_path, [0, 1, 1], **{"model.layers.2.mlp.down_proj.weight": down})
    assert repeated_layers(tmp_path / "model") == ()


def test_what_is_no_checkpoint_repeats_nothing(tmp_path: Path) -> None:
    assert repeated_layers(tmp_path) == ()
    assert repeated_layers(tmp_path / "absent") == ()
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    assert repeated_layers(tmp_path) == ()
