"""Bit-for-bit comparison of a run with the interpreter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from shrinkc.abi import InputWord, Line, Time, input_block
from shrinkc.core.errors import RunFailed
from shrinkc.ir.graph import Graph
from shrinkc.ir.interpreter import Interpreter
from shrinkc.ir.ops import Linear, Op
from shrinkc.numerics.fixed import hash_words
from shrinkc.numerics.sampling import Sampling
from shrinkc.numerics.vectors import Q16Vector, QHeads, QVector


@dataclass(frozen=True)
class Request:
    """Request for a run; ``words`` encodes it for the program.

    ``kept``: first tokens of the prompt that the program keeps from the run before it.  ``more``: another run
    may keep the tokens of this one.
    """

    prompt: tuple[int, ...]
    new_tokens: int
    sampling: Sampling = Sampling()
    ignore_eos: bool = False
    prompt_lookup: int = 0  # most drafted tokens per pass
    kept: int = 0
    more: bool = False

    @property
    def cached(self) -> int:
        """Number of prompt tokens that are not processed again.  The last kept token is, for its logits."""
        return max(self.kept - 1, 0)

    def words(self, context: int, trace: int, dump: tuple[int, int] = (0, 0)) -> list[int]:
        """Return the program's input; ``trace``: flags of Trace, ``dump``: position and layer for Trace.DUMP."""
        s = self.sampling
        values = {
            InputWord.NEW: self.new_tokens,
            InputWord.SEED: s.seed & 0xFFFFFFFF,
            InputWord.INV_TEMP: s.inv_temp_q16,
            InputWord.TOP_P: s.top_p_q16,
            InputWord.TRACE: trace,
            InputWord.DUMP_POS: dump[0],
            InputWord.DUMP_LAYER: dump[1],
            InputWord.IGNORE_EOS: int(self.ignore_eos),
            InputWord.LOOKUP: self.prompt_lookup,
            InputWord.KEPT: self.kept,
            InputWord.MORE: int(self.more),
        }
        return input_block(context, self.prompt, values)


@dataclass(frozen=True)
class Pass:
    """A decode pass with prompt lookup: one token and its drafts (``tokens`` together) give ``kept`` new tokens."""

    tokens: int
    kept: int


@dataclass
class Record:
    """Results of a run, on a device or in the interpreter.

    ``decode_times``: one per decode pass; without prompt lookup each pass gives one token.  ``hook_interval``: longest
    time between two calls of the layer hook, if Trace.HOOK asked for it.
    """

    tokens: list[int] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)
    hashes: dict[tuple[int, int], int] = field(default_factory=dict)
    logits: dict[int, np.ndarray] = field(default_factory=dict)
    prefill_time: int | None = None
    decode_times: list[int] = field(default_factory=list)
    passes: list[Pass] = field(default_factory=list)
    dumps: dict[str, np.ndarray] = field(default_factory=dict)
    hook_interval: int | None = None
    complete: bool = False


@dataclass(frozen=True)
class Difference:
    """First difference between a run and the interpreter."""

    step: int
    layer: int | None
    op: str
    index: int
    got: int | str
    expected: int | str


@dataclass
class Verdict:
    """Number of ``compared`` values (a hash counts as all the values it covers) and of ``mismatched`` ones.

    ``every`` n: logits and sampling were compared for every n-th token.
    """

    compared: int
    mismatched: int
    first_difference: Difference | None
    every: int = 1

    @property
    def ok(self) -> bool:
        return self.compared > 0 and self.mismatched == 0


def _signed(word: str) -> int:
    v = int(word, 16)
    return v - (1 << 32) if v >> 31 else v


def parse(lines: list[str]) -> Record:
    """Parse the program's output.  Raises RunFailed if the program refused its input.

    Results of wrongly drafted tokens are left out.
    """
    r = Record()
    logits: dict[int, list[np.ndarray]] = {}
    dumps: dict[str, list[int]] = {}
    for line in lines:
        f = line.split()
        if not f or not f[0].startswith("@"):
            continue
        match f[0]:
            case Line.TOKEN:
                r.tokens.append(int(f[2]))
                r.pieces.append(bytes.fromhex(f[3]) if len(f) > 3 else b"")
            case Line.HASH:
                r.hashes[int(f[1]), int(f[2])] = int(f[3], 16)
            case Line.LOGITS:
                words = np.frombuffer(bytes.fromhex("".join(f[3:])), ">i4")
                logits.setdefault(int(f[1]), []).append(words)
            case Line.DUMP:
                if f[2] == "0":  # dumped again after a wrong draft
                    dumps[f[1]] = []
                dumps.setdefault(f[1], []).extend(map(_signed, f[3:]))
            case Line.PASS:
                position, tokens, kept = map(int, f[1:])
                r.passes.append(Pass(tokens, kept))
                void = range(position + kept, position + tokens)
                r.hashes = {key: h for key, h in r.hashes.items() if key[0] not in void}
                logits = {at: v for at, v in logits.items() if at not in void}
            case Line.TIME if f[1] == Time.PREFILL:
                r.prefill_time = int(f[2])
            case Line.TIME:
                r.decode_times.append(int(f[2]))
            case Line.HOOK:
                r.hook_interval = int(f[1])
            case Line.END:
                r.complete = True
            case Line.REFUSED:
                raise RunFailed(f"the program refused its input: {' '.join(f[1:])}.")
    r.logits = {k: np.concatenate(v).astype(np.int64) for k, v in logits.items()}
    r.dumps = {k: np.array(v, np.int64) for k, v in dumps.items()}
    return r


def reference(graph: Graph, request: Request) -> Record:
    """Return the interpreter's results for a request, without those of cached tokens."""
    follower = _Follower(graph, request)
    r = follower.record
    feed = list(request.prompt[request.cached :])
    while not follower.ended:
        feed = follower.feed(feed)
        r.tokens += feed
    r.complete = True
    return r


def followed(
    graph: Graph,
    request: Request,
    tokens: Sequence[int],
    every: int = 1,
    interpreter: Interpreter | None = None,
) -> Record | None:
    """Return the same as :func:`reference`, in fewer passes, if the interpreter chooses ``tokens``; else None.

    The interpreter processes the tokens of the run many at a time and compares its choices with them.  With
    ``every`` n > 1 it chooses only every n-th token and the last one; the others are taken from the run, without
    logits.  ``interpreter``: one that has processed the request's cached tokens.  It then has those of the run.
    """
    follower = _Follower(graph, request, interpreter)
    r = follower.record
    if len(tokens) > request.new_tokens:
        return None
    at = 0
    feed = list(request.prompt[request.cached :])
    while at < len(tokens) and not follower.ended:
        # the last token of this pass is the next one that the interpreter chooses
        count = 1 if at == 0 else min(len(tokens) - at, _TOGETHER if every == 1 else every)
        if not all(0 <= token < graph.vocab for token in tokens[at : at + count]):
            return None
        if at:
            feed = list(tokens[at - 1 : at - 1 + count])
        chosen = follower.feed(feed, all_logits=every == 1 and at > 0)
        given = list(tokens[at : at + count])
        if chosen != given[-len(chosen) :]:
            return None
        for token in given:
            if follower.ended:
                return None  # the run should have ended here
            r.tokens.append(token)
        at += count
    if at < len(tokens) or not follower.ended:
        return None
    r.complete = True
    return r


_TOGETHER = 64  # positions whose logits are kept in memory at once


class _Follower:
    """Interpreter run of a request, with a record of its results."""

    def __init__(
        self, graph: Graph, request: Request, interpreter: Interpreter | None = None
    ) -> None:
        self.record = Record()
        self._graph, self._request = graph, request
        self._interpreter = interpreter or Interpreter(graph)
        if interpreter is not None:
            interpreter.rewind(request.cached)
        elif request.cached:
            self._interpreter.forward(list(request.prompt[: request.cached]), logits=False)
        self._outs = {graph.body(i)[-1].out: i for i in range(graph.num_layers)}
        self._start = 0

    @property
    def ended(self) -> bool:
        """Whether the record has all tokens of the run."""
        tokens, request = self.record.tokens, self._request
        at_end = bool(tokens) and tokens[-1] in self._graph.eos_ids and not request.ignore_eos
        return at_end or len(tokens) >= request.new_tokens

    def feed(self, ids: list[int], *, all_logits: bool = False) -> list[int]:
        """Process ``ids``; return the next token after the last of them, or after each (``all_logits``)."""
        self._start = self._interpreter.position
        logits = self._interpreter.forward(ids, all_logits=all_logits, observe=self._observe)
        first = self._interpreter.position - len(logits)
        self.record.logits |= dict(enumerate(logits, first))
        return self._interpreter.choose(logits, self._request.sampling)

    def _observe(self, op: Op, value: object) -> None:
        if op.out in self._outs:
            for t, row in enumerate(np.asarray(value)):
                self.record.hashes[self._start + t, self._outs[op.out]] = hash_words(row)


def compare(got: Record, want: Record, graph: Graph, pieces: list[bytes] | None = None) -> Verdict:
    """Compare tokens, logits and the hash of every layer's output; with ``pieces`` (the decode table) also the text.

    Tokens without logits in ``want`` are compared by their layers only.  A program may skip the last layer's output for
    all prompt tokens but the last; these hashes are then not compared.  The first difference is searched in the order
    step, layers, logits, token, text."""
    compared = mismatched = 0
    first: tuple[tuple[int, int], Difference] | None = None

    def check(place: int, values: int, wrong: int, found: Difference) -> None:
        """Count ``wrong`` of ``values`` values; ``found`` is their first difference, at ``place`` within its step."""
        nonlocal compared, mismatched, first
        compared, mismatched = compared + values, mismatched + wrong
        if wrong and (first is None or (found.step, place) < first[0]):
            first = (found.step, place), found

    layers, prompt_end = graph.num_layers, min(want.logits, default=0)
    silent = not any((step, layers - 1) in got.hashes for step in range(prompt_end))
    for (step, layer), h in want.hashes.items():
        if silent and layer == layers - 1 and step < prompt_end:
            continue
        other = got.hashes.get((step, layer))
        shown = "missing" if other is None else f"{other:08x}"
        found = Difference(step, layer, "layer output hash", 0, shown, f"{h:08x}")
        check(layer, graph.hidden, graph.hidden * (other != h), found)
    for step, logits in want.logits.items():
        others = got.logits.get(step, np.zeros(0, np.int64))
        if len(others) != len(logits):
            sizes = f"{len(others)} values", f"{len(logits)} values"
            check(layers, len(logits), len(logits), Difference(step, None, "logits", 0, *sizes))
            continue
        bad = np.flatnonzero(others != logits)
        i = int(bad[0]) if len(bad) else 0
        found = Difference(step, None, "logits", i, int(others[i]), int(logits[i]))
        check(layers, len(logits), len(bad), found)
    steps = sorted(want.logits)
    for i, token in enumerate(want.tokens):
        step = steps[0] + i
        if step not in want.logits:
            continue
        chosen: int | str = got.tokens[i] if i < len(got.tokens) else "missing"
        check(layers + 1, 1, chosen != token, Difference(step, None, "token", 0, chosen, token))
        if pieces is not None:
            texts = got.pieces[i].hex() if i < len(got.pieces) else "missing", pieces[token].hex()
            check(layers + 2, 1, texts[0] != texts[1], Difference(step, None, "text", 0, *texts))
    extra = len(got.tokens) - len(want.tokens)
    if extra > 0 or not got.complete:
        what = f"{extra} more tokens" if extra > 0 else "no end of run"
        end = Difference(steps[-1] if steps else 0, None, "run", 0, what, "complete")
        first = first or ((end.step, 0), end)
        mismatched += max(extra, 1)
    return Verdict(compared, mismatched, first[1] if first else None)


def op_values(
    graph: Graph, request: Request, want: Record, step: int, layer: int
) -> dict[str, np.ndarray]:
    """Return the interpreter's outputs of one layer at one step, by dump name."""
    ids = list(request.prompt) + want.tokens
    interp = Interpreter(graph)
    out: dict[str, np.ndarray] = {}

    def observe(op: Op, value: object) -> None:
        if op.layer == layer:
            out.update(last_values(op.name, graph.types[op.out].kind, value))

    if step > 0:
        interp.forward(ids[:step], logits=False)
    interp.forward(ids[step : step + 1], logits=False, observe=observe)
    return out


def last_values(name: str, kind: str, value: object) -> dict[str, np.ndarray]:
    """Return an op's output for the last token as dump name -> integers."""
    if isinstance(value, (QVector, Q16Vector)):
        scale = np.array([value.mantissa[-1], value.exponent[-1]])
        groups = [value.c[-1]] if isinstance(value, QVector) else []
        return dict(zip(_vector_names(name, kind), (value.q[-1], scale, *groups), strict=True))
    if isinstance(value, QHeads):
        return {name: value.q[-1]}
    return {name: np.asarray(value)[-1].reshape(-1)}


def locate(
    got: dict[str, np.ndarray], want: dict[str, np.ndarray], graph: Graph, step: int, layer: int
) -> Difference | None:
    """Return the first difference of a dumped layer, in order of execution."""
    for op in graph.body(layer):
        kind = graph.types[op.out].kind
        for name in _vector_names(op.name, kind):
            if name not in got or name not in want:
                continue
            g, w = got[name], want[name]
            if kind == "q8" and name == op.name:
                g = _unpadded(g, graph, op.out, len(w))
            if kind == "heads8":
                g = g.reshape(graph.heads, -1)[:, : graph.head_dim].reshape(-1)
                w = w.reshape(-1)
            n = min(len(g), len(w))
            bad = np.flatnonzero(g[:n] != w[:n])
            if len(bad):
                i = int(bad[0])
                return Difference(step, layer, name, i, int(g[i]), int(w[i]))
    return None


def _vector_names(name: str, kind: str) -> tuple[str, ...]:
    """Return the dump names of a value: of a vector x.q, x.q (values), x.s (mantissa, exponent), x.c (group scales)."""
    return (name, name[:-1] + "s", name[:-1] + "c")[: {"q8": 3, "q16": 2}.get(kind, 1)]


def _unpadded(q: np.ndarray, graph: Graph, value: str, k: int) -> np.ndarray:
    """Remove the padding of each group from an int8 vector of the device."""
    t = graph.types[value]
    pad = next(op.weight.pad for op in graph.ops if isinstance(op, Linear) and value in op.inputs)
    padded = -(-t.group // pad) * pad
    pieces = [
        q[g * padded : g * padded + min(t.group, k - g * t.group)] for g in range(-(-k // t.group))
    ]
    return np.concatenate(pieces)
