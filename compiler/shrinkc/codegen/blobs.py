"""The blobs: one file per memory with weights, and the tokenizer's tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from shrinkc.abi import SAMPLED_WORDS
from shrinkc.codegen.pack import pack_stored
from shrinkc.codegen.tokenizer_blob import tokenizer_blob
from shrinkc.importer.tokenizer import Tokenizer
from shrinkc.ir.graph import Graph
from shrinkc.ir.linear import QLinear
from shrinkc.memory.parts import Placement, pieces_in
from shrinkc.memory.plan import Plan
from shrinkc.numerics.fixed import hash_words
from shrinkc.targets import Target


def write_blobs(
    graph: Graph,
    stored: list[tuple[str, QLinear, np.ndarray | None]],
    owners: dict[str, str],
    plan: Plan,
    target: Target,
    tokenizer: Tokenizer,
    folder: Path,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Write all blobs into the new ``folder``.

    ``stored``: name, matrix and order of its rows; ``owners``: matrices that are stored once, by those that equal them.
    """
    tables = _tables(graph, tokenizer)
    _write_weights(stored, owners, tables, plan, target, folder, progress)
    encoder = tokenizer_blob(tokenizer.encode_table(), tokenizer.vocab_size)
    (folder / "tokenizer.bin").write_bytes(encoder)


def _tables(graph: Graph, tokenizer: Tokenizer) -> dict[str, bytes]:
    """The tables as they are stored: of RoPE int16 [context][head_dim / 2][cos, sin] in Q15; of the tokens'
    text uint32 [vocab + 1] offsets into the bytes that follow."""
    pieces = tokenizer.decode_table()
    offsets = np.concatenate([[0], np.cumsum([len(p) for p in pieces])])
    rope = np.stack([graph.rope_cos, graph.rope_sin], axis=2)
    return {
        "rope": rope.astype("<i2").tobytes(),
        "pieces": offsets.astype("<u4").tobytes() + b"".join(pieces),
    }


def sampled_hash(blob: Path) -> tuple[int, int]:
    """Words of a blob, and the hash of up to 127 of them, evenly spread: what sc_weights_match() computes."""
    count = blob.stat().st_size // 4
    if count == 0:
        return 0, 0
    words = np.memmap(blob, "<u4", "r", shape=count)
    return count, hash_words(words[:: max(1, count // SAMPLED_WORDS)])


def _write_weights(
    stored: list[tuple[str, QLinear, np.ndarray | None]],
    owners: dict[str, str],
    tables: dict[str, bytes],
    plan: Plan,
    target: Target,
    folder: Path,
    progress: Callable[[int, int], None] | None,
) -> None:
    """One file per memory level, tables and matrices at their planned offsets, equal ones once (``owners``)."""
    folder.mkdir(parents=True)
    by_name = {name: (w, order) for name, w, order in stored}
    done, pieces = 0, sum(len(p.pieces) for p in plan.placements)
    for level in target.stored:
        with (folder / f"{level.name}.bin").open("wb") as f:
            for table in (x for x in plan.tables if x.level == level.name):
                f.write(bytes(table.offset - f.tell()))
                f.write(tables[table.name].ljust(table.bytes, b"\0"))
            here = pieces_in(plan.placements, level.name)
            for p, offset, size in sorted(here, key=lambda piece: piece[1]):
                w, order = by_name[p.name]
                packed = pack_stored(w, order)
                if packed.shape != (p.bytes,):
                    raise AssertionError(f"{p.name}: packed {packed.shape}, planned {p.bytes}")
                if p.name in owners:
                    owner, its_order = by_name[owners[p.name]]
                    if not np.array_equal(packed, pack_stored(owner, its_order)):
                        raise AssertionError(f"{p.name} is not equal to {owners[p.name]}")
                else:
                    f.write(bytes(offset - f.tell()))
                    piece = _piece(packed, p, on_chip=level.name == p.chip_level)
                    if piece.shape != (size,):
                        raise AssertionError(f"{p.name}: {piece.shape} in {level.name}, not {size}")
                    f.write(piece.tobytes())
                done += 1
                if progress is not None:
                    progress(done, pieces)


def _piece(packed: np.ndarray, p: Placement, *, on_chip: bool) -> np.ndarray:
    """Of a matrix's bytes those of its tiles in one of two memories, or all of them."""
    if not p.interleave:
        return packed
    tile = p.tile_blocks * p.block_bytes
    count = -(-len(packed) // tile)
    return np.concatenate(
        [packed[i * tile : (i + 1) * tile] for i in range(count) if p.tile_on_chip(i) == on_chip]
    )
