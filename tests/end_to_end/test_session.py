"""The library's sessions (llm.h): calls in random orders give the interpreter's tokens, under sanitizers."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from random import Random

import pytest

from helpers.tiny_llama import write_tiny_llama
from shrinkc.build import PROGRAM, build_program
from shrinkc.importer import load_model
from shrinkc.ir.graph import Graph
from shrinkc.numerics.sampling import Sampling
from shrinkc.simulate.proof import Request, reference

from .programs import ENV, Program, compile_model, need

CONTEXT, VOCAB, LAYERS = 40, 96, 3
RUNS, CALLS = 20, 50  # 1,000 calls in all


class Result(IntEnum):
    """``enum llm_result``."""

    OK = 0
    END = -1
    FULL = -2
    STOPPED = -3
    ERROR_VERSION = -10
    ERROR_WEIGHTS = -11
    ERROR_MEMORY = -12
    ERROR_SESSION = -13
    ERROR_TOKEN = -14
    ERROR_EMPTY = -15
    ERROR_SAMPLING = -16
    ERROR_POSITION = -17


class Client:
    """A running session_client.c."""

    def __init__(self, program: Path) -> None:
        self.process = subprocess.Popen(
            [program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ask(self, *words: object) -> str:
        """Give a command and return the answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            _, errors = self.process.communicate(timeout=10)
            raise AssertionError(f"{words}: ended with {self.process.returncode}: {errors[-3000:]}")
        return answer.strip()

    def call(self, *words: object) -> int:
        """The same, for commands that answer with a number."""
        return int(self.ask(*words))

    def feed(self, *ids: int) -> int:
        """llm_feed()."""
        return self.call("feed", len(ids), *ids)


class Oracle:
    """What a session has to answer: the interpreter's next token, remembered by the tokens before it."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.known: dict[tuple[tuple[int, ...], Sampling], int] = {}

    def next(self, tokens: list[int], how: Sampling) -> int:
        """The token after ``tokens``."""
        key = (tuple(tokens), how)
        if key not in self.known:
            self.known[key] = reference(self.graph, Request(key[0], 1, how, True)).tokens[0]
        return self.known[key]

    def is_end(self, token: int) -> bool:
        """Whether it ends a text."""
        return token in self.graph.eos_ids


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """A tiny model whose program is session_client.c, with sanitizers and late transfers."""
    need("host")
    folder = tmp_path_factory.mktemp("session")
    write_tiny_llama(folder / "model", layers=LAYERS, vocab=VOCAB)
    program = compile_model(load_model(folder / "model"), folder / "out", context=CONTEXT)
    for file in (program.out / "src/program").glob("*.c"):
        file.unlink()
    (program.out / "src/platform/host/program.c").unlink()
    shutil.copyfile(
        Path(__file__).with_name("session_client.c"), program.out / "src/platform/host/main.c"
    )
    build_program(program.out, "host", env=ENV, options={"SAN": "1", "LAZY": "1"})
    return program


@pytest.fixture(scope="module")
def oracle(compiled: Program) -> Oracle:
    """Of the compiled model."""
    return Oracle(compiled.graph)


@pytest.fixture
def client(compiled: Program) -> Iterator[Client]:
    """A new process, before llm_init()."""
    client = Client(compiled.out / PROGRAM["host"])
    yield client
    client.process.kill()
    client.process.communicate()


def random_call(rng: Random, client: Client, oracle: Oracle, tokens: list[int]) -> None:
    """One call and what it has to return; ``tokens`` are those of the session."""
    kind = rng.choices(
        ["feed", "next", "rewind", "init", "bad feed", "bad rewind", "empty", "bad sampling"],
        [25, 45, 10, 3, 5, 3, 4, 5],
    )[0]
    if kind == "feed":
        n = rng.choice([1, 1, 2, 3, 7, CONTEXT, rng.randint(1, CONTEXT)])
        ids = [rng.choice([rng.randrange(3, VOCAB), 5]) for _ in range(n)]
        if len(tokens) + n > CONTEXT:
            assert client.feed(*ids) == Result.FULL
        else:
            assert client.feed(*ids) == Result.OK
            tokens += ids
    elif kind == "next":
        how = rng.choice([Sampling(), Sampling(65536, 58982, rng.randrange(100))])
        lookup = 0 if how.inv_temp_q16 else rng.choice([0, 1, 8])
        ignore = rng.randrange(2)
        asked = ("next", how.inv_temp_q16, how.top_p_q16, how.seed, lookup, ignore)
        if not tokens:
            assert client.call(*asked) == Result.ERROR_EMPTY
        elif len(tokens) == CONTEXT:
            assert client.call(*asked) == Result.FULL
        else:
            want = oracle.next(tokens, how)
            got = client.call(*asked)
            assert got == (Result.END if oracle.is_end(want) and not ignore else want), tokens
            tokens.append(want)
    elif kind == "rewind":
        at = rng.randint(0, len(tokens))
        assert client.call("rewind", at) == Result.OK
        del tokens[at:]
    elif kind == "init":
        assert client.call("init", CONTEXT + rng.randrange(3)) == Result.OK
        tokens.clear()
    elif kind == "bad feed":
        ids = [5] * rng.randint(0, max(CONTEXT - len(tokens) - 1, 0)) + [VOCAB + rng.randrange(3)]
        want_result = Result.ERROR_TOKEN if len(tokens) + len(ids) <= CONTEXT else Result.FULL
        assert client.feed(*ids) == want_result
    elif kind == "bad rewind":
        assert client.call("rewind", len(tokens) + 1 + rng.randrange(3)) == Result.ERROR_POSITION
    elif kind == "empty":
        assert client.feed() == Result.OK
    else:
        asked = rng.choice(
            [("next", 65536, 65537, 0, 0, 0), ("next", 0, 0, 0, 9, 0), ("next", 1, 0, 0, 1, 0)]
        )
        assert client.call(*asked) == Result.ERROR_SAMPLING


@pytest.mark.parametrize("seed", range(RUNS))
def test_calls_in_any_order(client: Client, oracle: Oracle, seed: int) -> None:
    rng, tokens = Random(seed), list[int]()
    assert client.call("init", CONTEXT) == Result.OK
    for _ in range(CALLS):
        random_call(rng, client, oracle, tokens)


def test_results_before_and_instead_of_a_session(client: Client) -> None:
    assert client.feed(5) == Result.ERROR_SESSION
    assert client.call("greedy") == Result.ERROR_SESSION
    assert client.call("rewind", 0) == Result.ERROR_SESSION
    assert client.call("init", CONTEXT - 1) == Result.ERROR_MEMORY
    assert client.call("null") == Result.ERROR_MEMORY
    assert client.call("version") == Result.ERROR_VERSION
    assert client.call("init", CONTEXT) == Result.OK
    assert client.feed(5, 6) == Result.OK
    assert client.call("other") == Result.OK
    assert client.feed(7) == Result.ERROR_SESSION
    assert client.call("greedy") == Result.ERROR_SESSION


def test_the_hook_is_called_after_each_layer_and_can_stop(client: Client, oracle: Oracle) -> None:
    assert client.call("init", CONTEXT) == Result.OK
    client.call("stop", -1)
    assert client.feed(5, 6, 7) == Result.OK
    passes, rest = divmod(client.call("layers"), LAYERS)
    assert passes >= 1 and rest == 0
    client.call("stop", 1)
    assert client.feed(8, 9) == Result.STOPPED
    client.call("stop", -1)
    tokens = [5, 6, 7, 8, 9]
    for _ in range(4):
        tokens.append(oracle.next(tokens, Sampling()))
        assert client.call("next", 0, 0, 0, 0, 1) == tokens[-1]
    client.call("stop", 0)
    assert client.call("next", 0, 0, 0, 0, 1) == Result.STOPPED
    client.call("stop", -1)
    assert client.call("next", 0, 0, 0, 0, 1) == oracle.next(tokens, Sampling())


@pytest.mark.parametrize("chunked", [False, True], ids=["at once", "in parts"])
def test_a_prompt_in_parts_is_the_prompt(client: Client, oracle: Oracle, chunked: bool) -> None:
    ids = [5, 9, 17, 33, 5, 9, 17, 33, 60, 61, 62]
    assert client.call("init", CONTEXT) == Result.OK
    for part in [ids[:1], ids[1:4], ids[4:10], ids[10:]] if chunked else [ids]:
        assert client.feed(*part) == Result.OK
    assert client.call("next", 0, 0, 0, 0, 1) == oracle.next(ids, Sampling())


def test_weights_of_another_model_are_refused(compiled: Program, tmp_path: Path) -> None:
    """One changed word among those that the session looks at."""
    out = tmp_path / "out"
    shutil.copytree(compiled.out, out)
    blob = max((out / "blobs").glob("[lwf]*.bin"), key=lambda file: file.stat().st_size)
    content = bytearray(blob.read_bytes())
    content[0] ^= 1
    blob.write_bytes(content)
    build_program(out, "host", env=ENV, options={"SAN": "1", "LAZY": "1"})
    client = Client(out / PROGRAM["host"])
    assert client.call("init", CONTEXT) == Result.ERROR_WEIGHTS
    client.process.kill()
    client.process.communicate()


def test_result_numbers_are_those_of_the_header() -> None:
    header = Path(__file__).parents[2] / "runtime_c/include/llm.h"
    text = header.read_text()
    for result in Result:
        assert f"LLM_{result.name} = {result.value}" in text
