"""The device's own decode table is part of what a run proves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from shrinkc.ir.graph import Graph
from shrinkc.simulate.proof import Record, compare

PIECES = [b"", b"a", b"bc"]


def graph() -> Graph:
    none = np.zeros((1, 1), np.int16)
    return Graph("g", 3, 4, 0, 1, 1, 2, 4, 8, -1, (), none, none)


def record(pieces: list[bytes]) -> Record:
    logits = {0: np.array([0, 1, 2]), 1: np.array([0, 2, 1])}
    return Record(tokens=[2, 1], pieces=pieces, logits=logits, complete=True)


def test_right_pieces_count_and_pass() -> None:
    good = record([b"bc", b"a"])
    verdict = compare(good, good, graph(), PIECES)
    assert (verdict.compared, verdict.mismatched) == (3 + 3 + 2 + 2, 0)
    assert compare(good, good, graph()).compared == 3 + 3 + 2


def test_a_wrong_or_missing_piece_is_a_difference() -> None:
    good = record([b"bc", b"a"])
    for pieces in ([b"bc", b"x"], [b"bc"]):
        verdict = compare(replace(good, pieces=pieces), good, graph(), PIECES)
        assert verdict.mismatched == 1 and verdict.first_difference is not None
        assert (verdict.first_difference.op, verdict.first_difference.step) == ("text", 1)
