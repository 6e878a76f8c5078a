"""Compression of small random models of every family."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny_families import write_family
from shrinkc.checkpoints import cached, load, save
from shrinkc.cli.main import run_cli
from shrinkc.compression import franken, writing
from shrinkc.compression.attention import use_products
from shrinkc.compression.blocks import block, embed, positions
from shrinkc.compression.calibration import Calibration
from shrinkc.compression.facts import facts_of
from shrinkc.compression.recipe import parse_recipe
from shrinkc.compression.run import compress
from shrinkc.compression.sensitivity import measure
from shrinkc.compression.stages import depth, eora, gptq, gptq_worker
from shrinkc.compression.stages.gptq import predict
from shrinkc.core.errors import BadRecipe
from shrinkc.core.progress import Silent
from shrinkc.importer import load_config

from .conftest import story_text

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

pytestmark = pytest.mark.slow

LOCAL, GLOBAL = "sliding_attention", "full_attention"
LENGTH = 32
IDS = torch.arange(3, 3 + 2 * LENGTH).view(2, LENGTH)
FEW = {"samples": 8, "length": LENGTH, "batch": 4}
# with windows shorter than the texts, heads of a size of their own, and biases wherever a family can have them
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-biases": ("llama", {"attention_bias": True}),
    "mistral": ("mistral", {"sliding_window": 12, "head_dim": 32}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3-biases": ("qwen3", {"head_dim": 16, "attention_bias": True}),
    "gemma3": (
        "gemma3_text",
        {"head_dim": 32, "sliding_window": 12, "query_pre_attn_scalar": 24, "tie_word_embeddings": True,
         "layer_types": [LOCAL, LOCAL, GLOBAL, LOCAL]},
    ),
}  # fmt: skip


def write(folder: Path, name: str, longest: int = 128) -> Path:
    family, config = FAMILIES[name]
    write_family(folder, family, num_hidden_layers=4, max_position_embeddings=longest, **config)
    return folder


@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_compute_what_the_model_computes(tmp_path: Path, name: str, products: bool) -> None:
    """RoPE, sliding windows and the scaled embedding, in a window longer than the sliding one."""
    model = load(write(tmp_path, name)).model
    ids = IDS
    with torch.no_grad():
        wanted = model(ids).logits
        if products:
            use_products(model)
        hidden, tables = embed(model, ids), positions(model, LENGTH)
        for layer in model.model.layers:
            hidden = block(layer, hidden, tables)
        found = model.lm_head(model.model.norm(hidden))
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(model(ids).logits, wanted, rtol=1e-3, atol=1e-3)


def run(source: Path, out: Path, tables: dict[str, Any]) -> list[Path]:
    """Run the recipe ``tables``; return the directories of its steps."""
    compress(str(source), out, parse_recipe(tables), reporter=Silent())
    return [out / step["name"] for step in json.loads((out / "run.json").read_text())["steps"][1:]]


def logits_of(path: Path, ids: Any = IDS) -> Any:
    with torch.no_grad():
        return load(path).model(ids).logits


def distance(found: Any, wanted: Any) -> float:
    return float((found - wanted).norm() / wanted.norm())


def loss_of(model: Any, windows: Any) -> float:
    """Return the mean loss in nats per token, as transformers computes it."""
    with torch.no_grad():
        return float(model(windows, labels=windows).loss)


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    text = tmp_path_factory.mktemp("text") / "stories.txt"
    text.write_text(story_text(0, 40))
    return {"text": [str(text)], "samples": 8, "length": LENGTH}


@pytest.mark.libraries("gptqmodel", "torch")
@pytest.mark.parametrize("name", FAMILIES)
def test_a_recipe_makes_a_program(tmp_path: Path, name: str, calibration: dict[str, Any]) -> None:
    source = write(tmp_path / "m", name)
    tables = {
        "calibration": calibration,
        "depth": {"layers": [1]},
        "width": {"ffn_keep": 64, "kv_groups": 1},
        "lora": {**FEW, "rank": 4, "targets": ["all"], "train_norms": True},
        "gptq": {"group_size": 32, "embeddings": {"bits": 4, "group_size": 32}},
    }
    *_, last = run(source, tmp_path / "o", tables)
    before, config = load_config(source), load_config(last)
    wanted = replace(before, num_layers=3, intermediate_size=64, num_heads=2, num_kv_heads=1)
    if name == "gemma3":  # layer 1 of local, local, global, local is removed
        assert before.global_layers == (2,)
        wanted = replace(wanted, global_layers=(1,))
    assert config == wanted
    found = facts_of(last)
    assert (
        found.packed_bytes == predict(parse_recipe(tables).stages[-1].settings, found).packed_bytes
    )
    out = str(tmp_path / "program")
    assert run_cli(["compile", str(last), "-o", out, "--context", "24", "-q"]) == 0
    assert (
        run_cli(["run", out, "--on", "host", "--prompt", "Once upon", "--tokens", "4", "-q"]) == 0
    )


@pytest.mark.libraries("gptqmodel", "torch")
@pytest.mark.parametrize("name", ["qwen3-biases", "gemma3"])
def test_a_budget(tmp_path: Path, name: str, calibration: dict[str, Any]) -> None:
    """It counts the bytes of all norms and biases."""
    tables = {
        "calibration": calibration,
        "budget": {"target_bytes": "70KiB"},
    }
    *_, last = run(write(tmp_path / "m", name), tmp_path / "o", tables)
    report = json.loads((tmp_path / "o" / "budget.json").read_text())["report"]
    assert facts_of(last).packed_bytes == report["packed_bytes"] <= 70 << 10


@pytest.mark.parametrize("name", FAMILIES)
def test_rotation_and_scaling_change_no_result(
    tmp_path: Path, name: str, calibration: dict[str, Any]
) -> None:
    source = write(tmp_path / "m", name)
    wanted = logits_of(source)
    tables = {"calibration": calibration, "rotate": {}, "awq": {"group_size": 32}}
    if name == "gemma3":
        with pytest.raises(
            BadRecipe, match=r"\[rotate\] family gemma3_text .* norms after attention"
        ):
            run(source, tmp_path / "o", tables)
        assert not (tmp_path / "o").exists()
        del tables["rotate"]
    for step in run(source, tmp_path / "o", tables):
        assert distance(logits_of(step), wanted) < 1e-4
        found, before = (load(p).model.state_dict() for p in (step, source))
        assert any(not torch.equal(found[n], before[n]) for n in found if n != "lm_head.weight")


def test_scaling_of_norms_that_are_stored_as_differences(
    tmp_path: Path, calibration: dict[str, Any]
) -> None:
    """Gemma's norms store w - 1: in bfloat16, a small factor would lose its digits."""
    source = write(tmp_path / "m", "gemma3")
    loaded = load(source)
    with torch.no_grad():
        for layer in loaded.model.model.layers:
            norm = layer.input_layernorm.weight
            norm.copy_(torch.logspace(-2, 1, len(norm)) - 1)
    save(loaded.model.to(torch.bfloat16), loaded.tokenizer, tmp_path / "low")
    wanted = logits_of(tmp_path / "low")
    tables = {"calibration": calibration, "awq": {"group_size": 32}}
    (step,) = run(tmp_path / "low", tmp_path / "o", tables)
    assert distance(logits_of(step), wanted) < 0.02


@pytest.mark.libraries("gptqmodel", "torch")
@pytest.mark.parametrize("name", FAMILIES)
def test_stages_of_quantised_models(tmp_path: Path, name: str, calibration: dict[str, Any]) -> None:
    """They start from the integers of GPTQ, with biases, the scaled embedding, and every norm: steps that hardly
    change anything leave the results."""
    still = {**FEW, "dtype": "float32", "learning_rate": 1e-8}
    source = write(tmp_path / "m", name)
    tables = {
        "calibration": calibration,
        "gptq": {"bits": 8, "group_size": 32, "embeddings": {"bits": 8, "group_size": 32}},
        "reconstruct": {**still, "weight_rate": 0.0},
        "finetune_scales": {**still, "distill": 1.0},
        "qat": {**still, "weight_rate": 0.0},
        "eora": {"rank": 4},
    }
    steps = run(source, tmp_path / "o", tables)
    wanted = logits_of(source)
    quantised = logits_of(steps[0])
    assert distance(quantised, wanted) < 0.05
    for step in steps[1:4]:
        assert distance(logits_of(step), quantised) < 1e-3
    assert distance(logits_of(steps[4]), wanted) < 0.05
    reconstruct, scales, qat = (
        json.loads((s / "step.json").read_text())["parameters"] for s in steps[1:4]
    )
    assert all(block["before"] < 1e-3 for block in reconstruct["blocks"])
    for found in (scales, qat):
        assert abs(found["loss_curve"][0][1]) < 0.01


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_the_vocabulary(tmp_path: Path, name: str, calibration: dict[str, Any]) -> None:
    source = write(tmp_path / "m", name)
    tables = {
        "calibration": calibration, "vocabulary": {"keep": 272, "samples": 2, "length": LENGTH},
    }  # fmt: skip
    (step,) = run(source, tmp_path / "o", tables)
    kept = json.loads((step / "kept_tokens.json").read_text())
    ids = torch.arange(8)[None]
    wanted = logits_of(source, torch.tensor(kept)[ids])[..., kept]
    torch.testing.assert_close(logits_of(step, ids), wanted)


def nearest(given: list[Any], wanted: Any) -> float:
    """Return the least distance of any row of the tensors ``given`` from ``wanted`` [t, hidden]."""
    return min(distance(row, wanted) for tensor in given for row in tensor)


@pytest.mark.libraries("gptqmodel", "torch")
@pytest.mark.parametrize("last", ["gptq", "autoround", "eora"])
def test_local_and_global_layers_see_their_own_positions(
    tmp_path: Path, calibration: dict[str, Any], monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    """GPTQModel and AutoRound run layers one by one; attention has to give what it gives in the model."""
    if last == "autoround":
        pytest.importorskip("auto_round")
    source = write(tmp_path / "m", "gemma3")
    seen: dict[int, list[Any]] = {}

    def watch(model: Any) -> None:
        give(model)
        for index, layer in enumerate(model.model.layers):
            layer.self_attn.register_forward_hook(
                lambda module, given, made, index=index: seen.setdefault(index, []).append(
                    made[0].detach().float().clone()
                )
            )

    give = gptq_worker.give_own_positions
    monkeypatch.setattr(gptq_worker, "give_own_positions", watch)
    settings: dict[str, Any] = {"bits": 8, "group_size": 32}
    tables: dict[str, Any] = {"calibration": calibration, "gptq": settings}
    if last == "autoround":
        settings |= {"method": "autoround", "iterations": 1}
    elif last == "eora":
        tables["eora"] = {"rank": 2}
        run_worker = gptq.run_worker
        monkeypatch.setattr(
            eora, "run_worker", lambda *given: (seen.clear(), run_worker(*given))[1]
        )
    run(source, tmp_path / "o", tables)
    loaded = load(source)
    window = Calibration(**calibration).windows(loaded.tokenizer)[:1]
    wanted: dict[int, Any] = {}
    for index, layer in enumerate(loaded.model.model.layers):
        layer.self_attn.register_forward_hook(
            lambda module, given, made, index=index: wanted.update({index: made[0][0]})
        )
    with torch.no_grad():
        loaded.model(window)
    assert seen.keys() == wanted.keys() == {0, 1, 2, 3}
    for index, attention in wanted.items():
        assert nearest(seen[index], attention) < 0.05  # one of them runs in bfloat16


@pytest.mark.parametrize("name", FAMILIES)
def test_losses_without_a_layer(tmp_path: Path, name: str, calibration: dict[str, Any]) -> None:
    """As ``depth`` and ``sensitivity`` compute them, and as transformers does without that layer."""
    source = write(tmp_path / "m", name)
    loaded = load(source)
    windows = Calibration(**calibration).windows(loaded.tokenizer)
    quiet = lambda done, total: None  # noqa: E731
    found = depth.removal_losses(loaded.model, windows, [0, 1, 2, 3], tmp_path / "state", quiet)
    few = windows[:2]
    costs = measure(loaded.model, few, windows[2:4], tmp_path / "probes", Silent())
    assert costs.baseline == pytest.approx(loss_of(loaded.model, few), abs=1e-4)
    for at, loss in found.items():
        model = load(source).model
        depth.keep_layers(model, [i for i in range(4) if i != at])
        assert loss == pytest.approx(loss_of(model, windows), abs=1e-4)
        removed = costs.loss.layers[at].removed
        assert removed == pytest.approx(loss_of(model, few) - costs.baseline, abs=2e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_in_another_order(tmp_path: Path, name: str) -> None:
    """A franken model's layers keep their kinds, with a KV cache and on disk."""
    source = write(tmp_path / "m", name)
    loaded = load(source)
    order = (0, 2, 1, 3, 3)
    model = franken.assemble(loaded.model, order)
    with torch.no_grad():
        hidden, tables = embed(loaded.model, IDS), positions(loaded.model, LENGTH)
        for at in order:
            hidden = block(loaded.model.model.layers[at], hidden, tables)
        wanted = loaded.model.lm_head(loaded.model.model.norm(hidden))
        torch.testing.assert_close(model(IDS).logits, wanted, rtol=1e-3, atol=1e-3)
        prompt = IDS[0, :4].tolist()
        text = franken.generate(model, prompt, 20, exact=True)
        again = model(torch.tensor([[*prompt, *text]])).logits[0, 3:-1]
        best = again.max(-1).values - again.gather(1, torch.tensor(text)[:, None])[:, 0]
        assert float(best[:1].max()) < 1e-3 and float((best < 1e-3).float().mean()) > 0.9
    franken.save_checkpoint(
        loaded, franken.Configuration("f", "0,2,1,3x2", order), tmp_path / "saved"
    )
    torch.testing.assert_close(logits_of(tmp_path / "saved"), wanted, rtol=1e-3, atol=1e-3)
    if name == "gemma3":
        assert load_config(tmp_path / "saved").global_layers == (1,)


def test_text_of_a_model_with_a_window(tmp_path: Path) -> None:
    """Self-generated text uses a KV cache: each token is chosen as without one."""
    loaded = load(write(tmp_path / "m", "gemma3"))
    use_products(loaded.model)
    cache = writing._cache(loaded.model, LENGTH)
    ids = IDS[:1]
    kept = cached(loaded.model.model, cache)
    with torch.no_grad():
        parts = [
            loaded.model.model(input_ids=part, use_cache=True, **kept).last_hidden_state
            for part in (ids[:, :5], *ids[:, 5:].split(1, 1))
        ]
        whole = loaded.model.model(ids).last_hidden_state
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["qwen2", "gemma3"])
def test_a_search(tmp_path: Path, name: str, calibration: dict[str, Any]) -> None:
    pytest.importorskip("optuna")
    (text,) = calibration["text"]
    (tmp_path / "recipe.toml").write_text(
        f"""
[calibration]
text = "{text}"
samples = 2
length = 32
[evaluate]
text = "{text}"
windows = 1
[depth]
method = "magnitude"
remove = 1
protect_first = 1
protect_last = 1
[width]
ffn_keep = 64
[explore]
width.ffn_keep = [32, 64]
"""
    )
    source, out = write(tmp_path / "m", name, 512), tmp_path / "out"
    options = ["--recipe", str(tmp_path / "recipe.toml"), "-o", str(out), "--trials", "2"]
    assert run_cli(["explore", str(source), *options]) == 0
    trials = json.loads((out / "front.json").read_text())["trials"]
    assert [t["state"] for t in trials] == ["complete", "complete"]
