"""sc_abi.h, from contract.py."""

from __future__ import annotations

from collections.abc import Iterable

from shrinkc.abi import contract
from shrinkc.abi.contract import Exit, InputWord, Line, Number, Time, Trace

_TOP = """\
/* SPDX-License-Identifier: Apache-2.0
 * What shrinkc and the programs that it makes say to each other, and sizes that both count with.  Made of
 * compiler/shrinkc/abi/contract.py, whose changes `python -m pytest tests/abi --update-golden` brings here. */
#ifndef SC_ABI_H
#define SC_ABI_H
"""


def _aligned(lines: Iterable[tuple[str, str]]) -> str:
    """(code, meaning) per line, as clang-format has it."""
    lines = tuple(lines)
    width = max(len(code) for code, _ in lines)
    return "".join(f"{code:{width}} /* {meaning} */\n" for code, meaning in lines)


def _enum(name: str, prefix: str, members: Iterable[Number]) -> str:
    lines = [(f"    {prefix}{m.name} = {m.value},", m.meaning) for m in members]
    lines[-1] = (lines[-1][0].removesuffix(","), lines[-1][1])
    return f"enum {name} {{\n{_aligned(lines)}}};\n"


def header() -> str:
    """The text of the file; the same at every call."""
    numbers = (
        ("INPUT_MAGIC", f"0x{contract.INPUT_MAGIC:08X}u", '"SCI1"'),
        ("HASH_MULTIPLIER", f"0x{contract.HASH_MULTIPLIER:08X}u", "h = h * this + word, from 0"),
        ("ROWS", contract.ROW_BLOCK, "of a block"),
        ("BLOCK", contract.X_BLOCK, "inputs that one core scans or quantises at a time"),
        (
            "PRODUCT_BLOCKS",
            contract.PRODUCT_BLOCKS,
            "of a run that N-EUREKA multiplies with several tokens",
        ),
        ("PRODUCT_WORDS", contract.PRODUCT_WORDS, "of a row that it takes at a time"),
        (
            "PRODUCT_PAIR_WORDS",
            contract.PRODUCT_PAIR_WORDS,
            "of a group up to which two are a step",
        ),
        ("FLAT_WORDS", contract.FLAT_WORDS, "of a group of 4 bit up to which sums have 16"),
        (
            "SPLIT_WORDS",
            contract.SPLIT_WORDS,
            "of a row from which on cores split a block, where a tile has few",
        ),
        ("SPLIT_GROUPS", contract.SPLIT_GROUPS, "and groups, where it has scales for them"),
        (
            "WIDE_WORDS",
            contract.WIDE_WORDS,
            "of a row of a 16-bit vector's matrix, made 8 bit at a time",
        ),
        ("LOOKUP_MAX", contract.LOOKUP_MAX, "most tokens of a draft"),
        ("QVEC_BYTES", contract.QVEC_BYTES, "sizeof(sc_qvec) on a 64-bit host"),
        ("MATRIX_BYTES", contract.MATRIX_BYTES, "sizeof(sc_matrix) on a 32-bit target"),
        ("PART_BYTES", contract.PART_BYTES, "sizeof(sc_part)"),
        ("TOP_BYTES", contract.TOP_BYTES, "sizeof(sc_top)"),
        ("TABLE_BYTES", contract.TABLE_BYTES, "of the tables of exp2 and sigmoid"),
    )
    defines = [(f"#define SC_{name} {value}", meaning) for name, value, meaning in numbers]
    tags = [(f'#define SC_LINE_{line.name} "{line}"', line.meaning) for line in Line]
    times = [f'#define SC_{time.name} "{time}"\n' for time in Time]
    parts = (
        _aligned(defines),
        "/* words of a run's input: 32 bit, little-endian, the same on every target */\n"
        + _enum("sc_input_word", "SC_IN_", InputWord),
        "/* what a run prints */\n" + _enum("sc_trace", "SC_TRACE_", Trace),
        "/* exit codes beside 0 */\n" + _enum("sc_exit_code", "SC_EXIT_", Exit),
        "/* the first word of a line, and what follows it */\n" + _aligned(tags),
        "/* what a line of time or profile is about */\n" + "".join(times),
    )
    return "\n".join([_TOP, *parts, "#endif\n"])
