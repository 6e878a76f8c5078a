"""Dynamic quantisation of a vector, and code that it shares with RMSNorm."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from shrinkc.abi import PART_BYTES, QVEC_BYTES
from shrinkc.costs import Arithmetic, Work
from shrinkc.costs.work import share
from shrinkc.engines import CORES
from shrinkc.ir.graph import Graph, Op, State
from shrinkc.ir.steps import Access, Call, OnDevice, PassSizes, Step, Use
from shrinkc.numerics import vectors


class Permuting(Protocol):
    """An op that can permute its input."""

    inputs: tuple[str, ...]
    perm: np.ndarray | None


def rule_permutation(graph: Graph, op: Permuting) -> str | None:
    if op.perm is None:
        return None
    k = graph.input_types(op.inputs)[0].width
    if op.perm.dtype != np.uint16 or not np.array_equal(np.sort(op.perm), np.arange(k)):
        return f"perm is no permutation of {k} inputs in uint16"
    return None


def permuted(x: np.ndarray, perm: np.ndarray | None) -> np.ndarray:
    """Return x [T, K] with its columns permuted."""
    return x if perm is None else x[:, perm]


def scan_uses(x_blocks: int, sizes: PassSizes) -> Iterable[Use]:
    """Return the buffers between the two halves of a quantisation: largest values of blocks and of parts."""
    if x_blocks:
        yield Use("block_max", Access.SCRATCH, sizes.words(x_blocks))
    yield Use("parts", Access.WRITE, PART_BYTES * sizes.shared * max(sizes.cores, vectors.SHARES))


def spilled_words(k: int) -> int:
    """Return the most words that a core spills while it splits ``k`` values into low and high bytes in place.

    High bytes are written from the middle of the token's bytes on.  Until two thirds have been read they would
    overwrite unread values, so up to a quarter of the values is spilled.  The C twin is split_in_place() in sc_q16.c.
    """
    return k // 4 + 8


class MakesVector(OnDevice):
    """Base class of ops that make a quantised vector on the device."""

    BUFFER = "xv"
    PRODUCTS: ClassVar[int]  # multiplications per input

    @classmethod
    def uses(cls, step: Step, sizes: PassSizes) -> Iterable[Use]:
        """Return the buffers of the vector; xv holds pointers that are set before the first pass."""
        reader, source = sizes.slot(step), sizes.buffer(step.inputs[0])
        several = sizes.words(reader.several_words)
        if sizes.made_in_place(step.name):
            several = 4 * sizes.team * spilled_words(sizes.width(step.inputs[0]))
            yield Use(source, Access.UPDATE)
        else:
            yield Use(source, Access.READ)
        yield from scan_uses(reader.x_blocks, sizes)
        yield Use("xv", Access.KEEP, QVEC_BYTES * sizes.chunk)
        yield Use("xq", Access.WRITE, max(several, 4 * reader.words))
        if reader.groups:
            yield Use("xc", Access.WRITE, sizes.words(reader.groups))
        if sizes.scratch:
            # an engine starts as soon as the vector is ready
            yield Use("engine", Access.KEEP if sizes.remainders else Access.WRITE, sizes.scratch)
        if reader.asymmetric:
            yield Use(
                "xsum", Access.WRITE, sizes.words(max(s.groups for s in sizes.slots.values()))
            )

    @classmethod
    def work(cls, step: Step, call: Call) -> Work:
        """Return the work of scanning and rounding the inputs, and of starting an engine.

        Each member of the team makes whole tokens if there are enough tokens or vectors are made in place.  The
        cores share the remaining tokens, 8-bit vectors by blocks."""
        m = call.matrix
        assert m is not None
        cores, team, starts = call.sizes.cores, call.sizes.team, m.engine != CORES
        whole, left = divmod(call.tokens, team)
        if 2 * left > team or (left and call.tokens > 1 and call.sizes.made_in_place(step.name)):
            whole, left = whole + 1, 0
        if not m.wide:
            return Work({
                "calls": 1, "starts": int(starts), "tokens": left, "elements": left * share(m.k, cores),
                "blocks": left * share(m.x_blocks, cores), "sums": left * m.groups * m.asymmetric,
                "tokens_whole": whole, "elements_whole": whole * m.k, "groups_whole": whole * m.groups,
            })  # fmt: skip
        # 16-bit vectors have a separate kernel for one token
        several = "_of_several" if call.tokens > 1 else ""
        return Work({
            f"calls{several}": 1, f"starts{several}": int(starts), "tokens": whole + left,
            "elements": whole * m.k + left * share(m.k, cores), "blocks": 0, "sums": 0,
        })  # fmt: skip

    @classmethod
    def arithmetic(cls, step: Step, call: Call) -> Arithmetic:
        """Return PRODUCTS per input; int32 are read and the vector's words written."""
        m = call.matrix
        assert m is not None
        return Arithmetic(call.tokens * m.k * cls.PRODUCTS, call.tokens * 4.0 * (m.k + m.x_words))


@dataclass
class Quant(MakesVector, Op):
    """i32 -> q16 or q8: dynamic quantisation of ``x[perm]``, with ``perm`` as in NormQuant."""

    GIVES = ("q16", "q8")
    RULES = (rule_permutation,)
    KERNEL = "sc_step_quant"
    IN_PLACE = True
    PRODUCTS = 1  # scaling

    perm: np.ndarray | None = None

    def run(self, state: State, args: Sequence[Any]) -> vectors.QVector | vectors.Q16Vector:
        t, x = state.graph.types[self.out], permuted(np.asarray(args[0]), self.perm)
        if t.kind == "q16":
            return vectors.quantize_q16(x, t.bits)
        return vectors.quantize_vector(x, t.group, t.cmax)
