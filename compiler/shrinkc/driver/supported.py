"""Summary of supported models and formats, from the tables in the code."""

from __future__ import annotations

import json

from shrinkc.core.findings import Findings
from shrinkc.core.words import show_size
from shrinkc.engines import ENGINES, Engine, MatrixSpec
from shrinkc.importer import (
    config,
    config_fields,
    gguf_blocks,
    gguf_model,
    gptq_config,
    safetensors_file,
)
from shrinkc.importer.decode_table import SUPPORTED as DECODERS
from shrinkc.importer.tokenizer import MODELS as TOKENIZERS
from shrinkc.ir.ops import OPS
from shrinkc.model import FAMILIES, Family
from shrinkc.storage import FORMATS, WIDEST, Offsets
from shrinkc.targets import TARGETS

_SIZE, _GROUP = 256, 32  # of the matrix with which engines are queried


def supported() -> Findings:
    """Return families, file formats, allowed values of configuration fields, widths, ops, engines and targets."""
    found = Findings("what can be compiled", "shrinkc")
    found.facts = {
        "float_types": list(safetensors_file.FLOAT_DTYPES),
        "gguf_types": list(gguf_blocks.KINDS),
        "gguf_integers_kept": list(gguf_blocks.INTEGER_FORMATS),
        "gptq_bits": list(gptq_config.WIDTHS),
        "rope": list(config_fields.ROPE_FIELDS),
        "tokenizers": list(TOKENIZERS),
        "token_decoders": DECODERS,
    }
    found.tables["families"] = [
        {
            "family": f.name, "architecture": f.architecture, "gguf": f.gguf,
            "biases": _biases(f), "head_norms": len(f.head_norms) > 0,
            "sliding_window": f.windowed,
        }
        for f in FAMILIES.values()
    ]  # fmt: skip
    found.tables["gptq_fields"] = [
        {"field": name, "allowed": [*map(_value, values)]}
        for name, values in gptq_config.ALLOWED.items()
    ]
    found.tables["gguf_fields"] = [
        {"field": name, "allowed": [*map(_value, values)], "anything_else": why}
        for name, (values, why) in gguf_model.NEUTRAL.items()
    ]
    found.tables["configuration_fields"] = [
        {"field": name, "allowed": [*allowed], "anything_else": why, "families": families}
        for (name, allowed, why), families in _fields().items()
    ]
    found.tables["weights"] = [
        {"bits": f.bits, "least": f.low, "most": f.high, "inputs_per_unit": f.inputs}
        for f in FORMATS.values()
    ]
    found.tables["operations"] = [
        {
            "op": name.lower(), "reads": [", ".join(kinds) for kinds in op.TAKES],
            "gives": list(op.GIVES),
        }
        for name, op in OPS.items()
    ]  # fmt: skip
    found.tables["engines"] = [
        {
            "engine": e.name, "bits_per_channel": _runs(e, None), "bits_in_groups": _runs(e, _GROUP),
            "adapters": e.refusal(MatrixSpec("matrix", _SIZE, _SIZE, WIDEST, None, Offsets.NONE, _GROUP)) is None,
            "targets": [t.name for t in TARGETS.values() if e.name in t.engines],
        }
        for e in ENGINES.values()
    ]  # fmt: skip
    found.tables["targets"] = [
        {
            "target": t.name, "cores": t.cores, "runs_on": list(t.runs_on),
            "memories": [f"{t.kind(v.name).label} {show_size(v.bytes)}" for v in t.levels],
        }
        for t in TARGETS.values()
    ]  # fmt: skip
    return found


def _fields() -> dict[tuple[str, tuple[str, ...], str], list[str]]:
    """Return (field, allowed values, meaning of other values) -> families."""
    out: dict[tuple[str, tuple[str, ...], str], list[str]] = {}
    for family in FAMILIES.values():
        for name, (values, why) in config.neutral_fields(family).items():
            if name != "quantization_config":  # its fields are listed as gptq_fields
                out.setdefault((name, tuple(map(_value, values)), why), []).append(family.name)
    return out


def _biases(family: Family) -> str:
    if not family.biased:
        return "none"
    return "always" if family.bias_field is None else f"as {family.bias_field} says"


def _value(value: object) -> str:
    """Return ``value`` as in a JSON file."""
    return json.dumps(value)


def _runs(engine: Engine, group: int | None) -> list[int]:
    """Return the bit-widths of weights that ``engine`` supports with group size ``group`` (None: per-channel)."""
    return [
        bits
        for bits in FORMATS
        if engine.refusal(MatrixSpec("matrix", _SIZE, _SIZE, bits, group, Offsets.NONE)) is None
    ]
