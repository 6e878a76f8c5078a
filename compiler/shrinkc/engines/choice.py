"""Choice of an engine for each matrix, by estimated cycles, before quantisation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from shrinkc.engines.engine import CORES, Engine, MatrixSpec
from shrinkc.storage import ALIGN


@dataclass(frozen=True)
class Choice:
    """Engine of one matrix, with its estimated ``cycles`` for one token.

    ``refused``: (engine, reason), where the reason is the end of a sentence that begins with the matrix.
    """

    engine: str = CORES
    cycles: int = 0
    refused: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Choices:
    """Engine of every matrix by name; matrices without an entry run on the cores."""

    by_name: Mapping[str, Choice] = field(default_factory=dict)

    def engine(self, name: str) -> str:
        """Return the name of the engine that runs a matrix."""
        return self.by_name.get(name, Choice()).engine

    @property
    def engines(self) -> set[str]:
        """Engines that run at least one matrix."""
        return {choice.engine for choice in self.by_name.values()} or {CORES}


ON_CORES = Choices()


PROMPT = 16  # tokens of a prefill chunk


def both(engine: Engine, spec: MatrixSpec) -> int:
    """Return the cycles of one decoded token plus those of one prompt token."""
    return engine.cycles(spec, 1) + engine.cycles(spec, PROMPT) // PROMPT


@dataclass(frozen=True)
class _Offer:
    """An engine that would save ``gain`` cycles for two tokens and needs ``bytes`` of a memory that it reads."""

    spec: MatrixSpec
    engine: Engine
    gain: int
    bytes: int

    def taken_from(self, left: dict[str, int], more: str) -> str | None:
        """Take the bytes from the first memory with enough ``left``; return None, or the reason for a refusal."""
        levels = self.engine.levels
        level = next((v for v in levels if left.get(v, 0) >= self.bytes), None)
        if level is None:
            where, most = " or ".join(levels), max(left.get(v, 0) for v in levels)
            return f"needs {self.bytes} bytes{more} of {where}, where {most} are left"
        left[level] -= self.bytes
        return None


def _room_for(spec: MatrixSpec, engine: Engine) -> int:
    """Return the most bytes that a matrix can take in a memory, alignment included."""
    return -(-engine.shape(spec).bytes // ALIGN) * ALIGN + engine.store.align - ALIGN


def choose(
    specs: Sequence[MatrixSpec],
    engines: Sequence[Engine],
    room: Mapping[str, int],
    owners: Mapping[str, str] | None = None,
    barred: Mapping[str, str] | None = None,
) -> Choices:
    """Choose for every matrix the engine with the fewest cycles for a decoded and a prompt token (``both``).

    The cores win ties; ``engines`` must include them.  ``room``: bytes of memories from which engines read in place.
    If not all matrices fit there, those that save the most cycles per byte get the room.
    ``owners``: matrix -> an earlier equal one, whose bytes and engine it shares.  ``barred``: engine -> the reason why
    it must not be used, as the end of a sentence that begins with a matrix.
    """
    owners, barred = owners or {}, barred or {}
    cores = next(e for e in engines if e.name == CORES)
    uses = {s.name: 1 for s in specs if s.name not in owners}
    for owner in owners.values():
        uses[owner] += 1
    refused: dict[str, list[tuple[str, str]]] = {s.name: [] for s in specs}
    best = {s.name: (CORES, cores.cycles(s, 1)) for s in specs}
    on_cores = {s.name: both(cores, s) for s in specs}
    offers: list[list[_Offer]] = []  # per matrix, the best first
    for spec in specs:
        if spec.name in owners:
            continue
        found: list[_Offer] = []
        for engine in engines:
            if engine.name == CORES:
                continue
            reason, have = engine.refusal(spec), on_cores[spec.name]
            if reason is None and (reason := barred.get(engine.name)) is None:
                takes = both(engine, spec)
                if takes < have:
                    gain = (have - takes) * uses[spec.name]
                    found.append(_Offer(spec, engine, gain, _room_for(spec, engine)))
                    continue
                reason = f"takes {takes} cycles there, {have} on the cores, for two tokens"
            refused[spec.name].append((engine.name, reason))
        if found:
            offers.append(sorted(found, key=lambda o: -o.gain))
    left = {level: room.get(level, 0) for e in engines for level in e.levels}
    for same in sorted(offers, key=lambda o: -o[0].gain / o[0].bytes):
        for offer in same:
            name = offer.spec.name
            if (reason := offer.taken_from(left, "")) is None:
                best[name] = (offer.engine.name, offer.engine.cycles(offer.spec, 1))
                break
            refused[name].append((offer.engine.name, reason))
    return Choices(
        {
            name: Choice(*best[owners.get(name, name)], tuple(refused[owners.get(name, name)]))
            for name in best
        }
    )


def with_second_layouts(
    choices: Choices,
    specs: Sequence[MatrixSpec],
    engines: Sequence[Engine],
    free: Mapping[str, int],
    owners: Mapping[str, str],
    widest: int | None = None,
) -> Choices:
    """Return ``choices`` with second layouts for matrices that then take fewer cycles for one token.

    ``free``: bytes that a plan leaves in the engine's memories; matrices that save the most cycles per byte get them.
    ``engines`` include those of ``choices``; an engine with a second layout can replace its ``costs_as``.  ``owners``
    as in ``choose``.  ``widest``: the most words that an input vector may have.
    """
    by_name = {e.name: e for e in engines}
    uses = Counter(owners.get(s.name, s.name) for s in specs)
    offers: list[_Offer] = []
    found = dict(choices.by_name)

    def refuse(name: str, engine: Engine, reason: str) -> None:
        found[name] = replace(found[name], refused=(*found[name].refused, (engine.name, reason)))

    for spec in (s for s in specs if s.name not in owners):
        for engine in (
            e for e in engines if e.costs_as and e.costs_as == choices.engine(spec.name)
        ):
            have, words = by_name[engine.costs_as], engine.shape(spec).x_words
            if (reason := engine.refusal(spec)) is not None:
                refuse(spec.name, engine, reason)
            elif widest is not None and words > widest:
                refuse(
                    spec.name, engine, f"needs vectors of {words} words, where {widest} have room"
                )
            else:
                gain = (have.cycles(spec, 1) - engine.cycles(spec, 1)) * uses[spec.name]
                more = _room_for(spec, engine) - have.shape(spec).bytes
                offers.append(_Offer(spec, engine, gain, more))
    left = dict(free)
    for offer in sorted(offers, key=lambda o: -o.gain / o.bytes):
        name, engine = offer.spec.name, offer.engine
        if reason := offer.taken_from(left, " more"):
            refuse(name, engine, reason)
            continue
        found[name] = replace(found[name], engine=engine.name, cycles=engine.cycles(offer.spec, 1))
    return Choices({name: found[owners.get(name, name)] for name in found})
