"""Options and storage formats of a model's matrices, and checks of its sizes, all without reading a weight."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from shrinkc.core.errors import QuantizeError
from shrinkc.importer import Formats
from shrinkc.model import (
    EMBEDDING,
    HEAD,
    SLOT_MODULES,
    LlamaConfig,
    dimensions,
    module_name,
    slot_shapes,
)
from shrinkc.quantize.weights import MatrixFormat
from shrinkc.storage import KV_BITS, WIDEST, WIDTHS, Offsets, format_of

KEY_CHANNELS_MAX = 256  # uint8 numbers of sc_key_orders
ROWS_MAX, INPUTS_MAX = 8 * 65535, 65535  # uint16 counts in sc_matrix.h


@dataclass(frozen=True)
class QuantOptions:
    """Bit-widths and groups for float weights, and the bits of the KV cache.

    ``group_size`` None: one scale per output channel.

    ``chosen``: stored matrix, such as "layer3.qkv", "head" or an untied "embedding" -> its format in place of these.
    """

    bits: int = WIDEST
    group_size: int | None = None
    asymmetric: bool = False
    embedding_bits: int = WIDEST
    short_last_group: bool = False
    chosen: Mapping[str, MatrixFormat] = field(default_factory=dict)
    kv_bits: int = KV_BITS[0]

    def __post_init__(self) -> None:
        for label, bits in (("--bits", self.bits), ("--embedding-bits", self.embedding_bits)):
            if bits not in WIDTHS:
                allowed = ", ".join(map(str, WIDTHS))
                raise QuantizeError(f"{label} {bits} is not supported.", f"allowed: {allowed}.")
        if self.kv_bits not in KV_BITS:
            raise QuantizeError(
                f"--kv-bits {self.kv_bits} is not supported.",
                f"allowed: {', '.join(map(str, KV_BITS))}.",
            )

    @property
    def grouped_embeddings(self) -> bool:
        """Whether ``group_size`` applies to embedding and LM head too."""
        return format_of(self.embedding_bits).grouped_embeddings

    @property
    def embedding_group_size(self) -> int | None:
        """Group size of embedding and LM head."""
        return self.group_size if self.grouped_embeddings else None

    def format_of(self, name: str) -> MatrixFormat:
        """Return the format of a stored matrix whose weights are float."""
        if name in self.chosen:
            return self.chosen[name]
        if name in ("head", "embedding"):
            return MatrixFormat(self.embedding_bits, self.embedding_group_size, Offsets.NONE)
        offsets = Offsets.WIDE if self.asymmetric else Offsets.NONE
        return MatrixFormat(self.bits, self.group_size, offsets)


def matrix_formats(
    c: LlamaConfig, options: QuantOptions, formats: Formats | None
) -> tuple[list[dict[str, MatrixFormat]], MatrixFormat, MatrixFormat]:
    """Return (slot -> format for each layer, the LM head's format, the embedding's format).

    ``formats`` come from a quantised checkpoint (``Checkpoint.formats``); ``options`` apply to float modules.
    Raises QuantizeError for a matrix with quantised and float parts, like ``lower``.
    """
    known = formats or {}
    inputs = _inputs(c)
    layers: list[dict[str, MatrixFormat]] = []
    for i in range(c.num_layers):
        slots = {}
        for slot, modules in SLOT_MODULES.items():
            names = {m: module_name(i, m) for m in modules}
            parts = [known[name] for name in names.values() if name in known]
            if parts and len(parts) < len(modules):
                raise mixed(
                    i, [m for m in modules if names[m] in known],
                    [m for m in modules if names[m] not in known],
                )  # fmt: skip
            slots[slot] = (
                MatrixFormat.fused(parts, inputs[slot])
                if parts
                else options.format_of(f"layer{i}.{slot}")
            )
        layers.append(slots)

    def token_matrix(module: str, name: str) -> MatrixFormat:
        if module in known:
            return MatrixFormat.fused([known[module]], c.hidden_size)
        return options.format_of(name)

    if c.tie_embeddings:
        both = token_matrix(EMBEDDING, "head")
        return layers, both, both
    return layers, token_matrix(HEAD, "head"), token_matrix(EMBEDDING, "embedding")


def inputs_of(c: LlamaConfig, name: str) -> int:
    """Return the number of inputs k of a module, given its name in a checkpoint."""
    module = name.rsplit(".", 1)[-1]
    slot = next((s for s, modules in SLOT_MODULES.items() if module in modules), None)
    return c.hidden_size if slot is None else _inputs(c)[slot]


def _inputs(c: LlamaConfig) -> dict[str, int]:
    return {slot: k for slot, (_, k) in slot_shapes(c).items()}


def mixed(index: int, quantised: Iterable[str], floats: Iterable[str]) -> QuantizeError:
    """Return the error for a fused matrix with some quantised modules and some float ones."""
    return QuantizeError(
        f"layer {index}: {', '.join(quantised)} are quantised and {', '.join(floats)} float, but "
        "they are one matrix on the device.",
        "quantise all of them, or none.",
    )


def float_inputs(c: LlamaConfig, quantised: Collection[str]) -> dict[str, int]:
    """Return slot -> number of inputs of the layers' float matrices.

    ``quantised`` names the modules (module_name) that the checkpoint stores as integers.
    """
    found = {
        slot: k
        for slot, k in _inputs(c).items()
        if any(
            module_name(i, m) not in quantised
            for i in range(c.num_layers)
            for m in SLOT_MODULES[slot]
        )
    }
    if "qkv" in found and "gate_up" in found:
        return {"qkv and gate_up": found.pop("qkv")} | {
            s: found[s] for s in found if s != "gate_up"
        }
    return found


def grouped_inputs(
    c: LlamaConfig, quantised: Collection[str], options: QuantOptions
) -> dict[str, int]:
    """Return the input counts that --group-size has to divide: float_inputs, and a grouped embedding's or LM head's."""
    found = float_inputs(c, quantised)
    modules = {EMBEDDING} if c.tie_embeddings else {EMBEDDING, HEAD}
    has_float = options.grouped_embeddings and not modules <= set(quantised)
    if has_float and c.hidden_size not in found.values():
        found["embedding and head"] = c.hidden_size
    return found


def check_sizes(c: LlamaConfig, kv_bits: int = KV_BITS[0]) -> None:
    """Raise QuantizeError that lists every size too large for its field in the generated program (sc_matrix.h)."""
    sizes = {
        "vocab_size": (c.vocab_size, ROWS_MAX),
        "the rows of q, k and v": (slot_shapes(c)["qkv"][0], ROWS_MAX),
        "hidden_size": (c.hidden_size, INPUTS_MAX),
        "num_attention_heads * head_dim": (dimensions(c)["q"], INPUTS_MAX),
        "intermediate_size": (c.intermediate_size, INPUTS_MAX),
    }
    if kv_bits != KV_BITS[0]:
        sizes[f"head_dim with --kv-bits {kv_bits}"] = (c.head_dim, KEY_CHANNELS_MAX)
    beyond = [
        f"{what} = {size}; at most {most} is allowed"
        for what, (size, most) in sizes.items()
        if size > most
    ]
    if beyond:
        raise QuantizeError(
            f"the tables of the generated program do not hold this model: {'; '.join(beyond)}.",
            "check config.json; a smaller model of the family may fit.",
        )
