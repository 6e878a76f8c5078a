"""``export``: one form at a time, GPTQ checkpoints, and the hub by a fake of its API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.tiny_gptq import tiny_gptq
from shrinkc.checkpoints import pack_step
from shrinkc.importer.embedding_sidecar import SIDECAR, read_embedding
from shrinkc.importer.gptq import read_gptq

from .conftest import Cli


@pytest.fixture
def step(tmp_path: Path) -> Path:
    """A packed step, with files that a run adds."""
    folder = tmp_path / "02-gptq"
    tiny_gptq(folder, embedding_bits=4)
    pack_step(folder, {SIDECAR: read_embedding(folder / SIDECAR)})
    for name in ("README.md", "step.json"):
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "give one of --onnx FILE, --gguf FILE, --gptq DIRECTORY, --hub OWNER/NAME"),
        (["--gguf", "a.gguf", "--gptq", "b"], "one form at a time"),
        (["--gguf", "a.gguf", "--dry-run"], "--private and --dry-run belong to --hub"),
        (["--gptq", "b", "--compact"], "--compact belongs to --gguf"),
        (["--hub", "name"], "--hub name is no OWNER/NAME"),
        (["--hub", "a/b/c"], "--hub a/b/c is no OWNER/NAME"),
    ],
)
def test_usage(cli: Cli, step: Path, options: list[str], said: str) -> None:
    result = cli("export", step, *options)
    assert result.code == 2 and said in result.words


def test_a_standard_checkpoint(cli: Cli, step: Path, tmp_path: Path) -> None:
    out = tmp_path / "gptq"
    result = cli("export", step, "--gptq", out, "--json")
    assert result.code == 0, result.err
    assert result.json["files"] == {f.name: f.stat().st_size for f in sorted(out.iterdir())}
    assert {"model.safetensors", "quantize_config.json", "README.md"} <= set(result.json["files"])
    assert not {"packed.safetensors", SIDECAR, "step.json"} & set(result.json["files"])
    assert "AutoModelForCausalLM.from_pretrained" in result.words
    assert "embedding and LM head take 16 bits" in result.words
    before, after = read_gptq(step), read_gptq(out)
    assert before.keys() - after.keys() == {"model.embed_tokens"}
    for name, weight in after.items():
        np.testing.assert_array_equal(weight.q, before[name].q)
    # files are copies: a change of one leaves the step alone
    assert not (out / "tokenizer.json").samefile(step / "tokenizer.json")
    assert cli("export", step, "--gptq", out).code == 40, "it is there"


def test_a_float_model_is_no_gptq_checkpoint(cli: Cli, model: Path, tmp_path: Path) -> None:
    result = cli("export", model, "--gptq", tmp_path / "out")
    assert result.code == 11 and "give a step after a stage gptq" in result.words
    assert not (tmp_path / "out").exists()


class Hub:
    """A hub that stores calls, or has no network."""

    calls: list[tuple[str, Any]]
    broken = False

    def create_repo(self, name: str, **options: Any) -> None:
        if self.broken:
            raise OSError("no network here")
        self.calls.append((name, options))

    def upload_folder(self, **options: Any) -> None:
        self.calls.append(("upload", options))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    library = pytest.importorskip("huggingface_hub")
    kind = type("Fresh", (Hub,), {"calls": []})
    monkeypatch.setattr(library, "HfApi", kind)
    return kind


def test_a_dry_run_lists_the_files(cli: Cli, step: Path, hub: type[Hub]) -> None:
    (step / ".hidden").write_text("not for others")
    result = cli("export", step, "--hub", "me/tiny", "--dry-run", "--json")
    assert result.code == 0 and hub.calls == []
    wanted = {f.name: f.stat().st_size for f in sorted(step.iterdir()) if f.name != ".hidden"}
    assert result.json["files"] == wanted and result.json["output"] == "me/tiny"
    assert "nothing was pushed (--dry-run)" in result.words
    assert "packed.safetensors: " in result.words


def test_pushing(cli: Cli, step: Path, hub: type[Hub]) -> None:
    result = cli("export", step, "--hub", "me/tiny", "--private")
    assert result.code == 0 and "me/tiny: 02-gptq," in result.words and "pushed" in result.words
    (name, made), (upload, sent) = hub.calls
    assert (name, made) == ("me/tiny", {"private": True, "exist_ok": True})
    assert upload == "upload" and sent["repo_id"] == "me/tiny"
    assert Path(sent["folder_path"]) == step
    assert set(sent["allow_patterns"]) == {f.name for f in step.iterdir()}
    assert sent["commit_message"].startswith("02-gptq by shrinkc ")


def test_a_failed_push_says_why(cli: Cli, step: Path, hub: type[Hub]) -> None:
    hub.broken = True
    result = cli("export", step, "--hub", "me/tiny")
    assert result.code == 40 and "me/tiny was not pushed: no network here" in result.words
    assert "hf auth login" in result.words
