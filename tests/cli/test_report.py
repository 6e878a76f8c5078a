"""``report``: one page and the same as JSON, from figures that other commands give too."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from helpers.compressed import sensitivities, write_run
from helpers.report import run_of
from shrinkc.core.artifact import PROFILE, REPORT, read_manifest, write_manifest
from shrinkc.ir.serialize import load

from .conftest import Cli
from .test_inspect import damaged

PROMPT = 'Lily & <b>Tom</b> "went"'


@pytest.fixture
def out(compiled: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    shutil.copytree(compiled, tmp_path / "out", ignore=shutil.ignore_patterns("build", "report.*"))
    return tmp_path / "out"


def reported(cli: Cli, directory: Path, *options: object) -> dict[str, Any]:
    """What was written, both files of which say the same name and kind."""
    result = cli("report", directory, "--json", *options)
    assert result.code == 0, result.err
    said = result.json
    page, data = Path(said["html"]), json.loads(Path(said["json"]).read_text())
    assert page.stat().st_size == said["bytes"] and str(page) in result.err
    assert (data["kind"], data["name"]) == (said["kind"], said["name"])
    assert REPORT in page.read_text()[:64] and data["format"] == REPORT
    found: dict[str, Any] = data
    return found


class Page(HTMLParser):
    """Counts tags and keeps what is read as text, ids and addresses."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "srcset", "action", "data", "xlink:href"):
                self.links.append(value or "")
            assert not name.startswith("on"), "a handler in markup"

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def checked(path: Path) -> Page:
    """A page that asks for nothing outside itself."""
    page = Page(path)
    assert page.tags["script"] == page.tags["style"] == page.tags["main"] == 1
    assert len(page.ids) == len(set(page.ids)) > 5
    assert {link for link in page.links if not link.startswith("#")} == {"data:,"}
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    return page


# ---- a compiled directory ----


def test_memory_and_weights_are_the_plans(cli: Cli, out: Path) -> None:
    data = reported(cli, out)
    plan = json.loads((out / "plan.json").read_text())
    verdict, weights = data["verdict"], data["weights"]["matrices"]
    assert verdict["command"] == json.loads((out / "manifest.json").read_text())["command"]
    assert verdict["fits"] is True and verdict["verified"] is None
    regions = data["memory"]["regions"]
    page = checked(out / "report.html")
    at = {name: i for i, name in enumerate(plan["steps"])}
    for level, label in (("l1", "L1"), ("l2", "L2"), ("wmem", "weight memory")):
        inside = [r for r in regions if r["memory"] == label]
        used, have = verdict[f"{level}_used"], verdict[f"{level}_available"]
        assert used == plan["used"][level] == max(r["address"] + r["bytes"] for r in inside)
        assert f"{label}: {used:,} of {have:,} bytes" in page.words
        for r in inside:
            for s in (s for s in inside if s is not r):
                apart = (
                    r["address"] + r["bytes"] <= s["address"]
                    or s["address"] + s["bytes"] <= r["address"]
                )
                assert apart or at[r["to"]] < at[s["from"]] or at[s["to"]] < at[r["from"]], (r, s)
    assert len({r["memory"] for r in regions}) == 3
    stored = {p["offset"]: p["bytes"] for p in plan["placements"]}
    assert sum(w["bytes"] for w in weights) == sum(stored.values())
    kept = [r for r in regions if r["kind"] == "weights"]
    assert {r["name"] for r in kept} == {w["name"] for w in weights if not w["same_as"]}
    assert all(r["read_in"] == "qkv" for r in kept if r["name"].endswith(".qkv"))
    assert verdict["command"] in page.words
    for b in plan["l1"]:
        assert f"{b['name']}: {b['bytes']:,} bytes at" in page.words


def test_cycles_are_those_that_plan_states(cli: Cli, model: Path, out: Path) -> None:
    data = reported(cli, out, "--position", 20, "--clock", 100)
    speed = cli("plan", model, "--position", 20, "--clock", 100, "--json").json["speed"]
    assert data["verdict"]["tokens_per_second"] == pytest.approx(
        speed["decode"]["tokens_per_second"], rel=1e-3
    )
    decode = {o["op"]: o for o in data["cycles"]["decode_ops"]}
    for op, cycles in speed["decode"]["ops"].items():
        assert decode[op]["estimated_cycles"] == pytest.approx(cycles, abs=2)
    for phase, tokens in (("decode", 1), ("prefill", 20)):
        *ops, whole = data["cycles"][f"{phase}_ops"]
        cycles = tokens * speed[phase]["cycles_per_token"]
        assert whole["op"] == "all" and whole["estimated_cycles"] == pytest.approx(cycles, abs=20)
        layers, steps = data["cycles"][f"{phase}_layers"], data["timeline"][f"{phase}_steps"]
        for rows in (ops, layers, steps):
            assert sum(row["estimated_cycles"] for row in rows) == pytest.approx(cycles, abs=20)
            assert {row["measured_cycles"] for row in rows} == {None}
    page = checked(out / "report.html")
    assert "All of these are estimated by the cost model" in page.words
    assert "measured cycles" not in page.words


def test_products_are_those_of_the_matrices(cli: Cli, out: Path) -> None:
    """And of attention over what is cached."""
    data, graph = reported(cli, out, "--position", 20), load(out / "ir.safetensors")
    weights = {w["name"]: w for w in data["weights"]["matrices"]}
    sizes = {s["matrix"]: s for s in data["weights"]["slots"]}
    decode, prefill = (
        {o["op"]: o for o in data["cycles"][f"{phase}_ops"]} for phase in ("decode", "prefill")
    )
    layers = range(graph.num_layers)
    for op, slot in (("qkv", "qkv"), ("mid", "o"), ("out", "down")):
        each = sizes[slot]["rows"] * sizes[slot]["inputs"]
        # of a prompt the last layer, once its cache is filled, goes on with the last token
        beyond = 0 if op == "qkv" else 19 * each
        assert decode[op]["products"] == each * len(layers)
        assert prefill[op]["products"] == 20 * each * len(layers) - beyond
        # weights once, whatever comes in and goes out besides
        stored = sum(weights[f"layer{i}.{slot}"]["bytes"] for i in layers)
        assert stored < decode[op]["bytes"] < 2 * stored
    width = graph.heads * graph.head_dim
    assert decode["attn"]["products"] == 2 * len(layers) * 21 * width
    seen = (len(layers) - 1) * sum(range(1, 21)) + 20
    assert prefill["attn"]["products"] == 2 * width * seen
    assert decode["next"]["products"] == graph.vocab
    assert all(o["products"] > 0 and o["bytes"] > 0 for o in (*decode.values(), *prefill.values()))


def test_no_estimate_is_above_its_ceiling(cli: Cli, out: Path) -> None:
    data = reported(cli, out)
    engines = {s["op"]: s["engine"] for s in data["timeline"]["decode_steps"]}
    lines = data["roofline"]["ceilings"]
    most: dict[str, float] = {}
    for c in (c for c in lines if c["unit"] == "products per cycle"):
        most[c["ceiling"]] = max(c["value"], most.get(c["ceiling"], 0))  # of either phase
    slopes = {c["bytes_from"]: c["value"] for c in lines if c["unit"] == "bytes per cycle"}
    assert all(c["from"] for c in lines)
    assert most["cores, activations of 8 bit"] == 32 and slopes["l1"] == 32
    assert {p["phase"] for p in data["roofline"]["points"]} == {"decode", "prefill"}
    for p in data["roofline"]["points"]:
        reached = p["estimated_products_per_cycle"]
        assert 0 < reached < most.get(engines[p["op"]], 32), p["op"]
        assert reached < slopes.get(p["bytes_from"], 32) * p["products_per_byte"], p["op"]


def test_a_profiled_run_stands_beside_the_estimate(cli: Cli, out: Path, tmp_path: Path) -> None:
    run = run_of(reported(cli, out), factor=2.0)
    (tmp_path / "run.json").write_text(json.dumps(run))
    data = reported(cli, out, "--run", tmp_path / "run.json")
    verdict = data["verdict"]
    assert verdict["measured_cycles"] == run["profile"]["decode"]["cycles"]
    measured = {row["op"]: row["cycles"] for row in run["profile"]["prefill"]["ops"]}
    *ops, whole = data["cycles"]["prefill_ops"]
    assert {o["op"]: o["measured_cycles"] for o in ops} == pytest.approx(measured, rel=1e-4)
    assert whole["measured_cycles"] == run["profile"]["prefill"]["cycles"]
    for o in data["cycles"]["decode_ops"]:
        off = o["estimated_cycles"] / o["measured_cycles"] - 1
        assert o["estimate_off"] == pytest.approx(off, abs=1e-3)
    assert verdict["compared"] == 77 and verdict["run"] == "run.json"
    page = checked(out / "report.html")
    assert "77 values checked, 0 differ" in page.words and "measured cycles" in page.words
    # where the last run with --profile left it
    (out / PROFILE).parent.mkdir()
    (tmp_path / "run.json").rename(out / PROFILE)
    again = reported(cli, out)
    assert again["cycles"] == data["cycles"] and again["verdict"]["run"] == "profile.json"
    # a run without a profile proves all the same
    (tmp_path / "plain.json").write_text(json.dumps({**run, "profile": None, "target": "host"}))
    plain = reported(cli, out, "--run", tmp_path / "plain.json")["verdict"]
    assert (plain["compared"], plain["measured_cycles"], plain["run_on"]) == (77, None, "host")


def test_evaluations_that_lie_there(cli: Cli, out: Path, tmp_path: Path) -> None:
    perplexity = {
        "protocol": "wikitext512", "windows": 2, "tokens": 1024, "perplexity": 12.5, "bits_per_byte": None,
        "perplexity_standard_error": None,
    }  # fmt: skip
    report = {"model": {"name": "tiny", "kind": "compiled"}, "perplexity": perplexity}
    (out / "eval.json").write_text(json.dumps(report))
    texts = {"texts": [{"prompt": PROMPT, "text": "<script>alert(1)</script>"}]}
    (tmp_path / "other.json").write_text(json.dumps({"model": report["model"], "samples": texts}))
    (out / "notes.json").write_text("[]")
    data = reported(cli, out, "--eval", tmp_path / "other.json")
    (row,) = data["accuracy"]["eval.json"]
    assert row["value"] == "12.500" and row["standard_error"] is None
    (sample,) = data["accuracy"]["samples"]
    assert sample["prompt"] == PROMPT and sample["texts"][0]["name"] == "other.json"
    page = checked(out / "report.html")
    assert (
        PROMPT in page.words and "<script>alert(1)</script>" in page.words and "b" not in page.tags
    )
    assert "12.500" in page.words and "notes.json was left out" in page.words


def test_the_same_report_twice(cli: Cli, out: Path, tmp_path: Path) -> None:
    first = reported(cli, out)
    html = (out / "report.html").read_bytes()
    reported(cli, out, "-o", tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == html
    assert json.loads((tmp_path / "again.json").read_text()) == first
    assert len(html) < 1_000_000


def test_without_a_cost_model_nothing_is_estimated(cli: Cli, model: Path, tmp_path: Path) -> None:
    assert cli("compile", model, "-o", tmp_path / "host", "--target", "host").code == 0
    data = reported(cli, tmp_path / "host")
    assert data["verdict"]["tokens_per_second"] is None
    assert "roofline" not in data and "timeline" not in data
    ops = data["cycles"]["decode_ops"]
    assert all(o["estimated_cycles"] is None and o["products"] > 0 for o in ops)
    words = checked(tmp_path / "host/report.html").words
    assert "was not calibrated" in words and "Timeline" not in words


def test_a_report_is_no_foreign_file(cli: Cli, model: Path, out: Path) -> None:
    reported(cli, out)
    assert cli("inspect", out, "--json").json["changed_files"] == []
    assert cli("compile", model, "-o", out, "--force").code == 0
    assert not (out / "report.html").exists()
    (out / "report.html").write_text("my own")
    assert "report.html" in cli("compile", model, "-o", out, "--force").words


def test_force_replaces_an_evaluation_of_this_program(cli: Cli, model: Path, out: Path) -> None:
    file = out / "quality.json"
    evaluated = cli("eval", out, "--sample", "a", "--engine", "interpreter", "-o", file)
    assert evaluated.code == 0, evaluated.err
    written = json.loads(file.read_text())
    assert cli("compile", model, "-o", out, "--force").code == 0 and not file.exists()
    other_program = {"model": {**written["model"], "ir_sha256": "0" * 64}}
    mine = [{**written, "notes": "mine"}, {**written, **other_program}, {"model": written["model"]}]
    for content in mine:
        file.write_text(json.dumps(content))
        assert "quality.json" in cli("compile", model, "-o", out, "--force").words and file.exists()


# ---- a compression run ----


def test_a_compression_run(cli: Cli, tmp_path: Path) -> None:
    write_run(tmp_path / "run", "smol", PROMPT)
    data = reported(cli, tmp_path / "run")
    assert data["kind"] == "compression run" and data["recipe"]["recipe"] == "[gptq]\nbits = 4\n"
    assert [s["packed_bytes"] for s in data["steps"]["steps"]] == [2000, 500]
    assert data["verdict"]["packed_bytes"] == 500 and data["verdict"]["perplexity"] == 33.25
    found, costs = data["sensitivity"], sensitivities(5)
    want = costs["kl"]["layers"][4]["modules"]["mlp.down_proj"]["2"]
    assert found["matrices_at_2"][4]["down"] == pytest.approx(want, rel=1e-5)
    assert found["layers"][4]["removed"] == costs["loss"]["layers"][4]["removed"]
    page = checked(tmp_path / "run/report.html")
    assert page.tags["svg"] == 1 + len([key for key in found if key.startswith("matrices_")]) + 1
    for text in (PROMPT, "there was a cat", "there was a <b>dog</b> & me", "33.25", "25.0 %"):
        assert text in page.words, text
    assert "layer 4 down: " in page.words and "01-gptq: 500 B, 25.0 % of bf16" in page.words
    # a step that is damaged is said, and the others are shown
    (tmp_path / "run/01-gptq/config.json").write_text("{ }")
    data = reported(cli, tmp_path / "run")
    assert len(data["steps"]["steps"]) == 1 and "is not as it was written" in data["notes"][0]
    shutil.rmtree(tmp_path / "run/00-source")
    assert cli("report", tmp_path / "run").code == 62


# ---- refusals ----


@pytest.mark.parametrize(
    ("prepare", "options", "code", "words"),
    [
        (lambda d: shutil.rmtree(d), (), 61, "neither a compiled directory nor a compression run"),
        (lambda d: (d / "manifest.json").unlink(), (), 61, "neither a compiled directory"),
        (lambda d: (d / "plan.json").write_text("{}"), (), 61, "plan.json missing or changed since compiling"),
        (lambda d: None, ("--position", 100000), 2, "--position 100000 is not possible"),
        (lambda d: None, ("--clock", 0), 2, "--clock 0 is not possible"),
        (lambda d: None, ("-o", "no/such/place.html"), 40, "does not exist"),
        (lambda d: None, ("-o", "page.json"), 2, "is the name of the page's JSON"),
        (lambda d: None, ("--eval", "nothing.json"), 17, "cannot be read"),
        (lambda d: None, ("--run", "nothing.json"), 17, "cannot be read"),
    ],
)  # fmt: skip
def test_refusals(
    cli: Cli, out: Path, prepare: Callable[[Path], object], options: tuple[object, ...], code: int, words: str
) -> None:  # fmt: skip
    prepare(out)
    result = cli("report", out, *options)
    assert result.code == code and words in result.words, result.err
    assert not (out / "report.html").exists() and not (out / "report.json").exists()


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [("engine", " neureka_1x1", "there is no engine ' neureka_1x1'"),
     ("level", "l9", "a memory is missing or not known")],
)  # fmt: skip
def test_a_plan_of_what_there_is_not(
    cli: Cli, out: Path, field: str, value: str, words: str
) -> None:
    plan = json.loads((out / "plan.json").read_text())
    plan["placements"][0][field] = value
    (out / "plan.json").write_text(json.dumps(plan))
    write_manifest(out, read_manifest(out))  # as if it had been compiled so
    result = cli("report", out)
    assert result.code == 61 and words in result.words, result.err


def test_files_that_are_no_run_or_of_another_model(cli: Cli, out: Path, tmp_path: Path) -> None:
    run, file = run_of(reported(cli, out), factor=1.0), tmp_path / "run.json"
    profile = run["profile"]
    worse: list[dict[str, Any]] = [
        {**run, "model": "another"},
        {**run, "verdict": {"compared": "7"}},
        {**run, "profile": {**profile, "prefill": {}}},
        {**run, "profile": {**profile, "decode": {**profile["decode"], "cycles": "many"}}},
        {**run, "prompt_tokens": [1] * 10_000},
        {},
    ]
    for content in worse:
        file.write_text(json.dumps(content))
        result = cli("report", out, "--run", file)
        assert result.code == 17, (content.keys(), result.err)
        assert cli("report", out, "--eval", file).code == 17
    write_run(tmp_path / "smaller", "smol", PROMPT)
    assert cli("report", tmp_path / "smaller", "--clock", 100).code == 2


def test_damage_is_a_refusal_or_a_note(cli: Cli, out: Path, tmp_path: Path) -> None:
    """Whatever is another thing than it was in a step or in the file of a run."""
    write_run(tmp_path / "run", "smol", PROMPT)
    record = tmp_path / "run/01-gptq/step.json"
    whole = json.loads(record.read_text())
    run = run_of(reported(cli, out), factor=1.0)
    codes: dict[str, set[int]] = {"step": set(), "run": set()}
    for seed in range(40):
        for kind, content, file, options in (
            ("step", whole, record, (tmp_path / "run",)),
            ("run", run, tmp_path / "r.json", (out, "--run", tmp_path / "r.json")),
        ):
            worse = json.loads(json.dumps(content))
            damaged(worse, random.Random(seed))
            file.write_text(json.dumps(worse))
            codes[kind].add(cli("report", *options).code)
    assert codes == {"step": {0}, "run": {0, 17}}


def test_texts_and_numbers_that_no_file_or_float_can_hold(
    cli: Cli, out: Path, tmp_path: Path
) -> None:
    write_run(tmp_path / "run", "smol", PROMPT)
    write_run(tmp_path / "other", "smol", PROMPT)
    shutil.copytree(tmp_path / "other/00-source", tmp_path / "run/02-huge")
    for name, change in (
        ("00-source", {"packed_bytes": 10**400}), ("01-gptq", {}), ("02-huge", {"parameters": 10**400}),
    ):  # fmt: skip
        file = tmp_path / "run" / name / "step.json"
        step = json.loads(file.read_text())
        step["figures"] |= change
        step["metrics"]["perplexity"]["protocol"] = "\ud800"
        file.write_text(json.dumps(step))
    data = reported(cli, tmp_path / "run")
    assert [s["protocol"] for s in data["steps"]["steps"]] == ["?"]
    assert "00-source/step.json is damaged: OverflowError" in data["notes"][0]
    assert "was left out: a figure of it is no number" in data["notes"][1]
    for tokens in (None, [3], "3"):
        step["metrics"]["perplexity"] |= {"protocol": "p", "text_tokens": tokens}
        file = tmp_path / "other/00-source/step.json"
        file.write_text(json.dumps(step | {"figures": json.loads(file.read_text())["figures"]}))
        assert "was left out" in reported(cli, tmp_path / "other")["notes"][0]
    (out / "eval.json").symlink_to("eval.json")
    assert "eval.json was left out" in reported(cli, out)["notes"][0]
    (tmp_path / "eval.json").write_text(
        json.dumps({
            "model": {},
            "perplexity": {
                "protocol": "wikitext512", "windows": 1, "tokens": 511, "perplexity": 10**400,
                "perplexity_standard_error": None, "bits_per_byte": None,
            },
        })
    )  # fmt: skip
    result = cli("report", out, "--eval", tmp_path / "eval.json")
    assert result.code == 17 and "is no evaluation of shrinkc" in result.words
