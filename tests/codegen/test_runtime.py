"""Which of the runtime's code a compiled directory gets: conditionals, unused definitions, headers."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from end_to_end.programs import ENV, need
from end_to_end.shapes import build, draw
from shrinkc.build import build_program
from shrinkc.codegen.conditionals import Constants, resolved
from shrinkc.codegen.runtime import specialised, with_short_headers_inside
from shrinkc.codegen.unused import Item, items_of, sources_of, used, written

CONSTANTS = Constants(
    {"RANK": "0", "WIDTH": "(4 * HALF)", "HALF": "2u", "TYPED": "uint32_t"},
    frozenset({"XPULP", "CORES"}),
)


@pytest.mark.parametrize(
    ("condition", "left"),
    [
        ("RANK > 0", "0"),
        ("!defined(RANK)", "0"),
        ("WIDTH == 8 && HALF << 1 == 4", "1"),
        ("MISSING", "0"),
        ("defined MISSING || RANK + 1", "1"),
        ("XPULP", "XPULP"),
        ("XPULP && WIDTH % 4 == 0 && WIDTH > HALF", "XPULP"),
        ("XPULP && RANK", "0"),
        ("XPULP || WIDTH", "1"),
        ("RANK || XPULP || MISSING", "XPULP"),
        ("CORES > WIDTH", "CORES > WIDTH"),
        ("!(CORES - 1) || RANK", "!(CORES - 1)"),
        ("TYPED == 1", "0"),
        ("__riscv", "__riscv"),
        ("-7 / 2 == -3 && -7 % 2 == -1", "1"),
    ],
)
def test_a_condition(condition: str, left: str) -> None:
    got = resolved(f"#if {condition}\na\n#else\nb\n#endif\n", CONSTANTS)
    expected = {"0": "b\n", "1": "a\n"}.get(left, f"#if {left}\na\n#else\nb\n#endif\n")
    assert got == expected


def test_branches() -> None:
    text = "#if RANK\na\n#elif XPULP\nb\n#elif WIDTH\nc\n#else\nd\n#endif\n"
    assert resolved(text, CONSTANTS) == "#if XPULP\nb\n#else\nc\n#endif\n"
    text = "#ifdef XPULP\na\n#elif RANK\n#error no\n#else\nd\n#endif\n"
    assert resolved(text, CONSTANTS) == "#ifdef XPULP\na\n#else\nd\n#endif\n"
    text = "#if RANK\n#if WIDTH\na\n#else\nb\n#endif\n#endif\n#ifndef MISSING\nc\n#endif\n"
    assert resolved(text, CONSTANTS) == "c\n"


def test_an_outer_conditional_decides_inner_ones() -> None:
    text = "#if !XPULP || CORES\na\n#else\n#ifdef XPULP\nb\n#endif\n#if XPULP\nc\n#else\nd\n#endif\n#endif\n"
    expected = "#if !XPULP || CORES\na\n#else\n#ifdef XPULP\nb\n#endif\nc\n#endif\n"
    assert resolved(text, CONSTANTS) == expected
    text = "#if XPULP\na\n#elif !XPULP && CORES == 4\n#if CORES == 4\nb\n#endif\n#endif\n"
    assert resolved(text, CONSTANTS) == "#if XPULP\na\n#elif CORES == 4\nb\n#endif\n"
    text = "#ifndef XPULP\n#define XPULP 1\n#ifdef XPULP\na\n#endif\n#endif\n"
    assert resolved(text, CONSTANTS) == text


@pytest.mark.parametrize(
    "text", ["#if 1\n", "#endif\n", "#else\n", "#elif 1\n", "#if 1 +\n#endif\n", "#if `\n#endif\n"]
)
def test_what_is_not_a_conditional(text: str) -> None:
    with pytest.raises((ValueError, IndexError)):
        resolved(text, CONSTANTS)


FORMS = ["{}", "defined({})", "({} > 1)", "({} + 2 == 3)"]


def test_the_c_preprocessor_agrees(tmp_path: Path) -> None:
    """Random nested conditionals: the same lines are left, whatever the platform's macros are."""
    need("host")
    random = np.random.default_rng(3)
    names = ["RANK", "WIDTH", "HALF", "XPULP", "CORES", "MISSING"]

    def condition() -> str:
        terms = [
            str(random.choice(["", "!"])) + str(random.choice(FORMS)).format(random.choice(names))
            for _ in range(random.integers(1, 4))
        ]  # fmt: skip
        return f" {random.choice(['&&', '||'])} ".join(terms)

    def body(depth: int) -> str:
        lines = [f"line {random.integers(1 << 30)}"]
        for _ in range(random.integers(0, 3) if depth < 3 else 0):
            lines += [f"#if {condition()}", body(depth + 1)]
            lines += [
                x
                for _ in range(random.integers(0, 3))
                for x in (f"#elif {condition()}", body(depth + 1))
            ]
            lines += ["#else", body(depth + 1)] if random.integers(2) else []
            lines += ["#endif"]
        return "\n".join(lines)

    def preprocessed(text: str, defined: list[str]) -> list[str]:
        done = subprocess.run(
            ["cc", "-E", "-P", *defined, "-"],
            input=text,
            capture_output=True,
            text=True,
            check=True,
        )
        return [line for line in done.stdout.splitlines() if line.startswith("line")]

    model = [f"-D{name}={value}" for name, value in CONSTANTS.values.items() if name != "TYPED"]
    left = 0
    for _ in range(40):
        text = body(0) + "\n"
        cut = resolved(text, CONSTANTS)
        left += cut.count("#if")
        for platform in ([], ["-DXPULP=1", "-DCORES=8"], ["-DXPULP=0", "-DCORES=1"], ["-DCORES=2"]):
            assert preprocessed(cut, platform) == preprocessed(text, [*model, *platform])
    assert left > 20


FILE = """/* Licence
 * What the file is about. */
#ifndef A_H
#define A_H

/* ---- kept ---- */

/* the sum */
static inline int sum(int a, int b) {
#if XPULP
    return add(a, b);
#else
    return a + b;
#endif
}
/* the difference */
static inline int difference(int a, int b) { return a - b; }

/* ---- gone ---- */

#if XPULP
typedef struct {
    int x; /* with a brace: } */
} pair;
#define PAIR(x) \\
    ((pair){x})
#endif

enum { FIRST, SECOND };
extern const char *const names[], quote[] __attribute__((aligned(4)));
#define NAMED(x) made_##x
int made_one, made_two, other;

#endif
"""


def used_in(
    files: Mapping[str, Sequence[Item]], roots: Iterable[str], outside: Collection[str] = ()
) -> set[Item]:
    return used(files, roots, (), sources_of(files, outside))


def left_of(text: str, *roots: str) -> str:
    items = items_of(text)
    assert "".join(item.text for item in items) == text
    return written(items, used_in({"a.h": items}, roots))


def test_what_nobody_refers_to_is_gone() -> None:
    text = left_of(FILE, "sum")
    assert "the sum" in text and "return add(a, b);" in text and "---- kept" in text
    for word in ("difference", "pair", "FIRST", "names", "made_", "gone", "other"):
        assert word not in text, word
    assert text.startswith("/* Licence") and text.endswith("#endif\n")


def test_what_is_referred_to_stays() -> None:
    assert "typedef struct {" in left_of(FILE, "PAIR")
    assert "#if XPULP\n#define PAIR" not in left_of(FILE, "pair")
    assert "enum { FIRST, SECOND };" in left_of(FILE, "SECOND")
    assert "quote[]" in left_of(FILE, "quote")
    assert "made_one" in left_of(FILE, "NAMED")  # it may make any of them
    assert "made_one" not in left_of(FILE, "sum")


def test_a_text_that_is_not_balanced() -> None:
    with pytest.raises(ValueError, match="without an end"):
        items_of("int f(void) {\n")


def test_a_sources_own_names_are_its_own() -> None:
    """Two sources have a static function of one name; only one of them is used."""
    files = {
        "a.c": items_of(
            "static int dot(void) { return 1; }\nint used_one(void) { return dot(); }\n"
        ),
        "b.c": items_of("static int dot(void) { return 2; }\n"),
    }
    kept = used_in(files, ["used_one"])
    assert written(files["a.c"], kept).count("dot") == 2
    assert written(files["b.c"], kept) == ""


def test_a_name_counts_only_where_c_sees_it() -> None:
    """An argument in a header keeps no function of a source that does not include it; nor does a program's word."""
    files = {
        "a.c": items_of('#include "a.h"\nint used_one(void) { return move(1, 2); }\n'),
        "a.h": items_of(
            "static int move(int x, int shift) { return x << shift; }\nstatic int spare(void) { return 0; }\n"
        ),
        "b.c": items_of("static int shift(void) { return 2; }\nint used_two(void) { return 0; }\n"),
        "all.h": items_of("enum { PLAIN };\nenum { OTHER };\n"),
    }
    kept = used_in(files, ["used_one", "used_two", "spare", "PLAIN"], {"all.h"})
    left = {name: written(items, kept) for name, items in files.items()}
    assert "int move(int x, int shift)" in left["a.h"] and "spare" not in left["a.h"]
    assert left["b.c"] == "int used_two(void) { return 0; }\n"
    assert left["all.h"] == "enum { PLAIN };\n"


def test_a_header_of_one_file_is_written_into_it() -> None:
    runtime = {
        "llm.h": "/* public */\n",
        "a.c": '/* a */\n#include "one.h"\n#include "both.h"\n\nint SC_MODEL(void) { return ONE + BOTH; }\n',
        "b.c": '/* b */\n#include "both.h"\n\nint named(void) { return BOTH; }\n',
        "c.c": '/* c */\n#include "gone.h"\n\nint unnamed(void) { return 1; }\n',
        "one.h": "/* SPDX-License-Identifier: X\n * One. */\n#ifndef ONE_H\n#define ONE_H\n"
        '#include "both.h"\n#define ONE 1\n#endif\n',
        "both.h": "/* both */\n#ifndef BOTH_H\n#define BOTH_H\n#define BOTH 2\n#endif\n",
        "gone.h": "/* gone */\n#ifndef GONE_H\n#define GONE_H\n#define GONE 3\n#endif\n",
    }
    generated = {
        "forward.c": "/* f */\nint forward(void) { return named(); }\n",
        "model.c": "",
        "model.h": "",
        "formats.h": "",
    }
    out = specialised(runtime, generated, [], [], {})
    assert set(out) == {"llm.h", "a.c", "b.c", "both.h", "forward.c"}
    assert out["a.c"] == (
        '/* a */\n#include "both.h"\n\n/* One. */\n\n#define ONE 1\n\n'
        "int SC_MODEL(void) { return ONE + BOTH; }\n"
    )


def test_a_short_header_of_one_platform_file_is_written_into_it() -> None:
    head = "/* SPDX-License-Identifier: X\n * About. */\n#ifndef R_H\n#define R_H\n"
    texts = {
        "platform/chip/regs.h": head + "#define END 1\n#endif\n",
        "platform/pulp/cluster.h": (
            '/* c */\n#include "regs.h"\n#include "long.h"\n#include "sc_target.h"\nint x = END;\n'
        ),
        "platform/pulp/long.h": head + "\n" * 40 + "#endif\n",
        "platform/pulp/sc_target.h": "/* t */\n",
        "platform/host/sc_target.h": "/* t */\n",
        "program/twice.h": "/* two include it */\n",
        "program/a.c": '#include "twice.h"\n',
        "program/b.c": '#include "twice.h"\n',
    }
    out = with_short_headers_inside(texts)
    assert texts.keys() - out.keys() == {"platform/chip/regs.h"}
    assert "/* About. */\n\n#define END 1\n" in out["platform/pulp/cluster.h"]
    assert all(out[path] == texts[path] for path in out if path != "platform/pulp/cluster.h")


def sizes_of(elf: Path) -> dict[str, int]:
    """Bytes of each function and object of a program."""
    lines = subprocess.check_output(["riscv64-unknown-elf-nm", "-S", elf], text=True).splitlines()
    return {words[3]: int(words[1], 16) for words in map(str.split, lines) if len(words) == 4}


def instructions_of(elf: Path) -> Counter[str]:
    """How often each instruction occurs in a program, its operands aside; padding is not counted."""
    command = ["riscv64-unknown-elf-objdump", "-d", "--no-show-raw-insn", elf]
    found = re.findall(
        r"^ *[0-9a-f]+:\s+(\S+)", subprocess.check_output(command, text=True), re.MULTILINE
    )
    return Counter(name for name in found if name != "nop")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2, 7, 12, 13])
def test_the_chips_program_is_the_same(seed: int, tmp_path: Path) -> None:
    """With what is not used, or without: the same functions, none larger by more than two instructions. The compiler
    orders a few instructions otherwise where it decides a condition on the model, and pads functions otherwise. Tables
    and copies of their rows are smaller, because fields without a reader are left out."""
    need("qemu")
    case = draw(seed)
    program = build(case, tmp_path / "cut")
    again = build(case, tmp_path / "whole", whole_runtime=True)
    lines = [
        sum(len(f.read_text().splitlines()) for f in (p.out / "src/runtime").iterdir())
        for p in (program, again)
    ]
    assert lines[0] < 0.8 * lines[1]
    chip = case.target.programs["gvsoc"]
    found = []
    for each in (program, again):
        build_program(each.out, chip, env=ENV, options={"PROFILE": "1"} if seed % 8 else {})
        elf = re.search(rf"OUTPUT_{chip} .*:= (\S+)", (each.out / "Makefile").read_text())
        assert elf is not None
        found.append((sizes_of(each.out / elf[1]), instructions_of(each.out / elf[1])))
    assert found[0][0].keys() == found[1][0].keys()
    tables = ("sc_matrices", "sc_embedding", "choices")  # choices() copies a matrix
    for name, size in found[0][0].items():
        whole = found[1][0][name]
        assert size - whole <= 8 and (whole - size <= 8 or name.startswith(tables)), name
    assert sum(((found[0][1] - found[1][1]) + (found[1][1] - found[0][1])).values()) < 30
