"""Search for external programs: compilers, make, emulator, simulator.

Callers pass the environment; this module does not read the process environment.  GVSoC is rarely on ``PATH``,
so it is searched elsewhere too, see :func:`gvsoc_candidates`.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from shrinkc.core.errors import ToolMissing
from shrinkc.core.words import listed
from shrinkc.targets import TARGETS

PROBE_SECONDS = 20
GVSOC_LINK = "https://github.com/gvsoc/gvsoc"


@dataclass(frozen=True)
class Tool:
    """External program, or the reason why it cannot be used.

    ``path`` and ``version`` are None if ``problem`` is set, and before the search.
    """

    name: str
    needed_for: str
    fix: str
    path: Path | None = None
    version: str | None = None
    problem: str | None = None

    @property
    def usable(self) -> bool:
        """Return whether the program was found and starts."""
        return self.path is not None


def _on_path(name: str, needed_for: str, debian_package: str) -> Tool:
    return Tool(name, needed_for, f"apt-get install {debian_package}")


_ON_PATH = (
    _on_path("cc", "native programs (make host)", "gcc"),
    _on_path("make", "every build", "make"),
    _on_path(
        "riscv64-unknown-elf-gcc",
        f"{listed([t.name for t in TARGETS.values() if t.program.isa])} programs",
        "gcc-riscv64-unknown-elf",
    ),
    _on_path(
        "qemu-riscv32",
        f"running {listed([t.name for t in TARGETS.values() if t.machine == 'qemu'])} programs",
        "qemu-user",
    ),
    _on_path("qemu-system-riscv32", "running programs for boards", "qemu-system-riscv"),
)
SOCS = {t.name: t.gvsoc for t in TARGETS.values() if t.gvsoc}
"""Targets that GVSoC runs -> their names in GVSoC."""

TOOL_NAMES = (*(w.name for w in _ON_PATH), "gvsoc")


def find_tools(env: Mapping[str, str]) -> list[Tool]:
    """Return all external programs in the order of :data:`TOOL_NAMES`, usable or not."""
    return [find_tool(name, env) for name in TOOL_NAMES]


def find_tool(name: str, env: Mapping[str, str], target: str | None = None) -> Tool:
    """Return the program ``name`` (of :data:`TOOL_NAMES`), after a test start.

    GVSoC must support the SoC ``target`` (of :data:`SOCS`), or any of them if ``target`` is None.
    """
    if name == "gvsoc":
        return _find_gvsoc(env, tuple(SOCS) if target is None else (target,))
    return _find_on_path(next(w for w in _ON_PATH if w.name == name), env)


def require_tool(name: str, env: Mapping[str, str], target: str | None = None) -> Path:
    """Return the path of :func:`find_tool`.  Raises ToolMissing, with a hint how to install it, if it is not
    usable."""
    tool = find_tool(name, env, target)
    if tool.path is None:
        raise ToolMissing(
            f"{tool.name}, which is needed for {tool.needed_for}: {tool.problem}.", f"{tool.fix}."
        )
    return tool.path


def _find_on_path(wanted: Tool, env: Mapping[str, str]) -> Tool:
    found = shutil.which(wanted.name, path=env.get("PATH", ""))
    if found is None:
        return replace(wanted, problem="not found on PATH")
    code, output = _probe([found, "--version"], env)
    if code != 0:
        return replace(wanted, problem=f"{found} does not start ({_last_line(output)})")
    version = output.strip().splitlines()[0] if output.strip() else "unknown"
    return replace(wanted, path=Path(found), version=version)


def gvsoc_candidates(env: Mapping[str, str]) -> Iterator[Path]:
    """Yield launchers to try: the user's setting, PATH, common places."""
    for variable in ("GVSOC_HOME", "GVSOC_INSTALL_DIR"):
        if env.get(variable):
            yield Path(env[variable]) / "bin" / "gvsoc"
            yield Path(env[variable]) / "install" / "bin" / "gvsoc"
    on_path = shutil.which("gvsoc", path=env.get("PATH", ""))
    if on_path is not None:
        yield Path(on_path)
    yield Path("/opt/gvsoc/bin/gvsoc")


def gvsoc_environment(launcher: Path, env: Mapping[str, str]) -> dict[str, str]:
    """Return ``env`` with the Python that has the launcher's dependencies first on PATH."""
    own_python = launcher.parent.parent / "venv" / "bin"
    if not own_python.is_dir():
        return dict(env)
    return {**env, "PATH": f"{own_python}:{env.get('PATH', '')}"}


def _find_gvsoc(env: Mapping[str, str], targets: tuple[str, ...]) -> Tool:
    """Return the first launcher that starts and supports one of the SoCs, or else the problem of the first one."""
    names = [SOCS[target] for target in targets]
    needed_for = f"running {listed(targets)} programs"
    plural = "targets" if len(names) > 1 else "target"
    fix = f"build it from {GVSOC_LINK} ({plural} {listed(names)})"
    problem = None
    for launcher in gvsoc_candidates(env):
        if not launcher.is_file():
            continue
        own = gvsoc_environment(launcher, env)
        probes = [
            (name, *_probe([str(launcher), f"--target={name}", "--help"], own)) for name in names
        ]
        if known := [name for name, code, _ in probes if code == 0]:
            version = f"{'targets' if len(known) > 1 else 'target'} {listed(known)}"
            return Tool("gvsoc", needed_for, fix, launcher, version)
        name, _, output = probes[0]
        problem = problem or f"{launcher} does not start with target {name} ({_last_line(output)})"
    problem = problem or "not found in $GVSOC_HOME, $GVSOC_INSTALL_DIR, PATH or the usual places"
    return Tool("gvsoc", needed_for, fix, problem=problem)


def _probe(command: list[str], env: Mapping[str, str]) -> tuple[int, str]:
    """Return exit status and combined output of a short command; -1 and the reason if it cannot run."""
    try:
        done = subprocess.run(
            command,
            env={**env, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except OSError as error:
        return -1, error.strerror or str(error)
    except subprocess.TimeoutExpired:
        return -1, f"no answer within {PROBE_SECONDS} s"
    return done.returncode, done.stdout.decode(errors="replace")


def _last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "without a message"
