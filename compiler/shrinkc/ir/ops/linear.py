"""Multiplication with a matrix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shrinkc.abi import QVEC_BYTES, product_bytes, shared_product_bytes, split_bytes
from shrinkc.costs import Arithmetic, Work
from shrinkc.costs.work import OVERLAPPED, share, total
from shrinkc.engines import CORES, engine_named
from shrinkc.engines.cores import with_products
from shrinkc.ir.graph import Graph, Op, State, Type
from shrinkc.ir.linear import QLinear
from shrinkc.ir.ops.quant import scan_uses
from shrinkc.ir.ops.ropecache import layer_cache_bytes, layer_cache_use
from shrinkc.ir.steps import Access, Call, PassSizes, Step, Use
from shrinkc.numerics import matrices
from shrinkc.numerics.fixed import INT32_MAX, add_to_residual, saturate32
from shrinkc.storage import ADAPTER_BITS, MatrixShape, Offsets


def rule_linear_types(graph: Graph, op: Linear) -> str | None:
    w, types = op.weight, graph.input_types(op.inputs)
    x, y = types[0], graph.types[op.out]
    if x != vector_type(w):
        return f"input {x} does not match {w.name} [{w.n}, {w.k}], which reads {vector_type(w)}"
    if (y.width, y.frac) != (w.n, w.frac):
        return f"output {y} does not match {w.name} [{w.n}, {w.k}] Q{w.frac}"
    if op.bias is not None and (op.bias.shape != (w.n,) or op.bias.dtype != np.int32):
        return f"bias is {op.bias.dtype}{op.bias.shape}, not int32{(w.n,)}"
    if op.bias is not None and int(op.bias.min()) < -INT32_MAX:
        return "a bias of -2**31"
    if len(types) == 2 and (types[1].width, types[1].frac) != (w.n, w.frac):
        return f"residual {types[1]} does not match Q{w.frac}"
    if w.low_rank:
        a, b = w.low_rank.a, w.low_rank.b
        if (a.k, a.group, a.cmax, a.x_bits, a.pad) != (w.k, w.group, w.cmax, w.x_bits, w.pad):
            return f"{a.name} does not share the activations of {w.name}"
        if a.n != b.k or b.n != w.n or b.frac != w.frac:
            return f"adapter {a.n}->{b.n} does not fit {w.name}"
    return None


def vector_type(w: QLinear) -> Type:
    """The type of the activations that a matrix reads."""
    if w.x_bits:
        return Type("q16", w.k, bits=w.x_bits)
    return Type("q8", w.k, group=w.group, cmax=w.cmax)


def product_uses(step: Step, sizes: PassSizes) -> Iterable[Use]:
    """Return the buffers that a matrix product and its adapter use, except for the result."""
    slot = sizes.slot(step)
    if sizes.tile:
        yield Use("tiles", Access.PREFETCHED, 2 * sizes.tile)
    if sizes.split:
        yield Use("split", Access.SCRATCH, split_bytes(sizes.cores))
    if sizes.scratch:
        yield Use("engine", Access.READ)
    if sizes.multipliers:
        yield Use("multipliers", Access.KEEP, sizes.multipliers)
    if sizes.chunk > 1 and slot.sums:
        each = product_bytes(sizes.chunk, slot.sums, slot.widened)
        yield Use("products", Access.SCRATCH, sizes.cores * each)
        if sizes.shared_products and slot.product_words:
            room = max(shared_product_bytes(sizes.chunk, words) for words in slot.product_words)
            yield Use("products", Access.SCRATCH, room)
    yield from (Use(name, Access.READ) for name in ("xv", "xq"))
    if sizes.made_in_place(step.inputs[0]):
        yield Use(sizes.source(step.inputs[0]), Access.READ)
    if slot.groups:
        yield Use("xc", Access.READ)
    if slot.asymmetric:
        yield Use("xsum", Access.READ)
    if slot.rank:
        yield from scan_uses(0, sizes)
        yield Use("sy", Access.SCRATCH, sizes.words(slot.rank))
        yield Use("sq", Access.SCRATCH, sizes.words(slot.adapter_words))
        yield Use("sv", Access.KEEP, QVEC_BYTES * sizes.chunk)


def product_work(call: Call) -> Work:
    """Return the work of a matrix product: the engine's, and two products and a quantisation for an adapter.

    The cores rescale the results of another engine at the same time."""
    m = call.matrix
    assert m is not None
    features = {"calls": 1.0, **engine_named(m.engine).work(m, call.tokens, call.tiles)}
    if call.sizes.shared_products and m.engine == CORES and m.product_words and call.tokens > 1:
        features = {"calls": 1.0, **with_products(m, call.tokens, call.tiles)}
    if m.engine != CORES:
        rows = call.tokens * share(m.rows, call.sizes.cores)
        kind = "rows" if call.tokens == 1 else "rows_of_several"
        if engine_named(m.engine).sums(call.tokens):
            kind = "rows_summed"
        features |= {f"{OVERLAPPED}.tokens": call.tokens, f"{OVERLAPPED}.{kind}": rows}
    if m.adapter is not None:
        first = MatrixShape(
            f"{m.name}.a",
            m.rank,
            m.k,
            ADAPTER_BITS,
            m.group,
            False,
            Offsets.NONE,
            grouped_input=not m.wide,
        )
        adapters = ((first, (first.blocks,)), (m.adapter, call.tiles))
        works = [Work(engine_named(CORES).work(s, call.tokens, tiles)) for s, tiles in adapters]
        return total([Work(features), Work({"calls": 1.0}), *works])
    return Work(features)


def product_arithmetic(call: Call, written: float) -> Arithmetic:
    """Return the arithmetic of a matrix product and its adapter; per row, ``written`` int32 are read or written."""
    m = call.matrix
    assert m is not None
    adapter = m.rank * (m.k + m.rows)
    stored = m.bytes + m.rank * m.k * ADAPTER_BITS / 8  # b is stored with the matrix
    vectors = call.tokens * 4.0 * (m.x_words + written * m.rows)
    return Arithmetic(call.tokens * (m.rows * m.k + adapter), stored + vectors)


@dataclass
class Linear(Op):
    """q16 or q8 -> i32: product with a matrix.

    ``bias``, int32 [n] with the fraction bits of the result, is added first, saturating.  A second input, the
    residual stream with the same fraction bits, is added by ``add_to_residual``.
    """

    OPTIONAL = frozenset({"bias"})
    TAKES = (("q16",), ("q16", "i32"), ("q8",), ("q8", "i32"))
    GIVES = ("i32", "logits")
    RULES = (rule_linear_types,)
    KERNEL = "sc_step_linear"

    weight: QLinear
    bias: np.ndarray | None = None

    def run(self, state: State, args: Sequence[Any]) -> np.ndarray:
        y = matrices.linear(self.weight, args[0])
        if self.bias is not None:
            y = saturate32(y + self.bias)
        return y if len(args) == 1 else add_to_residual(np.asarray(args[1]), y)

    def matrices(self) -> list[QLinear]:
        return self.weight.all()

    def slot(self) -> str:
        return self.weight.name.rpartition(".")[2]

    @classmethod
    def buffer(cls, step: Step, sizes: PassSizes) -> str:
        """Return the residual's buffer if there is one: the result is added to it."""
        if len(step.inputs) == 2:
            return sizes.buffer(step.inputs[1])
        return sizes.product(step) if step.in_layer else "logits"

    @classmethod
    def width(cls, step: Step, sizes: PassSizes) -> int:
        return sizes.slot(step).rows

    @classmethod
    def uses(cls, step: Step, sizes: PassSizes) -> Iterable[Use]:
        yield from product_uses(step, sizes)
        to, rows = cls.buffer(step, sizes), cls.width(step, sizes)
        if sizes.prefetches_cache(step):
            yield layer_cache_use(sizes, Access.WRITE)
            # a core may still execute the norm when the first bytes arrive
            yield Use("parts", Access.READ)
        if not step.in_layer:
            if sizes.logits_in_l1:
                yield Use(to, Access.WRITE, 4 * rows * sizes.logit_tokens)
            yield Use("tops", Access.WRITE, sizes.tops)
        else:
            access = Access.UPDATE if len(step.inputs) == 2 else Access.WRITE
            yield Use(to, access, sizes.words(rows))

    @classmethod
    def work(cls, step: Step, call: Call) -> Work:
        """Return the work of the product, and of adding its rows to a residual."""
        product = product_work(call)
        if call.sizes.prefetches_cache(step):
            product += Work(moved=layer_cache_bytes(call))
        if len(step.inputs) < 2:
            return product
        assert call.matrix is not None
        if call.matrix.engine != CORES:
            rows = call.tokens * share(call.matrix.rows, call.sizes.cores)
            return product + Work({f"{OVERLAPPED}.added": rows})
        blocks = product.features.get("blocks_of_several", 0) or product.features["blocks"]
        return product + Work({"added": blocks})

    @classmethod
    def arithmetic(cls, step: Step, call: Call) -> Arithmetic:
        """Return the arithmetic of the product; a residual is read and written."""
        return product_arithmetic(call, float(len(step.inputs)))

    @classmethod
    def kernel_parameter(cls, step: Step, steps: Sequence[Step]) -> str:
        return "SC_ADD" if len(step.inputs) == 2 else "SC_STORE"
