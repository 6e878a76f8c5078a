"""The machine that compiles, without a memory hierarchy."""

from __future__ import annotations

from shrinkc.targets.target import MIB, Level, Program, Target

HOST = Target(
    name="host",
    title="host",
    cores=8,
    levels=(Level("l1", 1024 * MIB), Level("wmem", 8192 * MIB), Level("l2", 1024 * MIB)),
    l1_system=0,
    l2_system=0,
    programs={"host": "host"},
    program=Program(folders=("host",)),
)
