"""A checkpoint is opened once: its configuration, its header and its adapter."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny_gguf import tiny_gguf
from helpers.tiny_gptq import tiny_gptq, write_eora
from helpers.tiny_llama import write_tiny_llama
from shrinkc.core.errors import BadConfig, ModelNotFound, UsageError
from shrinkc.core.progress import Silent
from shrinkc.driver.compiling import compile_model
from shrinkc.driver.plan_request import PlanRequest
from shrinkc.driver.planned import Planned
from shrinkc.driver.planning import prepare
from shrinkc.importer import Checkpoint, load_model, open_checkpoint
from shrinkc.importer.gguf_file import GgufFile


def request(model: Path | Checkpoint, **options: Any) -> PlanRequest:
    return PlanRequest(model, **options)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often files of each name, and the headers of GGUF files, are read."""
    count: Counter[str] = Counter()
    read_text, header = Path.read_text, GgufFile.__init__

    def counted_text(self: Path, *args: Any, **options: Any) -> str:
        count[self.name] += 1
        return read_text(self, *args, **options)

    def counted_header(self: GgufFile, path: Path) -> None:
        count[path.name] += 1
        header(self, path)

    monkeypatch.setattr(Path, "read_text", counted_text)
    monkeypatch.setattr(GgufFile, "__init__", counted_header)
    return count


def test_a_compile_reads_the_configuration_of_gptq_once(tmp_path: Path, reads: Counter) -> None:
    tiny_gptq(tmp_path / "m", eora_rank=2)
    reads.clear()
    compile_model(request(tmp_path / "m"), tmp_path / "out", force=False, reporter=Silent())
    assert (reads["config.json"], reads["quantize_config.json"]) == (1, 1)


def test_a_compile_reads_the_header_of_a_gguf_file_once(tmp_path: Path, reads: Counter) -> None:
    tiny_gguf(tmp_path / "m.gguf")
    reads.clear()
    compile_model(request(tmp_path / "m.gguf"), tmp_path / "out", force=False, reporter=Silent())
    assert reads["m.gguf"] == 1


def test_a_compile_reads_the_configuration_of_a_float_model_once(
    tmp_path: Path, reads: Counter
) -> None:
    write_tiny_llama(tmp_path / "m")
    reads.clear()
    compile_model(request(tmp_path / "m"), tmp_path / "out", force=False, reporter=Silent())
    assert reads["config.json"] == 1


def test_many_plans_of_one_checkpoint_read_nothing_again(tmp_path: Path, reads: Counter) -> None:
    tiny_gptq(tmp_path / "m", max_position=512)
    checkpoint = open_checkpoint(tmp_path / "m")
    reads.clear()
    for context in (16, 64, 256):
        assert prepare(request(checkpoint, context=context)).fits
    assert not reads


def test_what_is_loaded_is_what_load_model_gives(tmp_path: Path) -> None:
    tiny_gptq(tmp_path / "m", eora_rank=2)
    checkpoint = open_checkpoint(tmp_path / "m")
    assert (checkpoint.adapter, checkpoint.adapter_given) == (tmp_path / "m" / "eora", False)
    assert set(checkpoint.ranks.values()) == {2}
    model, again = checkpoint.load(), load_model(tmp_path / "m")
    assert model.config == checkpoint.config == again.config
    assert model.layers[0].adapters.keys() == again.layers[0].adapters.keys()


def test_the_same_command_from_a_checkpoint_and_from_its_path(tmp_path: Path) -> None:
    written = tiny_gptq(tmp_path / "m")
    write_eora(tmp_path / "side", written, 3)
    opened = prepare(request(open_checkpoint(tmp_path / "m", tmp_path / "side")))
    named = prepare(request(tmp_path / "m", adapter=tmp_path / "side"))
    assert opened.fits and named.fits
    assert opened.to_json() == named.to_json() and "--adapter side" in opened.command


def test_an_adapter_for_what_is_open_already(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "m")
    with pytest.raises(UsageError, match="opened already"):
        request(open_checkpoint(tmp_path / "m"), adapter=tmp_path)


def test_sizes_alone_can_be_planned_and_not_loaded(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    checkpoint = open_checkpoint(tmp_path / "m")
    assert not checkpoint.whole and checkpoint.notes
    assert prepare(request(checkpoint)).fits
    with pytest.raises(ModelNotFound, match=r"neither model\.safetensors nor"):
        checkpoint.load()
    with pytest.raises(ModelNotFound, match=r"neither model\.safetensors nor"):
        compile_model(request(checkpoint), tmp_path / "out", force=False, reporter=Silent())
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


# --- two adapters: one rule -----------------------------------------------------------------


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A quantised checkpoint with an adapter beside its weights and one in its folder."""
    written = tiny_gptq(tmp_path / "m", eora_rank=3)
    write_eora(tmp_path / "m", written, 2)
    return tmp_path / "m"


def refusal(work: Any) -> str:
    with pytest.raises(BadConfig, match="two adapters") as caught:
        work()
    return str(caught.value)


def test_two_adapters_are_refused_by_name(two: Path) -> None:
    for work in (lambda: load_model(two), lambda: prepare(request(two))):
        said = refusal(work)
        assert str(two / "eora" / "adapter_config.json") in said
        assert str(two / "adapter_config.json") in said and "--adapter" in said


def test_compression_refuses_two_adapters_too(two: Path) -> None:
    from shrinkc.compression.facts import facts_of

    assert "remove one of them" in refusal(lambda: facts_of(two))


@pytest.mark.libraries("torch", "transformers")
def test_torch_refuses_two_adapters_too(two: Path) -> None:
    from shrinkc.checkpoints import load

    assert "remove one of them" in refusal(lambda: load(two))


def test_one_of_two_adapters_can_be_named(two: Path) -> None:
    planned = prepare(request(two, adapter=two / "eora"))
    assert planned.fits and set(planned.checkpoint.ranks.values()) == {3}


@pytest.mark.parametrize("weights", [True, False])
def test_a_plan_counts_the_permutations_of_act_order(tmp_path: Path, weights: bool) -> None:
    """As compile does, which reads them; without weights as many as the configuration allows."""
    model = tmp_path / "m"
    tiny_gptq(model, group=16, sym=False, desc_act="shared", layers=2)
    written = compile_model(request(model), tmp_path / "out", force=False, reporter=Silent())
    planned = prepare(request(model if weights else model / "config.json"))
    assert isinstance(planned, Planned) and planned.shape.perms > 0
    assert planned.shape.perms == written.prepared.shape.perms
    if weights:
        assert planned.plan.to_json() == written.prepared.plan.to_json()
