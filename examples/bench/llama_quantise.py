"""Quantise a GGUF file with llama.cpp's own quantiser, to compare its results with ours.

    pip install llama-cpp-python gguf
    shrinkc export MODEL --gguf float.gguf
    python examples/bench/llama_quantise.py float.gguf OUT Q2_K Q3_K_M Q3_K_M+Q4_0
    shrinkc eval OUT/Q3_K_M.gguf --base MODEL --text wiki.test.raw --windows 16

``Q3_K_M+Q4_0`` also stores the embedding as Q4_0; without, llama.cpp chooses its type.  For each file, the bytes of its
tensors and their types are printed.  No importance matrix is used.
"""

from __future__ import annotations

import argparse
import ctypes
from collections import Counter
from pathlib import Path
from typing import Any


def quantise(source: Path, target: Path, kind: str, embedding: str) -> None:
    """Write ``target`` with ``kind`` for the matrices; ``embedding``: its type, or "" for llama.cpp's choice."""
    import llama_cpp

    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    if embedding:
        options.token_embedding_type = getattr(llama_cpp, f"GGML_TYPE_{embedding}")
    code = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(options)
    )
    if code:
        raise SystemExit(f"llama.cpp cannot quantise {source} to {kind}: code {code}")


def sizes(file: Path) -> Counter[str]:
    """Return type -> bytes of all tensors."""
    from gguf import GGUFReader

    found: Counter[str] = Counter()
    reader: Any = GGUFReader(file)
    for tensor in reader.tensors:
        found[tensor.tensor_type.name] += int(tensor.n_bytes)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Quantise a GGUF file with llama.cpp.")
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("types", nargs="+", metavar="TYPE")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.types:
        kind, _, embedding = name.partition("+")
        target = args.out / f"{name}.gguf"
        quantise(args.source, target, kind, embedding)
        found = sizes(target)
        print(f"{name}: {sum(found.values()):,} bytes of tensors; {dict(found.most_common())}")


if __name__ == "__main__":
    main()
