"""Settings for all tests."""

from __future__ import annotations

import os

import hypothesis

# before numpy is imported: the matrices of the tests are too small for several threads
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")

# The same examples at every run: a gate that fails by chance says nothing about a change.  Shapes
# that do not fit are filtered out by the tests, at times many of them.
hypothesis.settings.register_profile(
    "shrinkc",
    derandomize=True,
    deadline=None,
    suppress_health_check=[
        hypothesis.HealthCheck.filter_too_much,
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.data_too_large,
    ],
)
hypothesis.settings.load_profile("shrinkc")
