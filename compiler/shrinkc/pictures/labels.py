"""Placement of labels in a picture without overlaps."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise, product

from shrinkc.pictures.svg import LETTER, TEXT, line, words

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom

_DOT = 7.5  # radius of a dot plus a margin
_STEP = 6.0  # distance between the boxes that reserve a line
_DISTANCES = (10, 22, 36, 52, 70, 92, 118, 150)
_SIDES = ((1, 0), (1, -1), (1, 1), (-1, 0), (-1, -1), (-1, 1), (0, -1), (0, 1))


class Labels:
    """Placement of labels within ``room``.  Reserve all areas first, then put the labels."""

    def __init__(self, room: Box) -> None:
        self._room = room
        self._taken: list[Box] = []

    def keep(self, taken: Box) -> None:
        """Reserve a box."""
        self._taken.append(taken)

    def keep_dot(self, x: float, y: float) -> None:
        """Reserve the dot at (x, y)."""
        self.keep((x - _DOT, y - _DOT, x + _DOT, y + _DOT))

    def keep_line(self, points: Iterable[Point]) -> None:
        """Reserve the line through ``points``."""
        for (x0, y0), (x1, y1) in pairwise(points):
            steps = max(1, round(max(abs(x1 - x0), abs(y1 - y0)) / _STEP))
            for i in range(steps + 1):
                x, y = x0 + (x1 - x0) * i / steps, y0 + (y1 - y0) * i / steps
                self.keep((x - 1, y - 1, x + 1, y + 1))

    def put(self, x: float, y: float, text: str) -> list[str]:
        """Return SVG of ``text`` at the free place nearest to (x, y), with a thin line to it if it is not adjacent.
        If there is no free place, the text is put to the right."""
        high, wide = TEXT + 1.0, len(text) * LETTER
        spots = []
        for distance, (across, down) in product(_DISTANCES, _SIDES):
            left = x + across * distance - wide * (1 - across) / 2
            top = y + down * distance - high / 2
            spots.append((distance, (left, top, left + wide, top + high)))
        distance, spot = next((s for s in spots if self._free(s[1])), spots[0])
        self.keep(spot)
        left, top, right, bottom = spot
        out = [words(left, bottom - 3, text)]
        if distance > _DISTANCES[0]:
            end = (min(max(x, left - 2), right + 2), min(max(y, top), bottom))
            out.append(line([(x, y), end], thin=True))
            self.keep_line([(x, y), end])
        return out

    def _free(self, spot: Box) -> bool:
        left, top, right, bottom = spot
        room = self._room
        if left < room[0] or top < room[1] or right > room[2] or bottom > room[3]:
            return False
        return all(left >= r or right <= l or top >= b or bottom <= t for l, t, r, b in self._taken)  # noqa: E741
