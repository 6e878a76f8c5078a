"""Values of an ONNX graph under construction, with operators like numpy arrays.

Integers are int64 by default, as in ``numerics``, and every operator is exact.  Shifts are multiplications
and floor divisions by powers of two, because ONNX shifts only unsigned integers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Union

import numpy as np

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

I64 = np.int64
Number = Union["Value", int, np.ndarray]

POWERS = np.array([1 << n for n in range(63)], I64)


@dataclass
class Builder:
    """Builder of a graph's nodes and constants.  Names begin with the current operation's."""

    nodes: list[NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)
    _scope: str = "model"
    _counts: dict[str, int] = field(default_factory=dict)
    _known: dict[str, Value] = field(default_factory=dict)

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Name nodes made within the context after the operation ``name``."""
        before, self._scope = self._scope, name
        yield
        self._scope = before

    def node(self, kind: str, *inputs: Value, **attributes: Any) -> Value:
        """Add a node and return its output."""
        from onnx import helper

        name = f"{self._scope}/{kind}"
        count = self._counts[name] = self._counts.get(name, 0) + 1
        name = f"{name}.{count}"
        names = [value.name for value in inputs]
        self.nodes.append(helper.make_node(kind, names, [name], name=name, **attributes))
        return Value(self, name)

    def constant(self, values: np.ndarray | int | Sequence[int]) -> Value:
        """Return a constant: int64, or an array's own type.  Equal constants are stored once."""
        array = values if isinstance(values, np.ndarray) else np.array(values, I64)
        key = f"{array.dtype}{array.shape}{array.tobytes().hex()}"
        if key not in self._known:
            self._known[key] = self._new_constant(array, f"constant.{len(self._known)}")
        return self._known[key]

    def table(self, values: np.ndarray, name: str) -> Value:
        """Return the constant called ``name``; the first call makes it."""
        if name not in self._known:
            self._known[name] = self._new_constant(values, name)
        return self._known[name]

    def _new_constant(self, array: np.ndarray, name: str) -> Value:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return Value(self, name)

    def value(self, value: Number) -> Value:
        """Return ``value``, or a constant of a number."""
        return value if isinstance(value, Value) else self.constant(value)

    # ---- numpy's functions ----

    def where(self, condition: Value, a: Number, b: Number) -> Value:
        return self.node("Where", condition, self.value(a), self.value(b))

    def maximum(self, a: Number, b: Number) -> Value:
        return self.node("Max", self.value(a), self.value(b))

    def minimum(self, a: Number, b: Number) -> Value:
        return self.node("Min", self.value(a), self.value(b))

    def clip(self, v: Value, low: Number, high: Number) -> Value:
        return self.minimum(self.maximum(v, low), high)

    def concat(self, parts: Sequence[Value], axis: int) -> Value:
        return self.node("Concat", *parts, axis=axis)

    def arange(self, start: Value, end: Value) -> Value:
        """Return int64 from ``start`` (scalar) to ``end`` (scalar, excluded)."""
        return self.node("Range", start, end, self.constant(1))


def _operator(kind: str) -> Callable[[Value, Number], Value]:
    """Return a method that makes a node of ``kind`` with two inputs."""
    return lambda self, other: self.builder.node(kind, self, self.builder.value(other))


def _reduction(kind: str) -> Callable[..., Value]:
    """Return a method that makes a node of ``kind`` along an axis."""

    def reduced(self: Value, axis: int, keep: bool = False) -> Value:
        return self.builder.node(kind, self, self.builder.constant([axis]), keepdims=int(keep))

    return reduced


@dataclass(frozen=True)
class Value:
    """Tensor of the graph, identified by its name."""

    builder: Builder = field(repr=False)
    name: str

    __add__ = _operator("Add")
    __sub__ = _operator("Sub")
    __mul__ = _operator("Mul")
    __matmul__ = _operator("MatMul")
    __mod__ = _operator("Mod")  # remainder of a floor division; the divisor must be positive
    __gt__ = _operator("Greater")
    __ge__ = _operator("GreaterOrEqual")
    over = _operator("Div")  # floor division, for values of at least 0 and positive divisors
    sum, max, min = map(_reduction, ("ReduceSum", "ReduceMax", "ReduceMin"))

    def __rsub__(self, other: Number) -> Value:
        return self.builder.node("Sub", self.builder.value(other), self)

    def __neg__(self) -> Value:
        return self.builder.node("Neg", self)

    def __floordiv__(self, other: Number) -> Value:
        """Divide by positive numbers and round down (ONNX rounds towards zero)."""
        return (self - self % other).over(other)

    def __lshift__(self, bits: Number) -> Value:
        return self * _power(self.builder, bits)

    def __rshift__(self, bits: Number) -> Value:
        return self // _power(self.builder, bits)

    def right(self, bits: Number) -> Value:
        """Shift right, for values of at least 0."""
        return self.over(_power(self.builder, bits))

    def abs(self) -> Value:
        return self.builder.node("Abs", self)

    def take(self, indices: Number, axis: int = 0) -> Value:
        return self.builder.node("Gather", self, self.builder.value(indices), axis=axis)

    def part(self, begin: int, end: int, axis: int) -> Value:
        bounds = (self.builder.constant([n]) for n in (begin, end, axis))
        return self.builder.node("Slice", self, *bounds)

    def reshape(self, *shape: int) -> Value:
        """Reshape; 0 in ``shape`` keeps a size, -1 is computed."""
        return self.builder.node("Reshape", self, self.builder.constant(shape))

    def expand(self, axis: int) -> Value:
        """Insert an axis of size 1."""
        return self.builder.node("Unsqueeze", self, self.builder.constant([axis]))

    def transpose(self, *order: int) -> Value:
        return self.builder.node("Transpose", self, perm=order)

    def cast(self, dtype: type) -> Value:
        from onnx import helper

        return self.builder.node("Cast", self, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def padded(self, count: int) -> Value:
        """Append ``count`` columns of zeros to a matrix."""
        if count == 0:
            return self
        return self.builder.node("Pad", self, self.builder.constant([0, 0, 0, count]))

    def size(self, axis: int) -> Value:
        """Return the size of ``axis``, an int64 scalar."""
        shape = self.builder.node("Shape", self, start=axis, end=axis + 1)
        return shape.reshape()


def _power(builder: Builder, bits: Number) -> Value:
    """Return 2**bits; bits are 0 to 62."""
    if isinstance(bits, int):
        return builder.constant(1 << bits)
    return builder.constant(POWERS).take(bits)
