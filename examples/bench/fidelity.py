r"""Measure how close the integer model stays to the float model on real text.

    python fidelity.py MODEL --text FILE --protocol wikitext512 --bits 8
    python fidelity.py MODEL --text FILE --protocol tinystories --bits 4 --group 32 \
        --short-last-group --asymmetric

MODEL is a Hugging Face directory, a GPTQModel directory or a GGUF file.  Matrices that are
quantised already keep their integers, and the float model has the same weights dequantised.  The
float model is computed by torch in float32 (pip install ".[compress]"); the integer model is the one
that the generated program reproduces bit for bit.  Both see the same tokens.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shrinkc.core.errors import ShrinkcError
from shrinkc.evaluation import (
    PROTOCOLS,
    LogitsOf,
    Protocol,
    Result,
    agreement,
    integer_logits,
    measure,
    read_text,
)
from shrinkc.importer import formats, load_model
from shrinkc.quantize import QuantOptions, lower

PROGRESS_SECONDS = 5


def run(label: str, protocol: Protocol, logits_of: LogitsOf, ids: list[list[int]]) -> Result:
    """Measure one model, with a line of progress on standard error every few seconds."""
    start = shown = time.monotonic()

    def progress(done: int, total: int, loss: float) -> None:
        nonlocal shown
        now = time.monotonic()
        if done == total or now - shown > PROGRESS_SECONDS:
            shown = now
            text = f"{label}: {done}/{total} {protocol.unit}, loss {loss:.4f}, {now - start:.0f} s"
            print(text, file=sys.stderr, flush=True)

    return measure(protocol.name, logits_of, ids, progress)


def float_logits(model: Path) -> LogitsOf:
    """The float model of a directory or file, computed by torch."""
    import torch

    from shrinkc.checkpoints import load

    loaded = load(model).model

    def logits_of(ids: NDArray[np.int64]) -> NDArray[np.floating]:
        with torch.no_grad():
            return loaded(torch.from_numpy(ids)[None]).logits[0].numpy()

    return logits_of


def table(rows: list[tuple[str, Result]]) -> str:
    """The first row is what the others are compared with."""
    first = rows[0][1]
    width = max(len(label) for label, _ in rows)
    lines = [f"{'model':{width}}    loss  perplexity   ratio  same greedy token"]
    for label, result in rows:
        ratio = result.perplexity / first.perplexity
        same = agreement(first, result)
        lines.append(
            f"{label:{width}}  {result.loss:.4f}  {result.perplexity:10.4f}  {ratio:.4f}  {same:7.2%}"
        )
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Loss and perplexity of the float and the integer model on the same tokens."
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help="directory or GGUF file")
    parser.add_argument("--text", type=Path, required=True, help="text to predict")
    parser.add_argument("--protocol", choices=sorted(PROTOCOLS), default="wikitext512")
    parser.add_argument(
        "--windows", type=int, help="windows or stories; default: as many as the reference figures"
    )
    parser.add_argument("--bits", type=int, default=8, help="bits of a weight: 8 or 4")
    parser.add_argument("--group", type=int, help="weights per scale; default: one scale per row")
    parser.add_argument("--asymmetric", action="store_true", help="with zero points")
    parser.add_argument("--head-bits", type=int, default=8, help="embedding and head: 8 or 4")
    parser.add_argument(
        "--short-last-group", action="store_true", help="the last group of a row may be shorter"
    )
    parser.add_argument("--skip-float", action="store_true", help="measure the integer model only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    options = QuantOptions(
        bits=args.bits,
        group=args.group,
        asymmetric=args.asymmetric,
        head_bits=args.head_bits,
        short_last_group=args.short_last_group,
    )
    protocol = PROTOCOLS[args.protocol]
    model, stored = load_model(args.model), formats(args.model)
    count = protocol.count if args.windows is None else args.windows
    ids = protocol.cut(model.tokenizer, read_text(args.text), count)
    rows: list[tuple[str, Result]] = []
    if not args.skip_float:
        rows.append(("float32", run("float32", protocol, float_logits(args.model), ids)))
    label = "integer, as stored" if stored else f"integer, {options.bits} bit"
    if options.group is not None:
        label += f", groups of {options.group}"
    if options.asymmetric:
        label += ", asymmetric"
    if not stored or ("lm_head" not in stored and "model.embed_tokens" not in stored):
        label += f", head {options.head_bits} bit"
    graph = lower(model, options, protocol.longest)
    rows.append((label, run("integer", protocol, integer_logits(graph), ids)))
    last = rows[-1][1]
    print(f"{protocol.name}: {last.sequences} {protocol.unit}, {last.tokens} predicted tokens")
    print(table(rows))
    if args.json is not None:
        content = [{"model": name, **result.to_dict()} for name, result in rows]
        if len(rows) > 1:
            content[-1]["ratio"] = last.perplexity / rows[0][1].perplexity
            content[-1]["same_greedy_token"] = agreement(rows[0][1], last)
        args.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ShrinkcError as exc:
        print(f"fidelity.py: {exc}", file=sys.stderr)
        sys.exit(exc.exit_code)
