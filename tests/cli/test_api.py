"""What ``import shrinkc`` offers, and that the commands are made of it."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

import shrinkc
import shrinkc.core.errors
import shrinkc.errors
from shrinkc.core.progress import Update

from .conftest import Cli

FUNCTIONS = ("open", "plan", "compile", "run", "chat", "evaluate", "compress", "write_report")


def in_a_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


# --- import ---------------------------------------------------------------------------------


def test_import_brings_nothing_before_it_is_used() -> None:
    """Nor does asking for a function, its signature or its documentation."""
    code = (
        "import sys, shrinkc; before = set(sys.modules);"
        f"[getattr(shrinkc, n).__doc__ for n in {FUNCTIONS}];"
        "heavy = {'numpy', 'torch', 'transformers', 'tokenizers', 'safetensors', 'jinja2', 'click'};"
        "rooms = {m for m in sys.modules if m.startswith('shrinkc.')};"
        "print(sorted(heavy & set(sys.modules)), sorted(rooms))"
    )
    assert in_a_process(code) == (
        "[] ['shrinkc.api', 'shrinkc.core', 'shrinkc.core.progress', 'shrinkc.core.words']"
    )


def test_plans_import_no_torch(tmp_path: Path) -> None:
    code = (
        f"import sys, shrinkc; shrinkc.plan({str(STORIES)!r});"
        "print(sorted({'torch', 'transformers', 'matplotlib', 'click'} & set(sys.modules)))"
    )
    assert in_a_process(code) == "[]"


STORIES = Path(__file__).resolve().parents[2] / "examples" / "stories"


def test_rooms_take_no_function_of_the_package(tmp_path: Path) -> None:
    """A subpackage of a function's name would take its place when it is imported."""
    rooms = {
        p.name for p in Path(shrinkc.__file__).parent.iterdir() if (p / "__init__.py").exists()
    }
    assert not rooms & set(shrinkc.__all__)


def test_what_is_offered_is_there_documented_and_typed() -> None:
    for name in shrinkc.__all__:
        assert getattr(shrinkc, name) is not None and name in dir(shrinkc)
    for name in FUNCTIONS:
        function = getattr(shrinkc, name)
        assert "Raises" in inspect.getdoc(function), name
        signature = inspect.signature(function)
        assert signature.return_annotation is not inspect.Signature.empty
        for parameter in signature.parameters.values():
            assert parameter.annotation is not inspect.Parameter.empty, (name, parameter)
            assert parameter.name in inspect.getdoc(function) or parameter.name in (
                *SAID_ELSEWHERE.get(name, ()), "env", "reporter",
            ), (name, parameter)  # fmt: skip
    with pytest.raises(AttributeError, match="no attribute 'decompress'"):
        _ = shrinkc.decompress


# options that `compile` says are those of `plan`
SAID_ELSEWHERE = {"compile": tuple(inspect.signature(shrinkc.plan).parameters)}


def test_every_error_is_offered() -> None:
    errors = {
        name for name, value in vars(shrinkc.core.errors).items()
        if isinstance(value, type) and value.__module__ == shrinkc.core.errors.__name__
    }  # fmt: skip
    for name in errors:
        assert getattr(shrinkc.errors, name) is getattr(shrinkc.core.errors, name)


# --- use ------------------------------------------------------------------------------------


class Heard:
    """A reporter that keeps what it hears."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def stage(self, title: str) -> AbstractContextManager[Update]:
        self.stages.append(title)
        return nullcontext(lambda done, total, note="": None)

    def note(self, text: str) -> None:
        """Nothing to note."""


def test_results_are_a_line_where_they_are_printed(
    model: Path, compiled: Path, tmp_path: Path
) -> None:
    shown = {
        "Checkpoint": shrinkc.open(model),
        "Planned": shrinkc.plan(model),
        "Shortfall": shrinkc.plan(model, l1=1024),
        "Reported": shrinkc.write_report(compiled, tmp_path / "page.html"),
    }
    for name, result in shown.items():
        assert repr(result).startswith(f"<{name} "), name
        assert "tiny" in repr(result) and len(repr(result)) < 160 + len(str(tmp_path)), repr(result)


def test_a_sweep(model: Path) -> None:
    opened = shrinkc.open(model)
    found = [
        shrinkc.plan(opened, bits=b, context=c, engines=["cores"]) for b in (8, 2) for c in (16, 64)
    ]
    assert [p.context for p in found if p.fits] == [16, 64, 16, 64]
    sizes = [p.weight_bytes for p in found if p.fits]
    assert sizes[0] == sizes[1] > sizes[2] == sizes[3]


def test_from_a_checkpoint_to_a_proof_without_a_word(
    model: Path,
    tmp_path: Path,
    needs: Any,
    capfd: pytest.CaptureFixture[str],
) -> None:
    needs("cc", "make")
    heard, told = Heard(), list[str]()
    made = shrinkc.compile(str(model), str(tmp_path / "out"), context=48, reporter=heard)
    assert repr(made).startswith(f"<Compiled {made.output}: ")
    assert made.output == tmp_path / "out" and made.prepared.fits
    assert heard.stages[:2] == ["planning", "loading weights"]
    result = shrinkc.run(
        made.output, prompt="hello", tokens=5, ignore_eos=True, reporter=heard, on_text=told.append
    )
    assert result.verdict is not None and result.verdict.compared > 0 == result.verdict.mismatched
    assert len(result.new_tokens) == 5 and result.prompt_tokens
    proof = f"{result.verdict.compared} values checked, 0 differ"
    assert repr(result) == f"<RunResult tiny on host: 5 new tokens, {proof}>"
    assert "".join(told) == result.text + "\n" and told[0].endswith("hello")
    assert "running on host" in heard.stages
    report = shrinkc.evaluate(made.output, samples=["hello"], engine="interpreter")
    assert report["samples"]["texts"][0]["new_tokens"][:5] == result.new_tokens
    assert capfd.readouterr() == ("", "")


def test_a_difference_is_raised_or_told(
    model: Path,
    tmp_path: Path,
    needs: Any,
) -> None:
    needs("cc", "make")
    out = shrinkc.compile(model, tmp_path / "out").output
    blob = out / "blobs" / "wmem.bin"
    data = bytearray(blob.read_bytes())
    at = next(
        p["offset"] for p in json.loads((out / "plan.json").read_text())["placements"]
        if p["name"] == "layer1.o"
    )  # fmt: skip
    data[at + 16 + 3] ^= 0x40
    blob.write_bytes(data)
    with pytest.raises(shrinkc.errors.Mismatch):
        shrinkc.run(out, prompt="hello", tokens=2)
    result = shrinkc.run(out, prompt="hello", tokens=2, check=False)
    assert result.verdict is not None and not result.verdict.ok
    assert result.changed == ("blobs/wmem.bin",)


def test_the_environment_is_that_of_the_caller_where_none_is_given(
    compiled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(shrinkc.errors.ToolMissing):
        shrinkc.run(compiled, prompt="x", env={"PATH": str(tmp_path)})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(shrinkc.errors.ToolMissing):
        shrinkc.run(compiled, prompt="x")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"bits": 7}, "QuantizeError"),
        ({"bits": 0}, "QuantizeError"),
        ({"context": 1}, "UsageError"),
        ({"target": "esp32"}, "UsageError"),
        ({"l1": 1 << 30}, "UsageError"),
        ({"group_size": 7}, "QuantizeError"),
        ({"adapter": "nowhere"}, "ModelNotFound"),
    ],
    ids=str,
)
def test_impossible_options(model: Path, options: dict[str, Any], error: str) -> None:
    with pytest.raises(getattr(shrinkc.errors, error)):
        shrinkc.plan(model, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"on": "board"}, {"prompt": "a", "prompt_ids": [1]}, {"prompt_ids": []},
        {"prompt_ids": [-1]}, {"make_options": {"CFLAGS": "-O3"}}, {"timeout": 0},
        {"temperature": -1}, {"chat": True}, {"tokens": 0, "prompt": "a"},
    ],
    ids=str,
)  # fmt: skip
def test_impossible_runs(compiled: Path, options: dict[str, Any]) -> None:
    with pytest.raises(shrinkc.errors.UsageError):
        shrinkc.run(compiled, **options)


def test_compress_checks_its_recipe(model: Path, tmp_path: Path) -> None:
    with pytest.raises(shrinkc.errors.BadRecipe, match="there is no recipe 'nothing'"):
        shrinkc.compress(model, tmp_path / "out", recipe="nothing")


class InMemory:
    """What a model of transformers can do, as far as a refusal asks."""

    def save_pretrained(self, folder: Path) -> None:
        raise AssertionError("nothing is saved before all of it was checked")


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        (InMemory(), {}, "a model in memory needs its tokenizer"),
        (STORIES, {"tokenizer": InMemory()}, "stories has its own"),
        ({"weights": 1}, {}, "the model is a dict"),
    ],
)
def test_models_that_compress_does_not_take(
    tmp_path: Path, model: Any, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(shrinkc.errors.UsageError, match=said):
        shrinkc.compress(model, tmp_path / "out", recipe={"gptq": {"bits": 4}}, **options)
    assert not (tmp_path / "out").exists()


# --- the command line -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "command"),
    [
        ("plan", ["plan", "m", "--bits", "4", "--context", "32"]),
        ("compile", ["compile", "m", "-o", "out", "--embedding-bits", "4"]),
        ("run", ["run", "out", "--prompt", "x", "--no-verify"]),
        ("chat", ["chat", "out", "--verify"]),
        ("evaluate", ["eval", "m", "--sample", "x"]),
        ("compress", ["compress", "m", "-o", "out", "--recipe", "quarter"]),
    ],
)
def test_a_command_calls_the_function(
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    command: list[str],
) -> None:
    real = inspect.signature(getattr(shrinkc.api, function))
    calls = []

    def called(*arguments: Any, **options: Any) -> Any:
        calls.append(real.bind(*arguments, **options).arguments)
        raise shrinkc.errors.UsageError("enough.")

    monkeypatch.setattr(shrinkc.api, function, called)
    assert cli(*command).code == 2 and len(calls) == 1
    wanted = {"plan": ("bits", 4), "compile": ("embedding_bits", 4), "run": ("verify", False)}
    wanted["chat"] = ("verify", True)
    if function in wanted:
        name, value = wanted[function]
        assert calls[0][name] == value
