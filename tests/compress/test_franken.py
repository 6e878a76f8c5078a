"""Franken models: notation, logits compared with a model built by hand, KV cache, checkpoints."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from helpers.float_reference import forward
from helpers.tiny_llama import write_tiny_llama
from shrinkc.build import find_tool
from shrinkc.checkpoints import Loaded, load
from shrinkc.cli.main import run_cli
from shrinkc.compression.franken import (
    NOTE,
    UNCHANGED,
    Configuration,
    Story,
    assemble,
    compare,
    generate,
    parse_layers,
    prompt_ids,
    save_checkpoint,
    table,
)
from shrinkc.core.errors import BadData, OutputError, UsageError
from shrinkc.core.progress import Silent
from shrinkc.driver import franken as command_line
from shrinkc.evaluation.plan import EvalPlan
from shrinkc.importer import load_model
from shrinkc.targets import HOST

pytestmark = pytest.mark.slow

STORIES = Path(__file__).resolve().parents[2] / "examples" / "stories"
ORDER = (0, 1, 1, 3, 2, 1)


@pytest.fixture(scope="module")
def stories() -> Loaded:
    return load(STORIES)


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("0-4", [0, 1, 2, 3, 4]),
        ("0-1,4", [0, 1, 4]),
        ("3x3", [3, 3, 3]),
        ("0-1, 1x2 ,2", [0, 1, 1, 1, 2]),
        ("4,3,0-0", [4, 3, 0]),
    ],
)
def test_notation(text: str, layers: list[int]) -> None:
    assert parse_layers(text, 5) == tuple(layers)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "''"), ("0-1,,2", "''"), ("0-1,a", "'a'"), ("0-1,5", "'5'"), ("0-7", "'0-7'"),
        ("3-1", "'3-1'"), ("2x0", "'2x0'"), ("2x1001", "'2x1001'"), ("1-3x2", "'1-3x2'"),
        ("-1", "'-1'"), ("0x600,1x600", "'1x600'"),
    ],
)  # fmt: skip
def test_an_error_names_the_part(text: str, part: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_layers(text, 5)
    assert part in caught.value.message
    assert caught.value.hint


def test_all_layers_in_order_are_the_model(stories: Loaded) -> None:
    ids = torch.arange(40)[None] + 5
    same = assemble(stories.model, range(5))
    assert torch.equal(same(ids).logits, stories.model(ids).logits)


def test_logits_are_those_of_a_model_built_by_hand(stories: Loaded) -> None:
    """Built twice: in numpy with another list of layers, and in torch with copied tensors."""
    ids = np.arange(30) * 7 % 512
    found = assemble(stories.model, ORDER)(torch.tensor(ids)[None]).logits[0].numpy()

    model = load_model(STORIES)
    model.layers[:] = [model.layers[i] for i in ORDER]
    expected = forward(model, ids, np.float64)
    assert np.abs(found - expected).max() < 1e-4

    config = type(stories.model.config)(
        **{**stories.model.config.to_dict(), "num_hidden_layers": 6}
    )
    copied = type(stories.model)(config).eval()
    with torch.no_grad():
        copied.model.embed_tokens.weight.copy_(stories.model.model.embed_tokens.weight)
        copied.model.norm.weight.copy_(stories.model.model.norm.weight)
        for mine, layer in zip(copied.model.layers, ORDER, strict=True):
            mine.load_state_dict(stories.model.model.layers[layer].state_dict())
        assert np.array_equal(copied(torch.tensor(ids)[None]).logits[0].numpy(), found)


def test_an_untied_model_with_scaled_positions(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }  # fmt: skip
    write_tiny_llama(tmp_path / "tiny", tied=False, layers=3, rope_scaling=scaling)
    tiny = load(tmp_path / "tiny")
    ids = np.arange(20) + 5
    found = assemble(tiny.model, (2, 0, 0))(torch.tensor(ids)[None]).logits[0].numpy()
    model = load_model(tmp_path / "tiny")
    model.layers[:] = [model.layers[i] for i in (2, 0, 0)]
    assert np.abs(found - forward(model, ids, np.float64)).max() < 1e-4
    save_checkpoint(tiny, Configuration("mine", "2,0x2", (2, 0, 0)), tmp_path / "saved")
    again = load(tmp_path / "saved").model(torch.tensor(ids)[None]).logits[0].numpy()
    assert np.array_equal(again, found)


def test_no_tensor_is_copied(stories: Loaded) -> None:
    model = assemble(stories.model, ORDER)
    mine = {p.data_ptr() for p in model.parameters()}
    assert mine <= {p.data_ptr() for p in stories.model.parameters()}
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_every_occurrence_has_its_own_cache(stories: Loaded) -> None:
    model = assemble(stories.model, ORDER)
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == list(range(6))
    ids = prompt_ids(stories, "Once upon a time there was")
    assert len(generate(model, ids, 24, exact=True)) == 24
    with torch.no_grad():  # logits with the KV cache equal those of the whole text
        whole = model(torch.tensor([ids])).logits[0]
        cache = None
        for t, token in enumerate(ids):
            out = model(torch.tensor([[token]]), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            assert torch.allclose(out.logits[0, 0], whole[t], atol=1e-4)


def test_sampling_depends_on_its_seed_alone(stories: Loaded) -> None:
    ids = prompt_ids(stories, "Once upon a time")
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = generate(stories.model, ids, 20, sample=Story(seed=1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    assert generate(stories.model, ids, 20, sample=Story(seed=1)) == first
    assert generate(stories.model, ids, 20, sample=Story(seed=2)) != first


def test_a_saved_configuration_is_an_ordinary_checkpoint(stories: Loaded, tmp_path: Path) -> None:
    configuration = Configuration("mine", "0,1x2,3,2,1", ORDER)
    out = tmp_path / "saved"
    save_checkpoint(stories, configuration, out)
    again = load(out)
    ids = torch.arange(20)[None] + 3
    expected = assemble(stories.model, ORDER)(ids).logits
    assert torch.equal(again.model(ids).logits, expected)
    assert json.loads((out / NOTE).read_text())["layer_list"] == list(ORDER)
    # stored in the original's type: float16
    assert json.loads((out / "config.json").read_text())["dtype"] == "float16"
    assert load_model(out).config.num_layers == 6
    # the original model shares no tensors with it
    assert torch.equal(assemble(stories.model, ORDER)(ids).logits, expected)
    with pytest.raises(OutputError):
        save_checkpoint(stories, configuration, out)


def test_comparison(stories: Loaded, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a little girl. She liked to play.\n" * 60)
    plan = EvalPlan(text=text, windows=1)
    asked = [Configuration("same", "0-4", tuple(range(5))), Configuration("short", "0,4", (0, 4))]
    rows = compare(stories, asked, Story(tokens=12), plan, Silent())
    assert [r.configuration.name for r in rows] == [UNCHANGED, "same", "short"]
    base, same, short = (r.to_json() for r in rows)
    for key in ("greedy", "sampled", "evaluation", "parameters"):
        assert without_seconds(base[key]) == without_seconds(same[key])
    figures = [row["evaluation"]["perplexity"]["perplexity"] for row in (base, short)]
    assert 1 < figures[0] < figures[1]
    assert short["layers"] == "0,4" and short["parameters"] < base["parameters"]
    assert base["time_ratio"] == 1 and short["time_ratio"] < 1
    lines = table(rows)
    assert any("short" in line and f"{figures[1]:.2f}" in line for line in lines)


def without_seconds(value: object) -> object:
    """Return the value without seconds, at any depth."""
    if not isinstance(value, dict):
        return value
    return {k: without_seconds(v) for k, v in value.items() if k != "seconds"}


def test_a_prompt_has_to_fit(stories: Loaded) -> None:
    with pytest.raises(BadData, match="512 positions"):
        prompt_ids(stories, "a time " * 300, 300)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, saved = tmp_path / "out", tmp_path / "saved"
    command = ["franken", str(STORIES), "--layers", "0-1,1,4", "--name", "mine", "--tokens", "6"]
    outputs = ["-o", str(out), "--save", str(saved)]
    assert run_cli([*command, *outputs, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert json.loads((out / "comparison.json").read_text()) == result
    assert [c["name"] for c in result["configurations"]] == [UNCHANGED, "mine"]
    assert result["configurations"][1]["layer_list"] == [0, 1, 1, 4]
    assert result["threads"] == 1 and result["versions"]["torch"]
    assert load_model(saved).config.num_layers == 4
    assert run_cli([*command, "-o", str(out)]) == OutputError.exit_code
    assert "--force" in capsys.readouterr().err
    assert run_cli([*command, "-o", str(out), "--force"]) == 0
    shown = capsys.readouterr().out
    assert shown == (out / "comparison.md").read_text() and "| mine | 0-1,1,4 |" in shown


def test_command_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, tasks = tmp_path / "text.txt", tmp_path / "tasks.txt"
    text.write_text("Once upon a time there was a dog. The dog was happy and ran home. " * 80)
    task = ["Play: Lily", "1", "runs to the sun.", "is happy.", "eats the dog.", "was a tree."]
    tasks.write_text("\n".join(task * 3) + "\n")
    command = ["franken", str(STORIES), "--layers", "0-2,4", "--tokens", "4", "--json"]
    assert run_cli([*command, "--text", str(text), "--windows", "1"]) == 0
    rows = json.loads(capsys.readouterr().out)["configurations"]
    found = [row["evaluation"]["perplexity"] for row in rows]
    assert [f["windows"] for f in found] == [1, 1] and found[0]["loss"] != found[1]["loss"]
    assert run_cli([*command, "--task", f"hellaswag={tasks}", "--items", "2"]) == 0
    rows = json.loads(capsys.readouterr().out)["configurations"]
    assert [row["evaluation"]["tasks"]["hellaswag"]["items"] for row in rows] == [2, 2]
    assert run_cli([*command, "--text", str(tmp_path / "nothing")]) == BadData.exit_code


@pytest.mark.parametrize("option", ["-o", "--save"])
def test_outputs_are_tried_before_the_work_and_what_was_measured_is_printed(
    option: str, small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    disk = small_disk(8)
    (disk / "much").write_bytes(bytes(8192))
    command = ["franken", str(STORIES), "--layers", "0-1,4", "--tokens", "4"]
    compared = command_line.franken.compare
    monkeypatch.setattr(command_line.franken, "compare", lambda *_: pytest.fail("measured"))
    assert run_cli([*command, option, str(disk / "out")]) == OutputError.exit_code
    streams = capsys.readouterr()
    assert streams.out == "" and "out cannot be written: No space left" in " ".join(
        streams.err.split()
    )

    def fill(*arguments: Any) -> Any:
        rows = compared(*arguments)
        (disk / "much").write_bytes(bytes(8192))
        return rows

    (disk / "much").unlink()
    monkeypatch.setattr(command_line.franken, "compare", fill)
    assert run_cli([*command, option, str(disk / "out")]) == OutputError.exit_code
    streams = capsys.readouterr()
    assert f"| {UNCHANGED} | 0-4 |" in streams.out and "partial" not in streams.err
    assert "No space left" in " ".join(streams.err.split())
    assert [p.name for p in disk.iterdir()] == ["much"]


def test_force_keeps_what_this_command_did_not_make(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, saved = tmp_path / "out", tmp_path / "saved"
    command = ["franken", str(STORIES), "--layers", "0-1,4", "--tokens", "4", "--force"]
    assert run_cli([*command, "-o", str(out), "--save", str(saved)]) == 0
    assert run_cli([*command, "-o", str(out)]) == 0
    (out / "notes").mkdir()
    (out / "notes" / "letter.txt").write_text("dear")
    assert run_cli([*command, "-o", str(out)]) == OutputError.exit_code
    said = " ".join(capsys.readouterr().err.split())
    assert f"{out} contains files" in said and "notes/letter.txt. Hint" in said
    assert run_cli([*command, "--save", str(saved)]) == OutputError.exit_code
    assert "saved is not empty" in " ".join(capsys.readouterr().err.split())
    # a file of that name alone does not make it a directory of shrinkc
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "comparison.json").write_text('{"mine": 1}')
    assert run_cli([*command, "-o", str(tmp_path / "mine")]) == OutputError.exit_code
    assert "not created by shrinkc" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--layers", "0-9"], "no layer 9"),
        (["--layers", "0-1", "--name", "a", "--name", "b"], "more --name (2) than --layers (1)"),
        (["--layers", "0-1", "--layers", "2", "--save", "x"], "--save needs exactly one --layers"),
        (["--layers", "0-1", "-o", "x", "--save", "x/y"], "--save x/y and -o x are the same"),
        (["--layers", "0-1", "-o", "x", "--save", "x"], "--save x and -o x are the same"),
        (["--layers", "0-1", "--tokens", "0"], "'--tokens': 0 is not in the range x>=1"),
    ],
)
def test_refusals(
    options: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run_cli(["franken", str(STORIES), *options]) == UsageError.exit_code
    assert words in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_a_repeated_layer_is_stored_once_in_the_blob(
    tmp_path: Path, stories: Loaded, capsys: pytest.CaptureFixture[str]
) -> None:
    tools = [find_tool(name, dict(os.environ)) for name in ("cc", "make")]
    if not all(tool.usable for tool in tools):
        pytest.skip("no C compiler")
    sizes = {}
    for name, layers in (("repeated", (0, 1, 1, 2)), ("separate", (0, 1, 2, 3))):
        save_checkpoint(stories, Configuration(name, name, layers), tmp_path / name)
        out = tmp_path / f"{name}-compiled"
        command = ["compile", str(tmp_path / name), "-o", str(out), "--target", "host"]
        assert (
            run_cli([*command, "--bits", "4", "--group-size", "32", "--context", "64", "--json"])
            == 0
        )
        levels = [out / "blobs" / f"{level.name}.bin" for level in HOST.stored]
        # the remaining bytes: the tokenizer
        sizes[name] = sum(file.stat().st_size for file in levels)
        result = json.loads(capsys.readouterr().out)
        # the plan without weights has the bytes of the blobs
        tables = sum(table["bytes"] for table in result["tables"].values())
        assert abs(result["weight_bytes"] + tables - sizes[name]) < 16 * 20
    layer = 96 * (160 + 96 + 512 + 256) // 2
    assert sizes["separate"] - sizes["repeated"] > layer
    assert run_cli(["run", str(tmp_path / "repeated-compiled"), "--tokens", "12", "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)["verdict"]
    assert verdict["mismatched"] == 0 < verdict["compared"]
