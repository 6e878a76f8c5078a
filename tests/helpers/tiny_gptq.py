"""Write small GPTQ checkpoints as GPTQModel does, from the format's description and without it.

Per Linear [out, in]: ``qweight`` int32, where the column of an output is one long number whose
digits of ``bits`` bits are the inputs, first digit lowest; ``qzeros`` int32, where the row of a
group is such a number over the outputs, from which format "gptq" has subtracted one in every
digit (of whole 32-bit words, digits of 3 bits apart); ``scales`` [groups, out]; ``g_idx`` [in].
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from helpers.layer import MODULES
from helpers.quantised import INPUT
from helpers.tiny_llama import round_to, write_safetensors, write_tiny_llama, write_weights


@dataclass(frozen=True)
class Packed:
    """A matrix on its way into a checkpoint: ``q`` [out, in], ``scale`` and ``zero`` [out, groups]."""

    bits: int
    q: NDArray[np.int64]
    scale: NDArray[np.float32]
    zero: NDArray[np.int64]
    group_of: NDArray[np.int64]  # [in]

    def dense(self) -> NDArray[np.float32]:
        """Return scale · (q − zero), which is exact for scales of 16 bits."""
        shifted = self.q - self.zero[:, self.group_of]
        return self.scale[:, self.group_of] * shifted.astype(np.float32)


def tiny_gptq(
    directory: Path,
    *,
    bits: int = 4,
    group: int = 32,
    sym: bool = True,
    desc_act: bool | str = False,
    layout: str = "gptq",
    lm_head: bool = False,
    skip: tuple[str, ...] = (),
    module_bits: Mapping[str, int] | None = None,
    embedding_bits: int | None = None,
    eora_rank: int | None = None,
    eora_folder: str = "eora",
    dtype: str = "float16",
    quantization: Mapping[str, Any] | None = None,
    overrides: Mapping[str, NDArray[Any] | None] | None = None,
    shards: int = 1,
    seed: int = 0,
    **model: Any,
) -> dict[str, NDArray[np.float32]]:
    """Write a checkpoint (config.json, quantize_config.json, weights, tokenizer) to ``directory``.

    ``group`` -1: one scale per output.  ``desc_act`` "shared": what reads one input has one order
    of columns, as in real checkpoints.  ``layout`` is "gptq" or "gptq_v2".  ``skip`` names modules
    ("model.layers.0.mlp.up_proj") that stay float, ``module_bits`` those with other widths; both
    become rules of ``dynamic``.  ``embedding_bits`` (2, 3, 4 or 8) adds the sidecar
    ``embedding.safetensors``, ``eora_rank`` an adapter in ``eora_folder``.  ``dtype`` is that of scales
    and float tensors; ``quantization`` replaces fields of the quantisation config, ``overrides``
    tensors by name (None removes one).  ``model`` goes to :func:`write_tiny_llama`, whose sizes
    have to be multiples of 32 here (default 64 hidden, 96 intermediate, 4 heads, 2 KV heads).

    Returns every module's weight as float32, by names without ".weight".
    """
    rng = np.random.default_rng(seed)
    model = {
        "hidden": 64,
        "intermediate": 96,
        "heads": 4,
        "kv_heads": 2,
        "tied": not lm_head,
        **model,
    }
    floats = write_tiny_llama(directory, dtype=dtype, seed=seed, **model)
    (directory / "model.safetensors").unlink()
    widths = dict(module_bits or {})
    exact = {name.removesuffix(".weight"): values for name, values in floats.items()}
    stored: dict[str, NDArray[Any]] = {}
    for name, values in exact.items():
        short = name.rpartition(".")[2]
        if (short in MODULES or (short == "lm_head" and lm_head)) and name not in skip:
            shared = f"{name.rpartition('layers.')[2].partition('.')[0]}{INPUT.get(short)}"
            orders = np.random.default_rng(list(shared.encode())) if desc_act == "shared" else rng
            packed = quantize(
                values, widths.get(name, bits), group, sym, bool(desc_act), dtype, orders
            )
            stored.update(packed_tensors(name, packed, layout))
            exact[name] = packed.dense()
        else:
            stored[f"{name}.weight"] = values
    if embedding_bits is not None:
        table = _write_sidecar(directory, exact["model.embed_tokens"], embedding_bits, group)
        exact["model.embed_tokens"] = table
        stored["model.embed_tokens.weight"] = round_to(dtype, table)
    for name, replacement in (overrides or {}).items():
        stored.pop(name, None)
        if replacement is not None:
            stored[name] = replacement
    write_weights(directory, stored, dtype, shards)

    dynamic: dict[str, Any] = {f"-:^{name.replace('.', chr(92) + '.')}$": {} for name in skip}
    dynamic.update(
        (f"+:{name.replace('.', chr(92) + '.')}$", {"bits": b}) for name, b in widths.items()
    )
    fields: dict[str, Any] = {
        "bits": bits,
        "group_size": group,
        "desc_act": bool(desc_act),
        "sym": sym,
        "lm_head": lm_head,
        "method": "gptq",
        "quant_method": "gptq",
        "format": layout,
        "checkpoint_format": layout,
        "pack_dtype": "int32",
        "meta": {"quantizer": ["gptqmodel:7.6.0"], "damp_percent": 0.05, "static_groups": False},
        **({"dynamic": dynamic} if dynamic else {}),
        **(quantization or {}),
    }
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = fields
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    (directory / "quantize_config.json").write_text(json.dumps(fields, indent=2))
    if eora_rank is not None:
        write_eora(directory / eora_folder, exact, eora_rank, skip=skip, seed=seed)
    return exact


def quantize(
    values: NDArray[np.float32],
    bits: int,
    group: int,
    sym: bool,
    desc_act: bool,
    dtype: str,
    rng: np.random.Generator,
) -> Packed:
    """Round ``values`` [out, in] to nearest, in groups of inputs that ``desc_act`` scatters."""
    outputs, inputs = values.shape
    size = inputs if group == -1 else group
    group_of = np.arange(inputs) // size
    if desc_act:
        group_of = rng.permutation(group_of)
    groups = int(group_of.max()) + 1
    top = (1 << bits) - 1
    scale = np.empty((outputs, groups), dtype=np.float32)
    zero = np.empty((outputs, groups), dtype=np.int64)
    for g in range(groups):
        part = values[:, group_of == g]
        if sym:
            scale[:, g] = np.abs(part).max(axis=1) / (top / 2)
            zero[:, g] = 1 << (bits - 1)
        else:
            low, high = np.minimum(part.min(axis=1), 0), np.maximum(part.max(axis=1), 0)
            scale[:, g] = (high - low) / top
            zero[:, g] = np.round(-low / scale[:, g])
    scale = round_to(dtype, scale)
    q = np.round(values / scale[:, group_of]) + zero[:, group_of]
    return Packed(bits, np.clip(q, 0, top).astype(np.int64), scale, zero, group_of)


def packed_tensors(name: str, packed: Packed, layout: str = "gptq") -> dict[str, NDArray[Any]]:
    """Return the four tensors of a module."""
    bits = packed.bits
    zeros = packed.zero.T
    if layout == "gptq" and bits == 3:
        zeros = (zeros - 1) % 8
    words = np.array([_words(row, bits) for row in zeros], dtype=np.int64)
    if layout == "gptq" and bits != 3:
        ones = sum(1 << position for position in range(0, 32, bits))
        words = (words - ones) % (1 << 32)
    return {
        f"{name}.qweight": _int32(np.array([_words(row, bits) for row in packed.q]).T),
        f"{name}.qzeros": _int32(words),
        f"{name}.scales": np.ascontiguousarray(packed.scale.T),
        f"{name}.g_idx": packed.group_of.astype(np.int32),
    }


def _words(values: NDArray[np.int64], bits: int) -> list[int]:
    number = sum(int(value) << (bits * position) for position, value in enumerate(values))
    count = -(-len(values) * bits // 32)
    return [(number >> (32 * word)) & 0xFFFFFFFF for word in range(count)]


def _int32(words: NDArray[np.int64]) -> NDArray[np.int32]:
    return np.ascontiguousarray(words).astype(np.uint32).view(np.int32)


def _write_sidecar(
    directory: Path, table: NDArray[np.float32], bits: int, group: int
) -> NDArray[np.float32]:
    """As the stage gptq has them: up to 4 bit with whole zero points."""
    size = table.shape[1] if group == -1 else group
    parts = table.reshape(len(table), -1, size)
    low, high = parts.min(axis=2), parts.max(axis=2)
    top, points = (1 << bits) - 1, bits <= 4
    if points:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
    scale, offset = ((high - low) / top).astype(np.float16), low.astype(np.float16)
    wide, start = scale.astype(np.float32)[:, :, None], offset.astype(np.float32)[:, :, None]
    if points:
        start = np.round(start / wide) * wide
        offset = start[:, :, 0].astype(np.float16)
    q = np.clip(np.round((parts - start) / wide), 0, top).astype(np.uint8)
    stored = q.reshape(len(table), -1)
    fields = np.unpackbits(stored[:, :, None], axis=2, count=bits, bitorder="little")
    stored = np.packbits(fields.reshape(len(table), -1), axis=1, bitorder="little")
    write_safetensors(
        directory / "embedding.safetensors",
        {"q": stored, "scale": scale, "offset": offset},
        metadata={
            "format": "shrinkc-embedding",
            "version": "2" if points else "1",
            "bits": str(bits),
            "group": str(size),
            **({"points": "true"} if points else {}),
        },
    )
    return (wide * q.astype(np.float32) + start).reshape(table.shape)


def write_eora(
    directory: Path,
    weights: Mapping[str, NDArray[np.float32]],
    rank: int,
    *,
    skip: tuple[str, ...] = (),
    seed: int = 0,
) -> dict[str, NDArray[np.float32]]:
    """Write an adapter for all projections of ``weights`` but ``skip``, as GPTQModel's EoRA does.

    Returns its tensors by name, as float32 after rounding to bfloat16.
    """
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed + 1)
    tensors = {}
    for name, values in weights.items():
        if name.rpartition(".")[2] not in MODULES or name in skip:
            continue
        key = f"base_model.model.{name}.lora_"
        for side, shape in (("A", (rank, values.shape[1])), ("B", (values.shape[0], rank))):
            part = 0.1 * rng.standard_normal(shape).astype(np.float32)
            tensors[f"{key}{side}.weight"] = round_to("bfloat16", part)
    write_safetensors(directory / "adapter_model.safetensors", tensors, "bfloat16")
    fields = {
        "base_model_name_or_path": "base",
        "r": rank,
        "target_modules": list(MODULES),
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "bias": "none",
        "use_rslora": False,
        "init_lora_weights": True,
        "megatron_core": "megatron.core",
        "use_dora": False,
        "lora_bias": False,
        "task_type": "CAUSAL_LM",
        "peft_type": "LORA",
    }
    (directory / "adapter_config.json").write_text(json.dumps(fields, indent=2))
    return tensors
