"""Table and picture of a :class:`~shrinkc.compression.sensitivity.Sensitivity`."""

from __future__ import annotations

from pathlib import Path

from shrinkc.compression.sensitivity import (
    MODULES,
    NARROW,
    WIDTHS,
    LayerSensitivity,
    Sensitivity,
)


def table(s: Sensitivity) -> list[str]:
    """Return a table in text form, with standard errors: increase in loss of layers, divergence of matrices."""
    shares = [f"FFN -{share:.1%}".replace(".0%", "%") for share in NARROW]
    head = ["removed", *shares, "KV head", *(f"{bits} bit" for bits in WIDTHS)]
    lines = [
        f"baseline {s.baseline:.4f} nats per token ({s.tokens} tokens, {s.dtype}); "
        "increase in loss ± standard error:",
        _row("layer", head),
    ]

    def of_layer(layer: LayerSensitivity) -> list[float | None]:
        return [layer.removed, *layer.ffn.values(), layer.kv_group, *layer.bits.values()]

    values, errors = s.loss, s.loss_error
    for i, layer in enumerate(values.layers):
        lines.append(
            _row(str(i), _cells(of_layer(layer), of_layer(errors.layers[i]) if errors else None))
        )
    embedding = _cells(
        [*values.embedding.values()], [*errors.embedding.values()] if errors else None
    )
    lines.append(_row("embedding", [""] * (len(head) - len(embedding)) + embedding))
    names = [m.split(".")[1].removesuffix("_proj") for m in MODULES]
    for bits in WIDTHS:

        def of_bits(layer: LayerSensitivity, bits: int = bits) -> list[float | None]:
            return [layer.modules[m][bits] for m in MODULES]

        lines += ["", f"one matrix at {bits} bit, divergence:", _row("layer", names)]
        for i, layer in enumerate(s.kl.layers):
            cells = _cells(of_bits(layer), of_bits(s.kl_error.layers[i]) if s.kl_error else None)
            lines.append(_row(str(i), cells))
    return lines


def _row(name: str, cells: list[str]) -> str:
    return f"{name:<9}" + "".join(f"{cell:>17}" for cell in cells)


def _cells(values: list[float | None], errors: list[float | None] | None) -> list[str]:
    """Return the texts of a row; values of some thousand tokens have two digits at most."""
    shown = ["-" if value is None else f"{value:.2g}" for value in values]
    if errors is None:
        return shown
    pairs = zip(shown, errors, strict=True)
    return [text if error is None else f"{text} ± {error:.1g}" for text, error in pairs]


def draw(s: Sensitivity, file: Path) -> None:
    """Draw the divergence of every matrix per width, and the increase in loss without each layer."""
    from shrinkc.compression.pictures import COLOURS, save_picture, style

    with style():
        from matplotlib.colors import LogNorm
        from matplotlib.figure import Figure

        values = [v for layer in s.kl.layers for by in layer.modules.values() for v in by.values()]
        high = max(*values, 1e-6)
        norm = LogNorm(max(min(max(v, 0.0) for v in values), high * 1e-4), high, clip=True)
        count = len(s.kl.layers)
        figure = Figure(figsize=(3 + 0.2 * max(count, 12), 11), layout="constrained")
        axes = figure.subplots(len(WIDTHS) + 1, 1, sharex=True)
        for axis, bits in zip(axes, WIDTHS, strict=False):
            grid = [[max(layer.modules[m][bits], 0.0) for layer in s.kl.layers] for m in MODULES]
            axis.imshow(grid, aspect="auto", norm=norm, cmap="viridis")
            axis.grid(False)
            names = [m.split(".")[1].removesuffix("_proj") for m in MODULES]
            axis.set_yticks(range(len(MODULES)), names)
            axis.set_title(f"one matrix at {bits} bit: divergence, nats per token", loc="left")
        figure.colorbar(axes[0].images[0], ax=list(axes[:-1]), shrink=0.6)
        bars = axes[-1]
        bars.bar(
            range(count), [max(layer.removed, 0.0) for layer in s.loss.layers], color=COLOURS[0]
        )
        bars.set_yscale("symlog", linthresh=0.01)
        bars.set_title("a layer removed: increase in loss, nats per token", loc="left")
        bars.set_xlabel("layer")
        save_picture(figure, file)
