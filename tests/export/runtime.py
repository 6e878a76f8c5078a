"""Comparison of onnxruntime with the interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np

from shrinkc.export.model import to_onnx
from shrinkc.export.values import Builder, Value
from shrinkc.ir.graph import Graph
from shrinkc.ir.interpreter import Interpreter

_TYPES = {"tensor(int8)": np.int8, "tensor(int16)": np.int16}


def session(content: bytes) -> Any:
    """One thread, on the processor."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


class Generation:
    """Feeds tokens to the graph, whose caches go from its outputs to its inputs."""

    def __init__(self, content: bytes) -> None:
        self._session = session(content)
        self._names = [output.name for output in self._session.get_outputs()]
        self._past = {
            i.name: np.zeros([0 if isinstance(n, str) else n for n in i.shape], _TYPES[i.type])
            for i in self._session.get_inputs()
            if i.name != "tokens"
        }

    def forward(self, tokens: list[int]) -> tuple[np.ndarray, int]:
        """Logits [T, vocab] and the likeliest token after the last."""
        given = {"tokens": np.array(tokens, np.int64), **self._past}
        out = dict(zip(self._names, self._session.run(None, given), strict=True))
        self._past = {name: out[name.replace("past", "present")] for name in self._past}
        return out["logits"], int(out["next"][0])


def differences(graph: Graph, prompt: list[int], steps: int, other: Graph | None = None) -> int:
    """Logits in which ``steps`` greedy passes differ from those of the interpreter, the prompt's positions
    included; ``other``: what the interpreter runs instead of the graph itself."""
    run = Generation(to_onnx(graph, "test").SerializeToString())
    interpreter = Interpreter(other or graph)
    feed, found = prompt, 0
    for _ in range(steps):
        want = interpreter.forward(feed, all_logits=True)
        logits, token = run.forward(feed)
        assert logits.shape == want.shape and np.abs(want).max() > 0
        found += int((logits != want).sum())
        assert token == int(logits[-1].argmax())
        feed = [int(want[-1].argmax())]
    return found


def evaluated(build: Any, *arrays: np.ndarray) -> list[np.ndarray]:
    """Return the result of onnxruntime for the graph made by ``build`` and int64 inputs."""
    from onnx import TensorProto, helper

    b = Builder()
    inputs = [Value(b, f"x{i}") for i in range(len(arrays))]
    made = build(*inputs)
    outputs = made if isinstance(made, tuple) else (made,)
    graph = helper.make_graph(
        b.nodes,
        "part",
        [
            helper.make_tensor_value_info(x.name, TensorProto.INT64, a.shape)
            for x, a in zip(inputs, arrays, strict=True)
        ],
        [helper.make_tensor_value_info(o.name, TensorProto.INT64, None) for o in outputs],
        initializer=b.constants,
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)])
    given = {x.name: a for x, a in zip(inputs, arrays, strict=True)}
    found: list[np.ndarray] = session(model.SerializeToString()).run(None, given)
    return found
