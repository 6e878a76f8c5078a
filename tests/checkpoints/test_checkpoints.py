"""Loading of all kinds of models, and saving as plain Hugging Face directories."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.tiny_families import logits_of, write_family, write_family_gguf, write_family_gptq
from helpers.tiny_gguf import tiny_gguf
from helpers.tiny_gptq import tiny_gptq
from helpers.tiny_llama import write_tiny_llama
from shrinkc.checkpoints import (
    cached,
    check_device,
    libraries,
    load,
    load_tokenizer,
    need,
    resolve,
    save,
    saving,
    stored_dtype,
    use_threads,
    versions,
)
from shrinkc.cli.main import run_cli
from shrinkc.core.errors import (
    BadConfig,
    BadTokenizer,
    BadWeights,
    ExtraMissing,
    ModelNotFound,
    OutputError,
    ShapeMismatch,
    StageFailed,
    UnsupportedModel,
    UsageError,
)
from shrinkc.importer import ChatTemplate, load_config
from shrinkc.model import FAMILIES

pytestmark = pytest.mark.slow

torch = pytest.importorskip("torch")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    write_tiny_llama(tmp_path / "tiny", vocab=300, hidden=32, intermediate=48)
    return tmp_path / "tiny"


def config_with(directory: Path, **fields: Any) -> Path:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return directory


def tensors(model: Any) -> dict[str, np.ndarray]:
    return {name: value.float().numpy() for name, value in model.state_dict().items()}


@pytest.mark.slow
def test_a_directory_loads_as_it_is_stored(tmp_path: Path) -> None:
    stored = write_tiny_llama(tmp_path / "m", vocab=300, dtype="bfloat16")
    loaded = load(tmp_path / "m")
    assert loaded.kind == "hf" and loaded.model.dtype == torch.float32
    assert not loaded.model.training
    found = tensors(loaded.model)
    for name, values in stored.items():
        np.testing.assert_array_equal(found[name], values)
    assert load(str(tmp_path / "m"), dtype="bfloat16").model.dtype == torch.bfloat16
    assert stored_dtype(tmp_path / "m") == "bfloat16"


def test_a_saved_model_loads_again_and_is_readable_by_others(tiny: Path, tmp_path: Path) -> None:
    loaded = load(tiny)
    save(loaded.model, loaded.tokenizer, tmp_path / "out")
    again = load(tmp_path / "out")
    assert tensors(again.model).keys() == tensors(loaded.model).keys()
    for name, values in tensors(loaded.model).items():
        np.testing.assert_array_equal(tensors(again.model)[name], values)
    assert {p.stat().st_mode & 0o044 for p in (tmp_path / "out").iterdir()} == {0o044}
    with pytest.raises(OutputError):
        save(loaded.model, loaded.tokenizer, tmp_path / "out")


def test_a_model_that_does_not_load_as_it_was_leaves_nothing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(tiny)

    def other(path: Path, **options: Any) -> Any:
        found = load(path, **options)
        found.model.model.norm.weight.data[3] += 1
        return found

    monkeypatch.setattr(saving, "load", other)
    with pytest.raises(StageFailed, match="1 tensors differ, the first is model.norm.weight"):
        save(loaded.model, loaded.tokenizer, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny"]


def test_a_gptq_directory_is_dequantised_with_its_adapter(tmp_path: Path) -> None:
    from shrinkc.importer import load_model
    from shrinkc.importer.model import dense

    tiny_gptq(tmp_path / "q", bits=4, group=32, sym=False, desc_act=True, embedding_bits=4)
    loaded = load(tmp_path / "q")
    assert loaded.kind == "gptq"
    found, wanted = tensors(loaded.model), load_model(tmp_path / "q")
    np.testing.assert_array_equal(found["model.embed_tokens.weight"], dense(wanted.embedding))
    for index, layer in enumerate(wanted.layers):
        name = f"model.layers.{index}.mlp.down_proj.weight"
        np.testing.assert_array_equal(found[name], dense(layer.w_down))

    tiny_gptq(tmp_path / "e", bits=4, group=32, eora_rank=4)
    folder = tmp_path / "e" / "eora"
    with_side = tensors(load(tmp_path / "e").model)
    side = load_model(tmp_path / "e", adapter=folder if folder.is_dir() else tmp_path / "e")
    layer = side.layers[0]
    assert layer.adapters
    wanted_q = dense(layer.wq) + layer.adapters["q_proj"].b @ layer.adapters["q_proj"].a
    got = with_side["model.layers.0.self_attn.q_proj.weight"]
    np.testing.assert_allclose(got, wanted_q, rtol=0, atol=1e-6)


def test_the_dequantised_model_computes_what_the_importer_computes(tmp_path: Path) -> None:
    from helpers.float_reference import forward
    from shrinkc.importer import load_model

    tiny_gptq(tmp_path / "q", bits=8, group=-1)
    loaded, ids = load(tmp_path / "q"), np.arange(3, 20)
    with torch.no_grad():
        got = loaded.model(torch.tensor(ids)[None]).logits[0].numpy()
    np.testing.assert_allclose(got, forward(load_model(tmp_path / "q"), ids), rtol=0, atol=1e-4)


def test_a_gguf_file_and_the_folder_around_it(tmp_path: Path) -> None:
    (tmp_path / "g").mkdir()
    weights = tiny_gguf(tmp_path / "g" / "model.gguf")
    assert resolve(str(tmp_path / "g")) == tmp_path / "g" / "model.gguf"
    loaded = load(tmp_path / "g" / "model.gguf")
    assert loaded.kind == "gguf" and stored_dtype(loaded.path) == "float32"
    name = "model.layers.1.mlp.up_proj"
    np.testing.assert_allclose(
        tensors(loaded.model)[f"{name}.weight"], weights[name], rtol=0, atol=1e-6
    )
    (tmp_path / "g" / "model.gguf").write_bytes(b"GGUF" + bytes(40))
    with pytest.raises((UnsupportedModel, BadWeights)):
        load(tmp_path / "g" / "model.gguf")


@pytest.mark.parametrize("source", ["./nothing/here", "no such/model/at all", "x.gguf"])
def test_what_does_not_exist(source: str) -> None:
    with pytest.raises(ModelNotFound, match="does not exist"):
        resolve(source)


def test_what_is_no_model(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "file.bin").write_bytes(b"")
    with pytest.raises(ModelNotFound, match="not a model directory"):
        resolve(str(tmp_path / "file.bin"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFound, match="config.json does not exist"):
        load(tmp_path / "empty")
    (tiny / "model.safetensors").unlink()
    with pytest.raises(ModelNotFound, match="no weights"):
        load(tiny)


def test_an_offline_hub_is_a_model_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(name: str, **options: Any) -> str:
        raise OSError(f"{name}: no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ModelNotFound, match="the Hugging Face hub does not give it: .*no network"):
        resolve("somebody/some-model")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_as_transformers_computes_it(tmp_path: Path, family: str) -> None:
    hf, gptq, gguf = (tmp_path / name for name in ("hf", "gptq", "model.gguf"))
    ids = [1, 5, 9, 100]
    theirs = write_family(hf, family)
    wanted = {hf: logits_of(theirs, ids)}
    wanted[gptq] = logits_of(write_family_gptq(gptq, hf, theirs), ids)
    if find_spec("gguf"):
        wanted[gguf] = logits_of(write_family_gguf(gguf, family, write_family(hf, family)), ids)
    for path, logits in wanted.items():
        found = logits_of(load(path).model, ids)
        np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-4)


def test_a_gptq_directory_with_biases(tmp_path: Path) -> None:
    theirs = write_family(tmp_path / "hf", "llama", attention_bias=True)
    write_family_gptq(tmp_path / "q", tmp_path / "hf", theirs)
    ids = [1, 5, 9, 100]
    np.testing.assert_allclose(
        logits_of(load(tmp_path / "q").model, ids), logits_of(theirs, ids), rtol=1e-4, atol=1e-4
    )


def test_other_architectures_and_quantisations(tiny: Path) -> None:
    with pytest.raises(UnsupportedModel, match="model_type = 'gemma'; llama, .* can be loaded"):
        load(config_with(tiny, model_type="gemma"))
    awq = {"quant_method": "awq"}
    with pytest.raises(UnsupportedModel, match="quant_method = 'awq'"):
        load(config_with(tiny, model_type="llama", quantization_config=awq))


def test_damaged_files(tiny: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny, tmp_path / "copy")
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(BadWeights):
        load(copy)
    with pytest.raises(ShapeMismatch):
        load(config_with(tiny, num_hidden_layers=3))
    (tiny / "config.json").write_text("{")
    with pytest.raises(BadConfig):
        load(tiny)
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(BadTokenizer):
        load_tokenizer(copy)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    need("torch")
    with pytest.raises(
        ExtraMissing, match=r"nosuchlib is not installed.*pip install .\.\[compress\]"
    ):
        need("torch", "nosuchlib")
    assert {"torch", "transformers", "numpy"} <= versions().keys() <= set(libraries.RECORDED)


def test_the_version_of_torch_names_its_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package on PyPI is 2.15.0, its module 2.15.0+cu132; the module's version is recorded."""
    monkeypatch.setattr(libraries.metadata, "version", lambda name: "2.15.0")
    monkeypatch.setattr(torch, "__version__", "2.15.0+cu132")
    assert versions()["torch"] == "2.15.0+cu132"
    assert versions()["numpy"] == "2.15.0"


@pytest.mark.parametrize("device", ["cuda", "gpu", "mps", "foo", "meta", "cpu:0", "cuda:7"])
def test_a_device_that_is_not_there(
    device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    check_device("cpu")
    for command in (
        ["eval", "MODEL", "--text", "FILE"],
        ["compress", "MODEL", "--recipe", "small", "-o", str(tmp_path / "out")],
        ["explore", "MODEL", "--recipe", "small", "--trials", "1", "-o", str(tmp_path / "out")],
    ):
        assert run_cli([*command, "--device", device]) == UsageError.exit_code
        said = " ".join(capsys.readouterr().err.split())
        assert f"--device {device}: torch {torch.__version__} has no such device" in said
        assert "allowed: cpu." in said
    assert not (tmp_path / "out").exists()


def test_devices_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    there = torch.device("cuda")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: there)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    for name in ("cpu", "cuda", "cuda:1"):
        check_device(name)
    with pytest.raises(UsageError, match="allowed: cpu, cuda, cuda:0, cuda:1"):
        check_device("cuda:2")


def test_threads_are_pinned() -> None:
    before = torch.get_num_threads()
    try:
        use_threads(1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_cache_has_the_name_that_the_decoder_knows() -> None:
    """A decoder ignores unknown arguments; without cache, a token would depend on the last token only."""

    class New:
        def forward(self, input_ids: object, cache: object = None, **rest: object) -> None: ...

    class Old:
        def forward(
            self, input_ids: object, past_key_values: object = None, **rest: object
        ) -> None: ...

    assert cached(New(), 7) == {"cache": 7}
    assert cached(Old(), 7) == {"past_key_values": 7}


def test_a_gguf_file_keeps_its_end_tokens_and_chat_template(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    template = "{{ messages[0].content }}"
    metadata = {"tokenizer.chat_template": template, "tokenizer.ggml.eot_token_id": 4}
    tiny_gguf(tmp_path / "m.gguf", layers=1, kind="Q8_0", metadata=metadata)
    loaded = load(tmp_path / "m.gguf")
    save(loaded.model, loaded.tokenizer, tmp_path / "hf")
    assert (
        load_config(tmp_path / "hf").eos_ids == load_config(tmp_path / "m.gguf").eos_ids == (2, 4)
    )
    chat = ChatTemplate.from_dir(tmp_path / "hf")
    assert chat is not None and chat.source == template
