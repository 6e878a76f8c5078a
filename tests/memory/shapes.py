"""Random model shapes for the planner: configs of every kind, without weights."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from shrinkc.engines import ON_CORES, Choices
from shrinkc.importer.model import LlamaConfig
from shrinkc.memory.plan import Plan
from shrinkc.memory.planner import make_plan
from shrinkc.memory.verify import verify
from shrinkc.model import FAMILIES
from shrinkc.quantize import QuantOptions
from shrinkc.schedule.shapes import ModelShape, shapes_of_config
from shrinkc.targets import Target


def make_shape(
    *,
    hidden: int = 64,
    ffn: int = 172,
    layers: int = 5,
    heads: int = 8,
    kv_heads: int = 4,
    head_dim: int = 8,
    vocab: int = 512,
    context: int = 128,
    tied: bool = True,
    options: QuantOptions = QuantOptions(),  # noqa: B008 - frozen
    ranks: dict[str, int] | None = None,
    piece_bytes: int = 2000,
    family: str = "llama",
    choices: Choices = ON_CORES,
) -> ModelShape:
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=ffn, num_layers=layers,
        num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim, max_position=context,
        rms_norm_eps=1e-5, rope_theta=1e4, tie_embeddings=tied, bos_id=1, eos_ids=(2,),
        family=family, biased=FAMILIES[family].biased if family != "llama" else (),
    )  # fmt: skip
    return shapes_of_config(config, options, context, piece_bytes, ranks or {}, choices=choices)


@st.composite
def shapes(draw: st.DrawFn) -> ModelShape:
    kv_heads = draw(st.sampled_from([1, 1, 2, 3, 8]))
    ranks = draw(
        st.sampled_from([{}, {}, {"qkv": 3}, {"o": 9, "down": 1}, {"gate_up": 70, "qkv": 8}])
    )
    return make_shape(
        hidden=draw(st.integers(1, 700)),
        ffn=draw(st.integers(1, 1600)),
        layers=draw(st.sampled_from([1, 2, 5, 30])),
        heads=kv_heads * draw(st.sampled_from([1, 2, 4])),
        kv_heads=kv_heads,
        head_dim=2 * draw(st.integers(1, 64)),
        vocab=draw(st.integers(3, 5000)),
        context=draw(st.integers(1, 600)),
        tied=draw(st.booleans()),
        options=QuantOptions(
            bits=draw(st.sampled_from([8, 4])),
            group_size=draw(st.sampled_from([None, None, 1, 8, 32, 64, 100, 128])),
            asymmetric=draw(st.booleans()),
            embedding_bits=draw(st.sampled_from([8, 4])),
            short_last_group=True,
        ),
        ranks=ranks,
        piece_bytes=draw(st.integers(0, 30_000)),
        family=draw(st.sampled_from(list(FAMILIES))),
    )


def with_placement(plan: Plan, at: int, **fields: object) -> Plan:
    placements = list(plan.placements)
    placements[at] = replace(placements[at], **fields)  # type: ignore[arg-type]
    return replace(plan, placements=placements)


SMOL = {
    "hidden": 576, "ffn": 1536, "layers": 30, "heads": 9, "kv_heads": 3, "head_dim": 64,
    "vocab": 49152, "piece_bytes": 335_000,
}  # fmt: skip
Q4 = QuantOptions(bits=4, group_size=32, asymmetric=True, embedding_bits=8)


def smol(context: int) -> ModelShape:
    return make_shape(**SMOL, context=context, options=Q4)  # type: ignore[arg-type]


def sound(s: ModelShape, t: Target, l1: int | None = None) -> Plan:
    plan = make_plan(s, t, l1)
    assert verify(plan, s, t) > 0
    return plan
