"""Who may import whom, and who may print, read the environment or exit: by reading the source."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from shrinkc.engines import CORES, ENGINES
from shrinkc.targets import L1, MEMORIES

PACKAGE = Path(__file__).resolve().parents[1] / "compiler" / "shrinkc"

# room -> rooms it may import, in reading order: a room sees only rooms above it
ROOMS: dict[str, set[str]] = {
    "core": set(),
    "abi": set(),
    "costs": {"core"},
    "model": set(),
    "targets": {"core"},
    "numerics": {"abi"},
    "storage": {"abi"},
    "engines": {"abi", "costs", "storage"},
    "importer": {"core", "model"},
    "ir": {"abi", "core", "costs", "engines", "numerics", "storage"},
    "quantize": {"core", "engines", "importer", "ir", "model", "numerics", "storage"},
    "schedule": {"engines", "importer", "ir", "model", "quantize", "storage", "targets"},
    "memory": {"abi", "core", "costs", "engines", "ir", "schedule", "storage", "targets"},
    "codegen": {"abi", "core", "engines", "importer", "ir", "memory", "numerics", "schedule", "storage", "targets"},
    "build": {"core", "targets"},
    "simulate": {"abi", "build", "core", "ir", "numerics", "targets"},
    "pictures": {"core", "memory", "schedule", "targets"},
    "export": {"core", "importer", "ir", "model", "numerics"},
    "checkpoints": {"core", "importer", "model"},
    "lm_eval_tasks": set(),
    "evaluation": {"abi", "build", "checkpoints", "core", "importer", "ir", "simulate"},
    "compression": {
        "checkpoints", "core", "evaluation", "importer", "memory", "model", "pictures", "quantize", "schedule",
        "targets",
    },
    "driver": {
        "abi", "build", "checkpoints", "codegen", "compression", "core", "costs", "engines", "evaluation",
        "export", "importer", "ir", "memory", "model", "numerics", "pictures", "quantize", "schedule", "simulate",
        "storage", "targets",
    },
    "report": {
        "compression", "core", "costs", "driver", "engines", "evaluation", "importer", "ir", "memory", "pictures",
        "schedule", "simulate", "storage", "targets",
    },
    "cli": {"build", "checkpoints", "core", "driver", "evaluation", "importer", "storage", "targets"},
}  # fmt: skip

# What the package itself offers sees what it needs for that.
FACADE = {
    "__init__.py": {"compression", "core", "driver", "importer", "report"},
    "__main__.py": {"cli"},
    "api.py": {"checkpoints", "compression", "core", "driver", "evaluation", "importer", "report"},
    "errors.py": {"core"},
}

# The one file of its room that may: it holds the interpreter against what a program printed.
ONLY_FILE = {("simulate", "ir"): "proof.py", ("simulate", "numerics"): "proof.py"}

HEAVY = {
    "accelerate", "datasets", "gptqmodel", "lm_eval", "matplotlib", "onnx", "optuna", "peft",
    "scipy", "sqlalchemy", "torch", "transformers",
}  # fmt: skip
HEAVY_ROOMS = {"checkpoints", "compression", "evaluation", "export"}

# What other programs call, without an environment at hand.
DOORS = (PACKAGE / "api.py", PACKAGE / "evaluation" / "lm_eval.py")

# "flash" is a resource of the cost model as well: what the HyperBus delivers.
RESOURCES = [PACKAGE / name for name in ("costs/table.py", "memory/cycles.py")]

FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {file: ast.parse(file.read_text()) for file in FILES}


def room_of(file: Path) -> str:
    """The first folder below the package; "" for the package's own files."""
    parts = file.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_imported(file: Path) -> set[str]:
    names = (n.split(".") for n in imports(TREES[file]) if n.startswith("shrinkc."))
    return {n[1] for n in names if (PACKAGE / n[1]).is_dir()} - {room_of(file)}


IMPORTED = {file: rooms_imported(file) for file in FILES}


def test_the_table_is_in_reading_order() -> None:
    above: set[str] = set()
    for room, allowed in ROOMS.items():
        assert allowed <= above, f"{room} looks down"
        above.add(room)


def test_rooms() -> None:
    for file in FILES:
        room, seen = room_of(file), IMPORTED[file]
        if not room:
            assert seen == FACADE[file.name], file
            continue
        assert room in ROOMS, f"{room} is new: say in ROOMS what it may import"
        assert seen <= ROOMS[room], f"{file} may not import {sorted(seen - ROOMS[room])}"
        for other in seen:
            only = ONLY_FILE.get((room, other))
            assert only in (None, file.name), f"only {only} of {room} may import {other}"


def test_the_table_allows_nothing_that_nobody_needs() -> None:
    for room, allowed in ROOMS.items():
        used = set().union(*(IMPORTED[f] for f in FILES if room_of(f) == room))
        # cli is the top: what it will need next is no secret
        assert room == "cli" or allowed <= used, f"{room} does not import {sorted(allowed - used)}"


def test_heavy_libraries() -> None:
    for file in FILES:
        top = {name.split(".")[0] for name in imports(TREES[file])}
        assert room_of(file) in HEAVY_ROOMS or not top & HEAVY, file


def forbidden(tree: ast.AST) -> Iterator[str]:
    """Prints, environment, standard streams and exits in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in ("print", "input", "breakpoint", "SystemExit"):
            yield f"{node.id} in line {node.lineno}"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if name in {
                "os.environ", "os.environb", "os.getenv", "os._exit", "sys.exit", "sys.argv",
                "sys.stdin", "sys.stdout", "sys.stderr", "click.echo", "click.secho",
            }:  # fmt: skip
                yield f"{name} in line {node.lineno}"
        elif isinstance(node, ast.ImportFrom) and node.module in ("os", "sys", "click"):
            names = {alias.name for alias in node.names}
            yield from names & {"environ", "getenv", "exit", "stdout", "stderr", "stdin", "echo"}


def test_only_cli_prints_reads_the_environment_or_exits() -> None:
    """And ``api.py`` takes the environment, where its caller gives none, as does what a harness calls."""
    for file in FILES:
        if room_of(file) != "cli":
            found = [what.split(" in ")[0] for what in forbidden(TREES[file])]
            assert found == (["os.environ"] if file in DOORS else []), file


def test_the_search_finds_what_it_looks_for() -> None:
    source = "import os, sys\nprint(1)\nos.environ['A']\nsys.exit()\nfrom os import getenv\n"
    assert len(list(forbidden(ast.parse(source)))) == 4
    main = PACKAGE / "cli" / "main.py"
    assert list(forbidden(ast.parse(main.read_text())))


def test_one_file_finds_resources() -> None:
    users = [
        f.relative_to(PACKAGE).as_posix()
        for f in FILES
        if any(
            (isinstance(n, ast.Name) and n.id == "__file__")
            or (isinstance(n, ast.Attribute) and n.attr == "__file__")
            for n in ast.walk(TREES[f])
        )
        or any(n.startswith("importlib.resources") for n in imports(TREES[f]))
    ]
    assert users == ["core/resources.py"]


def test_the_verifier_shares_no_code_with_the_planner() -> None:
    tree = ast.parse((PACKAGE / "memory" / "verify.py").read_text())
    taken = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "shrinkc.memory.plan"
        for alias in node.names
    }
    assert taken == {"Plan"}, "data only"


def test_engines_and_memories_are_named_in_their_rooms() -> None:
    """Others ask what they declare; ``abi`` says what C headers say."""
    memories = {*MEMORIES} - {L1}  # an option and a field of plans are called so too
    at_home = {*RESOURCES, *(f for f in FILES if room_of(f) in ("engines", "targets"))}
    found = {
        f"{file.relative_to(PACKAGE).as_posix()}: {node.value}"
        for file in FILES
        if file not in at_home
        for node in ast.walk(TREES[file])
        if isinstance(node, ast.Constant) and node.value in (memories | {*ENGINES} - {CORES})
    }
    assert not found
    for file in FILES:
        if room_of(file) not in ("abi", "engines", "targets"):
            assert not re.search("n-?eureka", file.read_text(), re.IGNORECASE), file


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from shrinkc.cli.main import run_cli; code = run_cli(['compile', '--help']);"
        "heavy = {'numpy', 'tokenizers', 'safetensors', 'jinja2'} & set(sys.modules);"
        "sys.exit(code or ' '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_circles_between_the_files_of_a_room() -> None:
    """Imports at a file's top, also those for types alone: a file can be read after those that it names."""
    imported = {module_of(file): file_imports(file) for file in FILES}
    circles: dict[str, list[str]] = {}
    for room in ROOMS:
        inside = [m for m in imported if m.startswith(f"shrinkc.{room}.") or m == f"shrinkc.{room}"]
        graph = {m: imported[m] & set(inside) for m in inside}
        try:
            list(TopologicalSorter(graph).static_order())
        except CycleError as error:
            circles[room] = error.args[1]
    assert not circles


def module_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def file_imports(file: Path) -> set[str]:
    """The modules whose names a file takes as it is imported."""
    tree = ast.parse(file.read_text())
    tops = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    for node in tree.body:
        if isinstance(node, ast.If | ast.Try):
            tops += [n for n in ast.walk(node) if isinstance(n, ast.Import | ast.ImportFrom)]
    modules = {module_of(f) for f in FILES}
    found = set()
    for node in tops:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & modules
            continue
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            found.add(inner if inner in modules else str(node.module))
    return (found & modules) - {module_of(file)}
