"""Compilation of a model to a new directory, completely or not at all."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import shrinkc
from shrinkc.codegen.emit import emit
from shrinkc.core import artifact
from shrinkc.core.errors import PlanInvalid
from shrinkc.core.output import check_directory, new_directory
from shrinkc.core.progress import Reporter
from shrinkc.driver.plan_request import PlanRequest
from shrinkc.driver.planned import Planned, Shortfall
from shrinkc.driver.planning import prepare
from shrinkc.importer import Tokenizer
from shrinkc.ir.dump import dump
from shrinkc.ir.graph import Graph
from shrinkc.ir.serialize import save
from shrinkc.quantize import lower
from shrinkc.schedule.shapes import shapes_of_graph


@dataclass(frozen=True)
class Compiled:
    """A compiled directory.

    Attributes:
        output: The directory.
        files: Number of files.
        prepared: The plan.
    """

    prepared: Planned
    output: Path
    files: int

    def __repr__(self) -> str:
        return f"<Compiled {self.output}: {self.files} files of {self.prepared!r}>"

    def to_json(self) -> dict[str, object]:
        """Return the object that ``--json`` prints."""
        return {**self.prepared.to_json(), "output": str(self.output), "files": self.files}


def compile_model(
    request: PlanRequest, output: Path, *, force: bool, reporter: Reporter
) -> Compiled:
    """Compile into the new directory ``output``.  If anything fails, nothing is left behind.

    Raises the errors of :func:`prepare`, DoesNotFit, BadWeights, OutputError.
    """
    check_directory(output, force=force, foreign=artifact.foreign_files)
    with reporter.stage("planning"):
        prepared = prepare(request, whole=True)
        if isinstance(prepared, Shortfall):
            raise prepared.error
    with reporter.stage("loading weights") as update:
        model = prepared.checkpoint.load(update)
    with reporter.stage("quantising") as update:
        graph = lower(model, prepared.quant, prepared.context, update, prepared.choices)
    shape = shapes_of_graph(graph, prepared.shape.piece_bytes)
    if prepared.formats is not None or shape.shared != prepared.shape.shared:
        prepared = prepared.for_shape(shape)
    if shape != prepared.shape:
        raise PlanInvalid(
            "the quantised model has other shapes than the plan.",
            "this is a defect; please report it with the model's config.",
        )
    with new_directory(output, force=force, foreign=artifact.foreign_files) as folder:
        with reporter.stage("generating code and weights") as update:
            emit(
                graph, prepared.shape, prepared.plan, prepared.target, model.tokenizer, folder,
                prepared.command, update, name=prepared.name, license_name=prepared.checkpoint.license,
            )  # fmt: skip
        with reporter.stage("writing the integer model"):
            _write_records(folder, prepared, graph, model.tokenizer)
        files = len(artifact.list_files(folder)) + 1
    return Compiled(prepared, output, files)


def _write_records(folder: Path, prepared: Planned, graph: Graph, tokenizer: Tokenizer) -> None:
    """Write the integer model, plan, tokenizer, text and picture for people, and the manifest."""
    save(graph, folder / artifact.IR)
    text = folder / artifact.IR_TEXT
    text.write_text(dump(graph), encoding="utf-8")
    # the library makes a file that only the owner can read
    (folder / artifact.IR).chmod(text.stat().st_mode)
    plan = json.dumps(prepared.plan.to_json(), indent=1)
    (folder / artifact.PLAN).write_text(plan + "\n", encoding="utf-8")
    (folder / artifact.MEMORY_MAP).write_text(prepared.picture(), encoding="utf-8")
    (folder / artifact.TOKENIZER).write_text(tokenizer.to_json(), encoding="utf-8")
    if tokenizer.chat is not None:
        (folder / artifact.CHAT_TEMPLATE).write_text(tokenizer.chat.to_json(), encoding="utf-8")
    artifact.write_manifest(
        folder,
        artifact.Manifest(
            model=prepared.name,
            target=prepared.target.name,
            context=prepared.context,
            vocab_size=tokenizer.vocab_size,
            bos_id=tokenizer.bos_id,
            command=prepared.command,
            shrinkc=shrinkc.__version__,
            options=prepared.options,
            widths={} if prepared.widths is None else prepared.widths.by_matrix(),
            stack_bytes=dict(prepared.target.program.stacks),
            static_bytes=dict(prepared.plan.used),
        ),
    )
