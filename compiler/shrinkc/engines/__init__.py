"""Compute engines, one file each; ENGINES lists them.  Each target names the engines that it has."""

from collections.abc import Iterable

from shrinkc.engines.choice import ON_CORES as ON_CORES
from shrinkc.engines.choice import Choice as Choice
from shrinkc.engines.choice import Choices as Choices
from shrinkc.engines.choice import choose as choose
from shrinkc.engines.choice import with_second_layouts as with_second_layouts
from shrinkc.engines.cores import ENGINE as THE_CORES
from shrinkc.engines.engine import CORES as CORES
from shrinkc.engines.engine import Engine as Engine
from shrinkc.engines.engine import MatrixSpec as MatrixSpec
from shrinkc.engines.engine import Remainders as Remainders
from shrinkc.engines.neureka_1x1 import ENGINE as NEUREKA_1X1
from shrinkc.engines.neureka_3x3 import ENGINE as NEUREKA_3X3
from shrinkc.engines.neureka_both import ENGINE as NEUREKA_BOTH

ENGINES = {e.name: e for e in (THE_CORES, NEUREKA_1X1, NEUREKA_3X3, NEUREKA_BOTH)}


def engine_named(name: str) -> Engine:
    """Return the engine with a name.  Raises KeyError if there is none."""
    return ENGINES[name]


def product_engine(names: Iterable[str]) -> Engine | None:
    """Return the engine among ``names`` that multiplies grouped matrices of the cores with several tokens, or None."""
    return next((e for e in map(engine_named, names) if e.products), None)
