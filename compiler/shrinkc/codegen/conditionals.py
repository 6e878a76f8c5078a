"""Resolves ``#if`` lines whose value is known when a model is compiled; the others stay unchanged.

The runtime has code for every model. A compiled directory gets the code of one: ``#if SC_RANK > 0`` disappears, with
its lines if the model has no adapters. Conditions on the platform (``#if SC_XPULP``) remain, because one directory
has programs for several platforms.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

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
    """Recursive descent over one condition (C11, 6.10.1).

    ``facts``: terms whose value the conditionals around this one decide, 1 for not 0.
    """

    def __init__(
        self,
        text: str,
        constants: Constants,
        depth: int = 0,
        facts: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        code = re.sub(r"/\*.*?\*/|/\*.*|\\\n", " ", text, flags=re.DOTALL).strip()
        self.tokens: list[str] = []
        at = 0
        while at < len(code):
            found = TOKEN.match(code, at)
            if found is None:
                raise ValueError(f"not a condition: {text!r}")
            self.tokens.append(found[1])
            at = found.end()
        self.at, self.constants, self.depth, self.facts = 0, constants, depth, facts

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
            if operator == "||":
                return self._logical("&&")
            term = self._binary(0)
            return term if term.value is not None else _Term(self.facts.get(term.text), term.text)

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
            if token == "!" and of.text in self.facts:
                value = 1 - self.facts[of.text]
            elif of.value is not None:
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


def _facts(condition: str, holds: bool) -> dict[str, int]:
    """What is known where a condition holds, or where it does not: each term's value, 1 for not 0."""
    terms = condition.split(" && " if holds else " || ")
    if any(mark in term for term in terms for mark in ("&&", "||")):
        return {}
    return {term.removeprefix("!"): int(holds != term.startswith("!")) for term in terms}


def resolved(text: str, constants: Constants) -> str:
    """``text`` without the conditionals that ``constants``, or conditionals around them, decide.

    Raises ValueError for a condition that is not one, and for an ``#else`` or ``#endif`` without an ``#if``.
    """
    out: list[str] = []
    # per open conditional: whether an earlier branch was taken, whether this one is kept, whether its #if is written
    stack: list[tuple[bool, bool, bool]] = []
    # per open conditional: what is known in this branch, and the written conditions of its branches
    facts: list[dict[str, int]] = []
    conditions: list[list[str]] = []
    changed = re.findall(r"(?m)^[ \t]*#\s*(?:define|undef)\s+(\w+)", text)

    def parse(condition: str) -> _Term:
        known = {term: value for branch in facts for term, value in branch.items()}
        return _Expression(condition, constants, facts=known).parse()

    def enter(condition: str) -> None:
        """Begin the next branch of the conditional opened last; ``condition`` is "" for #else."""
        known: dict[str, int] = {}
        for earlier in conditions[-1]:
            known |= _facts(earlier, False)
        if condition:
            known |= _facts(condition, True)
            conditions[-1].append(condition)
        facts[-1] = {
            term: value
            for term, value in known.items()
            if not set(re.findall(r"\w+", term)) & set(changed)
        }

    for line in _lines(text):
        directive = DIRECTIVE.match(line) if line.lstrip().startswith("#") else None
        kind = directive[1] if directive else ""
        outside = all(kept for _, kept, _ in stack)
        if kind in ("if", "ifdef", "ifndef"):
            assert directive is not None
            condition = directive[2] if kind == "if" else f"defined({directive[2].split()[0]})"
            term = parse(condition) if outside else _Term(0, "0")
            value = term.value
            if kind == "ifndef" and value is not None:
                value = int(not value)
            if value is None:
                known = kind != "if" or term.text == " ".join(
                    _Expression(condition, constants).tokens
                )
                out.append(line if known else f"#if {term.text}\n")
            stack.append((bool(value), value is None or bool(value), value is None))
            facts.append({})
            conditions.append([])
            if value is None:
                enter(f"!{term.text}" if kind == "ifndef" else term.text)
        elif kind == "elif":
            assert directive is not None
            if not stack:
                raise ValueError("#elif without #if")
            taken, _, written = stack.pop()
            around = all(kept for _, kept, _ in stack)
            facts[-1] = {}
            enter("")
            term = parse(directive[2]) if around and not taken else _Term(0, "0")
            if term.value is None:
                out.append(f"#{'elif' if written else 'if'} {term.text}\n")
                stack.append((False, True, True))
                enter(term.text)
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
            enter("")
        elif kind == "endif":
            if not stack:
                raise ValueError("#endif without #if")
            if stack.pop()[2]:
                out.append(line)
            facts.pop()
            conditions.pop()
        elif outside:
            out.append(line)
    if stack:
        raise ValueError("#if without #endif")
    return "".join(out)
