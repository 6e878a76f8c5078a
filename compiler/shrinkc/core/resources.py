"""Location of templates, recipes, C runtime and toolchain files in a wheel or a source checkout."""

from __future__ import annotations

from pathlib import Path

from shrinkc.core.errors import ShrinkcError

_PACKAGE = Path(__file__).resolve().parent.parent


def resource(name: str) -> Path:
    """Return the path of the folder ``templates``, ``runtime_c``, ``toolchain``, ``recipes``, ``costs`` or
    ``lm_eval_tasks``."""
    for root in (_PACKAGE / "_data", _PACKAGE.parent.parent, _PACKAGE / "compression", _PACKAGE):
        if (root / name).is_dir():
            return root / name
    raise ShrinkcError(
        f"the installation of shrinkc lacks its folder '{name}'.", "reinstall shrinkc."
    )
