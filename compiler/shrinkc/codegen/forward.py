"""The calls of forward.c: one per step of a layer, for the workers and for the controller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shrinkc.ir.graph import Graph
from shrinkc.ir.ops import SiluMul
from shrinkc.ir.steps import PassSizes, Step, slot_of
from shrinkc.storage import MatrixShape

VECTORS = ("q8", "q16")  # kinds of values that a sc_qvec describes
LAYOUTS = {"i32": "SC_WORDS", "heads8": "SC_BYTES", "q8": "SC_VECTOR", "q16": "SC_VECTOR"}
SLOTS = ("SC_QKV", "SC_O", "SC_GU", "SC_DOWN")  # enum sc_slot

GAIN = "norm_weights_of(2 * l + {how}, core)"
# by kernel: the workers' call, and the controller's
CALLS = {
    "sc_step_norm": (
        f"sc_step_quantize({{slot}}, WORDS({{src}}), {{src_stride}}, {GAIN}, l, core);",
        f"controller_quantize({{slot}}, WORDS({{src}}), {{src_stride}}, {GAIN}, l);",
    ),
    "sc_step_quant": (
        "sc_step_quantize({slot}, WORDS({src}), {src_stride}, 0, l, core);",
        "controller_quantize({slot}, WORDS({src}), {src_stride}, 0, l);",
    ),
    "sc_step_linear": (
        "sc_step_linear({slot}, {how}, WORDS({dst}), {dst_stride}, l, core);",
        "controller_matrix({slot}, l);",
    ),
    "sc_step_norm_add": (
        "sc_step_norm_add(WORDS({src}), {src_stride}, WORDS({dst}), {dst_stride}, 2 * l + {how}, l, core);",
        "sc_team_barrier();",
    ),
    "sc_step_heads": (
        "sc_step_heads(WORDS({src}), {src_stride}, l, core);",
        "controller_heads(WORDS({src}), {src_stride}, l);",
    ),
    "sc_step_attention": (
        "sc_step_attention(WORDS({dst}), {dst_stride}, l, core);",
        "controller_attention(WORDS({dst}), {dst_stride}, l);",
    ),
}
OTHER = (
    "{kernel}(WORDS({src}), {src_stride}, {dst_stride}, {count}, l, core);",
    "sc_team_barrier();",
)


@dataclass(frozen=True)
class CStep:
    """A step of a layer: its calls in forward.c, and where observation finds its result."""

    name: str
    run: str
    call: str
    controlled: str
    about: str
    dst: str
    dst_stride: int
    count: int
    slot: str
    layout: str


def _about(
    step: Step, said: Mapping[str, object], matrix: MatrixShape | None, activation: str
) -> str:
    """What a step reads and writes."""
    src, dst = said["src"], said["dst"]
    if matrix is not None:
        gated = issubclass(step.op, SiluMul)
        ffn = f"2 x {matrix.rows // 2}, {activation}(gate) * up -> {matrix.rows // 2}"
        added = "added to " if said["how"] == "SC_ADD" else ""
        shape = f"{matrix.k} -> {ffn if gated else matrix.rows}"
        return f"{src} -> {added}{dst}, {shape}, {matrix.bits} bit"
    by_kernel = {
        "sc_step_norm": f"RMSNorm of {src} -> {dst}",
        "sc_step_heads": f"RoPE, {src} -> {dst} and KV cache",
        "sc_step_attention": f"{src} and KV cache -> {dst}",
    }
    return by_kernel.get(step.op.KERNEL, f"{src} -> {dst}")


def printed_steps(
    graph: Graph, sizes: PassSizes, held: Mapping[str, int], shapes: Mapping[str, MatrixShape]
) -> list[CStep]:
    """The steps of a layer; ``held``: bytes of the L1 buffers; ``shapes``: of the matrices by name."""
    slots = [slot for slot in (op.slot() for op in graph.body(0)) if slot]
    kinds = {op.name: graph.types[op.out] for op in graph.ops if op.layer <= 0}

    def stride(value: str) -> int:
        per_token = held[sizes.buffer(value)] // sizes.chunk
        return 0 if kinds[value].kind in VECTORS else per_token // 4

    out = []
    gelu = any(isinstance(op, SiluMul) and op.gelu is not None for op in graph.ops)
    activation = "gelu" if gelu else "silu"
    for step in (s for s in sizes.steps if s.in_layer):
        source, kind, slot = step.inputs[0], kinds[step.name], slot_of(step, sizes.steps)
        count = {"i32": kind.width, "heads8": 4 * stride(step.name)}.get(kind.kind, 0)
        said = {
            "kernel": step.op.KERNEL,
            "src": sizes.buffer(source).upper(),
            "dst": sizes.buffer(step.name).upper(),
            "src_stride": stride(source),
            "dst_stride": stride(step.name),
            "count": count,
            "slot": SLOTS[slots.index(slot) if slot in slots else 0],
            "how": step.op.kernel_parameter(step, sizes.steps),
        }
        call, controlled = CALLS.get(step.op.KERNEL, OTHER)
        matrix = shapes.get(f"layer0.{step.matrix}") if step.matrix else None
        about = f"{step.name}: {_about(step, said, matrix, activation)}"
        out.append(
            CStep(
                step.name,
                step.op.KERNEL,
                call.format(**said),
                controlled.format(**said),
                about,
                str(said["dst"]),
                stride(step.name),
                count,
                str(said["slot"]),
                LAYOUTS[kind.kind],
            )
        )
    return out
