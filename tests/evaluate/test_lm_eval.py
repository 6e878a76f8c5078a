"""Models of ours in lm-evaluation-harness: the harness' own answers, and its own command."""

from __future__ import annotations

import json
import os
import shutil
import site
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fidelity import integer_logits

from helpers.tiny_llama import write_tiny_llama
from shrinkc.checkpoints import load
from shrinkc.cli.main import run_cli
from shrinkc.core import artifact
from shrinkc.core.errors import UsageError
from shrinkc.evaluation import token_losses
from shrinkc.ir.serialize import load as load_ir

pytestmark = pytest.mark.slow

pytest.importorskip("lm_eval")
cli_evaluate = pytest.importorskip("lm_eval.__main__").cli_evaluate
registry = pytest.importorskip("lm_eval.api.registry")
instance = pytest.importorskip("lm_eval.api.instance").Instance

STORIES = Path(__file__).resolve().parents[2] / "examples" / "stories"
HOOK = STORIES.parents[1] / "compiler" / "shrinkc_lm_eval.pth"
CONTEXT = 96
PAIRS = (
    ("Once upon a time, there was", " a little girl named Lily."),
    ("Once upon a time, there was ", "zebra xylophone"),  # the blank moves to what follows
    ("", "One day, she saw a big dog."),
    ("She loved to play outside in the park. " * 9, "One day, she saw a big, red ball."),
)


def asked(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    return [instance(kind, {}, given, 0) for given in arguments]


def model(path: Path, **options: Any) -> Any:
    from shrinkc.evaluation.lm_eval import ShrinkcLM

    return ShrinkcLM.create_from_arg_obj({"path": str(path), **options})


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compiled") / "stories"
    options = ["--target", "host", "--context", str(CONTEXT)]
    assert run_cli(["compile", str(STORIES), "-o", str(out), *options]) == 0
    return out


@pytest.mark.libraries("torch", "transformers")
def test_a_float_model_answers_like_the_harness_own_model(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setitem(os.environ, name, "1")
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    loaded = load(STORIES)
    ours = model(STORIES, batch_size=2, threads=1)
    theirs = huggingface.HFLM(
        pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=2, max_length=128
    )
    ours.max_length = 128
    texts = [(context + rest,) for context, rest in PAIRS]
    for kind, requests in (
        ("loglikelihood", asked("loglikelihood", *PAIRS)),
        ("loglikelihood_rolling", asked("loglikelihood_rolling", *texts)),
    ):
        got, want = (getattr(who, kind)(requests, disable_tqdm=True) for who in (ours, theirs))
        np.testing.assert_allclose(np.array(got, float), np.array(want, float), atol=2e-3)
    stops = {"until": ["\n", "named"], "max_gen_toks": 40, "do_sample": False}
    prompts = asked("generate_until", *((context or "One day", stops) for context, _ in PAIRS))
    texts_found = ours.generate_until(prompts, disable_tqdm=True)
    assert texts_found == theirs.generate_until(prompts, disable_tqdm=True)
    assert texts_found[0].endswith("girl ")
    greedy = asked("loglikelihood", ("Once upon a time", ", there was a little girl named Lily."))
    assert ours.loglikelihood(greedy, disable_tqdm=True)[0][1]


def test_a_compiled_model_answers_with_its_integers(compiled: Path) -> None:
    lm = model(compiled, engine="interpreter")
    graph = load_ir(compiled / artifact.IR)
    logits_of = integer_logits(graph)
    found = lm.loglikelihood(asked("loglikelihood", *PAIRS), disable_tqdm=True)
    for (context, rest), (value, greedy) in zip(PAIRS, found, strict=True):
        whole = lm.tok_encode(context + rest)
        start = len(lm.tok_encode(context.rstrip())) if context else 1
        ids = whole[-(CONTEXT + 1) :]
        logits = logits_of(np.array(ids[:-1]))[-(len(whole) - start) :]
        targets = np.array(whole[start:])
        assert value == pytest.approx(-token_losses(logits, targets).sum(), rel=1e-12)
        assert greedy == (logits.argmax(1) == targets).all()
    assert {greedy for _, greedy in found} == {True, False}
    # every token of a text of three windows is predicted once: the last window sees a whole context
    text = "Once upon a time, there was a little girl. " * 20
    ids = lm.tok_encode(text)
    assert 2 * CONTEXT < len(ids) <= 3 * CONTEXT
    fed = [lm.prefix_token_id, *ids]
    total = 0.0
    for at in range(0, len(ids), CONTEXT):
        end = min(at + CONTEXT, len(ids))
        logits = logits_of(np.array(fed[end - min(CONTEXT, end) : end]))[at - end :]
        total -= token_losses(logits, ids[at:end]).sum()
    rolling = lm.loglikelihood_rolling(asked("loglikelihood_rolling", (text,)), disable_tqdm=True)
    assert rolling == [pytest.approx(total, rel=1e-12)]


@pytest.mark.slow
def test_text_ends_where_the_task_says(compiled: Path) -> None:
    lm = model(compiled, engine="interpreter")
    prompt = "Once upon a time"
    (ids,) = lm.scorer.generate([lm.tok_encode(prompt)], 40, lambda *_: None)
    whole = lm.scorer.decode(ids)
    for until, most, want in (
        ([], 40, whole),
        (["Lily"], 40, whole.split("Lily")[0]),
        (["She", "Lily", "nowhere"], 40, whole.split("Lily")[0]),
        ("girl", 40, whole.split("girl")[0]),
        ([], 5, lm.scorer.decode(ids[:5])),
    ):
        given = {"until": until, "max_gen_toks": most}
        assert lm.generate_until(asked("x", (prompt, given)), disable_tqdm=True) == [want]
    # what does not fit before the new tokens is cut off at its beginning
    long = "She loved to play outside in the park. " * 9
    (found,) = lm.generate_until(asked("x", (long, {"max_gen_toks": 20})), disable_tqdm=True)
    (ids,) = lm.scorer.generate([lm.tok_encode(long)[20 - CONTEXT :]], 20, lambda *_: None)
    assert found == lm.scorer.decode(ids)


def test_what_cannot_be_asked_is_refused(compiled: Path) -> None:
    lm = model(compiled, engine="interpreter")
    for given, says in (
        ({"do_sample": True, "temperature": 0.7}, "wants text that is sampled"),
        ({"max_gen_toks": CONTEXT}, "96 new tokens are asked for, stories has 96 positions"),
    ):
        with pytest.raises(UsageError, match=says):
            lm.generate_until(asked("x", ("One day", given)), disable_tqdm=True)
    with pytest.raises(UsageError, match="stories has 96 positions"):
        lm.loglikelihood(asked("x", ("One", " day" * 200)), disable_tqdm=True)
    with pytest.raises(UsageError, match="no chat template"):
        lm.apply_chat_template([{"role": "user", "content": "Hello"}])
    with pytest.raises(UsageError, match="not a compiled directory"):
        model(STORIES, engine="host")


def test_a_chat_uses_the_template(tmp_path: Path) -> None:
    source, out = tmp_path / "model", tmp_path / "out"
    write_tiny_llama(source, hidden=32, intermediate=48, heads=4, kv_heads=2, max_position=128)
    template = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    (source / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": template, "bos_token": "<s>"})
    )
    assert run_cli(["compile", str(source), "-o", str(out), "--target", "host"]) == 0
    lm = model(out, engine="interpreter")
    history = [
        {"role": "user", "content": "the cat"},
        {"role": "assistant", "content": "and"},
        {"role": "user", "content": "the hen"},
    ]
    text = lm.apply_chat_template(history)
    assert text == "<s>user: the cat\nassistant: and\nuser: the hen\n"
    assert lm.tok_encode(text).count(lm.prefix_token_id) == 1  # the BOS is not put before it again
    with pytest.raises(UsageError, match="does not end with a user's message"):
        lm.apply_chat_template(history[:2], add_generation_prompt=False)


TASK = """
task: ours
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_target: "{{gold}}"
doc_to_choice: "{{endings}}"
metric_list: [{metric: acc}]
"""


@pytest.mark.slow  # the harness indexes all its tasks
def test_the_command_of_the_harness(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """``lm_eval --model shrinkc`` with a float model, without CUDA and without ``--device``."""
    rows = [
        {"context": "Once upon a time, there was a little", "endings": [end, "zebra"], "gold": gold}
        for end, gold in (("girl", 0), ("girl", 1), ("boy", 0), ("dog", 0))
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "ours.yaml").write_text(TASK.replace("DATA", str(data)))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    command = [
        "lm_eval", "--model", "shrinkc", "--model_args", f"path={STORIES},threads=1",
        "--tasks", str(tmp_path / "ours.yaml"), "--output_path", str(tmp_path / "results"),
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, f"/usr/bin/{command[0]}", *command[1:]])
    shutil.copy(HOOK, tmp_path)
    monkeypatch.delitem(registry.model_registry._objs, "shrinkc", raising=False)
    site.addsitedir(str(tmp_path))  # as when Python starts
    registry.get_model("hf-auto")  # the harness' own are there too
    cli_evaluate()
    (report,) = tmp_path.glob("results/**/results_*.json")
    assert json.loads(report.read_text())["results"]["ours"]["acc,none"] == 0.75
    assert "|ours|" in capfd.readouterr().out.replace(" ", "")
