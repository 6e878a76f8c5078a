"""Export of the integer model to other formats."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import shrinkc
from shrinkc.core import artifact
from shrinkc.core.errors import ExtraMissing, UnsupportedModel
from shrinkc.core.output import check_file, new_file
from shrinkc.core.progress import Reporter
from shrinkc.core.words import show_size
from shrinkc.export.model import OPSET, to_onnx
from shrinkc.ir.serialize import load

ONNX_MOST = (1 << 31) - 1  # bytes of a file: the limit of a protocol buffer


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
