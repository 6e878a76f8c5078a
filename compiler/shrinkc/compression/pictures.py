"""Reproducible pictures: equal data give equal bytes, with one font, no dates and fixed names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from shrinkc.checkpoints import need
from shrinkc.core.output import new_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# the palette of Okabe and Ito, which colour-blind people can distinguish
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = "osD^vPX"

_STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "shrinkc",
    "text.usetex": False,
}


@contextmanager
def style() -> Iterator[None]:
    """Apply shrinkc's style to matplotlib figures within the context and ignore the user's matplotlibrc.

    Raises ExtraMissing."""
    need("matplotlib")
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def save_picture(figure: Figure, file: Path) -> None:
    """Write ``file`` (.svg or .png) atomically; call it inside :func:`style`."""
    kind = file.suffix.removeprefix(".")
    nothing = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}[kind]
    with new_file(file) as picture:
        figure.savefig(picture, format=kind, metadata=nothing)
