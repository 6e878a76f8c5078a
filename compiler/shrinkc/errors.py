"""Every way shrinkc can refuse: what the functions of :mod:`shrinkc` raise.  See docs/reference/exit-codes.md."""

from shrinkc.core.errors import *  # noqa: F403
