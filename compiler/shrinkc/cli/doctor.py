"""``shrinkc doctor``: installed tools, missing tools, and the command that installs them."""

from __future__ import annotations

import os
from dataclasses import asdict

import click

from shrinkc.build.tools import Tool, find_tools
from shrinkc.cli.console import Console, print_json
from shrinkc.cli.options import command
from shrinkc.core.errors import ToolMissing

MINIMUM = ("cc", "make")
_APT = "apt-get install "


@command(
    "doctor",
    "Check that all tools that shrinkc uses are installed.",
    "shrinkc doctor",
)
def doctor_command(as_json: bool) -> None:
    """Check that all tools that shrinkc uses are installed, and say how to install missing ones."""
    with Console().stage("looking for tools"):
        tools = find_tools(os.environ)
    missing = [t for t in tools if not t.usable]
    lacking = [t for t in missing if t.name in MINIMUM]
    if as_json:
        records = [{**asdict(t), "path": str(t.path) if t.path else None} for t in tools]
        print_json({"ok": not lacking, "tools": records})
    else:
        for line in table(tools):
            click.echo(line)
    if lacking:
        raise ToolMissing(
            f"no program can be built without {' and '.join(t.name for t in lacking)}.",
            f"{fix(lacking)}.",
        )


def table(tools: list[Tool]) -> list[str]:
    """Return a line per tool, then one command for all missing Debian packages."""
    name, use = (max(len(text) for text in column) for column in (
        [t.name for t in tools], [t.needed_for for t in tools],
    ))  # fmt: skip
    out = []
    for t in tools:
        state = f"ok       {t.version}" if t.usable else f"MISSING  {t.problem}"
        out.append(f"{t.name:<{name}}  {t.needed_for:<{use}}  {state}")
    missing = [t for t in tools if not t.usable]
    packages = [t for t in missing if t.fix.startswith(_APT)]
    if packages:
        out.append(f"to fix: {fix(packages)}")
    out += [f"to fix {t.name}: {t.fix}" for t in missing if t not in packages]
    return out


def fix(tools: list[Tool]) -> str:
    """Return a command that installs the Debian packages of ``tools``."""
    return f"sudo {_APT}" + " ".join(t.fix.removeprefix(_APT) for t in tools)
