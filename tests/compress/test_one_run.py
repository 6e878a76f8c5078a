"""One small run of ``shrinkc compress`` with torch, and its program, compared with values computed from the models:
removed layer and channels, GPTQ's gain over rounding, and the recovery by the adapter.

Only these tests of the fast tier import torch.  They are in one file, so that one process imports it.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shrinkc
from shrinkc.checkpoints import load
from shrinkc.cli.main import run_cli
from shrinkc.compression.facts import facts_of
from shrinkc.compression.stages import eora, gptq
from shrinkc.importer.gptq import read_gptq
from shrinkc.importer.model import QuantizedWeight

pytestmark = pytest.mark.libraries("torch", "transformers", "gptqmodel")

SAMPLES, LENGTH, GROUP = 16, 64, 32
RECIPE = f"""
[calibration]
samples = {SAMPLES}
length = {LENGTH}
[depth]
remove = 1
protect_first = 1
protect_last = 1
[width]
ffn_keep = 192
[gptq]
bits = 2
group_size = {GROUP}
sym = false
embeddings = {{ bits = 4, group_size = {GROUP} }}
[eora]
rank = 8
"""
STEPS = ["00-source", "01-depth", "02-width", "03-gptq", "04-eora"]


@pytest.fixture(scope="module")
def run(stories: Path, story_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the finished run."""
    folder = tmp_path_factory.mktemp("one")
    (folder / "recipe.toml").write_text(RECIPE)
    words = ["compress", str(stories), "--recipe", str(folder / "recipe.toml"), "-o"]
    assert run_cli([*words, str(folder / "run"), "--set", f"calibration.text={story_file}"]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def windows(stories: Path, story_file: Path) -> Any:
    """Return the calibration windows, int64 [samples, length], spread evenly over the text."""
    import torch
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(stories / "tokenizer.json"))
    ids = tokenizer.encode(story_file.read_text(), add_special_tokens=False).ids
    count = len(ids) // LENGTH
    starts = [i * count // SAMPLES * LENGTH for i in range(SAMPLES)]
    return torch.tensor([ids[start : start + LENGTH] for start in starts])


def loss(model: Any, windows: Any) -> float:
    import torch

    with torch.no_grad():
        return float(model(windows, labels=windows, use_cache=False).loss)


def inputs_of(model: Any, windows: Any, names: list[str]) -> dict[str, Any]:
    """Return name -> inputs of the module, float64 [tokens, inputs]."""
    import torch

    seen: dict[str, Any] = {}

    def hook(name: str) -> Any:
        return lambda module, given: seen.update({name: given[0].flatten(0, -2).double()})

    handles = [model.get_submodule(n).register_forward_pre_hook(hook(n)) for n in names]
    with torch.no_grad():
        model(windows, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def test_every_step_is_recorded(run: Path) -> None:
    rows = json.loads((run / "run.json").read_text())["steps"]
    assert [row["name"] for row in rows] == STEPS
    assert [row["layers"] for row in rows] == [5, 4, 4, 4, 4]
    assert [row["intermediate"] for row in rows] == [256, 256, 192, 192, 192]
    floats, quantised = facts_of(run / "02-width"), facts_of(run / "03-gptq")
    settings = gptq.Settings(
        bits=2, group_size=GROUP, sym=False, embeddings={"bits": 4, "group_size": GROUP}
    )
    assert quantised.packed_bytes == gptq.predict(settings, floats).packed_bytes
    adapted = eora.predict(eora.Settings(rank=8), quantised)
    assert facts_of(run / "04-eora").packed_bytes == adapted.packed_bytes == rows[4]["packed_bytes"]


def test_the_least_important_layer_is_removed(stories: Path, run: Path, windows: Any) -> None:
    import torch

    whole = load(stories).model
    costs = {}
    for place in (1, 2, 3):
        without = copy.deepcopy(whole)
        del without.model.layers[place]
        costs[place] = loss(without, windows)
    left = [place for place in range(5) if place != min(costs, key=costs.__getitem__)]
    kept = load(run / "01-depth").model.model.layers
    assert len(kept) == 4
    for new, old in enumerate(left):
        for name, value in whole.model.layers[old].state_dict().items():
            assert torch.equal(kept[new].state_dict()[name], value), (new, old, name)


def test_kept_channels_are_refitted(run: Path, windows: Any) -> None:
    """In the first layer, whose inputs are those of the unpruned model, the channels with the highest scores are kept,
    and the refitted down_proj reproduces its output better than the kept columns would."""
    import torch

    before, after = load(run / "01-depth").model, load(run / "02-width").model
    mlp, thin = before.model.layers[0].mlp, after.model.layers[0].mlp
    x = inputs_of(before, windows, ["model.layers.0.mlp.down_proj"]).popitem()[1]
    down = mlp.down_proj.weight.detach().double()
    score = down.abs().sum(0) * x.norm(dim=0)
    kept = score.topk(192).indices.sort().values
    for name in ("gate_proj", "up_proj"):
        wide, narrow = mlp.get_submodule(name).weight, thin.get_submodule(name).weight
        assert torch.equal(narrow, wide[kept])
    wanted, narrow = x @ down.T, thin.down_proj.weight.detach().double()
    cut, fitted = (float((x[:, kept] @ w.T - wanted).norm()) for w in (down[:, kept], narrow))
    assert fitted < 0.9 * cut
    assert loss(after, windows) < 1.5 * loss(before, windows)


def rounded(weight: QuantizedWeight, floats: np.ndarray) -> np.ndarray:
    """Round ``floats`` [out, in] to nearest on the grid of ``weight``, without an order of inputs."""
    scale, offset = (
        np.repeat(v.astype(np.float64), weight.group, 1) for v in (weight.scale, weight.offset)
    )
    q = np.clip(np.rint((floats - offset) / scale), 0, 2**weight.bits - 1)
    return q * scale + offset


def test_gptq_gains_over_rounding(run: Path, windows: Any) -> None:
    """On the same grids, by the error of the matrices' outputs for the inputs of the float model."""
    model, weights = load(run / "02-width").model, read_gptq(run / "03-gptq")
    layers = [name for name in weights if name.startswith("model.layers.0.")]
    assert len(layers) == 7 and len(weights) == 4 * 7 + 1
    seen = inputs_of(model, windows, [*layers, "lm_head"])
    gains = {}
    for name in (*layers, "model.embed_tokens"):
        weight = weights[name]
        assert (weight.bits, weight.group) == (4 if name == "model.embed_tokens" else 2, GROUP)
        floats = model.get_submodule(name).weight.detach().double().numpy()
        x = seen["lm_head" if name == "model.embed_tokens" else name].numpy()
        given, plain = weight.dequantized(), rounded(weight, floats)
        # the order of inputs is right: each integer is within a few steps of its own weight
        step = np.repeat(weight.scale.astype(np.float64), GROUP, 1)
        assert np.median(np.abs(given - floats) / step) < 0.5, name
        lost, least = (float(np.linalg.norm(x @ (w - floats).T)) for w in (given, plain))
        gains[name] = lost / least
    assert all(ratio < 1 for ratio in gains.values()), gains
    assert np.mean(list(gains.values())) < 0.8, gains


def test_the_adapter_recovers_a_part(run: Path, windows: Any) -> None:
    """The adapters reduce the error of each matrix' output in the first layer, for the inputs of the float model."""
    import torch

    floats, plain, adapted = (load(run / STEPS[n]).model for n in (2, 3, 4))
    layers = [n for n in read_gptq(run / "03-gptq") if n.startswith("model.layers.0.")]
    left = {}
    for name, x in inputs_of(floats, windows, layers).items():
        whole, *others = (
            m.get_submodule(name).weight.detach().double() for m in (floats, plain, adapted)
        )
        lost, rest = (float(torch.linalg.norm(x @ (w - whole).T)) for w in others)
        left[name] = rest / lost
    assert len(left) == 7 and all(share < 1 for share in left.values()), left
    assert np.mean(list(left.values())) < 0.95, left


def test_the_program_has_the_adapter(run: Path, other_file: Path, tmp_path: Path) -> None:
    """The program's predictions are those of the last step, not those of the step without adapter."""
    program = str(tmp_path / "program")
    assert run_cli(["compile", str(run / "04-eora"), "-o", program, "--context", "64"]) == 0
    assert run_cli(["run", program, "--prompt", "Once upon", "--tokens", "6"]) == 0
    apart = {
        name: shrinkc.evaluate(
            program, text=other_file, protocol="wikitext64", windows=4, base=run / name
        )["perplexity"]["base"]
        for name in STEPS[3:]
    }
    assert apart["04-eora"]["divergence"] < 0.2 * apart["03-gptq"]["divergence"], apart
    assert apart["04-eora"]["same_greedy"] > 0.9


def test_the_same_command_has_nothing_to_do(run: Path, stories: Path, story_file: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*/*") if p.is_file()}
    recipe = str(run.parent / "recipe.toml")
    words = ["compress", str(stories), "--recipe", recipe, "-o", str(run)]
    assert run_cli([*words, "--set", f"calibration.text={story_file}"]) == 0
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*/*") if p.is_file()} == before
