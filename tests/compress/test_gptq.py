"""Stage gptq: settings, preflight, and GPTQModel in a child process on a small trained model."""

from __future__ import annotations

import filecmp
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.compress.quantising import COARSE, MIXED, STORIES, Recorder, loss, quantised, run_stage
from tests.compress.quantising import write_text as write_text_file

from shrinkc.checkpoints import libraries, load
from shrinkc.cli.main import run_cli
from shrinkc.compression.calibration import Calibration
from shrinkc.compression.facts import facts_of
from shrinkc.compression.stages import gptq, gptq_worker
from shrinkc.core.errors import BadRecipe, ExtraMissing, StageFailed
from shrinkc.importer import open_checkpoint
from shrinkc.importer.gptq import read_gptq
from shrinkc.importer.gptq_config import load_gptq_config

Settings = gptq.Settings


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"bits": 5}, "bits = 5"),
        ({"bits": True}, "bits = True"),
        ({"group_size": 48}, "group_size = 48"),
        ({"damp": 0.0}, "damp = 0.0"),
        ({"mse": -1}, "mse = -1.0; 0 to 8"),
        ({"mse": float("nan")}, "mse = nan"),
        ({"mse": True}, "mse = True"),
        ({"gptaq": 1.5}, "gptaq = 1.5; 0 to 1"),
        ({"gptaq": "alpha"}, "gptaq = 'alpha'"),
        ({"sym": 1}, "sym = 1"),
        ({"desc_act": True, "act_group_aware": True}, "act_group_aware"),
        ({"group_size": -1, "act_group_aware": True}, "act_group_aware"),
        ({"act_group_aware": True}, "act_group_aware = true needs gptaq = 0"),
        (
            {"modules": {"up_proj": {"bit": 8}}},
            "bit = 8: there is no such key (did you mean 'bits'?)",
        ),
        ({"modules": {"up_proj": {"bits": 6}}}, 'modules."up_proj".bits = 6'),
        ({"modules": {"up_proj": 8}}, 'modules."up_proj" = 8'),
        ({"modules": {"(": {"bits": 8}}}, "no regular expression"),
        ({"embeddings": {"bits": 5}}, "embeddings.bits = 5; 2, 3, 4, 8, 16 are allowed"),
        ({"embeddings": {"group_size": 12}}, "embeddings.group_size = 12"),
        ({"embeddings": {"width": 4}}, "embeddings.width = 4: there is no such key"),
        ({"embeddings": 4}, "embeddings = 4"),
        ({"group_size": (64, 48)}, "group_size = 48"),
        ({"group_size": ()}, "group_size is empty"),
        ({"group_size": (64, -1), "act_group_aware": True}, "act_group_aware"),
        ({"embeddings": {"bits": 4, "group_size": [64, 12]}}, "embeddings.group_size = 12"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRecipe) as refusal:
        Settings(**settings)
    assert said in refusal.value.message


def test_every_fault_is_named_at_once() -> None:
    with pytest.raises(BadRecipe) as refusal:
        Settings(bits=7, group_size=3, damp=2.0)
    assert all(
        word in refusal.value.message for word in ("bits = 7", "group_size = 3", "damp = 2.0")
    )


def test_the_first_override_that_matches_the_end_of_a_name_wins() -> None:
    settings = Settings(modules={"layers.1.mlp.up_proj": {"bits": 8}, "up_proj": {"bits": 2}})
    assert settings.of("model.layers.1.mlp.up_proj")["bits"] == 8
    assert settings.of("model.layers.11.mlp.up_proj")["bits"] == 2
    assert settings.of("model.layers.1.mlp.gate_proj")["bits"] == 4
    assert settings.of("model.layers.1.mlp.up_proj")["group_size"] == 128


def test_preflight_names_groups_that_divide() -> None:
    facts = facts_of(STORIES)  # 96 inputs, 256 of down_proj
    problems = gptq.preflight(
        Settings(group_size=64, embeddings={"bits": 4, "group_size": 64}), facts
    )
    assert [p for p in problems if "group_size = 64 does not divide the 96 inputs" in p]
    assert all("-1, 16, 32" in p for p in problems if "inputs of self_attn.q_proj" in p)
    assert not [p for p in problems if "down_proj" in p]
    assert [
        p for p in problems if p.startswith("embeddings.group_size = 64 does not divide the 96")
    ]
    assert gptq.preflight(Settings(group_size=32), facts) == []


def test_the_first_group_size_that_divides_is_taken_and_noted() -> None:
    facts = facts_of(STORIES)  # 96 inputs, 256 of down_proj
    given = Settings(group_size=(64, 32, 16), embeddings={"bits": 4, "group_size": [64, 48, 16]})
    resolved, notes = gptq.resolve(given, facts)
    assert resolved == replace(given, group_size=32, embeddings={"bits": 4, "group_size": 48})
    assert sorted(notes) == [
        "embeddings.group_size = 48, of 64, 48, 16 the first that divides 96 inputs",
        "group_size = 32, of 64, 32, 16 the first that divides 96 and 256 inputs",
    ]
    assert gptq.preflight(given, facts) == []
    assert gptq.predict(given, facts) == gptq.predict(resolved, facts)
    # no note for the first choice, nor for a module with its own group size
    for same in (
        Settings(group_size=32),
        Settings(group_size=(32, 16)),
        Settings(group_size=(-1, 16)),
    ):
        resolved, notes = gptq.resolve(same, facts)
        assert resolved.group_size in (32, -1) and notes == []
    own = {name: {"group_size": 32} for name in ("self_attn.*", "gate_proj", "up_proj")}
    resolved, notes = gptq.resolve(Settings(group_size=(64, 32), modules=own), facts)
    assert resolved.group_size == 64 and notes == []
    # none of them divides: the problem names the last one
    narrow = replace(facts, config=replace(facts.config, intermediate_size=200))
    (problem,) = gptq.preflight(Settings(group_size=(64, 32)), narrow)
    assert "group_size = 32 does not divide the 200 inputs of mlp.down_proj" in problem


def test_memory_of_gptaq_is_estimated() -> None:
    facts, text = facts_of(STORIES), Calibration(("self",), 16, 64)
    # q, k and v read the same, and so do gate and up: 96 inputs each, o 96, down 256
    assert gptq.memory(Settings(), facts, text) == 4 * 16 * 64 * (96 + 96 + 96 + 256)
    plain = Settings(gptaq=0)
    assert gptq.memory(plain, facts, text) == 0
    assert gptq.memory(Settings(method="autoround"), facts, text) == 0
    assert gptq.work(Settings(), facts, text).tokens > gptq.work(plain, facts, text).tokens


def test_preflight_of_a_pruned_model() -> None:
    facts = facts_of(STORIES)
    narrow = replace(facts, config=replace(facts.config, intermediate_size=200))
    problems = gptq.preflight(Settings(group_size=32), narrow)
    assert len(problems) == 1
    assert "200 inputs of mlp.down_proj" in problems[0]
    assert "every layer" in problems[0]
    odd = replace(facts, config=replace(facts.config, intermediate_size=208))
    problems = gptq.preflight(Settings(group_size=16, bits=3), odd)
    assert any("208 outputs of mlp.gate_proj at 3 bit" in p for p in problems)


def test_preflight_of_overrides_and_of_quantised_models() -> None:
    facts = facts_of(STORIES)
    settings = Settings(group_size=32, modules={"layers.7.mlp.up_proj": {"bits": 8}})
    (problem,) = gptq.preflight(settings, facts)
    assert "matches no matrix" in problem
    (problem,) = gptq.preflight(Settings(group_size=32), replace(facts, quantized=True))
    assert "quantised already" in problem


@pytest.mark.slow
@pytest.mark.libraries("gptqmodel", "torch")
def test_mixed_widths(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    out = quantised(tmp_path_factory, "mixed", MIXED)
    settings = Settings(**MIXED)
    weights, config = read_gptq(out), load_gptq_config(out)
    shapes = gptq.module_shapes(facts_of(STORIES).config)
    assert set(weights) == {*shapes, "model.embed_tokens"}
    for name, shape in shapes.items():
        wanted, weight, stated = settings.of(name), weights[name], config.format_of(name)
        assert weight.shape == shape
        assert weight.bits == wanted["bits"]
        assert weight.group == (shape[1] if wanted["group_size"] == -1 else wanted["group_size"])
        assert (weight.order is not None) == wanted["desc_act"]
        # the checkpoint's own rules
        assert stated is not None
        assert (stated.bits, stated.group_size, stated.sym) == (
            wanted["bits"], wanted["group_size"], wanted["sym"],
        )  # fmt: skip
    # symmetric only for the module that asks for it
    key = weights["model.layers.1.self_attn.k_proj"]
    assert np.array_equal(key.offset, -8 * key.scale)
    text = write_text_file(tmp_path)
    before, after = loss(STORIES, text), loss(out, text)
    assert abs(after - before) < 0.1 * before


@pytest.mark.slow
@pytest.mark.libraries("gptqmodel", "torch")
def test_sizes_are_predicted_to_the_byte(tmp_path_factory: pytest.TempPathFactory) -> None:
    for name, settings in (("mixed", MIXED), ("coarse", COARSE)):
        out = quantised(tmp_path_factory, name, settings)
        found = facts_of(out)
        predicted = gptq.predict(Settings(**settings), facts_of(STORIES))
        assert open_checkpoint(out).formats == gptq.formats(Settings(**settings), found.config)
        # about: headers of files are only small relative to a large model
        assert found.bytes_on_disk == pytest.approx(predicted.bytes_on_disk, rel=0.1)
        assert found.packed_bytes == predicted.packed_bytes
        assert found.bits == predicted.bits
        assert predicted.quantized


@pytest.mark.slow
@pytest.mark.libraries("gptqmodel", "torch")
def test_other_files_in_the_directory(tmp_path_factory: pytest.TempPathFactory) -> None:
    out = quantised(tmp_path_factory, "mixed", MIXED)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert filecmp.cmp(out / name, STORIES / name, shallow=False)
    config = json.loads((out / "config.json").read_text())
    quantization = config.pop("quantization_config")
    assert config.pop("dtype") == "float16"
    original = json.loads((STORIES / "config.json").read_text())
    original.pop("torch_dtype")
    assert config == original
    assert quantization["quant_method"] == "shrinkc"  # its embedding is quantised
    # with integers for the embedding, only shrinkc reads the directory
    names = {file.name for file in out.iterdir()}
    assert {"packed.safetensors", "embedding.safetensors"} <= names
    assert not names & {"model.safetensors", "quantize_config.json"}
    plain = quantised(tmp_path_factory, "coarse", COARSE)
    config = json.loads((plain / "config.json").read_text())
    stated = json.loads((plain / "quantize_config.json").read_text())
    assert config["quantization_config"] == stated and stated["quant_method"] == "gptq"


@pytest.mark.slow
@pytest.mark.libraries("gptqmodel", "torch")
@pytest.mark.parametrize("group", [-1, 16])
def test_group_sizes_that_the_4_bit_cpu_kernel_does_not_support(
    group: int, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    # the stage loads its result with from_pretrained and runs it
    out = quantised(tmp_path_factory, f"group{group}", {"bits": 4, "group_size": group})
    for name, weight in read_gptq(out).items():
        assert (weight.bits, weight.group) == (4, weight.shape[1] if group == -1 else group), name
    program = tmp_path / "program"
    assert run_cli(["compile", str(out), "-o", str(program)]) == 0
    assert run_cli(["run", str(program), "--prompt", "Once", "--tokens", "4"]) == 0


@pytest.mark.slow
@pytest.mark.libraries("gptqmodel", "torch")
@pytest.mark.usefixtures("real_children")
def test_same_bytes_from_a_child_process_and_progress(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """A child process writes the same bytes as this process."""
    first = quantised(tmp_path_factory, "coarse", COARSE)
    step, report = run_stage(tmp_path / "again", "gptq", STORIES, COARSE)
    names = sorted(p.name for p in first.iterdir())
    assert names == sorted(p.name for p in step.out.iterdir())
    assert filecmp.cmpfiles(first, step.out, names, shallow=False) == (names, [], [])
    assert report.parameters["calibration"] == {"samples": 16, "length": 64}
    assert isinstance(step.reporter, Recorder)
    assert step.reporter.heard[-1] == ("gptq", 5, 5)
    assert "Quantizing" in (step.log_dir / "gptq.log").read_text(errors="replace")


@pytest.mark.slow
@pytest.mark.libraries("gptqmodel", "torch")
@pytest.mark.usefixtures("real_children")
def test_an_error_names_the_log(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(STORIES, broken)
    with (broken / "model.safetensors").open("r+b") as file:
        file.truncate(500_000)
    with pytest.raises(StageFailed) as failure:
        run_stage(tmp_path / "failing", "gptq", broken, COARSE)
    log = tmp_path / "failing" / "logs" / "gptq.log"
    assert f"the last lines of {log}:" in failure.value.message
    assert failure.value.message.splitlines()[-1].strip() in log.read_text(errors="replace")


@pytest.mark.slow
@pytest.mark.libraries("gptqmodel", "torch")
def test_the_check_finds_a_weight_that_differs(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = quantised(tmp_path_factory, "mixed", MIXED)
    model = load(out).model
    monkeypatch.setattr(gptq_worker, "load_quantized", lambda directory: model)
    gptq_worker.check(out)
    model.model.layers[2].mlp.up_proj.weight.data[3, 5] += 0.01
    with pytest.raises(StageFailed, match=r"1 of 36 .*layers\.2\.mlp\.up_proj"):
        gptq_worker.check(out)


@pytest.mark.slow
@pytest.mark.libraries("gptqmodel", "torch")
@pytest.mark.parametrize(
    ("others", "alone"),
    [({"sym": False}, True), ({"desc_act": True}, False), ({"group_size": -1}, False)],
    ids=["zero points", "act-order", "rows"],
)
def test_mse_clipping_and_gptaq_lose_less_without_more_bytes(
    others: dict[str, Any],
    alone: bool,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
) -> None:
    """At 3 bit, where clipping helps most.  ``alone``: each of the two methods has an effect."""
    text, losses, sizes = write_text_file(tmp_path), {}, set()
    for mse, gptaq in ((0, 0), (2.4, 0.25), *(((2.4, 0), (0, 0.25)) if alone else ())):
        settings = {"bits": 3, "group_size": 32, "mse": mse, "gptaq": gptaq} | others
        out = quantised(tmp_path_factory, f"{mse}-{gptaq}-{'-'.join(others)}", settings)
        losses[mse, gptaq] = loss(out, text)
        sizes.add((out / "model.safetensors").stat().st_size)
    assert len(sizes) == 1 and len(set(losses.values())) == len(losses)
    assert losses[2.4, 0.25] < losses[0, 0]


def test_groups_are_ordered_unless_gptaq_is_used() -> None:
    """With GPTAQ there is no order of groups, in neither recipe nor checkpoint."""
    assert Settings(gptaq=0).group_aware and not Settings().group_aware
    assert not Settings(gptaq=0, group_size=-1).group_aware
    assert not Settings(gptaq=0, method="autoround").group_aware


TRAINED: dict[str, Any] = {
    "bits": 3, "group_size": 32, "sym": False, "method": "autoround", "iterations": 12,
    "embeddings": {"bits": 4, "group_size": 32},
    "modules": {"down_proj": {"bits": 4, "group_size": 64}, "layers.1.self_attn.k_proj": {"bits": 2, "sym": True}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "awq"}, "method = 'awq'; gptq, autoround are allowed"),
        ({"iterations": 0}, "iterations = 0"),
        ({"method": "autoround", "desc_act": True}, "has no order of inputs"),
        ({"method": "autoround", "act_group_aware": True}, "has no order of inputs"),
        ({"method": "autoround", "modules": {"up_proj": {"desc_act": True}}}, "no order of inputs"),
    ],
)
def test_settings_of_autoround(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRecipe) as refusal:
        Settings(**settings)
    assert said in refusal.value.message


def test_missing_autoround_is_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(libraries, "find_spec", lambda name: None if name == "auto_round" else name)
    facts = facts_of(STORIES)
    assert gptq.preflight(Settings(group_size=32), facts) == []
    with pytest.raises(ExtraMissing, match="auto_round is not installed"):
        gptq.preflight(Settings(group_size=32, method="autoround"), facts)


@pytest.mark.slow
@pytest.mark.libraries("gptqmodel", "auto_round", "torch")
def test_autoround(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """Formats and bytes are as planned, the result is closer to the model than GPTQ's, and it compiles and runs."""
    out = quantised(tmp_path_factory, "trained", TRAINED)
    settings, weights, config = Settings(**TRAINED), read_gptq(out), load_gptq_config(out)
    facts = facts_of(STORIES)
    shapes = gptq.module_shapes(facts.config)
    assert set(weights) == {*shapes, "model.embed_tokens"}
    for name, shape in shapes.items():
        wanted, weight, stated = settings.of(name), weights[name], config.format_of(name)
        assert (weight.shape, weight.bits, weight.group) == (
            shape,
            wanted["bits"],
            wanted["group_size"],
        )
        assert stated is not None
        assert (stated.bits, stated.group_size, stated.sym) == (
            wanted["bits"], wanted["group_size"], wanted["sym"],
        )  # fmt: skip
        assert weight.order is None and (weight.scale > 0).all()
    key = weights["model.layers.1.self_attn.k_proj"]
    assert np.array_equal(key.offset, -2 * key.scale)
    found = facts_of(out)
    assert found.packed_bytes == gptq.predict(settings, facts).packed_bytes
    assert found.bits == gptq.predict(settings, facts).bits
    plain = quantised(
        tmp_path_factory,
        "untrained",
        {k: v for k, v in TRAINED.items() if k not in ("method", "iterations")},
    )
    text = write_text_file(tmp_path)
    before, after, usual = loss(STORIES, text), loss(out, text), loss(plain, text)
    assert after - before < usual - before
    program = tmp_path / "program"
    assert run_cli(["compile", str(out), "-o", str(program)]) == 0
    assert run_cli(["run", str(program), "--prompt", "Once", "--tokens", "4"]) == 0


@pytest.mark.slow
@pytest.mark.libraries("gptqmodel", "auto_round", "torch")
@pytest.mark.usefixtures("real_children")
def test_per_channel_autoround_is_reproducible(tmp_path: Path) -> None:
    """Per-channel and symmetric: the same bytes again, and progress."""
    settings = {"bits": 4, "group_size": -1, "method": "autoround", "iterations": 4}
    both = [run_stage(tmp_path / name, "gptq", STORIES, settings) for name in "ab"]
    (first, report), (second, _) = both
    assert filecmp.cmp(
        first.out / "model.safetensors", second.out / "model.safetensors", shallow=False
    )
    assert filecmp.cmp(first.out / "config.json", second.out / "config.json", shallow=False)
    assert report.parameters["method"] == "autoround" and "damp" not in report.parameters
    heard = first.reporter.heard
    assert heard[-1] == ("gptq", 5, 5) and any(0 < done < 5 for _, done, _ in heard)
    for name, weight in read_gptq(first.out).items():
        assert np.array_equal(weight.offset, -8 * weight.scale), name
