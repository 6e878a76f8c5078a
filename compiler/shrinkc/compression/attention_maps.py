"""What the heads of a model look at: attention maps, their Fourier transform, and figures of both."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shrinkc.checkpoints import Loaded
from shrinkc.compression.franken import Configuration, assemble, generate, prompt_ids
from shrinkc.compression.pictures import save_picture, style
from shrinkc.core.artifact import all_files
from shrinkc.core.parsing import parse_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULT = "attention.json"
TOKENS = 32  # of the text that the heads read
LOW = 0.25  # of the largest frequency: what counts as low


@dataclass(frozen=True)
class HeadFigures:
    """One head on one prompt.  All are shares in 0..1.

    ``entropy``: of the rows of the map, relative to that of attention spread evenly over the
    allowed positions.  ``first``: attention that goes to the first token.  ``spectral_entropy``: of
    the power spectrum without its mean, relative to that of noise.  ``low``: power within LOW of
    the largest frequency in both directions.
    """

    entropy: float
    first: float
    spectral_entropy: float
    low: float


def attention_maps(
    loaded: Loaded, layers: Sequence[int], ids: Sequence[int]
) -> NDArray[np.float64]:
    """float64 [layers, heads, T, T] of the configuration on the T tokens ``ids``: row t is where
    token t looks; it sums to 1."""
    import torch

    model = assemble(loaded.model, layers, attention="eager")
    with torch.no_grad():
        maps = model(torch.tensor([list(ids)]), output_attentions=True).attentions
    return np.stack([m[0].double().numpy() for m in maps])


def spectrum(maps: NDArray[np.float64]) -> NDArray[np.float64]:
    """|FFT| over the last two axes, frequency 0 in the middle (index T // 2); same shape."""
    return np.abs(np.fft.fftshift(np.fft.fft2(maps), axes=(-2, -1)))


def figures(attention: NDArray[np.float64]) -> HeadFigures:
    """Of one head's map [T, T], T >= 2."""
    size = len(attention)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(attention > 0, np.log(attention), 0.0)
    # row 0 has one place to look at and no entropy
    rows = -(attention * logs).sum(axis=1)[1:] / np.log(np.arange(2, size + 1))
    power = spectrum(attention) ** 2
    power[size // 2, size // 2] = 0.0  # the mean, the same for every map: its rows sum to 1
    total = power.sum()
    if total == 0:
        return HeadFigures(float(rows.mean()), float(attention[:, 0].mean()), 0.0, 0.0)
    share = power / total
    with np.errstate(divide="ignore", invalid="ignore"):
        flat = -(np.where(share > 0, share * np.log(share), 0.0)).sum() / np.log(share.size - 1)
    frequency = np.abs(np.arange(size) - size // 2)
    near = frequency <= LOW * (size // 2)
    return HeadFigures(
        entropy=float(rows.mean()),
        first=float(attention[:, 0].mean()),
        spectral_entropy=float(flat),
        low=float(share[np.ix_(near, near)].sum()),
    )


def slug(name: str) -> str:
    """A file name for a configuration."""
    return re.sub(r"[^\w.-]+", "_", name).strip("_") or "configuration"


def draw_maps(
    loaded: Loaded, configurations: Sequence[Configuration], prompt: str, folder: Path
) -> dict[str, Any]:
    """Draws maps and spectra of every configuration into ``folder`` (which exists).

    All read the same text: the prompt and what the unchanged model goes on with greedily, TOKENS
    in all (a longer prompt stays whole).  Per configuration ``NAME.attention.png`` and
    ``NAME.fourier.png``, a row of pictures per layer and a column per head; ``attention.json`` has
    the figures, which are returned.  Raises BadData when the prompt is longer than the context.
    """
    ids = prompt_ids(loaded, prompt)
    more = min(TOKENS, loaded.model.config.max_position_embeddings) - len(ids)
    if more > 0:
        ids += generate(loaded.model, ids, more, exact=True)
    out: dict[str, Any] = {
        "text": loaded.tokenizer.decode(ids, skip_special_tokens=True),
        "tokens": len(ids),
        "configurations": [],
    }
    for c in configurations:
        maps = attention_maps(loaded, c.layers, ids)
        labels = [f"{place} ({layer})" for place, layer in enumerate(c.layers)]
        for kind, pictures in (
            ("attention", np.sqrt(maps)),
            ("fourier", np.log1p(spectrum(maps))),
        ):
            title = f"{c.name}\n{_TITLES[kind]}"
            _draw(pictures, labels, title, folder / _picture(c.name, kind))
        out["configurations"].append(
            {
                "name": c.name,
                "layers": [
                    {
                        "place": place,
                        "layer": layer,
                        "heads": [vars(figures(head)) for head in maps[place]],
                    }
                    for place, layer in enumerate(c.layers)
                ],
            }
        )
    (folder / RESULT).write_text(json.dumps(out, indent=2) + "\n", encoding="utf-8")
    return out


def beside_maps(folder: Path) -> list[str] | None:
    """Files in ``folder`` that :func:`draw_maps` does not make; None if it made none of it."""
    try:
        content = parse_json((folder / RESULT).read_text(encoding="utf-8"))
        names = [c["name"] for c in content["configurations"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    made = {RESULT, *(_picture(str(name), kind) for name in names for kind in _TITLES)}
    return [name for name in all_files(folder) if name not in made]


def _picture(name: str, kind: str) -> str:
    return f"{slug(name)}.{kind}.png"


_TITLES = {"attention": "attention (square root)", "fourier": "Fourier magnitude (log)"}


def _draw(pictures: NDArray[np.float64], labels: Sequence[str], title: str, file: Path) -> None:
    """One picture of all heads: [layers, heads, T, T], each head scaled to its own largest value."""
    from matplotlib.figure import Figure

    layers, heads, size, _ = pictures.shape
    gap = max(1, size // 12)
    pitch = size + gap
    sheet = np.full((layers * pitch - gap, heads * pitch - gap), np.nan)
    for i in range(layers):
        for j in range(heads):
            top = pictures[i, j].max()
            sheet[i * pitch : i * pitch + size, j * pitch : j * pitch + size] = (
                pictures[i, j] / top if top > 0 else 0.0
            )
    # whole pixels per entry, so that no entry is drawn wider than another
    scale = max(1, round(72 / size))
    dpi = 100
    with style():
        width, height = sheet.shape[1] * scale / dpi, sheet.shape[0] * scale / dpi
        left, top_, right, bottom = 0.9, 0.6, 0.2, 0.5
        figure = Figure((left + width + right, top_ + height + bottom), dpi=dpi)
        axes: Axes = figure.add_axes((
            left / (left + width + right), bottom / (top_ + height + bottom),
            width / (left + width + right), height / (top_ + height + bottom),
        ))  # fmt: skip
        axes.grid(visible=False)
        axes.set_facecolor("#8a8a8a")  # the gaps: a bright first column ends where they begin
        axes.imshow(sheet, cmap="magma", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
        axes.set_title(title, loc="left", fontsize="medium")
        axes.set_yticks([i * pitch + size / 2 for i in range(layers)], labels)
        axes.set_xticks(
            [j * pitch + size / 2 for j in range(heads)], [str(j) for j in range(heads)]
        )
        axes.set_ylabel("place (layer)")
        axes.set_xlabel("head")
        axes.tick_params(length=0)
        for side in axes.spines.values():
            side.set_visible(False)
        save_picture(figure, file)
