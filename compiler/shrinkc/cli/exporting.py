"""``shrinkc export``: the integer model for the tools of others."""

from __future__ import annotations

from pathlib import Path

import click

from shrinkc.cli.console import Console, print_json
from shrinkc.cli.options import PATH, command
from shrinkc.core.errors import UsageError


@command(
    "export",
    "Write a compiled model as an ONNX graph.",
    "shrinkc export out --onnx -o model.onnx",
)
@click.argument("directory", type=PATH)
@click.option("--onnx", is_flag=True, help="Write ONNX with standard operators (required).")
@click.option("-o", "--output", type=PATH, required=True, help="File to write.")
def export_command(directory: Path, onnx: bool, output: Path, as_json: bool) -> None:
    """Write the compiled model in DIRECTORY for other tools.

    The graph's inputs are tokens and the KV cache.  Its outputs are the logits, the most probable token
    and the new cache, with exactly the same integers as the program.
    """
    from shrinkc.driver.exporting import export_onnx

    if not onnx:
        raise UsageError("export needs a format.", "add --onnx, the only one.")
    console = Console()
    result = export_onnx(directory, output, console)
    for line in result.lines():
        console.note(line)
    if as_json:
        print_json(result.to_json())
