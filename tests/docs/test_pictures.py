"""docs/pictures holds what pictures.py draws."""

from __future__ import annotations

import pytest

from docs import pictures


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_pictures_are_as_they_are_drawn(name: str) -> None:
    assert (pictures.FOLDER / f"{name}.svg").read_text("utf-8") == pictures.PICTURES[name]()
