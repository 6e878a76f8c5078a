"""The search: spaces, proposals, failures, continuation, several processes, the Pareto front."""

from __future__ import annotations

import json
import math
import multiprocessing
import sqlite3
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna")
pytest.importorskip("matplotlib")

import optuna
from sqlalchemy import Engine, event

from shrinkc.compression import explore as module
from shrinkc.compression.explore import (
    InfeasibleError,
    Outcome,
    Result,
    explore,
    front_of,
    open_study,
    propose,
    results_of,
    storage_errors,
)
from shrinkc.compression.front import Reference, read_references, write_front
from shrinkc.compression.space import Space, parse_space
from shrinkc.core.errors import (
    BadData,
    BadRecipe,
    OutputError,
    RunChanged,
    StageFailed,
)

RECIPE = tomllib.loads(
    "[run]\nseed = 1\n[depth]\nremove = 2\n[gptq]\nbits = 4\n[gptq.modules]\n[eora]\nrank = 8\n"
)
EXPLORE = """
depth.use = [true, false]
depth.remove = { from = 0, to = 6, step = 2 }
gptq.bits = [3, 4, 8]
gptq.modules.down_proj.bits = [4, 8]
eora.rank = { from = 1, to = 64, log = true }
"""


@pytest.fixture
def space() -> Space:
    return parse_space(tomllib.loads(EXPLORE), RECIPE)


@pytest.fixture(autouse=True)
def no_wait_for_the_disk() -> Iterator[None]:
    """Switch off waiting for the disk, which takes most of the time of a database."""

    def unsafe(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", unsafe)
    yield
    event.remove(Engine, "connect", unsafe)


@pytest.fixture
def study() -> Any:
    """A study in memory."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(directions=["minimize", "minimize"])


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


def made_up(number: int, values: dict[str, Any]) -> Outcome:
    """Return bytes and perplexity that depend only on the values, for fast trials."""
    gone = values.get("depth.remove", 0)
    size = (30 - gone) * values["gptq.bits"] * 1000 + values["eora.rank"] * 100
    loss = 3 + 0.3 * gone + 0.02 * (8 - values["gptq.bits"]) ** 2 - 0.001 * values["eora.rank"]
    return Outcome(size, math.exp(loss), {"number": number})


# --- spaces ---


def test_values_are_inserted_into_the_recipe(space: Space) -> None:
    values = {"depth.use": True, "depth.remove": 4, "gptq.bits": 3, "eora.rank": 5}
    tables = space.apply(RECIPE, {**values, "gptq.modules.down_proj.bits": 8})
    assert tables == {
        "run": {"seed": 1},
        "depth": {"remove": 4},
        "gptq": {"bits": 3, "modules": {"down_proj": {"bits": 8}}},
        "eora": {"rank": 5},
    }
    assert "depth" not in space.apply(RECIPE, {"depth.use": False})
    assert RECIPE["depth"] == {"remove": 2} and RECIPE["gptq"]["modules"] == {}


def test_every_suggestion_is_allowed(space: Space, study: Any) -> None:
    off = 0
    for _ in range(40):
        values = space.values(study.ask(space.distributions).params)
        if not values["depth.use"]:
            assert "depth.remove" not in values
            off += 1
        else:
            assert values["depth.remove"] in (0, 2, 4, 6)
        assert values["gptq.bits"] in (3, 4, 8)
        assert 1 <= values["eora.rank"] <= 64
    assert 0 < off < 40


def test_choices_may_be_lists_and_tables(study: Any) -> None:
    table = tomllib.loads(
        'lora.targets = [["q", "v"], ["all"]]\ngptq.embeddings = [{bits = 4}, {}]'
    )
    space = parse_space(table, {"lora": {}, "gptq": {}})
    seen = [space.values(study.ask(space.distributions).params) for _ in range(12)]
    assert {json.dumps(v["lora.targets"]) for v in seen} == {'["q", "v"]', '["all"]'}
    assert {json.dumps(v["gptq.embeddings"]) for v in seen} == {'{"bits": 4}', "{}"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("gptq = 4", "no key of a stage"),
        ("gptq.bits = 4", "neither a choice nor a range"),
        ("gptq.bits = []", "list of different values"),
        ("gptq.bits = [4, 4]", "list of different values"),
        ("lora.rank = [4, 8]", "\\[lora\\] is no table"),
        ("run.seed = [1, 2]", "the same for all trials"),
        ("depth.use = [1, 2]", "\\[true, false\\] is allowed"),
        ("depth.remove = { from = 3 }", "neither a choice nor a range"),
        ("depth.remove = { from = 3, to = 3 }", "'from' the smaller one"),
        ("depth.remove = { from = 'a', to = 3 }", "numbers are allowed"),
        ("depth.remove = { from = 0, to = 7, step = 2 }", "do not arrive"),
        ("depth.remove = { from = 0, to = 7, log = true }", "low >= 1"),
    ],
)
def test_a_space_that_makes_no_sense(text: str, words: str) -> None:
    with pytest.raises(BadRecipe, match=words):
        parse_space(tomllib.loads(text), RECIPE)


# --- the search ---


def test_a_search_in_parts_is_the_search_in_one_go(space: Space, study: Any, storage: str) -> None:
    def results(study: Any) -> list[dict[str, Any]]:
        return [r.to_json() for r in results_of(study)]

    explore(study, space, made_up, trials=12, seed=3)
    for part in (4, 6, 2):  # each part opens the study again, like another process
        _search(space, storage, part, seed=3)
    once = results(study)
    assert results(open_study(storage, "s", {})) == once
    assert len(once) == 12
    assert len({json.dumps(r["values"]) for r in once}) == 12, "nothing is tried twice"


def test_another_seed_is_another_search(space: Space) -> None:
    found = []
    for seed in (1, 2):
        study = optuna.create_study(directions=["minimize", "minimize"])
        found.append([r.values for r in explore(study, space, made_up, trials=3, seed=seed)])
    assert found[0] != found[1]


def _search(space: Space, storage: str, trials: int, seed: int = 0) -> list[Result]:
    return explore(open_study(storage, "s", {}), space, made_up, trials=trials, seed=seed)


def test_the_sampler_learns(space: Space, study: Any) -> None:
    """Two thirds of the space fail, but more than half of the later proposals succeed."""

    def run(number: int, values: dict[str, Any]) -> Outcome:
        if values["gptq.bits"] != 8:
            raise ValueError("only 8 bit works")
        return made_up(number, values)

    done = explore(study, space, run, trials=45, seed=0)
    late = [r.state for r in done[25:]]
    assert late.count("complete") > 10


def test_failures_are_recorded_and_stop_nothing(space: Space, study: Any) -> None:
    def run(number: int, values: dict[str, Any]) -> Outcome:
        if number == 1:
            raise BadData("the text is short.", "use another.")
        if number == 2:
            raise ZeroDivisionError("a library's\nown error")
        if number == 3:
            raise InfeasibleError("groups do not divide")
        if number == 4:
            return Outcome(5, math.inf)
        return made_up(number, values)

    heard: list[Result] = []
    done = explore(study, space, run, trials=7, seed=0, finished=heard.append)
    assert heard == done
    # the infeasible trial does not count
    assert [r.state for r in done] == [
        "complete",
        *["failed"] * 2,
        "infeasible",
        "failed",
        *["complete"] * 3,
    ]
    assert done[1].reason == "bad data: the text is short."
    assert done[2].reason == "ZeroDivisionError: a library's own error"
    assert done[3].reason == "groups do not divide"
    assert [(r.number, r.outcome, r.reason) for r in results_of(study)] == [
        (r.number, r.outcome, r.reason) for r in done
    ]


def test_all_failed_is_an_error(space: Space, study: Any) -> None:
    def run(number: int, values: dict[str, Any]) -> Outcome:
        raise ValueError("nothing works")

    with pytest.raises(StageFailed, match=r"all 3 trials failed.*nothing works"):
        explore(study, space, run, trials=3, seed=0)


def test_an_interrupted_trial_is_the_next_one(space: Space, storage: str) -> None:
    stopped: list[dict[str, Any]] = []

    def interrupted(number: int, values: dict[str, Any]) -> Outcome:
        if number == 1:
            stopped.append(values)
            raise KeyboardInterrupt
        return made_up(number, values)

    with pytest.raises(KeyboardInterrupt):
        explore(open_study(storage, "s", {}), space, interrupted, trials=4, seed=0)
    study = open_study(storage, "s", {})
    done = explore(study, space, made_up, trials=2, seed=0)
    assert done[0].values == stopped[0]
    states = [(r.state, r.reason) for r in results_of(study)]
    assert states[1] == ("failed", "interrupted")
    assert [s for s, _ in states] == ["complete", "failed", "complete", "complete"]


def test_a_trial_that_cannot_be_written_is_the_next_one(space: Space, storage: str) -> None:
    """A full disk does not depend on a trial's values, and would stop the next trials too."""
    study, tried = open_study(storage, "s", {}), []

    def full(number: int, values: dict[str, Any]) -> Outcome:
        tried.append(values)
        raise OutputError("out cannot be written: No space left on device.")

    with pytest.raises(OutputError):
        explore(study, space, full, trials=3, seed=4)
    again = open_study(storage, "s", {})
    done = explore(again, space, made_up, trials=1, seed=4)
    assert [done[0].values] == tried


def test_a_study_on_a_full_disk(space: Space, small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(256)
    storage = f"sqlite:///{disk / 'study.db'}"
    study = open_study(storage, "s", {})

    def fill(number: int, values: dict[str, Any]) -> Outcome:
        with (disk / "much").open("ab") as file:
            file.truncate(0)
            for _ in range(64):
                try:
                    file.write(bytes(4096))
                    file.flush()
                except OSError:
                    break
        return made_up(number, values)

    said = "study.db cannot be used: .*database or disk is full.*the same command"
    with pytest.raises(OutputError, match=said), storage_errors(storage):
        explore(study, space, fill, trials=40, seed=0)
    with pytest.raises(OutputError, match=said):
        for i in range(40):
            open_study(storage, f"s{i}", {"content": "x" * 4096})


def test_time_is_up(space: Space, study: Any) -> None:
    left = iter([False, False, True])
    assert len(explore(study, space, made_up, trials=9, seed=0, expired=lambda: next(left))) == 2


def test_a_small_space_is_exhausted(study: Any) -> None:
    table = tomllib.loads("gptq.bits = [3, 4, 8]\neora.rank = [8, 16]")
    space = parse_space(table, RECIPE)
    done = explore(study, space, made_up, trials=50, seed=0)
    assert len(done) == 6
    assert propose(study, space, 1) is None


def test_another_setting_is_another_study(storage: str) -> None:
    conditions = {"content of model.safetensors": "a", "run.seed": 1, "tuple": (1, 2)}
    open_study(storage, "s", conditions)
    open_study(storage, "s", conditions)
    changed = {**conditions, "content of model.safetensors": "b"}
    with pytest.raises(RunChanged, match="model.safetensors has other content") as caught:
        open_study(storage, "s", changed)
    assert "seed" not in caught.value.message
    open_study(storage, "t", changed)


@pytest.mark.parametrize("url", ["nothing://x", "sqlite:////no/such/folder/study.db", "plain"])
def test_an_impossible_storage(url: str) -> None:
    with pytest.raises(OutputError, match="cannot be used"):
        open_study(url, "s", {})


def test_a_password_is_not_shown() -> None:
    with pytest.raises(OutputError) as caught:
        open_study("nothing://me:secret@host/database", "s", {})
    assert "secret" not in str(caught.value) and "me:***@host" in caught.value.message


def _worker(storage: str) -> None:
    _search(parse_space(tomllib.loads(EXPLORE), RECIPE), storage, 6)


def test_two_processes_begin_at_the_same_moment(
    space: Space, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both propose the same values; the second one then proposes others."""
    proposed = module.propose

    def propose(study: Any, space: Space, seed: int) -> dict[str, Any] | None:
        params = proposed(study, space, seed)
        if not others:
            others.append([])
            others[0] = explore(open_study(storage, "s", {}), space, made_up, trials=1, seed=0)
        return params

    others: list[list[Result]] = []
    monkeypatch.setattr(module, "propose", propose)
    mine = _search(space, storage, 2)
    results = results_of(open_study(storage, "s", {}))
    assert [r.state for r in results] == ["complete"] * 3
    assert others[0] + mine == results
    assert len({json.dumps(r.values) for r in results}) == 3


@pytest.mark.slow
def test_processes_share_a_study(space: Space, storage: str) -> None:
    study = open_study(storage, "s", {})
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_worker, args=(storage,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    results = results_of(study)
    assert [r.state for r in results] == ["complete"] * 12
    assert len({json.dumps(r.values) for r in results}) == 12, "nothing is tried twice"


# --- the front ---


def test_the_front_is_the_pareto_front(space: Space, study: Any) -> None:
    explore(study, space, made_up, trials=12, seed=0)
    results = results_of(study)
    points = {(r.outcome.packed_bytes, r.outcome.perplexity) for r in results if r.outcome}
    best = [r.outcome for r in front_of(results) if r.outcome]
    front = [(outcome.packed_bytes, outcome.perplexity) for outcome in best]
    assert front == sorted(front)

    def beaten(p: tuple[int, float]) -> bool:
        return any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)

    assert set(front) == {p for p in points if not beaten(p)} < points


def test_files_of_the_front(study: Any, tmp_path: Path) -> None:
    space = parse_space({"gptq": {"bits": [1, 2, 3, 4, 5, 6]}}, RECIPE)
    points = {1: (3 << 20, 20.0), 2: (2 << 20, 30.0), 3: (4 << 20, 25.0)}

    def run(number: int, values: dict[str, Any]) -> Outcome:
        bits = values["gptq.bits"]
        if bits == 4:
            raise RuntimeError("out of memory")
        if bits > 4:
            raise InfeasibleError("too many words " * 20)
        return Outcome(*points[bits])

    done = explore(study, space, run, trials=6, seed=0)
    number = {r.values["gptq.bits"]: r.number for r in done}
    references = [Reference("reference", 5 << 20, 18.0)]
    lines = write_front(tmp_path, study, references, {"study": "s"})
    assert (tmp_path / "front.md").read_text() == "\n".join(lines) + "\n"
    assert [line.split(" | ")[0] for line in lines[2:5]] == [
        f"| trial {number[2]}",
        f"| trial {number[1]}",
        "| reference",
    ]
    assert f"* trial {number[4]} failed: RuntimeError: out of memory" in lines
    long = next(line for line in lines if line.startswith(f"* trial {number[5]} infeasible: too"))
    assert len(long) < 200
    content = json.loads((tmp_path / "front.json").read_text())
    assert [r["trial"] for r in content["front"]] == [number[2], number[1]]
    assert content["counts"] == {"complete": 3, "infeasible": 2, "failed": 1}
    assert content["study"] == "s" and content["references"][0]["perplexity"] == 18
    picture = (tmp_path / "front.svg").read_bytes()
    write_front(tmp_path, study, references, {"study": "s"})
    assert (tmp_path / "front.svg").read_bytes() == picture
    assert sorted(p.name for p in tmp_path.iterdir()) == ["front.json", "front.md", "front.svg"]


def test_an_empty_front(study: Any, tmp_path: Path) -> None:
    lines = write_front(tmp_path, study, [], {})
    assert "0 trials complete" in "\n".join(lines)
    assert (tmp_path / "front.svg").stat().st_size > 1000


MEASURED = {
    "protocol": "wikitext512", "text_tokens": 9000, "windows": 16, "sha256": "ab", "dtype": "float32",
}  # fmt: skip


def test_references(tmp_path: Path) -> None:
    file = tmp_path / "reference.json"
    row = {"name": "a", "packed_bytes": 5, "perplexity": 2, "measured": MEASURED}
    file.write_text(json.dumps([row]))
    assert read_references(file, MEASURED) == [Reference("a", 5, 2.0)]
    file.write_text(json.dumps({"steps": [{**row, "perplexity": None}, row]}))
    assert read_references(file, MEASURED) == [Reference("a", 5, 2.0)]
    # a list written by a user may omit fields that only a tokenizer determines
    short = {key: value for key, value in MEASURED.items() if key != "text_tokens"}
    file.write_text(json.dumps([{**row, "measured": short}]))
    assert read_references(file, MEASURED) == [Reference("a", 5, 2.0)]
    for text in ("[", '[{"name": "a"}]', "3", "[]", '{"steps": []}', "[3]"):
        file.write_text(text)
        with pytest.raises(BadData):
            read_references(file, MEASURED)


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        (MEASURED | {"windows": 64}, "a: windows: 64 → 16."),
        (MEASURED | {"text_tokens": 1}, "a: text_tokens: 1 → 9000."),
        (
            MEASURED | {"dtype": "bfloat16", "protocol": "wikitext2048"},
            "a: protocol: wikitext2048 → wikitext512, dtype: bfloat16 → float32.",
        ),
        (
            {"windows": 16, "dtype": "float32"},
            "a: protocol: not given → wikitext512, sha256: not given → ab.",
        ),
    ],
)
def test_references_with_other_conditions(
    stated: dict[str, Any], words: str, tmp_path: Path
) -> None:
    file = tmp_path / "reference.json"
    row = {"name": "a", "packed_bytes": 5, "perplexity": 2}
    file.write_text(json.dumps([{**row, "measured": stated}]))
    with pytest.raises(BadData) as refusal:
        read_references(file, MEASURED)
    assert refusal.value.message == f"{file} was not measured as the trials are: {words}"
    # the message contains the required conditions for comparing and copying
    assert refusal.value.hint is not None and json.dumps(MEASURED) in refusal.value.hint
