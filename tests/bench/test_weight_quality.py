"""GPTQ onto the tuples of a joint code, for the study of weight codes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import prefix_codes as codes
import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow  # imports torch


def test_rounding_to_tuples() -> None:
    """Every tuple is one of the code or corrected; the stated bits are those of the encoded matrix; and correlated
    inputs lose less than with rounding alone."""
    import weight_quality

    from shrinkc.compression.gptq import Weighting, damped

    random = np.random.default_rng(5)
    w = random.standard_normal((16, 96)) * 1.8
    w[random.random(w.shape) < 0.01] *= 20
    code = codes.JointCode.of(random.standard_normal((20000, 3)) * 1.8, codes.ROW_PAIRS, 12)
    mix = random.standard_normal((96, 96)) + 3
    hessian = damped(torch.tensor(mix @ mix.T), 0.01)
    weights = torch.tensor(w, dtype=torch.float32)
    q, bits = weight_quality.round_to(weight_quality.Grid(code), weights, Weighting.of(hessian))
    assert (q == q.round()).all()
    exact = replace(code, price=1e-6)  # encodes integers as they are
    coded = codes.encode(q.numpy().astype(np.float64), exact, 2)
    np.testing.assert_array_equal(coded.q, q.numpy())
    assert abs(bits / w.size - coded.bits_per_weight) < 0.1

    def loss(found: np.ndarray) -> float:
        return float(np.einsum("ni,ij,nj", found - w, hessian.numpy(), found - w))

    plain = codes.encode(w, code, 2).q
    assert loss(q.numpy()) < 0.7 * loss(plain)
