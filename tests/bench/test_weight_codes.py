"""The study of weight codes: its encoder, its decoders under sanitizers, and its programs on GVSoC."""

from __future__ import annotations

import heapq
import subprocess
from dataclasses import dataclass
from pathlib import Path

import decoders
import numpy as np
import prefix_codes as codes
import pytest
from prefix_codes import CODEBOOK, KERNELS, QUADS, ROW_FOUR, ROW_PAIRS, ROW_THREE, JointCode

from end_to_end.programs import need

# method, weights per symbol, bits of the table's index
METHODS = [
    (ROW_PAIRS, 1, 12), (ROW_PAIRS, 2, 10), (ROW_PAIRS, 3, 12), (ROW_THREE, 1, 8), (ROW_THREE, 2, 9), (ROW_FOUR, 1, 7),
    (QUADS, 4, 12), (CODEBOOK, 4, 12),
]  # fmt: skip
TILE_BLOCKS = 2
NAMED = {1: "offsets", 2: "stream", 3: "correction"}


@dataclass(frozen=True)
class Case:
    """A small coded matrix of 5 blocks in 3 tiles, its file, and the sums to expect."""

    file: bytes
    sums: np.ndarray
    coded: codes.Coded
    code: JointCode


def case(method: int, size: int, bits: int, inputs: int = 50) -> Case:
    random = np.random.default_rng(7)
    w = random.standard_normal((40, inputs)) * 1.8
    w[random.random(w.shape) < 0.02] *= 20  # far outside of any code
    samples = random.standard_normal((20000, size)) * 1.8
    if method == CODEBOOK:
        values = np.unique(codes.keys(np.rint(samples).clip(-127, 127).astype(np.int64)))[:4096]
        code = JointCode(CODEBOOK, 12, codes.of_keys(values, 4), np.full(len(values), 12))
    else:
        code = JointCode.of(samples, method, bits)
    coded = codes.encode(w, code, TILE_BLOCKS)
    x = random.integers(-127, 128, inputs)
    return Case(codes.file_of(coded, code, 40, x, TILE_BLOCKS), coded.q @ x, coded, code)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("host") / "host"
    source = decoders.HERE / "host.c"
    sanitizers = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    options = [
        "-std=gnu11",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        f"-I{decoders.RUNTIME / 'include'}",
    ]
    subprocess.run(["cc", *options, *sanitizers, source, "-o", program], check=True)
    return program


def ran(host: Path, file: Path, *words: str) -> np.ndarray:
    done = subprocess.run([host, file, *words], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-3000:]
    return np.frombuffer(done.stdout, np.int32)


@pytest.mark.parametrize(("method", "size", "bits"), METHODS)
def test_decoded_as_encoded(host: Path, tmp_path: Path, method: int, size: int, bits: int) -> None:
    wanted = case(method, size, bits)
    (tmp_path / "file").write_bytes(wanted.file)
    found = ran(host, tmp_path / "file").reshape(5, 9)
    assert not found[:, 0].any()
    np.testing.assert_array_equal(found[:, 1:].reshape(-1), wanted.sums)
    assert wanted.coded.corrected > 0, "no correction was tested"


@pytest.mark.parametrize(("method", "size", "bits"), METHODS)
def test_damaged_streams(host: Path, tmp_path: Path, method: int, size: int, bits: int) -> None:
    """They end in each of the errors, and no sanitizer sees an access outside of a tile."""
    (tmp_path / "file").write_bytes(case(method, size, bits).file)
    errors = ran(host, tmp_path / "file", "700", "3")
    assert errors.sum() == 700 * 5
    for error, name in NAMED.items():
        assert errors[error] > 0, f"no damage was found in {name}"


def test_table_with_long_words(host: Path, tmp_path: Path) -> None:
    """A length over 12 bits would lead out of the buffer."""
    content = bytearray(case(ROW_PAIRS, 2, 10).file)
    content[48] = 13  # of the first entry
    (tmp_path / "file").write_bytes(content)
    assert subprocess.run([host, tmp_path / "file"], check=False).returncode == 3


def huffman_bits(counts: list[int]) -> int:
    heap, total = list(counts), 0
    heapq.heapify(heap)
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        total += both
        heapq.heappush(heap, both)
    return total


def test_code_lengths() -> None:
    """Huffman's total without a limit; within the limit, and complete; prefix-free words."""
    counts = np.array([2**j for j in range(12)])
    assert (codes.code_lengths(counts, 12) * counts).sum() == huffman_bits(counts.tolist())
    limited = codes.code_lengths(counts, 5)
    assert limited.max() == 5
    assert (0.5**limited).sum() == 1
    words = codes.canonical(limited)
    texts = [f"{w:0{n}b}"[::-1] for w, n in zip(words, limited, strict=True)]
    assert not [a for a in texts for b in texts if a != b and b.startswith(a)]
    with pytest.raises(ValueError, match="9 symbols do not fit code words of 3 bits"):
        codes.code_lengths(np.ones(9), 3)


@pytest.mark.parametrize(("method", "size", "bits"), METHODS[:-1])
def test_symbols_of_a_load_fit(method: int, size: int, bits: int) -> None:
    wanted = case(method, size, bits)
    w = np.full((8, 12 * size), 3.0)  # long words
    index, _ = wanted.code.indices(codes.tuples(w, size))
    loads = codes.ordered(index, method).reshape(-1, codes.together(method))
    assert wanted.code.lengths[loads].sum(1).max() <= codes.LOAD_BITS


def test_corrections_far_apart() -> None:
    row = np.zeros(700, np.int64)
    row[[3, 650]] = 9, -100
    assert codes.corrections(row).tolist() == [3, 9, 255, 0, 255, 0, 137, 156]


def test_tile_too_large() -> None:
    with pytest.raises(ValueError, match="take fewer blocks per tile"):
        codes.tile_of([np.zeros(70000, np.uint8)], [], 1)


@pytest.mark.gvsoc
@pytest.mark.slow
@pytest.mark.parametrize(("method", "size", "bits"), METHODS)
def test_gvsoc(tmp_path: Path, method: int, size: int, bits: int) -> None:
    """From L2 and from flash."""
    need("gvsoc")
    wanted = case(method, size, bits, inputs=577)
    (tmp_path / "data").write_bytes(wanted.file)
    (tmp_path / "flash").write_bytes(b"".join(wanted.coded.tiles) + bytes(64))
    for flash in (None, tmp_path / "flash"):
        decoders.build(method, tmp_path / "data", tmp_path / "program", flash=flash is not None)
        found = decoders.run(tmp_path / "program", tmp_path, flash)
        assert found["y"] == wanted.sums.tolist()
    assert method in KERNELS
