"""Description of a model family, checked when it is made; each family has its own file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DIMENSIONS = ("hidden", "ffn", "q", "kv", "head")
"""Names of the sizes of modules and norms; ``structure.dimensions`` returns their values."""

SLOTS = ("qkv", "o", "gate_up", "down")
"""Matrices of a layer on the device, in the order of computation; the modules of one slot are fused."""


@dataclass(frozen=True)
class Module:
    """A matrix of a layer.

    ``name`` is its name within a layer of a Hugging Face checkpoint, ``field`` its field of FloatLayer,
    ``gguf`` its name in llama.cpp.  ``rows`` and ``inputs`` are DIMENSIONS.  ``rotated``: RoPE applies to
    its outputs, so some GGUF architectures store its rows in another order.
    """

    name: str
    field: str
    slot: str
    rows: str
    inputs: str
    gguf: str
    rotated: bool = False

    @property
    def short(self) -> str:
        """Last part of the name, such as ``q_proj``."""
        return self.name.rpartition(".")[2]


@dataclass(frozen=True)
class Norm:
    """An RMSNorm of a layer.  ``size``, one of DIMENSIONS, is its number of weights; names as in :class:`Module`.

    Size "hidden" normalises the residual stream, "head" every head of q or of k before RoPE.
    """

    name: str
    field: str
    size: str
    gguf: str


MODULES = (
    Module("self_attn.q_proj", "wq", "qkv", "q", "hidden", "attn_q", rotated=True),
    Module("self_attn.k_proj", "wk", "qkv", "kv", "hidden", "attn_k", rotated=True),
    Module("self_attn.v_proj", "wv", "qkv", "kv", "hidden", "attn_v"),
    Module("self_attn.o_proj", "wo", "o", "hidden", "q", "attn_output"),
    Module("mlp.gate_proj", "w_gate", "gate_up", "ffn", "hidden", "ffn_gate"),
    Module("mlp.up_proj", "w_up", "gate_up", "ffn", "hidden", "ffn_up"),
    Module("mlp.down_proj", "w_down", "down", "hidden", "ffn", "ffn_down"),
)
NORMS = (
    Norm("input_layernorm", "attn_norm", "hidden", "attn_norm"),
    Norm("post_attention_layernorm", "mlp_norm", "hidden", "ffn_norm"),
)
# norms before and after each block, with llama.cpp's names
SANDWICH_NORMS = (
    Norm("input_layernorm", "attn_norm", "hidden", "attn_norm"),
    Norm("post_attention_layernorm", "attn_post_norm", "hidden", "post_attention_norm"),
    Norm("pre_feedforward_layernorm", "mlp_norm", "hidden", "ffn_norm"),
    Norm("post_feedforward_layernorm", "mlp_post_norm", "hidden", "post_ffw_norm"),
)
POST_NORMS = ("attn_post_norm", "mlp_post_norm")
"""Fields of FloatLayer: RMSNorms of the results of attention and of the MLP, before they are added."""

HEAD_NORMS = (
    Norm("self_attn.q_norm", "q_norm", "head", "attn_q_norm"),
    Norm("self_attn.k_norm", "k_norm", "head", "attn_k_norm"),
)
QKV, OUT, GATE_UP, DOWN = (tuple(m.name for m in MODULES if m.slot == slot) for slot in SLOTS)
ATTENTION, MLP = QKV + OUT, GATE_UP + DOWN


@dataclass(frozen=True)
class Family:
    """One model family; ``name`` is its ``model_type``, ``architecture`` its class in transformers.

    ``gguf``: its architecture in GGUF files.  ``gguf_interleaved``: there, the two rows of a RoPE pair are
    neighbours.  ``biased``: the modules that have a bias if the field ``bias_field`` of config.json is
    true, or always if ``bias_field`` is None.  ``defaults``: optional fields of config.json with the
    values that transformers uses.  ``windowed``: ``sliding_window`` limits the attention of every layer, with
    ``global_every`` n of all but each n-th layer, unless config.json says which.  ``local_rope``: the layers with a
    window have a RoPE base of their own.  ``norm_offset`` is added to the norm weights of Hugging Face checkpoints;
    GGUF files have the sum.  ``gelu``: the MLP has GELU (by tanh) instead of SiLU.  ``embedding_scaled``: the embedding
    is multiplied by sqrt(hidden).  ``query_scalar_field``: attention scores are divided by the square root of this
    field instead of that of head_dim.
    ``neutral``: field -> (values that change nothing, meaning of other values).  ``harmless``: fields that
    are never read.
    """

    name: str
    architecture: str
    gguf: str
    gguf_interleaved: bool
    modules: tuple[Module, ...] = MODULES
    norms: tuple[Norm, ...] = NORMS
    biased: tuple[str, ...] = ()
    bias_field: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    windowed: bool = False
    global_every: int | None = None
    local_rope: bool = False
    norm_offset: float = 0.0
    gelu: bool = False
    embedding_scaled: bool = False
    query_scalar_field: str | None = None
    neutral: Mapping[str, tuple[tuple[Any, ...], str]] = field(default_factory=dict)
    harmless: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """Raise ValueError if the description contradicts itself or no kernel computes such a family."""
        names = [m.name for m in self.modules] + [n.name for n in self.norms]
        fields = [m.field for m in self.modules] + [n.field for n in self.norms]
        sizes = {m.rows for m in self.modules} | {m.inputs for m in self.modules}
        sizes |= {n.size for n in self.norms}
        faults = [
            fault
            for fault, wrong in (
                ("a name or field occurs twice", len({*names}) + len({*fields}) < 2 * len(names)),
                ("slots are not SLOTS in order", self._slots() != SLOTS),
                ("a size is none of DIMENSIONS", not sizes <= {*DIMENSIONS}),
                ("a slot's modules read different inputs", not self._one_input_per_slot()),
                ("a bias is of no module", not {*self.biased} <= {*names}),
                ("only q, k, v and o can have a bias", not {*self.biased} <= {*ATTENTION}),
                ("norms of heads come in pairs", len(self.head_norms) not in (0, 2)),
                ("norms after blocks come in pairs", len({*fields} & {*POST_NORMS}) == 1),
                ("a bias before a norm after a block", self.post_norms and bool(self.biased)),
            )
            if wrong
        ]
        if faults:
            raise ValueError(f"family {self.name}: {'; '.join(faults)}")

    @property
    def head_norms(self) -> tuple[Norm, ...]:
        """Norms of the heads of q and of k, or none."""
        return tuple(n for n in self.norms if n.size == "head")

    @property
    def post_norms(self) -> bool:
        """Whether norms follow attention and MLP."""
        return any(n.field in POST_NORMS for n in self.norms)

    @property
    def readers(self) -> dict[str, tuple[str, ...]]:
        """Norm of the residual stream -> modules that read its output; attention first."""
        names = {n.field: n.name for n in self.norms}
        return {names["attn_norm"]: QKV, names["mlp_norm"]: GATE_UP}

    @property
    def writers(self) -> dict[str, str | None]:
        """Module whose output is added to the residual stream -> norm between them, or None; attention first."""
        names = {n.field: n.name for n in self.norms}
        return {
            module: names.get(field)
            for module, field in zip((*OUT, *DOWN), POST_NORMS, strict=True)
        }

    def _slots(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(m.slot for m in self.modules))

    def _one_input_per_slot(self) -> bool:
        return len({(m.slot, m.inputs) for m in self.modules}) == len(SLOTS)
