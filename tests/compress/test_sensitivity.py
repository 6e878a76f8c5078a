"""Sensitivities: compared with full forward passes, resumed, and with the command."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.compress.quantising import Recorder, write_text
from tests.helpers.tiny_llama import write_tiny_llama

from shrinkc.checkpoints import load
from shrinkc.cli.main import run_cli
from shrinkc.compression.embedding import quantize_embeddings
from shrinkc.compression.gptq import Weighting, damped, quantize_matrix
from shrinkc.compression.sensitivity import DAMP, MODULES, NARROW, WIDTHS, Sensitivity, measure
from shrinkc.compression.sensitivity_output import table
from shrinkc.compression.stages.depth import keep_layers
from shrinkc.core.errors import RunChanged

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Three layers, two KV heads; weights large enough for every change to have an effect."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_llama(folder, hidden=32, intermediate=64, layers=3, heads=4, kv_heads=2, seed=3)
    return load(folder).model


WINDOWS = torch.randint(3, 100, (2, 24), generator=torch.Generator().manual_seed(0))
FIT = torch.randint(3, 100, (5, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def found(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Sensitivity:
    state = tmp_path_factory.mktemp("state") / "probes.jsonl"
    before = copy.deepcopy(tiny.state_dict())
    result = measure(tiny, WINDOWS, FIT, state, Recorder())
    after = tiny.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    return result


def predictions(model: Any) -> Any:
    with torch.no_grad():
        return torch.log_softmax(model(WINDOWS).logits[:, :-1].float(), -1)


def costs(whole: Any, changed: Any) -> tuple[float, float]:
    """Return increase in loss and divergence, from full forward passes of the model."""
    p, q = predictions(whole), predictions(changed)
    wanted = WINDOWS[:, 1:, None]
    growth = (p.gather(2, wanted) - q.gather(2, wanted)).mean()
    return float(growth), float((p.exp() * (p - q)).sum(-1).mean())


def test_baseline(tiny: Any, found: Sensitivity) -> None:
    with torch.no_grad():
        assert found.baseline == pytest.approx(float(tiny(WINDOWS, labels=WINDOWS).loss), rel=1e-5)
    assert found.tokens == 2 * 23
    assert found.group_size == 32


def test_standard_errors(tiny: Any, found: Sensitivity, tmp_path: Path) -> None:
    """Of two windows: half of the difference of their means.  Of one window there is none."""
    changed = copy.deepcopy(tiny)
    keep_layers(changed, [0, 2])
    p, q = predictions(tiny), predictions(changed)
    growth = (p - q).gather(2, WINDOWS[:, 1:, None]).mean((1, 2))
    kl = (p.exp() * (p - q)).sum(-1).mean(1)
    assert found.loss_error is not None and found.kl_error is not None
    wanted = abs(float(growth[0] - growth[1])) / 2
    assert found.loss_error.layers[1].removed == pytest.approx(wanted, abs=1e-5)
    wanted = abs(float(kl[0] - kl[1])) / 2
    assert found.kl_error.layers[1].removed == pytest.approx(wanted, abs=1e-5) and wanted > 1e-4
    lines = table(found)
    assert f"{found.loss_error.layers[1].removed:.1g}" == lines[3].split()[3]
    one = measure(tiny, WINDOWS[:1], FIT, tmp_path / "probes.jsonl", Recorder())
    assert one.loss_error is None and "±" not in "".join(table(one)[1:])


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_removal(tiny: Any, found: Sensitivity, layer: int) -> None:
    changed = copy.deepcopy(tiny)
    keep_layers(changed, [i for i in range(3) if i != layer])
    growth, kl = costs(tiny, changed)
    assert found.loss.layers[layer].removed == pytest.approx(growth, abs=1e-5)
    assert found.kl.layers[layer].removed == pytest.approx(kl, abs=1e-5)
    assert kl > 1e-3


@pytest.mark.parametrize("module", ["mlp.down_proj", "self_attn.k_proj"])
def test_one_matrix_quantised(tiny: Any, found: Sensitivity, module: str) -> None:
    inputs: list[Any] = []
    target = tiny.model.layers[1].get_submodule(module)
    handle = target.register_forward_pre_hook(lambda _, x: inputs.append(x[0].flatten(0, 1)))
    with torch.no_grad():
        # errors of down_proj are relative to the stream after the layer
        stream = tiny(FIT, output_hidden_states=True).hidden_states[2].flatten(0, 1).double()
    handle.remove()
    x = torch.cat(inputs).double()
    if module == "mlp.down_proj":
        weights = 1 / stream.square().mean(1)
        x = x * (weights / weights.mean()).sqrt()[:, None]
    weighting = Weighting.of(damped(x.T @ x / len(x), DAMP))
    for bits in (2, 4):
        changed = copy.deepcopy(tiny)
        weight = changed.model.layers[1].get_submodule(module).weight
        quantised = quantize_matrix(weight.detach(), weighting, bits=bits, group_size=32)
        weight.data = torch.from_numpy(quantised.dequantized())
        growth, kl = costs(tiny, changed)
        assert found.kl.layers[1].modules[module][bits] == pytest.approx(kl, rel=0.05, abs=1e-6)
        assert found.loss.layers[1].modules[module][bits] == pytest.approx(
            growth, rel=0.05, abs=1e-4
        )


def test_fewer_bits_and_channels_cost_more(found: Sensitivity) -> None:
    for layer in found.kl.layers:
        for by_width in (layer.bits, *layer.modules.values()):
            assert by_width[8] < by_width[4] < by_width[2]
        assert layer.bits[2] > max(m[2] for m in layer.modules.values())
        assert 0 < layer.ffn[0.125] < layer.ffn[0.5]
        assert layer.kv_group is not None
        assert layer.kv_group > 0
    assert found.kl.embedding[8] < found.kl.embedding[4] < found.kl.embedding[2]
    assert set(found.kl.layers[0].modules) == set(MODULES)


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_are_quantised_as_in_the_stage_gptq(tied: bool, tmp_path: Path) -> None:
    """The embedding, together with a separate LM head."""
    write_tiny_llama(tmp_path / "m", hidden=32, intermediate=64, layers=2, seed=5, tied=tied)
    model = load(tmp_path / "m").model
    result = measure(model, WINDOWS, FIT, tmp_path / "probes.jsonl", Recorder())
    for bits in (2, 3, 4, 8):
        changed = copy.deepcopy(model)
        tables = quantize_embeddings(model, FIT, bits=bits, group_size=result.group_size)
        assert len(tables) == (1 if tied else 2)
        places = (changed.get_input_embeddings(), changed.get_output_embeddings())
        for place, small in zip(places, tables.values(), strict=False):
            place.weight.data.copy_(torch.from_numpy(small.dequantized()))
        assert costs(model, changed)[1] == pytest.approx(result.kl.embedding[bits], rel=0.02)


def test_the_only_kv_head_cannot_be_removed(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "m", layers=1, kv_heads=1)
    model = load(tmp_path / "m").model
    result = measure(model, WINDOWS, FIT, tmp_path / "probes.jsonl", Recorder())
    assert result.loss.layers[0].kv_group is None


class Stopping(Recorder):
    """Interrupts when the second layer is done."""

    def stage(self, title: str) -> Any:
        context = super().stage(title)

        def update(done: int, total: int) -> None:
            self.heard.append((title, done, total))
            if len({heard[1] for heard in self.heard}) == 3:  # none, one layer, two
                raise KeyboardInterrupt

        class Wrapped:
            def __enter__(self) -> Any:
                context.__enter__()
                return update

            def __exit__(self, *error: Any) -> None:
                context.__exit__(*error)

        return Wrapped()


def test_an_interrupted_measurement_goes_on(tiny: Any, found: Sensitivity, tmp_path: Path) -> None:
    state = tmp_path / "probes.jsonl"
    with pytest.raises(KeyboardInterrupt):
        measure(tiny, WINDOWS, FIT, state, Stopping())
    finished = state.read_text().splitlines()
    per_layer = len(WIDTHS) * (len(MODULES) + 1) + len(NARROW) + 2
    assert len(finished) == 2 + 2 * per_layer
    assert measure(tiny, WINDOWS, FIT, state, Recorder()) == found
    lines = state.read_text().splitlines()
    assert lines[: len(finished)] == finished
    assert len(lines) == 2 + 3 * per_layer + 1 + len(WIDTHS)


def test_another_model_or_text_is_refused(tiny: Any, tmp_path: Path) -> None:
    state = tmp_path / "probes.jsonl"
    with pytest.raises(KeyboardInterrupt):
        measure(tiny, WINDOWS, FIT, state, Stopping())
    with pytest.raises(RunChanged, match="text has other content"):
        measure(tiny, WINDOWS + 1, FIT, state, Recorder())
    changed = copy.deepcopy(tiny)
    changed.model.norm.weight.data[0] += 0.5
    with pytest.raises(RunChanged, match="belongs to another run: model has other content"):
        measure(changed, WINDOWS, FIT, state, Recorder())


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, model = write_text(tmp_path), tmp_path / "m"
    write_tiny_llama(model, layers=2, kv_heads=2, intermediate=16)
    base = [
        "sensitivity", str(model), "--text", text, "--samples", "2", "--length", "16",
        "--dtype", "float32",
    ]  # fmt: skip
    assert run_cli([*base, "-o", str(tmp_path / "a")]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("baseline ")
    assert shown[2].split()[0] == "0"
    assert "embedding" in [line.split()[0] for line in shown if line]
    assert run_cli([*base, "-o", str(tmp_path / "b"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["format"] == "shrinkc-sensitivity"
    assert result["text"] == ["text.txt"]
    assert len(result["loss"]["layers"]) == 2
    names = {"sensitivity.json", "sensitivity.svg", "probes.jsonl"}
    for folder in ("a", "b"):
        assert {p.name for p in (tmp_path / folder).iterdir()} == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    # again: nothing is measured again
    assert run_cli([*base, "-o", str(tmp_path / "a"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == result


def test_other_options_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, model, out = write_text(tmp_path), tmp_path / "m", str(tmp_path / "out")
    write_tiny_llama(model, layers=1)
    command = ["sensitivity", str(model), "--text", text, "--length", "16", "-o", out]
    assert run_cli([*command, "--samples", "2"]) == 0
    assert run_cli([*command, "--samples", "3"]) == RunChanged.exit_code
    said = " ".join(capsys.readouterr().err.split())
    assert "belongs to another run: samples: 2 → 3; measured text has other content" in said


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--samples", "0"], 2, "'--samples': 0 is not in the range x>=1"),
        (["--samples", "9999"], 17, "the text has"),
        (["-o", "{model}"], 40, "not empty and was not created by shrinkc"),
    ],
)
def test_refusals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, said: str
) -> None:
    text, model = write_text(tmp_path), tmp_path / "m"
    write_tiny_llama(model, layers=1)
    filled = [option.format(model=model) for option in options]
    assert run_cli(["sensitivity", str(model), "--text", text, *filled]) == code
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_missing_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = write_text(tmp_path)
    assert run_cli(["sensitivity", str(tmp_path / "none"), "--text", text]) == 10
    assert run_cli(
        ["sensitivity", str(tmp_path / "none"), "--text", text, "-o", str(tmp_path / "o")]
    )
    assert not (tmp_path / "o").exists()


def test_a_full_disk(
    tmp_path: Path, small_disk: Callable[[int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Before, during and after the measurement, the error names the place, and no result is lost."""
    text, model, disk = write_text(tmp_path), tmp_path / "m", small_disk(36)
    write_tiny_llama(model, layers=2)
    out, much = disk / "deep" / "out", disk / "much"
    command = [
        "sensitivity", str(model), "--text", text, "--length", "16", "--samples", "2",
        "-o", str(out),
    ]  # fmt: skip

    def refused() -> tuple[str, str]:
        assert run_cli(command) == 40
        streams = capsys.readouterr()
        return streams.out, " ".join(streams.err.split())

    much.write_bytes(bytes(36864))
    shown, said = refused()
    assert f"{out} cannot be written: No space left" in said and shown == ""
    assert [p.name for p in disk.iterdir()] == ["much"]
    much.write_bytes(bytes(8192))
    shown, said = refused()  # the probes fit, the picture does not
    assert f"{out / 'sensitivity.svg'} cannot be written: No space left" in said
    assert shown.startswith("baseline ")
    assert {p.name for p in out.iterdir()} == {"probes.jsonl", "sensitivity.json"}
    for file in out.iterdir():
        file.unlink()
    much.write_bytes(bytes(32768))
    shown, said = refused()  # one block of the disk, and the probes need more
    assert f"{out / 'probes.jsonl'} cannot be written: No space left" in said and shown == ""
    assert [p.name for p in out.iterdir()] == ["probes.jsonl"]
