"""GPTQ configuration of a checkpoint, and the modules to which it applies."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shrinkc.core.errors import BadConfig, UnsupportedModel
from shrinkc.importer.config import Problems, read_config
from shrinkc.importer.jsonfile import read_json_object
from shrinkc.importer.model import Zero

QUANTIZE_CONFIG = "quantize_config.json"
PER_CHANNEL = -1
PACKED_METHOD = "shrinkc"
"""``quant_method`` of packed steps: no other library may take them for GPTQ checkpoints."""
WIDTHS = (2, 3, 4, 8)
"""Bits per weight that GPTQModel writes."""

_READ = frozenset({"bits", "group_size", "sym", "desc_act", "dynamic"})
# bookkeeping, settings of the quantiser, and hints for kernels: no effect on the tensors
# fmt: off
_HARMLESS = frozenset({
    "act_group_aware", "adapter", "backend", "batch_size", "block_name_to_quantize",
    "cache_block_outputs", "damp_auto_increment", "damp_percent", "dataset", "disable_exllama",
    "exllama_config", "lm_head", "max_input_length", "meta", "model_file_base_name",
    "model_name_or_path", "model_seqlen", "module_name_preceding_first_block",
    "modules_in_block_to_quantize", "mse", "pad_token_id", "quantizer", "static_groups",
    "tokenizer", "true_sequential", "use_cuda_fp16", "use_exllama",
})
# fmt: on
# field -> values that are supported
ALLOWED: dict[str, tuple[Any, ...]] = {
    "quant_method": ("gptq", PACKED_METHOD),
    "method": ("gptq",),
    "checkpoint_format": ("gptq", "gptq_v2"),
    "format": ("gptq", "gptq_v2"),
    "pack_dtype": ("int32", None),
    "is_marlin_format": (False, None),
    "activation": (None,),
    "rotation": (None,),
}
_HINT = (
    "quantise the float model with GPTQModel (method and format gptq, 2, 3, 4 or 8 bit), or give "
    "the float model itself."
)


@dataclass(frozen=True)
class ModuleFormat:
    """Storage format of a matrix.  ``group_size`` -1: per-channel (one scale per output channel)."""

    bits: int
    group_size: int
    sym: bool

    @property
    def zero(self) -> Zero:
        return Zero.MIDDLE if self.sym else Zero.POINT

    def group(self, inputs: int) -> int:
        """Return the number of inputs per scale, at most all of them."""
        return inputs if self.group_size == PER_CHANNEL else min(self.group_size, inputs)


@dataclass(frozen=True)
class GptqConfig:
    """Quantisation settings.  ``zero_shift`` is added to a stored zero point: 1 in format gptq, 0 in gptq_v2.

    ``desc_act``: inputs may be quantised in another order (act-order), stored in g_idx.  ``packed``: a packed step,
    which leaves out what the others say: embedding and LM head as floats, zero points in the middle, g_idx in order.
    """

    default: ModuleFormat
    zero_shift: int
    rules: tuple[tuple[bool, str, Mapping[str, Any]], ...]
    desc_act: bool = False
    packed: bool = False

    def format_of(self, module: str) -> ModuleFormat | None:
        """Return the format of ``module``; None if a rule excludes it from quantisation.

        The first rule whose pattern matches from the start of the name decides; exclusions come first.
        """
        for included, pattern, overrides in self.rules:
            if re.match(pattern, module):
                return replace(self.default, **overrides) if included else None
        return self.default


def is_quantized(directory: Path) -> bool:
    """Return whether the weights of ``directory`` are quantised, by its configuration.  Raises BadConfig."""
    if (directory / QUANTIZE_CONFIG).is_file():
        return True
    return (directory / "config.json").is_file() and (
        read_config(directory)[0].get("quantization_config") is not None
    )


def load_gptq_config(directory: Path) -> GptqConfig:
    """Read the configuration of a quantised directory.  Raises the errors of :func:`gptq_config_of`."""
    config = gptq_config_of(directory, read_config(directory)[0])
    if config is None:
        raise BadConfig(f"{directory} has neither a quantization_config nor {QUANTIZE_CONFIG}.")
    return config


def gptq_config_of(directory: Path, raw: Mapping[str, Any]) -> GptqConfig | None:
    """Return the settings in ``quantization_config`` of ``raw`` (config.json) and ``quantize_config.json``.

    None if both are missing.  Raises BadConfig or UnsupportedModel (another method or format; all reasons
    are given).
    """
    found: list[tuple[Path, Any]] = []
    section = raw.get("quantization_config")
    if section is not None:
        found.append((directory / "config.json: quantization_config", section))
    separate = directory / QUANTIZE_CONFIG
    if separate.is_file():
        found.append((separate, read_json_object(separate, BadConfig)))
    configs = [parse_gptq_config(raw, str(source)) for source, raw in found]
    if any(config != configs[0] for config in configs):
        raise BadConfig(
            f"{directory}: quantization_config of config.json and {QUANTIZE_CONFIG} disagree.",
            hint="they have to come from the same quantisation; remove the one that does not.",
        )
    return configs[0] if configs else None


def parse_gptq_config(raw: Any, source: str) -> GptqConfig:
    """Return the GptqConfig of the fields ``raw``.  Raises UnsupportedModel or BadConfig."""
    if not isinstance(raw, dict):
        raise BadConfig(f"{source} is not an object.")
    problems = Problems()
    for name, value in raw.items():
        if name in ALLOWED:
            allowed = ALLOWED[name]
            if value not in allowed:
                supported = ", ".join(repr(item) for item in allowed)
                problems.unsupported.append(f"{name} = {value!r} (supported: {supported})")
        elif name not in _READ and name not in _HARMLESS:
            problems.unsupported.append(f"{name} = {value!r}: unknown field")
    # the old and the new name of this field may both be present; then they must agree
    layouts = {
        str(raw[name]) for name in ("checkpoint_format", "format") if raw.get(name) is not None
    }
    if len(layouts) > 1:
        problems.bad.append(f"checkpoint_format and format disagree: {sorted(layouts)}")
    fields = {name: raw[name] for name in ("bits", "group_size", "sym") if name in raw}
    fields.setdefault("sym", True)  # GPTQModel's default
    _check_fields(fields, "", problems)
    for name in ("bits", "group_size"):
        if name not in raw:
            problems.bad.append(f"{name} is missing")
    rules = _rules(raw.get("dynamic"), problems)
    if problems.unsupported:
        raise UnsupportedModel(
            f"{source}: {'; '.join(problems.unsupported + problems.bad)}.", hint=_HINT
        )
    if problems.bad:
        raise BadConfig(f"{source}: {'; '.join(problems.bad)}.")
    return GptqConfig(
        ModuleFormat(**fields),
        0 if layouts == {"gptq_v2"} else 1,
        rules,
        raw.get("desc_act") is True,
        raw.get("quant_method") == PACKED_METHOD,
    )


def _rules(dynamic: Any, problems: Problems) -> tuple[tuple[bool, str, Mapping[str, Any]], ...]:
    """Return GPTQModel's per-module rules: "-:pattern" excludes, "+:pattern" or "pattern" overrides."""
    if dynamic is None:
        return ()
    if not isinstance(dynamic, dict):
        problems.bad.append(f"dynamic = {dynamic!r}; an object is needed")
        return ()
    rules = []
    for key, overrides in dynamic.items():
        included = not key.startswith("-:")
        pattern = key[2:] if key[:2] in ("-:", "+:") else key
        try:
            re.compile(pattern)
        except re.error as exc:
            problems.bad.append(f"dynamic: {key!r} is not a valid pattern: {exc}")
            continue
        if included and not isinstance(overrides, dict):
            problems.bad.append(f"dynamic: {key!r} holds {overrides!r}; an object is needed")
            continue
        values = overrides if included else {}
        unknown = [f for f in values if f not in _READ and f not in _HARMLESS]
        problems.unsupported += [f"dynamic: {key!r}: {f}: unknown field" for f in unknown]
        fields = {f: v for f, v in values.items() if f in ("bits", "group_size", "sym")}
        _check_fields(fields, f"dynamic: {key!r}: ", problems)
        rules.append((included, pattern, fields))
    return tuple(sorted(rules, key=lambda rule: rule[0]))


def _check_fields(fields: Mapping[str, Any], prefix: str, problems: Problems) -> None:
    bits, group, sym = (fields.get(name) for name in ("bits", "group_size", "sym"))
    if "bits" in fields and (type(bits) is not int or bits not in WIDTHS):
        widths = ", ".join(map(str, WIDTHS))
        problems.unsupported.append(f"{prefix}bits = {bits!r} (supported: {widths})")
    if "group_size" in fields and (
        isinstance(group, bool)
        or not isinstance(group, int)
        or not (group > 0 or group == PER_CHANNEL)
    ):
        problems.bad.append(
            f"{prefix}group_size = {group!r}; a positive integer, or -1 for one scale per "
            "output channel, is needed"
        )
    if "sym" in fields and not isinstance(sym, bool):
        problems.bad.append(f"{prefix}sym = {sym!r}; true or false is needed")
