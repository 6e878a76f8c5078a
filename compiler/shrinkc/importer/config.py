"""Parsing and validation of ``config.json``.  One refusal lists all problems."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shrinkc.core.errors import BadConfig, ModelNotFound, UnsupportedModel
from shrinkc.importer.config_fields import HARMLESS, NEUTRAL, READ, ROPE_FIELDS
from shrinkc.importer.jsonfile import read_json_object, shortened
from shrinkc.model import (
    FAMILIES,
    SUPPORTED,
    Family,
    LinearRopeScaling,
    Llama3RopeScaling,
    LlamaConfig,
    RopeScaling,
)

# A larger size means a corrupt file.  The limit also keeps products of sizes within 64 bits.
_MAX_SIZE = 1 << 30
_MAX_LAYERS = 1 << 10  # memory is allocated per layer
_MAX_VOCAB = 1 << 24  # memory is allocated per token

# A number outside these ranges means a corrupt file.  Lower limit: the smallest normal float32.
# Upper limit: the largest value that the integer norm can hold for any embedding
# (quantize/bounds.py: norm_eps).
_EPS_RANGE = (2.0**-126, 2.0**-7)
# At the upper limit the slowest pairs of a head do not rotate noticeably within any context.
_THETA_RANGE = (1.0, 1e12)
FACTOR_RANGE = (1.0, 1e6)  # divisor of the scaled frequencies
# low_freq_factor and high_freq_factor: rotations of a pair in the original context
_BAND_RANGE = (1e-3, 1e6)

# Divisor of attention scores, squared: as large as a head is.
_SCALAR_RANGE = (1.0, 2.0**16)
# Fields that say which layers attend to all positions
_PATTERNS = ("layer_types", "sliding_window_pattern", "_sliding_window_pattern")
_LOCAL_THETA = "rope_local_base_freq"
# transformers' defaults of the families with a RoPE base of local layers
_GLOBAL_BASE, _LOCAL_BASE = 1e6, 1e4

# transformers' default in all families
_DEFAULT_EPS = 1e-6
_DEFAULT_THETA = 10000.0


@dataclass
class Problems:
    """Problems found so far.  If both lists have entries, UnsupportedModel is raised."""

    unsupported: list[str] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)

    def raise_if_any(self, source: str) -> None:
        everything = self.unsupported + self.bad
        if not everything:
            return
        count = f"{len(everything)} problem{'s' if len(everything) > 1 else ''}"
        text = f"{source}: {count}: " + "; ".join(everything) + "."
        if self.unsupported:
            raise UnsupportedModel(
                text, hint="'shrinkc inspect --supported' lists the allowed values of every field."
            )
        raise BadConfig(text, hint="compare config.json with the one the model was published with.")


def read_config(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the contents of ``config.json`` and of ``generation_config.json`` ({} if absent).

    Raises ModelNotFound (no config.json) or BadConfig.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise ModelNotFound(
            f"{path} does not exist.",
            hint="give the directory of a Hugging Face checkpoint (config.json, "
            "model.safetensors, tokenizer.json).",
        )
    raw = read_json_object(path, BadConfig)
    generation_path = directory / "generation_config.json"
    generation = read_json_object(generation_path, BadConfig) if generation_path.is_file() else {}
    return raw, generation


def parse_config(
    raw: Mapping[str, Any], generation: Mapping[str, Any] | None = None, source: str = "config.json"
) -> LlamaConfig:
    """Turn the contents of ``config.json`` into a LlamaConfig.

    ``generation`` is the content of ``generation_config.json``; its ``eos_token_id``
    replaces the one of ``raw``, as in transformers' generate().  Raises UnsupportedModel if
    any field changes the mathematics in a way not supported, else BadConfig if any value is
    missing, wrong or contradicts another; the message lists every problem found.
    """
    problems = Problems()
    generation = generation or {}
    family = _family(raw, source, problems)
    _check_other_fields(raw, family, problems)
    # fills in a missing field, but keeps an explicit null
    start = {"bos_token_id": generation["bos_token_id"]} if "bos_token_id" in generation else {}
    raw = {**family.defaults, **start, **raw}

    vocab = _size(raw, "vocab_size", problems, _MAX_VOCAB)
    hidden = _size(raw, "hidden_size", problems)
    intermediate = _size(raw, "intermediate_size", problems)
    layers = _size(raw, "num_hidden_layers", problems, _MAX_LAYERS)
    max_position = _size(raw, "max_position_embeddings", problems)
    heads = _size(raw, "num_attention_heads", problems)
    kv_heads = heads
    if raw.get("num_key_value_heads") is not None:
        kv_heads = _size(raw, "num_key_value_heads", problems)
    if heads and kv_heads and heads % kv_heads:
        problems.bad.append(
            f"num_attention_heads = {heads} is not a multiple of num_key_value_heads = {kv_heads}"
        )
    head_dim = _head_dim(raw, hidden, heads, problems)
    local_theta = None
    if family.local_rope:
        raw, local_theta = _local_rope(raw, problems)
    theta, scaling = _rope(raw, problems)
    query_scalar = None
    if family.query_scalar_field is not None:
        query_scalar = _number(raw, family.query_scalar_field, None, _SCALAR_RANGE, problems)
    eps = _number(raw, "rms_norm_eps", _DEFAULT_EPS, _EPS_RANGE, problems)
    bos, eos = _token_ids(raw, generation, vocab, problems)
    window = None
    if family.windowed and raw.get("sliding_window") is not None:
        window = _size(raw, "sliding_window", problems)
    everywhere = _global_layers(raw, family, layers, problems) if window else ()
    tied = raw.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        problems.bad.append(f"tie_word_embeddings = {tied!r}; true or false is needed")

    biased = _biased(raw, family, problems)

    problems.raise_if_any(source)
    return LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_position=max_position,
        rms_norm_eps=eps,
        rope_theta=theta,
        tie_embeddings=tied,
        bos_id=bos,
        eos_ids=eos,
        rope_scaling=scaling,
        family=family.name,
        biased=biased,
        sliding_window=window,
        global_layers=everywhere,
        local_rope_theta=local_theta,
        query_scalar=query_scalar,
    )


def _family(raw: Mapping[str, Any], source: str, problems: Problems) -> Family:
    """Return the family that architectures and model_type name; LLaMA after noting that both are missing.

    Raises UnsupportedModel for another architecture at once: its other fields have other meanings.
    """
    architectures = raw.get("architectures")
    model_type = raw.get("model_type")
    if architectures is None and model_type is None:
        problems.bad.append("architectures and model_type are both missing; one is needed")
    named = [f for f in FAMILIES.values() if architectures == [f.architecture]]
    typed = [FAMILIES[model_type]] if isinstance(model_type, str) and model_type in FAMILIES else []
    if (architectures is not None and not named) or (model_type is not None and not typed):
        given = {"architectures": architectures, "model_type": model_type}
        shown = ", ".join(f"{k} = {shortened(v)}" for k, v in given.items() if v is not None)
        raise UnsupportedModel(
            f"{source}: this architecture is not supported: {shown}.",
            f"supported: {SUPPORTED}; 'shrinkc inspect --supported' lists all that can be compiled.",
        )
    if named and typed and named != typed:
        problems.unsupported.append(
            f"architectures = {shortened(architectures)} is that of model_type = {named[0].name!r}, but "
            f"model_type = {shortened(model_type)}, which is that of {typed[0].architecture}"
        )
    return (typed or named or [FAMILIES["llama"]])[0]


def neutral_fields(family: Family) -> dict[str, tuple[tuple[Any, ...], str]]:
    """Return field -> (values without effect in this family, meaning of any other value)."""
    rules = {**NEUTRAL, **family.neutral}
    return {name: rule for name, rule in rules.items() if name not in _ignored(family)}


def _ignored(family: Family) -> set[str | None]:
    """Return the fields that are read or have no effect."""
    windowed = "sliding_window" if family.windowed else None
    own = {family.bias_field, windowed, family.query_scalar_field}
    own |= {*_PATTERNS} if family.global_every else set()
    own |= {_LOCAL_THETA} if family.local_rope else set()
    return {*READ, *own, *HARMLESS, *family.harmless}


def _check_other_fields(raw: Mapping[str, Any], family: Family, problems: Problems) -> None:
    ignored = _ignored(family)
    neutral = neutral_fields(family)
    for name, value in raw.items():
        if name in ignored:
            continue
        if name in neutral:
            allowed, meaning = neutral[name]
            if value not in allowed:
                problems.unsupported.append(f"{name} = {shortened(value)}: {meaning}")
        elif name == _PATTERNS[0]:
            if not isinstance(value, list) or any(kind != "full_attention" for kind in value):
                problems.unsupported.append(
                    f"layer_types = {shortened(value)}: only full_attention layers are supported"
                )
        else:
            problems.unsupported.append(
                f"{name} = {shortened(value)}: unknown field; it may affect results"
            )


def _global_layers(
    raw: Mapping[str, Any], family: Family, layers: int, problems: Problems
) -> tuple[int, ...]:
    """Return the layers that attend to all positions although the model has a sliding window.

    ``layer_types`` names the kind of every layer; else each n-th layer is global, n being ``sliding_window_pattern``
    (transformers writes either)."""
    if family.global_every is None:
        return ()
    kinds = raw.get("layer_types")
    if kinds is not None:
        known = ("full_attention", "sliding_attention")
        if (
            not isinstance(kinds, list)
            or len(kinds) != layers
            or any(k not in known for k in kinds)
        ):
            problems.bad.append(
                f"layer_types = {shortened(kinds)}; {layers} of {' and '.join(known)} are needed"
            )
            return ()
        return tuple(i for i, kind in enumerate(kinds) if kind == known[0])
    name = next((name for name in _PATTERNS[1:] if raw.get(name) is not None), None)
    every = family.global_every if name is None else _size(raw, name, problems)
    return tuple(range(every - 1, layers, every)) if every else ()


def _local_rope(
    raw: Mapping[str, Any], problems: Problems
) -> tuple[Mapping[str, Any], float | None]:
    """Return the fields with the RoPE of global layers alone, and the RoPE base of local layers.

    transformers 4 writes ``rope_theta`` and ``rope_local_base_freq``, transformers 5 one section of
    ``rope_parameters`` for each kind of layers."""
    section = raw.get("rope_parameters")
    if isinstance(section, dict) and {*section} == {"full_attention", "sliding_attention"}:
        whole, local = section["full_attention"], section["sliding_attention"]
        theta, scaling = _rope({"rope_parameters": {"rope_theta": _LOCAL_BASE, **local}}, problems)
        if scaling is not None:
            problems.unsupported.append("rope_parameters.sliding_attention: scaled RoPE")
        return {**raw, "rope_parameters": {"rope_theta": _GLOBAL_BASE, **whole}}, theta
    if raw.get("rope_theta") is None and section is None:
        raw = {**raw, "rope_theta": _GLOBAL_BASE}
    return raw, _number(raw, _LOCAL_THETA, _LOCAL_BASE, _THETA_RANGE, problems)


def _biased(raw: Mapping[str, Any], family: Family, problems: Problems) -> tuple[str, ...]:
    """Return the names of modules with a bias."""
    if family.bias_field is None:
        return family.biased
    value = raw.get(family.bias_field)
    if value is not None and not isinstance(value, bool):
        problems.bad.append(f"{family.bias_field} = {shortened(value)}; true or false is needed")
    return family.biased if value is True else ()


def _size(raw: Mapping[str, Any], name: str, problems: Problems, most: int = _MAX_SIZE) -> int:
    """Return an integer from 1 to ``most``, or 0 after noting the problem."""
    value = raw.get(name)
    if value is None:
        problems.bad.append(f"{name} is missing; a positive integer is needed")
    elif not _is_int(value):
        problems.bad.append(f"{name} = {shortened(value)}; a positive integer is needed")
    elif not 0 < value <= most:
        problems.bad.append(f"{name} = {shortened(value)}; 1 to {most} is allowed")
    else:
        return int(value)
    return 0


def _head_dim(raw: Mapping[str, Any], hidden: int, heads: int, problems: Problems) -> int:
    if raw.get("head_dim") is not None:
        head_dim = _size(raw, "head_dim", problems)
        origin = f"head_dim = {head_dim}"
    elif not hidden or not heads:
        return 0
    elif hidden % heads:
        problems.bad.append(
            f"hidden_size = {hidden} is not a multiple of num_attention_heads = {heads}, "
            "and head_dim is not given"
        )
        return 0
    else:
        head_dim = hidden // heads
        origin = f"hidden_size / num_attention_heads = {hidden} / {heads} = {head_dim}"
    if head_dim % 2:
        problems.bad.append(f"{origin}; RoPE needs an even head dimension")
    return head_dim


def _rope(raw: Mapping[str, Any], problems: Problems) -> tuple[float, RopeScaling | None]:
    """Return RoPE base and scaling from the top level, ``rope_scaling`` and ``rope_parameters``.

    transformers 4 writes ``rope_theta`` and ``rope_scaling``, transformers 5 one dict
    ``rope_parameters``.  If a file has both, they must agree.
    """
    thetas: dict[str, float] = {}
    if raw.get("rope_theta") is not None:
        thetas["rope_theta"] = _number(raw, "rope_theta", None, _THETA_RANGE, problems)
    scalings: dict[str, RopeScaling | None] = {}
    for name in ("rope_scaling", "rope_parameters"):
        section = raw.get(name)
        if section is None:
            continue
        if not isinstance(section, dict):
            problems.bad.append(f"{name} = {shortened(section)}; an object or null is needed")
            continue
        if section.get("rope_theta") is not None:
            thetas[f"{name}.rope_theta"] = _number(
                section, "rope_theta", None, _THETA_RANGE, problems, prefix=f"{name}."
            )
        scalings[name] = _rope_section(name, section, problems)
    for what, values in (("RoPE bases", thetas), ("RoPE scalings", scalings)):
        if len(set(values.values())) > 1:
            listing = ", ".join(f"{key} = {value}" for key, value in values.items())
            problems.bad.append(f"the {what} disagree: {listing}")
    theta = next(iter(thetas.values()), _DEFAULT_THETA)
    return theta, next((s for s in scalings.values() if s is not None), None)


def _rope_section(name: str, section: Mapping[str, Any], problems: Problems) -> RopeScaling | None:
    kind = section.get("rope_type", section.get("type", "default"))
    if not isinstance(kind, str) or kind not in ROPE_FIELDS:
        problems.unsupported.append(
            f"{name}: rope_type = {shortened(kind)} (supported: {', '.join(map(repr, ROPE_FIELDS))})"
        )
        return None
    for key, value in section.items():
        if key not in ROPE_FIELDS[kind] and key not in ("rope_type", "type"):
            problems.unsupported.append(f"{name}.{key} = {shortened(value)}: unknown field")
    if section.get("partial_rotary_factor", 1) not in (1, None):
        problems.unsupported.append(
            f"{name}.partial_rotary_factor = {shortened(section['partial_rotary_factor'])}: "
            + NEUTRAL["partial_rotary_factor"][1]
        )
    if kind == "default":
        if section.get("factor", 1) not in (1, None):
            problems.unsupported.append(
                f"{name}.factor = {shortened(section['factor'])} with rope_type 'default'"
            )
        return None

    prefix = f"{name}."
    before = len(problems.bad)
    factor = _number(section, "factor", None, FACTOR_RANGE, problems, prefix)
    if kind == "linear":
        return LinearRopeScaling(factor)
    low = _number(section, "low_freq_factor", None, _BAND_RANGE, problems, prefix)
    high = _number(section, "high_freq_factor", None, _BAND_RANGE, problems, prefix)
    positions = (1.0, float(_MAX_SIZE))
    original = _number(
        section, "original_max_position_embeddings", None, positions, problems, prefix
    )
    if len(problems.bad) == before and low >= high:
        # the formula divides by high - low
        problems.bad.append(
            f"{name}: low_freq_factor = {low} has to be less than high_freq_factor = {high}"
        )
    if original != int(original):
        problems.bad.append(
            f"{name}.original_max_position_embeddings = {original}; an integer is needed"
        )
    return Llama3RopeScaling(factor, low, high, int(original))


def _token_ids(
    raw: Mapping[str, Any], generation: Mapping[str, Any], vocab: int, problems: Problems
) -> tuple[int | None, tuple[int, ...]]:
    bos = raw.get("bos_token_id")
    if bos is not None:
        _check_id("bos_token_id", bos, vocab, problems)
    eos_source = "eos_token_id"
    eos = raw.get("eos_token_id")
    if generation.get("eos_token_id") is not None:
        eos_source, eos = "generation_config.json: eos_token_id", generation["eos_token_id"]
    listed = [] if eos is None else eos if isinstance(eos, list) else [eos]
    for value in listed:
        _check_id(eos_source, value, vocab, problems)
    # a dict keeps the order and drops repeats
    return bos, tuple(dict.fromkeys(value for value in listed if _is_int(value)))


def _check_id(name: str, value: Any, vocab: int, problems: Problems) -> None:
    if not _is_int(value):
        problems.bad.append(f"{name} = {shortened(value)}; a token id is needed")
    elif value < 0 or (vocab and value >= vocab):
        limit = vocab - 1 if vocab else "vocab_size - 1"
        problems.bad.append(f"{name} = {shortened(value)}; 0 to {limit} is allowed")


def _number(
    raw: Mapping[str, Any],
    name: str,
    default: float | None,
    allowed: tuple[float, float],
    problems: Problems,
    prefix: str = "",
) -> float:
    """Return a number within ``allowed``, or its lower limit after noting the problem."""
    low, high = allowed
    value = raw.get(name)
    if value is None and default is not None:
        return default
    if value is None:
        problems.bad.append(f"{prefix}{name} is missing; a number is needed")
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        problems.bad.append(f"{prefix}{name} = {shortened(value)}; a number is needed")
    elif not low <= value <= high:  # also true for NaN
        problems.bad.append(
            f"{prefix}{name} = {shortened(value)}; {low:.9g} to {high:.9g} is allowed"
        )
    else:
        return float(value)
    return low


def _is_int(value: Any) -> bool:
    # bool is a subclass of int
    return isinstance(value, int) and not isinstance(value, bool)
