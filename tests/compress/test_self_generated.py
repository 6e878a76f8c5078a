"""Self-generated text: its content, continuation after a kill, and refusals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from helpers.interrupting import InterruptAt
from shrinkc.checkpoints import load
from shrinkc.compression.calibration import Calibration
from shrinkc.compression.recipe import Recipe, load_recipe, parse_recipe, shipped
from shrinkc.compression.run import compress
from shrinkc.compression.run_directory import foreign_files
from shrinkc.compression.self_generated import SelfGenerated, SelfGeneratedSettings, tokens_of
from shrinkc.compression.writing import Beginnings, _cache, _Row, write_shard, write_text
from shrinkc.core.errors import BadData, BadRecipe, BadStep, NothingWritten, RunChanged
from shrinkc.core.progress import Silent

from .quantising import Recorder

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.slow

SMALL = {"length": 64, "batch": 8}
SETTINGS = SelfGeneratedSettings(length=64, batch=8)


def write(store: SelfGenerated, source: Path, tokens: int, reporter: Any = None) -> None:
    write_text(
        store,
        source,
        tokens,
        seed=3,
        device="cpu",
        made_from={"seed": 3},
        reporter=reporter or Silent(),
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def recipe(text: list[str], **tables: Any) -> Recipe:
    given = {"calibration": {"text": text, "samples": 16, "length": 64}, "self_generated": SMALL}
    return parse_recipe({**given, "width": {"ffn": 0.25, "multiple": 32}, **tables})


@pytest.fixture(scope="module")
def written(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> SelfGenerated:
    """Some shards, written without an interrupt."""
    store = SelfGenerated(tmp_path_factory.mktemp("own") / "text", SETTINGS)
    write(store, stories, 1200)
    return store


@pytest.fixture(scope="module")
def talker(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with a chat template."""
    folder = shutil.copytree(stories, tmp_path_factory.mktemp("talker") / "m")
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}<s> Tom said: {{ m['content'] }}</s> Lily said: {% endfor %}"
    )
    return folder


@pytest.mark.parametrize(
    ("source", "tokens"),
    [("self", 200_000), ("self:900", 900), ("self:20k", 20_000), ("self:1.5M", 1_500_000)],
)
def test_sizes(source: str, tokens: int) -> None:
    assert tokens_of(source) == tokens


@pytest.mark.parametrize(
    "source", ["self:", "self:lots", "self:20K", "self:-5", "self:99", "self:0.01k"]
)
def test_malformed_sizes(source: str) -> None:
    with pytest.raises(BadRecipe, match=f"'{source}' is no size of self-generated text") as caught:
        recipe([source])
    assert caught.value.exit_code == 16 and "at least 100 tokens" in str(caught.value)


def test_keys_that_accept_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadRecipe, match="only a text file can measure"):
        recipe(["self"], evaluate={"text": "self"})
    file = tmp_path / "r.toml"
    file.write_text("[calibration]\ntext = ['./self', 'self']\n[depth]\nremove = 1\n")
    assert load_recipe(str(file)).calibration.text == (str(tmp_path / "self"), "self")
    for name in set(shipped()) - {"reference"}:  # that recipe names the texts of the paper
        assert load_recipe(name).self_generated_tokens() >= 60_000


def test_documents_come_from_the_model(stories: Path, written: SelfGenerated) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(stories)
    documents = list(written.documents())
    assert written.written() == sum(d.tokens for d in documents) >= 1200
    assert len({d.text for d in documents}) == len(documents)
    for document in documents:
        ids = tokenizer(document.text, add_special_tokens=False)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id and 8 < len(ids) <= 64 + 2
    some = written.content(500)
    assert some is not None and written.content(10**6) is None
    whole = written.content(1200)
    # they share the generated text
    assert whole is not None and whole.startswith(some.rstrip("\n"))


def test_it_is_sampled_from_the_model(stories: Path) -> None:
    """At a low temperature, the text has the most probable tokens of a forward pass without cache."""
    loaded = load(stories)
    settings = SelfGeneratedSettings(temperature=0.05, length=40, batch=2, dtype="float32")
    begin = Beginnings.of(loaded.tokenizer, loaded.model, stories, chat=True)
    first = write_shard(loaded, settings, begin, 0, 0)[0]
    ids = torch.tensor([loaded.tokenizer(first.text, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        likely = loaded.model(ids).logits.topk(2, -1)
    gap = (likely.values[..., 0] - likely.values[..., 1])[0, :-1]
    sure = gap > 1.0
    assert sure.sum() > 10
    assert torch.equal(likely.indices[0, :-1, 0][sure], ids[0, 1:][sure])
    # and at a high temperature it has others
    wild = write_shard(
        loaded, SelfGeneratedSettings(temperature=2.0, length=40, batch=2), begin, 0, 0
    )
    assert wild[0].text != wild[1].text


def test_the_cache_equals_a_whole_forward_pass(stories: Path) -> None:
    from shrinkc.compression.attention import use_products

    loaded = load(stories)
    ids = torch.randint(3, 500, (4, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = loaded.model(ids).logits
        use_products(loaded.model)
        cache = _cache(loaded.model, 12)
        found = loaded.model(ids[:, :5], cache=cache, use_cache=True).logits
        torch.testing.assert_close(found, wanted[:, :5], rtol=1e-4, atol=1e-4)
        keep = torch.tensor([0, 2, 3])
        cache.batch_select_indices(keep)
        for at in range(5, 12):
            found = loaded.model(ids[keep, at : at + 1], cache=cache, use_cache=True).logits
            torch.testing.assert_close(found, wanted[keep, at : at + 1], rtol=1e-4, atol=1e-4)


def test_a_conversation(stories: Path, talker: Path) -> None:
    loaded = load(talker)
    begin = Beginnings.of(loaded.tokenizer, loaded.model, talker, chat=True)
    assert begin.chat is not None and begin.free == [1] and 2 in begin.ends
    before, after = (loaded.tokenizer.decode(part) for part in begin.chat)
    assert "Tom said:" in before and "Lily said:" in after
    talks = write_shard(loaded, SelfGeneratedSettings(length=160, batch=8), begin, 0, 0)
    assert talks and all(t.text.startswith(before) and after in t.text for t in talks)
    free = write_shard(loaded, SETTINGS, begin, 0, 1)
    assert free and not any("Lily said:" in t.text for t in free)
    assert Beginnings.of(loaded.tokenizer, loaded.model, talker, chat=False).chat is None


def test_a_conversation_takes_its_turns() -> None:
    row = _Row([7], [2, 8, 9], [2, 3], 20)
    # message 5 6, its end 2, the template's 8 9 whatever the model says, the answer 5, its end 3
    assert [row.take(t) for t in (5, 6, 2, 1, 1, 5, 3)] == [5, 6, 2, 8, 9, 5, 3]
    assert row.over and row.ids == [7, 5, 6, 2, 8, 9, 5, 3] and row.written == 1
    silent = _Row([7], [2, 8, 9], [2, 3], 20)
    silent.take(2)
    assert silent.over and silent.written == 0
    long = _Row([7], [], [2], 4)
    assert [long.take(5) for _ in range(3)] == [5, 5, 5] and long.over


def test_interrupted_writing_ends_as_if_nothing_had_been(
    stories: Path, written: SelfGenerated, tmp_path: Path
) -> None:
    for count in (20, 90):  # in the first shard, and in the second
        store = SelfGenerated(tmp_path / str(count), SETTINGS)
        with pytest.raises(KeyboardInterrupt):
            write(store, stories, 1200, InterruptAt("self-generated", count))
        assert store.shards() == count // 64
        write(store, stories, 1200)
        assert contents(store.folder) == contents(written.folder)


def test_a_killed_process_leaves_whole_shards(
    stories: Path, written: SelfGenerated, tmp_path: Path
) -> None:
    store = SelfGenerated(tmp_path / "text", SETTINGS)
    program = (
        "import sys, torch\nfrom pathlib import Path\nfrom tests.compress.test_self_generated import *\n"
        "torch.set_num_threads(1)\nwrite(SelfGenerated(Path(sys.argv[1]), SETTINGS), Path(sys.argv[2]), 10**6)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(store.folder), str(stories)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    deadline = time.monotonic() + 100
    while store.shards() < 1 and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    (store.folder / ".00001.jsonl.0.partial").write_text("half")
    write(store, stories, 1200)
    again = contents(store.folder)
    assert {name: again[name] for name in contents(written.folder) if name != "record.json"} == {
        name: data for name, data in contents(written.folder).items() if name != "record.json"
    }
    assert set(again) == set(store.files())


def test_a_model_that_only_ends_texts(stories: Path, tmp_path: Path) -> None:
    mute = shutil.copytree(stories, tmp_path / "mute")
    file = mute / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": [*range(512)]}))
    with pytest.raises(NothingWritten, match="mute wrote nothing new in 32 attempts") as caught:
        compress(str(mute), tmp_path / "o", recipe(["self:2k"]), reporter=Silent())
    assert caught.value.exit_code == 19 and "self_generated.temperature" in str(caught.value)


def test_a_run_with_self_generated_text(stories: Path, story_file: Path, tmp_path: Path) -> None:
    out, heard = tmp_path / "run", Recorder()
    given = recipe(["self:1k", str(story_file)])
    planned = compress(str(stories), out, given, reporter=heard, dry_run=True)
    assert planned.estimate and not out.exists()
    compress(str(stories), out, given, reporter=heard)
    progress = [(done, total) for title, done, total in heard.heard if "self-generated" in title]
    assert progress[0] == (0, 1000) and progress[-1] == (1000, 1000)
    record = json.loads((out / "01-width" / "step.json").read_text())
    labels = [label for label in record["fingerprint"] if "self:1k" in label]
    assert labels == ["content of calibration text 1: self:1k"]
    assert 'text = ["self:1k", ' in (out / "recipe.toml").read_text()
    made_from = json.loads((out / "self-generated" / "record.json").read_text())["made_from"]
    assert made_from["self_generated.temperature"] == 0.8 and made_from["run.seed"] == 0
    assert "content of model.safetensors" in made_from
    assert foreign_files(out) == []
    (out / "self-generated" / "mine.txt").write_text("of the user")
    assert foreign_files(out) == ["self-generated/mine.txt"]
    # the run continues without generating anything again
    again = Recorder()
    compress(str(stories), out, given, reporter=again)
    assert not any("self-generated" in title for title, *_ in again.heard)
    with pytest.raises(RunChanged, match="temperature 0.8|has other content"):
        warm = recipe(["self:1k", str(story_file)], self_generated={**SMALL, "temperature": 1.5})
        compress(str(stories), out, warm, reporter=Silent())
    shutil.rmtree(out / "01-width")
    with pytest.raises(
        RunChanged, match="written with other settings: self_generated.temperature: 0.8 → 1.5"
    ):
        compress(str(stories), out, warm, reporter=Silent())
    shard = out / "self-generated" / "00000.jsonl"
    shard.write_text(shard.read_text().replace("a", "b", 1))
    with pytest.raises(BadStep, match=r"00000.jsonl is missing or was changed"):
        compress(str(stories), out, given, reporter=Silent())


def test_mixed_with_a_file_by_size(written: SelfGenerated, story_file: Path, stories: Path) -> None:
    tokenizer = load(stories).tokenizer
    alone = Calibration((str(story_file),), 16, 64)
    mixed = Calibration(("self:1k", str(story_file)), 16, 64, written)
    assert not torch.equal(alone.windows(tokenizer), mixed.windows(tokenizer))
    text = tokenizer.decode(mixed.windows(tokenizer)[0])
    own = written.content(1000)
    assert own is not None and text.removeprefix("<s>").strip()[:100] in own


def test_its_tokens_are_kept_by_vocabulary_pruning(stories: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    given = {"self_generated": SMALL, "vocabulary": {"text": ["self:1k"], "share": 0.9}}
    compress(str(stories), out, parse_recipe(given), reporter=Silent())
    record = json.loads((out / "01-vocabulary" / "step.json").read_text())
    assert record["parameters"]["tokens"] < 512 and record["parameters"]["covered"] >= 0.9
    assert "content of self:1k" in record["fingerprint"]
    assert sum(record["parameters"]["tokens_of_texts"]) > 2000


def test_too_little_is_refused_before_it_is_written(stories: Path, tmp_path: Path) -> None:
    with pytest.raises(BadData, match="16 samples of 64 tokens need 1024 tokens, the text has 500"):
        compress(str(stories), tmp_path / "o", recipe(["self:500"]), reporter=Silent())
    with pytest.raises(BadData, match="only 'shrinkc compress' can use self-generated text"):
        assert Calibration(("self",), 16, 64).texts
    assert not (tmp_path / "o").exists()
