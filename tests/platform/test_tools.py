"""Looking for tools, with invented ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from shrinkc.build import tools
from shrinkc.build.tools import TOOL_NAMES, find_tool, find_tools, gvsoc_candidates, require_tool
from shrinkc.core.errors import ToolMissing


def script(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the public places, where this machine may have a GVSoC."""

    def only_named(env: dict[str, str]) -> list[Path]:
        return [p for p in gvsoc_candidates(env) if not str(p).startswith("/opt/")]

    monkeypatch.setattr(tools, "gvsoc_candidates", only_named)


def test_every_tool_is_listed_with_its_remedy(nowhere_else: None) -> None:
    found = find_tools({"PATH": ""})
    assert tuple(tool.name for tool in found) == TOOL_NAMES
    for tool in found:
        assert not tool.usable
        assert tool.problem
        assert "apt-get install" in tool.fix or "https://" in tool.fix


def test_version_is_the_first_line(tmp_path: Path) -> None:
    path = script(tmp_path / "make", "echo Make 9.9; echo more")
    tool = find_tool("make", {"PATH": str(tmp_path)})
    assert (tool.path, tool.version, tool.problem) == (path, "Make 9.9", None)


def test_a_tool_that_does_not_start_is_absent(tmp_path: Path) -> None:
    script(tmp_path / "make", "echo a library is missing >&2; exit 127")
    tool = find_tool("make", {"PATH": str(tmp_path)})
    assert not tool.usable
    assert "a library is missing" in str(tool.problem)
    with pytest.raises(ToolMissing, match="apt-get install make"):
        require_tool("make", {"PATH": str(tmp_path)})


@pytest.mark.parametrize("variable", ["GVSOC_HOME", "GVSOC_INSTALL_DIR"])
@pytest.mark.parametrize("below", ["bin/gvsoc", "install/bin/gvsoc"])
def test_gvsoc_where_the_user_says(tmp_path: Path, variable: str, below: str) -> None:
    path = script(tmp_path / below, "exit 0")
    assert find_tool("gvsoc", {"PATH": "/bin", variable: str(tmp_path)}).path == path


def test_gvsoc_that_lacks_a_python_module_is_passed_over(tmp_path: Path) -> None:
    script(tmp_path / "broken/bin/gvsoc", "echo ModuleNotFoundError: No module >&2; exit 1")
    good = script(tmp_path / "good/bin/gvsoc", "exit 0")
    env = {"PATH": f"{good.parent}:/bin", "GVSOC_HOME": str(tmp_path / "broken")}
    assert find_tool("gvsoc", env).path == good


def test_broken_gvsoc_is_absent_with_the_reason(tmp_path: Path, nowhere_else: None) -> None:
    script(tmp_path / "bin/gvsoc", "echo ModuleNotFoundError: No module >&2; exit 1")
    tool = find_tool("gvsoc", {"PATH": "/bin", "GVSOC_HOME": str(tmp_path)})
    assert not tool.usable
    assert "ModuleNotFoundError" in str(tool.problem)
    assert "https://github.com/gvsoc/gvsoc" in tool.fix


def test_gvsocs_own_python_comes_first(tmp_path: Path) -> None:
    script(tmp_path / "venv/bin/python3", "echo its own")
    script(tmp_path / "bin/gvsoc", '[ "$(python3)" = "its own" ]')
    env = {"PATH": "/usr/bin:/bin", "GVSOC_HOME": str(tmp_path)}
    assert find_tool("gvsoc", env).path == tmp_path / "bin/gvsoc"


def test_a_gvsoc_that_knows_one_chip_of_two(tmp_path: Path, nowhere_else: None) -> None:
    """It runs programs for that one; for the other it is missing, by name."""
    path = script(
        tmp_path / "bin/gvsoc", '[ "$1" = --target=siracusa ] || { echo no such target; exit 1; }'
    )
    env = {"PATH": "/bin", "GVSOC_HOME": str(tmp_path)}
    tool = find_tool("gvsoc", env)
    assert (tool.path, tool.version) == (path, "target siracusa")
    assert require_tool("gvsoc", env, "siracusa") == path
    with pytest.raises(ToolMissing, match=r"pulp-open programs: .* target pulp-open \(no such"):
        require_tool("gvsoc", env, "pulp-open")
