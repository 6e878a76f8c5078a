"""Inspection of files and directories: kind, contents and sizes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from shrinkc.compression.inspecting import inspect_run, step_facts
from shrinkc.core import artifact
from shrinkc.core.errors import (
    BadArtifact,
    BadConfig,
    BadTokenizer,
    ModelNotFound,
    QuantizeError,
    ShapeMismatch,
    ShrinkcError,
    UnsupportedModel,
)
from shrinkc.core.findings import Findings, Row, alike, starred
from shrinkc.core.shell import name_of
from shrinkc.driver.estimating import read_plan
from shrinkc.importer import Checkpoint, LlamaConfig, Tokenizer, open_checkpoint
from shrinkc.importer.gguf_file import GgufFile
from shrinkc.importer.safetensors_file import has_weights, open_weights
from shrinkc.ir.graph import IR_VERSION, Graph
from shrinkc.ir.serialize import load
from shrinkc.memory.parts import stored_in
from shrinkc.memory.plan import Plan
from shrinkc.model import LinearRopeScaling, RopeScaling, bias_shapes, matrix_shapes, norm_shapes
from shrinkc.quantize import check_sizes
from shrinkc.schedule.shapes import shapes_of_graph
from shrinkc.targets import L1

_SHOWN = 100  # characters shown of a metadata value of a GGUF file

# Errors for which a checkpoint cannot be compiled, but its tensors can still be listed.
_REFUSED = (BadConfig, BadTokenizer, QuantizeError, ShapeMismatch, UnsupportedModel)


def inspect(path: Path) -> Findings:
    """Inspect a compiled directory, an integer model, a checkpoint directory, a configuration alone, a
    GGUF file, or a compression run.  Weights of checkpoints are not read.

    Raises ModelNotFound for anything else, and BadArtifact, IllegalIR or BadWeights for a damaged file.
    """
    run = inspect_run(path)
    if run is not None:
        return run
    found = _inspect(path)
    found.facts |= step_facts(path)
    return found


def _inspect(path: Path) -> Findings:
    if (path / artifact.MANIFEST).is_file() and artifact.is_artifact(path):
        return _compiled(path)
    if path.is_file() and path.suffix == ".safetensors":
        return _integer_model(path)
    if path.is_file() and path.suffix.lower() == ".gguf":
        return _gguf(path)
    return _directory(path)


# ---- checkpoints ----


def _directory(path: Path) -> Findings:
    tensors: list[Row] = []
    weights = path.is_dir() and has_weights(path)
    if weights:
        files = open_weights(path)
        tensors = alike(
            {"tensor": starred(n), "shape": _shape(t.shape), "type": t.dtype, "bytes": t.nbytes}
            for n, t in sorted(files.items(), key=lambda item: _in_order(item[0]))
        )
    opened = _opened(path)
    if isinstance(opened, ShrinkcError) and not weights:
        raise opened
    kind = "Hugging Face checkpoint" if weights else "configuration without weights"
    if isinstance(opened, Checkpoint) and opened.formats is not None:
        kind = "GPTQ checkpoint" if weights else "configuration of a GPTQ checkpoint"
    return _of_model(kind, path, opened, tensors)


def _gguf(path: Path) -> Findings:
    file = GgufFile(path)
    tensors = alike(
        {"tensor": starred(n), "shape": _shape(t.shape), "type": t.kind, "bytes": t.nbytes}
        for n, t in file.tensors.items()
    )
    found = _of_model("GGUF file", path, _opened(path), tensors)
    found.tables["metadata"] = [
        {"key": key, "value": _metadata(value)} for key, value in file.metadata.items()
    ]
    return found


def _metadata(value: object) -> str:
    if isinstance(value, list):
        return f"{len(value)} values"
    text = " ".join(str(value).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} letters)"


def _opened(path: Path) -> Checkpoint | ShrinkcError:
    """Return the checkpoint, or the error why it cannot be compiled."""
    try:
        checkpoint = open_checkpoint(path)
        check_sizes(checkpoint.config)
    except (*_REFUSED, ModelNotFound) as refusal:
        return refusal
    return checkpoint


def _of_model(
    kind: str, path: Path, opened: Checkpoint | ShrinkcError, tensors: list[Row]
) -> Findings:
    found = Findings(kind, name_of(path))
    if isinstance(opened, ShrinkcError):
        found.facts["compiles"] = False
        found.notes.append(str(opened))
    else:
        found.facts = {**_config_facts(opened.config), "compiles": opened.whole}
        found.facts |= _tokenizer_facts(opened.tokenizer)
        if opened.ranks:
            found.facts["adapter_ranks"] = sorted(set(opened.ranks.values()))
        if opened.formats is not None:
            found.tables["integers"] = _formats(opened)
        found.notes += opened.notes
    if tensors:
        found.facts["bytes"] = sum(row["bytes"] for row in tensors if isinstance(row["bytes"], int))
        found.tables["tensors"] = tensors
    return found


def _config_facts(c: LlamaConfig) -> dict[str, object]:
    shapes = [*matrix_shapes(c).values(), *norm_shapes(c).values(), *bias_shapes(c).values()]
    scaling = c.rope_scaling
    return {
        "family": c.family,
        "layers": c.num_layers,
        "hidden": c.hidden_size,
        "ffn": c.intermediate_size,
        "heads": c.num_heads,
        "kv_heads": c.num_kv_heads,
        "head_size": c.head_dim,
        "vocabulary": c.vocab_size,
        "positions": c.max_position,
        "head_is_embedding": c.tie_embeddings,
        "rope_theta": c.rope_theta,
        "rope_scaling": None if scaling is None else _rope_scaling(scaling),
        "sliding_window": c.sliding_window,
        "biases": [name.rpartition(".")[2] for name in c.biased],
        "parameters": sum(math.prod(shape) for shape in shapes),
    }


def _rope_scaling(scaling: RopeScaling) -> str:
    kind = "linear" if isinstance(scaling, LinearRopeScaling) else "llama3"
    return f"{kind}, factor {scaling.factor:g}"


def _tokenizer_facts(tokenizer: Tokenizer | None) -> dict[str, object]:
    if tokenizer is None:
        return {"tokenizer": None}
    try:
        tokenizer.encode_table()
        encodes, why = True, ""
    except BadTokenizer as refusal:
        encodes, why = False, f"; its program takes ids alone: {refusal.message}"
    pieces = sum(1 for piece in tokenizer.decode_table() if piece)
    return {
        "tokenizer": f"{pieces} pieces with text{why}",
        "encodes_on_device": encodes,
        "chat_template": tokenizer.chat is not None,
    }


def _formats(opened: Checkpoint) -> list[Row]:
    formats = opened.formats or {}
    counts = Counter((bits, group, bool(zero)) for bits, group, zero in formats.values())
    return [
        {"bits": bits, "group_size": group, "asymmetric": asymmetric, "matrices": count}
        for (bits, group, asymmetric), count in sorted(counts.items())
    ]


def _in_order(name: str) -> list[tuple[int, str]]:
    """Return a sort key that puts layer 10 after layer 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


# ---- integer models and compiled directories ----


def _integer_model(path: Path) -> Findings:
    graph = load(path)
    found = Findings("integer model", graph.name, _graph_facts(graph))
    found.facts["bytes"] = path.stat().st_size
    found.tables = _graph_tables(graph)
    return found


def _graph_facts(g: Graph) -> dict[str, object]:
    return {
        "ir_version": IR_VERSION,
        "layers": g.num_layers,
        "hidden": g.hidden,
        "ffn": g.ffn,
        "heads": g.heads,
        "kv_heads": g.kv_heads,
        "head_size": g.head_dim,
        "vocabulary": g.vocab,
        "context": g.context,
        "begin": g.bos_id,
        "ends": list(g.eos_ids),
        "operations": len(g.ops),
    }


def _graph_tables(g: Graph) -> dict[str, list[Row]]:
    """Return the ops of a forward pass (those of layers once) and the matrices as stored on the device."""
    ops: list[Row] = [
        {
            "op": op.out.replace(f"layer{op.layer}.", "layer*."),
            "kind": op.mnemonic,
            "reads": ", ".join(starred(name) for name in op.inputs),
            "gives": str(g.types[op.out]),
        }
        for op in g.ops
        if op.layer <= 0
    ]
    groups = {w.name: w.group for op in g.ops for m in op.matrices() for w in m.all()}
    matrices = alike(
        {
            "matrix": starred(m.name),
            "shape": f"{m.rows}x{m.k}",
            "bits": m.bits,
            "group_size": groups.get(m.name),
            "asymmetric": m.asymmetric,
            "adapter_rank": m.rank or None,
            "engine": m.engine,
            "bytes": m.bytes,
        }
        for m in shapes_of_graph(g, 0).stored
    )
    return {"operations_of_a_pass": ops, "matrices_on_the_device": matrices}


def _compiled(path: Path) -> Findings:
    manifest = artifact.read_manifest(path)
    changed = artifact.changed_files(path, manifest)
    found = Findings("compiled directory", manifest.model)
    found.facts = {
        "target": manifest.target,
        "command": manifest.command,
        "shrinkc": manifest.shrinkc,
        "changed_files": changed,
        "built": sorted(p.name for p in (path / artifact.BUILD).glob("*") if p.is_dir()),
    }
    try:
        artifact.check_files(path, manifest, (artifact.PLAN, artifact.IR))
        plan = read_plan(path / artifact.PLAN)
        graph = load(path / artifact.IR)
    except BadArtifact as damaged:  # or of another version; the other facts remain valid
        found.notes.append(str(damaged))
    else:
        found.facts |= _graph_facts(graph)
        found.tables["memory"] = [
            {"memory": plan.label(v), "used": plan.used[v], "available": have,
             "share": round(plan.used[v] / max(have, 1), 4)}
            for v, have in plan.capacity.items()
        ]  # fmt: skip
        found.tables["where_bytes_go"] = alike(_parts(plan))
        found.tables |= _graph_tables(graph)
    own = [name for name in artifact.list_files(path) if not name.startswith(f"{artifact.BUILD}/")]
    found.tables["files"] = alike(
        {"file": _file_group(name), "bytes": (path / name).stat().st_size} for name in own
    )
    return found


def _parts(plan: Plan) -> Iterator[Row]:
    """Yield the contents of every memory; rows of a memory add up to its used bytes."""

    def part(level: str, name: str, size: int) -> Row:
        return {"memory": plan.label(level), "part": name, "bytes": size}

    yield part(
        L1,
        "stack, variables, tokens" if plan.board else "stacks, tables",
        plan.used[L1] - plan.arena_bytes,
    )
    yield part(L1, "arena of a pass", plan.arena_bytes)
    for level in (v for v in plan.used if v != L1):
        for name, _, size in stored_in(plan.placements, level):
            yield part(level, starred(name), size)
        others = [(x.level, x.name, x.bytes) for x in plan.tables]
        others += [(b.level, b.name, b.bytes) for b in plan.lower_buffers]
        yield from (part(*other) for other in others if other[0] == level)


def _file_group(name: str) -> str:
    """Return the group of a file: all sources are one group, any other file is its own."""
    return "src/" if name.startswith("src/") else name
