"""C code that the model decides is left out of a compiled directory."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest

from end_to_end.programs import need
from shrinkc.codegen.conditionals import Constants
from shrinkc.codegen.fold import Known, folded, known_functions

KNOWN = Known(
    Constants({"ON": "1", "OFF": "0", "SIZE": "(2 * HALF)", "HALF": "2u"}, frozenset({"XPULP"})),
    {"never": "0", "place": "AT_X", "half": "HALF"},
    frozenset({"nothing"}),
    frozenset({"pure"}),
)


def body(code: str) -> str:
    """A function with this body, folded."""
    head, tail = "static int f(int a, int b) {\n    ", "\n    return a + b;\n}\n"
    out = folded(head + code + tail, KNOWN)
    assert out.startswith(head.rstrip()) and out.endswith(tail)
    return out[len(head) : -len(tail)].strip()


@pytest.mark.parametrize(
    ("code", "left"),
    [
        ("if (OFF) a = 1;", ""),
        ("if (SIZE == 4 && a) b = 1;", "if (a) b = 1;"),
        ("if (ON) a = 1;", "a = 1;"),
        ("if (OFF || a > 1) b = 1;", "if (a > 1) b = 1;"),
        ("if (a && !(OFF && b)) b = 1;", "if (a) b = 1;"),
        ("if (!never(a)) b++;\n    else a++;", "b++;"),
        ("if (a)\n        b++;\n    else if (OFF)\n        a++;\n    else\n        a--;",
         "if (a)\n        b++;\n    else a--;"),
        ("/* why */\n    if (OFF) {\n        a = 1;\n    }\n    b = 2;", "b = 2;"),
        ("if (ON) {\n        if (b) return 1;\n    }", "if (b) return 1;"),
        ("if (ON) { /* why */\n        a = 1;\n    }", "/* why */\n    a = 1;"),
        ("b = HALF > 1 ? a : 7;", "b = a;"),
        ("b = never(a) ? a : b ? 1 : 2;", "b = b ? 1 : 2;"),
        ("b = 3 * (OFF ? a : 1) * b;", "b = 3 * b;"),
        ("b = (ON ? 1 : a) * b;", "b = b;"),
        ("if (a) nothing(a, b);\n    nothing(b, b);", ""),
        ("b = g(place(a, b));", "b = g(AT_X);"),
        ("if (__builtin_expect(a && ON, 1)) b = 1;", "if (__builtin_expect(a, 1)) b = 1;"),
        ("const int n = never(a);\n    if (n) b = 1;\n    a = n;", "const int n = 0;\n    a = n;"),
        ("const int n = half(a);\n    if (n > 1) b = 1;", "b = 1;"),
        # a variable without a use goes alone; what its value does stays
        ("const int c = a, d = b;\n    if (OFF) a = c;\n    b = d;", "const int d = b;\n    b = d;"),
        ("const int c = a, d = b;\n    if (OFF) a = d;\n    b = c;", "const int c = a;\n    b = c;"),
        ("const int c = pure(a, 1);\n    if (OFF) a = c;\n    b = 1;", "b = 1;"),
        ("const int c = g(&a);\n    if (OFF) a = c;\n    b = 1;", "g(&a);\n    b = 1;"),
        ("const int c = a, d = g(&a), e = a;\n    if (OFF) a = d;\n    b = c + e;",
         "const int c = a;\n    g(&a);\n    const int e = a;\n    b = c + e;"),
        ("const int c = a++;\n    if (OFF) a = c;\n    b = 1;", "a++;\n    b = 1;"),
        ("const int c = pure(a = 2, 1);\n    if (OFF) a = c;\n    b = 1;", "pure(a = 2, 1);\n    b = 1;"),
        ("const int c = *(volatile int *)&a;\n    if (OFF) a = c;\n    b = 1;",
         "*(volatile int *)&a;\n    b = 1;"),
        ("const int c = 1;\n    if (OFF) a = 1;\n    b = 1;", "const int c = 1;\n    b = 1;"),
        # unchanged: variables, a name that is declared twice, what a directive divides, side effects
        ("if (unknown) a = 1;", "if (unknown) a = 1;"),
        ("if (XPULP && a) b = 1;", "if (XPULP && a) b = 1;"),
        ("int c = 1;\n    if (ON) {\n        int c = a;\n        b += c;\n    }\n    a = c;",
         "int c = 1;\n    {\n        int c = a;\n        b += c;\n    }\n    a = c;"),
        ("if (OFF)\n#if XPULP\n        a = 1;\n#else\n        a = 2;\n#endif",
         "if (OFF)\n#if XPULP\n        a = 1;\n#else\n        a = 2;\n#endif"),
        ("if (OFF && a++) b = 1;", "if (OFF && a++) b = 1;"),
    ],
)  # fmt: skip
def test_a_statement(code: str, left: str) -> None:
    assert body(code) == left


def test_what_follows_a_return_is_gone() -> None:
    code = (
        "static int f(int a, int b) {\n    if (ON) {\n        return a;\n    }\n    return b;\n}\n"
    )
    assert folded(code, KNOWN) == "static int f(int a, int b) {\n    (void)b;\n    return a;\n}\n"
    code = "static void f(int a) {\n    if (ON) {\n        g(a);\n        return;\n    }\n    h();\n}\n"
    assert folded(code, KNOWN) == "static void f(int a) {\n    g(a);\n}\n"


def test_functions_that_are_known() -> None:
    functions = {
        "zero": "static inline int zero(int a) {\n    (void)a;\n    return 0;\n}\n",
        "one": "SC_INLINE int one(int a) { return zero(a) || ON; }\n",
        "nop": "static inline void nop(int a) { (void)a; }\n",
        "some": "static inline int some(int a) { return a; }\n",
        "work": "static inline void work(int a) { g(a); }\n",
        "twice": "static inline int twice(int a) { return a ? 2 * some(a) : 0; }\n",
        "count": "static inline int count(int *a) { return (*a)++; }\n",
        "call": "static inline int call(int a) { return g(a); }\n",
    }
    known = Known(KNOWN.constants)
    for _ in range(3):
        known = known_functions(functions, known)
    assert known.calls == {"zero": "0", "one": "1"} and known.empty == {"nop"}
    assert known.pure == {"zero", "one", "some", "twice"}


def test_the_c_compiler_agrees(tmp_path: Path) -> None:
    """Random functions return the same, folded or not."""
    need("host")
    random = np.random.default_rng(5)

    def pick(*of: str) -> str:
        return str(random.choice(of))

    def term(depth: int) -> str:
        if depth == 0 or random.integers(3) == 0:
            return pick("ON", "OFF", "a", "b", "SIZE > 3", "HALF == 1", "a > b", "never(a)", "!b")
        inner = f"{term(depth - 1)} {pick('&&', '||')} {term(depth - 1)}"
        return pick(f"({inner})", f"!({inner})")

    def condition() -> str:
        return f" {pick('&&', '||')} ".join(term(1) for _ in range(random.integers(1, 4)))

    def statement(depth: int, indent: str) -> str:
        kind = random.integers(6) if depth else 5
        if kind < 2:
            text = f"if ({condition()}) {{\n{block(depth - 1, indent + '    ')}{indent}}}"
            return text + (
                f" else {{\n{block(depth - 1, indent + '    ')}{indent}}}"
                if random.integers(2)
                else ""
            )
        if kind == 2:
            return f"b = {condition()} ? b + {random.integers(9)} : {condition()} ? a : b - 1;"
        if kind == 3:
            return f"if ({condition()}) return a * {random.integers(9)} + b;"
        if kind == 4:
            return f"a = {condition()};"
        return f"a += {random.integers(9)};"

    def block(depth: int, indent: str) -> str:
        return "".join(
            f"{indent}{statement(depth, indent)}\n" for _ in range(random.integers(1, 4))
        )

    plain = [
        f"int f{i}(int a, int b) {{\n{block(3, '    ')}    return a + 3 * b;\n}}\n"
        for i in range(60)
    ]
    cut = [folded(code, KNOWN).replace(" f", " g", 1) for code in plain]
    assert sum(code.count("ON") + code.count("never") for code in cut) == 0
    head = "#define ON 1\n#define OFF 0\n#define HALF 2u\n#define SIZE (2 * HALF)\n"
    head += "static int never(int a) { return a * 0; }\n"
    (tmp_path / "f.c").write_text(head + "".join(plain) + "".join(cut))
    library = tmp_path / "f.so"
    subprocess.run(["cc", "-w", "-shared", "-fPIC", "-o", library, tmp_path / "f.c"], check=True)
    loaded = ctypes.CDLL(str(library))
    for i in range(60):
        for a, b in ((0, 0), (1, 0), (0, 1), (3, 2), (-1, 5)):
            assert getattr(loaded, f"f{i}")(a, b) == getattr(loaded, f"g{i}")(a, b), (
                plain[i] + cut[i]
            )
