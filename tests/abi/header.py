"""sc_abi.h and sc_contract.h, from contract.py."""

from __future__ import annotations

from collections.abc import Iterable

from shrinkc.abi import contract
from shrinkc.abi.contract import Exit, InputWord, Line, Number, Time, Trace

_TOP = """\
/* SPDX-License-Identifier: Apache-2.0
 * {about}
 * Generated from compiler/shrinkc/abi/contract.py by `python -m pytest tests/abi --update-golden`. */
#ifndef {guard}
#define {guard}
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


def headers() -> dict[str, str]:
    """The text of each file in runtime_c; the same at every call."""
    return {"include/sc_abi.h": _of_runtime(), "program/sc_contract.h": _of_program()}


def _file(guard: str, about: str, *parts: str) -> str:
    return "\n".join([_TOP.format(guard=guard, about=about), *parts, "#endif\n"])


def _of_runtime() -> str:
    numbers = (
        ("HASH_MULTIPLIER", f"0x{contract.HASH_MULTIPLIER:08X}u", "h = h * this + word, from 0"),
        (
            "SAMPLED_WORDS",
            contract.SAMPLED_WORDS,
            "minimum of words checked in each blob",
        ),
        ("ROWS", contract.ROW_BLOCK, "rows of a block"),
        ("BLOCK", contract.X_BLOCK, "inputs that a core quantises at a time"),
        (
            "PRODUCT_BLOCKS",
            contract.PRODUCT_BLOCKS,
            "blocks of a run in products on N-EUREKA",
        ),
        ("PRODUCT_WORDS", contract.PRODUCT_WORDS, "words of a row per engine tile"),
        (
            "PRODUCT_PAIR_WORDS",
            contract.PRODUCT_PAIR_WORDS,
            "most words of a group for two groups per step",
        ),
        ("FLAT_WORDS", contract.FLAT_WORDS, "most words of a 4-bit group with 16-bit sums"),
        (
            "SPLIT_WORDS",
            contract.SPLIT_WORDS,
            "minimum words of a row for splitting a block among cores",
        ),
        ("SPLIT_GROUPS", contract.SPLIT_GROUPS, "minimum groups for splitting a block"),
        (
            "WIDE_WORDS",
            contract.WIDE_WORDS,
            "words widened to int8 at a time, for 16-bit vectors",
        ),
        ("LOOKUP_MAX", contract.LOOKUP_MAX, "maximum tokens of a draft"),
        ("QVEC_BYTES", contract.QVEC_BYTES, "sizeof(sc_qvec) on a 64-bit host"),
        ("MATRIX_BYTES", contract.MATRIX_BYTES, "sizeof(sc_matrix) on a 32-bit target"),
        ("PART_BYTES", contract.PART_BYTES, "sizeof(sc_part)"),
        ("TOP_BYTES", contract.TOP_BYTES, "sizeof(sc_top)"),
        ("TABLE_BYTES", contract.TABLE_BYTES, "tables of exp2 and sigmoid"),
    )
    defines = [(f"#define SC_{name} {value}", meaning) for name, value, meaning in numbers]
    return _file(
        "SC_ABI_H",
        "Constants that shrinkc and all compiled models share.",
        _aligned(defines),
        "/* what a run reports */\n" + _enum("sc_trace", "SC_TRACE_", Trace),
    )


def _of_program() -> str:
    tags = [(f'#define SC_LINE_{line.name} "{line}"', line.meaning) for line in Line]
    times = [f'#define SC_{time.name} "{time}"\n' for time in Time]
    magic = f"0x{contract.INPUT_MAGIC:08X}u"
    return _file(
        "SC_CONTRACT_H",
        "Input words, output lines and exit codes of the program that shrinkc runs.",
        '#include "sc_abi.h"\n',
        f'#define SC_INPUT_MAGIC {magic} /* "SCI1" */\n',
        "/* input words of a run: 32 bits, little-endian, equal on all targets */\n"
        + _enum("sc_input_word", "SC_IN_", InputWord),
        "/* exit codes besides 0 */\n" + _enum("sc_exit_code", "SC_EXIT_", Exit),
        "/* first word of an output line, and what follows it */\n" + _aligned(tags),
        "/* phase of a line of time or profile */\n" + "".join(times),
    )
