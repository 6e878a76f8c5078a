"""Shapes for calibrating the cost model: some are fitted to, the errors are measured on the held-out ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FORMATS: dict[str, dict[str, Any]] = {
    "w8": {},
    "w6": {"bits": 6},
    "w5": {"bits": 5},
    "w4": {"bits": 4},
    "w3": {"bits": 3},
    "w2": {"bits": 2},
    "w8g32": {"bits": 8, "group_size": 32, "short_last_group": True},
    "w6g32": {"bits": 6, "group_size": 32, "short_last_group": True},
    "w6g16": {"bits": 6, "group_size": 16, "short_last_group": True},
    "w5g32": {"bits": 5, "group_size": 32, "short_last_group": True},
    "w5g32a": {"bits": 5, "group_size": 32, "asymmetric": True, "short_last_group": True},
    "w4g32": {"bits": 4, "group_size": 32, "short_last_group": True},
    "w4g64": {"bits": 4, "group_size": 64, "short_last_group": True},
    "w4g32a": {"bits": 4, "group_size": 32, "asymmetric": True, "short_last_group": True},
    "w3g32": {"bits": 3, "group_size": 32, "short_last_group": True},
    "w2g32": {"bits": 2, "group_size": 32, "short_last_group": True},
}


@dataclass(frozen=True)
class Shape:
    """A model and how it is compiled; ``prompts``: lengths of the prompts that are run, all of them in the
    first format, the first in others."""

    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    layers: int
    context: int
    formats: tuple[str, ...] = ("w8", "w4")
    prompts: tuple[int, ...] = (1, 27)
    vocab: int = 512

    @property
    def name(self) -> str:
        heads = f"{self.heads}/{self.kv_heads}x{self.head_dim}"
        return f"{self.hidden}-{self.ffn}-{heads}-l{self.layers}-v{self.vocab}-c{self.context}"


FITTED = (
    Shape(64, 160, 8, 4, 8, 2, 64, ("w8", "w4g32"), (1, 45)),
    Shape(64, 256, 16, 16, 4, 2, 256, ("w8", "w4", "w3"), (9, 200)),
    Shape(96, 256, 6, 6, 16, 3, 64, ("w8", "w4g32", "w2"), (5, 40)),
    Shape(128, 352, 4, 4, 32, 2, 128, ("w8", "w4", "w4g32a", "w6g16", "w5g32"), (3, 90)),
    Shape(128, 512, 8, 2, 16, 2, 384, ("w8", "w8g32"), (16, 300)),
    Shape(192, 512, 3, 3, 64, 2, 128, ("w8", "w4g64", "w2g32", "w6", "w5"), (8, 70)),
    Shape(256, 704, 8, 4, 32, 2, 96, ("w8", "w4", "w3", "w3g32", "w6g32", "w5g32a"), (6, 33)),
    Shape(288, 768, 6, 2, 48, 2, 64, ("w8", "w2", "w4g32"), (4, 29), 1000),
    Shape(48, 128, 12, 3, 4, 4, 128, ("w8", "w4", "w3g32"), (2, 120)),
    Shape(384, 1024, 6, 6, 64, 1, 64, ("w8", "w4g32", "w2"), (8, 17), 2048),
    Shape(576, 1536, 9, 3, 64, 1, 128, ("w8", "w4", "w3", "w6", "w5"), (7, 20)),
    # long rows, whose blocks the cores split
    Shape(96, 3072, 6, 6, 16, 1, 64, ("w8", "w2", "w4g32a"), (2, 9)),
    Shape(640, 2048, 10, 2, 64, 1, 32, ("w4", "w3", "w8g32"), (3, 20)),
)
HELD_OUT = (
    Shape(80, 224, 10, 5, 8, 2, 96, ("w8", "w4g32"), (7, 60)),
    Shape(112, 304, 7, 7, 16, 2, 256, ("w8", "w3", "w2"), (2, 180)),
    Shape(160, 432, 5, 5, 32, 2, 64, ("w8", "w4", "w4g32a", "w6", "w5g32"), (6, 50), 700),
    Shape(224, 640, 14, 2, 16, 2, 160, ("w8", "w4g32", "w6g16", "w5"), (9, 100)),
    Shape(320, 896, 5, 1, 64, 1, 96, ("w8", "w2g32", "w4"), (3, 30)),
    Shape(64, 192, 16, 8, 4, 3, 320, ("w8", "w4"), (12, 280)),
    Shape(448, 1184, 7, 7, 64, 1, 64, ("w8", "w4g64"), (5, 21)),
    Shape(80, 2400, 5, 5, 16, 1, 64, ("w4", "w3g32", "w8"), (6, 15)),
)


# Run by the engine that the compiler chooses.  Two layers, because a prompt passes the last layer with one token only.
ON_ENGINES_FITTED = (
    Shape(64, 160, 8, 4, 8, 2, 48, ("w8", "w4"), (12,)),
    Shape(96, 256, 6, 6, 16, 2, 48, ("w8", "w2"), (5,)),
    Shape(128, 352, 4, 4, 32, 2, 48, ("w8", "w4", "w3"), (3,)),
    Shape(192, 512, 3, 3, 64, 2, 48, ("w8", "w2"), (18,)),
    Shape(256, 704, 8, 4, 32, 2, 48, ("w4", "w8"), (1,)),
    Shape(384, 1024, 6, 6, 64, 2, 48, ("w4",), (2,)),
    Shape(512, 768, 4, 2, 32, 2, 48, ("w4",), (2,)),
    Shape(128, 352, 8, 8, 16, 2, 64, ("w4g32a", "w8g32"), (20,)),
    Shape(192, 512, 6, 6, 32, 2, 64, ("w4g64", "w2g32", "w6g32", "w5g32"), (8,)),
    Shape(256, 704, 4, 2, 64, 2, 64, ("w3g32", "w4g32", "w6g32"), (33,)),
    Shape(576, 1536, 9, 3, 64, 2, 64, ("w4g32a", "w2g32"), (7,)),
    # rows so long that N-EUREKA is slower than the cores, which process its sums
    Shape(384, 1024, 6, 6, 64, 2, 48, ("w8",), (12,)),
    Shape(576, 1536, 9, 3, 64, 2, 64, ("w8",), (18,)),
    # prefill chunks with more tokens than a tile of N-EUREKA holds with both bytes of their activations
    Shape(64, 160, 8, 4, 8, 2, 64, ("w8",), (40,)),
    Shape(64, 256, 16, 16, 4, 2, 64, ("w8",), (30,)),
    Shape(96, 256, 6, 6, 16, 2, 64, ("w8",), (36,)),
    Shape(128, 352, 4, 4, 32, 2, 64, ("w8",), (24,)),
)
ON_ENGINES_HELD_OUT = (
    Shape(80, 224, 10, 5, 8, 2, 48, ("w8", "w4"), (16,)),
    Shape(160, 432, 5, 5, 32, 2, 48, ("w8", "w3"), (4,)),
    Shape(320, 896, 5, 1, 64, 2, 48, ("w4", "w8"), (1,)),
    Shape(528, 784, 3, 1, 32, 2, 48, ("w4", "w3"), (1,)),
    Shape(160, 448, 5, 5, 32, 2, 64, ("w4g32a", "w3g32", "w5g32a"), (24,)),
    Shape(384, 1024, 6, 2, 64, 2, 64, ("w4g32",), (12,)),
    Shape(320, 896, 5, 1, 64, 2, 64, ("w8",), (6,)),
    Shape(448, 1184, 7, 7, 64, 2, 48, ("w8",), (16,)),
    Shape(80, 224, 10, 5, 8, 2, 64, ("w8",), (33,)),
    Shape(112, 304, 7, 7, 16, 2, 64, ("w8",), (22,)),
)
