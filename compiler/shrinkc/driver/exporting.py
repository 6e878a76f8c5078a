"""Export of models to other formats."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import shrinkc
from shrinkc.checkpoints import README, Loading, is_packed, located, need, write_gptq
from shrinkc.core import artifact
from shrinkc.core.errors import ExtraMissing, OutputError, UnsupportedModel, UsageError
from shrinkc.core.output import check_directory, check_file, new_directory, new_file, write_file
from shrinkc.core.progress import Reporter
from shrinkc.core.shell import name_of
from shrinkc.core.words import show_size
from shrinkc.export.model import OPSET, to_onnx
from shrinkc.importer import open_checkpoint
from shrinkc.importer.gptq_config import is_quantized
from shrinkc.ir.serialize import load

if TYPE_CHECKING:
    from shrinkc.export.gguf import Written

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w-]*/[A-Za-z0-9][\w.-]*")
ONNX_MOST = (1 << 31) - 1  # bytes of a file: the limit of a protocol buffer


class Result(Protocol):
    """Summary of an export."""

    def lines(self) -> list[str]:
        """Return a summary."""

    def to_json(self) -> dict[str, object]:
        """Return a JSON object."""


@dataclass(frozen=True)
class Exported:
    """Exported file.  ``nodes``: number of nodes by operator."""

    output: Path
    model: str
    bytes: int
    nodes: dict[str, int]

    def lines(self) -> list[str]:
        """Return a summary."""
        count = sum(self.nodes.values())
        return [
            f"{self.output}: {self.model}, {count} nodes of {len(self.nodes)} operators of ONNX opset "
            f"{OPSET}, {show_size(self.bytes)}"
        ]

    def to_json(self) -> dict[str, object]:
        """Return a JSON object."""
        return {
            "output": str(self.output), "model": self.model, "opset": OPSET, "bytes": self.bytes,
            "nodes": self.nodes,
        }  # fmt: skip


def export_onnx(source: Path, output: Path, reporter: Reporter) -> Exported:
    """Write the graph of ``source``, a compiled directory or its ``ir.safetensors``, completely or not at all.

    Raises ExtraMissing without the library, BadArtifact, OutputError, and UnsupportedModel for an op without a
    converter or a model too large for one file.
    """
    if find_spec("onnx") is None:
        raise ExtraMissing(
            "onnx is not installed.",
            "run pip install '.[onnx]' in shrinkc's source folder.",
        )
    check_file(output)
    with reporter.stage("reading the integer model"):
        graph = load(source / artifact.IR if source.is_dir() else source)
    with reporter.stage("converting"):
        model = to_onnx(graph, shrinkc.__version__)
        size = model.ByteSize()
        if size > ONNX_MOST:
            raise UnsupportedModel(
                f"{graph.name} would take {size} bytes as ONNX; an ONNX file can have {ONNX_MOST}.",
                "export a smaller model.",
            )
        content = model.SerializeToString(deterministic=True)
    with new_file(output) as file:
        file.write(content)
    nodes = Counter(node.op_type for node in model.graph.node)
    return Exported(output, graph.name, len(content), dict(sorted(nodes.items())))


@dataclass(frozen=True)
class ExportedGguf:
    """Exported file.  ``written``: its matrices by kind, and notes."""

    output: Path
    model: str
    bytes: int
    written: Written

    def lines(self) -> list[str]:
        """Return a summary: a line for the file, and one for each kind of matrices."""
        lines = [f"{self.output}: {self.model}, {show_size(self.bytes)}"]
        for kind in self.written.kinds:
            bits = 8 * kind.bytes / kind.weights
            difference = "the same values"
            if kind.error:
                difference = f"values differ by {100 * kind.error:.2g} % (root mean square)"
                if kind.steps is not None:
                    difference += f", at most {kind.steps:.2g} of a quantisation step"
            matrices = "matrix" if kind.count == 1 else "matrices"
            lines.append(
                f"  {kind.stored}: {kind.count} {matrices} as {kind.type}, {bits:.2g} bits per weight, "
                f"{show_size(kind.bytes)}; {difference}"
            )
        return [*lines, *(f"note: {note}" for note in self.written.notes)]

    def to_json(self) -> dict[str, object]:
        """Return a JSON object."""
        kinds = [
            {
                "stored": kind.stored, "type": kind.type, "matrices": kind.count, "weights": kind.weights,
                "bytes": kind.bytes, "relative_error": kind.error, "largest_error_in_steps": kind.steps,
            }
            for kind in self.written.kinds
        ]  # fmt: skip
        return {
            "output": str(self.output), "model": self.model, "bytes": self.bytes, "kinds": kinds,
            "notes": self.written.notes,
        }  # fmt: skip


def export_gguf(
    source: Path, output: Path, reporter: Reporter, *, compact: bool = False
) -> ExportedGguf:
    """Write the model in the directory ``source`` as a GGUF file, completely or not at all.

    ``compact``: with the smallest types, which may round minima to float16.

    Raises the errors of :func:`shrinkc.importer.load_model`, UnsupportedModel for what GGUF or llama.cpp cannot
    have, and OutputError.
    """
    from shrinkc.export.gguf import write_gguf

    check_file(output)
    checkpoint = open_checkpoint(located(source, weights=True), whole=True)
    with reporter.stage("reading weights") as update:
        model = checkpoint.load(update)
    with reporter.stage("writing"):
        written = write_gguf(model, output, checkpoint.license, compact=compact)
    return ExportedGguf(output, checkpoint.name, output.stat().st_size, written)


@dataclass(frozen=True)
class ExportedFiles:
    """A written or pushed directory.  ``done``: what was done with its ``files`` (name -> bytes), for people."""

    output: str
    model: str
    done: str
    files: dict[str, int]
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return a summary with a line for each file."""
        total = show_size(sum(self.files.values()))
        files = [f"  {name}: {show_size(size)}" for name, size in self.files.items()]
        return [
            f"{self.output}: {self.model}, {len(self.files)} files, {total}, {self.done}",
            *files,
            *self.notes,
        ]

    def to_json(self) -> dict[str, object]:
        """Return a JSON object."""
        return {
            "output": self.output, "model": self.model, "done": self.done, "files": self.files,
            "notes": list(self.notes),
        }  # fmt: skip


def export_gptq(source: Path, output: Path, reporter: Reporter) -> ExportedFiles:
    """Write the standard GPTQ checkpoint of the step ``source`` to the new directory ``output``.

    Raises UnsupportedModel for a model that is not quantised, and the errors of the importer and of the output.
    """
    check_directory(output)
    source = located(source, weights=True)
    open_checkpoint(source, whole=True)
    if not is_quantized(source):
        raise UnsupportedModel(
            f"{source} has float weights; a GPTQ checkpoint has integers.",
            "give a step after a stage gptq.",
        )
    with reporter.stage("writing"), new_directory(output) as folder:
        write_gptq(source, folder, copy=True)
        loading = Loading.of(folder)
        write_file(folder / README, f"# {name_of(output)}\n\n{loading.section()}")
    size = "embedding and LM head take 16 bits per weight" if is_packed(source) else ""
    notes = (f"load it with: {loading.line(str(output))}", *filter(None, (size, loading.reason)))
    return ExportedFiles(str(output), name_of(source), "written", _sizes(output), notes)


def push(
    source: Path,
    repository: str,
    reporter: Reporter,
    *,
    private: bool = False,
    dry_run: bool = False,
) -> ExportedFiles:
    """Push the model directory ``source`` to ``repository`` (owner/name) of the Hugging Face hub.

    ``dry_run``: only list the files.  Raises UsageError for a name that the hub does not allow, ExtraMissing, the
    errors of the importer, and HubRefused.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise UsageError(f"--hub {repository} is no OWNER/NAME.", "such as --hub me/my-model.")
    name = open_checkpoint(located(source, weights=True), whole=True).name
    if not source.is_dir():
        raise UsageError(f"{source} is a file.", "give a directory, such as a step of a run.")
    files = _sizes(source)
    if dry_run:
        return ExportedFiles(repository, name, "nothing was pushed (--dry-run)", files)
    need("huggingface_hub")
    from huggingface_hub import HfApi

    with reporter.stage("pushing"):
        try:
            api = HfApi()
            api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=repository, folder_path=source, allow_patterns=list(files),
                commit_message=f"{name} by shrinkc {shrinkc.__version__}",
            )  # fmt: skip
        except Exception as error:  # any error of the network or the hub
            first = (str(error).strip() or type(error).__name__).split("\n")[0]
            raise OutputError(
                f"{repository} was not pushed: {first}",
                "log in with 'hf auth login', with a token that may write, and try again.",
            ) from error
    return ExportedFiles(repository, name, "pushed", files)


def _sizes(directory: Path) -> dict[str, int]:
    found = sorted(p for p in directory.rglob("*") if p.is_file() and not p.name.startswith("."))
    return {p.relative_to(directory).as_posix(): p.stat().st_size for p in found}
