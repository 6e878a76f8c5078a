"""What is known of a model that does not fit, as fields."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shrinkc.core.errors import DoesNotFit, Lack
from shrinkc.core.progress import Silent
from shrinkc.driver.compiling import compile_model
from shrinkc.driver.planned import Planned, Shortfall
from shrinkc.driver.planning import prepare

from .test_checkpoint import request

VAST = {
    "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
    "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 600,
    "max_position_embeddings": 4096,
}  # fmt: skip


@pytest.fixture
def vast(tmp_path: Path) -> Shortfall:
    (tmp_path / "config.json").write_text(json.dumps(VAST))
    found = prepare(request(tmp_path / "config.json", context=4000))
    assert isinstance(found, Shortfall)
    return found


def test_every_level_that_lacks_has_its_numbers(vast: Shortfall) -> None:
    assert not vast.fits and vast.context == 4000
    assert [lack.level for lack in vast.lacks] == ["l1", "hyperram", "l2", "weights"]
    for lack in vast.lacks:
        assert lack.excess == lack.need - lack.have > 0
        assert lack.largest and all(size > 0 for _, size in lack.largest)
    sizes = [size for _, size in vast.lacks[3].largest]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.slow
def test_the_error_says_the_same_as_the_fields(vast: Shortfall) -> None:
    error = vast.error
    assert isinstance(error, DoesNotFit) and error.lacks == vast.lacks
    for lack in vast.lacks:
        assert str(lack) in error.message and str(lack.excess) in error.message


def test_no_word_of_a_sentence_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every level is found whatever the sentences say."""
    monkeypatch.setattr(Lack, "__str__", lambda self: "zu klein")
    (tmp_path / "config.json").write_text(json.dumps(VAST))
    found = prepare(request(tmp_path / "config.json", context=4000))
    assert isinstance(found, Shortfall)
    assert [lack.level for lack in found.lacks] == ["l1", "hyperram", "l2", "weights"]


def test_alternatives_are_sought_when_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**VAST, "num_hidden_layers": 1}))
    monkeypatch.setattr("shrinkc.driver.planning.alternatives", lambda *a: ["--bits 4"])
    found = prepare(request(tmp_path / "config.json", context=4000, l1=1024))
    assert isinstance(found, Shortfall)
    monkeypatch.setattr("shrinkc.driver.planning.alternatives", lambda *a: ["--bits 2"])
    assert found.alternatives == ("--bits 2",)


def test_compile_raises_it(tmp_path: Path) -> None:
    from helpers.tiny_llama import write_tiny_llama

    write_tiny_llama(tmp_path / "m")
    with pytest.raises(DoesNotFit) as caught:
        compile_model(
            request(tmp_path / "m", l1=9000), tmp_path / "out", force=False, reporter=Silent()
        )
    assert caught.value.lacks[0].level == "l1" and caught.value.lacks[0].have == 9000
    assert not (tmp_path / "out").exists()


def test_a_cache_too_large_for_l2_fits_with_windows_too(tmp_path: Path) -> None:
    fields = {**VAST, "hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 2}
    fields |= {"model_type": "mistral", "num_attention_heads": 8, "head_dim": 128}
    for window in (3000, None):
        (tmp_path / "config.json").write_text(json.dumps({**fields, "sliding_window": window}))
        found = prepare(request(tmp_path / "config.json", context=4000))
        assert isinstance(found, Planned) and found.plan.kv_streamed
