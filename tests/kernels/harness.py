"""Builds harness.c for one model's macros and talks to it; compares with a readable report."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from end_to_end.programs import add_adapters, compile_model
from helpers.tiny_llama import write_tiny_llama
from shrinkc.abi import ROW_BLOCK, X_BLOCK
from shrinkc.codegen.formats import formats_header
from shrinkc.codegen.pack import gate_up_order, pack_matrix
from shrinkc.core.resources import resource
from shrinkc.importer import load_model
from shrinkc.ir.graph import Graph
from shrinkc.ir.linear import QLinear
from shrinkc.numerics.vectors import Q16Vector, QVector
from shrinkc.quantize import QuantOptions
from shrinkc.storage import WIDTHS, MatrixShape

# what needs a whole model; everything else of runtime_c/src is linked
ENGINE = (
    "sc_session.c", "sc_stored.c", "sc_stream.c", "sc_observe.c",
)  # fmt: skip
NUMBERS, VECTOR, MATRIX, EMBED, HEADS, SAMPLE, WIDE_VECTORS, ENGINE_ROWS = range(1, 9)
NUMBER_FUNCTIONS = (
    "sat64", "sat_add", "rshift", "shift", "lshift_sat", "requantize", "exp2_mantissa", "exp2_q20",
    "sigmoid_q15", "isqrt", "bits64", "rsqrt", "mix32", "bits", "sdot4", "sdotu4", "exp2_entry",
)  # fmt: skip
# enum sc_format: bits of a weight, and flags
WIDTH, GROUPED, ASYM, Q16, ZEROS = 15, 16, 32, 64, 128
KINDS = (0, Q16, GROUPED, GROUPED | ASYM, GROUPED | ASYM | ZEROS)
STORE, ADD, SILU = 0, 1, 2
BLOCK = X_BLOCK


@dataclass(frozen=True)
class Config:
    """The compile-time macros of one build, through a tiny model that has them.

    ``formats``: the storage formats its sc_matrix_tile was compiled for, None for all.  ``simd``:
    dot products in the host's vectors, or word by word as on the 32-bit targets.
    """

    heads: int
    kv_heads: int
    head_dim: int
    context: int
    vocab: int
    cores: int
    options: QuantOptions = field(default_factory=QuantOptions)
    adapter: bool = False
    formats: tuple[int, ...] | None = None
    simd: bool = True
    head_norm: bool = False  # of q and k, as Qwen3 has it
    engines: bool = False  # with what is there for engines beside the cores


class Harness:
    """One compiled harness, with sanitizers if ``sanitized``, which takes the compiler six times as
    long.  ``graph`` is the tiny model whose macros it has."""

    def __init__(self, config: Config, folder: Path, sanitized: bool) -> None:
        self.config = config
        write_tiny_llama(
            folder / "model",
            hidden=32,
            intermediate=32,
            layers=1,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            vocab=config.vocab,
            **(_qwen3(config.head_dim) if config.head_norm else {}),
        )
        model = load_model(folder / "model")
        if config.adapter:
            add_adapters(model, {"q_proj": 3})
        program = compile_model(
            model, folder / "out", config.options, config.context, whole_runtime=True
        )
        self.graph: Graph = program.graph
        header = folder / "out" / "src" / "model.h"
        text = header.read_text().replace("SC_PERMS 0", "SC_PERMS 1")
        # of which the plan knew nothing, like of vectors in place
        text = re.sub(r"(SC_BYTES_(PARTS|XQ)) .*", r"\1 (1 << 16)", text)
        self.several = "SC_AT_PRODUCTS" in text  # whether several tokens are multiplied at once
        text, found = re.subn(r"(SC_GATE_SHIFT_LEAST) .*", r"\1 (-20)", text)
        text, most = re.subn(r"(SC_GATE_SHIFT_MOST) .*", r"\1 31", text)
        assert found == most == 1
        text = text.replace("SC_Q16_PADDED 0", "SC_Q16_PADDED 1")
        assert "SC_SPLIT 0" in text
        text = text.replace("SC_SPLIT 0", "SC_SPLIT 1")
        assert "SC_IN_PLACE 0" in text
        text = text.replace("SC_IN_PLACE 0", "SC_IN_PLACE 1")  # vectors can be made in place
        for slot in ("O", "DOWN"):
            text += f"#define SC_ROOM_OF_{slot} 0\n#define SC_SOURCE_OF_{slot} SC_AT_XQ\n"
        header.write_text(text)
        formats = folder / "out" / "src" / "formats.h"
        of_adapters = re.search(r"#define SC_ADAPTER_FORMAT .*\n", formats.read_text())
        if config.formats is None:  # a program has those of its model; here, all there are
            formats.write_text(all_formats())
        elif any(f & ZEROS for f in config.formats):  # which no float model is rounded to
            formats.write_text(header_of(config.formats))
        else:
            (each,) = re.findall(r"SC_EACH_FORMAT\(X\) (.*)", formats.read_text())
            named = {format_name(f) for f in config.formats}
            assert each == " ".join(f"X({name})" for name in sorted(named))
        if of_adapters and of_adapters[0] not in formats.read_text():
            formats.write_text(formats.read_text() + of_adapters[0])
        self.program = folder / "harness"
        runtime = resource("runtime_c")
        kernels = sorted(f for f in (runtime / "src").glob("*.c") if f.name not in ENGINE)
        sanitizers = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
        cc = ["cc", "-std=gnu11", "-O1", *(sanitizers if sanitized else [])]
        options = [
            "-Wall", "-Wextra", "-Werror",
            *(["-DSC_HAS_ENGINES=1", "-DSC_ON_CORES=0", "-DSC_JOIN_PORTABLE"] if config.engines else []),
            f"-DSC_CORES={config.cores}", "-DSC_INPUT_WORDS=32", f"-DSC_SIMD={int(config.simd)}",
            "-include", "model.h", "-I.", f"-I{runtime / 'include'}", f"-I{runtime / 'platform' / 'host'}",
        ]  # fmt: skip
        # file by file, and where the headers are: so ccache has what another process or model compiled
        sources = [Path(__file__).with_name("harness.c"), *kernels]
        commands = [[*cc, *options, "-c", str(f), "-o", f"{f.stem}.o"] for f in sources]
        commands.append([*cc, *(f"{f.stem}.o" for f in sources), "-o", str(self.program)])
        for command in commands:
            built = subprocess.run(
                command, cwd=formats.parent, capture_output=True, text=True, check=False
            )
            assert built.returncode == 0, built.stderr[-3000:]

    def run(self, commands: list[tuple[int, np.ndarray]]) -> list[np.ndarray]:
        """int32 results of {operation, payload int32} commands, all in one process."""
        parts: list[np.ndarray] = []
        for operation, payload in commands:
            parts += [np.array([operation, len(payload)], np.int32), payload.astype(np.int32)]
        done = subprocess.run(
            [str(self.program)],
            input=np.concatenate(parts).tobytes(),
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")[-4000:]
        out = np.frombuffer(done.stdout, np.int32)
        results: list[np.ndarray] = []
        at = 0
        while at < len(out):
            results.append(out[at + 1 : at + 1 + out[at]])
            at += 1 + int(out[at])
        assert len(results) == len(commands)
        return results


def all_formats() -> str:
    """A formats.h with every format there is."""
    return header_of([bits | how for bits in WIDTHS for how in KINDS])


def header_of(formats: Sequence[int]) -> str:
    return formats_header(map(format_name, formats), {f & WIDTH for f in formats}, "harness")


def format_name(fmt: int) -> str:
    """As C writes it."""
    flags = (
        ("SC_FMT_GROUPED", GROUPED),
        ("SC_FMT_ASYM", ASYM),
        ("SC_FMT_Q16", Q16),
        ("SC_FMT_ZEROS", ZEROS),
    )
    return " | ".join([str(fmt & WIDTH), *(name for name, flag in flags if fmt & flag)])


def _qwen3(head_dim: int) -> dict[str, Any]:
    """What makes the model of ``write_tiny_llama`` one whose heads are normalised."""
    gain = np.linspace(-1, 2, head_dim, dtype=np.float32)
    names = ("q_norm", "k_norm")
    return {
        "config": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
        "overrides": {f"model.layers.0.self_attn.{name}.weight": gain for name in names},
    }


def to_words(values: object) -> np.ndarray:
    """Integers of any sign below 2**32 in magnitude as int32 words."""
    return (np.asarray(values, np.int64) & 0xFFFFFFFF).astype(np.uint32).view(np.int32)


def assert_same(got: np.ndarray, want: np.ndarray, what: str) -> int:
    """Equal integers, more than none; the report has position, got, expected and n of m."""
    g, w = np.asarray(got, np.int64).reshape(-1), np.asarray(want, np.int64).reshape(-1)
    assert len(g) == len(w), f"{what}: {len(g)} values, expected {len(w)}"
    assert len(w) > 0, f"{what}: nothing to compare"
    bad = np.flatnonzero(g != w)
    if len(bad):
        shown = "; ".join(f"[{i}] got {g[i]} expected {w[i]}" for i in bad[:8])
        raise AssertionError(f"{what}: {len(bad)} of {len(w)} differ: {shown}")
    return len(w)


def half_words(values: np.ndarray) -> np.ndarray:
    """16-bit integers, two to a word."""
    padded = np.zeros(-(-len(values) // 2) * 2, np.int64)
    padded[: len(values)] = values
    return (padded & 0xFFFF).astype(np.uint16).view(np.int32)


# --- forms on the device -----------------------------------------------------------------


def group_words(n: int, pad: int) -> int:
    """int32 words that a group of n inputs occupies."""
    return -(-n // pad) * pad // 4


def cut_words(k: int, group: int, reach: int, pad: int) -> np.ndarray:
    """sc_vector_layout, derived from its description in sc_matrix.h; ``reach``: cmax, or the most bits of a 16-bit
    vector, which is one group."""
    groups = -(-k // group)
    last = k - (groups - 1) * group
    full, end = group_words(group, pad), group_words(last, pad)
    blocks = (groups - 1) * -(-group // BLOCK) + -(-last // BLOCK)
    return to_words(
        [
            k,
            groups,
            group,
            last,
            -(-group // BLOCK),
            blocks,
            full,
            end,
            (groups - 1) * full + end,
            reach,
        ]
    )


def padded_q(q: np.ndarray, group: int, pad: int) -> np.ndarray:
    """One token's q [k] with every group padded to whole words, as int32 words."""
    parts = []
    for at in range(0, len(q), group):
        part = q[at : at + group]
        out = np.zeros(4 * group_words(len(part), pad), np.int8)
        out[: len(part)] = part
        parts.append(out)
    return np.concatenate(parts).view(np.int32)


def group_sums(q: np.ndarray, group: int) -> np.ndarray:
    return np.array([q[at : at + group].sum() for at in range(0, len(q), group)])


def format_of(w: QLinear) -> int:
    flags = GROUPED * (w.d is not None) + ASYM * (w.b is not None) + ZEROS * w.zero_points
    return w.bits + flags + Q16 * (w.x_bits > 0)


def planes(q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The low and the high signed bytes of 16-bit values: q = 256 * high + low."""
    low = (q + 128) % 256 - 128
    return low, (q - low) // 256


def vector_words(
    x: QVector | Q16Vector, token: int, group: int, pad: int, sums: bool
) -> np.ndarray:
    if isinstance(x, Q16Vector):
        both = [padded_q(plane, len(plane), pad) for plane in planes(x.q[token])]
        return np.concatenate([to_words([x.mantissa[token], x.exponent[token]]), *both])
    parts = [
        to_words([x.mantissa[token], x.exponent[token]]),
        padded_q(x.q[token], group, pad),
        to_words(x.c[token]),
    ]
    return np.concatenate(parts + ([to_words(group_sums(x.q[token], group))] if sums else []))


def matrix_words(w: QLinear, rows: int, tile_blocks: int, *, is_side: bool = False) -> np.ndarray:
    """The sc_matrix of w; ``rows`` counts stored rows (gate_up is padded)."""
    block_bytes = 0 if is_side else pack_matrix(w, np.arange(ROW_BLOCK) % w.n).shape[1]
    parts = [
        to_words([block_bytes, w.n, -(-rows // ROW_BLOCK), tile_blocks]),
        cut_words(w.k, w.group, w.x_bits or w.cmax, w.pad),
        to_words([format_of(w), w.drop + w.format.fold, w.shift]),
    ]
    return np.concatenate(parts)


def matrix_command(
    w: QLinear,
    x: QVector | Q16Vector,
    adapter: Q16Vector | None,
    start: np.ndarray,
    *,
    kind: int,
    cores: int,
    backwards: bool = False,
    tile_blocks: int | None = None,
    gate_shift: int = 0,
    silu_shift: int = 0,
    up_shift: int = 0,
) -> tuple[int, np.ndarray]:
    """sc_matrix_tile over all of w for every token of x, into rows that begin as ``start``; the same with blocks
    that cores split where a tile has few; and of several tokens sc_matrix_tokens too, whose result follows; last the
    number of tiles whose blocks were split."""
    order = gate_up_order(w.n) if kind == SILU else np.arange(w.n)
    blocks = pack_matrix(w, order)
    tile_blocks = len(blocks) if tile_blocks is None else tile_blocks
    tokens = len(x.q)
    parts = [matrix_words(w, len(order), tile_blocks)]
    if w.low_rank is None:
        parts.append(to_words([0]))
    else:
        parts += [to_words([1]), matrix_words(w.low_rank.b, len(order), 1, is_side=True)]
    tabled = w.d is not None
    shape = MatrixShape(
        w.name, w.n, w.k, w.bits, w.group, tabled, w.offsets, pad=w.pad,
        grouped_input=not tabled and not w.x_bits,
    )  # fmt: skip
    scratch = ((tokens + 1) // 2 * 2 * shape.sums + shape.widened) // 4
    how = [tokens, kind, start.shape[1], gate_shift, silu_shift, up_shift, cores, int(backwards)]
    parts.append(to_words([*how, scratch]))
    parts += [vector_words(x, t, w.group, w.pad, w.b is not None) for t in range(tokens)]
    if w.low_rank is not None:
        assert adapter is not None
        parts += [vector_words(adapter, t, w.low_rank.b.group, 4, False) for t in range(tokens)]
    parts.append(to_words(start.reshape(-1)))
    parts.append(blocks.reshape(-1).view(np.int32))
    return MATRIX, np.concatenate(parts)
