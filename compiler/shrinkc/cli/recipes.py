"""``shrinkc recipes``: list, print and copy shipped recipes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shrinkc.cli.console import Console, print_json, write_text
from shrinkc.cli.options import PATH, command
from shrinkc.core.errors import OutputError, UsageError
from shrinkc.core.output import check_file, write_file

if TYPE_CHECKING:
    from shrinkc.driver.compressing import ShippedRecipe


@command(
    "recipes",
    "List, print or copy recipes for 'compress'.",
    "shrinkc recipes",
    "shrinkc recipes quarter",
    "shrinkc recipes quarter -o mine.toml",
)
@click.argument("name", required=False)
@click.option(
    "-o",
    "--output",
    type=PATH,
    metavar="FILE",
    help="Copy the recipe to this new file, to edit it.",
)
def recipes_command(name: str | None, output: Path | None, as_json: bool) -> None:
    """List the recipes that come with shrinkc, or print the one called NAME.

    Give an edited copy to 'shrinkc compress --recipe FILE'.
    """
    from shrinkc.driver.compressing import shipped_recipes

    if name is None:
        found = shipped_recipes()
        if output is not None:
            names = ", ".join(recipe.name for recipe in found)
            raise UsageError("-o copies one recipe, but none is named.", f"name one of {names}.")
        if as_json:
            print_json({"recipes": [_without_text(recipe) for recipe in found]})
            return
        width = max(len(recipe.name) for recipe in found)
        for recipe in found:
            stages = ", ".join(recipe.stages)
            if recipe.budget:
                stages += "; layers, widths and bits by its budget"
            write_text(f"{recipe.name:{width}}  {recipe.about}\n")
            write_text(f"{'':{width}}  stages: {stages}\n")
        return
    (recipe,) = shipped_recipes([name])
    if output is not None:
        if output.exists() and not _takes_anything(output):
            raise OutputError(
                f"{output} exists already.",
                "choose another file, so that no edited recipe is lost.",
            )
        check_file(output)
        write_file(output, recipe.text)
        Console().note(f"{output}: change it, then 'shrinkc compress MODEL --recipe {output}'")
    if as_json:
        print_json(asdict(recipe))
    elif output is None:
        write_text(recipe.text)


def _without_text(recipe: ShippedRecipe) -> dict[str, Any]:
    return {key: value for key, value in asdict(recipe).items() if key != "text"}


def _takes_anything(output: Path) -> bool:
    """Return whether ``output`` is a pipe or device, where nothing can be overwritten."""
    return not output.is_file() and not output.is_dir()
