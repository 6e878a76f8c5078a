"""Every option of every command with values that nobody means: refused by name, never a defect."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from shrinkc.cli.main import DEFECT
from shrinkc.cli.main import cli as commands
from shrinkc.cli.options import Command
from shrinkc.compression.recipe import parse_recipe
from shrinkc.core.errors import BadRecipe, ModelNotFound, UsageError
from shrinkc.core.shell import is_text, printable, quoted

from .conftest import Cli

ODD_NUMBERS = ["nan", "inf", "-inf", "-1", "0", "1e300", "1e-300", "1" + "0" * 30, "9" * 5000]
BYTES = "a\udcff"  # what Python makes of the argument $'a\xff'

# what each command needs besides the option that is tried, where that is not its first example
NEEDED = {
    "compile": ["MODEL", "-o", "out", "--force"],
    "plan": ["MODEL"],
    "run": ["COMPILED", "--tokens", "2"],
    "recipes": ["quarter"],
    "report": ["COMPILED", "-o", "page.html"],
    "compress": ["MODEL", "-o", "run", "--recipe", "quarter", "--dry-run"],
    "eval": ["MODEL", "--task", "hellaswag=missing", "--text", "missing"],
    "explore": ["MODEL", "--recipe", "quarter", "--trials", "1", "-o", "search"],
    "sensitivity": ["MODEL", "--text", "missing"],
    "franken": ["MODEL", "--layers", "0-1", "--task", "hellaswag=missing"],
    "diff": ["COMPILED", "COMPILED"],
    "export": ["COMPILED", "--onnx", "model.onnx"],
}
# numbers in options that are texts for the parser
ALSO_NUMBERS = {"run": ["--prompt-ids"], "eval": ["--windows"], "franken": ["--layers"]}


def options(*types: type[click.ParamType]) -> list[tuple[str, str]]:
    return [
        (name, parameter.opts[-1])
        for name, command in commands.commands.items()
        for parameter in command.params
        if isinstance(parameter, click.Option) and isinstance(parameter.type, types)
    ]


@pytest.fixture
def words(
    model: Path, compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], list[str]]:
    monkeypatch.chdir(tmp_path)
    places = {"MODEL": str(model), "COMPILED": str(compiled)}
    return lambda command: [command, *(places.get(word, word) for word in needed(command))]


def needed(name: str) -> list[str]:
    if name in NEEDED:
        return NEEDED[name]
    command = commands.commands[name]
    assert isinstance(command, Command)
    places = {"model": "MODEL", "out": "COMPILED"}
    return [places.get(word, word) for word in shlex.split(command.examples[0])[2:]]


NUMBERS = [
    *options(type(click.INT), type(click.FLOAT)),
    *[(command, option) for command, names in ALSO_NUMBERS.items() for option in names],
    ("compile", "--l1"),
    ("plan", "--l1"),
]


@pytest.mark.parametrize(("command", "option"), NUMBERS)
def test_no_number_is_a_defect(
    cli: Cli, words: Callable[[str], list[str]], command: str, option: str
) -> None:
    for value in ODD_NUMBERS:
        result = cli(*words(command), f"{option}={value}")
        assert result.code != DEFECT, (value, result.err)
        if value == "nan":
            assert result.code == UsageError.exit_code, result.err
            assert option.strip("-") in result.err and "nan" in result.err


def test_a_run_may_take_as_long_as_it_takes(
    cli: Cli, compiled: Path, needs: Callable[..., None]
) -> None:
    needs("cc", "make")
    for value in ("inf", "1e300", "5e6"):
        result = cli("run", compiled, "--tokens", "2", "--timeout", value)
        assert result.code == 0, result.err


def test_prompt_without_ids(cli: Cli, compiled: Path) -> None:
    for text in ("", " , "):
        result = cli("run", compiled, "--prompt-ids", text)
        assert result.code == UsageError.exit_code
        assert f"--prompt-ids '{text}' has no ids" in result.err


@pytest.mark.parametrize("option", ["lora.rank", "lora.learning_rate", "run.seed"])
def test_numbers_of_a_recipe(option: str) -> None:
    for value in ODD_NUMBERS:
        if value not in ("0", "1e-300"):
            with pytest.raises(BadRecipe):
                parse_recipe({"lora": {}}, [f"{option}={value}"])
    with pytest.raises(BadRecipe, match=r"lora\.rank\.x=1: rank is a value, not a table"):
        parse_recipe({"lora": {"rank": 3}}, ["lora.rank.x=1"])
    with pytest.raises(BadRecipe, match="target_bytes"):
        parse_recipe({"budget": {"target_bytes": "9" * 400 + "MiB"}})


@pytest.mark.parametrize(("command", "option"), options(type(click.STRING)))
def test_text_that_is_not_utf8(
    cli: Cli, words: Callable[[str], list[str]], command: str, option: str
) -> None:
    result = cli(*words(command), f"{option}={BYTES}")
    assert result.code == UsageError.exit_code, result.err
    assert option in result.err and r"'a\xff' is not UTF-8 text" in result.words


@pytest.mark.parametrize("command", commands.commands)
def test_arguments_and_paths_that_are_not_utf8(
    cli: Cli, words: Callable[[str], list[str]], command: str
) -> None:
    """Nothing is called so: missing files, and outputs that the missing files keep from being made."""
    for parameter in commands.commands[command].params:
        if isinstance(parameter.type, click.Path):
            given = [f"{parameter.opts[-1]}={BYTES}"]
            if isinstance(parameter, click.Argument):
                given = [BYTES if w == words(command)[1] else w for w in words(command)[1:]]
            else:
                given = [*words(command)[1:], *given]
            result = cli(command, *given)
            assert result.code != DEFECT, result.err


def test_a_model_in_a_directory_that_is_not_utf8(
    cli: Cli, model: Path, tmp_path: Path, needs: Callable[..., None]
) -> None:
    needs("cc", "make")
    shutil.copytree(model, tmp_path / BYTES)
    out = tmp_path / f"out{BYTES}"
    made = cli("compile", tmp_path / BYTES, "-o", out, "--json")
    assert made.code == 0, made.err
    assert r"outa\xff" in made.err and made.json["output"] == str(out)
    assert json.loads((out / "manifest.json").read_text())["model"] == r"a\xff"
    assert cli("run", out, "--tokens", "2").code == 0
    missing = cli("plan", tmp_path / f"no{BYTES}")
    assert missing.code == ModelNotFound.exit_code and r"noa\xff" in missing.words


def test_printed_commands_can_be_pasted(cli: Cli, model: Path, tmp_path: Path) -> None:
    name = "it's a $(touch here)\n"
    shutil.copytree(model, tmp_path / name)
    made = cli("compile", tmp_path / name, "-o", tmp_path / f"out {name}", "--target", "host")
    assert made.code == 0, made.err
    line = made.err.split("next: shrinkc ")[1]
    script = f'set -- {line}printf "%s\\0" "$@"'
    shown = subprocess.run(["bash", "-c", script], capture_output=True, check=True, cwd=tmp_path)
    assert shown.stdout.decode().split("\0") == [
        "run", str(tmp_path / f"out {name}"), "--on", "host", "--prompt", "Once upon a time", "",
    ]  # fmt: skip
    assert not (tmp_path / "here").exists()
    command = json.loads((tmp_path / f"out {name}" / "manifest.json").read_text())["command"]
    assert command.startswith(f"shrinkc compile {quoted(name)} --target host ")
    first, second = (tmp_path / f"out {name}" / "Makefile").read_text().splitlines()[:2]
    assert first == f"# {command}" and second.startswith("#")


def test_words_for_the_shell() -> None:
    assert quoted("make", "-C", Path("a b"), "it's") == """make -C 'a b' 'it'"'"'s'"""
    assert quoted("a\n\udcff'\\") == r"$'a\x0a\xff\'\\'"
    assert printable("é\udcff") == r"é\xff"
    assert is_text("é\n") and not is_text("\udcff")
