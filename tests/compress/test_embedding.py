"""Our own GPTQ of a matrix, used for embedding and LM head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.compress.quantising import STORIES

from shrinkc.checkpoints import load
from shrinkc.compression.embedding import head_moment, quantize_embeddings
from shrinkc.compression.gptq import Weighting, damped, fit_groups, fit_points, quantize_matrix
from shrinkc.importer.embedding_sidecar import (
    HEAD_SIDECAR,
    SIDECAR,
    embedding_format,
    read_embedding,
    write_embedding,
)
from shrinkc.importer.model import Zero

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.slow


def matrix(n: int = 40, k: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def correlated(k: int = 64) -> torch.Tensor:
    """Return a second moment with strong correlations: a few directions have most of the energy."""
    x = matrix(500, 6, seed=1) @ matrix(6, k, seed=2) + 0.1 * matrix(500, k, seed=3)
    return x.T @ x / 500


def cost(weight: torch.Tensor, quantised: torch.Tensor, moment: torch.Tensor) -> float:
    delta = quantised - weight
    return float(((delta @ moment) * delta).sum())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_without_correlations_every_weight_is_rounded_to_the_nearest(bits: int) -> None:
    w = matrix()
    found = quantize_matrix(w, Weighting.of(torch.eye(64)), bits=bits, group_size=16)
    assert int(found.q.max()) <= 2**bits - 1
    levels = np.arange(2**bits, dtype=np.float32)
    for row in range(0, 40, 7):
        for column in range(64):
            g = column // 16
            grid = levels * found.scale[row, g] + found.offset[row, g]
            nearest = np.abs(grid - w[row, column].item()).min()
            got = found.dequantized()[row, column]
            assert abs(got - w[row, column].item()) == pytest.approx(nearest, abs=1e-6)


def test_following_columns_compensate_errors() -> None:
    w, moment = matrix(), correlated()
    hessian = damped(moment, 0.01)
    gptq = quantize_matrix(w, Weighting.of(hessian), bits=3, group_size=16)
    # the same groups and importances, without error compensation
    plain = quantize_matrix(w, Weighting.of(torch.diag(hessian.diagonal())), bits=3, group_size=16)
    first = cost(w, torch.from_numpy(gptq.dequantized()), moment)
    second = cost(w, torch.from_numpy(plain.dequantized()), moment)
    assert first < 0.6 * second


@pytest.mark.parametrize("fit", [fit_groups, fit_points])
def test_groups_are_never_worse_than_their_whole_range(fit: Any) -> None:
    w = matrix(200, 32) ** 3  # with outliers
    importance = torch.rand(32, generator=torch.Generator().manual_seed(4)) + 0.01
    low, high = w.amin(1, keepdim=True), w.amax(1, keepdim=True)
    step = (high - low) / 15
    start = -(-low / step).round() * step if fit is fit_points else low
    whole = ((((w - start) / step).round().clamp(0, 15) * step + start - w) ** 2) @ importance
    s, o = fit(w, importance, 4)
    q = ((w - o[:, None]) / s[:, None]).round().clamp(0, 15)
    fitted = ((q * s[:, None] + o[:, None] - w) ** 2) @ importance
    assert (fitted <= whole * 1.001).all()  # scales are 16-bit
    least = 0.8 if fit is fit_groups else 0.92  # zero has to be a value of the grid
    assert float(fitted.sum()) < least * float(whole.sum())


def test_scales_and_offsets_are_16_bit_floats_whatever_the_weights() -> None:
    w = matrix(4, 32)
    w[0] = 0.0
    w[1] = 0.37
    w[2] *= 1e-6
    found = quantize_matrix(w, Weighting.of(torch.eye(32)), bits=4, group_size=16)
    for values in (found.scale, found.offset):
        assert np.array_equal(values, values.astype(np.float16).astype(np.float32))
    assert (found.scale > 0).all()
    assert np.array_equal(found.dequantized()[0], np.zeros(32))
    assert found.dequantized()[1] == pytest.approx(0.37, rel=1e-3)


@pytest.mark.parametrize("shift", [-3.0, 0.0, 0.4, 3.0])
def test_zero_points_are_integers_and_zero_is_representable(shift: float) -> None:
    w = matrix(60, 32) + shift
    w[0] = 0.0
    w[1] = 0.37
    w[2] *= 1e-6
    found = quantize_matrix(w, Weighting.of(torch.eye(32)), bits=4, group_size=16, points=True)
    zero = found.zero_points
    assert zero is not None and ((zero >= 0) & (zero <= 15)).all()
    assert np.array_equal(found.offset, -found.scale * zero)
    assert (found.scale == found.scale.astype(np.float16)).all() and (found.scale > 0).all()
    assert np.array_equal(found.dequantized()[0], np.zeros(32))
    assert found.dequantized()[1] == pytest.approx(0.37, rel=1e-3)
    # a range without zero is extended to it, so its steps are coarser than with offsets
    steps = (w.amax(1).clamp_min(0) - w.amin(1).clamp_max(0)).numpy() / 15
    error = np.abs(found.dequantized() - w.numpy()).mean(1)
    assert (error[3:] < 0.5 * steps[3:]).all()


@pytest.mark.parametrize(
    ("bits", "group", "points"), [(4, 16, False), (8, 32, False), (4, 16, True), (8, 32, True)]
)
def test_a_sidecar_reads_back_as_the_embedding(
    tmp_path: Path, bits: int, group: int, points: bool
) -> None:
    weighting = Weighting.of(torch.eye(64))
    found = quantize_matrix(matrix(), weighting, bits=bits, group_size=group, points=points)
    write_embedding(tmp_path / SIDECAR, found)
    again = read_embedding(tmp_path / SIDECAR)
    assert (again.bits, again.group) == (bits, group)
    assert np.array_equal(again.dequantized(), found.dequantized())
    shown = embedding_format(tmp_path / SIDECAR, found.shape)
    assert shown == (bits, group, Zero.POINT if points else Zero.ANY)


def test_rows_are_independent() -> None:
    w, weighting = matrix(), Weighting.of(damped(correlated(), 0.1))
    whole = quantize_matrix(w, weighting, bits=4, group_size=32).q
    part = quantize_matrix(w[7:12], weighting, bits=4, group_size=32).q
    assert np.array_equal(whole[7:12], part)


def test_the_moment_is_that_of_the_lm_heads_input() -> None:
    model = load(STORIES).model
    windows = torch.arange(3, 99).view(4, 24)
    seen: list[torch.Tensor] = []
    handle = model.lm_head.register_forward_pre_hook(lambda _, x: seen.append(x[0].flatten(0, 1)))
    with torch.no_grad():
        model(windows)
    handle.remove()
    x = torch.cat(seen).double()
    assert torch.allclose(head_moment(model, windows).double(), x.T @ x / len(x), rtol=1e-3)


def test_a_tied_model_has_one_matrix_and_others_two() -> None:
    model = load(STORIES).model
    windows = torch.arange(3, 99).view(4, 24)
    tied = quantize_embeddings(model, windows, bits=4, group_size=32)
    assert list(tied) == [SIDECAR]
    assert tied[SIDECAR].zero_points is not None  # 4 bits, as on the device
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.flip(0).clone())
    both = quantize_embeddings(model, windows, bits=4, group_size=32)
    assert list(both) == [SIDECAR, HEAD_SIDECAR]
    assert all(table.zero_points is not None for table in both.values())
    both = quantize_embeddings(model, windows, bits=8, group_size=32)
    for name, table in (
        (SIDECAR, model.get_input_embeddings().weight),
        (HEAD_SIDECAR, model.lm_head.weight),
    ):
        error = torch.from_numpy(both[name].dequantized()) - table.detach()
        assert float(error.norm() / table.detach().norm()) < 0.01
