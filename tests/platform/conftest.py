"""A built self-test shared by the tests of this folder; the tools come from the environment."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from program import make_directory

from shrinkc.build import build_program, find_tool
from shrinkc.targets import CHIPS, SIRACUSA, TARGETS

ENV = dict(os.environ)
NEEDS = {
    "host": ("cc",),
    "rv32": ("riscv64-unknown-elf-gcc", "qemu-riscv32"),
    "virt": ("riscv64-unknown-elf-gcc", "qemu-system-riscv32"),
    **dict.fromkeys(CHIPS, ("riscv64-unknown-elf-gcc", "gvsoc")),
}
"""What building and running a program takes, besides make."""

Built = Callable[..., Path]


def need(target: str) -> None:
    """Skips the test, naming what is missing."""
    for name in ("make", *NEEDS[target]):
        tool = find_tool(name, ENV, target if target in CHIPS else None)
        if not tool.usable:
            pytest.skip(f"{tool.name}: {tool.problem}; {tool.fix}")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """built(target, **options): a directory with the self-test built for it, made once each."""
    done: dict[tuple[object, ...], Path] = {}

    def build(target: str, **options: str) -> Path:
        need(target)
        key = (target, *sorted(options.items()))
        if key not in done:
            compiled = TARGETS[target] if target in CHIPS else SIRACUSA
            out = make_directory(tmp_path_factory.mktemp("selftest") / "out", target=compiled)
            build_program(out, target, env=ENV, options=options)
            done[key] = out
        return done[key]

    return build
