"""Resolves ``#if`` lines whose value is known when a model is compiled; the others stay unchanged.

The runtime has code for every model. A compiled directory gets the code of one: ``#if SC_RANK > 0`` disappears, with
its lines if the model has no adapters. Conditions on the platform (``#if SC_XPULP``) remain, because one directory
has programs for several platforms.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

DIRECTIVE = re.compile(r"[ \t]*#\s*(\w+)[ \t]*(.*)", re.DOTALL)
TOKEN = re.compile(r"\s*(\d\w*|[A-Za-z_]\w*|&&|\|\||[=!<>]=|<<|>>|[-+*/%<>!~()&|^])")
# binary operators by precedence, the loosest first; && and || are handled apart, because they need not know both sides
BINARY: tuple[dict[str, Callable[[int, int], int]], ...] = (
    {"|": int.__or__},
    {"^": int.__xor__},
    {"&": int.__and__},
    {"==": lambda a, b: int(a == b), "!=": lambda a, b: int(a != b)},
    {
        "<": lambda a, b: int(a < b),
        ">": lambda a, b: int(a > b),
        "<=": lambda a, b: int(a <= b),
        ">=": lambda a, b: int(a >= b),
    },
    {"<<": int.__lshift__, ">>": int.__rshift__},
    {"+": int.__add__, "-": int.__sub__},
    {"*": int.__mul__, "/": lambda a, b: int(a / b), "%": lambda a, b: a - int(a / b) * b},
)


@dataclass(frozen=True)
class Constants:
    """Macros of the model: ``values`` by name, as C text; ``open_names``: names that a platform may define.

    A name in neither is undefined in every program of the directory.
    """

    values: Mapping[str, str]
    open_names: frozenset[str]

    def defined(self, name: str) -> int | None:
        """1 or 0; None if the platform decides."""
        if name in self.values:
            return 1
        return None if self.is_open(name) else 0

    def is_open(self, name: str) -> bool:
        """Whether a platform or the C compiler may define it."""
        return name in self.open_names or name.startswith("_")


@dataclass(frozen=True)
class _Term:
    """Value of an expression, or None, and its text with what is known left out."""

    value: int | None
    text: str


class _Expression:
    """Recursive descent over one condition (C11, 6.10.1)."""

    def __init__(self, text: str, constants: Constants, depth: int = 0) -> None:
        code = re.sub(r"/\*.*?\*/|/\*.*|\\\n", " ", text, flags=re.DOTALL).strip()
        self.tokens: list[str] = []
        at = 0
        while at < len(code):
            found = TOKEN.match(code, at)
            if found is None:
                raise ValueError(f"not a condition: {text!r}")
            self.tokens.append(found[1])
            at = found.end()
        self.at, self.constants, self.depth = 0, constants, depth

    def parse(self) -> _Term:
        term = self._logical("||")
        if self.at != len(self.tokens):
            raise ValueError(f"not a condition: {' '.join(self.tokens)!r}")
        return term

    def _peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def _next(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1]

    def _logical(self, operator: str) -> _Term:
        """A chain of || (of && below it): a term that decides it, else the terms that are unknown."""
        decides = operator == "||"

        def operand() -> _Term:
            return self._logical("&&") if operator == "||" else self._binary(0)

        terms = [operand()]
        while self._peek() == operator:
            self._next()
            terms.append(operand())
        if len(terms) == 1:
            return terms[0]
        if any(t.value is not None and bool(t.value) == decides for t in terms):
            return _Term(int(decides), str(int(decides)))
        unknown = [t.text for t in terms if t.value is None]
        if not unknown:
            return _Term(int(not decides), str(int(not decides)))
        return _Term(None, f" {operator} ".join(unknown))

    def _binary(self, level: int) -> _Term:
        if level == len(BINARY):
            return self._unary()
        left = self._binary(level + 1)
        while self._peek() in BINARY[level]:
            operator = self._next()
            right = self._binary(level + 1)
            value = None
            if left.value is not None and right.value is not None:
                value = BINARY[level][operator](left.value, right.value)
            left = _Term(value, f"{left.text} {operator} {right.text}")
        return left

    def _unary(self) -> _Term:
        token = self._next()
        if token in ("!", "-", "~", "+"):
            of = self._unary()
            value = None
            if of.value is not None:
                value = {"!": int(not of.value), "-": -of.value, "~": ~of.value, "+": of.value}[
                    token
                ]
            return _Term(value, token + of.text)
        if token == "(":
            inner = self._logical("||")
            self._next()
            return _Term(inner.value, f"({inner.text})")
        if token == "defined":
            bracket = self._peek() == "("
            if bracket:
                self._next()
            name = self._next()
            if bracket:
                self._next()
            return _Term(self.constants.defined(name), f"defined({name})")
        if token[0].isdigit():
            return _Term(int(token.rstrip("uUlL"), 0), token)
        return _Term(self._value(token), token)

    def _value(self, name: str) -> int | None:
        text = self.constants.values.get(name)
        if text is None:
            return None if self.constants.is_open(name) else 0
        try:
            inner = _Expression(text, self.constants, self.depth + 1)
            return inner.parse().value if self.depth < 20 else None
        except (ValueError, IndexError):
            return None  # not a constant of the preprocessor, for example a type


class _Strict(Constants):
    """Names of C code: one that is no macro is a variable."""

    def is_open(self, name: str) -> bool:
        return name not in self.values


def value_of(text: str, constants: Constants) -> int | None:
    """The value of an expression in C code; None if the macros do not decide it."""
    try:
        strict = _Strict(constants.values, constants.open_names)
        return _Expression(text, strict).parse().value
    except (ValueError, IndexError):
        return None


def end_of_line(text: str, at: int) -> int:
    """End of the line that begins at ``at``, with its line end; of a directive with its further lines."""
    end = text.find("\n", at) + 1 or len(text)
    if text[at:end].lstrip().startswith("#"):
        while text.endswith("\\\n", at, end):
            end = text.find("\n", end) + 1 or len(text)
    return end


def _lines(text: str) -> Iterator[str]:
    at = 0
    while at < len(text):
        end = end_of_line(text, at)
        yield text[at:end]
        at = end


def resolved(text: str, constants: Constants) -> str:
    """``text`` without the conditionals that ``constants`` decide.

    Raises ValueError for a condition that is not one, and for an ``#else`` or ``#endif`` without an ``#if``.
    """
    out: list[str] = []
    # per open conditional: whether an earlier branch was taken, whether this one is kept, whether its #if is written
    stack: list[tuple[bool, bool, bool]] = []
    for line in _lines(text):
        directive = DIRECTIVE.match(line) if line.lstrip().startswith("#") else None
        kind = directive[1] if directive else ""
        outside = all(kept for _, kept, _ in stack)
        if kind in ("if", "ifdef", "ifndef"):
            assert directive is not None
            condition = directive[2] if kind == "if" else f"defined({directive[2].split()[0]})"
            term = _Expression(condition, constants).parse() if outside else _Term(0, "0")
            value = term.value
            if kind == "ifndef" and value is not None:
                value = int(not value)
            if value is None:
                known = kind != "if" or term.text == " ".join(
                    _Expression(condition, constants).tokens
                )
                out.append(line if known else f"#if {term.text}\n")
            stack.append((bool(value), value is None or bool(value), value is None))
        elif kind == "elif":
            assert directive is not None
            if not stack:
                raise ValueError("#elif without #if")
            taken, _, written = stack.pop()
            around = all(kept for _, kept, _ in stack)
            term = (
                _Expression(directive[2], constants).parse()
                if around and not taken
                else _Term(0, "0")
            )
            if term.value is None:
                out.append(f"#{'elif' if written else 'if'} {term.text}\n")
                stack.append((False, True, True))
            elif term.value:
                if written:
                    out.append("#else\n")
                stack.append((True, True, written))
            else:
                stack.append((taken, False, written))
        elif kind == "else":
            if not stack:
                raise ValueError("#else without #if")
            taken, _, written = stack.pop()
            if written and not taken and all(kept for _, kept, _ in stack):
                out.append(line)
            stack.append((True, not taken, written))
        elif kind == "endif":
            if not stack:
                raise ValueError("#endif without #if")
            if stack.pop()[2]:
                out.append(line)
        elif outside:
            out.append(line)
    if stack:
        raise ValueError("#if without #endif")
    return "".join(out)
