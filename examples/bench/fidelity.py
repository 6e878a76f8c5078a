r"""Measure how close the integer model stays to the float model on real text.

    python fidelity.py MODEL --text FILE --protocol wikitext512 --bits 8
    python fidelity.py MODEL --text FILE --protocol tinystories --bits 4 --group-size 32 \
        --short-last-group --asymmetric

MODEL is a Hugging Face directory, a GPTQModel directory or a GGUF file.  Matrices that are
quantised already keep their integers, and the float model has the same weights dequantised.  The
float model is computed by torch in float32 (pip install ".[compress]"); the integer model is the one
that the generated program reproduces bit for bit.  Both see the same tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import figures
import numpy as np
from numpy.typing import NDArray

from shrinkc.core.errors import ShrinkcError, UsageError
from shrinkc.evaluation import token_losses
from shrinkc.evaluation.items import read_text
from shrinkc.evaluation.perplexity import cut_windows
from shrinkc.importer import Tokenizer, load_model, open_checkpoint
from shrinkc.ir.graph import Graph
from shrinkc.ir.interpreter import Interpreter
from shrinkc.quantize import QuantOptions, lower

PROGRESS_SECONDS = 5


# ---- what is measured: the tokens of a text that a model has to predict, and its loss on them ----

# ids [T] at positions 0..T-1 -> logits [T, vocab]
LogitsOf = Callable[[NDArray[np.int64]], NDArray[np.floating]]
# done, total, mean loss so far
Progress = Callable[[int, int, float], None]

WINDOW = 512
STORY_START = re.compile(r"\n\n(?=Once upon a time|One day)")
STORY_IDS_MAX = 400
STORY_IDS_MIN = 50


@dataclass(frozen=True)
class Protocol:
    """``cut(tokenizer, text, count)`` makes sequences of at most ``longest`` ids.

    ``count`` are the sequences (``unit`` names them) of the reference figures.
    """

    name: str
    cut: Callable[[Tokenizer, str, int], list[list[int]]]
    count: int
    longest: int
    unit: str


@dataclass(frozen=True)
class Result:
    """``tokens`` predicted in ``sequences`` sequences; ``loss`` is their mean, in nats.

    ``greedy`` int64 [tokens] are the most likely tokens, the lowest id among equals.
    """

    protocol: str
    sequences: int
    tokens: int
    loss: float
    greedy: NDArray[np.int64] = field(repr=False, compare=False)

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(self.loss)

    def to_dict(self) -> dict[str, str | int | float]:
        """The figures, for JSON."""
        return {
            "protocol": self.protocol,
            "sequences": self.sequences,
            "tokens": self.tokens,
            "loss": self.loss,
            "perplexity": self.perplexity,
        }


def text_windows(
    tokenizer: Tokenizer, text: str, count: int, length: int = WINDOW
) -> list[list[int]]:
    """The first ``count`` non-overlapping windows of ``length`` ids of one long text.

    The text is tokenised from its start without special tokens.  Raises UsageError or BadData
    if it is too short: fewer windows would be another measurement.
    """
    _check_count(count)
    return cut_windows(tokenizer.encode(text, add_bos=False), length, count)


def story_pieces(tokenizer: Tokenizer, text: str, count: int) -> list[list[int]]:
    """The ids of the first ``count`` stories of a text that separates them by blank lines.

    A story starts at "Once upon a time" or "One day" after a blank line.  Each is stripped,
    encoded as a prompt is (with the model's BOS), and cut to STORY_IDS_MAX ids; those under
    STORY_IDS_MIN ids are left out, so that fewer than ``count`` may come back.  Raises
    UsageError if the text has fewer stories, or none is long enough.
    """
    _check_count(count)
    stories = STORY_START.split(text)
    if len(stories) < count:
        raise UsageError(
            f"{count} stories are asked for, the text has {len(stories)}.",
            f"at most {len(stories)} stories.",
        )
    pieces = [tokenizer.encode(story.strip())[:STORY_IDS_MAX] for story in stories[:count]]
    pieces = [ids for ids in pieces if len(ids) >= STORY_IDS_MIN]
    if not pieces:
        raise UsageError(f"none of the {count} stories has {STORY_IDS_MIN} tokens.")
    return pieces


PROTOCOLS: dict[str, Protocol] = {
    p.name: p
    for p in (
        Protocol("wikitext512", text_windows, 16, WINDOW, "windows"),
        Protocol("tinystories", story_pieces, 80, STORY_IDS_MAX, "stories"),
    )
}


def measure(
    protocol: str,
    logits_of: LogitsOf,
    sequences: Sequence[Sequence[int]],
    progress: Progress | None = None,
) -> Result:
    """Run ``logits_of`` over all sequences, each from position 0.

    The last token of a sequence is only predicted, never fed.  Raises UsageError if there is
    nothing to predict, ArithmeticError if a loss is not finite.
    """
    total, count = 0.0, 0
    best: list[NDArray[np.int64]] = []
    for done, sequence in enumerate(sequences):
        ids = np.asarray(sequence, np.int64)
        if len(ids) < 2:
            raise UsageError(
                f"{protocol}: sequence {done} has {len(ids)} tokens, at least 2 needed."
            )
        logits = logits_of(ids[:-1])
        total += float(token_losses(logits, ids[1:]).sum())
        if not math.isfinite(total):
            raise ArithmeticError(f"{protocol}: the loss of sequence {done} is not finite")
        count += len(ids) - 1
        best.append(np.argmax(logits, axis=1))
        if progress is not None:
            progress(done + 1, len(sequences), total / count)
    if not count:
        raise UsageError(f"{protocol}: there is nothing to predict.")
    return Result(protocol, len(sequences), count, total / count, np.concatenate(best))


def agreement(a: Result, b: Result) -> float:
    """The fraction of predicted tokens for which both models prefer the same token."""
    if a.tokens != b.tokens:
        raise ValueError(f"{a.tokens} predictions cannot be compared with {b.tokens}")
    return float(np.mean(a.greedy == b.greedy))


def _check_count(count: int) -> None:
    if count < 1:
        raise UsageError(f"a count of {count} is not usable.", "allowed: 1 and more.")


def float_logits(model: Path) -> LogitsOf:
    """The float model of a directory or file, computed by torch."""
    import torch

    from shrinkc.checkpoints import load

    loaded = load(model).model

    def logits_of(ids: NDArray[np.int64]) -> NDArray[np.floating]:
        with torch.no_grad():
            return loaded(torch.from_numpy(ids)[None]).logits[0].numpy()

    return logits_of


def integer_logits(graph: Graph) -> LogitsOf:
    """The integer model; every call starts with an empty KV cache.

    The int32 logits are scaled by their fraction bits, which is exact in float64.
    """
    frac = next(
        graph.types[op.out].frac for op in graph.ops if graph.types[op.out].kind == "logits"
    )

    def logits_of(ids: NDArray[np.int64]) -> NDArray[np.floating]:
        values = Interpreter(graph).forward(ids, all_logits=True)
        return np.ldexp(values.astype(np.float64), -frac)

    return logits_of


# ---- the table ----


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


def row_of(name: str, first: Result, last: Result) -> figures.Row:
    """A row of docs/results/data/fidelity.json; agreement in per cent."""
    return {
        "id": name, "float_loss": round(first.loss, 4), "loss": round(last.loss, 4),
        "float_perplexity": round(first.perplexity, 4), "perplexity": round(last.perplexity, 4),
        "ratio": round(last.perplexity / first.perplexity, 4), "agreement": round(100 * agreement(first, last), 2),
    }  # fmt: skip


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
    parser.add_argument(
        "--group-size", type=int, help="weights per scale; default: one scale per output channel"
    )
    parser.add_argument("--asymmetric", action="store_true", help="with zero points")
    parser.add_argument(
        "--embedding-bits", type=int, default=8, help="bits of embedding and LM head: 8 or 4"
    )
    parser.add_argument(
        "--short-last-group", action="store_true", help="the last group of a row may be shorter"
    )
    parser.add_argument("--skip-float", action="store_true", help="measure the integer model only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures")
    parser.add_argument(
        "--row", metavar="ID", help="also write a row of docs/results/data/fidelity.json"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    options = QuantOptions(
        bits=args.bits,
        group_size=args.group_size,
        asymmetric=args.asymmetric,
        embedding_bits=args.embedding_bits,
        short_last_group=args.short_last_group,
    )
    protocol = PROTOCOLS[args.protocol]
    model, stored = load_model(args.model), open_checkpoint(args.model).formats
    count = protocol.count if args.windows is None else args.windows
    ids = protocol.cut(model.tokenizer, read_text(args.text), count)
    rows: list[tuple[str, Result]] = []
    if not args.skip_float:
        rows.append(("float32", run("float32", protocol, float_logits(args.model), ids)))
    label = "integer, as stored" if stored else f"integer, {options.bits} bit"
    if options.group_size is not None:
        label += f", group size {options.group_size}"
    if options.asymmetric:
        label += ", asymmetric"
    if not stored or ("lm_head" not in stored and "model.embed_tokens" not in stored):
        label += f", embedding {options.embedding_bits} bit"
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
    if args.row is not None and len(rows) > 1:
        figures.put(
            "fidelity",
            row_of(args.row, rows[0][1], last),
            command="python examples/bench/fidelity.py",
        )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ShrinkcError as exc:
        print(f"fidelity.py: {exc}", file=sys.stderr)
        sys.exit(exc.exit_code)
