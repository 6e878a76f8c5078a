"""Settings for all tests."""

from __future__ import annotations

import os

# before numpy is imported: the matrices of the tests are too small for several threads
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
