"""Leaves out C code behind conditions that the model decides: ``if (SC_IN_PLACE) …`` of a model that never does.

The sources are those of ``runtime_c``, formatted by clang-format. A condition is decided by macros with numbers, by
functions that return such a number, and by functions without a statement. The C compiler would leave out the same
code, so the machine code stays the same.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from shrinkc.codegen.conditionals import Constants, value_of

TOKEN = re.compile(
    r"""(?P<comment>/\*.*?\*/)|(?P<directive>^[ \t]*\#(?:[^\n]*\\\n)*[^\n]*)|(?P<space>\s+)
    |(?P<quoted>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')|(?P<word>\w+)
    |(?P<sign><<=|>>=|->|\+\+|--|&&|\|\||<<|>>|[-+*/%&|^=!<>]=|.)""",
    re.DOTALL | re.MULTILINE | re.VERBOSE,
)
ASSIGN = ("=", "+=", "-=", "*=", "/=", "%=", "&=", "|=", "^=", "<<=", ">>=")
AROUND = (*ASSIGN, "(", ")", "[", "]", "{", "}", ",", ";", "?", ":", "return")  # fmt: skip
"""Tokens before and after a whole expression."""
VOIDS = re.compile(r"\s*(?:(?:if \([\w !=<>&|]+\) return;|\(void\)\w+(?:, \(void\)\w+)*;)\s*)*")
FUNCTION = re.compile(
    r"(?:[\w*]+[\s*]+|__attribute__\(\(\w+\)\)\s+)+?(?P<name>\w+)\((?P<arguments>[^(){};]*)\) \{"
    r"(?P<body>.*)\}\s*\Z",
    re.DOTALL,
)
NUMBER = r"(?:0x[0-9A-Fa-f]+|\d+)[uUlL]*"
LOCAL = re.compile(rf"\bconst (?:u?int\d+_t|int) (?:\*const )?(\w+) = ({NUMBER}|[A-Z]\w*);")
VARIABLES = re.compile(
    r"(?m)^(?P<indent>[ \t]*)"
    r"(?P<type>const (?:(?:struct|enum|unsigned) )?\w+ (?=[^;{}]* = )|u?int\d+_t (?=\w+\[\w+\];))"
    r"(?P<given>[^;{}]*);(?P<rest>[^\n;]*\n)"
)
"""A line that declares constants with values, or an array."""


@dataclass(frozen=True)
class Known:
    """What is known of macros and functions of the model.

    ``calls``: by function the number that it returns; ``empty``: functions without code; ``pure``: functions that only
    return a value, without changing anything.
    """

    constants: Constants
    calls: Mapping[str, str] = field(default_factory=dict)
    empty: frozenset[str] = frozenset()
    pure: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    at: int
    end: int


def _tokens(code: str) -> list[_Token]:
    return [
        _Token(str(found.lastgroup), found[0], found.start(), found.end())
        for found in TOKEN.finditer(code)
        if found.lastgroup not in ("space", "comment")
    ]


def _closing(tokens: Sequence[_Token], at: int) -> int:
    """Index of the bracket that closes the one at ``at``; the last index if there is none."""
    depth = 0
    for i in range(at, len(tokens)):
        depth += (tokens[i].text in ("(", "[", "{")) - (tokens[i].text in (")", "]", "}"))
        if depth == 0:
            return i
    return len(tokens) - 1


def _opening(tokens: Sequence[_Token], at: int) -> int:
    """Index of the bracket that opens the one at ``at``."""
    depth = 0
    for i in range(at, -1, -1):
        depth += (tokens[i].text in (")", "]", "}")) - (tokens[i].text in ("(", "[", "{"))
        if depth == 0:
            return i
    return 0


def _split(tokens: Sequence[_Token], operator: str) -> list[Sequence[_Token]]:
    parts, depth, start = [], 0, 0
    for i, token in enumerate(tokens):
        depth += (token.text in ("(", "[", "{")) - (token.text in (")", "]", "}"))
        if depth == 0 and token.text == operator:
            parts.append(tokens[start:i])
            start = i + 1
    return [*parts, tokens[start:]]


def _text(code: str, tokens: Sequence[_Token]) -> str:
    return code[tokens[0].at : tokens[-1].end] if tokens else ""


def _simplified(code: str, tokens: Sequence[_Token], known: Known) -> tuple[int | None, str]:
    """The value of an expression, or None, and its text without what is known."""
    whole = _text(code, tokens)
    if not tokens or any(t.kind == "directive" or t.text in (*ASSIGN, "++", "--") for t in tokens):
        return None, whole
    if tokens[0].text == "__builtin_expect" and _closing(tokens, 1) == len(tokens) - 1:
        inside = _split(tokens[2:-1], ",")
        value, text = _simplified(code, inside[0], known)
        return value, f"__builtin_expect({text}, {_text(code, inside[1])})"
    if any(t.text == "?" for t in tokens):
        return None, whole
    for operator, decides in (("||", True), ("&&", False)):
        parts = _split(tokens, operator)
        if len(parts) == 1:
            continue
        terms = [_simplified(code, part, known) for part in parts]
        if any(value is not None and bool(value) == decides for value, _ in terms):
            return int(decides), str(int(decides))
        left = [_bare(text) for value, text in terms if value is None]
        if not left:
            return int(not decides), str(int(not decides))
        if len(left) == len(parts):
            old = [_text(code, part) for part in parts]
            if [text for _, text in terms] == old:
                return None, whole
            left = [
                new if new == was else _bare(new) for (_, new), was in zip(terms, old, strict=True)
            ]
        return None, f" {operator} ".join(left)
    if tokens[0].text == "!":
        value, text = _simplified(code, tokens[1:], known)
        return (None if value is None else int(not value)), f"!{text}"
    if tokens[0].text == "(" and _closing(tokens, 0) == len(tokens) - 1:
        value, text = _simplified(code, tokens[1:-1], known)
        return value, f"({text})"
    return _number(tokens, known), whole


def _bare(text: str) -> str:
    """Without the brackets of a comparison."""
    inside = text[1:-1]
    if (
        text.startswith("(")
        and text.endswith(")")
        and not re.search(r"[()]|&&|\|\||[^=!<>]=[^=]", inside)
    ):
        return inside
    return text


def _number(tokens: Sequence[_Token], known: Known) -> int | None:
    """The value of an expression of numbers, macros and known functions."""
    words, i = [], 0
    while i < len(tokens):
        name = tokens[i].text
        if name in known.calls and i + 1 < len(tokens) and tokens[i + 1].text == "(":
            words.append(known.calls[name])
            i = _closing(tokens, i + 1)
        elif tokens[i].kind == "word" and name[0].isdigit():
            words.append(name)
        elif tokens[i].kind == "word" and name not in known.constants.values:
            return None
        else:
            words.append(name)
        i += 1
    return value_of(" ".join(words), known.constants)


def _statement_end(tokens: Sequence[_Token], at: int) -> int:
    """Index after the statement that begins at ``at``."""
    if tokens[at].text == "{":
        return _closing(tokens, at) + 1
    if tokens[at].text in ("if", "for", "while", "switch"):
        end = _statement_end(tokens, _closing(tokens, at + 1) + 1)
        if tokens[at].text == "if" and end < len(tokens) and tokens[end].text == "else":
            end = _statement_end(tokens, end + 1)
        return end
    while tokens[at].text != ";":
        if tokens[at].kind == "directive":
            raise ValueError("a statement with a directive")
        at = (_closing(tokens, at) if tokens[at].text in ("(", "[", "{") else at) + 1
    return at + 1


def _returns(tokens: Sequence[_Token], at: int, end: int) -> bool:
    """Whether a statement, or the last one of a block, is a return."""
    last = at
    if tokens[at].text == "{":
        last = i = at + 1
        while i < end - 1:
            last, i = i, _statement_end(tokens, i)
    return tokens[last].text == "return"


def _line_start(code: str, at: int) -> int:
    start = code.rfind("\n", 0, at) + 1
    return start if not code[start:at].strip() else at


def _without(code: str, at: int, end: int) -> str:
    """``code`` without a statement, the rest of its line, and the comment directly above it."""
    start = _line_start(code, at)
    rest = re.compile(r"[ \t]*(?:/\*(?:(?!\*/).)*\*/)?[ \t]*\n?", re.DOTALL).match(code, end)
    assert rest is not None
    if start < at or code[start - 1 : start] == "\n":
        above = re.search(r"(?m)(?:^[ \t]*/\*(?:(?!\*/)[\s\S])*\*/\n)\Z", code[:start])
        if above:
            start = above.start()
    return code[:start] + code[rest.end() :]


def _dedented(block: str) -> str:
    return re.sub(r"(?m)^    ", "", block)


def _inside(text: str, outside: str) -> str:
    """A statement that stands for an if; a block without its braces if no name of it occurs in ``outside``."""
    if not text.startswith("{"):
        return text
    declared = re.findall(
        r"(?m)^\s*(?!return\b)(?:const )?\w+ [*]*(?:const )?(\w+)(?= =|;|,|\[)", text
    )
    if any(re.search(rf"\b{name}\b", outside) for name in declared):
        return text
    body = text[1:-1]
    return _dedented(body.strip("\n").rstrip()).lstrip(" ") if "\n" in body else body.strip()


def _fold_if(code: str, tokens: Sequence[_Token], at: int, known: Known) -> str | None:
    close = _closing(tokens, at + 1)
    value, text = _simplified(code, tokens[at + 2 : close], known)
    if value is None:
        old, text = code[tokens[at + 2].at : tokens[close - 1].end], _bare(text)
        return None if text == old else code[: tokens[at + 2].at] + text + code[tokens[close].at :]
    then_end = _statement_end(tokens, close + 1)
    has_else = then_end < len(tokens) and tokens[then_end].text == "else"
    end = _statement_end(tokens, then_end + 1) if has_else else then_end
    last = tokens[end - 1].end
    if any(t.kind == "directive" for t in tokens[at:end]):
        return None
    after_else = at > 0 and tokens[at - 1].text == "else"
    if not value and not has_else:
        return (
            _without(code, tokens[at - 1].at, last)
            if after_else
            else _without(code, tokens[at].at, last)
        )
    chosen = (close + 1, then_end) if value else (then_end + 1, end)
    if after_else:
        return (
            code[: tokens[at].at]
            + code[tokens[chosen[0]].at : tokens[chosen[1] - 1].end]
            + code[last:]
        )
    text, before = _text(code, tokens[chosen[0] : chosen[1]]), code[: tokens[at].at]
    if _returns(tokens, *chosen):  # what follows is dead
        depth, i = 0, end
        while depth >= 0 and tokens[i].kind != "directive":
            depth += (tokens[i].text == "{") - (tokens[i].text == "}")
            i += 1
        if depth < 0:
            after = code[_line_start(code, tokens[i - 1].at) :]
            body = _inside(text, before + after)
            if i == len(tokens):  # the end of the function
                body = re.sub(r"\s*\breturn;\s*\Z", "", body)
            return f"{before}{body}\n{after}"
    return before + _inside(text, before + code[last:]) + code[last:]


def _expression(tokens: Sequence[_Token], at: int) -> tuple[int, int]:
    """First and last index + 1 of the whole expression around ``at``, up to AROUND."""
    first = at
    while first > 0 and (
        tokens[first - 1].text not in AROUND or tokens[first - 1].text in (")", "]")
    ):
        first -= 1
        if tokens[first].text in (")", "]"):
            first = _opening(tokens, first)
    last = at
    while last < len(tokens) and (
        tokens[last].text not in AROUND or tokens[last].text in ("(", "[")
    ):
        last = _closing(tokens, last) + 1 if tokens[last].text in ("(", "[") else last + 1
    return first, last


def _fold_choice(code: str, tokens: Sequence[_Token], at: int, known: Known) -> str | None:
    """A conditional expression; ``at``: its question mark."""
    first, _ = _expression(tokens, at)
    value, _ = _simplified(code, tokens[first:at], known)
    if value is None:
        return None
    depth = questions = 0
    i = at + 1
    while depth or questions or tokens[i].text != ":":
        depth += (tokens[i].text in ("(", "[", "{")) - (tokens[i].text in (")", "]", "}"))
        if depth == 0:
            questions += (tokens[i].text == "?") - (tokens[i].text == ":")
        i += 1
    colon, questions = i, 0
    i += 1
    while i < len(tokens):
        word = tokens[i].text
        if word in ("(", "[", "{"):
            i = _closing(tokens, i)
        elif word == "?":
            questions += 1
        elif word == ":" and questions:
            questions -= 1
        elif word in (")", "]", "}", ",", ";", ":"):
            break
        i += 1
    chosen = tokens[at + 1 : colon] if value else tokens[colon + 1 : i]
    start, end = tokens[first].at, tokens[i - 1].end
    alone = (
        len(chosen) == 1 and first > 0 and tokens[first - 1].text == "(" and tokens[i].text == ")"
    )
    if alone and (
        first == 1 or tokens[first - 2].kind != "word" or tokens[first - 2].text == "return"
    ):
        start, end = tokens[first - 1].at, tokens[i].end
    new = _text(code, chosen)
    if new == "1" and code[end:].startswith(" * "):
        return code[:start] + code[end + 3 :]
    return code[:start] + new + code[end:]


def _fold_chain(code: str, tokens: Sequence[_Token], at: int, known: Known) -> str | None:
    """A chain of && or || outside of a condition."""
    first, last = _expression(tokens, at)
    old = code[tokens[first].at : tokens[last - 1].end]
    value, text = _simplified(code, tokens[first:last], known)
    new = text if value is None else str(value)
    if first > 1 and tokens[first - 2].text == "_Static_assert":
        return None
    return None if new == old else code[: tokens[first].at] + new + code[tokens[last - 1].end :]


def _once(code: str, known: Known) -> str | None:
    """``code`` with the first thing left out that is decided; None if there is none."""
    tokens = _tokens(code)
    for at, token in enumerate(tokens):
        new: str | None = None
        if token.text == "if":
            new = _fold_if(code, tokens, at, known)
        elif token.text == "?":
            new = _fold_choice(code, tokens, at, known)
        elif token.text in ("&&", "||"):
            new = _fold_chain(code, tokens, at, known)
        elif token.text in known.calls and at and tokens[at + 1].text == "(":
            close = _closing(tokens, at + 1)
            called = tokens[at - 1].text in (*AROUND, "&&", "||", "!", "+", "-", "*", "/", "?")
            if called and tokens[close + 1].text != "{":
                value, after = known.calls[token.text], code[tokens[close].end :]
                once = value == "1" and after.startswith(" * ")
                new = code[: token.at] + (after[3:] if once else value + after)
        elif token.text in known.empty and tokens[at - 1].text in (";", "{", "}", ")"):
            close = _closing(tokens, at + 1)
            # if (...) empty();
            guarded = _opening(tokens, at - 1) - 1 if tokens[at - 1].text == ")" else at
            follows = tokens[close + 2].text if close + 2 < len(tokens) else ""
            pure = tokens[guarded].text == "if" or guarded == at
            if tokens[close + 1].text == ";" and follows != "else" and pure:
                before = tokens[guarded - 1].text
                if before in (";", "{", "}"):
                    new = _without(code, tokens[guarded].at, tokens[close + 1].end)
        if new is not None:
            return new
    return None


@lru_cache(maxsize=4096)
def _parts(code: str) -> tuple[str, tuple[str, ...], str] | None:
    """Name, arguments and body of a function; None if it is something else."""
    plain = re.sub(r"/\*.*?\*/", "", code, flags=re.DOTALL)
    found = FUNCTION.search(plain)
    if found is None:
        return None
    arguments = [re.findall(r"\w+", part.split("[")[0]) for part in found["arguments"].split(",")]
    names = tuple(words[-1] for words in arguments if len(words) > 1)
    return found["name"], names, found["body"]


def folded(code: str, known: Known) -> str:
    """A function without the code that ``known`` leaves out; anything else unchanged."""
    parts = _parts(code)
    if parts is None:
        return code
    given = set(LOCAL.findall(code))
    new, values = code, dict(known.constants.values)
    while True:
        inner = replace(known, constants=Constants(values, known.constants.open_names))
        try:
            changed = _once(new, inner)
        except (ValueError, IndexError):  # a statement that begins in one branch of an #if
            break
        if changed is None:
            break
        new = changed
        values.update(set(LOCAL.findall(new)) - given)
    if new == code:
        return code
    while (left := _without_unused_variable(new, code, known.pure)) != new:
        new = left
    return _with_unused_arguments(new, parts[1])


def _without_unused_variable(new: str, code: str, pure: Collection[str]) -> str:
    """``new`` without the first variable that only ``code`` uses. A value that does something stays as a statement."""
    for found in VARIABLES.finditer(new):
        given, indent, kind = found["given"], found["indent"], found["type"]
        declared = [_text(given, part) for part in _split(_tokens(given), ",")]
        for i, text in enumerate(declared):
            name = re.findall(r"\w+", text.split("=")[0].split("[")[0])[-1]
            if not _count(name, new) == 1 < _count(name, code):
                continue
            value = text.split("=", 1)[1].strip() if "=" in text else ""
            acts = value and not _is_pure(value, pure)
            before, after = ", ".join(declared[:i]), ", ".join(declared[i + 1 :])
            statements = [kind + before, value if acts else "", kind + after]
            if not acts:  # one declaration
                statements = [kind + ", ".join(filter(None, (before, after)))]
            lines = [f"{indent}{s};" for s in statements if s not in ("", kind)]
            rest = found["rest"] if lines else ""
            return new[: found.start()] + "\n".join(lines) + rest + new[found.end() :]
    return new


def _is_pure(expression: str, pure: Collection[str]) -> bool:
    """Whether an expression changes nothing: it assigns nothing, and calls only ``pure`` functions."""
    tokens = _tokens(expression)
    for token, following in itertools.zip_longest(tokens, tokens[1:]):
        if token.text in (*ASSIGN, "++", "--", "volatile"):
            return False
        called = token.kind == "word" and following is not None and following.text == "("
        if called and token.text not in ("sizeof", *pure):
            return False
    return True


def _count(name: str, code: str) -> int:
    """How often a name occurs that is not a member's."""
    return len(re.findall(rf"(?<![.>\w]){name}\b", code))


def _with_unused_arguments(code: str, arguments: Sequence[str]) -> str:
    plain = re.sub(r"/\*.*?\*/", "", code, flags=re.DOTALL)
    unused = [name for name in arguments if _count(name, plain) == 1]
    if not unused:
        return code
    at = code.index("{", code.index(")")) + 1
    voids = "\n    " + ", ".join(f"(void){name}" for name in unused) + ";"
    if code[at] == "\n":
        return code[:at] + voids + code[at:]
    return code[:at] + voids + "\n    " + code[at:].strip().removesuffix("}").strip() + "\n}\n"


def known_functions(functions: Mapping[str, str], known: Known) -> Known:
    """``known`` with the functions that return a number, those without code and those that only return a value.

    ``functions``: by name the text of each function that the runtime defines once.
    """
    calls, empty, pure = dict(known.calls), set(known.empty), set(known.pure)
    for name, code in functions.items():
        parts = _parts(code)
        if parts is None:
            continue
        body = parts[2]
        if VOIDS.fullmatch(body) and " void " in f" {code.split('(')[0]} ":
            empty.add(name)
        returned = re.fullmatch(r"\s*(?:\(void\)[^;]*;\s*)?return ([^;]*);\s*", body)
        if returned and _is_pure(returned[1], pure):
            pure.add(name)
        if returned and "?" not in returned[1]:
            value, _ = _simplified(returned[1], _tokens(returned[1]), known)
            if value is not None:
                calls[name] = returned[1] if returned[1].isidentifier() else str(value)
    return Known(known.constants, calls, frozenset(empty), frozenset(pure))
