"""One harness per configuration, built once per session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from end_to_end.programs import need
from shrinkc.quantize import QuantOptions
from shrinkc.storage import WIDTHS

from .harness import ASYM, GROUPED, KINDS, Q16, ZEROS, Config, Harness

# head_dim 2, 4, 6, 8, 64, 128; MHA, GQA and one KV head; every special-cased storage format
CONFIGS = {
    "hd2": Config(2, 1, 2, 17, 37, 1, QuantOptions(bits=4), adapter=True),
    "hd4": Config(8, 4, 4, 64, 512, 8, formats=(8 | Q16,), simd=False),
    "hd6": Config(6, 2, 6, 30, 13, 8, QuantOptions(bits=4), adapter=True, simd=False, engines=True),
    "hd8": Config(4, 4, 8, 64, 101, 3, QuantOptions(bits=4, embedding_bits=4), formats=(4 | Q16,)),
    "hd64": Config(3, 1, 64, 64, 200, 8, QuantOptions(bits=4, asymmetric=True)),
    # probabilities of 12 bits, which the largest rounds up to the next power of two
    "long": Config(4, 2, 4, 4096, 50, 8, formats=(8 | Q16,)),
    "hd128": Config(
        2,
        1,
        128,
        64,
        65,
        2,
        QuantOptions(bits=4, group_size=32, embedding_bits=4),
        formats=(4 | GROUPED,),
    ),
    "hd12": Config(3, 1, 12, 40, 61, 8, QuantOptions(bits=3, embedding_bits=3), formats=(3 | Q16,)),
    "hd16": Config(
        2,
        2,
        16,
        40,
        77,
        4,
        QuantOptions(bits=2, group_size=16, embedding_bits=2),
        formats=(2 | GROUPED,),
        simd=False,
    ),
    "hd10": Config(
        2,
        1,
        10,
        24,
        50,
        3,
        QuantOptions(bits=3, group_size=4),
        formats=(3 | GROUPED, 8, 8 | Q16),
        adapter=True,
        engines=True,
    ),
    "points": Config(
        2,
        1,
        4,
        24,
        43,
        8,
        QuantOptions(bits=4, group_size=8, asymmetric=True),
        formats=(4 | GROUPED | ASYM | ZEROS,),
        simd=False,
    ),
    "both": Config(
        2,
        2,
        6,
        24,
        43,
        3,
        QuantOptions(bits=4, group_size=4, asymmetric=True),
        formats=(4 | GROUPED | ASYM | ZEROS, 2 | GROUPED | ASYM, 3 | GROUPED | ASYM | ZEROS),
    ),
    "norm2": Config(2, 1, 2, 17, 37, 1, formats=(8 | Q16,), head_norm=True),
    "norm14": Config(3, 1, 14, 30, 41, 4, formats=(8 | Q16,), head_norm=True),
    "norm128": Config(2, 1, 128, 24, 33, 2, formats=(8 | Q16,), head_norm=True),
}
# KV caches of 4 bits: heads without and with channels of 8 bits, and codes that fill words or do not
CODES = {
    f"codes{c.head_dim}{' norm' if c.head_norm else ''}": replace(
        c, options=QuantOptions(kv_bits=4), formats=(8 | Q16,)
    )
    for c in (
        Config(2, 1, 2, 17, 37, 1),
        Config(6, 2, 6, 30, 13, 8, simd=False),
        Config(4, 4, 8, 64, 101, 3),
        Config(3, 1, 10, 24, 50, 8),
        Config(2, 2, 16, 40, 77, 4, simd=False),
        Config(3, 1, 64, 64, 200, 8),
        Config(2, 1, 66, 24, 33, 2),
        Config(3, 1, 14, 30, 41, 4, head_norm=True),
        Config(2, 1, 128, 24, 33, 2, head_norm=True),
    )
}
ALL_FORMATS = tuple(width | how for width in WIDTHS for how in KINDS)
GENERIC = ("hd2", "hd6", "hd64")  # all formats share their code
WITH_ENGINES = ("hd6", "hd10")  # two accumulators of 16-bit vectors are joined
# the last two: three, the others one
FEW_FORMATS = ("hd4", "hd8", "hd128", "hd12", "hd16", "points", "both", "hd10")
SHORT = tuple(name for name, c in CONFIGS.items() if c.context <= 64)


@pytest.fixture(
    scope="session", params=["plain", pytest.param("sanitized", marks=pytest.mark.slow)]
)
def harness(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Callable[[str], Harness]:
    """harness(name): the built harness of one of CONFIGS or CODES, in the slow tier with sanitizers."""
    need("host")
    built: dict[str, Harness] = {}

    def get(name: str) -> Harness:
        if name not in built:
            folder = tmp_path_factory.mktemp(name)
            built[name] = Harness((CONFIGS | CODES)[name], folder, request.param == "sanitized")
        return built[name]

    return get
