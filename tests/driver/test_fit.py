"""``--fit``: widths that fit with the least loss, compared with uniform widths, and what stays as it is."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import LLAMA_1B
from tests.compress.quantising import STORIES, write_text

import shrinkc
from helpers.float_reference import forward
from helpers.shared_data import find_shared_data
from helpers.tiny_gptq import tiny_gptq
from helpers.tiny_llama import write_tiny_llama
from shrinkc.compression.knapsack import nothing_printed
from shrinkc.compression.sensitivity import MODULES, WIDTHS
from shrinkc.compression.width_costs import costs_by_kind, measured_costs
from shrinkc.core.artifact import read_manifest
from shrinkc.core.errors import BadData, ExtraMissing, QuantizeError, UsageError
from shrinkc.driver.planned import Planned
from shrinkc.driver.widths import ChosenWidths
from shrinkc.evaluation.divergence import compare_logits
from shrinkc.importer import FloatModel, load_config, load_model
from shrinkc.ir.interpreter import Interpreter
from shrinkc.ir.serialize import load
from shrinkc.memory.plan import Plan
from shrinkc.quantize import MatrixFormat, lower
from shrinkc.schedule.shapes import shapes_of_graph
from shrinkc.storage import Offsets
from shrinkc.targets import KIB, MAPPED, MIB

BOARD: dict[str, Any] = {"target": "rv32", "ram": 300 * KIB}
UNIFORM = [
    (bits, group, asymmetric)
    for bits in (2, 3, 4, 5, 6)
    for group in (None, 32, 16)
    for asymmetric in (False, True)
    if group or not asymmetric
]


def planned(model: Path, **options: Any) -> Planned:
    found = shrinkc.plan(model, **options)
    assert isinstance(found, Planned)
    return found


def widths_of(plan: Planned) -> ChosenWidths:
    assert plan.widths is not None
    return plan.widths


def uniform(bits: int, group: int | None, asymmetric: bool) -> Planned:
    return planned(
        STORIES, **BOARD, flash=MIB, bits=bits, embedding_bits=bits, group_size=group,
        asymmetric=asymmetric,
    )  # fmt: skip


def used(plan: Plan) -> int:
    return plan.used[MAPPED]


class Divergence:
    """KL divergence of the integer model of a plan from the float model on a text, in nats per token."""

    def __init__(self, text: str, windows: int, length: int) -> None:
        self.model: FloatModel = load_model(STORIES)
        ids = self.model.tokenizer.encode(text)
        assert len(ids) >= windows * length
        self.windows = [ids[i * length : (i + 1) * length] for i in range(windows)]
        self.base = [forward(self.model, ids, np.float64)[:-1] for ids in self.windows]

    def of(self, plan: Planned) -> float:
        graph = lower(self.model, plan.quant, plan.context, None, plan.choices)
        found = []
        for ids, base in zip(self.windows, self.base, strict=True):
            logits = Interpreter(graph).forward(np.array(ids), all_logits=True)[:-1]
            scaled = logits * 2.0 ** -graph.types["logits"].frac
            found.append(compare_logits(iter([scaled]), iter([base]), ids[1:]).divergence)
        return float(np.mean(np.concatenate(found)))


# ---- quality ----


@pytest.mark.parametrize(("bits", "group", "asymmetric"), [(3, 32, True), (4, 16, False)])
def test_fit_beats_a_uniform_width_at_equal_bytes(
    bits: int, group: int | None, asymmetric: bool, tmp_path: Path
) -> None:
    """The flash is what the uniform width needs, to the byte."""
    text = Path(write_text(tmp_path)).read_text(encoding="utf-8")
    divergence = Divergence(text, windows=2, length=200)
    same = uniform(bits, group, asymmetric)
    fitted = planned(STORIES, **BOARD, flash=used(same.plan), fit=True)
    assert used(fitted.plan) <= used(same.plan)
    assert len({m.bits for m in widths_of(fitted).matrices}) > 1
    assert divergence.of(fitted) < 0.9 * divergence.of(same)


@pytest.mark.slow
def test_fit_beats_every_uniform_width_that_fits_as_well() -> None:
    """On validation text of TinyStories, with as many bytes as each uniform width takes."""
    data = find_shared_data()
    if data is None:
        pytest.skip("no test data: set SHRINKC_DATA or provide ../shared/data")
    text = (data / "tinystories/tinystories_val.txt").read_text(encoding="utf-8")
    divergence = Divergence(text[:40000], windows=4, length=250)
    others = [(used(p.plan), divergence.of(p)) for p in (uniform(*format_) for format_ in UNIFORM)]
    ratios = []
    for flash, _ in others:
        fitted = planned(STORIES, **BOARD, flash=flash, fit=True)
        assert used(fitted.plan) <= flash
        best = min(other for size, other in others if size <= flash)
        ratios.append(divergence.of(fitted) / best)
    # at 2 bit per channel there is nothing to choose
    assert max(ratios) < 1.03
    assert np.exp(np.mean(np.log(ratios))) < 0.8


def test_more_flash_costs_less() -> None:
    costs = [
        widths_of(planned(STORIES, **BOARD, flash=size * KIB, fit=True)).cost
        for size in (230, 300, 400, 500, 620)
    ]
    assert costs == sorted(costs, reverse=True) and costs[0] > 100 * costs[-1]


def test_what_fits_at_8_bit_stays_at_8_bit() -> None:
    fitted, plain = planned(STORIES, fit=True), planned(STORIES)
    assert fitted.shape == plain.shape and fitted.plan == plain.plan
    assert fitted.choices == plain.choices


# ---- what is compiled ----


def test_the_compiled_program_has_the_widths_that_the_plan_says(tmp_path: Path) -> None:
    write_tiny_llama(
        tmp_path / "m", hidden=64, intermediate=96, layers=3, heads=4, kv_heads=2, tied=False
    )
    least = planned(tmp_path / "m", bits=2, embedding_bits=2, **BOARD, flash=MIB)
    options = {**BOARD, "flash": used(least.plan) + 8000, "fit": True}
    plan = planned(tmp_path / "m", **options)
    made = shrinkc.compile(tmp_path / "m", tmp_path / "out", **options)
    assert made.prepared.widths == plan.widths and made.prepared.plan == plan.plan
    widths = widths_of(plan)
    manifest = read_manifest(tmp_path / "out")
    assert manifest.widths == {m.name: m.width for m in widths.matrices}
    assert "--fit" in manifest.command and "--bits" not in manifest.command
    shape = shapes_of_graph(load(tmp_path / "out" / "ir.safetensors"), plan.shape.piece_bytes)
    stored = {m.name: m for m in shape.matrices}
    assert stored.keys() == {m.name for m in widths.matrices} and "embedding" in stored
    for m in widths.matrices:
        assert (m.bits, m.bytes) == (stored[m.name].bits, -(-stored[m.name].bytes // 16) * 16)
        assert m.asymmetric == stored[m.name].asymmetric
        if m.group_size:
            assert m.group_size == stored[m.name].group
    assert shrinkc.run(tmp_path / "out", prompt_ids=[1, 2, 3], tokens=4).verdict.ok


# ---- what stays ----


def test_options_that_are_given_stay() -> None:
    board: dict[str, Any] = {**BOARD, "flash": 420 * KIB, "fit": True}
    by_name = {m.name: m for m in widths_of(planned(STORIES, **board, embedding_bits=8)).matrices}
    assert by_name["head"].bits == 8
    assert {m.bits for name, m in by_name.items() if name != "head"} != {8}
    wide = widths_of(planned(STORIES, **board, bits=5)).matrices
    assert {m.bits for m in wide if m.name != "head"} == {5}
    grouped = widths_of(planned(STORIES, **board, group_size=32)).matrices
    assert {m.group_size for m in grouped if m.name != "head"} == {32}
    zeros = widths_of(planned(STORIES, **board, asymmetric=True)).matrices
    assert {m.asymmetric for m in zeros if m.name != "head"} == {True}


def test_integers_of_a_checkpoint_stay(tmp_path: Path) -> None:
    tiny_gptq(tmp_path / "q", group=32, bits=4)
    whole = planned(tmp_path / "q", **BOARD, flash=MIB)
    board = {**BOARD, "flash": used(whole.plan) - 1000}
    assert not shrinkc.plan(tmp_path / "q", **board).fits
    fitted = planned(tmp_path / "q", **board, fit=True)
    assert [m.name for m in widths_of(fitted).matrices] == ["head"]
    assert {m.bits for m in fitted.shape.matrices if m.name != "head"} == {4}
    short = shrinkc.plan(tmp_path / "q", **{**board, "flash": 80 * KIB}, fit=True)
    assert isinstance(short, shrinkc.Shortfall)
    assert not any("bits" in change for change in short.alternatives)


def test_nothing_to_choose_is_refused(tmp_path: Path) -> None:
    tiny_gptq(tmp_path / "q", group=32, embedding_bits=4)
    with pytest.raises(QuantizeError, match="--fit can choose nothing: all matrices are quantised"):
        shrinkc.plan(tmp_path / "q", fit=True)


def test_equal_layers_have_equal_widths(tmp_path: Path) -> None:
    """They are stored once, so each width counts once."""
    from safetensors.numpy import load_file, save_file

    write_tiny_llama(tmp_path / "m", hidden=64, intermediate=96, layers=4, heads=4, kv_heads=2)
    file = tmp_path / "m" / "model.safetensors"
    tensors = load_file(file)
    for name in [name for name in tensors if ".layers.1." in name]:
        tensors[name.replace(".1.", ".2.")] = tensors[name].copy()
    save_file(tensors, file)
    least = planned(tmp_path / "m", bits=2, embedding_bits=2, **BOARD, flash=MIB)
    board = {**BOARD, "flash": used(least.plan) + 9000}
    fitted = planned(tmp_path / "m", **board, fit=True)
    by_name = {m.name: m for m in widths_of(fitted).matrices}
    for slot in ("qkv", "o", "gate_up", "down"):
        one, again = by_name[f"layer1.{slot}"], by_name[f"layer2.{slot}"]
        assert one.width == again.width and one.bytes > again.bytes == 0
    assert fitted.weight_bytes == sum(m.bytes for m in by_name.values())
    assert shrinkc.compile(tmp_path / "m", tmp_path / "out", **board, fit=True).files


# ---- measured sensitivities ----


def sensitivities(file: Path, layers: int, **changes: Any) -> Path:
    """Write a result of ``shrinkc sensitivity`` in which only gate_up of layer 2 is sensitive."""

    def costs(scale: float) -> dict[str, float]:
        return {str(bits): scale * 4.0 ** (4 - bits) for bits in WIDTHS}

    found = {
        "layers": [
            {
                "removed": 1.0, "ffn": {"0.125": 0.1}, "kv_group": None, "bits": costs(0.1),
                "modules": {
                    m: costs(1.0 if i == 2 and m in ("mlp.gate_proj", "mlp.up_proj") else 0.001)
                    for m in MODULES
                },
            }
            for i in range(layers)
        ],
        "embedding": costs(0.001),
    }  # fmt: skip
    content = {
        "format": "shrinkc-sensitivity", "version": 6, "baseline": 1.0, "tokens": 100, "group_size": 32,
        "dtype": "float32", "samples": 2, "length": 51, "loss": found, "kl": found,
        "loss_error": None, "kl_error": found,
    }  # fmt: skip
    file.write_text(json.dumps({**content, **changes}))
    return file


def test_measured_sensitivities_decide(tmp_path: Path) -> None:
    sensitivities(tmp_path / "sensitivity.json", 5)
    board: dict[str, Any] = {**BOARD, "flash": 330 * KIB, "fit": True}
    found = widths_of(planned(STORIES, **board, sensitivity=tmp_path))
    bits = {m.name: m.bits for m in found.matrices}
    assert (
        bits["layer2.gate_up"]
        == max(bits.values())
        > max(width for name, width in bits.items() if name != "layer2.gate_up")
    )
    assert found.unit == "nats per token" and "sensitivity.json" in found.source
    costs = measured_costs(load_config(STORIES), tmp_path / "sensitivity.json")
    # at a measured format, the weights' error costs what was measured, and int8 activations a little more
    for b in WIDTHS:
        of_gate_up = costs.of("layer2.gate_up", MatrixFormat(b, 32, Offsets.WIDE))
        assert of_gate_up == pytest.approx(2 * 4.0 ** (4 - b), rel=0.02, abs=0.01)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": "other"}, "is not a result of 'shrinkc sensitivity'"),
        ({"version": 1}, "is of version 1, this shrinkc reads version 6"),
        ({"kl": {"layers": [], "embedding": {}}}, "is damaged"),
        ({"baseline": "much"}, "is damaged: baseline"),
    ],
)
def test_bad_sensitivities_are_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    file = sensitivities(tmp_path / "s.json", 5, **changes)
    with pytest.raises(BadData, match=said):
        shrinkc.plan(STORIES, fit=True, sensitivity=file)


def test_sensitivities_of_another_model_are_refused(tmp_path: Path) -> None:
    file = sensitivities(tmp_path / "s.json", 4)
    with pytest.raises(BadData, match="measured on a model of 4 layers, this one has 5"):
        shrinkc.plan(STORIES, fit=True, sensitivity=file)
    with pytest.raises(BadData, match=r"none\.json cannot be read"):
        shrinkc.plan(STORIES, fit=True, sensitivity=tmp_path / "none.json")
    with pytest.raises(UsageError, match="--sensitivity needs --fit"):
        shrinkc.plan(STORIES, sensitivity=file)


# ---- a large model ----


@pytest.mark.slow
def test_a_model_of_a_billion_parameters_fits(tmp_path: Path) -> None:
    """LLaMA-3.2-1B's shape: without --fit it is refused with the hint, with it the flash is full."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_1B))
    plain = shrinkc.plan(tmp_path / "config.json", context=1024)
    assert isinstance(plain, shrinkc.Shortfall)
    assert plain.alternatives[0] == "--fit"
    fitted = planned(tmp_path / "config.json", context=1024, fit=True)
    plan = fitted.plan
    assert 0.995 * plan.capacity["flash"] < plan.used["flash"] <= plan.capacity["flash"]
    assert {m.bits for m in widths_of(fitted).matrices} == {3, 4}
    narrow = planned(tmp_path / "config.json", context=1024, bits=3, embedding_bits=3)
    costs = costs_by_kind(fitted.config)
    uniform = sum(
        costs.of(m.name, MatrixFormat(3, None, Offsets.NONE)) for m in narrow.shape.stored
    )
    assert widths_of(fitted).cost < 0.7 * uniform


# ---- the solver ----


def test_what_is_missing_for_a_choice_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shrinkc.checkpoints.libraries.find_spec", lambda name: None)
    assert planned(STORIES, fit=True), "at 8 bit there is nothing to solve"
    with pytest.raises(ExtraMissing, match="scipy is not installed") as refusal:
        shrinkc.plan(STORIES, **BOARD, flash=400 * KIB, fit=True)
    assert refusal.value.hint is not None and "pip install scipy" in refusal.value.hint


def test_what_the_solver_prints_is_discarded(capfd: pytest.CaptureFixture[str]) -> None:
    """Its C++ code writes to the file descriptor, past sys.stdout."""
    puts = ctypes.CDLL(None).puts
    with nothing_printed():
        puts(b"from the solver")
    puts(b"from others")
    ctypes.CDLL(None).fflush(None)
    assert capfd.readouterr().out == "from others\n"
