"""Stage width: scores by brute force, pruning as masking, the fit as least squares."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.interrupting import InterruptAt
from helpers.layer import MODULES
from shrinkc.checkpoints import load
from shrinkc.compression.facts import facts_of
from shrinkc.compression.stages import width
from shrinkc.compression.stages.context import StepContext
from shrinkc.importer import load_model

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.slow

Step = Callable[..., StepContext]


def inputs_of(model: Any, windows: Any, name: str) -> Any:
    """Return all inputs of a module, float64 [tokens, inputs]."""
    seen: list[Any] = []
    module = model.get_submodule(name)
    hook = module.register_forward_pre_hook(lambda m, args: seen.append(args[0].flatten(0, 1)))
    with torch.no_grad():
        model(windows, use_cache=False)
    hook.remove()
    return torch.cat(seen).double()


def test_channel_scores_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    down, a = rng.normal(size=(4, 6)), rng.normal(size=(20, 6))
    norm = torch.tensor(np.linalg.norm(a, axis=0))
    wanted = np.zeros(6)
    for c in range(6):
        for o in range(4):
            wanted[c] += abs(down[o, c]) * np.sqrt(sum(a[t, c] ** 2 for t in range(20)))
    np.testing.assert_allclose(width.channel_scores(torch.tensor(down), norm).numpy(), wanted)


def test_kept_channels_have_the_highest_scores(stories: Path, step: Step, tmp_path: Path) -> None:
    loaded = load(stories)
    windows = step().calibration.windows(loaded.tokenizer)
    width.run(width.Settings(ffn_keep=100, refit=False), step())
    mlp = loaded.model.model.layers[0].mlp
    norm = inputs_of(loaded.model, windows, "model.layers.0.mlp.down_proj").norm(dim=0)
    score = (mlp.down_proj.weight.double().abs() * norm).sum(0)
    kept = sorted(score.topk(100).indices.tolist())
    thin = load(tmp_path / "out").model.model.layers[0].mlp
    assert torch.equal(thin.gate_proj.weight, mlp.gate_proj.weight[kept])
    assert torch.equal(thin.down_proj.weight, mlp.down_proj.weight[:, kept])


def test_group_scores_by_brute_force() -> None:
    rng = np.random.default_rng(1)
    groups, rep, dim, hidden = 2, 3, 4, 10
    q, o = rng.normal(size=(24, hidden)), rng.normal(size=(hidden, 24))
    k, v = rng.normal(size=(8, hidden)), rng.normal(size=(8, hidden))
    norm_in, norm_o = rng.uniform(1, 2, hidden), rng.uniform(1, 2, 24)
    tensors = (torch.tensor(t) for t in (q, k, v, o, norm_in, norm_o))
    got = width.group_scores(*tensors, groups)
    parts = np.zeros((4, groups))
    for g in range(groups):
        keys = range(g * dim, (g + 1) * dim)
        queries = range(g * rep * dim, (g + 1) * rep * dim)
        parts[0, g] = sum(np.abs(q[r]) @ norm_in for r in queries)
        parts[1, g] = sum(np.abs(k[r]) @ norm_in for r in keys)
        parts[2, g] = sum(np.abs(v[r]) @ norm_in for r in keys)
        parts[3, g] = sum(np.abs(o[:, c]).sum() * norm_o[c] for c in queries)
    np.testing.assert_allclose(got.numpy(), (parts / parts.mean(1, keepdims=True)).sum(0))


def test_the_measured_norms_are_those_of_the_model(stories: Path, step: Step) -> None:
    """Layer 0 is pruned by its true inputs; the report has the kept groups."""
    loaded = load(stories)
    windows = step().calibration.windows(loaded.tokenizer)
    settings = width.Settings(kv_groups=1, refit=False)
    report = width.run(settings, step()).parameters["layers"][0]
    layer = loaded.model.model.layers[0].self_attn
    score = width.group_scores(
        layer.q_proj.weight, layer.k_proj.weight, layer.v_proj.weight, layer.o_proj.weight,
        inputs_of(loaded.model, windows, "model.layers.0.self_attn.q_proj").norm(dim=0).float(),
        inputs_of(loaded.model, windows, "model.layers.0.self_attn.o_proj").norm(dim=0).float(), 2,
    )  # fmt: skip
    np.testing.assert_allclose(report["group_scores"], score.numpy(), rtol=1e-4)
    assert report["kv_groups"] == [int(score.argmax())]


def test_pruning_without_refit_is_masking(stories: Path, step: Step, tmp_path: Path) -> None:
    """Removed channels and groups give the same logits as zeroed ones."""
    loaded = load(stories)
    windows = step().calibration.windows(loaded.tokenizer)
    settings = width.Settings(ffn=0.25, multiple=32, kv_groups=1, refit=False)
    report = width.run(settings, step()).parameters["layers"]
    narrow = load(tmp_path / "out").model
    masked = copy.deepcopy(loaded.model)
    for index, (whole, thin) in enumerate(
        zip(masked.model.layers, narrow.model.layers, strict=True)
    ):
        # kept channels are identified by their unchanged rows of gate
        rows = {tuple(row): i for i, row in enumerate(whole.mlp.gate_proj.weight.tolist())}
        kept = [rows[tuple(row)] for row in thin.mlp.gate_proj.weight.tolist()]
        assert len(kept) == 192 == report[index]["ffn"]["kept"] and kept == sorted(kept)
        gone = [i for i in range(256) if i not in kept]
        with torch.no_grad():
            whole.mlp.gate_proj.weight[gone] = 0
            whole.mlp.down_proj.weight[:, gone] = 0
            (group,) = report[index]["kv_groups"]
            other = 1 - group
            whole.self_attn.o_proj.weight[:, other * 48 : (other + 1) * 48] = 0
    with torch.no_grad():
        a, b = masked(windows[:2]).logits, narrow(windows[:2]).logits
    torch.testing.assert_close(a, b, rtol=0, atol=2e-4)


def test_shapes_config_and_prediction(stories: Path, step: Step, tmp_path: Path) -> None:
    settings = width.Settings(ffn=0.5, multiple=64, kv_groups=1)
    width.run(settings, step())
    config = load_model(tmp_path / "out").config  # checks every shape against the config
    assert (config.intermediate_size, config.num_heads, config.num_kv_heads) == (128, 3, 1)
    assert config.head_dim == 16 and config.hidden_size == 96
    assert (
        width.predict(settings, facts_of(stories)).parameters
        == facts_of(tmp_path / "out").parameters
    )
    text = load(tmp_path / "out").model.generate(torch.tensor([[1, 403]]), max_new_tokens=4)
    assert text.shape[1] <= 6


def test_refit_is_ridge_regression() -> None:
    rng = np.random.default_rng(2)
    x, w, kept = rng.normal(size=(50, 8)), rng.normal(size=(3, 8)), [0, 2, 3, 6]
    gram = x.T @ x
    got = width.refit(torch.tensor(w), torch.tensor(gram), torch.tensor(kept)).numpy()
    ridge = np.sqrt(width.RIDGE * np.diag(gram)[kept].mean())
    # equals least squares with additional rows for the distance to the old weights
    left = np.vstack([x[:, kept], ridge * np.eye(4)])
    right = np.vstack([x @ w.T, ridge * w[:, kept].T])
    wanted = np.linalg.lstsq(left, right, rcond=None)[0].T
    np.testing.assert_allclose(got, wanted, rtol=1e-9)
    error = width.output_error(
        torch.tensor(w), torch.tensor(got), torch.tensor(gram), torch.tensor(kept)
    )
    whole, part = x @ w.T, x[:, kept] @ got.T
    assert error == pytest.approx(((whole - part) ** 2).sum() / (whole**2).sum())


def test_refit_makes_the_model_better(stories: Path, step: Step, tmp_path: Path) -> None:
    loaded = load(stories)
    context = step()
    windows = context.calibration.windows(loaded.tokenizer)
    losses, errors = {}, {}
    for refit in (False, True):
        out = tmp_path / f"refit{refit}"
        scratch = tmp_path / f"scratch{refit}"
        scratch.mkdir()
        settings = width.Settings(ffn=0.5, multiple=64, refit=refit)
        report = width.run(settings, step(out=out, scratch=scratch)).parameters["layers"]
        errors[refit] = report[0]["ffn"]["output_error"]
        with torch.no_grad():
            losses[refit] = float(load(out).model(windows, labels=windows).loss)
    assert errors[True] < 0.9 * errors[False]
    assert losses[True] < losses[False] - 0.1


@pytest.mark.parametrize(("n", "m"), [(1, 8), (2, 4), (1, 2), (4, 8)])
def test_n_of_m_zeroes_the_lowest_scores(n: int, m: int) -> None:
    rng = np.random.default_rng(n * m)
    w, norm = rng.normal(size=(5, 16)), rng.uniform(0.1, 3, 16)
    got = width.zeroed(torch.tensor(w), torch.tensor(norm), n, m).numpy()
    for row in range(5):
        for start in range(0, 16, m):
            span = range(start, start + m)
            order = sorted(span, key=lambda k: abs(w[row, k]) * norm[k])
            assert {k for k in span if got[row, k] == 0} == set(order[:n])
            assert all(got[row, k] == w[row, k] for k in order[n:])


def test_n_of_m_frees_no_bytes_and_says_so(stories: Path, step: Step, tmp_path: Path) -> None:
    report = width.run(width.Settings(method="n:m", n=2, m=4), step()).parameters["layers"]
    before, after = facts_of(stories), facts_of(tmp_path / "out")
    matrices = 5 * (2 * 96 * 96 + 2 * 32 * 96 + 3 * 96 * 256)
    assert sum(layer["weights"] for layer in report) == matrices
    assert after.non_zeros <= before.parameters - matrices // 2
    assert (after.parameters, after.packed_bytes) == (before.parameters, before.packed_bytes)
    for layer in load_model(tmp_path / "out").layers:
        for part in MODULES.values():
            zeros = (getattr(layer, part.field).reshape(-1, 4) == 0).sum(1)
            assert zeros.min() >= 2
            assert np.mean(zeros == 2) > 0.99


@pytest.mark.parametrize(
    "settings",
    [
        width.Settings(ffn=0.25, multiple=64, kv_groups=1),
        width.Settings(method="n:m", n=1, m=8),
    ],
)
def test_an_interrupt_loses_one_layer(settings: width.Settings, step: Step, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        # at the first call no layer is finished
        width.run(settings, step(reporter=InterruptAt("width", 4)))
    assert not (tmp_path / "out").exists()
    done = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "scratch").glob("layer*.pt")}
    assert len(done) == 3
    resumed = width.run(settings, step()).parameters
    for name, when in done.items():
        assert (tmp_path / "scratch" / name).stat().st_mtime_ns == when
    (tmp_path / "fresh").mkdir()
    whole = width.run(settings, step(out=tmp_path / "again", scratch=tmp_path / "fresh")).parameters
    assert resumed == whole
    for file in (tmp_path / "out").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (width.Settings(ffn=0.01), "256 FFN channels are to stay"),
        (width.Settings(ffn_keep=300), "300 FFN channels are to stay"),
        (width.Settings(kv_groups=2), "kv_groups = 2: the model has 2, one has to stay"),
        (width.Settings(method="n:m", n=1, m=7), "m = 7 does not divide the hidden size, 96"),
    ],
)
def test_preflight(stories: Path, settings: width.Settings, words: str) -> None:
    assert words in width.preflight(settings, facts_of(stories))[0]
    assert width.preflight(width.Settings(ffn=0.5), facts_of(stories)) == []
