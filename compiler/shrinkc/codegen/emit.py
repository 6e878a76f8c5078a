"""Writes the generated program: model.h, model.c, forward.c, blobs, build files and the runtime that the model uses."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import jinja2

from shrinkc.codegen.blobs import sampled_hash, write_blobs
from shrinkc.codegen.comments import without_missing_names
from shrinkc.codegen.conditionals import Constants, resolved
from shrinkc.codegen.formats import formats_header
from shrinkc.codegen.runtime import specialised, with_short_headers_inside
from shrinkc.codegen.tables import constant, tables_of
from shrinkc.codegen.tokenizer_blob import missing_steps
from shrinkc.codegen.unused import words_of
from shrinkc.codegen.values import Values, values_of
from shrinkc.core.resources import resource
from shrinkc.importer.tokenizer import Tokenizer
from shrinkc.ir.graph import Graph
from shrinkc.memory.plan import Plan
from shrinkc.schedule.shapes import ModelShape
from shrinkc.targets import MEMORIES, PROGRAMS, Target

ZEPHYR = ("module.yml", "Kconfig")
"""Files that make the directory for a board an external module of Zephyr."""


def emit(
    graph: Graph,
    shape: ModelShape,
    plan: Plan,
    target: Target,
    tokenizer: Tokenizer,
    out: Path,
    command: str,
    progress: Callable[[int, int], None] | None = None,
    *,
    name: str = "model",
    license_name: str = "",
    whole_runtime: bool = False,
) -> None:
    """Write everything the C compiler needs below ``out`` (which exists), with the code that this model uses.

    The same inputs give the same bytes; ``command`` heads every generated file.  ``name``: of the model;
    ``license_name``: of its weights, empty if its files state none.  ``whole_runtime``: keep the kernels that this
    model does not use, for tests of kernels.
    """
    tables = tables_of(graph, shape, plan)
    write_blobs(
        graph, tables.stored, dict(shape.shared), plan, target, tokenizer, out / "blobs", progress
    )  # fmt: skip
    blobs = [(level.name, out / "blobs" / f"{level.name}.bin") for level in target.stored]
    stored_weights = [(level, *sampled_hash(blob)) for level, blob in blobs]
    values = values_of(
        graph, shape, plan, target, tokenizer, tables, stored_weights, command, name, license_name
    )  # fmt: skip
    _print_templates(values, out)
    header = formats_header(values.formats, values.widths, command, values.adapter_format)
    (out / "src/formats.h").write_text(header, encoding="utf-8")
    _copy_runtime(out / "src", [PROGRAMS[name] for name in target.programs.values()])
    if whole_runtime:
        # its conditionals are still there, and need the constants of the model in every file
        with (out / "src/runtime/sc_platform.h").open("a", encoding="utf-8") as every:
            every.write('#include "model.h"\n')
    else:
        _keep_what_is_used(out, values.memories, missing_steps(tokenizer.encode_table()))


def _print_templates(values: Values, out: Path) -> None:
    """Writes the files that have a template."""
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(str(resource("templates"))),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    env.filters["rows"] = _rows_of_numbers
    env.filters["constant"] = constant
    env.filters["assigned"] = _assigned
    (out / "src").mkdir(parents=True)
    for template, file in (
        ("model.h.j2", "src/model.h"),
        ("model.c.j2", "src/model.c"),
        ("forward.c.j2", "src/forward.c"),
        ("Makefile.j2", "Makefile"),
        ("CMakeLists.txt.j2", "CMakeLists.txt"),
        *((f"zephyr/{file}.j2", f"zephyr/{file}") for file in ZEPHYR if values.target.board),
    ):
        (out / file).parent.mkdir(exist_ok=True)
        (out / file).write_text(env.get_template(template).render(vars(values)), encoding="utf-8")


def _assigned(fields: dict[str, int]) -> str:
    """Initialisers of a struct by the names of its fields."""
    return ", ".join(f".{name} = {value}" for name, value in fields.items())


def _rows_of_numbers(values: list[int], per_line: int = 20) -> str:
    lines = [
        "    " + ", ".join(str(v) for v in values[i : i + per_line]) + ","
        for i in range(0, len(values), per_line)
    ]
    return "\n".join(lines)


def _copy_runtime(src: Path, programs: list[Target]) -> None:
    """Copies the C sources of ``programs`` next to the generated ones, so that the directory builds on its own."""
    runtime = resource("runtime_c")
    for folder, to in (("include", "runtime"), ("src", "runtime"), ("program", "program")):
        (src / to).mkdir(exist_ok=True)
        for file in sorted((runtime / folder).iterdir()):
            if file.suffix in (".c", ".h"):
                shutil.copyfile(file, src / to / file.name)
    shutil.copytree(runtime / "encode", src / "encode")
    shutil.copyfile(runtime / "platform" / "blobs.S", src / "blobs.S")
    bare = [t for t in programs if t.program.isa is not None]
    folders = {folder for t in programs for folder in t.program.folders}
    for folder in sorted(folders | ({"freestanding"} if bare else set())):
        shutil.copytree(runtime / "platform" / folder, src / "platform" / folder)
    for t in bare:
        shutil.copytree(resource("toolchain") / t.program.name, src / "toolchain" / t.program.name)


def _keep_what_is_used(out: Path, memories: Collection[str], without: Mapping[str, bool]) -> None:
    """Cuts the sources down to what this model's programs use.

    ``memories``: those that hold weights; ``without``: macros of the encoder.
    """
    src = out / "src"
    generated = {file.name: file for file in src.glob("*.[ch]")}
    runtime = {
        file.name: file
        for folder in ("runtime", "encode")
        for file in (src / folder).glob("*.[ch]")
    }
    others = {
        file.relative_to(src).as_posix(): file.read_text(encoding="utf-8")
        for folder in ("platform", "program")
        for file in sorted((src / folder).rglob("*.[chS]"))
    }
    options = set(re.findall(r"-D(\w+)", (out / "Makefile").read_text(encoding="utf-8")))
    decided = {f"SC_HAS_{name.upper()}": name in memories for name in MEMORIES}
    others = {path: _for_memories(text, decided, options) for path, text in others.items()}
    texts = specialised(
        {name: file.read_text(encoding="utf-8") for name, file in runtime.items()},
        {name: file.read_text(encoding="utf-8") for name, file in generated.items()},
        list(others.values()),
        options,
        {**decided, **without},
    )
    joined = with_short_headers_inside(others)
    for path in others:
        if path in joined:
            (src / path).write_text(joined[path], encoding="utf-8")
        else:
            (src / path).unlink()
    for name, file in {**runtime, **generated}.items():
        if name in texts:
            file.write_text(texts[name], encoding="utf-8")
        else:
            file.unlink()
    sources = {
        file.relative_to(src).as_posix(): file.read_text(encoding="utf-8")
        for file in sorted(src.rglob("*.[chS]"))
    }
    for path, text in without_missing_names(sources, _build_files(out)).items():
        if path != "runtime/llm.h" and text != sources[path]:
            (src / path).write_text(text, encoding="utf-8")


def _for_memories(text: str, memories: Mapping[str, bool], options: Collection[str]) -> str:
    """A source of a platform without what is for memories that this model does not use."""
    decided = {*memories, *({"SC_RAM_BYTES"} - set(options))}
    there = {name: "1" for name, is_there in memories.items() if is_there}
    return re.sub(r"\n{3,}", "\n\n", resolved(text, Constants(there, words_of(text) - decided)))


def _build_files(out: Path) -> list[str]:
    """Texts that name macros of the program besides its sources."""
    return [(out / name).read_text(encoding="utf-8") for name in ("Makefile", "CMakeLists.txt")]
