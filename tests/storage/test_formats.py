"""Storage formats: what they promise, the bytes they take, and that they are known where needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shrinkc.abi import ROW_BLOCK
from shrinkc.cli.main import cli
from shrinkc.core.resources import resource
from shrinkc.storage import FORMATS, WIDTHS, MatrixShape, Offsets, stored_group


def test_widths_are_offered_by_plan_and_compile() -> None:
    for command in ("plan", "compile"):
        options = {p.name: p for p in cli.commands[command].params}
        for name in ("bits", "embedding_bits"):
            assert tuple(options[name].type.choices) == tuple(map(str, WIDTHS))  # type: ignore[attr-defined]


def test_every_format_has_its_kernel() -> None:
    """Its numbers are those of Python: a program of another format would not compile."""
    include = resource("runtime_c") / "include"
    for bits, form in FORMATS.items():
        assert form.bits == bits
        source = (include / f"sc_dot_w{bits}.h").read_text()
        numbers = f"SC_W{bits}_INPUTS = {form.inputs}, SC_W{bits}_FOLD = {form.fold}"
        for text in (f"sc_dot_w{bits}(", f"sc_get_w{bits}(", f"sc_widen_w{bits}(", numbers):
            assert text in source


@pytest.mark.parametrize("bits", WIDTHS)
def test_packed_bytes_are_those_of_the_bits(bits: int) -> None:
    """A whole unit has no byte more than its bits; every value of the range comes back different."""
    form = FORMATS[bits]
    values = np.arange(form.low, form.high + 1, dtype=np.int8)
    seen = set()
    for value in values:
        packed = form.pack(np.full((ROW_BLOCK, form.inputs), value, np.int8), form.inputs)
        assert packed.shape == (1, form.weight_bytes(form.inputs // 4))
        assert packed.size * 8 == ROW_BLOCK * form.inputs * bits
        seen.add(packed.tobytes())
    assert len(seen) == len(values) == 1 << bits


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize(
    ("offsets", "each"), [(Offsets.NONE, 1), (Offsets.ZEROS, 1.5), (Offsets.WIDE, 3)]
)
def test_a_matrix_takes_what_its_integers_and_scales_take(
    bits: int, offsets: Offsets, each: float
) -> None:
    """576 x 576 in groups of 64: weights, a byte of scale and half of one or two of offset per group, two per row."""
    n = k = 576
    shape = MatrixShape("w", n, k, bits, stored_group(k, 64), True, offsets)
    groups = n * k // 64
    assert shape.bytes == n * k * bits // 8 + groups * each + 2 * n


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("k", [1, 31, 32, 33, 64, 65, 100, 172])
def test_padding_is_less_than_a_unit_per_group(bits: int, k: int) -> None:
    shape = MatrixShape("w", ROW_BLOCK, k, bits, stored_group(k, None), False, Offsets.NONE)
    unit = FORMATS[bits].inputs
    stored = 4 * shape.words
    assert k <= stored < k + shape.groups * unit
    assert shape.block_bytes == 2 * ROW_BLOCK + ROW_BLOCK * stored * bits // 8


def test_the_room_is_a_file_per_format() -> None:
    folder = Path(FORMATS[8].pack_units.__code__.co_filename).parent
    assert {f"w{bits}.py" for bits in WIDTHS} <= {f.name for f in folder.iterdir()}


@pytest.mark.parametrize("bits", [3, 2])
@pytest.mark.parametrize(
    ("offsets", "each"), [(Offsets.NONE, 1), (Offsets.ZEROS, 1.5), (Offsets.WIDE, 3)]
)
def test_narrow_weights_take_what_they_must(bits: int, offsets: Offsets, each: float) -> None:
    """576 x 576 in groups of 64: at most 1.02 times the integers, a byte (and half of one or two for an offset)
    per group and two per row."""
    n, group = 576, 64
    stored = MatrixShape("m", n, n, bits, stored_group(n, group), True, offsets).bytes
    least = n * n * bits / 8 + n * (n // group) * each + 2 * n
    assert least <= stored <= 1.02 * least
