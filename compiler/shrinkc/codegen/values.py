"""Values that the templates print: of model.h, model.c, forward.c and the build files."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass

from shrinkc.abi import ROW_BLOCK, head_scratch_bytes, head_state_bytes, input_words, kv_block_bytes
from shrinkc.codegen.formats import c_format, flat_format
from shrinkc.codegen.forward import CALLS, CStep, printed_steps
from shrinkc.codegen.tables import CLayer, CMatrix, Tables, c_matrix, ops_of_type
from shrinkc.engines import CORES, engine_named
from shrinkc.importer.tokenizer import Tokenizer
from shrinkc.ir.graph import Graph
from shrinkc.ir.ops import Embed, Linear, NormAdd, NormQuant, RopeCache, SiluMul
from shrinkc.ir.ops.quant import spilled_words
from shrinkc.ir.steps import PassSizes, numbers_of, slot_of
from shrinkc.memory.lower import PIECE_WINDOW
from shrinkc.memory.parts import (
    Placement,
    align,
    kv_layers_bytes,
    kv_shape,
    kv_shapes,
    kv_stage_bytes,
    layer_bytes,
    norm_weights_in_l1,
)
from shrinkc.memory.plan import Plan, buffer_bytes, planned_sizes
from shrinkc.schedule.shapes import ModelShape
from shrinkc.storage import WORD, MatrixShape
from shrinkc.targets import FETCHED, L1, OUTSIDE, PROGRAMS, Target


@dataclass(frozen=True)
class Values:
    """The variables of the templates, by their names there."""

    command: str
    """Heads every generated file."""
    name: str
    """Of the model, as the beginning of C names."""
    title: str
    """Of the model, as a C string; so is ``license``, of its weights."""
    license: str
    text_bytes: int
    """Of the longest token."""
    memories: list[str]
    """That a program needs code for: all that hold weights of models, but flash only if this model has some there."""
    stored_weights: list[tuple[str, int, int]]
    """Memory, words and sampled hash of each blob with weights."""
    g: Graph
    ops: list[str]
    cached_op: str
    """The op after which keys and values are in the cache."""
    layer_ops: list[str]
    steps: list[CStep]
    known: tuple[str, ...]
    """Step functions of sc_forward.h; forward.c declares others."""
    macros: dict[str, int | str]
    """Constants of ops that are the same in every layer."""
    gate_shifts: list[int]
    """That occur, in ascending order."""
    silu_joined: bool
    """Whether another engine runs all gates and ups, in whole blocks, with shifts that joined_silu() can do."""
    even_rows: bool
    """Whether all matrices of other engines have an even number of rows."""
    per_layer: list[tuple[str, list[str]]]
    """Constants of a layer: C type and names."""
    plan: Plan
    target: Target
    targets: dict[str, Target]
    layers: list[CLayer]
    adapters: list[tuple[str, CMatrix]]
    matrices: list[tuple[str, CMatrix]]
    embedding: CMatrix
    inputs: dict[str, tuple[str, dict[str, int]]]
    """Layouts of input vectors: macro and fields, by CMatrix.cut as a text."""
    gains: list[list[int]]
    """RMSNorm weights, Q31."""
    gains_in_l1: bool
    post_norms: list[NormAdd]
    rope_tables: list[int]
    """Of each layer the RoPE table, empty if there is only one."""
    kv_bits: int
    """Of keys and values in the KV cache."""
    key_orders: list[list[list[int]]]
    """Of each layer the channels of its KV heads, if the cache has 4 bits."""
    perms: list[tuple[str, list[int]]]
    biases: list[tuple[str, list[int]]]
    head_norm: RopeCache
    strip_space: int
    y_words: int
    """Words of a token's buffers y and xq."""
    xq_words: int
    spill_words: int
    """That a core spills while it quantises in place."""
    in_place: dict[str, tuple[str, int]]
    """Of o and down: the buffer that vectors are made from, and the words of a token there."""
    xgroups: int
    xblocks: int
    q16: int
    q16_padded: bool
    """Whether zeros follow some 16-bit vectors."""
    xsums: int
    rank: int
    """Largest of the adapters; 0: none."""
    head_perm: str
    sq_words: int
    adapter_format: str | None
    engines: list[str]
    """Besides the cores; ``engine_units``: how many pieces of hardware they are."""
    engine_units: int
    remainders: bool
    second_layout: bool
    taps: int | None
    """Of all matrices; None: not all have the same."""
    engine_table: int
    """Bytes of L1 per matrix."""
    head_scratch: int
    head_state: int
    layer_bytes: int
    ram_bytes: int
    piece_window: int
    kv_layer_stride: int
    """Bytes of the largest KV cache of a layer."""
    kv_bytes: dict[str, int]
    """Of the KV caches in each lower memory."""
    window: int
    """Positions of the sliding window, 0: none; ``ring_blocks``: of a KV cache with it."""
    ring_blocks: int
    caches: list[CCache]
    kv_block: tuple[int, int]
    kv_tile_bytes: int
    kv_stage_bytes: int
    """Bytes of L2 for KV caches that stream from HyperRAM."""
    sizes: PassSizes
    shared_products: bool
    """Whether another engine multiplies several tokens for the cores."""
    flat: str
    """The format with 16-bit sums of groups, or ""."""
    flat_all: bool
    interleaved: Placement | None
    input_words: int
    formats: set[str]
    """Formats of matrices that the cores multiply, as C expressions; ``widths``: their bits per weight."""
    widths: set[int]


@dataclass(frozen=True)
class CCache:
    """One row of sc_cache_places: the KV cache of a layer."""

    windowed: bool
    blocks: int
    first: int
    at: int


def _caches(shape: ModelShape, plan: Plan) -> tuple[list[CCache], dict[str, int]]:
    """Return the KV cache of each layer, and the bytes of the caches in each lower memory."""
    windows = shape.windows or (0,) * shape.num_layers
    shapes, sizes = kv_shapes(shape, plan.chunk), kv_layers_bytes(shape, plan.chunk)
    levels = [level for level, count in plan.kv_layers.items() for _ in range(count)]
    used: dict[str, int] = {}
    caches, first = [], 0
    for i, kv in enumerate(shapes):
        level = levels[i] if levels else L1
        caches.append(CCache(windows[i] > 0, kv.blocks, first, used.get(level, 0)))
        used[level] = used.get(level, 0) + sizes[i]
        first += kv.blocks
    return caches, used


def c_identifier(name: str) -> str:
    """``name`` as the beginning of C names: other characters become underscores."""
    ident = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return ident if ident[:1].isalpha() else f"model_{ident}".rstrip("_")


def values_of(
    graph: Graph,
    shape: ModelShape,
    plan: Plan,
    target: Target,
    tokenizer: Tokenizer,
    tables: Tables,
    stored_weights: list[tuple[str, int, int]],
    command: str,
    name: str,
    license_name: str,
) -> Values:
    """All values of a model with its memory plan and tables; the other parameters as in emit() and Values."""
    shapes = {m.name: m for m in shape.matrices}
    embed, final = ops_of_type(graph, Embed)[0], ops_of_type(graph, NormQuant, -1)[0]
    norms = ops_of_type(graph, NormQuant)
    readers = [m for m in shape.matrices if m.name != "embedding"]
    adapter_shapes = [m.adapter for m in readers if m.adapter]
    tied = embed.table is ops_of_type(graph, Linear, -1)[0].weight
    embed_shape = shapes["head" if tied else "embedding"]
    stored = tables.stored
    engines = sorted({w.engine for _, w, _ in stored} - {CORES})
    on_cores = [w for _, w, _ in stored if w.engine == CORES]
    dotted = on_cores or [w for _, w, _ in stored]  # the kernels are compiled for some format
    formats = {c_format(w) for w in dotted}
    widths = {w.bits for w in dotted} | {m.bits for m in adapter_shapes}
    products = [w for matrix, w, _ in stored if _in_products(shapes[matrix])]
    flat, flat_ones = flat_format([w for w in products if shapes[w.name].flat], formats)
    sizes, kv = planned_sizes(shape, target, plan), kv_shape(shape, plan.chunk)
    caches, kv_bytes = _caches(shape, plan)
    held = buffer_bytes(sizes)
    embedding = c_matrix(embed.table, embed_shape, plan)
    inputs = _inputs([embedding, *(m for _, m in [*tables.matrices, *tables.adapters])])
    taps = {0} if tables.adapters else set()
    taps |= {engine_named(m.engine).taps(m.k, m.bits) for m in shape.matrices}
    return Values(
        command=command,
        name=c_identifier(name),
        title=json.dumps(name),
        license=json.dumps(license_name or "not stated"),
        text_bytes=max(len(text) for text in tokenizer.decode_table()),
        memories=[
            level.name
            for level, (_, words, _) in zip(target.stored, stored_weights, strict=True)
            if words > 0 or level.access != FETCHED
        ],
        stored_weights=[blob for blob in stored_weights if blob[1] > 0],
        g=graph,
        ops=graph.device_ops(),
        cached_op=sizes.steps[sizes.attention_step].name,
        layer_ops=[step.name for step in shape.steps if step.in_layer],
        steps=printed_steps(graph, sizes, held, shapes),
        known=tuple(CALLS),
        macros=_macros(graph),
        gate_shifts=sorted({op.gate_shift for op in ops_of_type(graph, SiluMul)}),
        silu_joined=_silu_joined(graph),
        even_rows=bool(engines) and all(m.rows % 2 == 0 for m in readers if m.engine != CORES),
        per_layer=[
            (kind, [name for name, _ in numbers])
            for kind, numbers in itertools.groupby(
                numbers_of(shape.steps).items(), lambda number: number[1]
            )
        ],
        plan=plan,
        target=target,
        targets=PROGRAMS | {target.program.name: target},
        layers=tables.layers,
        adapters=tables.adapters,
        matrices=tables.matrices,
        embedding=embedding,
        inputs=inputs,
        gains=[n.gain.tolist() for n in norms],
        gains_in_l1=norm_weights_in_l1(shape),
        post_norms=ops_of_type(graph, NormAdd),
        rope_tables=[op.table for op in ops_of_type(graph, RopeCache) if op.table is not None],
        kv_bits=graph.kv_bits,
        key_orders=[
            op.key_order.tolist()
            for op in ops_of_type(graph, RopeCache)
            if op.key_order is not None
        ],
        perms=tables.perms,
        biases=tables.biases,
        head_norm=ops_of_type(graph, RopeCache)[0],
        strip_space=int(tokenizer.strip_leading_space),
        y_words=held["y"] // (4 * plan.chunk),
        xq_words=max(engine_named(m.engine).several_words(m) for m in readers),
        spill_words=max(
            (
                spilled_words(sizes.width(s.inputs[0]))
                for s in shape.steps
                if sizes.made_in_place(s.name)
            ),
            default=0,
        ),
        in_place=_in_place(sizes, held),
        xgroups=max(m.x_groups for m in readers),
        xblocks=max(m.x_blocks for m in readers),
        q16_padded=any(c["k"] < WORD * c["last_words"] for _, c in inputs.values()),
        q16=int(any(m.wide for m in [*readers, *adapter_shapes])),
        xsums=int(any(m.asymmetric for m in readers)),
        rank=max(m.rank for m in readers),
        head_perm="perm_head" if final.perm is not None else "0",
        sq_words=max([m.x_words for m in adapter_shapes], default=0),
        adapter_format=tables.adapters[0][1].format if tables.adapters else None,
        engines=engines,
        engine_units=len({engine_named(name).unit for name in engines}),
        remainders=any(engine_named(m.engine).remainders(m.k, m.bits) for m in shape.matrices),
        second_layout=any(taps),
        taps=taps.pop() if len(taps) == 1 else None,
        engine_table=max((engine_named(name).table for name in engines), default=0),
        head_scratch=head_scratch_bytes(
            4 * plan.kv_tile_blocks if plan.kv_streamed else graph.context
        ),
        head_state=head_state_bytes(graph.head_dim),
        layer_bytes=layer_bytes(shape),
        ram_bytes=sum(plan.used.get(level, 0) for level in OUTSIDE),
        piece_window=PIECE_WINDOW,
        kv_layer_stride=max(kv_layers_bytes(shape, plan.chunk)),
        kv_bytes=kv_bytes,
        window=max(shape.windows, default=0),
        ring_blocks=min(c.blocks for c in caches),
        caches=caches,
        kv_block=kv_block_bytes(graph.kv_heads, graph.head_dim, graph.kv_bits),
        kv_tile_bytes=held["kv_tile"] // 2
        if plan.kv_streamed
        else align(plan.kv_tile_blocks * max(kv.k_block, kv.v_block)),
        kv_stage_bytes=kv_stage_bytes(shape, plan.chunk, plan.kv_tile_blocks),
        sizes=sizes,
        shared_products=sizes.shared_products and "products" in held,
        flat=flat,
        flat_all=len(flat_ones) == len(products),
        interleaved=next((p for p in plan.placements if p.interleave), None),
        input_words=input_words(graph.context),
        formats=formats,
        widths=widths,
    )


def _inputs(matrices: list[CMatrix]) -> dict[str, tuple[str, dict[str, int]]]:
    """The layouts of input vectors; a macro has the number of inputs in its name, and a letter if layouts share it."""
    found: dict[str, tuple[str, dict[str, int]]] = {}
    for cut in (m.cut for m in matrices):
        same = sum(other["k"] == cut["k"] for _, other in found.values())
        letter = f"_{chr(ord('A') + same)}" if same else ""
        found.setdefault(str(cut), (f"IN_{cut['k']}{letter}", cut))
    return found


def _silu_joined(graph: Graph) -> bool:
    """Whether joined_silu() of the runtime multiplies all gates with their ups."""
    weights = [
        op.weight for op in ops_of_type(graph, Linear) if op.weight.name.endswith(".gate_up")
    ]
    whole = all(w.engine != CORES and w.n % ROW_BLOCK == 0 for w in weights)
    return whole and all(
        op.gelu is None and -12 <= op.gate_shift < 16 for op in ops_of_type(graph, SiluMul)
    )


def _in_products(shape: MatrixShape) -> bool:
    """Whether another engine can multiply it for the cores with several tokens, group by group."""
    return shape.engine == CORES and shape.product_words > 0 and shape.name != "embedding"


def _in_place(sizes: PassSizes, held: dict[str, int]) -> dict[str, tuple[str, int]]:
    """Of o and down the buffer that its vectors are made from, and words of a token there, 0 where vectors have a place
    of their own; none of plans without vectors in place."""
    found = {"O": ("XQ", 0), "DOWN": ("XQ", 0)} if sizes.in_place else {}
    for step in (s for s in sizes.steps if sizes.made_in_place(s.name)):
        source = sizes.source(step.name)
        room = held[source] // (4 * sizes.chunk)
        found[slot_of(step, sizes.steps).upper()] = (source.upper(), room)
    return found


def _macros(graph: Graph) -> dict[str, int | str]:
    """Constants of the ops for model.h, which are the same in every layer."""
    found: dict[str, int | str] = {}
    for op in graph.ops:
        for name, value in op.macros().items():
            if found.setdefault(name, value) != value:
                raise AssertionError(f"{op.out}: SC_{name} is {value}, and {found[name]} elsewhere")
    return found
