"""Perplexity of SmolLM2 after GPTQ onto the grids of decoders.py, into docs/results/data/weight_quality.json.

    OMP_NUM_THREADS=1 python examples/bench/weight_quality.py --smollm2 FILE --data DIR [--only ID ...] [--state FILE]

All matrices of the layers and the embedding are rounded.  Hessians are those of the float model on 16 windows of 512
tokens: 8 of WikiText-2's validation text and 8 of TinyStories.  They are the same for all formats, so formats differ
only by their grids.  Perplexity: the first 16 windows of 512 tokens of WikiText-2's test text and of TinyStories'
validation text.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import decoders
import figures
import numpy as np
import torch
from prefix_codes import CODEBOOK, CORRECTION_BITS, ROW_PAIRS, ROWS, JointCode

from shrinkc.checkpoints import load
from shrinkc.compression.blocks import block, embed, loss_sum, positions, second_moments
from shrinkc.compression.gptq import Weighting, damped, quantize_matrix

WINDOWS, LENGTH = 16, 512
DAMP = 0.02
LAZY = 48  # columns that are rounded before the rest is corrected: a multiple of 3 and 4
CALIBRATION = ("wikitext2/wiki.valid.tokens", "tinystories/tiny_stories_smallGPT.txt")
TEXTS = {"wikitext2": "wikitext2/wiki.test.raw", "stories": "tinystories/tinystories_val.txt"}
MODULES = {
    "self_attn.q_proj": "self_attn.q_proj", "self_attn.k_proj": "self_attn.q_proj",
    "self_attn.v_proj": "self_attn.q_proj", "self_attn.o_proj": "self_attn.o_proj",
    "mlp.gate_proj": "mlp.gate_proj", "mlp.up_proj": "mlp.gate_proj", "mlp.down_proj": "mlp.down_proj",
}  # fmt: skip
INPUTS = tuple(dict.fromkeys(MODULES.values()))
HEAD = "head"
COLUMNS = {
    "what": "Weights are stored as", "bits": "Bits per weight", "wikitext2": "Perplexity on WikiText-2",
    "stories": "Perplexity on TinyStories", "cycles": "Cycles per weight of a core", "from": "Weights come from",
    "table_bytes": "Table in L1, bytes",
}  # fmt: skip


@dataclass(frozen=True)
class Format:
    """A grid.  ``size`` 0: groups of ``group`` integers of ``bits`` bits; else tuples of a code, or of a codebook.

    ``kernel``: row of weight_codes.json that has its cycles.  ``deviation``: standard deviation in steps, of a matrix
    or, ``per_row``, of a row.
    """

    id: str
    kernel: str
    what: str
    size: int = 0
    bits: int = 0
    group: int = 0
    deviation: float = 0
    method: int = ROW_PAIRS
    per_row: bool = False


ONE_STEP, THREE = "one step per matrix", "joint code of three"
FORMATS = (
    Format("w3_g32", "w3_g32", "3 bits, group size 32", bits=3, group=32),
    Format("triple_31", "triple_12", f"{THREE}, {ONE_STEP}", 3, 12, deviation=2.0),
    Format("triple_29", "triple_12", f"{THREE}, {ONE_STEP}", 3, 12, deviation=1.8),
    Format("triple_29_rows", "triple_12", f"{THREE}, one step per channel", 3, 12, deviation=1.8, per_row=True),
    Format("codebook", "codebook", f"codebook of four, {ONE_STEP}", 4, 12, deviation=16, method=CODEBOOK),
)  # fmt: skip


def windows(tokenizer: Any, file: Path, count: int) -> torch.Tensor:
    """The first ``count`` windows of a text [count, LENGTH]."""
    text = file.read_text(encoding="utf-8")[: 16 * count * LENGTH]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return torch.tensor(ids[: count * LENGTH]).view(count, LENGTH)


@torch.no_grad()
def hessians(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Second moment of the inputs [inputs, inputs] by layer and module, and of the head."""
    found: dict[str, torch.Tensor] = {}
    tables = positions(model, ids.shape[1])
    hidden = [embed(model, part) for part in ids.split(2)]
    for at, layer in enumerate(model.model.layers):
        moments, hidden = second_moments(layer, hidden, tables, INPUTS, weighted=False)
        found |= {f"{at}.{name}": moment.float() for name, moment in moments.items()}
        print(f"layer {at}", file=sys.stderr, flush=True)
    last = torch.cat([model.model.norm(h).flatten(0, 1) for h in hidden])
    found[HEAD] = last.T @ last / len(last)
    return found


@torch.no_grad()
def perplexity(model: Any, ids: torch.Tensor) -> float:
    tables = positions(model, ids.shape[1])
    total = 0.0
    for part in ids.split(2):
        hidden = embed(model, part)
        for layer in model.model.layers:
            hidden = block(layer, hidden, tables)
        total += float(loss_sum(model, hidden, part))
    return float(np.exp(total / (ids.shape[0] * (ids.shape[1] - 1))))


class Grid:
    """The tuples of a code, for vectors in steps."""

    def __init__(self, code: JointCode) -> None:
        self.code = code
        self.values = torch.tensor(code.values, dtype=torch.float32)
        self.lengths = torch.tensor(code.lengths, dtype=torch.float32)
        self.reach = int(self.values.abs().max())
        self.corners = torch.cartesian_prod(*[torch.arange(2.0)] * code.size)
        width = 2 * self.reach + 3
        self.strides = torch.tensor([width**j for j in range(code.size)])
        self.dense = torch.full((width**code.size,) if code.method != CODEBOOK else (1,), torch.inf)
        if code.method != CODEBOOK:
            self.dense[self.at(self.values)] = self.lengths

    def at(self, v: torch.Tensor) -> torch.Tensor:
        return (
            (v.clamp(-self.reach - 1, self.reach + 1) + self.reach + 1).long() * self.strides
        ).sum(-1)

    def nearest(
        self, w: torch.Tensor, metric: torch.Tensor, price: float
    ) -> tuple[torch.Tensor, int]:
        """Integers for ``w`` [n, size], and their bits.  An error d costs |d · metric|²."""
        if self.code.method == CODEBOOK:
            return self.any_tuple(w, metric, price)
        near = w.floor()[:, None] + self.corners
        cost = ((w[:, None] - near) @ metric).square().sum(-1) + price * self.dense[self.at(near)]
        least, which = cost.min(1)
        v = near[torch.arange(len(w)), which]
        known = least.isfinite()
        bits = int(self.dense[self.at(v[known])].sum())
        if not known.all():
            v[~known], more = self.any_tuple(w[~known], metric, price)
            bits += more
        return v, bits

    def any_tuple(
        self, w: torch.Tensor, metric: torch.Tensor, price: float
    ) -> tuple[torch.Tensor, int]:
        turned = self.values @ metric
        constant = turned.square().sum(1) + price * self.lengths
        near, turned = w.clamp(-self.reach, self.reach) @ metric, -2 * turned.T
        which = torch.cat(
            [torch.addmm(constant, part, turned).argmin(1) for part in near.split(64)]
        )
        v = self.values[which]
        missing = w - v
        whole = missing.round().clamp(-127, 127)
        worth = missing.square() - (missing - whole).square() > self.code.price * CORRECTION_BITS
        bits = int(self.lengths[which].sum()) + CORRECTION_BITS * int(worth.sum())
        return v + whole * worth, bits


def round_to(grid: Grid, w: torch.Tensor, weighting: Weighting) -> tuple[torch.Tensor, int]:
    """GPTQ of ``w`` [n, k] in steps: its integers, and their bits."""
    n, k = w.shape
    w, size, factor = w.clone(), grid.code.size, weighting.factor
    price = grid.code.price * float((1 / factor.diagonal().square()).mean())
    q, bits = torch.empty_like(w), 2 * 8 * 9 * -(-n // ROWS)  # the offsets of each block
    for begin in range(0, k, LAZY):
        end = min(begin + LAZY, k)
        lost = torch.empty(n, end - begin)
        for j in range(begin, end, size):
            own = slice(j, j + size)
            metric = torch.linalg.inv(factor[own, own])
            q[:, own], more = grid.nearest(w[:, own], metric, price)
            bits += more
            error = (w[:, own] - q[:, own]) @ metric
            lost[:, j - begin : j - begin + size] = error
            w[:, j + size : end] -= error @ factor[own, j + size : end]
        w[:, end:] -= lost @ factor[begin:end, end:]
    return q, bits


def step_of(form: Format, w: torch.Tensor) -> torch.Tensor:
    deviation = w.std(1, keepdim=True).clamp_min(1e-8) if form.per_row else w.std()
    return deviation / form.deviation


def quantized(
    form: Format, grid: Grid | None, w: torch.Tensor, weighting: Weighting
) -> tuple[torch.Tensor, float]:
    """``w`` [n, k] on the grid, and the bits it takes."""
    if grid is None:
        done = quantize_matrix(w, weighting, bits=form.bits, group_size=form.group, points=True)
        return torch.from_numpy(decoders.floats(done)), w.numel() * (form.bits + 12 / form.group)
    step = step_of(form, w)
    bits = 16 * len(w) if form.per_row else 16
    parts = [round_to(grid, rows, weighting) for rows in (w / step).split(8192)]
    return torch.cat([q for q, _ in parts]) * step, bits + sum(b for _, b in parts)


def code_of(form: Format, weights: list[np.ndarray]) -> JointCode:
    """The code for all matrices, from their weights in steps."""
    if form.per_row:
        weights = [w / w.std(1, keepdims=True) for w in weights]
    t = form.deviation * decoders.samples(weights, form.size)
    return (
        decoders.codebook(t) if form.method == CODEBOOK else JointCode.of(t, form.method, form.bits)
    )


def weights_of(model: Any) -> Iterator[tuple[str, str, torch.nn.Parameter]]:
    """Name of the Hessian, and the matrix."""
    for at, layer in enumerate(model.model.layers):
        for name, of in MODULES.items():
            yield f"{at}.{of}", f"{at}.{name}", layer.get_submodule(name).weight
    yield HEAD, HEAD, model.model.embed_tokens.weight


def measure(
    form: Format, model: Any, moments: dict[str, torch.Tensor], texts: dict[str, torch.Tensor]
) -> figures.Row:
    """The row of a format; the model's weights are put back afterwards."""
    before = {name: w.data.clone() for _, name, w in weights_of(model)}
    grid = (
        Grid(code_of(form, [w.numpy() for w in list(before.values())[::11]])) if form.size else None
    )
    bits = count = 0.0
    weighting: dict[str, Weighting] = {}
    for of, name, w in weights_of(model):
        if of not in weighting:
            weighting = {of: Weighting.of(damped(moments[of].double(), DAMP))}
        w.data, more = quantized(form, grid, before[name], weighting[of])
        bits, count = bits + more, count + w.numel()
    row: figures.Row = {"id": form.id, "what": form.what, "bits": bits / count} | on_chip(form)
    row |= {name: perplexity(model, ids) for name, ids in texts.items()}
    for _, name, w in weights_of(model):
        w.data = before[name]
    return row


def on_chip(form: Format) -> figures.Row:
    """What decoders.py measured on GVSoC."""
    row = next(r for r in figures.read("weight_codes")["rows"] if r["id"] == form.kernel)
    source = "flash" if "flash" in row else "l2"
    name = "flash" if source == "flash" else "on-chip memory"
    return {"cycles": row[source], "from": name, "table_bytes": row["table_bytes"]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--smollm2", type=Path, required=True, metavar="FILE", help="SmolLM2-135M-Instruct as GGUF"
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="folder of the texts"
    )
    parser.add_argument("--only", nargs="+", metavar="ID", help="measure these formats")
    parser.add_argument("--state", type=Path, metavar="FILE", help="keep the Hessians there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load(args.smollm2)
    model, tokenizer = loaded.model, loaded.tokenizer
    texts = {name: windows(tokenizer, args.data / file, WINDOWS) for name, file in TEXTS.items()}
    if args.state and args.state.is_file():
        moments = torch.load(args.state, weights_only=True)
    else:
        some = [windows(tokenizer, args.data / file, WINDOWS // 2) for file in CALIBRATION]
        moments = hessians(model, torch.cat(some))
        if args.state:
            torch.save(moments, args.state)
    rows: list[figures.Row] = []
    if not args.only or "float" in args.only:
        base = {name: perplexity(model, ids) for name, ids in texts.items()}
        rows.append({"id": "float", "what": "float weights", "bits": 16.0, **base})
        print(rows[-1], file=sys.stderr, flush=True)
    for form in FORMATS:
        if not args.only or form.id in args.only:
            rows.append(measure(form, model, moments, texts))
            print(rows[-1], file=sys.stderr, flush=True)
    figures.write(
        "weight_quality", title="Perplexity after GPTQ", columns=COLUMNS, rows=rows,
        command="python examples/bench/weight_quality.py --smollm2 FILE --data DIR",
        formats={"bits": "{:.2f}", "wikitext2": 3, "stories": 3, "cycles": "{:.2f}"},
        folder=args.state.parent if args.only and args.state else figures.DATA,
    )  # fmt: skip


if __name__ == "__main__":
    main()
